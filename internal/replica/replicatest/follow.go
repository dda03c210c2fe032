package replicatest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"sitrep/internal/replica"
)

// testFollow reads recovery points over and over while changes are applied, from another store than that of the writer, opened for
// reading. Whatever the pages become, each read gives what the point was.
func testFollow(t *testing.T, place Place) {
	ctx := t.Context()
	h := NewHistory("vm1", 11, OSLogs(t))
	h.Keep = 100
	check(t, h.Begin(ctx, place()))
	for range 3 {
		check(t, h.Step(ctx, false))
	}
	for _, back := range []int{0, 2} { // the pages as they are, and what is seen through what was preserved
		point := h.state.Points[len(h.state.Points)-1-back]
		want := map[string][]byte{}
		for name, data := range h.content[point.At] {
			want[name] = data
		}
		begun, over, done := make(chan struct{}), make(chan struct{}), make(chan error)
		go func() { done <- follow(ctx, place(), point.ID, want, begun, over) }()
		<-begun // it is open before the pages move
		var err error
		for step := range 8 {
			err = errors.Join(err, h.Step(ctx, step == 3))
		}
		close(over)
		if err = errors.Join(err, <-done); err != nil {
			t.Fatalf("%d points back: %v", back, err)
		}
	}
	check(t, h.Close())
}

// follow reads a point until over is closed, and once more.
func follow(ctx context.Context, store replica.Store, id string, want map[string][]byte, begun chan<- struct{}, over <-chan struct{}) (err error) {
	r, err := store.View(ctx, "vm1")
	if err != nil {
		close(begun)
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	v, err := replica.Follow(ctx, r, id)
	close(begun)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	rng := rand.New(rand.NewPCG(5, 5))
	for last := false; ; {
		for name, data := range want {
			d, err := v.Disk(name)
			if err == nil {
				err = checkPointDisk(d, data, rng)
			}
			if err != nil {
				return fmt.Errorf("disk %s: %w", name, err)
			}
		}
		if last {
			return nil
		}
		select {
		case <-over:
			last = true
		default:
		}
	}
}
