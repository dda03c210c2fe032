package replica

import (
	"context"
	"io"

	"sitrep/internal/block"
)

// Promoter is a replica whose recovery points can be copied, inside the store, to disks that machines run from. Where a store
// cannot do that, they are read through Points.Open.
//
// A promoted disk is a fixed VHD of whole MiB, called by a name that the caller chooses. It belongs to whoever had it made: the
// store deletes it with the replica, and never by itself.
type Promoter interface {
	// Promote copies a disk of a recovery point of s to a disk of its own. It waits until the copy is complete and proven, and gives it up when ctx ends. A name that is there already,
	// complete and of the same disk and point, is left as it is: a machine may have written to it; one that is half made is made
	// anew; one of something else is fault.Exists. Bytes that are not what the block sums say are fault.ReplicaCorrupt, and
	// nothing is left then.
	Promote(ctx context.Context, s State, p Promotion) (Promoted, error)
	// OpenPromoted opens a promoted disk for reading, as it is now: machines have written to it, so nothing proves it. size is
	// the guest bytes that it was made with. It has that many, or as many as its footer says, when something lies behind them or
	// it was made larger. One that is not there is fault.NotFound, one that is being copied to fault.Busy, and
	// what is no fixed VHD, or became smaller, is fault.DiskCorrupt.
	// What a machine writes while it is read may or may not be seen.
	OpenPromoted(ctx context.Context, name string, size int64) (PromotedDisk, error)
	// Promoted lists the names of the promoted disks, sorted, those half made included.
	Promoted(ctx context.Context) ([]string, error)
	// RemovePromoted deletes what Promote has made, or begun to make, under this name; that there is nothing is no error. One that
	// is written to meanwhile is fault.Busy.
	RemovePromoted(ctx context.Context, name string) error
	// Demote is RemovePromoted for a name that no ledger has, but an operator gives: what bears no mark of Promote is
	// fault.Exists, and left as it is.
	Demote(ctx context.Context, name string) error
	// Strangers lists where there lies, among the promoted disks, what bears no mark of Promote, sorted: by a name that nobody has
	// promoted anything to, or by that of a promoted disk, when somebody has brought back there what a machine wrote elsewhere.
	Strangers(ctx context.Context) ([]string, error)
}

// Promotion is one disk that is to be made. Point, Disk and Name are needed.
type Promotion struct {
	Point string // ID of the recovery point
	Disk  string
	Name  string // of the new disk in the store; see CheckName
	Proof Proof
	// Progress, unless it is nil, is called with the guest bytes that were dealt with since the last call. Calls are not concurrent.
	Progress func(n int64)
}

// Promoted is a disk that was made.
type Promoted struct {
	Where string // its address, without secrets
	// Stamp is what PromotedDisk.Stamp says of it as it is now, and as long as nothing writes to it.
	Stamp string
	// Found says that it was there already: something may have written to it.
	Found bool
}

// Proof says how it is known that a promoted disk holds what the recovery point held.
type Proof string

const (
	// ProofRead reads the disk, once, as far as it is not zero, and compares it with the block sums of the point. The zero Proof
	// is the same.
	ProofRead Proof = "read"
	// ProofNone trusts a copy that the service has made by itself. One that is made by reading and writing is proven all the same:
	// there it costs nothing.
	ProofNone Proof = "none"
)

// PromotedDisk is a promoted disk, open for reading. It may be read concurrently.
type PromotedDisk interface {
	io.ReaderAt
	Size() int64
	// Extent tells what holds data from what is certain to be zero; see PointDisk.
	Extent(off, n int64) (block.Extent, error)
	// Stamp is another one after each write to the disk.
	Stamp() string
	Close() error
}

// PromoterOf returns r as a Promoter, if its store is one, whatever it is wrapped in. Nothing is tried again around it: a store
// that can do this tries by itself, and what was interrupted goes on when it is called again.
func PromoterOf(r Replica) (Promoter, bool) { return inside[Promoter](r) }

func (r *retryReplica) unwrap() Replica { return r.in }
func (r *limitReplica) unwrap() Replica { return r.in }
