package main

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/anishathalye/porcupine"
)

// A history is a file of lines, each of them JSON. The first names the model:
//
//	{"model":"counter"}
//
// Then come calls and returns, in any order of time, but each return after its call:
//
//	{"call":7,"at":100,"client":2,"object":"counter/1","op":"add","args":[5]}
//	{"return":7,"at":120,"outcome":"ok","result":[42]}
//
// The moments are of one clock. An outcome is "ok", "refused" (it changed nothing, and never will) or "unknown" (it may
// have been applied, may be applied later, or never); one without a return is unknown. Each object is judged by itself.
type history struct {
	model      *model
	objects    []string
	operations map[string][]porcupine.Operation
	// How many calls there are, how many of them may be applied at any time after they were made, and how many can tell
	// nothing, and are left out.
	calls, open, weightless int
}

// A model says what an object does with calls, one after the other.
type model struct {
	name string
	// The operations there are, by their names.
	shapes map[string]shape
	// What a call counts as: most as one operation, or none.
	expand func(call) []effect
	model  porcupine.Model
}

// shape is how many numbers an operation takes, and how many may be its result.
type shape struct {
	args    int
	results []int
}

// effect is what the object does at one moment between a call and its return; or, if it is open, at any after the call. One
// that is rare is looked for only where there is no order without it.
type effect struct {
	op         string
	args       []int64
	result     []int64
	open, rare bool
}

// call is a call with its return, if it had one.
type call struct {
	id       int64
	client   int
	object   string
	op       string
	args     []int64
	began    int64
	returned int64
	outcome  string
	result   []int64
}

const (
	ok      = "ok"
	refused = "refused"
	unknown = "unknown"
)

var models = map[string]*model{"counter": &counter, "lock": &lock, "queue": &queue}

// line is any line after the first.
type line struct {
	Call    *int64  `json:"call"`
	Return  *int64  `json:"return"`
	At      *int64  `json:"at"`
	Client  *int    `json:"client"`
	Object  string  `json:"object"`
	Op      string  `json:"op"`
	Args    []int64 `json:"args"`
	Outcome string  `json:"outcome"`
	Result  []int64 `json:"result"`
}

// read reads a history. Its errors say which line is wrong.
func read(name string, text io.Reader) (*history, error) {
	lines := bufio.NewScanner(text)
	lines.Buffer(nil, 1<<20)
	number := 0
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("%s:%d: %s", name, number, fmt.Sprintf(format, args...))
	}
	var of *model
	calls := map[int64]*call{}
	var order []*call
	var last int64
	for lines.Scan() {
		number++
		if of == nil {
			var first struct {
				Model string `json:"model"`
			}
			if err := decode(lines.Bytes(), &first); err != nil {
				return nil, wrong("not a line that names a model: %v", err)
			}
			if of = models[first.Model]; of == nil {
				return nil, wrong("there is no model %q", first.Model)
			}
			continue
		}
		var line line
		if err := decode(lines.Bytes(), &line); err != nil {
			return nil, wrong("not a line of a history: %v", err)
		}
		if line.At == nil {
			return nil, wrong("no moment")
		}
		last = max(last, *line.At)
		switch {
		case line.Call != nil && line.Return != nil, line.Call == nil && line.Return == nil:
			return nil, wrong("neither a call nor a return")
		case line.Call != nil:
			if calls[*line.Call] != nil {
				return nil, wrong("%d is called twice", *line.Call)
			}
			call, err := of.called(line)
			if err != nil {
				return nil, wrong("%v", err)
			}
			calls[call.id] = call
			order = append(order, call)
		default:
			call := calls[*line.Return]
			if call == nil {
				return nil, wrong("%d returns and was never called", *line.Return)
			}
			if err := of.returns(call, line); err != nil {
				return nil, wrong("%v", err)
			}
		}
	}
	if err := lines.Err(); err != nil {
		number++
		return nil, wrong("%v", err)
	}
	if of == nil {
		number++
		return nil, wrong("not a line that names a model: the file is empty")
	}
	if last == math.MaxInt64 {
		return nil, fmt.Errorf("%s: a moment has none after it", name)
	}
	return of.history(order, last+1), nil
}

func decode(text []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return fmt.Errorf("more than one value")
	}
	return nil
}

func (of *model) called(line line) (*call, error) {
	shape, known := of.shapes[line.Op]
	switch {
	case !known:
		return nil, fmt.Errorf("a %s has no operation %q", of.name, line.Op)
	case len(line.Args) != shape.args:
		return nil, fmt.Errorf("%s takes %d numbers, not %d", line.Op, shape.args, len(line.Args))
	case line.Object == "" || line.Client == nil:
		return nil, fmt.Errorf("a call has an object and a client")
	}
	return &call{
		id: *line.Call, client: *line.Client, object: line.Object, op: line.Op, args: line.Args, began: *line.At,
		outcome: unknown,
	}, nil
}

func (of *model) returns(call *call, line line) error {
	switch {
	case call.returned != 0:
		return fmt.Errorf("%d returns twice", call.id)
	case *line.At < call.began:
		return fmt.Errorf("%d returns before it was called", call.id)
	case line.Outcome == ok && !slices.Contains(of.shapes[call.op].results, len(line.Result)):
		return fmt.Errorf("%s has no result of %d numbers", call.op, len(line.Result))
	case line.Outcome != ok && line.Outcome != refused && line.Outcome != unknown:
		return fmt.Errorf("%q is no outcome", line.Outcome)
	}
	call.returned, call.outcome, call.result = *line.At, line.Outcome, line.Result
	return nil
}

// history makes of calls what the checker is to put in order. What is open ends at the end: an order in which it was never
// applied is one in which it is applied last, when no other sees it.
func (of *model) history(calls []*call, end int64) *history {
	slices.SortStableFunc(calls, func(a, b *call) int { return cmp.Compare(a.began, b.began) })
	history := history{model: of, operations: map[string][]porcupine.Operation{}, calls: len(calls)}
	for _, call := range calls {
		effects := of.expand(*call)
		if len(effects) == 0 {
			history.weightless++
			continue
		}
		isOpen := false
		for _, effect := range effects {
			returned := call.returned
			if effect.open {
				isOpen, returned = true, end
			}
			if history.operations[call.object] == nil {
				history.objects = append(history.objects, call.object)
			}
			history.operations[call.object] = append(history.operations[call.object], porcupine.Operation{
				ClientId: call.client, Input: effect, Call: call.began, Output: effect.result, Return: returned,
			})
		}
		if isOpen {
			history.open++
		}
	}
	return &history
}

// describe tells an effect for people.
func describe(input, _ any) string {
	effect := input.(effect)
	result := fmt.Sprint(effect.result)
	if effect.open {
		result = "?"
	}
	return fmt.Sprintf("%s%v -> %s", effect.op, effect.args, result)
}
