package resync

import (
	"context"
	"maps"
	"slices"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
	"sitrep/internal/track"
)

// A comparison takes whatever the source holds, also what another disk holds that has come to stand at its path, and what an attacker
// has made of it. As for a delta, so here: nearly all of it is refused before anything is written, and what is less and still
// massive holds the newest recovery point against retention.

// samples is how many blocks of a disk are looked at, at the most, to tell whether it is another one.
const samples = 512

// massiveFloor is how many bytes of data have to change before their share means anything.
const massiveFloor = 4 << 20

// sample is a block that holds data, and its sum.
type sample struct {
	block int64
	sum   sums.Sum
}

// sameDisks refuses a source of which nearly all data is another than what its replica holds, by the sums that their seals prove.
func (r *run) sameDisks(ctx context.Context, cut track.Cut, sealed map[string]bool) error {
	for i := range r.state.Disks {
		d := &r.state.Disks[i]
		if !sealed[d.Name] || slices.Contains(r.Accepted, d.Name) {
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
	list, blocks, err := sampled(ctx, replica.DiskSums{Pages: pages, Of: d})
	if err != nil || len(list) == 0 {
		return err
	}
	lost, buf := int64(0), durable.AlignedBuffer(int(d.BlockSize))
	for _, s := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := block.Nth(s.block, d.BlockSize, d.Size)
		if err := durable.ReadFull(src.Image(), buf[:b.Len], b.Off); err != nil {
			return err
		}
		if sums.Of(buf[:b.Len]) != s.sum {
			lost++
		}
	}
	had, n := blocks*d.BlockSize, int64(len(list))
	if !track.Replaced(disk.ParseIdentity(d.Identity), src.Identity(), had, had/n*lost) {
		return nil
	}
	return fault.New(fault.DiskReplaced, "of %d blocks of data that were looked at %d are not what the replica has", n, lost).At(d.Source)
}

// sampled is some blocks of a disk that hold data, evenly spread, and how many there are.
func sampled(ctx context.Context, of replica.DiskSums) (list []sample, blocks int64, err error) {
	stride := int64(1)
	err = of.All(ctx, func(i int64, sum sums.Sum) error {
		if blocks%stride == 0 {
			list = append(list, sample{i, sum})
		}
		blocks++
		if len(list) == 2*samples { // every second one stays
			for k := range samples {
				list[k] = list[2*k]
			}
			list, stride = list[:samples], 2*stride
		}
		return nil
	})
	return list, blocks, err
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
		r.Log.Warn("a massive change: the recovery point before it is held", "vm", r.VM, "disk", d.Name, "changed", m.Changed, "data", m.Data)
		st.HoldBefore(m)
		return
	}
}
