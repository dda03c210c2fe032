// Package dir keeps replicas in a folder: of a local disk, a USB disk, an NFS or SMB mount.
//
//	STORE/sitrep-store.json      the identity of the store: an empty mount point does not have it
//	STORE/VM/ledger.json         the ledger, replaced as a whole
//	STORE/VM/lock                held by the run that works on the VM; from generation 2 on lock.GENERATION
//	STORE/VM/ledger.lock         held for the moment in which the ledger is compared and swapped, or a name changed
//	STORE/VM/fence.json          there while a takeover has to give the disks new files (see below)
//	STORE/VM/DISK.vhd            pages: a sparse fixed VHD, guest bytes first, the footer last; boots as it is
//	STORE/VM/DISK.sums           block sums
//	STORE/VM/shelf/NAME.hrl      change logs that have arrived
//	STORE/VM/points/POSITION/    what is needed to see the disks as they were at that position: for each disk an undo
//	                             log that leads back to it (and DISK.rotten.json, of what is rotten in it), or a reflink clone of
//	                             its pages and of their sums
//
// Any of these files can be brought back from an older copy, or be gone. The names of positions bind them to each other, and what is
// seen through them is proved by the seals that the ledger has of each point; see chain.
//
// Names become visible in one step, by rename; what is half made has a name of durable.TempName and is removed by the
// next run that holds the VM's lock.
//
// Others may be able to write to the folder. What they put there is not followed, opened or removed as if it were ours: see
// durable.Within.
//
// # Taking over
//
// A failover takes the replica from a run that may hang, or be stopped, with the lock held and files open for writing, and
// that may go on at any later time, at any instruction. That it then changes nothing which anybody sees rests on this:
//
//   - Seize saves the ledger with the higher generation, under ledger.lock. From then on the older run's Save is refused.
//   - Whatever changes a name that is looked at (a log on the shelf, a step of points, the files of a disk, temporary files of
//     others, the ledger) is done under ledger.lock too, after a look at the generation. So either it was done before the
//     takeover, and is part of what was taken over, or it is refused. What takes long is done under a temporary name before
//     that, and nobody reads those.
//   - Pages and sums are written through open files. When the older run's lock cannot be taken, it may have them open: so they
//     get new inodes, by clone or by copy, renamed over the old ones. A run that opens them late looks at the generation after it
//     opened them: if that is still its own, what it has open is older than the takeover, and is replaced by it.
//   - Who opens the replica late takes the lock of the generation that the ledger has, and then looks again: it never writes in
//     the name of an owner that it is not.
//
// While files are copied the older run may be writing to them. It can do so only where the ledger says Applying (or, during
// an initial copy, behind what is said to be copied), so what a copy has caught of it lies in blocks that are written
// again, with their sums, by whoever finishes that step. What the older run has durably reached before the takeover stays.
// fence.json is written before the ledger and removed when all files are new, so that an interrupted takeover is completed by the next
// Seize or Open, and a finished one costs nothing again. Once the older runs are gone, nothing needs to be copied any more.
//
// What remains: a run that stopped inside ledger.lock, for some system calls, keeps it; Seize then fails with fault.Busy after ten
// seconds and says which process has to be ended. Where a file that somebody has open cannot be replaced (Windows), Seize fails
// with fault.Busy too. And all of it rests on locks that hold until their process ends: a network filesystem that takes the
// lock of a client away which it cannot reach, and lets it write afterwards, breaks that; there the old host has to be cut off.
//
// # Proof
//
// What is read of a recovery point is proved: undo logs are verified as a whole when it is opened, and each block that shows
// through from pages, or from a clone, is compared with its sum. That holds while a step is being applied too: the blocks that
// it overwrites are hidden by the undo log of the step, and the sums of the others do not change. During a resynchronization
// that takes the sums for unproven a block may be refused until it is compared. The sums themselves are proved by the
// ledger's seal only by verify. What goes into an undo log is proved by the sums of the pages before: a delta that is about to
// overwrite a rotten block is refused with fault.ReplicaCorrupt, as nothing is lost yet that a resynchronization cannot bring;
// where pages are overwritten all the same (by that resynchronization, by a failover) the block is listed beside the log, and no
// point shows it. A clone without sums, made by an earlier version, is refused as unproven.
package dir

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"iter"
	"path/filepath"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
)

const (
	identityName = "sitrep-store.json"
	identityLock = "sitrep-store.lock"
	// identityFormat is the version of the layout of a store; a newer one is refused.
	identityFormat = 1
	maxIdentity    = 64 << 10 // bytes
)

// identity tells this store from every other, and from the empty folder that is there when its volume is not mounted.
type identity struct {
	Format  int       `json:"format"`
	ID      hrl.ID    `json:"id"`
	Created time.Time `json:"created"`
}

// Store is a folder of replicas.
type Store struct {
	fs   durable.FS // within root
	all  durable.FS // for the folders above root
	root string
}

var _ replica.Store = (*Store)(nil)

// New returns the store in the folder root. It touches nothing.
func New(fsys durable.FS, root string) *Store {
	return &Store{fs: durable.Within(fsys, root), all: fsys, root: root}
}

// Describe returns the folder.
func (s *Store) Describe() string { return s.root }

// Prepare checks or creates the store's identity; see replica.Store.
func (s *Store) Prepare(ctx context.Context, want hrl.ID) (hrl.ID, error) {
	if err := ctx.Err(); err != nil {
		return hrl.ID{}, fault.In(err, "", "")
	}
	have, err := s.identity()
	if err == nil && !want.IsZero() && have.ID != want {
		return hrl.ID{}, fault.New(fault.StoreForeign, "the store has the id %s, not %s", have.ID, want).At(s.identityPath())
	}
	if err == nil || !want.IsZero() || !fault.Is(err, fault.StoreNotMounted) {
		return have.ID, err
	}
	id, err := s.found()
	return id, fault.In(err, "", "")
}

func (s *Store) identityPath() string { return filepath.Join(s.root, identityName) }

// identity reads the identity; without one the store is not there.
func (s *Store) identity() (identity, error) {
	path := s.identityPath()
	data, err := durable.ReadFile(s.fs, path, maxIdentity)
	if errors.Is(err, fs.ErrNotExist) {
		return identity{}, s.unnamed("missing", fault.New(fault.StoreNotMounted, "the folder has no %s", identityName).At(s.root))
	}
	if err != nil {
		return identity{}, fault.In(err, "", "")
	}
	var id identity
	if err := json.Unmarshal(data, &id); err != nil {
		return identity{}, s.unnamed("damaged", fault.Wrap(fault.StoreForeign, err, "the store's identity is damaged").At(path))
	}
	if id.Format > identityFormat {
		return identity{}, fault.New(fault.LedgerVersion, "the store has format %d; this version knows formats up to %d",
			id.Format, identityFormat).At(path)
	}
	if id.Format < 1 || id.ID.IsZero() {
		return identity{}, s.unnamed("damaged", fault.New(fault.StoreForeign, "the store's identity is damaged").At(path))
	}
	return id, nil
}

// unnamed is the error of a folder whose identity is missing or damaged: other where there are no replicas either.
func (s *Store) unnamed(how string, other error) error {
	entries, err := s.fs.ReadDir(s.root)
	if err != nil {
		return other
	}
	for _, e := range entries {
		if !e.Dir || replica.CheckName(e.Name) != nil {
			continue
		}
		if _, err := s.fs.Stat(filepath.Join(s.root, e.Name, ledgerName)); err == nil {
			return fault.New(fault.StoreUnnamed, "the folder holds replicas (%s), but its %s is %s", e.Name, identityName, how).At(s.root)
		}
	}
	return other
}

// Ledgers yields the ledgers that are there; see replica.Mender.
func (s *Store) Ledgers(ctx context.Context) iter.Seq2[replica.State, error] {
	return func(yield func(replica.State, error) bool) {
		entries, err := s.fs.ReadDir(s.root)
		if err != nil {
			yield(replica.State{}, fault.In(err, "", ""))
			return
		}
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				yield(replica.State{}, fault.In(err, "", ""))
				return
			}
			if !e.Dir || replica.CheckName(e.Name) != nil {
				continue
			}
			r := &vmReplica{fs: s.fs, store: s, vm: e.Name, folder: filepath.Join(s.root, e.Name)}
			if _, err := s.fs.Stat(r.ledgerPath()); errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if st, err := r.loadLedger(); !yield(st, fault.In(err, e.Name, "")) {
				return
			}
		}
	}
}

// Identify writes the identity anew; see replica.Mender.
func (s *Store) Identify(ctx context.Context, id hrl.ID) (err error) {
	if err := ctx.Err(); err != nil {
		return fault.In(err, "", "")
	}
	lockPath := filepath.Join(s.root, identityLock)
	lock, err := s.fs.Lock(lockPath)
	if errors.Is(err, durable.ErrLocked) {
		return fault.Wrap(fault.Busy, err, "another run makes this store").At(s.root)
	}
	if err != nil {
		return fault.In(err, "", "")
	}
	defer func() { err = fault.In(errors.Join(err, dropLock(s.fs, lockPath, lock)), "", "") }()
	have, err := s.identity()
	if err == nil {
		return fault.New(fault.Exists, "the store has the id %s", have.ID).At(s.identityPath())
	}
	if !fault.Is(err, fault.StoreUnnamed) {
		return err
	}
	if err := s.sweep(); err != nil {
		return err
	}
	return s.writeIdentity(id)
}

func (s *Store) writeIdentity(id hrl.ID) error {
	data, err := json.MarshalIndent(identity{Format: identityFormat, ID: id, Created: time.Now().UTC().Truncate(time.Second)}, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(s.fs, s.identityPath(), append(data, '\n'))
}

// found makes the folder a new store. Of two runs that do it at once, one makes it and the other finds it.
func (s *Store) found() (id hrl.ID, err error) {
	if err := s.fs.MkdirAll(s.root); err != nil {
		return hrl.ID{}, err
	}
	lockPath := filepath.Join(s.root, identityLock)
	lock, err := s.fs.Lock(lockPath)
	if errors.Is(err, durable.ErrLocked) {
		return hrl.ID{}, fault.Wrap(fault.Busy, err, "another run makes this store").At(s.root)
	}
	if err != nil {
		return hrl.ID{}, err
	}
	defer func() { err = errors.Join(err, dropLock(s.fs, lockPath, lock)) }()
	if have, err := s.identity(); err == nil || !fault.Is(err, fault.StoreNotMounted) {
		return have.ID, err
	}
	if err := s.sweep(); err != nil {
		return hrl.ID{}, err
	}
	id = hrl.NewID()
	return id, s.writeIdentity(id)
}

// sweep removes the identities that runs have half made which were killed; nobody else makes one under the lock.
func (s *Store) sweep() error {
	entries, err := s.fs.ReadDir(s.root)
	for _, e := range entries {
		if !e.Dir && durable.IsTempOf(e.Name, identityName) {
			err = errors.Join(err, durable.RemoveIfThere(s.fs, filepath.Join(s.root, e.Name)))
		}
	}
	return err
}

// dropLock removes the file of a lock and then releases it, in this order, so that nobody can hold a lock whose file
// goes away. Where an open file cannot be removed (Windows), it is removed when nobody has it open any more.
func dropLock(fsys durable.FS, path string, lock io.Closer) error {
	rerr := durable.RemoveIfThere(fsys, path)
	err := lock.Close()
	if rerr != nil && err == nil {
		_ = durable.RemoveIfThere(fsys, path) // an empty file that stays is used again
	}
	return err
}

// List yields the VMs that have a replica; see replica.Store.
func (s *Store) List(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if _, err := s.identity(); err != nil {
			yield("", err)
			return
		}
		entries, err := s.fs.ReadDir(s.root)
		if err != nil {
			yield("", fault.In(err, "", ""))
			return
		}
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				yield("", fault.In(err, "", ""))
				return
			}
			if !e.Dir || replica.CheckName(e.Name) != nil {
				continue
			}
			_, err := s.fs.Stat(filepath.Join(s.root, e.Name, ledgerName))
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				err = fault.In(err, e.Name, "")
			}
			if !yield(e.Name, err) {
				return
			}
		}
	}
}
