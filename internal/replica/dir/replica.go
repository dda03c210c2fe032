package dir

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
)

const (
	shelfName   = "shelf"
	pointsName  = "points"
	pagesSuffix = ".vhd"
	sumsSuffix  = ".sums"
)

// vmReplica is one VM's folder.
type vmReplica struct {
	fs     durable.FS
	store  *Store
	vm     string
	folder string
	lock   io.Closer     // nil: opened for reading
	id     hrl.ID        // of the replica that was opened for writing
	gen    atomic.Uint64 // in whose name this run writes; its lock is that of this generation

	buffers sync.Pool // of *[]byte; see buffer
}

var _ replica.Replica = (*vmReplica)(nil)

// replica checks that the store is there and returns the VM's folder in it, whether or not that exists.
func (s *Store) replica(ctx context.Context, vm string) (*vmReplica, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := replica.CheckName(vm); err != nil {
		return nil, fault.Wrap(fault.UsageError, err, "the VM's name cannot be that of a folder")
	}
	if _, err := s.identity(); err != nil {
		return nil, err
	}
	return &vmReplica{fs: s.fs, store: s, vm: vm, folder: filepath.Join(s.root, vm)}, nil
}

// Create makes a new replica; see replica.Store. The first ledger is written with Format and Version set.
func (s *Store) Create(ctx context.Context, first replica.State) (replica.Replica, error) {
	r, err := s.replica(ctx, first.VM)
	if err != nil {
		return nil, fault.In(err, first.VM, "")
	}
	if err := r.create(first); err != nil {
		return nil, fault.In(errors.Join(err, r.Close()), first.VM, "")
	}
	return r, nil
}

func (r *vmReplica) create(first replica.State) error {
	first.Format, first.Version = replica.Format, 1
	if err := replica.CheckNewVM(first.VM); err != nil {
		return fault.Wrap(fault.UsageError, err, "no VM can be protected by this name")
	}
	if err := first.Check(); err != nil {
		return fault.Wrap(fault.LedgerCorrupt, err, "the first ledger contradicts itself")
	}
	data, err := replica.Encode(first)
	if err != nil {
		return err
	}
	if err := r.fs.MkdirAll(r.folder); err != nil {
		return err
	}
	if err := r.lockAll(first.Generation); err != nil {
		if fault.Is(err, fault.NotProtected) {
			err = fault.New(fault.Busy, "another run is removing the replica").At(r.folder)
		}
		return err
	}
	r.id = first.Replica
	err = r.present()
	if err == nil {
		return fault.New(fault.AlreadyProtected, "the store has a replica of this VM").At(r.ledgerPath())
	}
	if !fault.Is(err, fault.NotProtected) {
		return err
	}
	if err := r.clear(); err != nil { // what a removal that was interrupted has left
		return err
	}
	if err := r.makeFolders(); err != nil {
		return err
	}
	return durable.WriteFile(r.fs, r.ledgerPath(), data)
}

// Open opens a replica for writing; see replica.Store. It removes temporary files that a killed run has left.
func (s *Store) Open(ctx context.Context, vm string) (replica.Replica, error) {
	r, err := s.replica(ctx, vm)
	if err != nil {
		return nil, fault.In(err, vm, "")
	}
	if err := r.open(ctx); err != nil {
		return nil, fault.In(errors.Join(err, r.Close()), vm, "")
	}
	return r, nil
}

func (r *vmReplica) open(ctx context.Context) error {
	if err := r.present(); err != nil {
		return err
	}
	if err := r.lockCurrent(); err != nil {
		return err
	}
	return r.takeUp(ctx)
}

// takeUp brings the folder into the state that a run may build on: nothing half made is left of earlier ones, and whoever
// was taken over from can reach nothing in it.
func (r *vmReplica) takeUp(ctx context.Context) error {
	if err := r.makeFolders(); err != nil {
		return err
	}
	// What a run left that was killed between a rename and its SyncDir is seen, but it may yet be lost. Nothing may be
	// built on it before.
	for _, folder := range []string{r.folder, r.shelfPath(), r.pointsPath()} {
		if err := r.fs.SyncDir(folder); err != nil {
			return err
		}
	}
	err := r.asOwner(ctx, func() error {
		for _, folder := range []string{r.folder, r.shelfPath(), r.pointsPath()} {
			if err := r.sweepTemps(folder); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return r.fence(ctx)
}

// View opens a replica for reading; see replica.Store.
func (s *Store) View(ctx context.Context, vm string) (replica.Replica, error) {
	r, err := s.replica(ctx, vm)
	if err == nil {
		_, err = r.loadLedger()
	}
	if err != nil {
		return nil, fault.In(err, vm, "")
	}
	return r, nil
}

// present says whether the folder has a ledger. Disks without one are not "no replica": they may be the last copy of
// somebody's data, unless a removal was begun.
func (r *vmReplica) present() error {
	_, err := r.fs.Stat(r.ledgerPath())
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	entries, err := r.fs.ReadDir(r.folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	disks, removing := "", false
	for _, e := range entries {
		removing = removing || e.Name == removedName
		if !e.Dir && !durable.IsTemp(e.Name) && strings.HasSuffix(e.Name, pagesSuffix) {
			disks = e.Name
		}
	}
	if disks != "" && !removing {
		return fault.New(fault.LedgerCorrupt, "the ledger is missing, but the folder holds %s", disks).At(r.ledgerPath())
	}
	return fault.New(fault.NotProtected, "the store has no replica of this VM").At(r.folder)
}

func (r *vmReplica) makeFolders() error {
	return errors.Join(r.fs.MkdirAll(r.shelfPath()), r.fs.MkdirAll(r.pointsPath()))
}

func (r *vmReplica) shelfPath() string  { return filepath.Join(r.folder, shelfName) }
func (r *vmReplica) pointsPath() string { return filepath.Join(r.folder, pointsName) }

// sweepTemps removes what is half made. Only the holder of the lock may do it.
func (r *vmReplica) sweepTemps(folder string) error {
	entries, err := r.fs.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !durable.IsTemp(e.Name) {
			continue
		}
		if err := r.removeTree(filepath.Join(folder, e.Name), e.Dir); err != nil {
			return err
		}
	}
	return nil
}

// removeTree removes a file, or a folder with the files in it.
func (r *vmReplica) removeTree(path string, isDir bool) error {
	if isDir {
		entries, err := r.fs.ReadDir(path)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := r.removeTree(filepath.Join(path, e.Name), e.Dir); err != nil {
				return err
			}
		}
	}
	return durable.RemoveIfThere(r.fs, path)
}

// Shelf returns the logs that have arrived.
func (r *vmReplica) Shelf() replica.Shelf { return &shelf{r} }

// Ledger returns the record.
func (r *vmReplica) Ledger() replica.Ledger { return &ledger{r} }

// Points returns the earlier positions.
func (r *vmReplica) Points() replica.Points { return &points{r} }

// Close releases the lock.
func (r *vmReplica) Close() error {
	if r.lock == nil {
		return nil
	}
	err := r.lock.Close()
	r.lock = nil
	return err
}

// writable fails when the replica was opened for reading, or the run is to end.
func (r *vmReplica) writable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if r.lock == nil {
		return fault.New(fault.WrongState, "the replica is open for reading only").At(r.folder)
	}
	return nil
}

// Remove deletes a replica; see replica.Store. That there is none is no error.
func (s *Store) Remove(ctx context.Context, vm string) error {
	r, err := s.replica(ctx, vm)
	if err != nil {
		return fault.In(err, vm, "")
	}
	_, err = s.fs.Stat(r.folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = r.remove()
	}
	return fault.In(err, vm, "")
}

func (r *vmReplica) remove() error {
	if err := r.lockForRemoval(); err != nil {
		if fault.Is(err, fault.NotProtected) {
			return nil // another run has just removed it
		}
		return err
	}
	err := r.present()
	if err == nil {
		err = r.retireLedger()
	} else if fault.Is(err, fault.NotProtected) {
		err = nil // begun before
	}
	if err == nil {
		err = r.clear()
	}
	if err != nil {
		return errors.Join(err, r.Close())
	}
	lock := r.lock
	r.lock = nil
	if err := dropLock(r.fs, r.lockPath(r.gen.Load()), lock); err != nil {
		return err
	}
	return r.removeFolder()
}

// removeFolder removes the VM's folder, unless it holds files of others.
func (r *vmReplica) removeFolder() error {
	entries, err := r.fs.ReadDir(r.folder)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) > 0 {
		return nil
	}
	if err != nil {
		return err
	}
	if err := durable.RemoveIfThere(r.fs, r.folder); err != nil {
		if list, lerr := r.fs.ReadDir(r.folder); lerr == nil && len(list) > 0 {
			return nil // another run makes a replica in it
		}
		return err
	}
	return r.fs.SyncDir(r.store.root)
}

// clear removes everything of a replica but its lock, when it is durable that there is no ledger any more: else one could
// come back without its disks. The mark of the removal goes last, when the rest is durably gone.
func (r *vmReplica) clear() error {
	if err := r.fs.SyncDir(r.folder); err != nil {
		return err
	}
	entries, err := r.fs.ReadDir(r.folder)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !ours(e) || e.Name == lockName(r.gen.Load()) {
			continue
		}
		if err := r.removeTree(filepath.Join(r.folder, e.Name), e.Dir); err != nil {
			return err
		}
	}
	if err := r.fs.SyncDir(r.folder); err != nil {
		return err
	}
	if err := durable.RemoveIfThere(r.fs, filepath.Join(r.folder, removedName)); err != nil {
		return err
	}
	return r.fs.SyncDir(r.folder)
}

// ours says whether an entry of a VM's folder belongs to the replica and is not its mark of removal.
func ours(e durable.Entry) bool {
	if e.Dir {
		return e.Name == shelfName || e.Name == pointsName || durable.IsTemp(e.Name)
	}
	return e.Name == ledgerLock || e.Name == fenceName || isLock(e.Name) || strings.HasSuffix(e.Name, pagesSuffix) ||
		strings.HasSuffix(e.Name, sumsSuffix) || durable.IsTemp(e.Name)
}
