package durable_test

import (
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"sitrep/internal/durable"
)

// TestLockReleasedWhileProgramsStart: a lock is free when it was released, although other goroutines start programs, which have
// copies of all descriptors until they are executed.
func TestLockReleasedWhileProgramsStart(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	stop := make(chan struct{})
	var starters sync.WaitGroup
	for range 4 {
		starters.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_ = exec.Command("/bin/true").Run() // what it does is of no interest
				}
			}
		})
	}
	defer starters.Wait()
	defer close(stop)
	for i := range 3000 {
		l, err := durable.OS().Lock(name)
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
