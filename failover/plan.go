package failover

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
)

// StepID names a step in the ledger.
type StepID string

// The steps of a failover, in their order.
const (
	StepCheck       StepID = "check"
	StepBegin       StepID = "begin"
	StepStopSource  StepID = "stop-source"
	StepLastChanges StepID = "last-changes"
	StepTakeOver    StepID = "take-over"
	StepFinish      StepID = "finish"
	// StepProve is of a failover that is changed to another point: that one is read before what was made of the first is given up.
	StepProve    StepID = "prove"
	StepClear    StepID = "clear"
	StepDisks    StepID = "disks"
	StepCreate   StepID = "create"
	StepStart    StepID = "start"
	StepBoot     StepID = "boot"
	StepHook     StepID = "hook"
	StepComplete StepID = "complete"
	// StepUndo says that an undo, or the clean-up of a test, has begun to remove what was made.
	StepUndo StepID = replica.BeingUndone
	// StepGiveBack is of an undo: the generation is raised for it.
	StepGiveBack StepID = "give-back"
)

// Step is one step of a plan: what it is called in jobs, and what it will do.
type Step struct {
	ID   StepID
	Name string
	Text string
}

// order is all steps of a failover and of a failback, in the order in which they are done.
func order() []StepID {
	return []StepID{StepCheck, StepBegin, StepStopSource, StepLastChanges, StepTakeOver, StepFinish, StepProve, StepClear, StepDisks,
		StepCreate, StepStart, StepBoot, StepHook, StepComplete,
		StepFailbackBegin, StepTargets, StepSyncRunning, StepStopRecovered, StepSyncStopped, StepCreateHome, StepStartHome, StepBootHome, StepFailbackDone}
}

// upTo is the steps that come no later than until ("" = all). The steps are what is left, so until itself may not be among them.
func upTo(steps []Step, until StepID) []Step {
	if until == "" {
		return steps
	}
	all := order()
	last := slices.Index(all, until)
	end := slices.IndexFunc(steps, func(s Step) bool { return slices.Index(all, s.ID) > last })
	if end < 0 {
		return steps
	}
	return steps[:end]
}

// Plan is what a failover will do from where it stands.
type Plan struct {
	VM    string
	Kind  Kind
	Point string         // the word of the options
	Found *replica.Point // the point that it means now; applying the shelf may find a newer one
	Steps []Step
	VMDef host.Definition // what will be made
	Notes []string
	// Bytes is the size of the disks to be made; holes are not copied.
	Bytes int64
	// Redefined says that the disks are made, the VM was never started, and the site file describes it differently by now: it is made
	// as the file says.
	Redefined bool
	// ChangesPoint says that a VM is there already and will be made anew from another point.
	ChangesPoint bool
}

// event is the one of the table of states.
func (k Kind) event() Event {
	return map[Kind]Event{Test: DoTest, Planned: DoPlanned, Unplanned: DoUnplanned}[k]
}

// record is where the ledger keeps how far a failover of the kind is; nil when it was not begun.
func (k Kind) record(st *replica.State) **replica.Failover {
	if k == Test {
		return &st.Test
	}
	return &st.Failover
}

// Plan makes the plan of a failover. It changes nothing; what stands in the way is an error.
func (j *Job) Plan(ctx context.Context, k Kind, o Options) (Plan, error) {
	st, err := j.load(ctx)
	if err != nil {
		return Plan{}, err
	}
	p, err := j.plan(ctx, st, k, o)
	return p, j.in(err)
}

func (j *Job) plan(ctx context.Context, st replica.State, k Kind, o Options) (p Plan, err error) {
	rec := *k.record(&st)
	if k == Test && rec != nil {
		if !rec.Finished.IsZero() {
			return p, fault.New(fault.TestRunning, "a test failover is there since %s", stamp(rec.Started))
		}
	} else if err := Allowed(st, k.event()); err != nil {
		return p, err
	}
	lost := j.HostLost && j.elsewhere(rec)
	if k == Unplanned && st.Phase == replica.FailedOver && o.Point == "" && !lost { // what runs is not given up by a command that is repeated
		return p, runsAlready(rec)
	}
	p = Plan{VM: j.VM, Kind: k, Point: o.Point}
	if p.Point == "" && rec != nil && rec.Point != "" {
		p.Point = rec.Point // it goes on with the point that it was begun with
	}
	if p.Found, err = Choose(st, p.Point, j.Now().Location()); err != nil {
		return p, err
	}
	if k == Planned && o.Point != "" && p.Point != Latest {
		return p, fault.New(fault.UsageError, "a planned failover loses nothing: it has no choice of recovery points")
	}
	if k == Planned && j.NotMine != nil && !st.Phase.Away() { // before the source is stopped
		return p, j.NotMine
	}
	if k == Planned && !st.Phase.Away() && len(j.Unreplicated) > 0 {
		e := fault.New(fault.PrerequisiteFail, "disk %s is not replicated: the VM would come up without it", strings.Join(j.Unreplicated, ", "))
		e.Next = "sitrep protect " + j.VM
		return p, e
	}
	if k == Planned && rec.Undone() { // the source may have run since
		return p, fault.New(fault.WrongState, "an undo was begun, and only it can be completed; \"failover unplanned\" makes the VM anew")
	}
	p.ChangesPoint = rec != nil && rec.Point != "" && rec.Point != p.Found.ID
	if k == Unplanned && st.Phase == replica.FailedOver && !p.ChangesPoint && !lost {
		return p, runsAlready(rec)
	}
	if err := j.reaches(rec); err != nil {
		return p, err
	}
	if p.VMDef, err = Made(rec); err != nil { // what was made has the addresses that it was given
		return p, err
	}
	if p.VMDef.Name == "" || p.ChangesPoint || rec.Undone() || lost {
		if p.VMDef, p.Notes, err = j.definition(ctx, st, *p.Found, k); err != nil {
			return p, err
		}
	}
	if err := j.refresh(ctx, st, k, rec, &p); err != nil {
		return p, err
	}
	for _, d := range p.VMDef.Disks {
		p.Bytes += d.Size
	}
	p.Steps = j.steps(st, k, o, p)
	return p, nil
}

// refresh takes what the site file says of a VM whose disks are made and that was never started: a host may have refused it as it was.
func (j *Job) refresh(ctx context.Context, st replica.State, k Kind, rec *replica.Failover, p *Plan) error {
	started := !made(rec) || slices.Contains(rec.Done, string(StepStart))
	if started || p.ChangesPoint || rec.Undone() || j.elsewhere(rec) {
		return nil
	}
	d, notes, err := j.definition(ctx, st, *p.Found, k)
	if err != nil { // it has the addresses that it was given
		return nil
	}
	d.Disks = p.VMDef.Disks
	was, err := json.Marshal(p.VMDef)
	if err != nil {
		return err
	}
	is, err := json.Marshal(d)
	if err == nil && string(was) != string(is) {
		p.VMDef, p.Notes, p.Redefined = d, notes, true
	}
	return err
}

func runsAlready(rec *replica.Failover) error {
	return fault.New(fault.WrongState, "the VM runs from recovery point %s since %s; give another --point, or commit, or undo",
		rec.Point, stamp(rec.Finished))
}

// definition is the VM that will be made.
func (j *Job) definition(ctx context.Context, st replica.State, at replica.Point, k Kind) (d host.Definition, notes []string, err error) {
	d = j.Machine
	d.Name, d.Disposable = j.nameAt(k), k == Test
	if d.NICs, notes, err = j.NICs(ctx, k); err != nil {
		return d, notes, err
	}
	var rest []host.Disk
	for _, s := range st.Disks {
		size, ok := at.Sizes[s.Name]
		if !ok {
			continue
		}
		path, format := j.disksOf(j.DisksIn, k, hrl.ID{}).disk(s.Name)
		made := host.Disk{Name: s.Name, Path: path, Format: string(format), Size: size, OS: s.OS, SectorSize: s.SectorSize}
		if err := j.takes(made); err != nil {
			return d, notes, err
		}
		if s.OS {
			d.Disks = append(d.Disks, made) // the first one boots
		} else {
			rest = append(rest, made)
		}
	}
	d.Disks = append(d.Disks, rest...)
	for _, name := range st.Without(at) {
		notes = append(notes, "the VM has no disk "+name+" at this recovery point: it was added later")
	}
	for _, name := range j.Unreplicated {
		if st.Disk(name) == nil && st.Joins(name) == nil {
			notes = append(notes, "the VM has no disk "+name+" there: it is not replicated")
		}
	}
	return d, notes, nil
}

// nameAt is the VM's name at the recovery host.
func (j *Job) nameAt(k Kind) string {
	if k == Test {
		return j.Recovery.Name + "-test"
	}
	return j.Recovery.Name
}

// steps lists what is left to do.
func (j *Job) steps(st replica.State, k Kind, o Options, p Plan) []Step {
	rec := *k.record(&st)
	done := func(id StepID) bool { return rec != nil && slices.Contains(rec.Done, string(id)) }
	var out []Step
	add := func(id StepID, name, text string) {
		if !done(id) {
			out = append(out, Step{id, name, text})
		}
	}
	out = append(out, Step{StepCheck, "Prerequisites check for " + string(k.event()), "hosts, addresses, folders"})
	add(StepBegin, "Begin", "write into the ledger that it was begun")
	stop := Step{StepStopSource, "Shut down the virtual machine", j.stopText(k)}
	switch {
	case k == Test:
	case done(StepTakeOver) && j.began(rec):
		if rec.Undone() && !o.NoShutdown { // which may have started it
			out = append(out, stop)
		}
	default:
		taken := st.Phase.Away() // by a run that was interrupted before the fence was complete, or by another machine
		switch {
		case rec.Undone() && !o.NoShutdown:
			out = append(out, stop)
		case !taken && (k == Planned || !o.NoShutdown):
			add(stop.ID, stop.Name, stop.Text)
			add(StepLastChanges, "Synchronizing the latest changes", j.lastText(k))
		}
		out = append(out, Step{StepTakeOver, "Take over the replica", "raise the generation in the store: whoever acted for the VM is refused from then on"})
	}
	switch {
	case j.HostLost && j.elsewhere(rec):
		out = append(out, Step{StepClear, "Leave the host that is lost", "forget what was made at " + rec.Host + ", and remove nothing there"})
		rec = nil
	case p.ChangesPoint:
		if made(rec) && !rec.Undone() {
			out = append(out, Step{StepProve, "Prove the recovery point", "read " + plural(len(p.VMDef.Disks), "disk") + " of point " + p.Found.ID +
				" to prove them; " + p.VMDef.Name + " is left as it is when they are damaged"})
		}
		out = append(out, Step{StepClear, "Change the recovery point", "remove the VM and the disks that were made of point " + rec.Point})
		rec = nil // everything behind it is done anew
	case rec.Undone():
		out = append(out, Step{StepClear, "Remove what is left", "remove the VM and the disks that an interrupted undo or clean-up has left"})
		rec = nil
	default:
		add(StepFinish, "Start failover", "apply what lies on the shelf where that is wanted, and choose the recovery point")
	}
	if p.Redefined && rec != nil {
		fresh := *rec
		fresh.Done = slices.DeleteFunc(slices.Clone(rec.Done), func(s string) bool { return s == string(StepCreate) })
		rec = &fresh
	}
	add(StepDisks, "Prepare the disks", j.disksOf(j.DisksIn, k, hrl.ID{}).plan(plural(len(p.VMDef.Disks), "disk"), p.Found.ID))
	if j.Recovery.Host != nil {
		add(StepCreate, "Create the replica virtual machine", "make "+p.VMDef.Name+" at "+j.Recovery.Describe())
		add(StepStart, "Start the replica virtual machine", "start "+p.VMDef.Name)
		if j.Recovery.Booted != nil {
			add(StepBoot, "Wait until the virtual machine is up", "boot check")
		}
	}
	if j.Hook != nil {
		add(StepHook, "Run the VM's hook", "re-IP and what else the operator's program does")
	}
	add(StepComplete, "Complete", "write into the ledger where the VM runs")
	return out
}

// began says whether a failover is this site's, on this machine. One of another machine is gone on with only after it was
// taken over from there too.
func (j *Job) began(rec *replica.Failover) bool {
	return rec != nil && rec.By.Same(j.By)
}

func (j *Job) stopText(k Kind) string {
	switch {
	case j.Source.Host == nil:
		return "nothing: sitrep has no hand on the source host; the VM is known to be off"
	case k == Planned:
		return "stop " + j.Source.Name + " at " + j.Source.Describe() + ", its power after " + j.Source.Grace.String()
	}
	return "try to stop " + j.Source.Name + " at " + j.Source.Describe() + "; it goes on if that fails"
}

func (j *Job) lastText(k Kind) string {
	if k == Planned {
		return "a last delta of the stopped VM: nothing is lost"
	}
	return "a last delta, if the VM could be stopped"
}

// pointThere refuses a point that something else removed from the store, unless what is to be applied makes a newer one.
func (j *Job) pointThere(ctx context.Context, st replica.State, k Kind, p Plan) error {
	newer := k == Planned || (p.Point == "" || p.Point == Latest) && len(st.Pending) > 0
	if newer || !p.has(StepDisks) {
		return nil
	}
	r, err := j.Store.View(ctx, j.VM)
	if err != nil {
		return err
	}
	missing, err := replica.UnprovenPoints(ctx, r, st.Only(p.Found.ID))
	if err = errors.Join(err, r.Close()); err == nil && slices.Contains(missing, p.Found.ID) {
		err = lost(j.VM, p.Found.ID)
	}
	return err
}

// Foresee asks of hosts, disks and folders what can be known beforehand of a failover as it was planned. It changes nothing.
func (j *Job) Foresee(ctx context.Context, k Kind, p Plan) error {
	st, err := j.load(ctx)
	if err == nil {
		err = j.foresee(ctx, st, k, p)
	}
	return j.in(err)
}

// check is the first step: Foresee, and a try of the folder of the disks. Nothing was changed when it fails.
func (j *Job) check(ctx context.Context, st replica.State, k Kind, p Plan) error {
	if err := j.foresee(ctx, st, k, p); err != nil {
		return err
	}
	return j.roomFor(ctx, *k.record(&st), k, p)
}

func (j *Job) foresee(ctx context.Context, st replica.State, k Kind, p Plan) error {
	if k == Planned && p.has(StepStopSource) {
		if err := j.homeWritten(ctx, j.Source); err != nil {
			return err
		}
		if j.Source.Host == nil {
			if err := j.homeUnused(); err != nil { // the VM has to be off, and nobody else can say so
				return err
			}
		}
	}
	if j.Source.Host != nil && p.has(StepStopSource) && k == Planned {
		power, err := j.Source.Host.State(ctx, j.Source.Name)
		if err != nil {
			return err
		}
		if power == host.Absent {
			return fault.New(fault.VMAbsent, "%s has no VM %q to be shut down", j.Source.Describe(), j.Source.Name)
		}
	}
	if rec := *k.record(&st); j.Recovery.Host != nil && (!mayBeThere(rec) || j.elsewhere(rec)) {
		if err := j.vacant(ctx, p.VMDef.Name); err != nil {
			return err
		}
	}
	if err := j.pointThere(ctx, st, k, p); err != nil {
		return err
	}
	if *k.record(&st) != nil || !p.has(StepDisks) { // what was begun has asked, and may have made disks since
		return nil
	}
	if err := j.volumeFor(ctx, p); err != nil {
		return err
	}
	if h, ok := j.Recovery.Host.(host.Rehearser); ok {
		return h.Rehearse(ctx, p.VMDef)
	}
	return nil
}

// vacant refuses a host that has a VM of this name.
func (j *Job) vacant(ctx context.Context, name string) error {
	power, err := j.Recovery.Host.State(ctx, name)
	if err != nil {
		return err
	}
	if power != host.Absent && power != host.Unknown {
		return fault.New(fault.HostRefused, "%s has a VM %q already, and it is %s: it would be made over, and an undo would delete it; "+
			"rename or remove it there", j.Recovery.Describe(), name, power)
	}
	return nil
}

// roomFor is what can be known beforehand of the place of the disks. What was made there already is this failover's.
func (j *Job) roomFor(ctx context.Context, rec *replica.Failover, k Kind, p Plan) error {
	var id hrl.ID
	switch {
	case j.elsewhere(rec), rec == nil:
	case made(rec):
		return nil
	default:
		id = rec.ID
	}
	return j.disksOf(j.DisksIn, k, id).ready(ctx, p.VMDef.Disks)
}

// made says that a VM of this failover may be at its host: the ledger learns of it before it is created there.
func made(rec *replica.Failover) bool { return rec != nil && len(rec.VM) > 0 }

// has says that a step is left to do.
func (p Plan) has(id StepID) bool {
	return slices.ContainsFunc(p.Steps, func(s Step) bool { return s.ID == id })
}

// Made is the VM that a failover has made, as the ledger has it; the zero Definition when nothing was made yet, or rec is nil.
func Made(rec *replica.Failover) (d host.Definition, err error) {
	if rec == nil || len(rec.VM) == 0 {
		return d, nil
	}
	if err := json.Unmarshal(rec.VM, &d); err != nil {
		return d, fault.Wrap(fault.LedgerCorrupt, err, "the ledger's record of the VM that was made is damaged")
	}
	return d, nil
}

// begunAt is when the source was given up.
func begunAt(rec replica.Failover) time.Time {
	if rec.Begun.IsZero() {
		return rec.Started
	}
	return rec.Begun
}

// RPO is how much of the VM's past a failover lost, when it was begun at a time: nothing when the source was stopped, its last changes were
// brought over, and the VM is made of the point that has them. A VM that wrote nothing since its newest point has lost what came after the
// last delta that found that, whatever the age of the point.
func RPO(rec replica.Failover) time.Duration {
	whole := rec.Kind == string(Planned) || slices.Contains(rec.Done, string(StepLastChanges)) || rec.Whole != "" && rec.Whole == rec.Point
	if whole || rec.CutAt.IsZero() {
		return 0
	}
	known := rec.CutAt
	if rec.Unchanged.After(known) {
		known = rec.Unchanged
	}
	return max(0, begunAt(rec).Sub(known))
}

// RTO is how long a failover took until the VM was up, from when the source was given up; 0 while it is not, and when it is not known
// because people start it.
func RTO(rec replica.Failover) time.Duration {
	if rec.Finished.IsZero() || rec.ByHand {
		return 0
	}
	return max(0, rec.Finished.Sub(begunAt(rec)))
}

// Newer says that the point of the plan is the one that there is now, and that a newer one will be taken when the last changes of the
// source come over.
func (p Plan) Newer() bool {
	return p.has(StepLastChanges) && (p.Kind == Planned || p.Point == "" || p.Point == Latest)
}
