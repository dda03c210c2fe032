//go:build linux

package simulation_test

import (
	"os"
	"slices"
	"strings"
)

// happening is one thing that can happen, and how often it does.
type happening struct {
	name   string
	weight int
	do     func(w *world, vm string)
}

// without is what SITREP_WITHOUT names: a fault that is known hides what comes after it. It is names of happenings, and "again",
// which excuses a command that is refused when it is run again after it was complete.
func without() []string { return strings.Split(os.Getenv("SITREP_WITHOUT"), ",") }

// happenings are all that there are, but for those that are left out.
func happenings() []happening {
	return slices.DeleteFunc([]happening{
		{"guest", 26, (*world).guest}, {"delta", 22, (*world).delta}, {"resync", 6, (*world).resync}, {"proof", 4, (*world).proof},
		{"pause", 3, (*world).pause}, {"judge", 7, (*world).judge}, {"backup", 5, (*world).backup}, {"frozen", 4, (*world).frozenHit},
		{"protection", 3, (*world).protection}, {"replica", 9, (*world).damageReplica}, {"memory", 4, (*world).damageMemory},
		{"move", 2, (*world).moveStore}, {"identity", 2, (*world).identity}, {"disk", 3, (*world).replaceDisk},
		{"machine", 5, (*world).secondMachine}, {"test", 4, (*world).testFailover}, {"failover", 7, (*world).failover},
		{"plan", 5, (*world).planLife},
	}, func(h happening) bool { return slices.Contains(without(), h.name) })
}

// step lets one thing happen.
func (w *world) step() {
	w.Helper()
	list := happenings()
	total := 0
	for _, h := range list {
		total += h.weight
	}
	n := w.rnd.IntN(total)
	for _, h := range list {
		if n -= h.weight; n < 0 {
			h.do(w, w.pick(w.vms...))
			return
		}
	}
}

// home is the disks of a VM at the primary site.
func (w *world) home(vm string) *place { return w.machines[0].places[vm] }

// guest writes.
func (w *world) guest(vm string) {
	w.Helper()
	p := w.home(vm)
	d := p.disks[w.rnd.IntN(len(p.disks))]
	if w.chance(8) && len(d.data) < 8*mib {
		d.grow(w.T, int64(1+w.rnd.IntN(2))*mib/2)
	} else {
		d.scribble(w.T, w.rnd)
	}
	p.remember()
	w.note("%s writes to %s", vm, d.name)
}

// replicating brings a VM under protection if it is not.
func (w *world) replicating(vm string) {
	w.Helper()
	if w.owner[vm] == nil {
		w.insist(w.machines[0], "protect", vm)
		w.owner[vm] = w.machines[0]
		w.whole[vm] = w.past()
	}
}

// insist runs a command until it comes to its end, and ends it by signals a few times before. The last run has to succeed, whatever
// those before have done.
func (w *world) insist(m *machine, args ...string) outcome {
	w.Helper()
	w.slow(w.chance(30))
	defer w.slow(false)
	for range w.rnd.IntN(4) {
		if o := w.hit(m, args...); o.code == 0 {
			return o
		}
	}
	w.slow(false)
	o := w.run(m, args...)
	if vm := args[len(args)-1]; o.code == 5 && w.latent[vm] { // what had rotted is found only now, and the advice is followed
		w.latent[vm] = false
		w.heal(vm)
		o = w.run(m, args...)
	}
	excused := o.err().Code == "wrong-state" && slices.Contains(without(), "again")
	if o.code != 0 && !excused && !slices.ContainsFunc(args, func(a string) bool { return w.damaged[a] }) {
		w.wrong("the same command again does not succeed: %v", o)
	}
	return o
}

// delta brings the replica up to date, or is ended before.
func (w *world) delta(vm string) {
	w.Helper()
	w.replicating(vm)
	m := w.machines[0]
	switch w.rnd.IntN(6) {
	case 0:
		w.run(m, "delta", vm, "--now", "--capture-only")
	case 1, 2:
		w.hit(m, "delta", vm, "--now")
	default:
		w.run(m, "delta", vm, "--now")
		return
	}
	if w.chance(50) {
		w.guest(vm)
	}
	if w.chance(70) {
		w.heal(vm)
	}
}

// resync compares, and may be ended before its end.
func (w *world) resync(vm string) {
	w.Helper()
	w.replicating(vm)
	args := []string{"resync", vm, "--now"}
	if w.chance(40) {
		args = append(args, "--deep")
	}
	if w.chance(50) {
		w.hit(w.machines[0], args...)
	}
	w.run(w.machines[0], args...)
	w.heal(vm)
}

// proof verifies.
func (w *world) proof(vm string) {
	w.Helper()
	w.replicating(vm)
	w.heal(vm)
	o := w.run(w.machines[0], "verify", vm)
	if o.code != 0 && !w.damaged[vm] {
		w.wrong("the replica of %s, to whose files nothing was done, is not proved: %v", vm, o)
	}
	if o := w.run(w.machines[0], "verify", vm, "--against-source"); o.code != 0 && !w.damaged[vm] {
		w.wrong("source and replica of %s, which has just been brought up to date, differ: %v", vm, o)
	}
}

// pause stops replication for a while.
func (w *world) pause(vm string) {
	w.Helper()
	w.replicating(vm)
	w.heal(vm)
	w.insist(w.machines[0], "pause", vm)
	w.guest(vm)
	if o := w.run(w.machines[0], "delta", vm, "--now"); o.code == 0 && len(o.object.VMs) > 0 && o.object.VMs[0].State == "replicating" {
		w.wrong("a VM that is paused was replicated: %v", o)
	}
	w.insist(w.machines[0], "resume", vm)
	w.heal(vm)
}

// frozenHit ends a run by a signal while it holds the guest frozen.
func (w *world) frozenHit(vm string) {
	w.Helper()
	w.replicating(vm)
	w.heal(vm)
	w.guest(vm)
	must(w.T, os.WriteFile(w.path("hosts", "slow."+vm), nil, 0o644))
	sig := signals[w.rnd.IntN(len(signals))]
	w.hitFrozen(w.machines[0], vm, sig, "delta", vm, "--now")
	w.slow(false)
	w.counts["ended while frozen"]++
	w.heal(vm)
}

// protection ends, and begins anew.
func (w *world) protection(vm string) {
	w.Helper()
	w.replicating(vm)
	w.heal(vm)
	w.insist(w.machines[0], append([]string{"unprotect", vm}, w.yes("unprotect")...)...)
	delete(w.owner, vm)
	w.damaged[vm] = false
	if w.chance(50) {
		w.guest(vm)
	}
	w.replicating(vm)
}

// yes is the flag that answers what a command asks, where it asks.
func (w *world) yes(command string) []string {
	if slices.Contains([]string{"unprotect", "takeover"}, command) && w.knows(command, "--yes") {
		return []string{"--yes"}
	}
	return nil
}

// replaceDisk puts another disk behind the path of a disk.
func (w *world) replaceDisk(vm string) {
	w.Helper()
	w.replicating(vm)
	p := w.home(vm)
	d := p.disks[w.rnd.IntN(len(p.disks))]
	d.data = noise(w.rnd, int64(len(d.data)))
	d.create(w.T)
	p.remember()
	w.note("another disk lies where %s of %s was", d.name, vm)
	w.counts["disks replaced"]++
	w.replaced[vm] = true
	w.run(w.machines[0], "delta", vm, "--now")
	w.judge(vm)
	w.heal(vm)
}

// secondMachine lets a copy of the site, with all that it remembers, do what cron does there.
func (w *world) secondMachine(vm string) {
	w.Helper()
	if !w.canClone() || w.owner[vm] == nil {
		return
	}
	for _, x := range w.vms {
		w.replicating(x)
		w.heal(x)
	}
	b := w.clone()
	w.note("machine b is a copy of machine a")
	w.counts["second machines"]++
	w.guest(vm)
	w.run(w.machines[0], "delta", vm, "--now")
	w.cron(b)
	w.run(w.machines[0], "delta", vm, "--now")
	w.cron(b)
	if w.chance(30) {
		must(w.T, os.RemoveAll(b.dir+"/disks")) // and one without disks
		w.cron(b)
	}
	if o := w.run(b, append([]string{"takeover", vm}, w.yes("takeover")...)...); o.code == 0 {
		w.tookOver(b, vm)
	}
	w.judge(vm)
	for _, x := range w.vms {
		w.heal(x)
	}
}

// tookOver lets a machine that has taken a replica over work with it for a while, and the one before it try to.
func (w *world) tookOver(b *machine, vm string) {
	w.Helper()
	w.owner[vm] = b
	w.counts["took over"]++
	p := b.places[vm]
	for range w.rnd.IntN(3) {
		if w.exists("b", "disks") {
			p.disks[0].scribble(w.T, w.rnd)
			p.remember()
		}
		w.cron(b)
		w.cron(w.machines[0])
	}
}

// cron is what the README's crontab does.
func (w *world) cron(m *machine) {
	w.Helper()
	w.run(m, "delta", "--all")
	w.run(m, "resync", "--due", "--all")
	w.run(m, "delta", "--all", "--now")
}
