package failover

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sitrep/internal/disk"
	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
)

// Mode is how a failback synchronizes.
type Mode string

// The modes. MinimalDowntime synchronizes while the recovered VM runs, stops it and sends the rest; DuringFailover stops it
// first and synchronizes once.
const (
	MinimalDowntime Mode = "minimal-downtime"
	DuringFailover  Mode = "during-failover"
)

// Home is where a VM goes at failback: to the same place, or to another one.
type Home struct {
	Place Place
	// To names an alternate location, "" = the place that the VM came from. There the VM is made, and its disks, in the format
	// that they had.
	To string
	// Machine is the VM as it is made there: without disks and NICs.
	Machine host.Definition
	NICs    []host.NIC
	// Disks are those at home, in the order of the definition.
	Disks []HomeDisk
	// StateDir is a folder for what a failback has to remember of the disks that it has brought home.
	StateDir string
	// Readopt makes replication stand on the disks at home again, by the replica's block sums. It opens the replica by
	// itself. It is called at commit, when the ledger says FailedBack.
	Readopt func(ctx context.Context) error
}

// HomeDisk is a disk at home.
type HomeDisk struct {
	Name, Path, Format string
	// LogDir is where the change log lies that brings it home: the disk's folder, or another one for a device.
	LogDir string
	OS     bool
	// Parents are where the parents of the disk may lie: see disk.Open.
	Parents []string
}

// FailbackOptions are what an operator chooses.
type FailbackOptions struct{ Mode Mode }

// The steps of a failback, in their order.
const (
	StepFailbackBegin StepID = "failback-begin"
	StepTargets       StepID = "targets"
	StepSyncRunning   StepID = "synchronize-running"
	StepStopRecovered StepID = "stop-recovered"
	StepSyncStopped   StepID = "synchronize-stopped"
	StepCreateHome    StepID = "create-home"
	StepStartHome     StepID = "start-home"
	StepBootHome      StepID = "boot-home"
	StepFailbackDone  StepID = "failback-complete"
)

// PlanFailback lists what is left of a failback. It changes nothing.
func (j *Job) PlanFailback(ctx context.Context, o FailbackOptions) ([]Step, error) {
	st, err := j.load(ctx)
	if err == nil {
		err = Allowed(st, DoFailback)
	}
	if err == nil {
		err = j.sameWay(st)
	}
	if err != nil {
		return nil, j.in(err)
	}
	return j.failbackSteps(st, o), nil
}

// sameWay refuses to go on with a failback to other disks than those it was begun to: some hold what was brought home already.
func (j *Job) sameWay(st replica.State) error {
	fb := st.Failover.Failback
	if fb == nil {
		return nil
	}
	if fb.To != j.Home.To {
		return fault.New(fault.WrongState, "the failback was begun to %s, and goes on there; \"sitrep failover undo %s\" gives that way home up",
			cmp.Or(fb.To, "the place that the VM came from"), j.VM)
	}
	for _, d := range j.Home.Disks {
		if at := fb.Disks[d.Name]; at != d.Path {
			return fault.New(fault.WrongState, "the failback was begun to %s, and the site file names %s by now; \"sitrep failover undo %s\" gives that way home up",
				at, d.Path, j.VM).Of(j.VM, d.Name)
		}
	}
	return nil
}

func (j *Job) failbackSteps(st replica.State, o FailbackOptions) []Step {
	fb := st.Failover.Failback
	mode := o.Mode
	if fb != nil {
		mode = Mode(fb.Mode)
	}
	out := []Step{{StepCheck, "Prerequisites check for failback", "hosts, disks, the VM at home is off"}}
	add := func(id StepID, name, text string) {
		if fb == nil || !slices.Contains(fb.Done, string(id)) {
			out = append(out, Step{id, name, text})
		}
	}
	add(StepFailbackBegin, "Begin", "raise the generation in the store")
	add(StepTargets, "Prepare the disks at home", "make those that are not there")
	if mode == MinimalDowntime {
		add(StepSyncRunning, "Data synchronization", "compare and bring home what differs while the VM runs")
	}
	add(StepStopRecovered, "Shut down the recovered virtual machine", "stop it at "+j.Recovery.Describe()+": the downtime begins")
	add(StepSyncStopped, "Synchronizing the latest changes", "bring home what differs still")
	if j.Home.Place.Host != nil && !j.Home.Place.Foreign {
		add(StepCreateHome, "Create the virtual machine", "make "+j.Home.Place.Name+" at "+j.Home.Place.Describe()+" if it is not there")
		add(StepStartHome, "Start the virtual machine", "start "+j.Home.Place.Name+" at "+j.Home.Place.Describe())
		if j.Home.Place.Booted != nil {
			add(StepBootHome, "Wait until the virtual machine is up", "boot check")
		}
	}
	add(StepFailbackDone, "Complete", "write into the ledger that the VM is home")
	return out
}

// Failback brings the VM home, up to and including the step until ("" = all of it); see Run. Run again, it goes on.
func (j *Job) Failback(ctx context.Context, o FailbackOptions, until StepID) error {
	st, err := j.load(ctx)
	if err == nil {
		err = Allowed(st, DoFailback)
	}
	if err != nil {
		return j.in(err)
	}
	if err := j.sameWay(st); err != nil {
		return j.in(err)
	}
	f := &homeward{Job: j, opts: o}
	for _, s := range upTo(j.failbackSteps(st, o), until) {
		if err := j.Step(s.Name, func() (int64, string, error) { return f.do(ctx, s.ID) }); err != nil {
			return j.in(err)
		}
	}
	return nil
}

// homeward is one Failback.
type homeward struct {
	*Job
	opts FailbackOptions
}

func (f *homeward) do(ctx context.Context, id StepID) (bytes int64, note string, err error) {
	st, err := f.load(ctx)
	if err != nil {
		return 0, "", err
	}
	switch id {
	case StepCheck:
		return 0, "", f.checkHome(ctx, st)
	case StepFailbackBegin:
		return 0, "", f.beginFailback(ctx)
	case StepTargets:
		made, err := f.makeTargets(ctx, st)
		if err != nil {
			return made, "", err
		}
		return made, "", f.noted(ctx, id, func(_ *replica.State, fb *replica.Failback) { fb.Made, fb.Sent = made, made })
	case StepSyncRunning, StepSyncStopped:
		return f.synchronize(ctx, st, id)
	case StepStopRecovered:
		return 0, "", f.stopRecovered(ctx, st)
	case StepCreateHome:
		err = f.createHome(ctx, st)
	case StepStartHome:
		err = f.startHome(ctx)
	case StepBootHome:
		err = f.Home.Place.Booted(ctx, f.homeDefinition(st))
	case StepFailbackDone:
		return 0, "", f.noted(ctx, id, func(st *replica.State, fb *replica.Failback) {
			fb.Finished = f.Now().UTC()
			fb.ByHand = f.Recovery.Host == nil || f.startedByPeople()
			st.Phase, st.PhaseSince = replica.FailedBack, fb.Finished
			st.DisksAnew()
		})
	default:
		return 0, "", fmt.Errorf("failback has no step %q", id)
	}
	if err != nil {
		return 0, "", err
	}
	return 0, "", f.noted(ctx, id, nil)
}

// startedByPeople says that sitrep does not start the VM at home.
func (f *homeward) startedByPeople() bool { return f.Home.Place.Host == nil || f.Home.Place.Foreign }

// noted changes the record of the failback in the ledger, and says there that a step is done.
func (f *homeward) noted(ctx context.Context, id StepID, change func(*replica.State, *replica.Failback)) error {
	return f.change(ctx, func(st *replica.State) error {
		if st.Failover == nil || st.Failover.Failback == nil {
			return fault.New(fault.FailoverFailed, "the ledger no longer knows of this failback: it was undone meanwhile")
		}
		rec, fb := *st.Failover, *st.Failover.Failback
		fb.Done = slices.Clone(fb.Done)
		if change != nil {
			change(st, &fb)
		}
		if !slices.Contains(fb.Done, string(id)) {
			fb.Done = append(fb.Done, string(id))
		}
		rec.Failback = &fb
		st.Failover = &rec
		return nil
	})
}

// checkHome is what has to hold before anything changes.
func (f *homeward) checkHome(ctx context.Context, st replica.State) error {
	d, err := f.recovered(st)
	if err != nil {
		return err
	}
	if err := f.writableTargets(st); err != nil {
		return err
	}
	final := st.Failover.Failback != nil && slices.Contains(st.Failover.Failback.Done, string(StepSyncStopped))
	if final { // then it may be this failback that has started the VM at home
		return nil
	}
	for _, x := range d.Disks {
		if err := f.madeIn(Unplanned, st.Failover).prove(x); err != nil {
			return err
		}
	}
	if err := f.homeIsOurs(st, d); err != nil {
		return err
	}
	if err := f.sameHome(ctx, st); err != nil {
		return err
	}
	if err := f.recoveredWritten(ctx, d); err != nil {
		return err
	}
	if err := f.homeIsOff(ctx); err != nil {
		return err
	}
	if err := f.homeMakes(ctx, st); err != nil {
		return err
	}
	if err := f.homeFree(ctx); err != nil {
		return err
	}
	return f.sizesFit(ctx, st, d)
}

// homeIsOff refuses to write to the disks of a VM that runs, or whose memory was saved.
func (f *homeward) homeIsOff(ctx context.Context) error {
	if f.Home.Place.Host == nil {
		return nil
	}
	power, err := f.Home.Place.Host.State(ctx, f.Home.Place.Name)
	switch {
	case err != nil:
		return err
	case power == host.Saved:
		return fault.New(fault.HostRefused, "%s has saved the memory of %s, which knows the disks as they were: start it there and shut it down, or remove the saved state",
			f.Home.Place.Describe(), f.Home.Place.Name)
	case power == host.Running || power == host.Paused:
		return fault.New(fault.HostRefused, "%s runs %s: its disks cannot be written to; shut it down there (what it wrote since the failover is lost)",
			f.Home.Place.Describe(), f.Home.Place.Name)
	}
	return nil
}

// homeMakes asks a host at home that does not have the VM whether it would make it: that comes when the recovered VM was stopped.
func (f *homeward) homeMakes(ctx context.Context, st replica.State) error {
	h, can := f.Home.Place.Host.(host.Rehearser)
	if !can {
		return nil
	}
	power, err := f.Home.Place.Host.State(ctx, f.Home.Place.Name)
	if err != nil || power != host.Absent {
		return err
	}
	return h.Rehearse(ctx, f.homeDefinition(st))
}

// homeFree refuses disks at home that cannot be written to: something uses them, or a checkpoint lies on top of one.
func (f *homeward) homeFree(ctx context.Context) error {
	if err := f.homeUnused(); err != nil {
		return err
	}
	if f.NotSaved != nil && f.Home.To == "" {
		if err := f.NotSaved(f.Home.Place.Name); err != nil {
			return err
		}
	}
	return f.homeWritten(ctx, f.Home.Place)
}

// beginFailback raises the generation: whoever acts for the VM from now on is this site. That it is done is noted afterwards, so that a
// run that was killed in the middle is completed, or, on another machine, taken over.
func (f *homeward) beginFailback(ctx context.Context) error {
	rep, err := f.Store.Seize(ctx, f.VM, func(st replica.State) (replica.State, error) {
		if err := Allowed(st, DoFailback); err != nil {
			return st, err
		}
		if st.Failover.Failback != nil && f.owns(st) {
			return st, nil
		}
		if st.Failover.Failback != nil {
			return f.raise(st), nil
		}
		disks := map[string]string{}
		for _, d := range f.Home.Disks {
			disks[d.Name] = d.Path
		}
		rec := *st.Failover
		rec.Failback = &replica.Failback{
			ID: hrl.NewID(), Mode: string(f.opts.Mode), Started: f.Now().UTC(), To: f.Home.To, Disks: disks,
		}
		st.Failover = &rec
		st.Phase, st.PhaseSince = replica.FailbackStarted, f.Now().UTC()
		return f.raise(st), nil
	})
	if err == nil {
		err = rep.Close()
	}
	if err != nil {
		return err
	}
	return f.noted(ctx, StepFailbackBegin, nil)
}

// stopRecovered stops the VM at the recovery site.
func (f *homeward) stopRecovered(ctx context.Context, st replica.State) error {
	d, err := f.recovered(st)
	if err != nil {
		return err
	}
	if err := errors.Join(f.homeFree(ctx), f.recoveredWritten(ctx, d)); err != nil { // it may have changed since the failback was begun
		return err
	}
	began := f.Now().UTC()
	if f.Recovery.Host != nil {
		if err := f.Recovery.Host.Stop(ctx, d.Name, f.Recovery.Grace); err != nil {
			return err
		}
	}
	return f.noted(ctx, StepStopRecovered, func(_ *replica.State, fb *replica.Failback) { fb.Stopped = began })
}

// synchronize brings home what differs, with the recovered VM held still where it runs and its host can.
func (f *homeward) synchronize(ctx context.Context, st replica.State, id StepID) (sent int64, note string, err error) {
	d, err := f.recovered(st)
	if err != nil {
		return 0, "", err
	}
	running := id == StepSyncRunning
	if !running {
		if note, err = f.untouched(ctx, st, d); err != nil {
			return 0, "", err
		}
	}
	thaw, err := f.freezeIf(ctx, d.Name, running)
	if err != nil {
		return 0, "", err
	}
	sent, err = f.bring(ctx, st, d, running)
	if e := fault.Find(err); e != nil && e.Class() == fault.Resync { // said of logs of a failback it means: bring them anew
		err = fault.Wrap(fault.FailoverFailed, err, "the disks at home are whole, old or new")
	}
	if err = errors.Join(err, thaw()); err != nil {
		return sent, "", err
	}
	return sent, note, f.noted(ctx, id, func(_ *replica.State, fb *replica.Failback) { fb.Sent += sent })
}

// untouched looks for disks that nothing has written to since they were made: a VM that ran wrote something. One that ran from
// copies of its disks wrote elsewhere, and what was brought home from here would be the recovery point, with all that it wrote lost. A
// disk that is only read is the same to look at, so some are worth a warning; all of them are none that a VM ran from.
func (f *homeward) untouched(ctx context.Context, st replica.State, d host.Definition) (note string, err error) {
	names, err := f.madeIn(Unplanned, st.Failover).untouched(ctx, st.Failover.DiskStamps, d.Disks)
	switch {
	case err != nil || len(names) == 0:
		return "", err
	case len(names) == len(d.Disks):
		return "", fault.New(fault.FailoverFailed, "nothing has written to the disks in the store since they were made: when the VM ran from copies of them, bring "+
			"these back there first; when it wrote nothing, change any metadata of a blob to say so").At(d.Disks[0].Path)
	}
	note = "nothing was written since the failover to " + strings.Join(names, ", ")
	f.Log.Warn(note, "vm", f.VM)
	return note, nil
}

// freezeIf holds the recovered VM still while it is read, if that is wanted, it runs, and its host can. It goes on whatever
// happens, when the function that is returned is called.
func (f *homeward) freezeIf(ctx context.Context, vm string, wanted bool) (thaw func() error, err error) {
	none := func() error { return nil }
	freezer, ok := f.Recovery.Host.(host.Freezer)
	if !ok || !wanted {
		return none, nil
	}
	if f.Hold != nil {
		return f.Hold(ctx, vm)
	}
	held, err := freezer.Freeze(ctx, vm)
	if err != nil || !held {
		return none, err
	}
	return func() error { return freezer.Thaw(context.WithoutCancel(ctx), vm) }, nil
}

// createHome makes the VM at home where it is not there: at an alternate location, or because it was lost.
func (f *homeward) createHome(ctx context.Context, st replica.State) error {
	power, err := f.Home.Place.Host.State(ctx, f.Home.Place.Name)
	if err != nil || power != host.Absent {
		return err
	}
	return f.Home.Place.Host.Create(ctx, f.homeDefinition(st))
}

// startHome starts the VM at home, unless something else has its disks by now.
func (f *homeward) startHome(ctx context.Context) error {
	power, err := f.Home.Place.Host.State(ctx, f.Home.Place.Name)
	if err == nil && power != host.Running && power != host.Paused {
		err = f.homeUnused()
	}
	if err != nil {
		return err
	}
	return f.Home.Place.Host.Start(ctx, f.Home.Place.Name)
}

// homeDefinition is the VM as it is made at home.
func (f *homeward) homeDefinition(st replica.State) host.Definition {
	d := f.Home.Machine
	d.Name, d.NICs = f.Home.Place.Name, f.Home.NICs
	for _, h := range f.Home.Disks {
		disk := host.Disk{Name: h.Name, Path: h.Path, Format: h.Format, OS: h.OS}
		if s := st.Disk(h.Name); s != nil {
			disk.Size, disk.Format, disk.SectorSize = s.Size, string(h.target(st).Format), s.SectorSize
		}
		if h.OS {
			d.Disks = append([]host.Disk{disk}, d.Disks...)
		} else {
			d.Disks = append(d.Disks, disk)
		}
	}
	return d
}

// undoFailback gives up the way home: the recovered VM runs on. What was brought home stays there, and is brought up to date
// by the next failback.
func (j *Job) undoFailback(ctx context.Context, st replica.State) error {
	d, err := j.recovered(st)
	if err != nil {
		return j.in(err)
	}
	fb := st.Failover.Failback
	return j.tasks(ctx, []task{
		{"Stop the virtual machine at home", func(ctx context.Context) (string, error) {
			if j.Home.Place.Host == nil || !slices.Contains(fb.Done, string(StepStartHome)) {
				return "it was not started", nil
			}
			return "", j.Home.Place.Host.Stop(ctx, j.Home.Place.Name, j.Home.Place.Grace)
		}},
		{"Leave the disks at home whole", func(ctx context.Context) (string, error) { return "", j.whole(ctx, st) }},
		{"Start the recovered virtual machine", func(ctx context.Context) (string, error) {
			if j.Recovery.Host == nil || fb.Stopped.IsZero() {
				return "it was not stopped", nil
			}
			return "", j.Recovery.Host.Start(ctx, d.Name)
		}},
		{"Give up the failback", func(ctx context.Context) (string, error) {
			return "", j.change(ctx, func(st *replica.State) error {
				if st.Phase != replica.FailbackStarted {
					return nil
				}
				rec := *st.Failover
				rec.Failback = nil
				st.Failover = &rec
				j.end(st, DoUndo)
				st.Phase, st.PhaseSince = replica.Committed, st.Ended.At
				return nil
			})
		}},
	})
}

// commitFailback ends the failover for good. The recovered VM is deleted when the disks at home were found to be what can be
// replicated from, and not before: until then it is the only other one. The replica is still what the VM was failed over from: replication stands on
// it again, and the next delta finds what was written since.
func (j *Job) commitFailback(ctx context.Context, st replica.State) error {
	if err := j.knowsHome(*st.Failover.Failback); err != nil {
		return j.in(err)
	}
	return j.tasks(ctx, []task{
		{"Prerequisites check for commit", func(ctx context.Context) (string, error) {
			d, err := j.recovered(st)
			if err == nil {
				err = j.recoveredWritten(ctx, d)
			}
			if err == nil {
				err = j.homeWritten(ctx, j.Home.Place)
			}
			if err != nil {
				return "", err
			}
			return "", j.whatCameHome(st)
		}},
		{"Make replication stand on the disks at home", func(ctx context.Context) (string, error) {
			if err := j.forget(ctx, st); err != nil {
				return "", err
			}
			return "", j.Home.Readopt(ctx)
		}},
		{"Delete the recovered virtual machine and its disks", func(ctx context.Context) (string, error) {
			return "", j.removeVM(ctx, st, Unplanned)
		}},
		{"Replicate in the old direction", func(ctx context.Context) (string, error) {
			return "", j.change(ctx, func(st *replica.State) error {
				if st.Phase != replica.FailedBack {
					return nil
				}
				from := st.Failover.From
				j.end(st, DoCommit)
				st.Owner = j.ownerAtHome(*st)
				for i := range st.Disks {
					if p := st.Failover.Failback.Disks[st.Disks[i].Name]; p != "" {
						st.Disks[i].Source = p
					}
					for _, d := range j.Home.Disks {
						if d.Name == st.Disks[i].Name {
							st.Disks[i].Format = string(d.target(*st).Format)
						}
					}
					st.Disks[i].Identity = "" // it may be another file now: the next capture learns it
				}
				st.Phase, st.PhaseSince, st.Failover = replica.Replicating, j.Now().UTC(), nil
				if from == replica.ResyncRequired || from == replica.Resynchronizing { // it was before, and still is
					st.Phase, st.Reason = from, "the replica needed a resynchronization before the failover"
				} else {
					st.Reason, st.ReasonCode = "", ""
				}
				return nil
			})
		}},
	})
}

// ownerAtHome is who replicates the VM from now on: who did before, when the site that failed it over brings it home; else whoever
// brings it to its new home.
func (j *Job) ownerAtHome(st replica.State) replica.Owner {
	home := j.By
	if source := st.Failover.Source; source.Same(home) || st.Failover.By.Same(home) && source != (replica.Owner{}) {
		home = source
	}
	if home.Same(j.By) {
		home = j.By
	}
	home.Since = j.Now().UTC()
	return home
}

// knowsHome refuses to replicate from disks that are not those to which the VM was brought.
func (j *Job) knowsHome(fb replica.Failback) error {
	for _, d := range j.Home.Disks {
		if at := fb.Disks[d.Name]; at != d.Path {
			return fault.New(fault.PrerequisiteFail, "the VM was brought home to %s, and the site file names %s: put the VM under host %s there, with the paths "+
				"of its disks (and \"vms: []\" under a host that has none any more), before the failback is committed", at, d.Path, fb.To).Of(j.VM, d.Name)
		}
	}
	return nil
}

// whatCameHome looks for the disks at home: as long as one cannot be opened, the recovered one is not given up.
func (j *Job) whatCameHome(st replica.State) error {
	err := j.lookHome(st)
	if e := fault.Find(err); e != nil {
		e.Next = "sitrep failover commit " + j.VM // the commands of a VM that replicates are refused in this state
	}
	return err
}

func (j *Job) lookHome(st replica.State) error {
	for _, d := range j.Home.Disks {
		img, err := disk.Open(j.FS, d.Path, disk.Format(d.Format))
		if err != nil {
			return fault.In(err, j.VM, d.Name)
		}
		size := img.Size()
		if err := img.Close(); err != nil {
			return fault.In(err, j.VM, d.Name)
		}
		if s := st.Disk(d.Name); s != nil && size < s.Size {
			return fault.New(fault.DiskShrunk, "the disk at home has %d bytes, its replica has %d", size, s.Size).At(d.Path).Of(j.VM, d.Name)
		}
	}
	return nil
}

// Downtime is how long a VM was down while it was brought home; 0 as long as that is not known, and when people stop or start it.
func Downtime(fb replica.Failback) time.Duration {
	if fb.ByHand || fb.Stopped.IsZero() || fb.Finished.IsZero() {
		return 0
	}
	return max(0, fb.Finished.Sub(fb.Stopped))
}
