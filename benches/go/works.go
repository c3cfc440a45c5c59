package main

import (
	"context"
	"fmt"
	"log"
	"math/rand"
	"strconv"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

var ctx = context.Background()

func setUp(kind string) func() report {
	var ops []op
	var attempts *atomic.Int64
	first := connect()
	switch kind {
	case "lock":
		session := open(first)
		for range *workers {
			ops = append(ops, lock(concurrency.NewMutex(session, name("lock"))))
		}
	case "tasks":
		// Those of one session would all be holders at once.
		name := name("lock")
		for range *workers {
			ops = append(ops, lock(concurrency.NewMutex(open(first), name)))
		}
	case "handover":
		name := name("lock")
		for range *workers {
			client := first
			if !*shared {
				client = connect()
			}
			ops = append(ops, handOver(concurrency.NewMutex(open(client), name)))
		}
	case "try":
		ops = append(ops, failingTry(first))
	case "stm":
		attempts = new(atomic.Int64)
		ops = transfers(first, attempts)
	case "stm-read":
		ops = append(ops, reads(first))
	case "campaign":
		ops = append(ops, campaign(open(first)))
	case "failover-close":
		ops = append(ops, failOverByClose(first))
	case "failover-expiry":
		ops = append(ops, failOverByExpiry(first))
	case "proclaim":
		ops = append(ops, proclaim(first))
	case "sessions":
		return func() report {
			return idle(func() {
				for range *workers {
					open(first)
				}
			})
		}
	case "waiters":
		return waiters(first)
	default:
		log.Fatalf("not done: %s", kind)
	}
	return func() report { return cycles(ops, attempts) }
}

func open(client *clientv3.Client) *concurrency.Session {
	session, err := concurrency.NewSession(client)
	must(err)
	return session
}

// name is one that no other work has had.
func name(of string) string {
	return fmt.Sprintf("%s/%016x", of, rand.Uint64())
}

func lock(mutex *concurrency.Mutex) op {
	return func() time.Duration {
		start := time.Now()
		must(mutex.Lock(ctx))
		must(mutex.Unlock(ctx))
		return time.Since(start)
	}
}

// When the lock was last given up, in nanoseconds since the start.
var released atomic.Int64
var start = time.Now()

func handOver(mutex *concurrency.Mutex) op {
	return func() time.Duration {
		must(mutex.Lock(ctx))
		waited := time.Duration(-1)
		if last := released.Load(); last > 0 {
			waited = time.Since(start) - time.Duration(last)
		}
		if *hold > 0 {
			time.Sleep(time.Duration(*hold) * time.Millisecond)
		}
		released.Store(int64(time.Since(start)))
		must(mutex.Unlock(ctx))
		return waited
	}
}

func failingTry(client *clientv3.Client) op {
	name := name("lock")
	must(concurrency.NewMutex(open(client), name).Lock(ctx))
	mutex := concurrency.NewMutex(open(client), name)
	return func() time.Duration {
		start := time.Now()
		if err := mutex.TryLock(ctx); err != concurrency.ErrLocked {
			log.Fatalf("it is held: %v", err)
		}
		return time.Since(start)
	}
}

func transfers(first *clientv3.Client, attempts *atomic.Int64) []op {
	for account := range *accounts {
		_, err := first.Put(ctx, fmt.Sprintf("account/%d", account), "1000")
		must(err)
	}
	var ops []op
	for range *workers {
		client := connect()
		ops = append(ops, func() time.Duration {
			start := time.Now()
			keys := twoAccounts(*accounts)
			transfer := func(stm concurrency.STM) error {
				attempts.Add(1)
				for place, key := range keys {
					value, err := strconv.Atoi(stm.Get(key))
					if err != nil {
						return err
					}
					stm.Put(key, strconv.Itoa(value+2*place-1))
				}
				return nil
			}
			var err error
			if prefetch {
				_, err = concurrency.NewSTM(client, transfer, concurrency.WithPrefetch(keys[:]...))
			} else {
				_, err = concurrency.NewSTM(client, transfer)
			}
			must(err)
			return time.Since(start)
		})
	}
	return ops
}

func twoAccounts(count int) [2]string {
	from := rand.Intn(count)
	to := (from + 1 + rand.Intn(count-1)) % count
	return [2]string{fmt.Sprintf("account/%d", from), fmt.Sprintf("account/%d", to)}
}

func reads(client *clientv3.Client) op {
	return func() time.Duration {
		start := time.Now()
		keys := twoAccounts(1000)
		read := func(stm concurrency.STM) error {
			stm.Get(keys[:]...)
			return nil
		}
		var err error
		if prefetch {
			_, err = concurrency.NewSTM(client, read, concurrency.WithPrefetch(keys[:]...))
		} else {
			_, err = concurrency.NewSTM(client, read)
		}
		must(err)
		return time.Since(start)
	}
}

func campaign(session *concurrency.Session) op {
	election := concurrency.NewElection(session, name("election"))
	return func() time.Duration {
		start := time.Now()
		must(election.Campaign(ctx, "me"))
		must(election.Resign(ctx))
		return time.Since(start)
	}
}

// The leader's session is closed when the other has waited for 20 ms.
func failOverByClose(client *clientv3.Client) op {
	return func() time.Duration {
		name := name("election")
		leader, other := open(client), open(client)
		must(concurrency.NewElection(leader, name).Campaign(ctx, "leader"))
		won := make(chan time.Time)
		go func() {
			must(concurrency.NewElection(other, name).Campaign(ctx, "other"))
			won <- time.Now()
		}()
		time.Sleep(20 * time.Millisecond)
		start := time.Now()
		must(leader.Close())
		took := (<-won).Sub(start)
		must(other.Close())
		return took
	}
}

// The leader has vanished, with a lease of two seconds: how long after these?
func failOverByExpiry(client *clientv3.Client) op {
	const ttl = 2
	return func() time.Duration {
		name := name("election")
		start := time.Now()
		// Kept alive by nobody.
		lease, err := client.Grant(ctx, ttl)
		must(err)
		_, err = client.Put(ctx, fmt.Sprintf("%s/%x", name, lease.ID), "leader", clientv3.WithLease(lease.ID))
		must(err)
		other := open(client)
		must(concurrency.NewElection(other, name).Campaign(ctx, "other"))
		took := time.Since(start)
		must(other.Close())
		return max(0, took-ttl*time.Second)
	}
}

// Until the last of the observers has heard of it.
func proclaim(client *clientv3.Client) op {
	election := concurrency.NewElection(open(client), name("election"))
	must(election.Campaign(ctx, "0"))
	heard := make(chan struct{}, *workers)
	for range *workers {
		observed := election.Observe(ctx)
		go func() {
			for range observed {
				heard <- struct{}{}
			}
		}()
	}
	all := func() {
		for range *workers {
			<-heard
		}
	}
	all()
	return func() time.Duration {
		start := time.Now()
		must(election.Proclaim(ctx, fmt.Sprintf("news %d", rand.Uint64())))
		all()
		return time.Since(start)
	}
}

func waiters(client *clientv3.Client) func() report {
	name := name("lock")
	held := concurrency.NewMutex(open(client), name)
	must(held.Lock(ctx))
	var mutexes []*concurrency.Mutex
	for range *workers {
		mutexes = append(mutexes, concurrency.NewMutex(open(client), name))
	}
	passed := make(chan struct{})
	queueUp := func() {
		for _, mutex := range mutexes {
			go func() {
				insist(mutex.Lock)
				passed <- struct{}{}
				insist(mutex.Unlock)
			}()
		}
	}
	queued := func() int {
		reply, err := client.Get(ctx, name+"/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			return 0
		}
		return int(reply.Count) - 1
	}
	handOver := func(times int) {
		insist(held.Unlock)
		for range times {
			<-passed
		}
	}
	return func() report { return queue(queueUp, queued, handOver) }
}

// insist calls until there is no error: a server that is more than 5,000 requests behind refuses some, and lets others
// time out.
func insist(call func(context.Context) error) {
	for call(ctx) != nil {
		time.Sleep(100 * time.Millisecond)
	}
}
