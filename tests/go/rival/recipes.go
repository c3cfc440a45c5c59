package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	recipe "go.etcd.io/etcd/client/v3/experimental/recipes"
)

// gate waits at a barrier, then holds it for a while, and says when:
//
//	passed <when>
//	holding <when>
//	releasing <when>
func gate(client *clientv3.Client) error {
	barrier := recipe.NewBarrier(client, *name)
	fmt.Println("waiting", time.Now().UnixNano())
	if err := barrier.Wait(); err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	fmt.Println("passed", time.Now().UnixNano())
	if err := barrier.Hold(); err != nil {
		return fmt.Errorf("hold: %w", err)
	}
	fmt.Println("holding", time.Now().UnixNano())
	time.Sleep(300 * time.Millisecond)
	fmt.Println("releasing", time.Now().UnixNano())
	return barrier.Release()
}

// together takes part in rounds of double barriers of four, each on a name of its own: on one name, Go's participants
// wait for ever for whoever is back before they have left. It says when it came, was in, went, and was out:
//
//	round <number> <came> <in> <went> <out>
func together(session *concurrency.Session) error {
	for round := range *n {
		barrier := recipe.NewDoubleBarrier(session, fmt.Sprintf("%s/%d", *name, round), 4)
		came := time.Now()
		if err := barrier.Enter(); err != nil {
			return fmt.Errorf("enter: %w", err)
		}
		in := time.Now()
		time.Sleep(*work)
		went := time.Now()
		if err := barrier.Leave(); err != nil {
			return fmt.Errorf("leave: %w", err)
		}
		fmt.Println("round", round, came.UnixNano(), in.UnixNano(), went.UnixNano(), time.Now().UnixNano())
	}
	return nil
}

// read shares a lock again and again: while it does, a file of its own beside the scratch file says so, and the
// scratch file, which a writer's presence is, must not be there.
func read(session *concurrency.Session) error {
	mutex := recipe.NewRWMutex(session, *name)
	for range *n {
		if err := mutex.RLock(); err != nil {
			return fmt.Errorf("read lock: %w", err)
		}
		own, err := os.CreateTemp(filepath.Dir(*scratch), filepath.Base(*scratch)+".reader.")
		if err != nil {
			return err
		}
		own.Close()
		if _, err := os.Stat(*scratch); err == nil {
			return fmt.Errorf("a reader beside a writer: %w", errOverlap)
		}
		time.Sleep(*work)
		if err := os.Remove(own.Name()); err != nil {
			return err
		}
		if err := mutex.RUnlock(); err != nil {
			return fmt.Errorf("read unlock: %w", err)
		}
	}
	return nil
}

// write has a lock for itself again and again: in a critical section in which there are no readers' files.
func write(session *concurrency.Session) error {
	mutex := recipe.NewRWMutex(session, *name)
	for turn := range *n {
		if err := mutex.Lock(); err != nil {
			return fmt.Errorf("write lock: %w", err)
		}
		err := inside(int64(turn), "writer", func() error {
			time.Sleep(*work)
			readers, err := filepath.Glob(*scratch + ".reader.*")
			if err == nil && len(readers) > 0 {
				err = fmt.Errorf("a writer beside a reader: %w", errOverlap)
			}
			return err
		})
		if err != nil {
			return err
		}
		if err := mutex.Unlock(); err != nil {
			return fmt.Errorf("write unlock: %w", err)
		}
	}
	return nil
}
