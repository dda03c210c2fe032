package replicatest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"sitrep/internal/block"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
)

// recovery is who takes over in the tests.
func recovery() replica.Owner {
	return replica.Owner{Site: "recovery", Host: "h9", Since: clock(7)}
}

// takes is what a failover makes of the ledger.
func takes(generation uint64) func(replica.State) (replica.State, error) {
	return func(s replica.State) (replica.State, error) {
		s.Generation, s.Owner, s.Phase = generation, recovery(), replica.FailoverStarted
		return s, nil
	}
}

// Seize takes the replica over: h is then the history of the new owner. A Seize that was interrupted is repeated.
func (h *History) Seize(ctx context.Context, store replica.Store) error {
	generation := h.state.Generation + 1
	if h.state.Owner == recovery() {
		generation--
	}
	h.rep, h.state.Owner, h.state.Generation = nil, recovery(), generation
	r, err := store.Seize(ctx, h.VM, takes(generation))
	if err != nil {
		return err
	}
	h.rep = r
	h.state, err = r.Ledger().Load(ctx)
	return err
}

// Interrupt brings the history to the middle of an apply: half of the pages of a cut are overwritten.
func (h *History) Interrupt(ctx context.Context) error {
	if err := h.receive(ctx, true); err != nil {
		return err
	}
	span := h.state.Pending[0].Span
	if err := h.rep.Points().Preserve(ctx, h.state, span.To, h.changed[span.To], false); err != nil {
		return err
	}
	s := h.state
	s.Applying = &span
	return errors.Join(h.save(ctx, s), h.overwrite(ctx, span.To, false))
}

// Sign puts the stamps of the pages into the ledger, as an engine does when it is done with them.
func (h *History) Sign(ctx context.Context) error {
	stamps, err := h.stamps(ctx)
	s := h.state
	s.Disks = slices.Clone(s.Disks)
	for i := range stamps {
		s.Disks[i].Stamp = stamps[i]
	}
	return errors.Join(err, h.save(ctx, s))
}

// Signed fails unless the pages are as the ledger says that they were left, where it says so.
func (h *History) Signed(ctx context.Context) error {
	stamps, err := h.stamps(ctx)
	for i := range stamps {
		if d := h.state.Disks[i]; h.state.Applying == nil && d.Stamp != "" && d.Stamp != stamps[i] {
			err = errors.Join(err, fmt.Errorf("disk %s has the stamp %q, the ledger says %q", d.Name, stamps[i], d.Stamp))
		}
	}
	return err
}

func (h *History) stamps(ctx context.Context) (out []string, err error) {
	for _, d := range h.state.Disks {
		err = errors.Join(err, h.withDisk(ctx, d, func(p replica.Pages) error {
			s, err := p.Stamp(ctx)
			out = append(out, s)
			return err
		}))
	}
	return out, err
}

// Run is what a run has open when it is taken over from.
type Run struct {
	replica.Replica
	state replica.State
	pages []replica.Pages
}

// OpenRun opens the disks of the history's replica as the run that works on it.
func (h *History) OpenRun(t *testing.T) *Run {
	t.Helper()
	o := &Run{Replica: h.rep, state: h.state}
	t.Cleanup(func() { o.Replica.Close() })
	for _, d := range h.state.Disks {
		p, err := h.rep.Disk(t.Context(), d)
		check(t, err)
		t.Cleanup(func() { p.Close() })
		o.pages = append(o.pages, p)
	}
	return o
}

// GoesOn does everything that a run can do which does not know that it was taken over from. None of it may be seen by the
// new owner; what has to do with names fails, and says who took over.
func (o *Run) GoesOn(t *testing.T) {
	t.Helper()
	ctx := t.Context()
	either := func(what string, err error) {
		t.Helper()
		if err != nil && !fault.Is(err, fault.Fenced) {
			t.Errorf("%s: the error is %v, want none or one of code %s", what, err, fault.Fenced)
		}
	}
	refused := func(what string, err error) {
		t.Helper()
		if !fault.Is(err, fault.Fenced) {
			t.Errorf("%s: the error is %v, want one of code %s", what, err, fault.Fenced)
		}
	}
	for i, p := range o.pages {
		d := o.state.Disks[i]
		noise := slices.Repeat([]byte{0xee}, BlockSize)
		either("WriteAt", p.WriteAt(ctx, noise, 0))
		either("ZeroAt", p.ZeroAt(ctx, 2*BlockSize, 3*BlockSize))
		either("StoreSums", p.StoreSums(ctx, 0, []sums.Sum{sums.Of(noise), {}, {1}}))
		either("ClearSums", p.ClearSums(ctx, 3, 2))
		either("Grow", p.Grow(ctx, d.Size+20*BlockSize))
		either("Flush", p.Flush(ctx))
		q, err := o.Disk(ctx, d)
		if err == nil {
			either("WriteAt", q.WriteAt(ctx, noise, 0))
			err = q.Close()
		}
		either("Disk", err)
	}
	f, err := OSLogs(t)("stale.hrl", []byte("stale"))
	check(t, err)
	defer f.Close()
	names, err := o.Shelf().Names(ctx)
	check(t, err)
	for _, name := range append(names, "stale.hrl") {
		_, err = o.Shelf().Put(ctx, name, f)
		refused("Put", err)
		refused("Remove", o.Shelf().Remove(ctx, name))
	}
	all := map[string]*block.Set{}
	for _, d := range o.state.Disks {
		all[d.Name] = block.NewSet(block.Range{Len: d.Size})
	}
	for _, to := range []hrl.Pos{o.state.Received, o.state.Applied.Next()} {
		for _, redo := range []bool{false, true} {
			err := o.Points().Preserve(ctx, o.state, to, all, redo)
			if !fault.Is(err, fault.ReplicaCorrupt) { // what was not preserved
				either("Preserve", err)
			}
		}
	}
	bare := o.state
	bare.Points = nil
	either("Sweep", o.Points().Sweep(ctx, bare))
	for range 2 {
		_, err := o.Ledger().Save(ctx, o.state)
		refused("Save", err)
		o.state.Version++
	}
	o.state.Generation++ // it cannot take it back either, as if nothing had happened
	_, err = o.Ledger().Save(ctx, o.state)
	refused("Save", err)
}

// testSeize takes a replica over from a run that holds it, between two positions and on the way from one to the next.
func testSeize(t *testing.T, place Place) {
	for name, prepare := range map[string]func(h *History) error{
		"at rest":  func(h *History) error { return h.Sign(t.Context()) },
		"received": func(h *History) error { return errors.Join(h.Sign(t.Context()), h.receive(t.Context(), true)) },
		"applying": func(h *History) error { return h.Interrupt(t.Context()) },
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			h := NewHistory("vm "+name, 51, OSLogs(t))
			check(t, h.Begin(ctx, place()))
			check(t, errors.Join(h.Step(ctx, false), h.Step(ctx, false), prepare(h), h.Signed(ctx)))
			old := h.OpenRun(t)
			check(t, h.Seize(ctx, place()))
			if h.state.Generation != 2 || h.state.Owner != recovery() || h.state.Version <= old.state.Version {
				t.Fatalf("the ledger of the new owner is %+v", h.state)
			}
			check(t, errors.Join(h.Signed(ctx), h.Check(ctx)))
			old.GoesOn(t)
			check(t, errors.Join(h.Signed(ctx), h.Check(ctx)))
			check(t, errors.Join(h.Recover(ctx, place()), h.Check(ctx)))
			old.GoesOn(t)
			check(t, h.Check(ctx))
			check(t, old.Close())
			_, err := place().Open(ctx, h.VM)
			wantCode(t, err, fault.ReplicaHeld) // the new owner has it
			check(t, h.Close())
			check(t, h.Attach(ctx, place()))
			for range 3 {
				check(t, errors.Join(h.Step(ctx, false), h.Check(ctx)))
			}
			check(t, h.Close())
		})
	}
}

// testSeizeAgain takes over from nobody, from somebody who took over, and again after an interruption.
func testSeizeAgain(t *testing.T, place Place) {
	ctx := t.Context()
	h := NewHistory("vm", 61, OSLogs(t))
	check(t, h.Begin(ctx, place()))
	check(t, h.Step(ctx, false))
	check(t, h.Close())
	refusal := errors.New("not now")
	_, err := place().Seize(ctx, "vm", func(s replica.State) (replica.State, error) { return s, refusal })
	if !errors.Is(err, refusal) {
		t.Fatalf("the error is %v", err)
	}
	_, err = place().Seize(ctx, "vm", func(s replica.State) (replica.State, error) { // of another owner, without a higher generation
		s.Owner = recovery()
		return s, nil
	})
	wantCode(t, err, fault.Fenced)
	_, err = place().Seize(ctx, "no such vm", takes(2))
	wantCode(t, err, fault.NotProtected)
	check(t, h.Attach(ctx, place())) // nothing has changed
	var runs []*Run
	for generation := uint64(2); generation < 5; generation++ {
		runs = append(runs, h.OpenRun(t))
		for again := range 2 {
			r, err := place().Seize(ctx, "vm", takes(generation))
			check(t, err)
			_, err = place().Seize(ctx, "vm", takes(generation)) // it has it, and does not let go
			wantCode(t, err, fault.ReplicaHeld)
			h.rep, h.state = r, load(t, r)
			if again == 0 {
				check(t, r.Close())
			}
		}
		check(t, errors.Join(h.Step(ctx, generation == 3), h.Check(ctx)))
	}
	for _, o := range runs {
		o.GoesOn(t)
	}
	check(t, errors.Join(h.Check(ctx), h.Step(ctx, false), h.Check(ctx), h.Close()))
}
