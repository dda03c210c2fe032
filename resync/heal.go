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
// read once. Block sums that are not what the ledger sealed are mended before, where that can be done. What it did is counted by
// disk.
func (r *run) healAll(ctx context.Context, cut track.Cut) (did map[string]counts, err error) {
	st := r.state
	current := func(p replica.Point) bool { return p.At == st.Applied }
	if !st.Resync.Deep || st.Applying != nil || !slices.ContainsFunc(st.Points, current) || !replica.PreservesWhole(r.Replica) {
		return nil, nil
	}
	did = map[string]counts{}
	for i, d := range st.Disks {
		var n counts
		if !st.Resync.Sealed[d.Name] {
			if n, err = r.mendDisk(ctx, cut, i); err != nil {
				return did, fault.In(err, r.VM, d.Name)
			}
		}
		if r.state.Resync.Sealed[d.Name] {
			healed, err := r.healDisk(ctx, cut, i)
			if err != nil {
				return did, fault.In(err, r.VM, d.Name)
			}
			n.add(healed)
		}
		did[d.Name] = n
	}
	if len(r.state.Resync.Sealed) < len(st.Disks) || r.state.Resync.Lost > 0 {
		return did, nil
	}
	return did, r.change(ctx, func(re *replica.Resync) { re.Deep, re.Proven = false, true })
}

func (r *run) healDisk(ctx context.Context, cut track.Cut, i int) (n counts, err error) {
	d := r.state.Disks[i]
	src, err := sourceOf(cut, &d)
	if err != nil {
		return n, err
	}
	pages, err := r.Replica.Disk(ctx, d)
	if err != nil {
		return n, err
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
			return n, err
		}
		err := r.change(ctx, func(re *replica.Resync) {
			re.Healed = healed(re.Healed, d.Name, s.End())
			re.Lost += s.lost
		})
		if err != nil {
			return n, err
		}
		r.Meter.Add(task, s.Len)
	}
	return c.healing(), c.err()
}

// healed is the record of how far disks are healed, with one more.
func healed(m map[string]int64, disk string, to int64) map[string]int64 {
	m = maps.Clone(m)
	if m == nil {
		m = map[string]int64{}
	}
	m[disk] = to
	return m
}

// change saves the record of the resynchronization with something changed.
func (r *run) change(ctx context.Context, f func(*replica.Resync)) error {
	st := r.state
	next := *st.Resync
	f(&next)
	st.Resync = &next
	return r.save(ctx, st)
}
