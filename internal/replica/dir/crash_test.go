package dir_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"testing"

	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/replica/dir"
	"sitrep/internal/replica/replicatest"
)

const root = "/vol/store"

// logsOn makes sealed logs on the filesystem of the store, where they are linked, not copied.
func logsOn(fs durable.FS) func(string, []byte) (durable.File, error) {
	return func(name string, data []byte) (durable.File, error) {
		path := filepath.Join("/vol/vm", name)
		if err := fs.MkdirAll(filepath.Dir(path)); err != nil {
			return nil, err
		}
		if err := durable.WriteFile(fs, path, data); err != nil {
			return nil, err
		}
		return fs.Open(path)
	}
}

// story is a short life of a replica: everything that a store does happens in it.
func story(ctx context.Context, h *replicatest.History, store replica.Store) error {
	h.Keep = 2
	if err := h.Begin(ctx, store); err != nil {
		return err
	}
	for step := range 3 {
		if err := h.Step(ctx, step == 1); err != nil {
			return err
		}
	}
	return nil
}

// survive goes on with what a crash has left: all promises hold, and the work is taken up and finished.
func survive(ctx context.Context, h *replicatest.History, fs *crashfs.FS) error {
	store := dir.New(fs, root)
	if err := h.Attach(ctx, store); err != nil {
		return fmt.Errorf("after the crash: %w", err)
	}
	if err := h.Recover(ctx, store); err != nil {
		return fmt.Errorf("finishing what was interrupted: %w", err)
	}
	if err := h.Check(ctx); err != nil {
		return fmt.Errorf("when it was finished: %w", err)
	}
	if err := h.Step(ctx, false); err != nil {
		return fmt.Errorf("going on: %w", err)
	}
	if err := h.Check(ctx); err != nil {
		return fmt.Errorf("having gone on: %w", err)
	}
	return h.Close()
}

// TestCrash cuts a replica's life at every operation, and looks at everything that may be left.
func TestCrash(t *testing.T) {
	t.Parallel()
	for name, clone := range map[string]bool{"undo logs": false, "clones": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			step := 1
			if clone {
				step = 3 // most operations are the same ones
			}
			k := 1
			for cutAt(t, k, clone) {
				k += step
			}
			if k < 100 {
				t.Errorf("the story has only %d operations", k)
			}
		})
	}
}

// cutAt cuts the story at its k-th operation; it returns false when the story has not so many.
func cutAt(t *testing.T, k int, clone bool) bool {
	fs := crashfs.New()
	fs.SetClone(clone)
	fs.CutAfter(k)
	h := replicatest.NewHistory("vm", 1, logsOn(fs))
	err := story(t.Context(), h, dir.New(fs, root))
	if err == nil {
		return false
	}
	if !errors.Is(err, crashfs.ErrCut) {
		t.Fatalf("cut at %d: %v", k, err)
	}
	for _, policy := range []crashfs.Policy{crashfs.DropUnsynced, crashfs.Torn, crashfs.ProcessKill} {
		left := fs.AfterCrash(policy, uint64(k))
		fork := h.Fork(uint64(k), logsOn(left))
		if err := survive(t.Context(), fork, left); err != nil {
			t.Fatalf("cut at %d, %s: %v", k, policy, err)
		}
	}
	cutAgain(t, h, fs, k)
	return true
}

// cutAgain kills the process first: what it had not made durable is still seen then. While the next run takes up the
// work, the power is cut.
func cutAgain(t *testing.T, h *replicatest.History, fs *crashfs.FS, k int) {
	j := k*7%90 + 1
	killed := fs.AfterCrash(crashfs.ProcessKill, uint64(k))
	fork := h.Fork(uint64(k), logsOn(killed))
	killed.CutAfter(j)
	store := dir.New(killed, root)
	err := fork.Attach(t.Context(), store)
	if err == nil {
		err = fork.Recover(t.Context(), store)
	}
	if err != nil && !errors.Is(err, crashfs.ErrCut) {
		t.Fatalf("killed at %d, cut at %d: %v", k, j, err)
	}
	for _, policy := range []crashfs.Policy{crashfs.DropUnsynced, crashfs.Torn} {
		left := killed.AfterCrash(policy, uint64(k))
		if err := survive(t.Context(), fork.Fork(uint64(k), logsOn(left)), left); err != nil {
			t.Fatalf("killed at %d, cut at %d, %s: %v", k, j, policy, err)
		}
	}
}

// TestFailure has every operation fail once, without a crash: what runs on then must not do harm.
func TestFailure(t *testing.T) {
	t.Parallel()
	for k := 1; ; k++ {
		fs := crashfs.New()
		fs.FailOn(func(op crashfs.Op) error {
			if op.N == k {
				return syscall.EIO
			}
			return nil
		})
		h := replicatest.NewHistory("vm", 1, logsOn(fs))
		err := errors.Join(story(t.Context(), h, dir.New(fs, root)), h.Close())
		if fs.Ops() < k {
			return
		}
		fs.FailOn(nil)
		if err != nil && !errors.Is(err, syscall.EIO) {
			t.Fatalf("failed at %d: %v", k, err)
		}
		if err := survive(t.Context(), h.Fork(2, logsOn(fs)), fs); err != nil {
			t.Fatalf("failed at %d: %v", k, err)
		}
	}
}

// TestCrashRemove cuts a removal at every operation: what is left is a replica with everything, or none.
func TestCrashRemove(t *testing.T) {
	t.Parallel()
	for k := 1; ; k++ {
		fs := crashfs.New()
		h := replicatest.NewHistory("vm", 1, logsOn(fs))
		if err := errors.Join(story(t.Context(), h, dir.New(fs, root)), h.Close()); err != nil {
			t.Fatal(err)
		}
		fs.CutAfter(k)
		err := dir.New(fs, root).Remove(t.Context(), "vm")
		if err == nil {
			if k < 10 {
				t.Errorf("the removal has only %d operations", k-1)
			}
			return
		}
		for _, policy := range crashfs.Policies() {
			left := fs.AfterCrash(policy, uint64(k))
			if err := afterRemoval(t.Context(), h.Fork(1, logsOn(left)), left); err != nil {
				t.Fatalf("cut at %d, %s: %v", k, policy, err)
			}
		}
	}
}

func afterRemoval(ctx context.Context, h *replicatest.History, fs *crashfs.FS) error {
	store := dir.New(fs, root)
	err := h.Attach(ctx, store)
	if err == nil {
		return h.Close()
	}
	if !fault.Is(err, fault.NotProtected) {
		return err
	}
	for name := range store.List(ctx) {
		return fmt.Errorf("%s is listed", name)
	}
	fresh := replicatest.NewHistory("vm", 2, logsOn(fs))
	if err := errors.Join(fresh.Begin(ctx, store), fresh.Check(ctx), fresh.Close()); err != nil {
		return fmt.Errorf("protecting it again: %w", err)
	}
	return store.Remove(ctx, "vm")
}

// TestFull fills the volume at every place of the story; with more room it goes on.
func TestFull(t *testing.T) {
	t.Parallel()
	full := 0
	for room := int64(4 << 10); room < 1<<20; room += 12 << 10 {
		fs := crashfs.New()
		fs.SetCapacity(room)
		h := replicatest.NewHistory("vm", 1, logsOn(fs))
		err := errors.Join(story(t.Context(), h, dir.New(fs, root)), h.Close())
		if err != nil {
			full++
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("%d bytes: %v", room, err)
			}
			if e := fault.Find(err); e != nil && e.Code != fault.NoSpace {
				t.Fatalf("%d bytes: the code is %s: %v", room, e.Code, err)
			}
		}
		fs.SetCapacity(0)
		if err := survive(t.Context(), h.Fork(1, logsOn(fs)), fs); err != nil {
			t.Fatalf("%d bytes: %v", room, err)
		}
	}
	if full < 5 {
		t.Errorf("the volume was full only %d times", full)
	}
}

// TestReadOnly has a volume refuse every change.
func TestReadOnly(t *testing.T) {
	fs := crashfs.New()
	refuse := func(op crashfs.Op) error {
		if op.Kind.Changes() {
			return syscall.EROFS
		}
		return nil
	}
	if err := fs.MkdirAll(root); err != nil {
		t.Fatal(err)
	}
	fs.FailOn(refuse)
	_, err := dir.New(fs, root).Prepare(t.Context(), hrl.ID{})
	wantCode(t, err, fault.Permission)
	fs.FailOn(nil)
	if list, err := fs.ReadDir(root); err != nil || len(list) > 0 {
		t.Fatalf("a store was begun: %v (error %v)", list, err)
	}
	h := replicatest.NewHistory("vm", 1, logsOn(fs))
	if err := errors.Join(story(t.Context(), h, dir.New(fs, root)), h.Close()); err != nil {
		t.Fatal(err)
	}
	fs.FailOn(refuse)
	_, err = dir.New(fs, root).Open(t.Context(), "vm")
	wantCode(t, err, fault.Permission)
	_, err = dir.New(fs, root).Create(t.Context(), replicatest.FirstState("new"))
	wantCode(t, err, fault.Permission)
	wantCode(t, dir.New(fs, root).Remove(t.Context(), "vm"), fault.Permission)
	if _, err = dir.New(fs, root).View(t.Context(), "vm"); err != nil {
		t.Error(err)
	}
}

func wantCode(t *testing.T, err error, code fault.Code) {
	t.Helper()
	if e := fault.Find(err); e == nil || e.Code != code {
		t.Fatalf("the error is %v, want one of code %s", err, code)
	}
}
