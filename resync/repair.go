package resync

import (
	"context"
	"maps"
	"slices"

	"golang.org/x/sync/errgroup"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
	"sitrep/internal/track"
)

// repair brings one slice of a disk into the replica: see the package comment for the order.
func (r *run) repair(ctx context.Context, i int, pages replica.Pages, s *slice) error {
	if err := r.heal(ctx, i, pages, s); err != nil {
		return err
	}
	if len(s.runs) == 0 && len(s.stale) == 0 {
		return r.compared(ctx, i, s)
	}
	if err := r.open(ctx, i, s); err != nil {
		return err
	}
	if err := write(ctx, pages, s, r.state.Disks[i].BlockSize, r.pace); err != nil {
		return err
	}
	for _, d := range s.runs {
		r.state.Resync.Sent += int64(len(d.data))
	}
	return r.shut(ctx, i, pages, s)
}

// heal gives blocks back what they held before something else wrote to them, so that it is right again in all recovery
// points that share them. It is durable on return. Interrupted, it is done again: sums and position stay what they are.
func (r *run) heal(ctx context.Context, i int, pages replica.Pages, s *slice) error {
	if len(s.rotten) == 0 {
		return nil
	}
	if err := write(ctx, pages, &slice{runs: s.rotten}, r.state.Disks[i].BlockSize, r.pace); err != nil {
		return err
	}
	for _, d := range s.rotten {
		r.state.Resync.Sent += int64(len(d.data))
	}
	return pages.Flush(ctx)
}

// compared records that nothing differs in a slice.
func (r *run) compared(ctx context.Context, i int, s *slice) error {
	st := r.state
	d := st.Disks[i]
	resync := *st.Resync
	resync.Cursors = maps.Clone(resync.Cursors)
	resync.Cursors[d.Name] = s.End()
	s.countIn(&resync, d.Name)
	st.Resync = &resync
	return r.save(ctx, st)
}

// open preserves what the slice overwrites and tells the ledger that the pages are between two positions.
func (r *run) open(ctx context.Context, i int, s *slice) error {
	st := r.state
	to := st.Applied.Next()
	d := st.Disks[i]
	overwritten := map[string]*block.Set{d.Name: s.overwrites()}
	if err := r.Replica.Points().Preserve(ctx, st, to, overwritten, false); err != nil {
		return err
	}
	st.Disks = slices.Clone(st.Disks)
	st.Disks[i].Seal, st.Disks[i].Stamp = nil, ""
	resync := *st.Resync
	resync.Slice = &replica.Slice{Disk: d.Name, Off: s.Off, Len: s.Len}
	st.Resync, st.Applying = &resync, &replica.Span{From: st.Applied, To: to}
	return r.save(ctx, st)
}

// shut makes the slice durable and tells the ledger so.
func (r *run) shut(ctx context.Context, i int, pages replica.Pages, s *slice) error {
	if err := pages.Flush(ctx); err != nil {
		return err
	}
	stamp, err := pages.Stamp(ctx)
	if err != nil {
		return err
	}
	st := r.state
	st.Disks = slices.Clone(st.Disks)
	d := &st.Disks[i]
	d.Stamp = stamp
	resync := *st.Resync
	resync.Cursors = maps.Clone(resync.Cursors)
	resync.Cursors[d.Name], resync.Slice = s.End(), nil
	s.countIn(&resync, d.Name)
	st.Resync = &resync
	st.Applied, st.Received, st.Applying, st.Consistent = st.Applying.To, st.Applying.To, nil, false
	return r.save(ctx, st)
}

// write writes the blocks of a slice and their sums. Nothing is durable before the flush.
func write(ctx context.Context, pages replica.Pages, s *slice, blockSize int64, p Pace) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(p.Tasks)
	for _, d := range s.runs {
		g.Go(func() error {
			if d.data == nil {
				return pages.ZeroAt(gctx, d.Off, d.Len)
			}
			return pages.WriteAt(gctx, d.data, d.Off)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, d := range s.runs {
		first := d.Off / blockSize
		var err error
		if d.sums == nil {
			err = pages.ClearSums(ctx, first, block.Count(d.Len, blockSize))
		} else {
			err = pages.StoreSums(ctx, first, d.sums)
		}
		if err != nil {
			return err
		}
	}
	for i, sum := range s.stale {
		if err := pages.StoreSums(ctx, i, []sums.Sum{sum}); err != nil {
			return err
		}
	}
	return nil
}

// redo finishes what was being overwritten when an earlier run was interrupted. Of these blocks it is not known whether
// they are old or new, so their bytes are read; and only blocks whose old content is preserved may be changed. What the
// source has changed besides is found by the comparison, or by the next delta.
func (r *run) redo(ctx context.Context, cut track.Cut) error {
	ranges, all, err := r.Replica.Points().Preserved(ctx, r.state, r.state.Applying.To)
	if err != nil {
		return err
	}
	at := *r.state.Resync
	for i := range r.state.Disks {
		name := r.state.Disks[i].Name
		if at.Slice != nil && at.Slice.Disk != name {
			continue
		}
		within := ranges[name]
		if all {
			within = block.NewSet(block.Range{Len: r.state.Disks[i].Size})
		}
		if err := r.redoDisk(ctx, cut, i, at.Slice, within); err != nil {
			return fault.In(err, r.VM, name)
		}
	}
	st := r.state
	st.Applied, st.Received, st.Applying, st.Consistent = st.Applying.To, st.Applying.To, nil, false
	resync := *st.Resync
	if s := resync.Slice; s != nil {
		resync.Cursors = maps.Clone(resync.Cursors)
		resync.Cursors[s.Disk] = s.Off // the comparison of the slice is done again, from what it has become
		resync.Slice = nil
	}
	st.Resync = &resync
	return r.save(ctx, st)
}

// redoDisk makes the blocks of a disk that an interrupted step may have touched what the source has now.
func (r *run) redoDisk(ctx context.Context, cut track.Cut, i int, s *replica.Slice, within *block.Set) error {
	d := r.state.Disks[i]
	src, err := sourceOf(cut, &d)
	if err != nil {
		return err
	}
	pages, err := r.Replica.Disk(ctx, d)
	if err != nil {
		return err
	}
	defer pages.Close()
	whole := block.Range{Len: d.Size}
	if s != nil {
		whole = block.Range{Off: s.Off, Len: s.Len}
	}
	for run := range within.Chunks(r.pace.Unit) {
		part := run.Outward(d.BlockSize).Intersect(block.Range{Len: d.Size})
		if part = part.Intersect(whole); part.Empty() {
			continue
		}
		if err := copyBlocks(ctx, src, pages, part, d.BlockSize); err != nil {
			return err
		}
	}
	return pages.Flush(ctx)
}

// copyBlocks copies whole blocks from the source and sums them.
func copyBlocks(ctx context.Context, src track.CutDisk, pages replica.Pages, part block.Range, blockSize int64) error {
	buf := durable.AlignedBuffer(int(part.Len))
	if err := durable.ReadFull(src.Image(), buf, part.Off); err != nil {
		return err
	}
	if err := pages.WriteAt(ctx, buf, part.Off); err != nil {
		return err
	}
	return pages.StoreSums(ctx, part.Off/blockSize, sumsOf(buf, blockSize))
}

func sumsOf(buf []byte, blockSize int64) []sums.Sum {
	out := make([]sums.Sum, block.Count(int64(len(buf)), blockSize))
	for i := range out {
		b := block.Nth(int64(i), blockSize, int64(len(buf)))
		out[i] = sums.Of(buf[b.Off:b.End()])
	}
	return out
}

// resum makes the sums of a range from the pages' own bytes.
func resum(ctx context.Context, pages replica.Pages, part block.Range, blockSize int64) error {
	buf := durable.AlignedBuffer(int(part.Len))
	if err := pages.ReadAt(ctx, buf, part.Off); err != nil {
		return err
	}
	return pages.StoreSums(ctx, part.Off/blockSize, sumsOf(buf, blockSize))
}

// newest is the position of the newest recovery point, zero when there is none.
func newest(st replica.State) hrl.Pos {
	if n := len(st.Points); n > 0 {
		return st.Points[n-1].At
	}
	return hrl.Pos{}
}
