// Package replicate brings a replica up to date: the initial copy (Seed, Finalize) and then deltas (Capture, Ship,
// Apply; Delta is all three).
//
// All disks of a VM move together. A delta is a cut: for each disk one change log that leads from position P to position
// Q, written beside the disk and sealed. The order in which facts become durable is this, and each record is written
// after the fact that it asserts:
//
//	logs of all disks sealed           a crash before: the logs are unsealed or unknown to the tracker, and removed
//	tracker stands at Q                from here the logs count
//	logs of all disks on the shelf     a crash before: they are put there again
//	ledger: received Q
//	undo of P->Q preserved             so that P stays a recovery point
//	ledger: applying P->Q              the pages are no disk of any moment from here
//	pages, sums, flush                 a crash here: all of it is done again, from the shelf
//	ledger: applied Q, recovery point Q, in one step
//	shelf and undo of dropped points removed, logs beside the disks removed
//
// Every step can be repeated, and no step trusts what an earlier run remembers: positions are compared with the ledger
// each time. Nothing here knows a terminal, a concrete store, a tracker or a site file.
package replicate

import (
	"context"
	"encoding/json"
	"log/slog"
	"math"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/progress"
	"sitrep/internal/replica"
	"sitrep/internal/track"
)

// Job is one VM with everything that the verbs of this package need. A Job is used by one goroutine.
type Job struct {
	VM string
	// ReplicaID is the relationship, as this site remembers it. Capture needs no more of the replica, so that logs can be
	// taken while the store is out of reach.
	ReplicaID hrl.ID
	Replica   replica.Replica // opened for writing; nil for Capture
	Tracker   track.Tracker   // nil where the source is out of reach: Apply and Verify need none
	// FS is where the disks and their logs lie, and LogDir the folder of each disk's logs, by the disk's name.
	FS     durable.FS
	LogDir map[string]string
	// LogLimit is the share of a disk's size, in percent, that the change logs may take which Capture or Relay leave waiting; 0 is
	// no limit. A cut that would take more is given up with fault.LogLimit. Delta, which ships what it writes, has no limit.
	LogLimit int
	// Reserve is how many bytes of a volume of that size change logs leave free; nil is no reserve. A cut that would take of it is given
	// up with fault.SourceReserve, also in the middle, and leaves no log.
	Reserve func(volume int64) int64
	// Applied is what the replica is known to have applied, for a Capture without the store: logs that lead there wait for nothing.
	Applied uint64
	// Keep is how many recovery points stay (1 or more), besides those that are held.
	Keep int
	// Massive is the share of a disk's data, in percent, that one cut has to change to be told and to hold the point before it; 0 is never.
	Massive int
	Meter   progress.Meter
	Log     *slog.Logger
	Now     func() time.Time
	// Pace is how the source is read and the replica written.
	Pace Pace

	whole bool // the next cut counts though nothing has changed: a disk has joined
}

// Pace is the size of one transfer in bytes and how many are under way at once. The zero Pace chooses.
type Pace struct {
	Unit  int64
	Tasks int
	// Checkpoint is after how many bytes an initial copy makes durable what it has done, besides every few seconds: for a store
	// where sending is what costs, and being durable costs nothing more. No more than twice as much is sent again after an
	// interruption, however fast the store is. 0 is no such limit.
	Checkpoint int64
}

// lead is how many bytes a copy may be ahead of its last checkpoint.
func (p Pace) lead() int64 {
	if p.Checkpoint > math.MaxInt64/2 {
		return math.MaxInt64
	}
	return 2 * p.Checkpoint
}

// DiskResult is what one verb did to one disk, in bytes.
type DiskResult struct {
	Name    string        `json:"name"`
	Scanned int64         `json:"bytes_scanned"` // read from the source
	Changed int64         `json:"bytes_changed"` // in blocks that differ
	Sent    int64         `json:"bytes_sent"`    // moved to the store
	Blocks  int64         `json:"blocks"`        // blocks that differ
	Took    time.Duration `json:"-"`
	// Identity is that of the source disk, as the ledger keeps it.
	Identity string `json:"-"`
}

// Captured is the outcome of Capture.
type Captured struct {
	From, To hrl.Pos // equal when nothing changed
	At       time.Time
	// AppConsistent says that the applications had flushed at At.
	AppConsistent bool
	// Moving is of a plan: the disks were written to while they were read, so that the figures are of no one moment.
	Moving bool
	// Disks is also of a cut that has failed: the last one is that on which it did.
	Disks []DiskResult
	// Sizes is the guest bytes of the disks at At, by name.
	Sizes map[string]int64
}

// Unchanged says that the disks are what they were at From.
func (c Captured) Unchanged() bool { return c.From == c.To }

// Delta is the outcome of a whole cycle.
type Delta struct {
	Captured
	Shipped int // cuts put on the shelf, earlier ones that were waiting included
	Applied int // cuts applied
	Points  int // recovery points there are now
	// Sent is the bytes that were moved to the store, by disk: also those of cuts that had been waiting, and of a cycle that failed.
	Sent map[string]int64
}

func (d *Delta) sent(disk string, n int64) {
	if d.Sent == nil {
		d.Sent = map[string]int64{}
	}
	d.Sent[disk] += n
}

// First returns the first ledger of a new relationship. The disks' order is the order of the initial copy.
func First(vm, vault string, owner replica.Owner, disks []replica.Disk, now time.Time) replica.State {
	return replica.State{
		Format: replica.Format, VM: vm, Vault: vault, Replica: hrl.NewID(), Generation: 1, Owner: owner,
		Created: now, Phase: replica.Seeding, PhaseSince: now, Disks: disks,
	}
}

// Finalize completes enable protection after the initial copy: it records the definition that the recovery site needs,
// takes the first delta and with it the first recovery point. Repeating it is harmless.
func (j *Job) Finalize(ctx context.Context, definition json.RawMessage) (Delta, error) {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil {
		return Delta{}, err
	}
	if st.Phase != replica.Seeding {
		return Delta{}, wrongState(st, "finalize protection")
	}
	if st.Applied.IsZero() {
		return Delta{}, fault.New(fault.WrongState, "the initial replication is not complete").Of(j.VM, "")
	}
	switch {
	case st.Received == st.Applied && len(st.Points) == 0: // what this site remembers may be of an earlier attempt
		err = fault.In(j.adopt(ctx, st), j.VM, "")
	case j.Tracker.Position().IsZero(): // and is gone since that attempt, whose logs are on the shelf
		if _, err = j.apply(ctx); err == nil {
			err = j.Readopt(ctx)
		}
	}
	if err != nil {
		return Delta{}, err
	}
	d, err := j.cycle(ctx)
	if err != nil {
		return d, err
	}
	if st, err = j.Replica.Ledger().Load(ctx); err != nil {
		return d, err
	}
	st.Definition = definition
	st.Phase, st.PhaseSince, st.Reason, st.ReasonCode = replica.Replicating, j.Now(), "", ""
	_, err = j.Replica.Ledger().Save(ctx, st)
	return d, err
}
