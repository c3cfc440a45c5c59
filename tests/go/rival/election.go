package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// observers are who must have seen a leader, and then its new value, before its term ends: otherwise
// nobody could say what they ought to have seen.
var observers = []string{"go", "rust"}

// seen is the key that an observer puts once it has seen what was written at a revision.
func seen(observer string, revision int64) string {
	return fmt.Sprintf("%s-seen/%s/%d", *name, observer, revision)
}

func lead(ctx context.Context, session *concurrency.Session) error {
	client := session.Client()
	election := concurrency.NewElection(session, *name)
	for range *n {
		if err := election.Campaign(ctx, "go"); err != nil {
			return fmt.Errorf("campaign: %w", err)
		}
		err := inside(election.Rev(), election.Key(), func() error {
			if err := until(ctx, client, election.Rev()); err != nil {
				return err
			}
			if err := election.Proclaim(ctx, "go again"); err != nil {
				return fmt.Errorf("proclaim: %w", err)
			}
			return until(ctx, client, election.Header().Revision)
		})
		if err != nil {
			return err
		}
		if err := election.Resign(ctx); err != nil {
			return fmt.Errorf("resign: %w", err)
		}
	}
	return nil
}

// until waits until all observers have seen what was written at a revision.
func until(ctx context.Context, client *clientv3.Client, revision int64) error {
	for _, observer := range observers {
		for {
			found, err := client.Get(ctx, seen(observer, revision), clientv3.WithCountOnly())
			if err != nil {
				return err
			}
			if found.Count > 0 {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}

// observe prints "saw <token> <mod revision> <value>" for all that Go's Observe tells.
func observe(ctx context.Context, session *concurrency.Session) error {
	for told := range concurrency.NewElection(session, *name).Observe(ctx) {
		kv := told.Kvs[0]
		fmt.Printf("saw %d %d %s\n", kv.CreateRevision, kv.ModRevision, kv.Value)
		if _, err := session.Client().Put(ctx, seen("go", kv.ModRevision), ""); err != nil {
			return err
		}
	}
	return errors.New("the observation has ended")
}
