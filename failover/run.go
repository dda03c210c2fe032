package failover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/replicate"
)

// Run does what is left of a failover, up to and including the step until ("" = all of it): nothing that comes after that step,
// also when the step itself was done by an earlier run. Run again, it goes on.
func (j *Job) Run(ctx context.Context, k Kind, o Options, until StepID) error {
	st, err := j.load(ctx)
	if err != nil {
		return err
	}
	p, err := j.plan(ctx, st, k, o)
	if err != nil {
		return j.in(err)
	}
	r := &run{Job: j, kind: k, opts: o, plan: p, known: &st}
	for _, s := range upTo(p.Steps, until) {
		if err := j.Step(s.Name, func() (int64, string, error) { return r.do(ctx, s.ID) }); err != nil {
			r.stoppedAt(ctx, s, err)
			return j.in(err)
		}
	}
	return nil
}

// maxMessage is how much of an error the ledger keeps, in bytes.
const maxMessage = 600

// stoppedAt keeps in the ledger what the failover stopped at, for whoever looks, on whatever machine. It says nothing of a run that was
// told to end, nor of one that has only looked.
func (r *run) stoppedAt(ctx context.Context, s Step, failed error) {
	if fault.Cancelled(failed) || s.ID == StepCheck || s.ID == StepProve {
		return
	}
	text := failed.Error()
	if len(text) > maxMessage {
		text = strings.ToValidUTF8(text[:maxMessage], "") + " ..."
	}
	at := &replica.Stopped{Step: s.Name, Code: fault.FromOS(failed).Code, Message: text, At: r.Now().UTC()}
	err := r.note(context.WithoutCancel(ctx), "", func(_ *replica.State, rec *replica.Failover) { rec.Stopped = at })
	if err != nil {
		r.Log.Debug("what the failover stopped at is not kept", "vm", r.VM, "error", err)
	}
}

// run is one Run.
type run struct {
	*Job
	kind Kind
	opts Options
	plan Plan
	// stopped says that the source is known to be off, and halted that this run has stopped it.
	stopped, halted bool
	// brought says that what the source wrote last was brought over.
	brought bool
	// known is the ledger as this run has read or saved it last, nil when that is not known.
	known *replica.State
	// found says in the ledger what was found of the replica or of a recovery point, nil for nothing.
	found func(replica.Replica) error
}

// do does one step. Each can be done again.
func (r *run) do(ctx context.Context, id StepID) (bytes int64, note string, err error) {
	if !r.knows(id) {
		r.known = nil
	}
	switch id {
	case StepCheck:
		st, err := r.latest(ctx)
		if err != nil {
			return 0, "", err
		}
		return 0, "", r.check(ctx, st, r.kind, r.plan)
	case StepBegin:
		return 0, "", r.begin(ctx)
	case StepStopSource:
		note, err = r.stopSource(ctx)
		return 0, note, err
	case StepLastChanges:
		note, err = r.lastChanges(ctx)
		return 0, note, err
	case StepTakeOver:
		note, err = r.takeOver(ctx)
		return 0, note, err
	case StepFinish:
		note, err = r.finish(ctx)
		return 0, note, err
	case StepProve:
		bytes, err = r.prove(ctx)
		return bytes, "", err
	case StepClear:
		return 0, "", r.clear(ctx)
	case StepDisks:
		return r.disks(ctx)
	case StepCreate:
		return 0, "", r.onVM(ctx, id, func(d host.Definition) error { return r.create(ctx, d) })
	case StepStart:
		return 0, "", r.onVM(ctx, id, func(d host.Definition) error { return r.Recovery.Host.Start(ctx, d.Name) })
	case StepBoot:
		return 0, "", r.onVM(ctx, id, func(d host.Definition) error { return r.booted(ctx, d) })
	case StepHook:
		return 0, "", r.onVM(ctx, id, func(d host.Definition) error { return r.Hook(ctx, r.kind, d) })
	case StepComplete:
		note, err = r.complete(ctx)
		return 0, note, err
	}
	return 0, "", fmt.Errorf("failover has no step %q", id)
}

// knows says that a step needs no more than what the one before it has left in the ledger.
func (r *run) knows(id StepID) bool {
	switch id {
	case StepCheck, StepDisks, StepCreate, StepStart, StepBoot, StepHook:
		return true
	}
	return false
}

// note changes the record of this failover in the ledger, and says there that a step is done.
func (r *run) note(ctx context.Context, id StepID, f func(*replica.State, *replica.Failover)) error {
	saved, err := r.changed(ctx, func(st *replica.State) error {
		if err := r.mine(*st); err != nil {
			return err
		}
		rec := *r.kind.record(st)
		fresh := *rec
		fresh.Done, fresh.Stopped = slices.Clone(rec.Done), nil
		if f != nil {
			f(st, &fresh)
		}
		if id != "" && !slices.Contains(fresh.Done, string(id)) {
			fresh.Done = append(fresh.Done, string(id))
		}
		*r.kind.record(st) = &fresh
		return nil
	})
	if r.known = nil; err == nil {
		r.known = &saved
	}
	return err
}

// latest is the ledger as this run knows it, read when it does not. It is for what a host is asked next: whether the failover is still this
// site's is looked at anew by each save, which comes after what may take long.
func (r *run) latest(ctx context.Context) (replica.State, error) {
	if r.known != nil {
		return *r.known, ctx.Err()
	}
	st, err := r.load(ctx)
	if err == nil {
		r.known = &st
	}
	return st, err
}

// mine refuses to go on with a failover that is not there any more, or that another machine has taken over meanwhile.
func (r *run) mine(st replica.State) error {
	rec := *r.kind.record(&st)
	if rec == nil {
		return fault.New(fault.FailoverFailed, "the ledger no longer knows of this failover: it was undone, or cleaned up, meanwhile")
	}
	return r.stillOurs(st, rec)
}

// stillOurs refuses to go on with a failover that another machine has taken over meanwhile.
func (r *run) stillOurs(st replica.State, rec *replica.Failover) error {
	if r.kind == Test || !st.Phase.Away() || r.began(rec) {
		return nil
	}
	return fault.New(fault.Fenced, "site %q, host %q, has taken this failover over at %s (generation %d)", rec.By.Site, rec.By.Host,
		stamp(st.Owner.Since), st.Generation)
}

// record is a new one.
func (r *run) record(st replica.State) *replica.Failover {
	return &replica.Failover{
		ID: hrl.NewID(), Kind: string(r.kind), Started: r.Now().UTC(), Begun: r.Now().UTC(), By: r.By, From: st.Phase, Source: st.Owner,
		Host: r.Recovery.Describe(), DisksIn: string(r.DisksIn), Done: []string{string(StepBegin)},
	}
}

// begin writes into the ledger that a failover was begun. The replica of an unplanned one may be locked by a run that
// hangs: taking over then does both.
func (r *run) begin(ctx context.Context) error {
	err := r.change(ctx, func(st *replica.State) error {
		if rec := *r.kind.record(st); rec == nil {
			*r.kind.record(st) = r.record(*st)
		}
		return nil
	})
	if r.kind == Unplanned && fault.Is(err, fault.ReplicaHeld) {
		r.Log.Warn("another run holds the replica and will be shut out", "vm", r.VM, "error", err)
		return nil
	}
	return err
}

// stopSource stops the protected VM. Of an unplanned failover only the attempt is made.
func (r *run) stopSource(ctx context.Context) (string, error) {
	if r.Source.Host == nil {
		if r.kind == Planned {
			if err := r.homeUnused(); err != nil {
				return "", err
			}
		}
		r.stopped = r.kind == Planned
		return "sitrep has no hand on the source host", nil
	}
	err := r.stop(ctx)
	if err == nil {
		err = r.letGo(ctx)
	}
	if err == nil {
		r.stopped = true
		return "off", nil
	}
	if r.kind == Planned || ctx.Err() != nil {
		return "", err
	}
	r.Log.Warn("the source could not be stopped, the failover goes on", "vm", r.VM, "error", err)
	return "not stopped: " + err.Error(), nil
}

func (r *run) stop(ctx context.Context) error {
	power, err := r.Source.Host.State(ctx, r.Source.Name)
	if err != nil {
		return err
	}
	if power == host.Running || power == host.Paused {
		// Before it is done: undo has to start what this has stopped, also when the run is killed in between.
		err := r.note(ctx, "", func(_ *replica.State, rec *replica.Failover) { rec.SourceStopped = true })
		if err != nil && r.kind == Planned {
			return err
		}
	}
	if err := r.Source.Host.Stop(ctx, r.Source.Name, r.Source.Grace); err != nil {
		return err
	}
	r.halted = power == host.Running || power == host.Paused
	return nil
}

// lastChanges brings over what the source wrote last.
func (r *run) lastChanges(ctx context.Context) (string, error) {
	st, err := r.load(ctx)
	switch {
	case err != nil:
		return "", err
	case r.LastChanges == nil && r.kind == Planned:
		return "", fault.New(fault.PrerequisiteFail, "a planned failover needs the source's disks, and they are not here")
	case r.LastChanges == nil:
		return "no source", nil
	case !r.stopped:
		return "not tried: the source was not stopped", nil
	case st.Phase != replica.Replicating && r.kind == Unplanned:
		return "not tried: the state is " + string(st.Phase), nil
	}
	if err = r.LastChanges(ctx); err == nil {
		err = r.allBrought(ctx)
	}
	if err == nil {
		r.brought = true
		return "", r.wroteLast(ctx)
	}
	if r.kind == Planned || ctx.Err() != nil {
		return "", err
	}
	r.Log.Warn("the last changes could not be brought over, the failover goes on without them", "vm", r.VM, "error", err)
	return "not brought over: " + err.Error(), nil
}

// wroteLast notes which position has all that the source wrote: what is lost is told by it, whatever point is chosen, and when.
func (r *run) wroteLast(ctx context.Context) error {
	return r.note(ctx, "", func(st *replica.State, rec *replica.Failover) { rec.Brought = st.Received })
}

// allBrought says whether the newest recovery point is what the pages are, each disk at its size: a disk that has only become larger has
// nothing that a change log would bring.
func (r *run) allBrought(ctx context.Context) error {
	st, err := r.load(ctx)
	if err != nil {
		return err
	}
	n := len(st.Points)
	if len(st.Pending) > 0 || n > 0 && st.Points[n-1].At == st.Applied && maps.Equal(st.Points[n-1].Sizes, st.Sizes()) {
		return nil // what waits makes a point of its own, and names the sizes
	}
	return fault.New(fault.FailoverFailed, "the newest recovery point is not what the source's disks are now, by position or by size").Of(r.VM, "")
}

// takeOver makes this site the owner, and shuts out whoever was.
func (r *run) takeOver(ctx context.Context) (note string, err error) {
	rep, err := r.Store.Seize(ctx, r.VM, r.take)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, rep.Close()) }()
	st, err := rep.Ledger().Load(ctx)
	if err != nil {
		return "", err
	}
	if err := r.mine(st); err != nil {
		return "", err
	}
	rec := *st.Failover
	rec.Fenced, rec.Done = true, append(slices.Clone(rec.Done), string(StepTakeOver))
	rec.SourceStopped = rec.SourceStopped || r.halted // the ledger may have been locked by a run that hangs when it was
	st.Failover = &rec
	_, err = rep.Ledger().Save(ctx, st)
	return fmt.Sprintf("generation %d", st.Generation), err
}

// take is what the ledger becomes when this site takes over.
func (r *run) take(st replica.State) (replica.State, error) {
	if st.Phase == replica.FailoverStarted && r.began(st.Failover) {
		return st, nil // an earlier run was interrupted between the ledger and the fence
	}
	if err := Allowed(st, r.kind.event()); err != nil {
		return st, err
	}
	rec := r.record(st)
	if st.Failover != nil {
		again := *st.Failover
		rec = &again
		if rec.Kind != string(r.kind) { // what was begun as the other kind got nowhere: its clock says nothing of this one
			rec.Kind, rec.Started, rec.Begun = string(r.kind), r.Now().UTC(), r.Now().UTC()
		}
		rec.By = r.By
		if !st.Phase.Away() {
			rec.From, rec.Source = st.Phase, st.Owner
		}
	}
	st.Failover = rec
	st = r.raise(st)
	st.Phase, st.PhaseSince = replica.FailoverStarted, r.Now().UTC()
	return st, nil
}

// finish applies what lies on the shelf, where the latest point is wanted, and settles on a point.
func (r *run) finish(ctx context.Context) (note string, err error) {
	err = r.with(ctx, func(rep replica.Replica, st replica.State) error {
		if err := r.mine(st); err != nil {
			return err
		}
		if err := r.finishApply(ctx, rep, st); err != nil {
			return err
		}
		if st, err = rep.Ledger().Load(ctx); err == nil {
			err = r.mine(st)
		}
		if err != nil {
			return err
		}
		p, err := r.choose(st)
		if err != nil {
			return err
		}
		note = "recovery point " + p.ID + " of " + stamp(p.CutAt)
		rec := *(*r.kind.record(&st))
		rec.Point, rec.CutAt, rec.Unchanged = p.ID, p.CutAt, st.KnownAt(*p)
		rec.Done = append(slices.Clone(rec.Done), string(StepFinish))
		if r.brought && p.At == st.Applied {
			rec.Done = append(rec.Done, string(StepLastChanges))
		}
		for _, p := range st.Points {
			if p.At == rec.Brought {
				rec.Whole = p.ID
			}
		}
		*r.kind.record(&st) = &rec
		if st, err = rep.Ledger().Save(ctx, st); err == nil {
			r.known = &st
		}
		return err
	})
	return note, err
}

func (r *run) wantsLatest() bool { return r.plan.Point == "" || r.plan.Point == Latest }

func (r *run) finishApply(ctx context.Context, rep replica.Replica, st replica.State) error {
	if len(st.Pending) == 0 || !r.wantsLatest() && st.Applying == nil {
		return nil
	}
	job := &replicate.Job{VM: r.VM, Replica: rep, FS: r.FS, Keep: r.Keep, Meter: r.Meter, Log: r.Log, Now: r.Now}
	apply := job.Finish
	if r.kind == Test {
		apply = job.Apply
	}
	_, err := apply(ctx)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if !r.wantsLatest() { // a point is seen through what was preserved, whatever became of the pages since
		r.Log.Warn("what lies on the shelf could not be applied", "vm", r.VM, "error", err)
		return nil
	}
	return fault.Wrap(fault.FailoverFailed, err, "what lies on the shelf could not be applied; \"failover unplanned --point %s\" does without it", LatestProcessed)
}

// choose finds the point in the ledger as it is now. The latest one has to be where the pages are: else something that
// was received would be missing in it without a word.
func (r *run) choose(st replica.State) (*replica.Point, error) {
	p, err := Choose(st, r.plan.Point, r.Now().Location())
	if err != nil {
		return nil, err
	}
	if (r.plan.Point == Latest || r.kind == Planned) && (p.At != st.Applied || st.Applying != nil) {
		return nil, fault.New(fault.PointMissing, "the replica at position %d is no recovery point (the disks were being compared, or changed while they "+
			"were copied); \"failover unplanned --point %s\" takes the newest one, of %s", st.Applied.Seq, LatestProcessed, stamp(p.CutAt))
	}
	return p, nil
}

// clear removes what was made of another point, and settles on the new one.
func (r *run) clear(ctx context.Context) error {
	st, err := r.load(ctx)
	if err == nil {
		err = r.mine(st)
	}
	if err == nil {
		err = r.removeVM(ctx, st, r.kind)
	}
	if err != nil {
		return err
	}
	p := r.plan.Found
	rec := *r.kind.record(&st)
	again := rec.Undone() || r.HostLost && r.elsewhere(rec)
	return r.note(ctx, "", func(st *replica.State, rec *replica.Failover) {
		if r.kind != Test {
			st.Phase, st.PhaseSince = replica.FailoverStarted, r.Now().UTC()
		}
		rec.ID, rec.Kind, rec.VM = hrl.NewID(), string(r.kind), nil
		rec.Point, rec.CutAt, rec.Unchanged = p.ID, p.CutAt, st.KnownAt(*p) // an older point loses what a planned failover did not
		rec.Started, rec.Finished, rec.DisksIn = r.Now().UTC(), time.Time{}, string(r.DisksIn)
		if rec.Begun.IsZero() || again { // the source, or the VM at the lost host, has run since
			rec.Begun, rec.Brought, rec.Whole = rec.Started, hrl.Pos{}, ""
		}
		rec.DiskStamps, rec.Creating = nil, false
		rec.Done = slices.DeleteFunc(rec.Done, func(s string) bool { return behindFinish(StepID(s)) })
	})
}

// behindFinish says that a step depends on the point.
func behindFinish(id StepID) bool {
	return !slices.Contains([]StepID{StepBegin, StepStopSource, StepTakeOver, StepFinish}, id)
}

// disks makes the disks of the point. Each one that is done is found by a run that goes on, so that a killed one goes on with
// the next.
func (r *run) disks(ctx context.Context) (bytes int64, note string, err error) {
	if err := r.moveDisks(ctx); err != nil {
		return 0, "", err
	}
	var d host.Definition
	var made replica.Failover
	err = r.beside(ctx, r.DisksIn, func(rep replica.Replica, st replica.State) error {
		if err := r.mine(st); err != nil {
			return err
		}
		rec := *r.kind.record(&st)
		point := st.Point(rec.Point)
		if point == nil {
			return fault.New(fault.PointMissing, "recovery point %q, which the failover was begun with, is gone", rec.Point)
		}
		if d, _, err = r.definition(ctx, st, *point, r.kind); err != nil {
			return err
		}
		made = *rec
		if bytes, err = r.madeIn(r.kind, rec).make(ctx, rep, st, &made, d.Disks); err != nil {
			return r.rotten(ctx, rep, st, *point, err)
		}
		return nil
	})
	if err != nil {
		return bytes, "", r.condemn(ctx, err)
	}
	data, err := json.Marshal(d)
	if err != nil {
		return bytes, "", err
	}
	return bytes, "", r.note(ctx, StepDisks, func(st *replica.State, rec *replica.Failover) {
		if p := st.Point(rec.Point); p != nil {
			p.Damaged = "" // it was read
		}
		rec.Host, rec.HostID, rec.HostKey = r.Recovery.Describe(), r.Recovery.ID, r.Recovery.Key
		rec.VM, rec.DiskStamps = data, made.DiskStamps
	})
}

// moveDisks gives up what an earlier run has begun to make where the site file made disks then. No VM was made of it yet: whoever
// mends a failover that cannot get its disks in one place may say another.
func (r *run) moveDisks(ctx context.Context) error {
	st, err := r.latest(ctx)
	if err != nil {
		return err
	}
	if err := r.mine(st); err != nil {
		return err
	}
	if DisksIn((*r.kind.record(&st)).DisksIn) == r.DisksIn {
		return nil
	}
	if err := r.removeDisks(ctx, st, r.kind, host.Definition{}); err != nil {
		return err
	}
	return r.note(ctx, "", func(_ *replica.State, rec *replica.Failover) { rec.DisksIn = string(r.DisksIn) })
}

// rotten has condemn keep in the ledger that the replica's bytes are not what its sums say, where a test has found it; a failover has left
// the phases that could say so, and names the way back. A recovery point that is damaged all by itself is no reason for either.
func (r *run) rotten(ctx context.Context, rep replica.Replica, st replica.State, at replica.Point, err error) error {
	e := fault.Find(err)
	switch {
	case e != nil && e.Code == fault.PointDamaged:
		r.noteDamaged(ctx, at, err)
		return err
	case e == nil || e.Code != fault.ReplicaCorrupt:
		return err
	case !replica.Condemns(ctx, rep, st, at, err):
		r.noteDamaged(ctx, at, err)
		return r.damaged(st, at, err)
	case r.kind != Test && made(*r.kind.record(&st)): // which is not given up for nothing
		e.Next = "sitrep points " + r.VM
		return fmt.Errorf("%w; another recovery point may be whole, and what was made is left as it is", err)
	case r.kind != Test:
		e.Next = "sitrep failover undo " + r.VM
		return fmt.Errorf("%w; another recovery point may be whole (--point), or undo, resynchronize with --deep, and begin again", err)
	}
	text := err.Error()
	r.found = func(rep replica.Replica) error {
		job := &replicate.Job{VM: r.VM, Replica: rep}
		return job.Mark(context.WithoutCancel(ctx), e.Code, text, r.Now().UTC())
	}
	return err
}

// noteDamaged has condemn keep what was found of a point, so that it is listed.
func (r *run) noteDamaged(ctx context.Context, at replica.Point, found error) {
	r.found = func(rep replica.Replica) error {
		if err := replica.NoteDamaged(context.WithoutCancel(ctx), rep, at.ID, found.Error()); err != nil {
			r.Log.Warn("what was found of the recovery point cannot be kept", "vm", r.VM, "point", at.ID, "error", err)
		}
		return nil
	}
}

// condemn keeps in the ledger what rotten has found, and returns err.
func (r *run) condemn(ctx context.Context, err error) error {
	if r.found == nil {
		return err
	}
	return errors.Join(err, r.with(context.WithoutCancel(ctx), func(rep replica.Replica, _ replica.State) error { return r.found(rep) }))
}

// damaged is the error of a recovery point that cannot be read as it was. What leads on is another one, unless that is what the VM
// was made of already.
func (r *run) damaged(st replica.State, at replica.Point, err error) error {
	d, rec := replica.DamagedPoint(st, at, err), *r.kind.record(&st)
	if made(rec) {
		d.Msg += "; what was made of point " + rec.Point + " is left as it is"
	}
	for _, id := range replica.Others(st, at) {
		if id != rec.Point {
			return d.Then("sitrep failover " + string(r.kind) + " " + r.VM + " --point " + id)
		}
	}
	return d
}

// onVM does f with what was made, as a step.
func (r *run) onVM(ctx context.Context, id StepID, f func(host.Definition) error) error {
	st, err := r.latest(ctx)
	if err != nil {
		return err
	}
	if err := r.mine(st); err != nil {
		return err
	}
	d, err := Made(*r.kind.record(&st))
	if err != nil {
		return err
	}
	if err := f(d); err != nil {
		return err
	}
	return r.note(ctx, id, nil)
}

// create makes the VM at its host, of disks that are proven to be this failover's. That it may be there from now on is noted first: a VM
// of this name that the host has before is somebody else's.
func (r *run) create(ctx context.Context, d host.Definition) error {
	st, err := r.latest(ctx)
	if err != nil {
		return err
	}
	rec := *r.kind.record(&st)
	if r.plan.Redefined {
		d = r.plan.VMDef
		data, err := json.Marshal(d)
		if err == nil {
			err = r.note(ctx, "", func(_ *replica.State, rec *replica.Failover) { rec.VM = data })
		}
		if err != nil {
			return err
		}
	}
	for _, x := range d.Disks {
		if err := r.madeIn(r.kind, rec).prove(x); err != nil {
			return err
		}
	}
	if !mayBeThere(rec) {
		if err := r.vacant(ctx, d.Name); err != nil {
			return err
		}
		if err := r.note(ctx, "", func(_ *replica.State, rec *replica.Failover) { rec.Creating = true }); err != nil {
			return err
		}
	}
	return r.Recovery.Host.Create(ctx, d)
}

// booted waits until the VM is up. One that went off since it was started, before its check passed, is started again.
func (r *run) booted(ctx context.Context, d host.Definition) error {
	if r.Recovery.Host != nil {
		power, err := r.Recovery.Host.State(ctx, d.Name)
		if err != nil {
			return err
		}
		if power == host.Off || power == host.Paused {
			if err := r.Recovery.Host.Start(ctx, d.Name); err != nil {
				return err
			}
		}
	}
	return r.Recovery.Booted(ctx, d)
}

// mayBeThere says that the VM of a failover may be at its host.
func mayBeThere(rec *replica.Failover) bool {
	return made(rec) && (rec.Creating || slices.Contains(rec.Done, string(StepCreate)))
}

// complete says in the ledger that the VM runs.
func (r *run) complete(ctx context.Context) (text string, err error) {
	err = r.note(ctx, StepComplete, func(st *replica.State, rec *replica.Failover) {
		rec.Finished, rec.ByHand = r.Now().UTC(), r.Recovery.Host == nil
		if r.kind != Test {
			st.Phase, st.PhaseSince = replica.FailedOver, rec.Finished
		}
		text = fmt.Sprintf("RTO %s, RPO %s", RTO(*rec).Round(time.Millisecond), RPO(*rec).Round(time.Second))
		if rec.ByHand {
			text = fmt.Sprintf("nobody has started the VM, RPO %s", RPO(*rec).Round(time.Second))
		}
	})
	return text, err
}

// removeVM removes a VM that was made at the recovery host, and its disks.
func (j *Job) removeVM(ctx context.Context, st replica.State, k Kind) error {
	d, err := Made(*k.record(&st))
	if err != nil {
		return err
	}
	rec := *k.record(&st)
	if err := j.reaches(rec); err != nil {
		return err
	}
	if j.elsewhere(rec) {
		j.Log.Warn("what was made at a host that is lost is left there", "vm", j.VM, "host", rec.Host, "name", d.Name)
		return nil
	}
	if j.Recovery.Host != nil && mayBeThere(rec) { // else a VM of this name is somebody else's
		if err := j.Recovery.Host.Delete(ctx, d.Name); err != nil {
			return err
		}
	}
	return j.removeDisks(ctx, st, k, d)
}
