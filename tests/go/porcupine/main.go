// Command porcupine judges histories of calls with the linearizability checker of that name.
//
//	porcupine [-limit 1m] FILE...
//
// Each file has one history: see history.go for its lines, and the file of each model for what is demanded. For each it
// prints how much was judged. It exits with 1 if a history is not linearizable, for which it prints where it breaks and
// draws it in a file beside the history; with 2 if a file cannot be read as a history; with 3 if a history could not be
// decided within the limit.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

const (
	broken = iota + 1
	unreadable
	undecided
)

func main() {
	limit := flag.Duration("limit", time.Minute, "for how long one object's calls may be searched for an order")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "no history: porcupine [-limit 1m] FILE...")
		os.Exit(unreadable)
	}
	code := 0
	for _, file := range flag.Args() {
		// The worst of all: a history that is broken is more than one that is not decided.
		if one := judge(file, *limit, os.Stdout); code == 0 || one != 0 && one < code {
			code = one
		}
	}
	os.Exit(code)
}

// judge judges the history in a file, tells what it found, and gives the code to exit with.
func judge(file string, limit time.Duration, out io.Writer) int {
	text, err := os.Open(file)
	if err != nil {
		fmt.Fprintln(out, err)
		return unreadable
	}
	defer text.Close()
	history, err := read(file, text)
	if err != nil {
		fmt.Fprintln(out, err)
		return unreadable
	}
	begin, code, longest := time.Now(), 0, 0
	for _, object := range history.objects {
		operations := history.operations[object]
		longest = max(longest, len(operations))
		switch check(history.model.model, operations, limit) {
		case porcupine.Illegal:
			code = broken
			explain(out, file, object, history.model.model, operations, limit)
		case porcupine.Unknown:
			fmt.Fprintf(out, "%s: %s: no order of %d calls was found, nor that there is none, within %v\n",
				file, object, len(operations), limit)
			if code == 0 {
				code = undecided
			}
		}
	}
	word := map[int]string{0: "linearizable", broken: "NOT LINEARIZABLE", undecided: "UNDECIDED"}[code]
	fmt.Fprintf(out, "%s: %s: %d calls, %d of them without a known end, %d of no weight; on %d objects, at most %d on one; in %v\n",
		history.model.name, word, history.calls, history.open, history.weightless, len(history.objects), longest,
		time.Since(begin).Round(time.Millisecond))
	return code
}

// check looks for an order. Each effect that may have been at any time, or never, multiplies the orders there are; few of those
// that are rare ever were, so an order without all of them is looked for first.
func check(model porcupine.Model, operations []porcupine.Operation, limit time.Duration) porcupine.CheckResult {
	isRare := func(operation porcupine.Operation) bool { return operation.Input.(effect).rare }
	if slices.ContainsFunc(operations, isRare) {
		plain := slices.DeleteFunc(slices.Clone(operations), isRare)
		if porcupine.CheckOperationsTimeout(model, plain, limit) == porcupine.Ok {
			return porcupine.Ok
		}
	}
	return porcupine.CheckOperationsTimeout(model, operations, limit)
}

// explain prints the longest order that was found, as far as it goes, and what could not follow; and draws all of it.
func explain(out io.Writer, file, object string, model porcupine.Model, operations []porcupine.Operation, limit time.Duration) {
	fmt.Fprintf(out, "%s: %s: there is no order of these %d calls in which each could have had its result\n", file, object, len(operations))
	_, info := porcupine.CheckOperationsVerbose(model, operations, limit)
	var longest []int
	for _, order := range info.PartialLinearizations()[0] {
		if len(order) > len(longest) {
			longest = order
		}
	}
	const shown = 8
	state, isInOrder := model.Init(), map[int]bool{}
	for place, id := range longest {
		operation := operations[id]
		isInOrder[id] = true
		_, state = model.Step(state, operation.Input, operation.Output)
		if place >= len(longest)-shown {
			fmt.Fprintf(out, "  %d. %s, then %s\n", place+1, told(model, operation), model.DescribeState(state))
		}
	}
	fmt.Fprintln(out, "  and there it ends: none of these can be next")
	rest := shown
	for id, operation := range operations {
		if !isInOrder[id] && rest > 0 {
			rest--
			fmt.Fprintf(out, "     %s\n", told(model, operation))
		}
	}
	drawn := strings.TrimSuffix(file, filepath.Ext(file)) + "." + strings.ReplaceAll(object, "/", "-") + ".html"
	if err := porcupine.VisualizePath(model, info, drawn); err != nil {
		fmt.Fprintf(out, "  it cannot be drawn: %v\n", err)
		return
	}
	fmt.Fprintf(out, "  drawn in %s\n", drawn)
}

func told(model porcupine.Model, operation porcupine.Operation) string {
	return fmt.Sprintf("%s (client %d, from %d to %d)",
		model.DescribeOperation(operation.Input, operation.Output), operation.ClientId, operation.Call, operation.Return)
}
