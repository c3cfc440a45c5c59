// Command clients uses etcd's own Go client on one endpoint, its concurrency package and its recipes, and checks what
// each gives. It prints a line for each part that did as it should, and exits with 1 at the first that did not.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	recipe "go.etcd.io/etcd/client/v3/experimental/recipes"
)

var endpoint = flag.String("endpoint", "", "etcd's endpoint")

func main() {
	log.SetFlags(0)
	flag.Parse()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{*endpoint}, DialTimeout: 5 * time.Second})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()
	for _, part := range []struct {
		name string
		run  func(context.Context, *clientv3.Client) error
	}{
		{"kv", kv}, {"watch", watch}, {"lease", lease}, {"mutex", mutex}, {"election", election}, {"stm", stm},
		{"queue", queue}, {"priority queue", priorityQueue}, {"barrier", barrier},
		{"double barrier", doubleBarrier}, {"rwmutex", rwmutex},
	} {
		if err := part.run(ctx, client); err != nil {
			log.Fatalf("%s: %v", part.name, err)
		}
		fmt.Printf("ok %s\n", part.name)
	}
}

// want fails with what was got instead.
func want[T comparable](what string, got, wanted T) error {
	if got != wanted {
		return fmt.Errorf("%s: %v, not %v", what, got, wanted)
	}
	return nil
}

func kv(ctx context.Context, c *clientv3.Client) error {
	first, err := c.Put(ctx, "kv/a", "1")
	if err != nil {
		return err
	}
	second, err := c.Put(ctx, "kv/b", "2", clientv3.WithPrevKV())
	if err != nil {
		return err
	}
	old, err := c.Get(ctx, "kv/", clientv3.WithPrefix(), clientv3.WithRev(first.Header.Revision))
	if err != nil {
		return err
	}
	txn, err := c.Txn(ctx).If(clientv3.Compare(clientv3.Value("kv/a"), "=", "1")).
		Then(clientv3.OpDelete("kv/", clientv3.WithPrefix())).Commit()
	if err != nil {
		return err
	}
	_, compacted := c.Get(ctx, "kv/a", clientv3.WithRev(txn.Header.Revision+7))
	return errors.Join(
		want("revision", second.Header.Revision, first.Header.Revision+1),
		want("keys of old", old.Count, 1),
		want("succeeded", txn.Succeeded, true),
		want("deleted", txn.Responses[0].GetResponseDeleteRange().Deleted, 2),
		want("a revision to come", fmt.Sprint(compacted), "etcdserver: mvcc: required revision is a future revision"),
	)
}

func watch(ctx context.Context, c *clientv3.Client) error {
	put, err := c.Put(ctx, "watch/a", "1")
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := c.Watch(ctx, "watch/", clientv3.WithPrefix(), clientv3.WithRev(put.Header.Revision), clientv3.WithPrevKV())
	if _, err := c.Delete(ctx, "watch/a"); err != nil {
		return err
	}
	var seen []string
	for len(seen) < 2 {
		response, ok := <-events
		if !ok || response.Err() != nil {
			return fmt.Errorf("the watch ended: %v", response.Err())
		}
		for _, event := range response.Events {
			seen = append(seen, fmt.Sprintf("%s %s", event.Type, event.Kv.Key))
		}
	}
	return want("events", fmt.Sprint(seen), "[PUT watch/a DELETE watch/a]")
}

func lease(ctx context.Context, c *clientv3.Client) error {
	granted, err := c.Grant(ctx, 30)
	if err != nil {
		return err
	}
	if _, err := c.Put(ctx, "lease/a", "", clientv3.WithLease(granted.ID)); err != nil {
		return err
	}
	alive, err := c.KeepAliveOnce(ctx, granted.ID)
	if err != nil {
		return err
	}
	told, err := c.TimeToLive(ctx, granted.ID, clientv3.WithAttachedKeys())
	if err != nil {
		return err
	}
	if _, err := c.Revoke(ctx, granted.ID); err != nil {
		return err
	}
	gone, err := c.Get(ctx, "lease/a")
	if err != nil {
		return err
	}
	return errors.Join(want("ttl", alive.TTL, 30), want("keys", len(told.Keys), 1), want("left", gone.Count, 0))
}

func mutex(ctx context.Context, c *clientv3.Client) error {
	var inside, most, total int
	var mu sync.Mutex
	return together(4, func(int) error {
		session, err := concurrency.NewSession(c, concurrency.WithTTL(10))
		if err != nil {
			return err
		}
		defer session.Close()
		lock := concurrency.NewMutex(session, "mutex")
		for range 5 {
			if err := lock.Lock(ctx); err != nil {
				return err
			}
			mu.Lock()
			inside++
			total++
			most = max(most, inside)
			mu.Unlock()
			mu.Lock()
			inside--
			mu.Unlock()
			if err := lock.Unlock(ctx); err != nil {
				return err
			}
		}
		return want("inside at once", most, 1)
	})
}

func election(ctx context.Context, c *clientv3.Client) error {
	session, err := concurrency.NewSession(c, concurrency.WithTTL(10))
	if err != nil {
		return err
	}
	defer session.Close()
	other, err := concurrency.NewSession(c, concurrency.WithTTL(10))
	if err != nil {
		return err
	}
	defer other.Close()
	first, second := concurrency.NewElection(session, "election"), concurrency.NewElection(other, "election")
	if err := first.Campaign(ctx, "one"); err != nil {
		return err
	}
	observing, cancel := context.WithCancel(ctx)
	defer cancel()
	seen := second.Observe(observing)
	leader := <-seen
	won := make(chan error, 1)
	go func() { won <- second.Campaign(ctx, "two") }()
	if err := first.Proclaim(ctx, "uno"); err != nil {
		return err
	}
	proclaimed := <-seen
	if err := first.Resign(ctx); err != nil {
		return err
	}
	if err := <-won; err != nil {
		return err
	}
	now, err := second.Leader(ctx)
	if err != nil {
		return err
	}
	return errors.Join(
		want("leader", string(leader.Kvs[0].Value), "one"),
		want("proclaimed", string(proclaimed.Kvs[0].Value), "uno"),
		want("next leader", string(now.Kvs[0].Value), "two"),
		second.Resign(ctx),
	)
}

func stm(ctx context.Context, c *clientv3.Client) error {
	const accounts = 5
	for i := range accounts {
		if _, err := c.Put(ctx, fmt.Sprintf("stm/%d", i), "100"); err != nil {
			return err
		}
	}
	err := together(4, func(worker int) error {
		for i := range 5 {
			from, to := fmt.Sprintf("stm/%d", (worker+i)%accounts), fmt.Sprintf("stm/%d", (worker+i+1)%accounts)
			_, err := concurrency.NewSTM(c, func(s concurrency.STM) error {
				var a, b int
				fmt.Sscan(s.Get(from), &a)
				fmt.Sscan(s.Get(to), &b)
				s.Put(from, fmt.Sprint(a-7))
				s.Put(to, fmt.Sprint(b+7))
				return nil
			}, concurrency.WithAbortContext(ctx))
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	all, err := c.Get(ctx, "stm/", clientv3.WithPrefix())
	if err != nil {
		return err
	}
	sum := 0
	for _, kv := range all.Kvs {
		var n int
		fmt.Sscan(string(kv.Value), &n)
		sum += n
	}
	return want("sum", sum, accounts*100)
}

func queue(_ context.Context, c *clientv3.Client) error {
	q := recipe.NewQueue(c, "queue")
	for _, item := range []string{"a", "b"} {
		if err := q.Enqueue(item); err != nil {
			return err
		}
	}
	first, err := q.Dequeue()
	if err != nil {
		return err
	}
	second, err := q.Dequeue()
	return errors.Join(err, want("first", first, "a"), want("second", second, "b"))
}

func priorityQueue(_ context.Context, c *clientv3.Client) error {
	q := recipe.NewPriorityQueue(c, "priorities")
	if err := errors.Join(q.Enqueue("later", 9), q.Enqueue("now", 1)); err != nil {
		return err
	}
	first, err := q.Dequeue()
	return errors.Join(err, want("first", first, "now"))
}

func barrier(_ context.Context, c *clientv3.Client) error {
	b := recipe.NewBarrier(c, "barrier")
	if err := b.Hold(); err != nil {
		return err
	}
	waited := make(chan error, 1)
	go func() { waited <- recipe.NewBarrier(c, "barrier").Wait() }()
	return errors.Join(b.Release(), <-waited)
}

func doubleBarrier(_ context.Context, c *clientv3.Client) error {
	return together(3, func(int) error {
		session, err := concurrency.NewSession(c, concurrency.WithTTL(10))
		if err != nil {
			return err
		}
		defer session.Close()
		b := recipe.NewDoubleBarrier(session, "double", 3)
		return errors.Join(b.Enter(), b.Leave())
	})
}

func rwmutex(_ context.Context, c *clientv3.Client) error {
	return together(3, func(int) error {
		session, err := concurrency.NewSession(c, concurrency.WithTTL(10))
		if err != nil {
			return err
		}
		defer session.Close()
		lock := recipe.NewRWMutex(session, "rw")
		return errors.Join(lock.RLock(), lock.RUnlock(), lock.Lock(), lock.Unlock())
	})
}

// together runs n of them at once and gives all their errors.
func together(n int, run func(int) error) error {
	errs := make(chan error, n)
	for i := range n {
		go func() { errs <- run(i) }()
	}
	var all error
	for range n {
		all = errors.Join(all, <-errs)
	}
	return all
}
