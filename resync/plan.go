package resync

import (
	"context"
	"errors"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/track"
)

// Plan says what Run would do, by doing all of it that changes nothing: it compares source and replica as Run does, from
// where an interrupted resynchronization stopped, and counts what differs. The replica may be opened for reading only.
func (j *Job) Plan(ctx context.Context) (out Outcome, err error) {
	r := &run{Job: j, pace: j.Pace.complete()}
	if r.state, err = j.Replica.Ledger().Load(ctx); err != nil {
		return out, err
	}
	if err := allowed(r.state); err != nil {
		return out, err
	}
	cursors := map[string]int64{}
	var sealed map[string]bool
	if under := r.state.Resync; under != nil {
		out.Continued, out.Deep = true, under.Deep || j.Deep
		if under.Deep || !j.Deep {
			cursors = under.Cursors
		}
		sealed = under.Sealed
	} else {
		var proven bool
		proven, sealed, err = r.proven(ctx)
		if err != nil {
			return out, fault.In(err, j.VM, "")
		}
		out.Deep = j.Deep || !proven
	}
	cut, err := j.Tracker.Cut(ctx, hrl.Pos{})
	if err != nil {
		return out, fault.In(err, j.VM, "")
	}
	defer func() { err = errors.Join(err, cut.Close()) }()
	out.At = cut.At()
	for _, d := range r.state.Disks {
		res, err := r.count(ctx, cut, d, counting{from: cursors[d.Name], deep: out.Deep, sealed: sealed[d.Name]})
		if err != nil {
			return out, fault.In(err, j.VM, d.Name)
		}
		out.Disks = append(out.Disks, res)
	}
	err = cut.Check(ctx)
	out.Moving = fault.Is(err, fault.DiskModified)
	if out.Moving { // nothing relies on what was counted
		err = nil
	}
	return out, fault.In(err, j.VM, "")
}

// counting is how a disk is compared.
type counting struct {
	from         int64
	deep, sealed bool // see comparer
}

// count compares one disk from an offset on.
func (r *run) count(ctx context.Context, cut track.Cut, d replica.Disk, how counting) (res Result, err error) {
	began := time.Now()
	res.Name = d.Name
	src, err := sourceOf(cut, &d)
	if err != nil {
		return res, err
	}
	pages, err := r.Replica.Disk(ctx, d)
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, pages.Close()) }()
	task := "compare " + d.Name
	r.Meter.Begin(task, src.Size(), how.from)
	defer r.Meter.End(task)

	c := newComparer(ctx, src.Image(), replica.DiskSums{Pages: pages, Of: d}, how.deep, r.pace)
	c.sealed = how.sealed
	defer c.stop()
	for s := range c.slices(how.from) {
		r.Meter.Add(task, s.Len)
	}
	res.add(c.totals())
	if err := c.err(); err != nil {
		return res, err
	}
	err = res.addGrown(src.Image(), d, src.Size())
	res.Took = time.Since(began)
	return res, err
}

// addGrown counts what the source has behind the end of the replica: all of it differs, as far as it is not zero.
func (res *Result) addGrown(src disk.Image, d replica.Disk, size int64) error {
	for off := d.Size; off < size; {
		e, err := src.Extent(off, size-off)
		if err != nil {
			return err
		}
		if e.Kind == block.Data {
			res.Scanned, res.Changed, res.Sent = res.Scanned+e.Len, res.Changed+e.Len, res.Sent+e.Len
			res.Blocks += block.Count(e.Len, d.BlockSize)
		}
		off = e.End()
	}
	return nil
}
