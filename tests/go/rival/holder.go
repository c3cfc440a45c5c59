package main

import (
	"context"
	"fmt"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// hold takes the lock again and again, with another session whenever one is lost, and prints for each time
//
//	entered <now>
//	held <now> <token> <entered> <last> 0
//
// where last is the last moment at which the session said, right after it, that it was alive.
func hold(ctx context.Context, client *clientv3.Client) error {
	for ctx.Err() == nil {
		session, err := concurrency.NewSession(client, concurrency.WithTTL(*ttl))
		if err != nil {
			trouble(err)
			continue
		}
		for isAlive(session) {
			mutex := concurrency.NewMutex(session, *name)
			if err := mutex.Lock(ctx); err != nil {
				trouble(err)
				continue
			}
			believe(session, mutex)
			if err := mutex.Unlock(ctx); err != nil {
				trouble(err)
			}
		}
	}
	return ctx.Err()
}

func believe(session *concurrency.Session, mutex *concurrency.Mutex) {
	owner := mutex.IsOwner()
	entered := time.Now()
	fmt.Fprintf(os.Stderr, "entered %d\n", entered.UnixNano())
	last := entered
	for {
		moment := time.Now()
		if !isAlive(session) {
			break
		}
		last = moment
		// One who stood still in the middle is asked once more, too.
		if moment.Sub(entered) >= *work {
			break
		}
		time.Sleep(*look)
	}
	token := owner.GetCompare().GetCreateRevision()
	fmt.Fprintf(os.Stderr, "held %d %d %d %d 0\n", time.Now().UnixNano(), token, entered.UnixNano(), last.UnixNano())
}

func isAlive(session *concurrency.Session) bool {
	select {
	case <-session.Done():
		return false
	default:
		return true
	}
}

func trouble(err error) {
	fmt.Fprintf(os.Stderr, "trouble %d %v\n", time.Now().UnixNano(), err)
	time.Sleep(50 * time.Millisecond)
}
