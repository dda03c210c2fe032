package resync

import (
	"context"
	"maps"
	"slices"

	"sitrep/internal/disk"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/track"
)

// A comparison takes whatever the source holds, also what another disk holds that has come to stand at its path, and what an attacker
// has made of it. As for a delta, so here: nearly all of it is refused before anything is written, and what is less and still
// massive holds the newest recovery point against retention.

// massiveFloor is how many bytes of data have to change before their share means anything.
const massiveFloor = 4 << 20

// sameDisks refuses a source of which nearly all data is another than what its replica holds, by the sums that their seals prove.
func (r *run) sameDisks(ctx context.Context, cut track.Cut, sealed map[string]bool) error {
	for i := range r.state.Disks {
		d := &r.state.Disks[i]
		if !sealed[d.Name] || d.Anew || slices.Contains(r.Accepted, d.Name) {
			continue
		}
		src, err := sourceOf(cut, d)
		if err == nil {
			err = r.sameDisk(ctx, src, *d)
		}
		if err != nil {
			return fault.In(err, r.VM, d.Name)
		}
	}
	return nil
}

func (r *run) sameDisk(ctx context.Context, src track.CutDisk, d replica.Disk) error {
	pages, err := r.Replica.Disk(ctx, d)
	if err != nil {
		return err
	}
	defer pages.Close()
	looked, differ, had, err := replica.DiskSums{Pages: pages, Of: d}.Sample(ctx, src.Image())
	if err != nil || looked == 0 || !track.Replaced(disk.ParseIdentity(d.Identity), src.Identity(), had, had/looked*differ) {
		return err
	}
	return fault.New(fault.DiskReplaced, "of %d blocks of data that were looked at %d are not what the replica has", looked, differ).At(d.Source)
}

// countIn adds to the record how much data a slice held, and how much of that was changed.
func (s *slice) countIn(re *replica.Resync, name string) {
	add := func(to *map[string]int64, n int64) {
		*to = maps.Clone(*to)
		if *to == nil {
			*to = map[string]int64{}
		}
		(*to)[name] += n
	}
	add(&re.Data, s.data)
	add(&re.Overwritten, s.gone)
}

// assess holds the newest recovery point when the comparison has changed so much of a disk that somebody has to look at it.
func (r *run) assess(cut track.Cut, st *replica.State) {
	if r.Massive == 0 || len(st.Points) == 0 {
		return
	}
	for _, d := range st.Disks {
		m := replica.Massive{Disk: d.Name, At: st.Applied, CutAt: cut.At(), Since: r.Now().UTC(), Changed: st.Resync.Overwritten[d.Name], Data: st.Resync.Data[d.Name]}
		if m.Changed < massiveFloor || m.Percent() < r.Massive {
			continue
		}
		r.Log.Warn("a massive change: the recovery point before it is held", "vm", r.VM, "disk", d.Name, "changed_bytes", m.Changed, "of", m.Data)
		st.HoldBefore(m)
		return
	}
}
