package cmd

import (
	"context"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/internal/state"
)

// markLocally keeps that only resynchronization helps, for as long as the ledger cannot be told.
func (w *world) markLocally(vm *site.VM, err error) error {
	e := fault.FromOS(err)
	return w.memory.ChangeVM(vm.Name, func(mem *state.VM) {
		if mem.Marked == nil {
			mem.Marked = &state.Mark{Code: e.Code, Reason: err.Error(), Since: w.now().UTC()}
		}
	})
}

// tellLedger hands a mark that this site has kept over to the ledger, if there is one.
func (s *session) tellLedger(ctx context.Context) error {
	mem, _, err := s.memory.VM(s.vm.Name)
	if err != nil || mem.Marked == nil {
		return err
	}
	if mem.Replica == s.state.Replica {
		m := mem.Marked
		if err := s.engine.Mark(ctx, m.Code, m.Reason, m.Since); err != nil {
			return err
		}
	}
	if err := s.memory.ChangeVM(s.vm.Name, func(mem *state.VM) { mem.Marked = nil }); err != nil {
		return err
	}
	s.state, err = s.engine.Replica.Ledger().Load(ctx)
	return err
}

// ledgerOrMark returns the ledger with the mark that this site keeps for it; when it is out of reach, the mark alone, as a
// ledger of that phase. needs says whether the VM needs a resynchronization.
func (w *world) ledgerOrMark(ctx context.Context, vm *site.VM) (st replica.State, needs bool, err error) {
	mem, _, err := w.memory.VM(vm.Name)
	if err != nil {
		return st, false, err
	}
	st, err = w.present(ctx, vm)
	if err == nil {
		st = *marked(&st, mem)
	} else if m := mem.Marked; m != nil {
		st = replica.State{VM: vm.Name, Phase: replica.ResyncRequired, PhaseSince: m.Since, Reason: m.Reason, ReasonCode: m.Code}
		return st, true, err
	}
	return st, st.Phase == replica.ResyncRequired || st.Phase == replica.Resynchronizing, err
}

// resyncsItself says whether a run may resynchronize a marked VM of which nobody has asked it.
func (w *world) resyncsItself(vm *site.VM) bool {
	p := vm.Policy()
	return p.AutoResync && p.ResyncWindow.Contains(w.now())
}

// resyncNeeded is the error of a run that needs a VM whose change logs lead on: since when they do not, why, and when
// that ends.
func (w *world) resyncNeeded(vm *site.VM, st replica.State) error {
	what := "resynchronization is required since " + stamp(st.PhaseSince)
	if st.Phase == replica.Resynchronizing {
		what = "a resynchronization was begun at " + stamp(st.PhaseSince) + " and interrupted"
	}
	if st.Reason != "" {
		what += ": " + st.Reason
	}
	e := fault.New(fault.ResyncRequired, "%s; %s", what, w.windowText(vm)).Of(vm.Name, "")
	if inDoubt(st.ReasonCode) { // and what the sums say is not enough
		e.Next = fault.Fill(st.ReasonCode.Lookup().Command, vm.Name, "")
	}
	return e
}

// windowText says when a marked VM is resynchronized unasked.
func (w *world) windowText(vm *site.VM) string {
	p, now := vm.Policy(), w.now()
	switch {
	case !p.AutoResync:
		return "nothing resynchronizes it unasked (auto_resync is off)"
	case p.ResyncWindow.Contains(now):
		return "its resync window (" + p.ResyncWindow.String() + ") is open"
	}
	return "its resync window (" + p.ResyncWindow.String() + ") opens at " + w.clockTime(p.ResyncWindow.Next(now))
}

// inDoubt says that the reason for a resynchronization is the replica's own bytes, so that its sums prove nothing.
func inDoubt(c fault.Code) bool { return c == fault.ReplicaCorrupt || c == fault.Difference }
