package main

import (
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/anishathalye/porcupine"
)

// A queue has items in the order in which they were put.
//
//	enqueue 5 -> []
//	dequeue -> [5]      the first
//	dequeue -> []       there was none
//
// Demanded is: what was put is taken, in that order, and by one call at most.
//
// An item that was put in a call of unknown fate may be put at any time, once. A dequeue that failed, was dropped, or was never
// answered may have taken the first item, at any time after its call; at any time after that the item returns, to its place or
// to the end of the queue, or never does: that much the crate's documents allow. So an item may be missing only where a dequeue
// failed, and as many as failed.
var queue = model{
	name: "queue",
	shapes: map[string]shape{
		"enqueue": {args: 1, results: []int{0}},
		"dequeue": {args: 0, results: []int{0, 1}},
	},
	expand: func(call call) []effect {
		switch {
		case call.outcome == ok:
			return []effect{{op: call.op, args: call.args, result: call.result}}
		case call.op == "dequeue":
			who := []int64{call.id}
			return []effect{{op: "aside", args: who, open: true, rare: true}, {op: "back", args: who, open: true, rare: true}}
		case call.outcome == refused:
			return nil
		}
		return []effect{{op: call.op, args: call.args, open: true}}
	},
	model: nondeterministic.ToModel(),
}

// items are those of a queue. None is ever changed in place.
type items []item

// item is one, and which failed dequeue has it: it waits for the next one where none has.
type item struct {
	value   int64
	isAside bool
	by      int64
}

var nondeterministic = porcupine.NondeterministicModel{
	Init: func() []any { return []any{items(nil)} },
	Step: func(state, input, _ any) []any {
		now, effect := state.(items), input.(effect)
		first := slices.IndexFunc(now, func(item item) bool { return !item.isAside })
		switch effect.op {
		case "enqueue":
			return []any{now.with(item{value: effect.args[0]})}
		case "aside":
			if first < 0 {
				return []any{now}
			}
			then := slices.Clone(now)
			then[first].isAside, then[first].by = true, effect.args[0]
			return []any{then}
		case "back":
			aside := slices.IndexFunc(now, func(item item) bool { return item.isAside && item.by == effect.args[0] })
			if aside < 0 {
				return []any{now}
			}
			back := item{value: now[aside].value}
			inPlace := slices.Clone(now)
			inPlace[aside] = back
			return []any{inPlace, now.without(aside).with(back)}
		}
		switch {
		case len(effect.result) == 0 && first < 0:
			return []any{now}
		case len(effect.result) == 1 && first >= 0 && now[first].value == effect.result[0]:
			return []any{now.without(first)}
		}
		return nil
	},
	Equal: func(one, other any) bool { return slices.Equal(one.(items), other.(items)) },
	Hash: func(state any) uint64 {
		hash := fnv.New64a()
		fmt.Fprint(hash, state)
		return hash.Sum64()
	},
	DescribeOperation: describe,
	DescribeState:     func(state any) string { return state.(items).String() },
}

func (now items) with(last item) items { return append(slices.Clone(now), last) }

func (now items) without(place int) items { return slices.Delete(slices.Clone(now), place, place+1) }

func (now items) String() string {
	var told []string
	for _, item := range now {
		one := fmt.Sprint(item.value)
		if item.isAside {
			one += fmt.Sprintf(" (aside, by %d)", item.by)
		}
		told = append(told, one)
	}
	return "[" + strings.Join(told, ", ") + "]"
}
