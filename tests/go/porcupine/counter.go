package main

import (
	"fmt"

	"github.com/anishathalye/porcupine"
)

// A counter is a number that begins at 0.
//
//	add 5 -> [42]       the sum
//	get -> [42]
//	set 42 7 -> [1]     whether it was 42, and is 7 now
//
// All of it is demanded in real time. An addition of unknown fate is made once at most, at any time after its call.
var counter = model{
	name: "counter",
	shapes: map[string]shape{
		"add": {args: 1, results: []int{1}},
		"get": {args: 0, results: []int{1}},
		"set": {args: 2, results: []int{1}},
	},
	expand: func(call call) []effect {
		if call.outcome == refused || call.op == "get" && call.outcome == unknown {
			return nil
		}
		return []effect{{op: call.op, args: call.args, result: call.result, open: call.outcome == unknown}}
	},
	model: porcupine.Model{
		Init: func() any { return int64(0) },
		Step: func(state, input, _ any) (bool, any) {
			number, effect := state.(int64), input.(effect)
			result := func(value int64) bool { return effect.open || effect.result[0] == value }
			switch effect.op {
			case "add":
				sum := number + effect.args[0]
				return result(sum), sum
			case "set":
				if number == effect.args[0] {
					return result(1), effect.args[1]
				}
				return result(0), number
			}
			return result(number), number
		},
		Hash:              func(state any) uint64 { return uint64(state.(int64)) },
		DescribeOperation: describe,
		DescribeState:     func(state any) string { return fmt.Sprint(state) },
	},
}
