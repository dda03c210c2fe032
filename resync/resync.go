// Package resync compares source and replica block by block and sends only the blocks that differ. It is the way back
// when change logs no longer lead on: a log was lost or damaged, the site forgot its position, the replica was written to.
//
// Blocks are fixed, of the size that was chosen when protection was enabled, and compared by their xxh3-128. The sums of
// the replica are taken from its own table when the ledger's seal proves that table whole and nothing else wrote to the
// pages; otherwise, or when asked for, the replica's bytes are read and the table is made anew (deep).
//
// The disks are gone through in slices. Of each slice the order is the one of replicate: the old content of the blocks
// that differ is preserved, so that every recovery point stays what it is; the ledger says "applying"; pages and sums
// are written and flushed; the ledger says how far the comparison is. An interruption costs the slice that was being
// repaired, at most: the next run finishes it, touching only blocks whose old content is preserved, and goes on behind
// it. While slices are done the pages are no disk of any moment, and are not shown as one: the new position becomes a
// recovery point when the last slice is in and the source is known to have held still; otherwise the next delta makes it
// one.
//
// Blocks that something else wrote to, and of which the source still has what their sums speak of, are healed first: they
// get their content back, so that it is right again in the recovery points that share them. A store that preserves disks as a
// whole (see replica.PreservesWhole) would put everything into the newest point that is not healed yet, so there all disks are
// healed before the first slice is repaired.
package resync

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/progress"
	"sitrep/internal/replica"
	"sitrep/internal/track"
)

// Job is one VM to be resynchronized. A Job is used by one goroutine.
type Job struct {
	VM      string
	Replica replica.Replica // opened for writing
	Tracker track.Tracker
	Keep    int  // recovery points that stay
	Deep    bool // read the replica's bytes instead of trusting its sums
	// Massive is the share of a disk's data, in percent, that has to change for it to be told and the point before it to be held; 0 is never.
	Massive int
	// Accepted are the disks that are taken although nearly all of their data is another.
	Accepted []string
	Meter    progress.Meter
	Log      *slog.Logger
	Now      func() time.Time
	Pace     Pace
}

// Pace is how the disks are read and written. The zero Pace chooses.
type Pace struct {
	Unit  int64 // bytes read at once
	Tasks int   // transfers under way at once
	// Slice is how many different bytes are collected before they are written: what memory a run takes, twice, and
	// what an interruption costs.
	Slice int64
}

func (p Pace) complete() Pace {
	if p.Unit == 0 {
		p.Unit = 1 << 20
	}
	if p.Tasks == 0 {
		p.Tasks = 4
	}
	if p.Slice == 0 {
		p.Slice = 32 << 20
	}
	return p
}

// Result is what a resynchronization did to one disk, in bytes.
type Result struct {
	Name    string `json:"name"`
	Scanned int64  `json:"bytes_scanned"` // read from the source
	Read    int64  `json:"bytes_read"`    // read from the replica
	Changed int64  `json:"bytes_changed"` // in blocks that differ
	Sent    int64  `json:"bytes_sent"`    // of these, not zeros
	Blocks  int64  `json:"blocks"`        // blocks that differ
	// Foreign is how many of Blocks something other than sitrep had written to, as far as the block sums tell.
	Foreign int64 `json:"blocks_foreign"`
	// Sums is how many block sums something else had written to, and were given back what they were.
	Sums int64 `json:"sums_foreign"`
	Took time.Duration
}

func (res *Result) add(n counts) {
	res.Scanned, res.Read, res.Changed, res.Sent = res.Scanned+n.scanned, res.Read+n.read, res.Changed+n.changed, res.Sent+n.sent
	res.Blocks, res.Foreign, res.Sums = res.Blocks+n.blocks, res.Foreign+n.foreign, res.Sums+n.mended
}

// Outcome is what Run did.
type Outcome struct {
	Deep bool
	// Continued says that an interrupted resynchronization was continued.
	Continued bool
	// Consistent says that the replica is the source as of At, and a recovery point. When it is not, because the source went
	// on changing, the next delta makes it so.
	Consistent bool
	// Moving is of a plan: the disks were written to while they were compared, so that the figures are of no one moment.
	Moving bool
	At     time.Time
	Disks  []Result
}

// Run compares and repairs all disks. Afterwards deltas go on from the new position.
func (j *Job) Run(ctx context.Context) (out Outcome, err error) {
	r := &run{Job: j, pace: j.Pace.complete()}
	if r.state, err = j.Replica.Ledger().Load(ctx); err != nil {
		return out, err
	}
	if err := allowed(r.state); err != nil {
		return out, err
	}
	out.Continued = r.state.Resync != nil
	cut, err := j.Tracker.Cut(ctx, hrl.Pos{})
	if err != nil {
		return out, fault.In(err, j.VM, "")
	}
	defer func() { err = errors.Join(err, cut.Close()) }()
	if err := r.begin(ctx, cut); err != nil {
		return out, fault.In(err, j.VM, "")
	}
	out.Deep = r.state.Resync.Deep
	out.At = cut.At()
	if r.state.Applying != nil {
		if err := r.redo(ctx, cut); err != nil {
			return out, fault.In(err, j.VM, "")
		}
	}
	healing, err := r.healAll(ctx, cut)
	if err != nil {
		return out, fault.In(err, j.VM, "")
	}
	for i := range r.state.Disks {
		res, err := r.disk(ctx, cut, i)
		res.add(healing[res.Name])
		out.Disks = append(out.Disks, res) // also what an interrupted one has sent
		if err != nil {
			return out, fault.In(err, j.VM, r.state.Disks[i].Name)
		}
	}
	out.Consistent, err = r.finish(ctx, cut, !out.Continued)
	return out, fault.In(err, j.VM, "")
}

func allowed(st replica.State) error {
	switch st.Phase {
	case replica.Replicating, replica.ResyncRequired, replica.Resynchronizing:
		return nil
	}
	if err := st.CheckHome("resync"); err != nil {
		return err
	}
	return fault.New(fault.WrongState, "resync is not possible: the VM is in state %s since %s",
		st.Phase, st.PhaseSince.UTC().Format(time.RFC3339)).Of(st.VM, "")
}

// run is one Run.
type run struct {
	*Job
	pace  Pace
	state replica.State
}

// begin writes into the ledger that the resynchronization is under way, or leaves the one that is there. What lies on
// the shelf is given up: the comparison with the source brings it too. A source that is another disk is refused before that.
func (r *run) begin(ctx context.Context, cut track.Cut) error {
	st := r.state
	if st.Resync != nil {
		if r.Deep && !st.Resync.Deep && !st.Resync.Proven { // the sums are not to be trusted any more, so nothing compared by them is
			st.Resync.Deep = true
			st.Resync.Cursors = map[string]int64{}
			return r.save(ctx, st)
		}
		return nil
	}
	proven, sealed, err := r.proven(ctx)
	if err == nil {
		err = r.sameDisks(ctx, cut, sealed)
	}
	if err != nil {
		return err
	}
	if !proven {
		if err := r.leave(ctx, &st, sealed); err != nil {
			return err
		}
	}
	st.Phase, st.PhaseSince = replica.Resynchronizing, r.Now()
	st.Resync = &replica.Resync{Started: r.Now(), Deep: r.Deep || !proven, Sealed: sealed, Cursors: map[string]int64{}, Fresh: !proven,
		Began: st.Applied}
	st.Received, st.Pending = st.Applied, nil
	for i := range st.Disks {
		st.Disks[i].VerifyCursor = 0
	}
	if err := r.save(ctx, st); err != nil || st.Applying != nil || len(sealed) == len(st.Disks) {
		return err
	}
	return r.sealRest(ctx)
}

// leave makes st a ledger that a new history can begin with, of a replica that is not what the ledger says. Nothing is overwritten at a
// position that the pages may not be at: it goes on behind all steps that are there. Points of older versions have no seals of their own:
// of those that are seen through sums in doubt nothing could be proved any more. The others are judged at the end.
func (r *run) leave(ctx context.Context, st *replica.State, sealed map[string]bool) error {
	if len(sealed) < len(st.Disks) {
		ids, err := replica.UnprovenPoints(ctx, r.Replica, *st)
		if err != nil {
			return err
		}
		r.warnLost(st.LosePoints(func(p replica.Point) bool { return len(p.Seals) < len(p.Sizes) && slices.Contains(ids, p.ID) }))
	}
	var at hrl.Pos
	if st.Applying != nil {
		_, _, err := r.Replica.Points().Preserved(ctx, *st, st.Applying.To)
		if !fault.Is(err, fault.PointMissing) {
			return err
		}
		at, st.Applying = st.Applying.To, nil // what was overwritten is nowhere
	} else {
		var err error
		if at, err = r.Replica.Points().Reached(ctx, *st); err != nil {
			return err
		}
	}
	if at == st.Applied {
		return nil
	}
	st.Applied, st.Consistent = at, false
	st.Disks = slices.Clone(st.Disks)
	for i := range st.Disks { // what the ledger says is of pages at another position
		st.Disks[i].Seal, st.Disks[i].Stamp = nil, ""
	}
	return nil
}

// warnLost says which recovery points are lost.
func (r *run) warnLost(lost []replica.Point) {
	for _, p := range lost {
		r.Log.Warn("a recovery point is lost: what it was seen through is not what it was", "vm", r.VM, "point", p.ID)
	}
}

// sealRest looks at the sums of the disks that could not be opened before the ledger said Resynchronizing.
func (r *run) sealRest(ctx context.Context) error {
	st := r.state
	resync := *st.Resync
	resync.Sealed = map[string]bool{}
	maps.Copy(resync.Sealed, st.Resync.Sealed)
	for _, d := range st.Disks {
		if resync.Sealed[d.Name] {
			continue
		}
		_, seal, err := r.provenDisk(ctx, d)
		if err != nil {
			return err
		}
		if seal {
			resync.Sealed[d.Name] = true
		}
	}
	st.Resync = &resync
	return r.save(ctx, st)
}

func (r *run) save(ctx context.Context, st replica.State) (err error) {
	r.state, err = r.Replica.Ledger().Save(ctx, st)
	return err
}

// proven says whether the block sums of all disks can be trusted: the pages are as the ledger left them, and the seal
// proves the table. sealed is the disks of which the seal does so, whatever became of the pages.
func (r *run) proven(ctx context.Context) (proven bool, sealed map[string]bool, err error) {
	sealed = map[string]bool{}
	if r.state.Applying != nil {
		return false, sealed, nil
	}
	proven = true
	for _, d := range r.state.Disks {
		same, seal, err := r.provenDisk(ctx, d)
		if err != nil && !fault.Is(err, fault.ReplicaChanged) {
			return false, nil, err
		}
		proven = proven && same && seal
		if seal {
			sealed[d.Name] = true
		}
	}
	return proven, sealed, nil
}

// provenDisk says whether the pages of a disk are the same as the ledger left them, and whether the seal proves its sums.
func (r *run) provenDisk(ctx context.Context, d replica.Disk) (same, sealed bool, err error) {
	pages, err := r.Replica.Disk(ctx, d)
	if err != nil {
		return false, false, err
	}
	defer pages.Close()
	stamp, err := pages.Stamp(ctx)
	if err != nil || d.Seal == nil {
		return false, false, err
	}
	seal, err := replica.DiskSums{Pages: pages, Of: d}.Seal(ctx)
	return stamp == d.Stamp, err == nil && seal == *d.Seal, err
}

// disk compares and repairs one disk from its cursor on.
func (r *run) disk(ctx context.Context, cut track.Cut, i int) (res Result, err error) {
	began := time.Now()
	d := &r.state.Disks[i]
	res.Name = d.Name
	src, err := sourceOf(cut, d)
	if err != nil {
		return res, err
	}
	pages, err := r.Replica.Disk(ctx, *d)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, pages.Close()) }()
	if err := r.grow(ctx, i, src.Size(), pages); err != nil {
		return res, err
	}
	from := r.state.Resync.Cursors[d.Name]
	task := "compare " + d.Name
	r.Meter.Begin(task, src.Size(), from)
	defer r.Meter.End(task)

	c := newComparer(ctx, src.Image(), replica.DiskSums{Pages: pages, Of: r.state.Disks[i]}, r.state.Resync.Deep, r.pace)
	c.sealed = r.state.Resync.Sealed[d.Name]
	defer c.stop()
	sent := r.state.Resync.Sent
	defer func() {
		if res.add(c.totals()); err != nil { // of what was compared, not all is sent
			res.Sent = r.state.Resync.Sent - sent
		}
		res.Took = time.Since(began)
	}()
	for s := range c.slices(from) {
		if err := r.repair(ctx, i, pages, s); err != nil {
			return res, err
		}
		r.Meter.Add(task, s.Len)
	}
	if n := c.lostBlocks(); n > 0 && c.err() == nil {
		r.Log.Warn("something else wrote to blocks of the replica, and the source has changed them since: recovery points from "+
			"before that hold what was written there", "vm", r.VM, "disk", d.Name, "blocks", n)
	}
	return res, c.err()
}

func sourceOf(cut track.Cut, d *replica.Disk) (track.CutDisk, error) {
	for _, c := range cut.Disks() {
		if c.Name() != d.Name {
			continue
		}
		if c.Size() < d.Size {
			return nil, fault.New(fault.DiskShrunk, "the disk has %d bytes, its replica has %d", c.Size(), d.Size).At(d.Source)
		}
		return c, nil
	}
	return nil, fault.New(fault.DiskMissing, "the site file has no disk of this name any more").At(d.Source)
}

// grow makes the replica as large as the source. The new bytes are zero on no recovery point's disk: points keep their sizes.
func (r *run) grow(ctx context.Context, i int, size int64, pages replica.Pages) error {
	st := r.state
	d := st.Disks[i]
	if size == d.Size {
		return nil
	}
	if err := pages.Grow(ctx, size); err != nil {
		return err
	}
	st.Disks = append([]replica.Disk(nil), st.Disks...)
	tail := d.Size - d.Size%d.BlockSize // its sum is of a shorter block
	if tail < d.Size {
		if err := resum(ctx, pages, block.Range{Off: tail, Len: min(d.BlockSize, size-tail)}, d.BlockSize); err != nil {
			return err
		}
	}
	if err := pages.Flush(ctx); err != nil {
		return err
	}
	d.Size, d.Seeded, d.Seal = size, size, nil
	st.Disks[i] = d
	return r.save(ctx, st)
}

// finish makes the tracker stand where the replica stands and ends the resynchronization. The replica becomes a recovery
// point when all of it was compared with one cut that held still.
func (r *run) finish(ctx context.Context, cut track.Cut, whole bool) (bool, error) {
	st := r.state
	st.Disks = append([]replica.Disk(nil), st.Disks...)
	base := make(map[string]track.Base, len(st.Disks))
	for i := range st.Disks {
		d := &st.Disks[i]
		pages, err := r.Replica.Disk(ctx, *d)
		if err != nil {
			return false, err
		}
		defer pages.Close()
		sums := replica.DiskSums{Pages: pages, Of: *d}
		seal, err := sums.Seal(ctx)
		if err != nil {
			return false, err
		}
		if d.Stamp, err = pages.Stamp(ctx); err != nil {
			return false, err
		}
		d.Seal, base[d.Name] = &seal, sums
		if src, err := sourceOf(cut, d); err == nil {
			d.Identity, d.Anew = src.Identity().String(), false
		}
	}
	r.assess(cut, &st)
	at, err := r.end(ctx, &st)
	if err != nil {
		return false, err
	}
	// The tracker first: interrupted between the two, the resynchronization is still under way, and ends with the next run.
	if err := r.Tracker.Rebase(ctx, at, base); err != nil {
		return false, err
	}
	still := whole && cut.Check(ctx) == nil
	st.Consistent = still
	if still {
		if err := cut.Confirm(ctx); err != nil {
			return false, err
		}
		st.AsOf = cut.At()
		if newest(st) != st.Applied {
			st.AddPoint(st.PointAt(cut.At(), cut.AppConsistent()), r.Keep)
		}
	}
	st.Phase, st.PhaseSince = replica.Replicating, r.Now()
	fresh := st.Resync.Fresh
	st.Reason, st.ReasonCode, st.Resync = "", "", nil
	if err := r.save(ctx, st); err != nil {
		return still, err
	}
	return still, r.sweep(ctx, fresh)
}

// end is the position that the resynchronization ends at: a new one where nothing was repaired, but the replica was not what the ledger
// says, or has become larger. A position is of one content, and a point of one size.
func (r *run) end(ctx context.Context, st *replica.State) (hrl.Pos, error) {
	n := len(st.Points)
	grown := n > 0 && st.Points[n-1].At == st.Applied && !maps.Equal(st.Points[n-1].Sizes, st.Sizes())
	if !grown && !(st.Resync.Fresh && st.Applied == st.Resync.Began) {
		return st.Applied, nil
	}
	to := st.Applied.Next()
	if err := r.Replica.Points().Preserve(ctx, *st, to, nil, false); err != nil {
		return to, err
	}
	st.Applied, st.Received = to, to
	return to, nil
}

// sweep removes what no point needs any more, and, where that may have come to points, those that cannot be proved.
func (r *run) sweep(ctx context.Context, fresh bool) (err error) {
	drop := replica.DropLost
	if fresh {
		drop = replica.DropUnproven
	} else if err = r.Replica.Points().Sweep(ctx, r.state); !fault.Is(err, fault.PointMissing) {
		return err
	}
	var lost []replica.Point
	r.state, lost, err = drop(ctx, r.Replica, r.state)
	if r.warnLost(lost); err != nil || !fresh {
		return err
	}
	if err = r.Replica.Points().Sweep(ctx, r.state); fault.Is(err, fault.PointMissing) {
		err = nil // it is proved all the same
	}
	return err
}
