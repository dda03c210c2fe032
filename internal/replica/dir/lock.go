package dir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

// firstLock is the lock of the first generation; that of generation n is called lock.n. A run holds the lock of the
// generation in whose name it writes, so a run that was taken over from, and hangs, holds a lock that nobody asks for any
// more, and who opens the replica late can never mistake the generation that it owns.
const firstLock = "lock"

func lockName(generation uint64) string {
	if generation <= 1 {
		return firstLock
	}
	return fmt.Sprintf("%s.%d", firstLock, generation)
}

// isLock says whether a name is that of some generation's lock.
func isLock(name string) bool {
	if name == firstLock {
		return true
	}
	n, ok := strings.CutPrefix(name, firstLock+".")
	_, err := strconv.ParseUint(n, 10, 64)
	return ok && err == nil
}

func (r *vmReplica) lockPath(generation uint64) string {
	return filepath.Join(r.folder, lockName(generation))
}

// takeLock takes the lock of a generation for this run.
func (r *vmReplica) takeLock(generation uint64) error {
	path := r.lockPath(generation)
	lock, err := r.fs.Lock(path)
	switch {
	case errors.Is(err, durable.ErrLocked):
		return fault.Wrap(fault.ReplicaHeld, err, "the replica is in use").At(path)
	case errors.Is(err, fs.ErrNotExist): // removed since we looked
		return fault.New(fault.NotProtected, "the store has no replica of this VM").At(r.folder)
	case err != nil:
		return err
	}
	r.lock = lock
	r.gen.Store(generation)
	return nil
}

// lockCurrent takes the lock of the generation that the ledger has, and makes sure that it has it still: only then is the
// lock that of the owner.
func (r *vmReplica) lockCurrent() error {
	for range 8 {
		before, err := r.loadLedger()
		if err != nil {
			return err
		}
		if err := r.takeLock(before.Generation); err != nil {
			return err
		}
		now, err := r.loadLedger()
		if err == nil && now.Generation == before.Generation {
			r.id = now.Replica
			return nil
		}
		if err := errors.Join(err, r.Close()); err != nil {
			return err
		}
	}
	return fault.New(fault.Busy, "the replica is taken over again and again").At(r.folder)
}

// lockAll takes the lock of a generation when nobody holds that of any: for a folder whose ledger says nothing, because it
// is not there or cannot be read.
func (r *vmReplica) lockAll(generation uint64) error {
	entries, err := r.fs.ReadDir(r.folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if e.Dir || !isLock(e.Name) || e.Name == lockName(generation) {
			continue
		}
		path := filepath.Join(r.folder, e.Name)
		lock, err := r.fs.Lock(path)
		if errors.Is(err, durable.ErrLocked) {
			return fault.Wrap(fault.ReplicaHeld, err, "the replica is in use").At(path)
		}
		if err == nil {
			err = lock.Close()
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return r.takeLock(generation)
}

// lockForRemoval takes the lock of the owner, or, when the ledger does not tell who that is, makes sure that nobody works
// on the replica.
func (r *vmReplica) lockForRemoval() error {
	if _, err := r.loadLedger(); err == nil {
		return r.lockCurrent()
	}
	return r.lockAll(0)
}

// asOwner does what changes names in the folder, under the ledger's lock and only as long as nobody has taken over. So
// whoever takes over, by a ledger that is saved under the same lock, knows that no name changes afterwards. What is done
// must be short: nobody can save, or take over, meanwhile.
func (r *vmReplica) asOwner(ctx context.Context, do func() error) (err error) {
	if err := r.writable(ctx); err != nil {
		return err
	}
	lock, err := r.lockLedger(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := r.stillOwner(); err != nil {
		return err
	}
	return do()
}

// stillOwner fails with fault.Fenced when another owner has taken over.
func (r *vmReplica) stillOwner() error {
	stored, err := r.loadLedger()
	if err != nil {
		return err
	}
	return replica.CheckOwner(stored, r.id, r.gen.Load(), r.ledgerPath())
}

// cause is err, or, when another owner has taken over, that: it is why things fail, whatever it is that was not found.
func (r *vmReplica) cause(err error) error {
	if err == nil || r.lock == nil || fault.Is(err, fault.Fenced) {
		return err
	}
	if fenced := r.stillOwner(); fault.Is(fenced, fault.Fenced) {
		return fenced
	}
	return err
}
