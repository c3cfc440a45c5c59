// Go's clientv3/concurrency, doing the works that the comparison in ../compare asks for.
//
// It sets up, says "ready", waits for a line, works, says its report, and ends when its input ends.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"runtime"
	"runtime/debug"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

var (
	endpoint = flag.String("endpoint", "", "of the server")
	workers  = flag.Int("workers", 1, "how many workers, waiters, sessions or observers")
	accounts = flag.Int("accounts", 1000, "of an STM's transfers")
	hold     = flag.Int("hold", 0, "how long a lock is held, in milliseconds")
	shared   = flag.Bool("shared", false, "all workers share one client")
	seconds  = flag.Float64("seconds", 2, "how long")
	prefetch bool
)

// An op does the work once, and tells how long that took; a negative time where it cannot be told.
type op func() time.Duration

// A report is what a work took.
type report struct {
	Ops     int                `json:"ops"`
	Seconds float64            `json:"seconds"`
	P50     float64            `json:"p50"`
	P99     float64            `json:"p99"`
	CPU     float64            `json:"cpu"`
	Memory  int64              `json:"memory"`
	More    map[string]float64 `json:"more"`
}

func main() {
	flag.Parse()
	prefetch = flag.Arg(0) == "go-prefetch"
	input := bufio.NewReader(os.Stdin)
	work := setUp(flag.Arg(1))
	fmt.Println("ready")
	line(input)
	said, err := json.Marshal(work())
	must(err)
	fmt.Println(string(said))
	line(input)
}

func line(input *bufio.Reader) {
	// The end of the input is as good as a line.
	_, _ = input.ReadString('\n')
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func connect() *clientv3.Client {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{*endpoint}, DialTimeout: 5 * time.Second})
	must(err)
	return client
}

// cycles lets as many workers as there are ops do them for a time.
func cycles(ops []op, attempts *atomic.Int64) report {
	var all []time.Duration
	var mutex sync.Mutex
	var wait sync.WaitGroup
	count := 0
	used, start := cpu(), time.Now()
	end := start.Add(time.Duration(*seconds * float64(time.Second)))
	for _, op := range ops {
		wait.Add(1)
		go func() {
			defer wait.Done()
			var took []time.Duration
			done := 0
			for time.Now().Before(end) {
				if time := op(); time >= 0 {
					took = append(took, time)
				}
				done++
			}
			mutex.Lock()
			defer mutex.Unlock()
			all = append(all, took...)
			count += done
		}()
	}
	wait.Wait()
	result := report{Ops: count, Seconds: time.Since(start).Seconds(), CPU: cpu() - used, Memory: memory(), More: map[string]float64{}}
	result.P50, result.P99 = at(all, 0.5), at(all, 0.99)
	if attempts != nil {
		result.More["attempts per commit"] = float64(attempts.Load()) / float64(count)
	}
	return result
}

func at(took []time.Duration, share float64) float64 {
	if len(took) == 0 {
		return 0
	}
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	index := min(int(float64(len(took))*share), len(took)-1)
	return float64(took[index].Nanoseconds()) / 1e3
}

// idle measures sessions that open opens, while they idle.
func idle(open func()) report {
	before, start := memory(), time.Now()
	open()
	opened := time.Since(start)
	used, start := cpu(), time.Now()
	time.Sleep(time.Duration(*seconds * float64(time.Second)))
	result := report{Ops: *workers, Seconds: time.Since(start).Seconds(), CPU: cpu() - used, Memory: memory()}
	result.More = map[string]float64{
		"bytes each":        float64(result.Memory-before) / float64(*workers),
		"CPU ms per second": 1e3 * result.CPU / result.Seconds,
		"seconds to open":   opened.Seconds(),
	}
	return result
}

// queue measures waiters on one lock, and hand-overs among them.
func queue(queueUp func(), queued func() int, handOver func(times int)) report {
	times := min(200, *workers)
	before, used, start := memory(), cpu(), time.Now()
	queueUp()
	for queued() < *workers {
		time.Sleep(5 * time.Millisecond)
	}
	took := time.Since(start)
	// What is yet under way has arrived after a second.
	time.Sleep(time.Second)
	waiting := memory()
	start = time.Now()
	handOver(times)
	result := report{Ops: times, Seconds: time.Since(start).Seconds(), CPU: cpu() - used, Memory: memory()}
	result.More = map[string]float64{
		"bytes each":          float64(waiting-before) / float64(*workers),
		"seconds to queue up": took.Seconds(),
	}
	return result
}

// cpu is what this process has used, in seconds.
func cpu() float64 {
	var usage syscall.Rusage
	must(syscall.Getrusage(syscall.RUSAGE_SELF, &usage))
	second := func(time syscall.Timeval) float64 { return float64(time.Sec) + float64(time.Usec)/1e6 }
	return second(usage.Utime) + second(usage.Stime)
}

// memory is what of this process is in memory once it has given back what it can, in bytes.
func memory() int64 {
	runtime.GC()
	debug.FreeOSMemory()
	statm, err := os.ReadFile("/proc/self/statm")
	must(err)
	pages, err := strconv.ParseInt(strings.Fields(string(statm))[1], 10, 64)
	must(err)
	return pages * int64(os.Getpagesize())
}
