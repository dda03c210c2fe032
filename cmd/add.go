package cmd

import (
	"context"
	"slices"
	"strings"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/internal/state"
	"sitrep/internal/track/scan"
)

const (
	jobAdd  = "Initial replication of an added disk"
	stepAdd = "Copy the added disk"
)

// addedDisks are the disks of the site file that a protected VM does not have in its replica. They are replicated when the operator has
// said so, with protect: a path may be wrong.
func addedDisks(vm *site.VM, st replica.State) (out []*site.Disk) {
	for _, d := range vm.Disks {
		if st.Disk(d.Name) == nil {
			out = append(out, d)
		}
	}
	return out
}

// givenUp names the disks that were to join the VM, and that the site file does not have any more.
func givenUp(vm *site.VM, st replica.State) (out []string) {
	for _, d := range st.Joining {
		if diskOf(vm, d.Name) == nil {
			out = append(out, d.Name)
		}
	}
	return out
}

// addsDisks returns the ledger of a VM of this site whose deltas flow, when protect has a disk to add to it, or one to give up; else nil.
func (w *world) addsDisks(ctx context.Context, vm *site.VM) *replica.State {
	st, err := w.existing(ctx, vm)
	if err != nil || st == nil || w.owned(*st) != nil || st.Phase != replica.Replicating {
		return nil // said by what else protect does
	}
	if len(addedDisks(vm, *st)) == 0 && len(st.Joining) == 0 && len(st.Joined) == 0 {
		return nil
	}
	return st
}

// addDisks copies the disks that are new in the site file, in slices, with deltas of the other disks in between; other runs may take their
// turn after each. The first delta behind the copy has all disks. Killed at any time, it is run again and goes on.
func (w *world) addDisks(ctx context.Context, vm *site.VM, st replica.State, o *seedObject) error {
	add, err := w.mayAdd(ctx, vm, st, o)
	if err != nil {
		return err
	}
	for _, name := range add.drop {
		if diskOf(vm, name) == nil {
			w.say("%s: disk %s is not in the site file any more, and is no longer added", vm.Name, name)
		}
	}
	return w.job(vm, jobAdd, &o.vmHead, func(j *state.Job) error {
		return j.Step(stepAdd, func() (int64, string, error) {
			c := w.clock()
			for {
				complete, err := w.addSlice(ctx, vm, &add, o)
				if err != nil {
					return o.Sent, "", err
				}
				err = w.whenFree(ctx, vm, func() error { return w.delta(ctx, vm, &deltaObject{}) })
				if err != nil && (complete || fault.FromOS(err).Class() != fault.Recoverable || fault.Cancelled(err)) {
					return o.Sent, "", err
				}
				if err != nil {
					w.log.Warn("a delta of the other disks failed; the copy of the added one goes on", "vm", vm.Name, "error", err)
				}
				if complete {
					o.Seconds = c.took().Seconds()
					return o.Sent, "", w.sayJoined(ctx, vm, o, c.took())
				}
			}
		})
	})
}

// addition is what is to be said in the ledger before disks are copied.
type addition struct {
	entries []replica.Disk // that are new
	drop    []string       // of which nothing that was copied is wanted any more
}

// mayAdd checks the prerequisites of the disks that are new.
func (w *world) mayAdd(ctx context.Context, vm *site.VM, st replica.State, o *seedObject) (a addition, err error) {
	facts, findings := w.examine(ctx, vm, disksOf(st))
	o.Findings = slices.DeleteFunc(findings, func(f finding) bool { return f.Rule == "disk-added" })
	if err := refusal(vm, o.Findings); err != nil {
		return a, err
	}
	a.drop = givenUp(vm, st)
	for _, f := range facts {
		has, joins := st.Disk(f.disk.Name), st.Joins(f.disk.Name)
		if has != nil || joins != nil && joins.Format == string(f.format) && joins.SectorSize == f.entry(vm).SectorSize {
			continue
		}
		if joins != nil { // its path, or its format, was corrected
			a.drop = append(a.drop, f.disk.Name)
		}
		d := f.entry(vm)
		d.Identity = "" // learned by the first cut
		a.entries = append(a.entries, d)
	}
	return a, nil
}

// addSlice copies until a delta of the other disks is due.
func (w *world) addSlice(ctx context.Context, vm *site.VM, a *addition, o *seedObject) (complete bool, err error) {
	err = w.whenFree(ctx, vm, func() error {
		return w.onReplica(ctx, vm, forWriting, &o.vmHead, func(s *session) error {
			if s.state, err = s.engine.Add(ctx, a.entries, a.drop); err != nil {
				return err
			}
			*a = addition{}
			if err := s.joiningSource(); err != nil {
				return err
			}
			s.meter.plan(total(s.state.Joining, func(d replica.Disk) int64 { return d.Size }))
			results, done, err := s.engine.SeedJoining(ctx, max(vm.Policy().CopyFrequency, minSlice))
			o.Disks = addUp(o.Disks, diskObjects(results))
			o.Sent = sentBytes(o.Disks)
			complete = done
			return err
		})
	})
	return complete, err
}

// minSlice is the shortest time that a disk is copied without a delta in between: each slice looks at all that is not copied yet.
const minSlice = time.Minute

// addUp adds what a slice did to what those before it did.
func addUp(sum, more []diskObject) []diskObject {
	for _, m := range more {
		i := slices.IndexFunc(sum, func(d diskObject) bool { return d.Name == m.Name })
		if i < 0 {
			sum = append(sum, m)
			continue
		}
		sum[i].Scanned, sum[i].Changed = sum[i].Scanned+m.Scanned, sum[i].Changed+m.Changed
		sum[i].Sent, sum[i].Blocks = sum[i].Sent+m.Sent, sum[i].Blocks+m.Blocks
	}
	return sum
}

// whenFree does f with the lock of the VM, when whoever has it is done.
func (w *world) whenFree(ctx context.Context, vm *site.VM, f func() error) error {
	for {
		err := w.locked(ctx, vm, func(context.Context) error { return f() })
		if fault.FromOS(err).Class() != fault.Locked || err == nil {
			return err
		}
		if err := w.sleep(ctx, time.Second); err != nil {
			return err
		}
	}
}

// joiningSource gives the session's engine a tracker of the disks that are to join alone. It keeps nothing: what was copied is known by
// the replica's own block sums.
func (s *session) joiningSource() error {
	tracked, err := s.trackedDisks(s.vm, disksOf(replica.State{Disks: s.state.Joining}))
	if err == nil {
		err = s.makeLogDirs(s.vm)
	}
	if err != nil {
		return err
	}
	s.engine.Tracker, err = scan.Open(s.fs, scan.Config{VM: s.vm.Name, Disks: tracked, Dir: s.memory.Path("joining", s.vm.Name), Now: s.now})
	return err
}

// join makes disks whose copy is complete disks of the VM, before a delta.
func (s *session) join(ctx context.Context) error {
	if len(s.state.Joining) == 0 && len(s.state.Joined) == 0 {
		return nil
	}
	def, err := definition(s.site, s.vm)
	if err != nil {
		return err
	}
	if s.state, err = s.engine.Join(ctx, def); err != nil {
		return err
	}
	return s.noteLedger(s.vm, s.state) // before the tracker knows: without the store nothing is captured from here
}

// sayJoined says what became of the disks that were added.
func (w *world) sayJoined(ctx context.Context, vm *site.VM, o *seedObject, took time.Duration) error {
	st, err := w.present(ctx, vm)
	if err != nil {
		return err
	}
	o.Points = len(st.Points)
	w.describe(vm, st, &o.vmHead)
	for _, d := range o.Disks {
		switch {
		case st.Disk(d.Name) == nil:
			w.say("%s: disk %s: %s sent in %s; it joins the VM with the delta behind the change logs that wait to be applied", vm.Name, d.Name, size(d.Sent), span(took))
		default:
			w.say("%s: disk %s: %s sent in %s; recovery points have it from now on", vm.Name, d.Name, size(d.Sent), span(took))
		}
	}
	return w.noteSuccess(vm, rateSeed, o.Sent, took)
}

// sayAdded says which disks of the site file are not replicated.
func (s *session) sayAdded() {
	if names := notReplicated(s.vm, s.state); len(names) > 0 {
		s.say("%s: not replicated yet: %s, which the site file has and the replica does not; if that is right: %s", s.vm.Name,
			strings.Join(names, ", "), s.commands("sitrep protect "+s.vm.Name))
	}
}

func notReplicated(vm *site.VM, st replica.State) (names []string) {
	for _, d := range addedDisks(vm, st) {
		names = append(names, "disk "+d.Name)
	}
	return names
}

// planAdd says what protect of a VM with disks that are new would do.
func (w *world) planAdd(ctx context.Context, vm *site.VM, st replica.State, o *seedObject) error {
	add, err := w.mayAdd(ctx, vm, st, o)
	if err != nil {
		return err
	}
	w.describe(vm, st, &o.vmHead)
	for _, name := range add.drop {
		w.planned(vm, "give up what was copied of disk %s", name)
	}
	left := slices.DeleteFunc(slices.Clone(st.Joining), func(d replica.Disk) bool { return slices.Contains(add.drop, d.Name) })
	if left = append(left, add.entries...); len(left) == 0 {
		w.planned(vm, "take a delta")
		return nil
	}
	var names []string
	for _, d := range left {
		names = append(names, d.Name)
	}
	w.planned(vm, "add disk %s to the replica, beside the deltas of the other disks; recovery points that there are stay without it", strings.Join(names, ", "))
	return w.planSeed(ctx, vm, left, o)
}
