//go:build linux

package simulation_test

import (
	"os"
	"path/filepath"
	"slices"

	"sitrep/internal/disk"
)

// testFailover makes a VM of a point beside the source, and cleans it up.
func (w *world) testFailover(vm string) {
	w.Helper()
	w.replicating(vm)
	w.heal(vm)
	m := w.machines[0]
	args := []string{"failover", "test", vm}
	var p point
	if list := w.certain(vm); len(list) > 0 && w.chance(60) {
		p = list[w.rnd.IntN(len(list))]
		args = append(args, "--point", p.ID)
	}
	if o := w.insist(m, args...); o.code == 0 {
		if made, ok := w.failoverPoint(vm, true); ok {
			if p.ID != "" && made.ID != p.ID {
				w.wrong("point %s was asked for, and %s was taken", p.ID, made.ID)
			}
			w.recovered(vm, vm+"-test", made)
		}
		if w.power("dr", vm+"-test") != "running" {
			w.wrong("the test of %s does not run: %v", vm, o)
		}
	}
	w.insist(m, "failover", "cleanup", vm)
	w.nothingLeft(vm + "-test")
}

// certain are the points that nothing excuses: those that were cut since the replica was last whole.
func (w *world) certain(vm string) []point {
	w.Helper()
	return slices.DeleteFunc(w.points(w.machines[0], vm), func(p point) bool { return !p.Time.After(w.whole[vm]) })
}

// failoverPoint is the recovery point that a VM was made of.
func (w *world) failoverPoint(vm string, test bool) (point, bool) {
	w.Helper()
	m := w.machines[0]
	st := w.run(m, "status", vm)
	if len(st.object.VMs) != 1 {
		return point{}, false
	}
	id := st.object.VMs[0].Point
	if f := st.object.VMs[0].Failover; f != nil && !test {
		id = f.Point
	}
	if t := st.object.VMs[0].Test; t != nil && test {
		id = t.Point
	}
	list := w.points(m, vm)
	i := slices.IndexFunc(list, func(p point) bool { return p.ID == id })
	if i < 0 {
		return point{}, false
	}
	return list[i], true
}

// failover is a whole failover of a VM, and its way back: undone, or committed and failed back.
func (w *world) failover(vm string) {
	w.Helper()
	w.replicating(vm)
	w.heal(vm)
	if w.damaged[vm] {
		return
	}
	m := w.machines[0]
	w.guest(vm)
	before := w.home(vm).now()
	args := []string{"failover", w.pick("planned", "unplanned"), vm}
	planned := args[1] == "planned"
	var p point
	if list := w.certain(vm); !planned && len(list) > 0 && w.chance(50) {
		p = list[w.rnd.IntN(len(list))]
		args = append(args, "--point", p.ID)
	}
	w.insist(m, args...)
	w.failedOver(vm, p, before, planned)
	if !planned && w.chance(30) {
		was, _ := w.failoverPoint(vm, false)
		list := slices.DeleteFunc(w.certain(vm), func(x point) bool { return x.ID == was.ID })
		if len(list) > 0 { // the operator changes their mind
			p = list[w.rnd.IntN(len(list))]
			w.insist(m, "failover", "unplanned", vm, "--point", p.ID)
			w.failedOver(vm, p, before, false)
		}
	}
	w.counts["failovers"]++
	if w.chance(40) {
		w.insist(m, "failover", "undo", vm)
		w.undone(vm)
	} else {
		w.insist(m, "failover", "commit", vm)
		w.away(vm)
		w.insist(m, "failback", vm, "--mode", w.pick("minimal-downtime", "during-failover"))
		w.backHome(vm)
		w.insist(m, "failover", "commit", vm)
		w.nothingLeft(vm)
	}
	w.heal(vm)
	w.judge(vm)
}

// failedOver asks whether the recovered VM is what was asked for.
func (w *world) failedOver(vm string, asked point, before map[string]content, planned bool) {
	w.Helper()
	if w.power("dr", vm) != "running" || w.power("src", vm) != "off" {
		w.wrong("%s is %s at its source and %s at the recovery site", vm, w.power("src", vm), w.power("dr", vm))
	}
	p, ok := w.failoverPoint(vm, false)
	if !ok {
		w.wrong("the recovery point that %s was made of is not told", vm)
	}
	if asked.ID != "" && asked.ID != p.ID {
		w.wrong("point %s was asked for, and %s was taken", asked.ID, p.ID)
	}
	w.recovered(vm, vm, p)
	w.untouched(vm)
	if x := w.made(vm); planned && !equal(x.now(), before) {
		w.wrong("%s was recovered by a planned failover as %v, and its source held %v", vm, x.now(), before)
	}
}

func equal(a, b map[string]content) bool { return moment{disks: a}.equal(b) }

// untouched asks whether the disks at home are what the guest left.
func (w *world) untouched(vm string) {
	w.Helper()
	for _, d := range w.home(vm).disks {
		if c, err := read(d.path, d.format); err != nil || c != contentOf(d.data) {
			w.wrong("%s of %s at home holds %v (%v), not what its guest has written: %v", d.name, vm, c, err, contentOf(d.data))
		}
	}
}

// made is the disks of the recovered VM, as they lie there.
func (w *world) made(vm string) *place {
	w.Helper()
	p := &place{}
	for _, d := range w.home(vm).disks {
		path := w.path("recovered", vm, d.name+".raw")
		data, err := os.ReadFile(path)
		must(w.T, err)
		p.disks = append(p.disks, &diskModel{name: d.name, path: path, format: disk.Raw, data: data})
	}
	p.remember()
	return p
}

// away lets the recovered VM write.
func (w *world) away(vm string) {
	w.Helper()
	p := w.made(vm)
	for range w.rnd.IntN(3) {
		p.disks[w.rnd.IntN(len(p.disks))].scribble(w.T, w.rnd)
	}
	w.there[vm] = p
	w.note("%s writes at the recovery site", vm)
}

// backHome asks whether the disks at home are what they were at the recovery site, and the VM runs there.
func (w *world) backHome(vm string) {
	w.Helper()
	p := w.home(vm)
	for i, d := range p.disks {
		want := w.there[vm].disks[i].data
		c, err := read(d.path, d.format)
		if err == nil && c.size > int64(len(want)) {
			want = append(want, make([]byte, c.size-int64(len(want)))...) // a larger disk keeps its size
		}
		if err != nil || c != contentOf(want) {
			w.wrong("%s of %s was brought home as %v (%v), and it was %v", d.name, vm, c, err, contentOf(want))
		}
		d.data = slices.Clone(want)
	}
	p.remember()
	if w.power("src", vm) != "running" {
		w.wrong("%s is %s at home after its failback", vm, w.power("src", vm))
	}
	w.counts["failbacks"]++
}

// undone asks whether the source is as it was.
func (w *world) undone(vm string) {
	w.Helper()
	w.untouched(vm)
	w.nothingLeft(vm)
	if w.power("src", vm) != "running" {
		w.wrong("%s ran before the failover that was undone, and is %s", vm, w.power("src", vm))
	}
}

// nothingLeft asks whether a recovered VM is gone, with its files.
func (w *world) nothingLeft(name string) {
	w.Helper()
	if w.power("dr", name) != "absent" {
		w.wrong("%s is still %s at the recovery site", name, w.power("dr", name))
	}
	left, err := filepath.Glob(w.path("recovered", name, "*"))
	must(w.T, err)
	if len(left) > 0 {
		w.wrong("at the recovery site is left: %v", left)
	}
}
