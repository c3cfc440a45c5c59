// Command rival takes a lock with etcd's own Go client, again and again, so that a test can let
// it compete with ours on one name; or stands for election, observes one, or waits at barriers (-as).
//
// In every critical section it creates the scratch file, which must not exist, prints
//
//	held <token> <key> <entered> <left>
//
// (the token is the create revision of its key, the times are Unix nanoseconds) and removes the
// file. It exits with 3 if the file was there: somebody else was inside. A leader's term is a
// critical section, see election.go. A holder (see holder.go) has no scratch file and goes on over all trouble.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"os"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// exitOverlap is the code that says: the exclusion is broken.
const exitOverlap = 3

var errOverlap = errors.New("somebody else is inside")

var (
	as        = flag.String("as", "mutex", "mutex, candidate, observer, gate, together, readers, writers or holder")
	endpoints = flag.String("endpoints", "", "etcd's endpoints, with commas between")
	name      = flag.String("name", "", "the lock's name, or the election's")
	n         = flag.Int("n", 1, "how often to take it")
	scratch   = flag.String("scratch", "", "the file that exists only inside the critical section")
	ttl       = flag.Int("ttl", 10, "the session's TTL in seconds")
	work      = flag.Duration("work", 0, "how long to stay inside, beside the file's making")
	look      = flag.Duration("look", 10*time.Millisecond, "how often a holder asks whether it still is one")
	limit     = flag.Duration("limit", 5*time.Minute, "when to give up altogether")
)

func main() {
	log.SetFlags(0)
	flag.Parse()
	if *endpoints == "" || *name == "" || *scratch == "" {
		flag.Usage()
		os.Exit(2)
	}
	if err := compete(); err != nil {
		log.Print(err)
		if errors.Is(err, errOverlap) {
			os.Exit(exitOverlap)
		}
		os.Exit(1)
	}
}

func compete() error {
	ctx, cancel := context.WithTimeout(context.Background(), *limit)
	defer cancel()

	client, err := clientv3.New(clientv3.Config{
		Endpoints:   strings.Split(*endpoints, ","),
		DialTimeout: 5 * time.Second,
	})
	if err != nil {
		return fmt.Errorf("client: %w", err)
	}
	defer client.Close()

	if *as == "holder" {
		return hold(ctx, client)
	}
	session, err := concurrency.NewSession(client, concurrency.WithTTL(*ttl))
	if err != nil {
		return fmt.Errorf("session: %w", err)
	}
	defer session.Close()

	switch *as {
	case "mutex":
		return lock(ctx, session)
	case "candidate":
		return lead(ctx, session)
	case "observer":
		return observe(ctx, session)
	case "gate":
		return gate(client)
	case "together":
		return together(session)
	case "readers":
		return read(session)
	case "writers":
		return write(session)
	}
	return fmt.Errorf("-as=%s: what is that?", *as)
}

func lock(ctx context.Context, session *concurrency.Session) error {
	mutex := concurrency.NewMutex(session, *name)
	for range *n {
		if err := mutex.Lock(ctx); err != nil {
			return fmt.Errorf("lock: %w", err)
		}
		owner := mutex.IsOwner()
		if err := inside(owner.GetCompare().GetCreateRevision(), mutex.Key(), func() error {
			time.Sleep(*work)
			return nil
		}); err != nil {
			return err
		}
		if err := mutex.Unlock(ctx); err != nil {
			return fmt.Errorf("unlock: %w", err)
		}
	}
	return nil
}

// inside is the critical section.
func inside(token int64, key string, work func() error) error {
	entered := time.Now()
	file, err := os.OpenFile(*scratch, os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w", key, errOverlap)
	}
	if err != nil {
		return err
	}
	file.Close()
	if err := work(); err != nil {
		return err
	}
	if err := os.Remove(*scratch); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", key, errOverlap)
	} else if err != nil {
		return err
	}
	_, err = fmt.Printf("held %d %s %d %d\n", token, key, entered.UnixNano(), time.Now().UnixNano())
	return err
}
