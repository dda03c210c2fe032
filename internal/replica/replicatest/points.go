package replicatest

import (
	"errors"
	"fmt"
	"testing"

	"sitrep/internal/block"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

// testPreserveTwice begins an apply, gives it up, and takes another way; and one that is interrupted on its way.
func testPreserveTwice(t *testing.T, place Place) {
	ctx := t.Context()
	h := NewHistory("vm", 31, OSLogs(t))
	check(t, h.Begin(ctx, place()))
	check(t, h.Step(ctx, false))
	for round := range 6 {
		check(t, h.receive(ctx, round == 2))
		to := h.state.Pending[0].To
		check(t, h.rep.Points().Preserve(ctx, h.state, to, h.changed[to], false))
		check(t, h.Check(ctx))
		if round%2 == 0 {
			check(t, h.receive(ctx, round == 2)) // a cut that is repeated has another position of the same number
		}
		span := h.state.Pending[0].Span
		check(t, h.rep.Points().Preserve(ctx, h.state, span.To, h.changed[span.To], false))
		check(t, h.rep.Points().Preserve(ctx, h.state, span.To, h.changed[span.To], false))
		s := h.state
		s.Applying = &span
		check(t, h.save(ctx, s))
		check(t, h.overwrite(ctx, span.To, false))
		check(t, h.Check(ctx))
		check(t, h.rep.Points().Sweep(ctx, h.state))
		check(t, h.Close())
		check(t, h.Attach(ctx, place()))
		check(t, h.Recover(ctx, place()))
		check(t, h.Check(ctx))
	}
	to := h.state.Applied.Next()
	all := map[string]*block.Set{"os": block.NewSet(block.Range{Len: h.state.Disks[0].Size})}
	wantCode(t, h.rep.Points().Preserve(ctx, h.state, to, all, true), fault.ReplicaCorrupt) // nothing was preserved before
	_, err := h.rep.Points().Open(ctx, h.state, "no such point")
	wantCode(t, err, fault.PointMissing)
	v, err := h.rep.Points().Open(ctx, h.state, h.state.Points[0].ID)
	check(t, err)
	_, err = v.Disk("no such disk")
	wantCode(t, err, fault.PointMissing)
	check(t, v.Close())
	check(t, h.Close())
}

// testPreserveMore preserves some, for a way that is not taken, and then more for another way.
func testPreserveMore(t *testing.T, place Place) {
	ctx := t.Context()
	h := NewHistory("vm", 41, OSLogs(t))
	check(t, h.Begin(ctx, place()))
	check(t, h.Step(ctx, false))
	all, some := map[string]*block.Set{}, map[string]*block.Set{}
	for _, d := range h.state.Disks {
		all[d.Name] = block.NewSet(block.Range{Len: d.Size})
		some[d.Name] = block.NewSet(block.Range{Off: BlockSize, Len: 2 * BlockSize})
	}
	for range 3 {
		check(t, h.receive(ctx, false))
		span := h.state.Pending[0].Span
		for _, set := range []map[string]*block.Set{some, all} {
			check(t, h.rep.Points().Preserve(ctx, h.state, span.To, set, false))
			check(t, h.rep.Points().Preserve(ctx, h.state, h.state.Applied.Next(), set, false))
		}
		check(t, h.rep.Points().Preserve(ctx, h.state, span.To, some, false))
		check(t, h.rep.Points().Preserve(ctx, h.state, span.To, all, false))
		check(t, h.apply(ctx, false))
		check(t, h.Check(ctx))
	}
	check(t, h.Close())
}

// testHistory leads a VM through many positions.
func testHistory(t *testing.T, place Place) {
	for _, seed := range []uint64{1, 2} {
		h := NewHistory(fmt.Sprint("vm", seed), seed, OSLogs(t))
		check(t, h.Begin(t.Context(), place()))
		for step := range 30 {
			h.Keep = 1 + step%9
			if err := errors.Join(h.Step(t.Context(), step%7 == 3), h.Check(t.Context())); err != nil {
				t.Fatalf("seed %d, step %d: %v", seed, step, err)
			}
			if step%5 == 0 {
				check(t, h.Close())
				check(t, h.Attach(t.Context(), place()))
			}
		}
		check(t, h.Close())
	}
}

// testProven flips a byte of the pages, of which the sums do not know: whatever is read of a point is what was there, or it
// is refused, and it is refused only where the byte is.
func testProven(t *testing.T, place Place) {
	ctx := t.Context()
	h := NewHistory("vm", 71, OSLogs(t))
	h.Keep = 6
	check(t, h.Begin(ctx, place()))
	for range 5 {
		check(t, h.Step(ctx, false))
	}
	check(t, h.Check(ctx))
	refused := 0
	for _, d := range h.state.Disks {
		for i := block.Count(d.Size, BlockSize) - 1; i >= 0; i -= 3 { // the last block, which may be a short one, is among them
			bad := block.Nth(i, BlockSize, d.Size)
			flip(t, h, d, bad.Off+bad.Len/2/512*512)
			for k, point := range h.state.Points {
				hidden := false // by what later steps have preserved
				for _, later := range h.state.Points[k+1:] {
					_, ok := h.changed[later.At][d.Name].Next(bad)
					hidden = hidden || ok
				}
				newest := k == len(h.state.Points)-1
				if h.readAround(t, point, d.Name, bad, newest, hidden) {
					refused++
				}
			}
			flip(t, h, d, bad.Off+bad.Len/2/512*512)
		}
	}
	t.Logf("%d reads were refused", refused)
	check(t, errors.Join(h.Check(ctx), h.Close()))
}

// flip changes a byte of the pages below their sums.
func flip(t *testing.T, h *History, d replica.Disk, off int64) {
	t.Helper()
	check(t, h.withDisk(t.Context(), d, func(p replica.Pages) error {
		b := make([]byte, 512)
		if err := p.ReadAt(t.Context(), b, off); err != nil {
			return err
		}
		b[100] ^= 0x10
		return errors.Join(p.WriteAt(t.Context(), b, off), p.Flush(t.Context()))
	}))
}

// readAround reads a disk of a point in which one block of the pages is bad, and says whether that was refused.
func (h *History) readAround(t *testing.T, point replica.Point, name string, bad block.Range, must, mustNot bool) (refused bool) {
	t.Helper()
	v, err := h.rep.Points().Open(t.Context(), h.state, point.ID)
	check(t, err)
	defer v.Close()
	d, err := v.Disk(name)
	check(t, err)
	want := h.content[point.At][name]
	var around block.Set
	around.Add(block.Range{Len: d.Size()})
	around.Remove(bad)
	for r := range around.All() {
		got := make([]byte, r.Len)
		_, err := d.ReadAt(got, r.Off)
		check(t, err)
		check(t, firstDifference(got, want[r.Off:r.End()]))
	}
	e, err := d.Extent(bad.Off, bad.Len)
	check(t, err)
	if e.Kind == block.Zero && !block.IsZero(want[e.Off:e.End()]) {
		t.Fatalf("%v is said to be zero", e.Range)
	}
	for _, r := range []block.Range{bad, {Off: bad.Off + bad.Len/2, Len: 1}, {Len: d.Size()}} {
		got := make([]byte, r.Len)
		_, err := d.ReadAt(got, r.Off)
		if err == nil {
			check(t, firstDifference(got, want[r.Off:r.End()]))
			if must {
				t.Fatalf("point %s, disk %s: a byte of %v was flipped, and reading %v succeeds", point.ID, name, bad, r)
			}
			continue
		}
		refused = true
		wantCode(t, err, fault.ReplicaCorrupt)
		if e := fault.Find(err); mustNot || e.Disk != name || e.Path == "" || !e.HasOff || e.Off != bad.Off {
			t.Fatalf("point %s, disk %s, flipped in %v, reading %v: %v", point.ID, name, bad, r, err)
		}
	}
	return refused
}
