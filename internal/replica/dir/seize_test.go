package dir_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/replica/dir"
	"sitrep/internal/replica/replicatest"
)

// held returns a store whose replica a run holds, at rest or in the middle of an apply.
func held(t *testing.T, clone, applying bool) (*crashfs.FS, *replicatest.History) {
	t.Helper()
	fs := crashfs.New()
	fs.SetClone(clone)
	h := replicatest.NewHistory("vm", 4, logsOn(fs))
	check(t, story(t.Context(), h, dir.New(fs, root)))
	if applying {
		check(t, h.Interrupt(t.Context()))
	} else {
		check(t, h.Sign(t.Context()))
	}
	return fs, h
}

// eachHeld runs a test for every kind of replica that is held, and every operation of a Seize.
func eachHeld(t *testing.T, cut func(t *testing.T, k int, clone, applying bool) (more bool)) {
	for _, clone := range []bool{false, true} {
		for _, applying := range []bool{false, true} {
			t.Run(fmt.Sprintf("clone=%v,applying=%v", clone, applying), func(t *testing.T) {
				t.Parallel()
				step := 3
				if os.Getenv("SITREP_LONG") != "" {
					step = 1
				}
				k := 1
				for cut(t, k, clone, applying) {
					k += step
				}
				if k < 30 {
					t.Errorf("taking over has only %d operations", k)
				}
			})
		}
	}
}

// goOn takes over what an interrupted Seize has left, and works with it.
func goOn(ctx context.Context, h *replicatest.History, fs *crashfs.FS, between func()) error {
	store := dir.New(fs, root)
	if err := h.Seize(ctx, store); err != nil {
		return fmt.Errorf("taking over again: %w", err)
	}
	if err := errors.Join(h.Signed(ctx), h.Check(ctx)); err != nil {
		return fmt.Errorf("taken over: %w", err)
	}
	between()
	if err := errors.Join(h.Signed(ctx), h.Check(ctx)); err != nil {
		return fmt.Errorf("after what the stale run did: %w", err)
	}
	if err := errors.Join(h.Recover(ctx, store), h.Check(ctx)); err != nil {
		return fmt.Errorf("finishing what was interrupted: %w", err)
	}
	between()
	if err := errors.Join(h.Check(ctx), h.Step(ctx, false), h.Check(ctx), h.Close()); err != nil {
		return fmt.Errorf("going on: %w", err)
	}
	return nil
}

// TestCrashSeize cuts the power at every operation of a Seize, under a run that holds the replica.
func TestCrashSeize(t *testing.T) {
	t.Parallel()
	eachHeld(t, func(t *testing.T, k int, clone, applying bool) bool {
		fs, h := held(t, clone, applying)
		fs.CutAfter(k)
		before := h.Fork(1, logsOn(fs))
		err := h.Seize(t.Context(), dir.New(fs, root))
		if err == nil {
			return false
		}
		if !errors.Is(err, crashfs.ErrCut) {
			t.Fatalf("cut at %d: %v", k, err)
		}
		for _, policy := range crashfs.Policies() {
			left := fs.AfterCrash(policy, uint64(k))
			if err := goOn(t.Context(), before.Fork(uint64(k), logsOn(left)), left, func() {}); err != nil {
				t.Fatalf("cut at %d, %s: %v", k, policy, err)
			}
		}
		return true
	})
}

// TestKillSeize ends a Seize at every operation while the run that it takes over from lives: whatever that does then, and
// after the Seize was repeated, is not seen.
func TestKillSeize(t *testing.T) {
	t.Parallel()
	eachHeld(t, func(t *testing.T, k int, clone, applying bool) bool {
		fs, h := held(t, clone, applying)
		stale := h.OpenRun(t)
		first := fs.Ops()
		fs.FailOn(func(op crashfs.Op) error {
			if op.N >= first+k {
				return syscall.EIO
			}
			return nil
		})
		err := h.Seize(t.Context(), dir.New(fs, root))
		fs.FailOn(nil)
		if err == nil {
			return false
		}
		if !errors.Is(err, syscall.EIO) {
			t.Fatalf("ended at %d: %v", k, err)
		}
		if err := goOn(t.Context(), h, fs, func() { stale.GoesOn(t) }); err != nil {
			t.Fatalf("ended at %d: %v", k, err)
		}
		return true
	})
}

// TestSeizeCopiesOnce wants files to be made anew exactly while somebody else may have them open, and once.
func TestSeizeCopiesOnce(t *testing.T) {
	inodes := func(fs *crashfs.FS) (out []uint64) {
		for _, name := range []string{"os.vhd", "os.sums", "data.1.vhd", "data.1.sums"} {
			s, err := fs.Stat(root + "/vm/" + name)
			check(t, err)
			out = append(out, s.Inode)
		}
		return out
	}
	fs, h := held(t, false, false)
	stale := h.OpenRun(t)
	before := inodes(fs)
	check(t, errors.Join(h.Seize(t.Context(), dir.New(fs, root)), h.Close()))
	fresh := inodes(fs)
	for i := range before {
		if before[i] == fresh[i] {
			t.Errorf("file %d is still the one that the stale run writes to", i)
		}
	}
	check(t, errors.Join(h.Seize(t.Context(), dir.New(fs, root)), h.Close()))
	if got := inodes(fs); !slices.Equal(got, fresh) {
		t.Errorf("the files were copied again: %v, they were %v", got, fresh)
	}
	check(t, stale.Close())
	for _, name := range names(t, fs, root+"/vm") {
		if name == "fence.json" || durable.IsTemp(name) {
			t.Errorf("%s was left", name)
		}
	}

	fs, h = held(t, false, false)
	before = inodes(fs)
	check(t, h.Close())
	check(t, h.Seize(t.Context(), dir.New(fs, root)))
	if got := inodes(fs); !slices.Equal(got, before) {
		t.Error("files that nobody had open were copied")
	}
	check(t, h.Close())
}

// TestSeizeFromLedgerLock takes over from a run that stopped while it changed the ledger: that cannot be, and it says whom to
// end.
func TestSeizeFromLedgerLock(t *testing.T) {
	t.Parallel()
	fs, h := held(t, false, false)
	lock, err := fs.Lock(root + "/vm/ledger.lock")
	check(t, err)
	before := read(t, fs, root+"/vm/ledger.json")
	_, err = dir.New(fs, root).Seize(t.Context(), "vm", func(s replica.State) (replica.State, error) {
		s.Generation++
		return s, nil
	})
	wantCode(t, err, fault.Busy)
	for _, word := range []string{`site "one"`, `host "h1"`, "end that process"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q is not said: %v", word, err)
		}
	}
	if string(read(t, fs, root+"/vm/ledger.json")) != string(before) {
		t.Error("the ledger was changed")
	}
	check(t, errors.Join(lock.Close(), h.Close()))
}
