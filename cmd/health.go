package cmd

import (
	"fmt"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/health"
	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/internal/state"
)

// The words of health.
const (
	healthNormal   = string(health.Normal)
	healthWarning  = string(health.Warning)
	healthCritical = string(health.Critical)
)

const (
	notProtected = health.NotProtected
	// outOfReach is the state of a VM whose ledger cannot be read.
	outOfReach = "unknown"
)

// judge says how a VM stands, from its ledger and from what this site remembers of it. st is nil when there is no
// replica; running is the job that works on the VM; the zero Record for none.
func (w *world) judge(vm *site.VM, st *replica.State, mem state.VM, running state.Record) health.Verdict {
	now := w.now()
	f := health.Facts{VM: vm.Name, Now: now, Ledger: marked(st, mem), Critical: remembered(mem.Critical), Failed: remembered(mem.Failed),
		Retry: mem.Retry, Statistics: w.statistics(vm, mem), Running: running.ID, Done: running.Percent()}
	if p := vm.Policy(); p.AutoResync {
		f.ResyncAt = p.ResyncWindow.Next(now)
	}
	if st != nil && mem.Replica != st.Replica { // of another relationship, or not remembered
		f.Critical, f.Failed, f.Retry, f.Statistics = nil, nil, health.Retry{}, health.Statistics{}
	}
	if st != nil && len(st.Disks) > 0 { // not what is remembered of one that is out of reach
		for _, d := range addedDisks(vm, *st) {
			f.Added = append(f.Added, d.Name)
		}
	}
	f.Held = w.heldFact(vm)
	v := health.Judge(f)
	for i := range v.Reasons {
		v.Reasons[i].Next = betterNext(v.Reasons[i], mem)
	}
	if len(v.Reasons) > 0 {
		v.Next = v.Reasons[0].Next
	}
	if running.ID != "" && v.Health != health.Normal { // whatever is to be done, it is the job's turn
		v.Next = "sitrep jobs show " + running.ID
	}
	return v
}

// otherVault is v, of a VM that has no replica here, when the replica of its name is of another vault: the VM looks protected, and every
// command about it is refused.
func (w *world) otherVault(v health.Verdict, st replica.State) health.Verdict {
	r := health.Reason{Code: health.OtherVault, Health: health.Critical, Next: "sitrep store list",
		Text: fmt.Sprintf("the VM is not replicated: %s", fault.Find(w.owned(st)).Msg)}
	v.Health, v.Reasons, v.Next = r.Health, []health.Reason{r}, r.Next
	return v
}

// betterNext is the command of the table of faults, which knows what failed, instead of the one of the rules of health.
func betterNext(r health.Reason, mem state.VM) string {
	switch {
	case r.Code == health.Error && mem.Critical != nil && mem.Critical.Command != "":
		return mem.Critical.Command
	case (r.Code == health.WaitingForRetry || r.Code == health.NotRecoverable) && mem.Failed != nil && mem.Failed.Command != "":
		return mem.Failed.Command
	}
	return r.Next
}

// marked is the ledger as it will be when it has been told what this site found out while it was out of reach.
func marked(st *replica.State, mem state.VM) *replica.State {
	m := mem.Mark()
	if st == nil || m == nil || mem.Replica != st.Replica || st.Phase != replica.Replicating {
		return st
	}
	told := *st
	told.Phase, told.PhaseSince, told.Reason, told.ReasonCode = replica.ResyncRequired, m.Since, m.Reason, m.Code
	return &told
}

func remembered(f *state.Failure) *health.Failure {
	if f == nil {
		return nil
	}
	return &health.Failure{Code: f.Code, Message: f.Message, At: f.At}
}

// monitoring is how the cycles of a VM are counted.
func (w *world) monitoring(vm *site.VM) health.Monitoring {
	return health.DefaultMonitoring(vm.Policy().CopyFrequency, w.now().Location())
}

// statistics are the counters of a VM as of now. While it is not expected to replicate nothing is missed.
func (w *world) statistics(vm *site.VM, mem state.VM) health.Statistics {
	if mem.Statistics.Since.IsZero() || mem.Marked != nil || mem.Critical != nil || mem.Phase != replica.Replicating {
		return mem.Statistics
	}
	return mem.Statistics.At(w.monitoring(vm), w.now())
}

// beginCycles counts cycles from now on: replication has begun, or goes on after it had to stop.
func (w *world) beginCycles(vm *site.VM) error {
	return w.memory.ChangeVM(vm.Name, func(mem *state.VM) {
		mem.Statistics = mem.Statistics.Begin(w.monitoring(vm), w.now())
	})
}

// describe puts the VM's state and health into h.
func (w *world) describe(vm *site.VM, st replica.State, h *vmHead) {
	mem, _, err := w.memory.VM(vm.Name)
	if err != nil {
		mem = state.VM{}
	}
	v := w.judge(vm, &st, mem, state.Record{})
	h.State, h.Health = v.State, string(v.Health)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
