package failover

import (
	"context"
	"slices"

	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/replica"
)

// This file is what follows a failover: cleaning up a test, giving a failover back, accepting it.

// task is a step of these: a name in the job, and what it does. Each can be done again.
type task struct {
	name string
	do   func(ctx context.Context) (note string, err error)
}

func (j *Job) tasks(ctx context.Context, list []task) error {
	for _, t := range list {
		err := j.Step(t.name, func() (int64, string, error) {
			note, err := t.do(ctx)
			return 0, note, err
		})
		if err != nil {
			return j.in(err)
		}
	}
	return nil
}

// Cleanup ends a test failover: nothing of it is left but the result, with the operator's notes.
func (j *Job) Cleanup(ctx context.Context, notes string) error {
	st, err := j.load(ctx)
	if err == nil {
		err = Allowed(st, DoCleanup)
	}
	if err != nil {
		return j.in(err)
	}
	if err := j.reaches(st.Test); err != nil {
		return j.in(err)
	}
	d, err := Made(st.Test)
	if err != nil {
		return j.in(err)
	}
	list := []task{{"Delete the test virtual machine and its disks", func(ctx context.Context) (string, error) {
		return "", j.takeApart(ctx, st, Test)
	}}}
	if j.CleanedUp != nil {
		list = append(list, task{"Run the VM's clean-up hook", func(ctx context.Context) (string, error) {
			return "", j.CleanedUp(ctx, Test, d)
		}})
	}
	list = append(list, task{"Store the notes", func(ctx context.Context) (string, error) {
		return notes, j.change(ctx, func(st *replica.State) error {
			if st.Test == nil {
				return nil
			}
			st.GoodTest = st.LastGoodTest()
			st.LastTest = &replica.TestResult{
				Started: st.Test.Started, Cleaned: j.Now().UTC(), OK: !st.Test.Finished.IsZero(),
				Point: st.Test.Point, Notes: notes, By: st.Test.By,
			}
			st.Test = nil
			return nil
		})
	}})
	return j.tasks(ctx, list)
}

// Undo goes back to the source as it was: the recovered VM and what it wrote are given up, the source is started if the
// failover stopped it, and replication may go on. Of a failback it gives up the way home, and the recovered VM runs on.
func (j *Job) Undo(ctx context.Context) error {
	st, err := j.load(ctx)
	if err == nil {
		err = Allowed(st, DoUndo)
	}
	if err != nil {
		return j.in(err)
	}
	rec := st.Failover
	if err := j.reaches(rec); err != nil {
		return j.in(err)
	}
	if st.Phase == replica.FailbackStarted {
		return j.undoFailback(ctx, st)
	}
	return j.tasks(ctx, []task{
		{"Prerequisites check for failover undo", func(ctx context.Context) (string, error) {
			return "", j.canStart(ctx, rec.SourceStopped)
		}},
		{"Delete the recovered virtual machine and its disks", func(ctx context.Context) (string, error) {
			return "", j.takeApart(ctx, st, Unplanned)
		}},
		{"Start the virtual machine at its source", func(ctx context.Context) (string, error) {
			return j.startSource(ctx, rec.SourceStopped)
		}},
		{"Give the replica back", func(ctx context.Context) (string, error) { return "", j.giveBack(ctx) }},
	})
}

// takeApart removes what a failover has made. The ledger says so first: what is left after a kill is neither gone on with nor committed.
func (j *Job) takeApart(ctx context.Context, st replica.State, k Kind) error {
	err := j.change(ctx, func(st *replica.State) error {
		rec := *k.record(st)
		if rec == nil || rec.Undone() {
			return nil
		}
		fresh := *rec
		fresh.Done = append(slices.Clone(rec.Done), string(StepUndo))
		*k.record(st) = &fresh
		if st.Phase == replica.FailedOver && k != Test {
			st.Phase, st.PhaseSince = replica.FailoverStarted, j.Now().UTC()
		}
		return nil
	})
	if err != nil {
		return err
	}
	return j.removeVM(ctx, st, k)
}

// canStart says whether the VM is there to be started at its source: what runs at the recovery site is not given up before.
func (j *Job) canStart(ctx context.Context, stopped bool) error {
	if j.Source.Host == nil || !stopped || j.Source.Foreign {
		return nil
	}
	power, err := j.Source.Host.State(ctx, j.Source.Name)
	switch {
	case err != nil:
		return err
	case power == host.Absent:
		return fault.New(fault.VMAbsent, "%s has no VM %q that could be started again; the recovered one is left as it is", j.Source.Describe(), j.Source.Name)
	case power == host.Running || power == host.Paused:
		return nil
	}
	return j.homeUnused()
}

func (j *Job) startSource(ctx context.Context, stopped bool) (string, error) {
	switch {
	case j.Source.Host == nil:
		return "sitrep has no hand on the source host: start the VM there if it is wanted", nil
	case !stopped:
		return "it was not stopped", nil
	case j.Source.Foreign:
		return "something else starts it: start it there if it is wanted", nil
	}
	return "", j.Source.Host.Start(ctx, j.Source.Name)
}

// giveBack makes the owner of before the owner again. The generation is raised first, in all of the store, and then the failover is
// forgotten: a run that is killed in between is found by the next one, which completes what Seize does after the ledger.
func (j *Job) giveBack(ctx context.Context) error {
	st, err := j.load(ctx)
	if err != nil {
		return err
	}
	if !st.Phase.Away() { // it has not taken over yet
		return j.change(ctx, func(st *replica.State) error {
			st.Failover = nil
			j.end(st, DoUndo)
			return nil
		})
	}
	rep, err := j.Store.Seize(ctx, j.VM, func(st replica.State) (replica.State, error) {
		if err := Allowed(st, DoUndo); err != nil {
			return st, err
		}
		if slices.Contains(st.Failover.Done, string(StepGiveBack)) && j.owns(st) {
			return st, nil
		}
		rec := *st.Failover
		rec.Done = append(slices.Clone(rec.Done), string(StepGiveBack))
		st.Failover = &rec
		return j.raise(st), nil
	})
	if err == nil {
		err = rep.Close()
	}
	if err != nil {
		return err
	}
	return j.change(ctx, func(st *replica.State) error {
		if st.Failover == nil {
			return nil
		}
		st.Owner, st.Phase = st.Failover.Source, st.Failover.From
		st.Owner.Since, st.PhaseSince = j.Now().UTC(), j.Now().UTC()
		st.Failover = nil
		j.end(st, DoUndo)
		return nil
	})
}

// raise is the ledger with a higher generation, of this site on this machine.
func (j *Job) raise(st replica.State) replica.State {
	st.Generation++
	st.Owner = j.By
	st.Owner.Since = j.Now().UTC()
	return st
}

// owns says whether the generation of the ledger is that of this site on this machine.
func (j *Job) owns(st replica.State) bool {
	return st.Owner.Same(j.By)
}

// Commit accepts what was done: after a failover older recovery points are removed; after a failback the recovered VM is, and
// replication goes on in its old direction.
func (j *Job) Commit(ctx context.Context) error {
	st, err := j.load(ctx)
	if err == nil {
		err = Allowed(st, DoCommit)
	}
	if err != nil {
		return j.in(err)
	}
	if st.Phase == replica.FailedBack {
		if err := j.reaches(st.Failover); err != nil {
			return j.in(err)
		}
		return j.commitFailback(ctx, st)
	}
	return j.tasks(ctx, []task{{"Prerequisites check for commit", func(ctx context.Context) (string, error) {
		d, err := Made(st.Failover)
		if err != nil || d.Name == "" || j.elsewhere(st.Failover) {
			return "", err
		}
		return "", j.recoveredWritten(ctx, d)
	}}, {"Remove the other recovery points", func(ctx context.Context) (string, error) {
		return "", j.with(ctx, func(rep replica.Replica, st replica.State) error {
			kept := st.Point(st.Failover.Point)
			if kept == nil {
				return fault.New(fault.PointMissing, "recovery point %q, from which the VM runs, is gone", st.Failover.Point)
			}
			st.KeepOnly(*kept)
			st.Phase, st.PhaseSince = replica.Committed, j.Now().UTC()
			st, err := rep.Ledger().Save(ctx, st)
			if err != nil {
				return err
			}
			if err := rep.Points().Sweep(ctx, st); err != nil {
				j.Log.Warn("old recovery points could not be removed; the next clean-up of the store does it", "vm", j.VM, "error", err)
			}
			return nil
		})
	}}})
}

// recovered is the VM at the recovery site.
func (j *Job) recovered(st replica.State) (host.Definition, error) {
	if err := j.reaches(st.Failover); err != nil {
		return host.Definition{}, err
	}
	d, err := Made(st.Failover)
	if err == nil && d.Name == "" {
		err = fault.New(fault.LedgerCorrupt, "the ledger does not say what VM was made")
	}
	return d, err
}
