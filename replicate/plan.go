package replicate

import (
	"context"
	"errors"

	"sitrep/internal/fault"
	"sitrep/internal/track"
)

// PlanDelta says what Delta would do, by doing all of it that changes nothing: it takes the cut, reads the disks and counts
// what differs. Sent is what the new logs and the waiting ones would move. The replica may be opened for reading only.
func (j *Job) PlanDelta(ctx context.Context) (c Captured, err error) {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil {
		return c, err
	}
	if err := replicating(st, "delta"); err != nil {
		return c, err
	}
	if err := joinsNext(st, "a plan of a delta"); err != nil {
		return c, err
	}
	steps, err := j.queue(st)
	if err != nil {
		return c, err
	}
	from := j.Tracker.Position()
	cut, err := j.Tracker.Cut(ctx, from)
	if err != nil {
		return c, fault.In(err, j.VM, "")
	}
	defer func() { err = errors.Join(err, cut.Close()) }()
	c = Captured{From: from, To: from, At: cut.At()}
	for _, d := range cut.Disks() {
		r, err := j.countDisk(ctx, d)
		if err != nil {
			return c, fault.In(err, j.VM, d.Name())
		}
		for _, s := range steps {
			r.Sent += s.logs[d.Name()].size
		}
		if r.Blocks > 0 || d.Size() != d.SizeBefore() {
			c.To = from.Next()
		}
		c.Disks = append(c.Disks, r)
	}
	err = cut.Check(ctx)
	c.Moving = fault.Is(err, fault.DiskModified)
	if c.Moving { // nothing relies on what was counted
		err = nil
	}
	return c, fault.In(err, j.VM, "")
}

func (j *Job) countDisk(ctx context.Context, d track.CutDisk) (DiskResult, error) {
	r := DiskResult{Name: d.Name()}
	if d.Untouched() {
		return r, nil
	}
	tally := newTally(d.BlockSize())
	task := "read " + d.Name()
	j.Meter.Begin(task, d.Size(), 0)
	defer j.Meter.End(task)
	stats, err := d.Scan(ctx, j.scanOptions(task), func(_ context.Context, ch track.Change) error {
		tally.add(ch)
		return nil
	})
	r.Scanned, r.Changed = stats.Scanned, stats.Changed
	r.Blocks, r.Sent = tally.blocks.Load(), tally.data.Load()
	return r, err
}
