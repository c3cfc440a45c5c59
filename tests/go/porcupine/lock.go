package main

import (
	"fmt"

	"github.com/anishathalye/porcupine"
)

// A lock is free, or has a holder, who is told by the token that it got with it.
//
//	lock -> [17]        the token
//	valid 17 -> []      its holder was told, right then, that it holds it
//	write 17 -> []      a write behind its fence was applied
//	unlock 17 -> []
//
// Demanded is: one at most holds the lock, from its lock to its unlock, and each token is above all before it; a
// holder that is told that it holds the lock does so at that moment, and what is written behind its fence is written while it does.
//
// An unlock of unknown fate is that of a guard which was dropped or lost, or which the server did not answer: the lock may be
// given up at any time from its call on. That of a lost one is written as called when its holder was last told that it holds the
// lock, since the server may have ended its lease right after that. A lock without an unlock is never given up. A lock that was refused, or whose fate is unknown, has no holder who knows of it:
// how long it may keep others waiting is not judged, nor is how soon those get it. A write of unknown fate tells nothing.
var lock = model{
	name: "lock",
	shapes: map[string]shape{
		"lock":   {args: 0, results: []int{1}},
		"valid":  {args: 1, results: []int{0}},
		"write":  {args: 1, results: []int{0}},
		"unlock": {args: 1, results: []int{0}},
	},
	expand: func(call call) []effect {
		if call.outcome != ok && call.op != "unlock" {
			return nil
		}
		// One that was refused says that another has given the lock up, at some time.
		return []effect{{op: call.op, args: call.args, result: call.result, open: call.outcome != ok}}
	},
	model: porcupine.Model{
		Init: func() any { return held{} },
		Step: func(state, input, _ any) (bool, any) {
			now, effect := state.(held), input.(effect)
			switch effect.op {
			case "lock":
				token := effect.result[0]
				return now.by == 0 && token > now.last, held{by: token, last: token}
			case "unlock":
				return now.by == effect.args[0], held{last: now.last}
			}
			return now.by == effect.args[0], now
		},
		Hash:              func(state any) uint64 { return uint64(state.(held).by ^ state.(held).last<<32) },
		DescribeOperation: describe,
		DescribeState:     func(state any) string { return state.(held).String() },
	},
}

// held is by whom a lock is held, 0 for none, and the last token there was.
type held struct{ by, last int64 }

func (held held) String() string {
	if held.by == 0 {
		return fmt.Sprintf("free, after %d", held.last)
	}
	return fmt.Sprintf("held by %d", held.by)
}
