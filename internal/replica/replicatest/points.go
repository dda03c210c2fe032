package replicatest

import (
	"errors"
	"fmt"
	"testing"

	"sitrep/internal/block"
	"sitrep/internal/fault"
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
