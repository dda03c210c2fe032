package dir

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

// Rename gives a replica another name; see replica.Renamer. The ledger says first what the new name is, so that it is understood in the
// folder of either name; then the folder is renamed, in one step; then the ledger has the new name alone.
func (s *Store) Rename(ctx context.Context, from, to string) error {
	if err := replica.CheckNewVM(to); err != nil {
		return fault.Wrap(fault.UsageError, err, "no VM can have this name")
	}
	r, err := s.replica(ctx, from)
	if err == nil {
		err = r.rename(ctx, to)
	}
	if err != nil && !fault.Is(err, fault.NotProtected) {
		return fault.In(err, from, "")
	}
	renamed, oerr := s.Open(ctx, to)
	if oerr != nil {
		if err != nil { // neither is there
			return fault.In(err, from, "")
		}
		return oerr
	}
	st, lerr := renamed.Ledger().Load(ctx)
	if lerr == nil {
		_, lerr = renamed.Ledger().Save(ctx, st)
	}
	return errors.Join(lerr, renamed.Close())
}

func (r *vmReplica) rename(ctx context.Context, to string) (err error) {
	folder := filepath.Join(r.store.root, to)
	if err := r.present(); err != nil {
		return err
	}
	if _, err := r.fs.Stat(folder); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = fault.New(fault.Exists, "the store has something of the name %s", to).At(folder)
		}
		return err
	}
	if err := r.open(ctx); err != nil {
		return errors.Join(err, r.Close())
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	st, err := r.loadLedger()
	if err != nil {
		return err
	}
	st.RenameTo = to
	if _, err := r.saveLedger(ctx, st); err != nil {
		return err
	}
	err = r.asOwner(ctx, func() error { return r.fs.Rename(r.folder, folder) })
	if err != nil {
		return err
	}
	return r.fs.SyncDir(r.store.root)
}
