// Package replica is what lies at the recovery site, and the contract that every kind of store keeps.
//
// A replica is one VM in a store. It has four parts, because a replica has four kinds of physics:
//
//   - pages: the disks themselves, written at random places, always at the last applied position;
//   - shelf: change logs that have arrived, immutable, put there in one step;
//   - ledger: one small record, changed by compare-and-swap, the only truth about the replica (specified in LEDGER.md);
//   - points: what is needed to see the disks as they were at earlier positions.
//
// The order in which they change is the whole of crash safety (see replicate.Apply): a record in the ledger is always
// written after the fact that it asserts is durable, so a kill at any time leaves a ledger whose every statement holds.
package replica

import (
	"context"
	"io"
	"iter"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/hrl"
	"sitrep/internal/sums"
)

// Store is where replicas live. Its methods may be called concurrently for different VMs.
type Store interface {
	// Describe names the store for people: a path or an address without secrets.
	Describe() string
	// Prepare makes the store usable for the first replica: it checks, or creates, the store's own identity and returns
	// it. A store whose identity is not want (when want is not zero) is fault.StoreForeign; one that should be there and
	// is not is fault.StoreNotMounted. It never creates a store when want is given.
	Prepare(ctx context.Context, want hrl.ID) (hrl.ID, error)
	// Create makes a new, empty replica with the given first ledger and opens it for writing.
	// It fails with fault.AlreadyProtected when the VM has one.
	Create(ctx context.Context, first State) (Replica, error)
	// Open opens the replica of a VM for writing and takes its lock: fault.ReplicaHeld when another run holds it,
	// fault.NotProtected when there is none, fault.StoreNotMounted when the store itself is not there,
	// fault.ReplicaForeign when the ledger is of another VM, fault.LedgerCorrupt when it cannot be read.
	Open(ctx context.Context, vm string) (Replica, error)
	// View opens the replica for reading, without a lock; everything that would change it fails.
	View(ctx context.Context, vm string) (Replica, error)
	// Seize opens the replica of a VM for writing in the name of a new owner, even while another run holds its lock (a run
	// that hangs, or that is stopped). take gets the ledger as it is and returns what it becomes: at least a higher
	// Generation, or, when an earlier Seize was interrupted, the same one by the same owner. It is saved first; when Seize
	// returns, no writer of an older generation can change pages, sums, shelf or what points need any more, whatever it had
	// open. What such a writer had under way between two positions (Applying) is left for the caller to finish.
	Seize(ctx context.Context, vm string, take func(State) (State, error)) (Replica, error)
	// List yields the names of the VMs that have a replica, sorted.
	List(ctx context.Context) iter.Seq2[string, error]
	// Remove deletes the replica of a VM and everything that belongs to it. Interrupted, it is completed by being called
	// again; the ledger goes first, so that a half-deleted replica is never taken for one.
	Remove(ctx context.Context, vm string) error
}

// Replica is one VM in a store. Pages of different disks may be used concurrently.
type Replica interface {
	// Disk returns the pages of a disk, creating them at the size that is given in the ledger when they do not exist and
	// the ledger says that the disk was never written (a disk that should have pages and has none is
	// fault.ReplicaMissing). Pages that something else has cut or lengthened are fault.ReplicaChanged; opened for writing
	// while the ledger says Resynchronizing, they get their size back, whatever they then hold.
	Disk(ctx context.Context, d Disk) (Pages, error)
	Shelf() Shelf
	Ledger() Ledger
	Points() Points
	// Close releases the lock. It makes nothing durable.
	Close() error
}

// Pages is the content of one disk at the last applied position. All offsets are guest bytes.
type Pages interface {
	// ReadAt fills p or fails. Bytes after the end of the disk are an error.
	ReadAt(ctx context.Context, p []byte, off int64) error
	// WriteAt writes p, whose offset and length are multiples of 512. Calls may be concurrent when ranges are disjoint.
	WriteAt(ctx context.Context, p []byte, off int64) error
	// ZeroAt makes a range read as zero, whatever it held.
	ZeroAt(ctx context.Context, off, n int64) error
	// Extent returns the first run of one kind at off, clipped to n. Zero is said only of what is certain to be zero.
	Extent(ctx context.Context, off, n int64) (block.Extent, error)
	// Size is the number of guest bytes.
	Size() int64
	// Grow makes the disk larger; the new bytes are zero. It is idempotent, and redone after a crash.
	Grow(ctx context.Context, size int64) error
	// LoadSums and StoreSums read and write the block sums of the blocks first, first+1 and so on.
	LoadSums(ctx context.Context, first int64, out []sums.Sum) error
	StoreSums(ctx context.Context, first int64, in []sums.Sum) error
	// ClearSums sets n sums to zero.
	ClearSums(ctx context.Context, first, n int64) error
	// NextSums returns the first run of blocks at or after first, before end, whose sums may be other than zero; n is 0
	// when there is none. It reads no sums.
	NextSums(ctx context.Context, first, end int64) (start, n int64, err error)
	// Flush returns when all pages and sums written before it are durable.
	Flush(ctx context.Context) error
	// Stamp describes the content as it lies there now, for telling whether something else wrote to it since.
	Stamp(ctx context.Context) (string, error)
	// Path tells an operator where the disk is.
	Path() string
	Close() error
}

// Shelf holds the change logs that have arrived.
type Shelf interface {
	// Put lays the sealed log f on the shelf: afterwards the name is there, durable, with all of f's content, or nothing
	// is. Putting a name again replaces it. It returns the bytes that had to be moved: holes move for nothing.
	Put(ctx context.Context, name string, f durable.File) (sent int64, err error)
	// Open opens a log for reading. A name that is not there is an error that wraps fs.ErrNotExist.
	Open(ctx context.Context, name string) (durable.File, error)
	// Names lists the shelf, sorted.
	Names(ctx context.Context) ([]string, error)
	// Remove removes a log; one that is not there is no error.
	Remove(ctx context.Context, name string) error
	// Path tells an operator where a log is.
	Path(name string) string
}

// Ledger is the one record of a replica.
type Ledger interface {
	// Load reads the record. The first Load after opening may return what opening has read.
	Load(ctx context.Context) (State, error)
	// Save replaces the record, when the stored one still has the Version and the Generation of the given one:
	// otherwise fault.LedgerConflict, or fault.Fenced with the owner that took over. It is durable on return, and returns the
	// state with its new Version.
	Save(ctx context.Context, s State) (State, error)
}

// Points keeps earlier positions readable while pages move on. Which points there are says the ledger alone.
type Points interface {
	// Preserve is called before the pages move from s.Applied to the position to, with the ranges of each disk that will
	// be overwritten (whole blocks). When it returns, everything that s.Points lists stays readable whatever happens to these
	// ranges. It is called again after a crash, possibly when some pages were already overwritten (redo is then true): it
	// must then keep what the first call preserved. A block that is not what its sum says may be refused with
	// fault.ReplicaCorrupt, unless Phase is FailoverStarted or Resync is set: then nothing was preserved and nothing may be overwritten.
	Preserve(ctx context.Context, s State, to hrl.Pos, overwritten map[string]*block.Set, redo bool) error
	// Preserved says what the step from s.Applied to the position to has preserved: the ranges of each disk, or, when all is
	// true, everything. Whatever else is overwritten before the next Preserve is lost to the points.
	Preserved(ctx context.Context, s State, to hrl.Pos) (ranges map[string]*block.Set, all bool, err error)
	// Reached is the position of the pages as far as what was preserved tells: s.Applied, or a later one when s is not the
	// newest ledger of the replica but one that was brought back. Points of s stay readable only if the pages move on from
	// there.
	Reached(ctx context.Context, s State) (hrl.Pos, error)
	// Open gives a read-only view of the VM's disks as of a point of the ledger, without copying them. When Phase is not
	// Seeding, and the ledger is Consistent and not Applying, the last point is the pages as they are: there is no newer state
	// than that of the last point which could be wanted.
	Open(ctx context.Context, s State, id string) (PointView, error)
	// Sweep removes what no point of s needs any more: after retention, and after crashes. Nothing that is damaged, missing or cannot be
	// removed keeps it from removing the rest. When all is done, that what a point needs is seen to be missing is fault.PointMissing;
	// it does not look for that closely: see MissingPoints.
	Sweep(ctx context.Context, s State) error
}

// PointView is a VM's disks as of one recovery point. Whatever is applied to the replica meanwhile, it returns what the point holds, or
// fails: it may have been opened with the pages as they were. Follow opens it again then.
type PointView interface {
	Disk(name string) (PointDisk, error)
	Close() error
}

// PointDisk is one disk of a PointView. It may be read concurrently. Whatever ReadAt returns has been proved: bytes that
// are not what the block sums or the undo logs say are fault.ReplicaCorrupt, with the disk and the offset.
type PointDisk interface {
	io.ReaderAt
	Size() int64
	Extent(off, n int64) (block.Extent, error)
}
