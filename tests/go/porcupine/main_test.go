package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// calls writes a history for people as one for judge: each call as "began-returned client op args -> outcome result", where
// "began-" has no return.
func calls(t *testing.T, model string, calls ...string) string {
	t.Helper()
	lines := fmt.Sprintf("{\"model\":%q}\n", model)
	for id, call := range calls {
		what, result, _ := strings.Cut(call, " -> ")
		fields := strings.Fields(what)
		began, returned, _ := strings.Cut(fields[0], "-")
		args := strings.Join(fields[3:], ",")
		lines += fmt.Sprintf("{\"call\":%d,\"at\":%s,\"client\":%s,\"object\":\"one/1\",\"op\":%q,\"args\":[%s]}\n",
			id, began, fields[1], fields[2], args)
		if returned != "" {
			outcome := strings.Fields(result)
			lines += fmt.Sprintf("{\"return\":%d,\"at\":%s,\"outcome\":%q,\"result\":[%s]}\n",
				id, returned, outcome[0], strings.Join(outcome[1:], ","))
		}
	}
	return lines
}

// judged judges a text, and gives the code and what was told; and where the history is drawn, if it is.
func judged(t *testing.T, text string) (int, string, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "history.jsonl")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var told strings.Builder
	code := judge(file, time.Minute, &told)
	return code, told.String(), filepath.Join(filepath.Dir(file), "history.one-1.html")
}

var right = []struct {
	what, model string
	calls       []string
}{
	{"one after the other", "counter", []string{
		"1-2 1 add 5 -> ok 5", "3-4 2 set 5 7 -> ok 1", "5-6 2 set 5 8 -> ok 0", "7-8 1 get -> ok 7",
	}},
	{"at once, in either order", "counter", []string{"1-9 1 add 5 -> ok 7", "2-8 2 add 2 -> ok 2"}},
	{"an addition that was made after its caller had given it up", "counter", []string{
		"1-2 1 add 5 -> unknown", "3-4 2 get -> ok 0", "5-6 2 get -> ok 5",
	}},
	{"one that was never made, or has no return", "counter", []string{
		"1-2 1 add 5 -> unknown", "1- 2 add 6", "1-2 3 add 7 -> refused", "3-4 4 get -> ok 0",
	}},
	{"what is set without a return", "counter", []string{"1-2 1 set 0 7 -> unknown", "3-4 2 add 1 -> ok 8"}},
	{"one after the other", "lock", []string{
		"1-2 1 lock -> ok 10", "3-3 1 valid 10 -> ok", "4-5 1 write 10 -> ok", "6-7 1 unlock 10 -> ok", "1-9 2 lock -> ok 12",
	}},
	{"one that is lost after its holder was last told", "lock", []string{
		"1-2 1 lock -> ok 10", "3-4 1 valid 10 -> ok", "4- 1 unlock 10", "5-6 2 lock -> ok 12", "7-8 1 write 10 -> unknown",
	}},
	{"in their order", "queue", []string{
		"1-2 1 enqueue 1 -> ok", "3-4 1 enqueue 2 -> ok", "5-6 2 dequeue -> ok 1", "7-8 2 dequeue -> ok 2", "9-9 2 dequeue -> ok",
	}},
	{"put at once", "queue", []string{
		"1-5 1 enqueue 1 -> ok", "1-5 2 enqueue 2 -> ok", "6-7 1 dequeue -> ok 2", "6-7 2 dequeue -> ok 1",
	}},
	{"one put late, after its caller had given it up", "queue", []string{
		"1-2 1 enqueue 1 -> unknown", "3-4 2 dequeue -> ok", "5-6 2 dequeue -> ok 1",
	}},
	{"one that a failed dequeue had, and gave back to its place", "queue", []string{
		"1-2 1 enqueue 1 -> ok", "3-4 1 enqueue 2 -> ok", "5-6 1 enqueue 3 -> ok",
		"7-8 2 dequeue -> refused", "8-9 1 dequeue -> ok 2", "10-11 1 dequeue -> ok 1", "12-13 1 dequeue -> ok 3",
	}},
	{"or to the end", "queue", []string{
		"1-2 1 enqueue 1 -> ok", "3-4 1 enqueue 2 -> ok", "5- 2 dequeue",
		"7-8 1 dequeue -> ok 2", "9-10 1 dequeue -> ok", "11-12 1 dequeue -> ok 1",
	}},
	{"or took along", "queue", []string{"1-2 1 enqueue 1 -> ok", "3-4 2 dequeue -> unknown", "5-6 1 dequeue -> ok"}},
}

func TestRightHistoriesPass(t *testing.T) {
	for _, history := range right {
		code, told, drawn := judged(t, calls(t, history.model, history.calls...))
		if code != 0 || !strings.Contains(told, history.model+": linearizable") {
			t.Errorf("%s: %s: exit %d:\n%s", history.model, history.what, code, told)
		}
		if _, err := os.Stat(drawn); err == nil {
			t.Errorf("%s: %s: it is drawn", history.model, history.what)
		}
	}
}

var wrong = []struct {
	what, model string
	calls       []string
	told        string
}{
	{"it went back", "counter", []string{
		"1-2 1 add 5 -> ok 5", "3-4 1 add 1 -> ok 6", "5-6 2 get -> ok 5",
	}, "get[] -> [5] (client 2, from 5 to 6)"},
	{"an addition is made twice", "counter", []string{"1-2 1 add 5 -> unknown", "3-4 2 add 1 -> ok 11"}, "add[1] -> [11]"},
	{"one that was refused is made", "counter", []string{"1-2 1 add 5 -> refused", "3-4 2 get -> ok 5"}, "get[] -> [5]"},
	{"one is lost", "counter", []string{"1-9 1 add 5 -> ok 5", "2-8 2 add 1 -> ok 1"}, "add["},
	{"two set it from the same number", "counter", []string{"1-9 1 set 0 5 -> ok 1", "1-9 2 set 0 6 -> ok 1"}, "set[0 "},
	{"two hold it", "lock", []string{
		"1-2 1 lock -> ok 10", "3-4 2 lock -> ok 12", "5-5 1 valid 10 -> ok", "5-6 1 unlock 10 -> ok",
	}, "valid[10] -> []"},
	{"two hold it, of whom one is lost later", "lock", []string{
		"1-2 1 lock -> ok 10", "3-4 2 lock -> ok 12", "5- 1 unlock 10",
	}, "lock[] -> [12]"},
	{"a token is less than one before", "lock", []string{
		"1-2 1 lock -> ok 10", "3-4 1 unlock 10 -> ok", "5-6 2 lock -> ok 9",
	}, "lock[] -> [9]"},
	{"a write behind the fence after the next holder's lock", "lock", []string{
		"1-2 1 lock -> ok 10", "2- 1 unlock 10", "3-4 2 lock -> ok 12", "5-6 1 write 10 -> ok",
	}, "write[10] -> []"},
	{"an item is taken twice", "queue", []string{
		"1-2 1 enqueue 1 -> ok", "3-4 1 dequeue -> ok 1", "3-4 2 dequeue -> ok 1",
	}, "dequeue[] -> [1]"},
	{"an item is lost", "queue", []string{
		"1-2 1 enqueue 1 -> ok", "3-4 1 enqueue 2 -> ok", "5-6 1 dequeue -> ok 1", "7-8 1 dequeue -> ok",
	}, "dequeue[] -> [] (client 1, from 7 to 8)"},
	{"two are lost where one dequeue failed", "queue", []string{
		"1-2 1 enqueue 1 -> ok", "3-4 1 enqueue 2 -> ok", "5-6 2 dequeue -> unknown", "7-8 1 dequeue -> ok",
	}, "dequeue[] -> []"},
	{"not in their order", "queue", []string{
		"1-2 1 enqueue 1 -> ok", "3-4 1 enqueue 2 -> ok", "5-6 1 dequeue -> ok 2", "7-8 1 dequeue -> ok 1",
	}, "dequeue[] -> [2]"},
	{"taken before it was put", "queue", []string{"1-2 1 dequeue -> ok 1", "3-4 1 enqueue 1 -> ok"}, "dequeue[] -> [1]"},
	{"put, and refused", "queue", []string{"1-2 1 enqueue 1 -> refused", "3-4 1 dequeue -> ok 1"}, "dequeue[] -> [1]"},
	{"put twice", "queue", []string{
		"1-2 1 enqueue 1 -> unknown", "3-4 1 dequeue -> ok 1", "5-6 1 dequeue -> ok 1",
	}, "dequeue[] -> [1] (client 1, from 5 to 6)"},
}

func TestWrongHistoriesAreRefusedExplainedAndDrawn(t *testing.T) {
	for _, history := range wrong {
		code, told, drawn := judged(t, calls(t, history.model, history.calls...))
		_, after, _ := strings.Cut(told, "none of these can be next")
		for _, part := range []string{history.told, "drawn in " + drawn, history.model + ": NOT LINEARIZABLE"} {
			if !strings.Contains(after, part) {
				t.Errorf("%s: %s: not told: %s", history.model, history.what, part)
			}
		}
		if code != broken {
			t.Errorf("%s: %s: exit %d", history.model, history.what, code)
		}
		if _, err := os.Stat(drawn); err != nil {
			t.Errorf("%s: %s: %v", history.model, history.what, err)
		}
		if t.Failed() {
			t.Fatal(told)
		}
	}
}

func TestWhatIsNoHistoryIsRefusedWithItsLine(t *testing.T) {
	const first = "{\"model\":\"counter\"}\n"
	const add = `{"call":1,"at":10,"client":1,"object":"c","op":"add","args":[5]}` + "\n"
	for _, bad := range []struct{ text, told string }{
		{"", "history.jsonl:1: not a line that names a model: the file is empty"},
		{"counter\n", "history.jsonl:1: not a line that names a model"},
		{"{\"model\":\"stack\"}\n", "history.jsonl:1: there is no model \"stack\""},
		{first + add + add[:20] + "\n", "history.jsonl:3: not a line of a history: unexpected EOF"},
		{first + add[:len(add)-1] + add, "history.jsonl:2: not a line of a history: more than one value"},
		{first + strings.Replace(add, "client", "klient", 1), "history.jsonl:2: not a line of a history: json: unknown field"},
		{first + "{\"call\":1}\n", "history.jsonl:2: no moment"},
		{first + "{\"at\":1}\n", "history.jsonl:2: neither a call nor a return"},
		{first + add + add, "history.jsonl:3: 1 is called twice"},
		{first + strings.Replace(add, "add", "push", 1), "history.jsonl:2: a counter has no operation \"push\""},
		{first + strings.Replace(add, "[5]", "[5,6]", 1), "history.jsonl:2: add takes 1 numbers, not 2"},
		{first + strings.Replace(add, "\"c\"", "\"\"", 1), "history.jsonl:2: a call has an object and a client"},
		{first + "{\"return\":1,\"at\":12,\"outcome\":\"ok\",\"result\":[5]}\n", "history.jsonl:2: 1 returns and was never called"},
		{first + add + "{\"return\":1,\"at\":9,\"outcome\":\"ok\",\"result\":[5]}\n", "history.jsonl:3: 1 returns before it was called"},
		{first + add + "{\"return\":1,\"at\":12,\"outcome\":\"ok\"}\n", "history.jsonl:3: add has no result of 0 numbers"},
		{first + add + "{\"return\":1,\"at\":12,\"outcome\":\"maybe\"}\n", "history.jsonl:3: \"maybe\" is no outcome"},
		{first + add + strings.Repeat("{\"return\":1,\"at\":12,\"outcome\":\"refused\"}\n", 2), "history.jsonl:4: 1 returns twice"},
	} {
		code, told, _ := judged(t, bad.text)
		if code != unreadable || !strings.Contains(told, bad.told) {
			t.Errorf("exit %d: %q, not %q", code, told, bad.told)
		}
	}
	var told strings.Builder
	if code := judge("no/such/file", time.Minute, &told); code != unreadable || !strings.Contains(told.String(), "no such file") {
		t.Errorf("exit %d: %s", code, told.String())
	}
}

// Many additions at once of which none is known to be made, and a sum that none of them gives: to find that out takes longer
// than there is.
func TestWhatCannotBeDecidedInTimeIsToldApart(t *testing.T) {
	var many []string
	for n := range 40 {
		many = append(many, fmt.Sprintf("1- %d add %d", n, 1<<n))
	}
	text := calls(t, "counter", append(many, "2-3 99 get -> ok -1")...)
	file := filepath.Join(t.TempDir(), "history.jsonl")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var told strings.Builder
	code := judge(file, 100*time.Millisecond, &told)
	if code != undecided || !strings.Contains(told.String(), "within 100ms") || !strings.Contains(told.String(), "UNDECIDED") {
		t.Errorf("exit %d: %s", code, told.String())
	}
}
