package resync

import (
	"context"
	"errors"
	"maps"
	"slices"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/track"
)

// healAll gives all disks back what something else has overwritten, before the first slice of any is repaired. It is for
// replicas that preserve disks as a whole: what they preserve of one disk, or of one slice, has everything in it that is not
// healed by then. Where all bytes turn out to be what the sums say, the comparison that follows goes by these: the replica is
// read once. read is the bytes of it, by disk.
func (r *run) healAll(ctx context.Context, cut track.Cut) (read map[string]int64, err error) {
	st := r.state
	current := func(p replica.Point) bool { return p.At == st.Applied }
	if !st.Resync.Deep || st.Applying != nil || !slices.ContainsFunc(st.Points, current) || !replica.PreservesWhole(r.Replica) {
		return nil, nil
	}
	read = map[string]int64{}
	for i, d := range st.Disks {
		if !st.Resync.Sealed[d.Name] {
			continue
		}
		if read[d.Name], err = r.healDisk(ctx, cut, i); err != nil {
			return read, fault.In(err, r.VM, d.Name)
		}
	}
	if len(st.Resync.Sealed) < len(st.Disks) || r.state.Resync.Lost > 0 {
		return read, nil
	}
	return read, r.change(ctx, func(re *replica.Resync) { re.Deep, re.Proven = false, true })
}

func (r *run) healDisk(ctx context.Context, cut track.Cut, i int) (read int64, err error) {
	d := r.state.Disks[i]
	src, err := sourceOf(cut, &d)
	if err != nil {
		return 0, err
	}
	pages, err := r.Replica.Disk(ctx, d)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, pages.Close()) }()
	from := r.state.Resync.Healed[d.Name]
	task := "prove " + d.Name
	r.Meter.Begin(task, d.Size, from)
	defer r.Meter.End(task)
	c := newComparer(ctx, src.Image(), replica.DiskSums{Pages: pages, Of: d}, true, r.pace)
	c.sealed = true
	defer c.stop()
	for s := range c.slices(from) {
		if err := r.heal(ctx, i, pages, s); err != nil {
			return 0, err
		}
		err := r.change(ctx, func(re *replica.Resync) {
			re.Healed = maps.Clone(re.Healed)
			if re.Healed == nil {
				re.Healed = map[string]int64{}
			}
			re.Healed[d.Name] = s.End()
			re.Lost += s.lost
		})
		if err != nil {
			return 0, err
		}
		r.Meter.Add(task, s.Len)
	}
	_, read, _, _, _ = c.totals()
	return read, c.err()
}

// change saves the record of the resynchronization with something changed.
func (r *run) change(ctx context.Context, f func(*replica.Resync)) error {
	st := r.state
	next := *st.Resync
	f(&next)
	st.Resync = &next
	return r.save(ctx, st)
}
