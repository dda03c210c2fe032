// Package track is where changes come from: the contract of a tracker, which tells what a VM's disks have become since a
// position that the replica has.
//
// A tracker owns two things that may never be confused: the frozen view of the disks while a cut is open, so that what is
// read belongs to one moment; and its position, which moves only when the changes of a cut lie in sealed logs. Whoever
// asks for changes since a position that the tracker does not know gets fault.PositionLost: only a comparison with the
// replica helps then, never a guess.
package track

import (
	"context"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/hrl"
	"sitrep/internal/sums"
)

// Disk is one disk to be tracked.
type Disk struct {
	Name      string
	Path      string
	Format    disk.Format
	BlockSize int64
	Parents   []string // where its parents may lie: see disk.Open
	// Identity is that of the disk that the position is of. Another one is refused with fault.DiskReplaced, unless it holds the
	// same; so is a disk of which nearly all data is another. Accept says that it is to be taken whatever it is.
	Identity disk.Identity
	Accept   bool
}

// Tracker tells the changes of the disks of one VM. Its methods are not concurrent.
type Tracker interface {
	// Position is the position that the tracker stands at, durable; zero when it knows none.
	Position() hrl.Pos
	// Rebase makes the tracker stand at a position, given the block sums that the replica has there. What it knew before
	// is forgotten. It is durable on return.
	Rebase(ctx context.Context, at hrl.Pos, base map[string]Base) error
	// Cut freezes the disks and opens the changes since a position. The zero position means everything. A position that
	// is not the tracker's own is fault.PositionLost.
	Cut(ctx context.Context, since hrl.Pos) (Cut, error)
	// Forget removes everything that the tracker keeps.
	Forget() error
}

// Base is the block sums of one disk at a position.
type Base interface {
	// All calls f for every block whose sum is not zero, in ascending order.
	All(ctx context.Context, f func(i int64, s sums.Sum) error) error
	// Size is the number of guest bytes of the disk at the position.
	Size() int64
}

// Cut is the state of all disks of a VM at one moment, and what changed since another. It owns the frozen view until
// Close.
type Cut interface {
	From() hrl.Pos
	At() time.Time
	// AppConsistent says that the VM's applications had flushed when the cut was taken.
	AppConsistent() bool
	Disks() []CutDisk
	// Check says whether the disks are still as they were when the cut was opened, or the view is frozen; otherwise
	// fault.DiskModified. It has to be asked after the last read and before anything relies on what was read.
	Check(ctx context.Context) error
	// Advance makes to the position of the tracker. It is called when the changes of all disks lie in sealed logs. It is
	// durable on return; before that the tracker stands where it stood.
	Advance(ctx context.Context, to hrl.Pos) error
	// Confirm is called instead of Advance when all disks were scanned and nothing changed: the disks are still what they
	// were at From. The position stays; what lets the next cut know it without reading is remembered, durable on return.
	// After a cut since the zero position it is called when the tracker was rebased to exactly what the cut has read.
	Confirm(ctx context.Context) error
	Close() error
}

// CutDisk is one disk of a cut.
type CutDisk interface {
	Name() string
	Size() int64       // guest bytes now
	SizeBefore() int64 // guest bytes at From
	BlockSize() int64  // bytes
	// Untouched says that nothing changed, known without reading the disk.
	Untouched() bool
	// Identity is that of the disk now; of one that is Untouched, what it was.
	Identity() disk.Identity
	// DataWriteGUID is the VHDX identity of the content, zero when there is none.
	DataWriteGUID() [16]byte
	// Frozen says that the view is a snapshot, that goes on to be right while the disk is being written to.
	Frozen() bool
	// Image is the view itself, for reading what changed or not. It is right until the cut is closed.
	Image() disk.Image
	// Scan reads the disk from an offset (a multiple of the block size) to its end, once, and calls emit for the blocks
	// that differ from From. Calls come from several goroutines, in no order; the first error ends the scan, and with it the
	// context that emit is given: who waits for another call may wait for that.
	Scan(ctx context.Context, o Options, emit func(context.Context, Change) error) (Stats, error)
}

// Options of a scan.
type Options struct {
	From  int64 // guest offset where to begin
	Unit  int64 // bytes read at once, a multiple of the block size
	Tasks int   // concurrent readers
	// Done is called, from several goroutines, when a range has been read and all its changes were emitted.
	Done func(block.Range)
}

// Change is a run of whole blocks that differ. The last block of a disk may be short.
type Change struct {
	block.Range
	Zero bool
	Data []byte     // the new bytes, nil when Zero; valid only during the call
	Sums []sums.Sum // of each block, nil when Zero; valid only during the call
}

// Stats is what a scan did, in bytes.
type Stats struct {
	Scanned int64 // read from the disk
	Skipped int64 // known to be zero without reading
	Changed int64 // in blocks that differ
	Had     int64 // in blocks that had data at From
	Lost    int64 // of these, in blocks that differ
}

// Add returns the sum of two.
func (s Stats) Add(o Stats) Stats {
	return Stats{s.Scanned + o.Scanned, s.Skipped + o.Skipped, s.Changed + o.Changed, s.Had + o.Had, s.Lost + o.Lost}
}
