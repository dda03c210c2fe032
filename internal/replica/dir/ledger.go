package dir

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/wait"
)

const (
	ledgerName  = "ledger.json"
	ledgerLock  = "ledger.lock"
	removedName = "ledger.removed" // the ledger of a replica whose removal was begun
)

// ledgerPatience is how long Save waits for another run's Save; one takes milliseconds.
const ledgerPatience = 10 * time.Second

// ledger compares and swaps ledger.json. It does so under a lock of its own, not under that of the run: a failover must
// be able to take over from a run that hangs, and what hangs must then not be able to write.
type ledger struct{ r *vmReplica }

func (r *vmReplica) ledgerPath() string { return filepath.Join(r.folder, ledgerName) }

// Load reads the record; see replica.Ledger.
func (l *ledger) Load(ctx context.Context) (replica.State, error) {
	err := ctx.Err()
	var s replica.State
	if err == nil {
		s, err = l.r.loadLedger()
	}
	return s, fault.In(err, l.r.vm, "")
}

func (r *vmReplica) loadLedger() (replica.State, error) {
	data, err := r.rawLedger()
	if err != nil {
		return replica.State{}, err
	}
	return replica.Decode(data, r.ledgerPath(), r.vm)
}

// rawLedger is the record as it lies there.
func (r *vmReplica) rawLedger() ([]byte, error) {
	data, err := durable.ReadFile(r.fs, r.ledgerPath(), replica.MaxLedger)
	var long *durable.TooLargeError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, r.missing()
	case errors.As(err, &long):
		return nil, fault.Wrap(fault.LedgerCorrupt, err, "the ledger is too long").At(r.ledgerPath())
	}
	return data, err
}

// missing explains why there is no ledger: the store may have gone away since it was opened.
func (r *vmReplica) missing() error {
	if _, err := r.store.identity(); err != nil {
		return err
	}
	if err := r.present(); err != nil {
		return err
	}
	return fault.New(fault.Busy, "the ledger came and went while it was read").At(r.ledgerPath())
}

// Save replaces the record; see replica.Ledger.
func (l *ledger) Save(ctx context.Context, s replica.State) (replica.State, error) {
	next, err := l.r.saveLedger(ctx, s)
	return next, fault.In(err, l.r.vm, "")
}

func (r *vmReplica) saveLedger(ctx context.Context, s replica.State) (next replica.State, err error) {
	if err := r.writable(ctx); err != nil {
		return s, err
	}
	lock, err := r.lockLedger(ctx)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	stored, err := r.loadLedger()
	if err != nil {
		return s, err
	}
	if err := replica.CheckOwner(stored, r.id, r.gen.Load(), r.ledgerPath()); err != nil {
		return s, err
	}
	if err := replica.CheckSave(stored, s, r.ledgerPath()); err != nil {
		return s, err
	}
	if s.Generation > r.gen.Load() {
		return r.promote(s)
	}
	return r.writeLedger(s)
}

// promote saves a ledger with a higher generation: this run goes on in its name, and so under its lock. Nothing else may use
// the replica meanwhile.
func (r *vmReplica) promote(s replica.State) (replica.State, error) {
	before, held := r.gen.Load(), r.lock
	if err := r.takeLock(s.Generation); err != nil {
		return s, err
	}
	next, err := r.writeLedger(s)
	if err != nil {
		lock := r.lock
		r.lock = held
		r.gen.Store(before)
		return s, errors.Join(err, lock.Close())
	}
	return next, dropLock(r.fs, r.lockPath(before), held)
}

// writeLedger writes a ledger that may be saved, as the next version.
func (r *vmReplica) writeLedger(s replica.State) (replica.State, error) {
	next := s
	next.Format = replica.Format
	next.Version++
	if err := next.Check(); err != nil {
		return s, fault.Wrap(fault.LedgerCorrupt, err, "the new ledger contradicts itself and was not written").At(r.ledgerPath())
	}
	data, err := replica.Encode(next)
	if err != nil {
		return s, err
	}
	if len(data) > replica.MaxLedger {
		return s, fault.New(fault.LedgerCorrupt, "the new ledger has %d bytes and was not written", len(data)).At(r.ledgerPath())
	}
	if err := durable.WriteFile(r.fs, r.ledgerPath(), data); err != nil {
		return s, err
	}
	return next, nil
}

// lockLedger waits for the ledger's lock.
func (r *vmReplica) lockLedger(ctx context.Context) (io.Closer, error) {
	path := filepath.Join(r.folder, ledgerLock)
	deadline := time.Now().Add(ledgerPatience)
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		lock, err := r.fs.Lock(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, r.missing()
		}
		if !errors.Is(err, durable.ErrLocked) {
			return lock, err
		}
		if time.Now().After(deadline) {
			return nil, fault.Wrap(fault.Busy, err, "another run holds the ledger").At(path)
		}
		if err := wait.For(ctx, pause); err != nil {
			return nil, err
		}
	}
}

// retireLedger takes the ledger away, in the name of its owner. When that is durable (clear sees to it) the replica exists
// no more. A ledger that cannot be read has no owner that could object.
func (r *vmReplica) retireLedger() error {
	lock, err := r.lockLedger(context.Background())
	if err != nil {
		return err
	}
	stored, err := r.loadLedger()
	if err == nil {
		err = replica.CheckOwner(stored, r.id, r.gen.Load(), r.ledgerPath())
	} else if !errors.Is(err, fs.ErrNotExist) && r.id.IsZero() {
		err = nil
	}
	if err == nil {
		err = r.fs.Rename(r.ledgerPath(), filepath.Join(r.folder, removedName))
	}
	return errors.Join(err, lock.Close())
}
