//go:build linux

package simulation_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sitrep/internal/disk"
)

// world is all there is in a simulation.
type world struct {
	*testing.T
	rnd *rand.Rand
	dir string
	vms []string
	// machines are the primary site, and, from some time on, what was made of a copy of it.
	machines []*machine
	there    map[string]*place // recovered VMs, by name: their disks as files at the recovery site
	owner    map[string]*machine
	spans    []span
	trace    []string
	backups  []string                 // of the store, oldest first: folders
	canaries map[string]string        // files that nobody may touch, and what they hold
	damaged  map[string]bool          // by VM: something was done to its files since it was last whole
	replaced map[string]bool          // by VM: another disk lies behind a path
	latent   map[string]bool          // by VM: something that was not needed since may have rotted
	whole    map[string]time.Time     // since when it was so, all of it: the points that were cut later have to be there
	took     map[string]time.Duration // of the last run of a verb that came to its end
	counts   map[string]int
}

// machine is where the binary runs: a folder with a site file, the disks, and what the site remembers.
type machine struct {
	name, dir string
	identity  string // of a second machine: its host name; "" is this machine
	places    map[string]*place
}

// span is a run of the binary: what it cut, it cut there and then.
type span struct {
	m            *machine
	args         []string
	began, ended time.Time
}

// newWorld makes a primary site with two VMs, a recovery site and an empty store.
func newWorld(t *testing.T, rnd *rand.Rand) *world {
	t.Helper()
	w := &world{T: t, rnd: rnd, dir: t.TempDir(), vms: []string{"db", "web"}, there: map[string]*place{}, owner: map[string]*machine{},
		canaries: map[string]string{}, damaged: map[string]bool{}, replaced: map[string]bool{}, latent: map[string]bool{}, took: map[string]time.Duration{}, whole: map[string]time.Time{}, counts: map[string]int{}}
	a := &machine{name: "a", dir: w.path("a"), places: map[string]*place{}}
	w.machines = []*machine{a}
	for _, side := range []string{"src", "dr"} {
		must(t, os.MkdirAll(w.path("hosts", side), 0o755))
		w.script(w.path("hosts", side+".sh"), hostScript)
	}
	w.script(w.path("hosts", "action.sh"), actionScript)
	must(t, os.MkdirAll(w.path("store"), 0o755))
	for i, vm := range w.vms {
		a.places[vm] = w.newPlace(a, vm, 1+(i+rnd.IntN(2))%2)
		w.setPower("src", vm, "running")
	}
	w.writeSite(a)
	for _, path := range []string{"canary", "a/canary", "a/disks/canary.hrl", "recovered/canary", "recovered/somebody/os.raw", "store/canary", "store/somebody/canary"} {
		w.canaries[w.path(path)] = path + " is not yours\n"
		must(t, os.MkdirAll(filepath.Dir(w.path(path)), 0o755))
		must(t, os.WriteFile(w.path(path), []byte(w.canaries[w.path(path)]), 0o600))
	}
	return w
}

func (w *world) path(parts ...string) string {
	return filepath.Join(append([]string{w.dir}, parts...)...)
}

func (w *world) script(path, text string) {
	w.Helper()
	must(w.T, os.WriteFile(path, []byte(text), 0o700))
}

// shapes are the kinds of disks.
var shapes = []struct {
	format disk.Format
	kind   disk.Kind
}{{disk.Raw, ""}, {disk.Raw, ""}, {disk.VHD, disk.Fixed}, {disk.VHD, disk.Dynamic}, {disk.VHDX, disk.Fixed}, {disk.VHDX, disk.Dynamic}}

// newPlace makes the disks of a VM.
func (w *world) newPlace(m *machine, vm string, n int) *place {
	w.Helper()
	p := &place{}
	for i := range n {
		s := shapes[w.rnd.IntN(len(shapes))]
		name := []string{"os", "data"}[i]
		d := newDisk(w.T, name, filepath.Join(m.dir, "disks", vm+"-"+name+"."+string(s.format)), s.format, s.kind, int64(1+w.rnd.IntN(4))*mib)
		d.scribble(w.T, w.rnd)
		p.disks = append(p.disks, d)
	}
	p.remember()
	return p
}

// hostScript is a host: it keeps the states of VMs in files, and writes down what it was asked for. It is told to be slow by a file,
// so that a run can be hit while it waits.
const hostScript = `#!/bin/sh
side=$(basename "$0" .sh)
cd "$(dirname "$0")/$side" || exit 1
: >../busy.$$
[ "$SITREP_OPERATION" = state ] || echo "$side $SITREP_OPERATION $1" >>../order.log
case "$SITREP_OPERATION" in
state) cat "$1" 2>/dev/null || echo absent ;;
create) [ ! -e "../slow.${1%-test}" ] || sleep 0.3; [ -e "$1" ] || { echo off >"$1.new" && mv "$1.new" "$1"; } ;;
start) echo running >"$1.new" && mv "$1.new" "$1" ;;
stop) echo off >"$1.new" && mv "$1.new" "$1" ;;
delete) rm -f "$1" ;;
freeze) : >"$1.frozen"; [ ! -e "../slow.$1" ] || sleep 0.2 ;;
thaw) rm -f "$1.frozen" ;;
esac
`

// actionScript is a script of a recovery plan: its name says which.
const actionScript = `#!/bin/sh
cd "$(dirname "$0")" || exit 1
: >busy.$$
echo "action $(basename "$0" .sh)" >>order.log
[ ! -e slow.db ] || sleep 0.1
`

// writeSite writes the site file of a machine.
func (w *world) writeSite(m *machine) {
	w.Helper()
	host := func(side string, freezes bool) string {
		operations := []string{"create", "start", "stop", "state", "delete"}
		if freezes {
			operations = append(operations, "freeze", "thaw")
		}
		for i, o := range operations {
			operations[i] = o + ": " + w.path("hosts", side+".sh")
		}
		return "script: {" + strings.Join(operations, ", ") + "}"
	}
	for _, name := range []string{"pre1", "post1", "pre2", "boot"} {
		w.script(w.path("hosts", name+".sh"), actionScript)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "vault: simulation\nstore: {directory: %s}\n", w.path("store"))
	fmt.Fprintf(&b, "policies: [{name: gold, recovery_points: 4, log_limit_percent: 100, block_size: 16KiB, resync_window: {from: \"00:00\", to: \"23:59\"}}]\n")
	fmt.Fprintf(&b, "recovery: {host: dr, hypervisor: script, folder: %s, format: raw, %s}\n", w.path("recovered"), host("dr", false))
	fmt.Fprintf(&b, "vmm:\n  clouds:\n    - name: c\n      policy: gold\n      hosts:\n        - name: src\n          hypervisor: script\n          %s\n          vms:\n", host("src", true))
	for _, vm := range w.vms {
		fmt.Fprintf(&b, "            - name: %s\n              generation: 1\n              os: linux\n              cpus: 1\n              memory: 256MiB\n              boot_check: {command: %s, timeout: 20s}\n              disks:\n", vm, w.path("hosts", "boot.sh"))
		for i, d := range m.places[vm].disks {
			fmt.Fprintf(&b, "                - {name: %s, path: disks/%s, format: %s, os: %v}\n", d.name, filepath.Base(d.path), d.format, i == 0)
		}
	}
	fmt.Fprintf(&b, "recovery_plans:\n  - name: shop\n    groups:\n      - {vms: [db], pre: [{script: %s, timeout: 20s}], post: [{manual: %q}, {script: %s, timeout: 20s}]}\n      - {vms: [web], pre: [{script: %s, timeout: 20s}]}\n",
		w.path("hosts", "pre1.sh"), manualAction, w.path("hosts", "post1.sh"), w.path("hosts", "pre2.sh"))
	must(w.T, os.WriteFile(filepath.Join(m.dir, "site.yaml"), []byte(b.String()), 0o600))
}

// clone makes the second machine of a copy of the first, with its disks and all that it remembers.
func (w *world) clone() *machine {
	w.Helper()
	a := w.machines[0]
	b := &machine{name: "b", dir: w.path("b"), identity: "second-machine", places: map[string]*place{}}
	w.copyTree(a.dir, b.dir)
	for vm, p := range a.places {
		c := &place{}
		for _, d := range p.disks {
			twin := *d
			twin.path, twin.data = filepath.Join(b.dir, "disks", filepath.Base(d.path)), slices.Clone(d.data)
			c.disks = append(c.disks, &twin)
		}
		c.remember()
		b.places[vm] = c
	}
	w.machines = append(w.machines[:1], b)
	return b
}

// copyTree makes to a copy of from: what cp -a makes.
func (w *world) copyTree(from, to string) {
	w.Helper()
	must(w.T, os.RemoveAll(to))
	must(w.T, os.MkdirAll(filepath.Dir(to), 0o755))
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		w.Fatalf("cp: %v\n%s", err, out)
	}
}

func (w *world) setPower(side, vm, power string) {
	w.Helper()
	must(w.T, os.WriteFile(w.path("hosts", side, vm), []byte(power+"\n"), 0o644))
}

// power is what a VM does at a side.
func (w *world) power(side, vm string) string {
	data, err := os.ReadFile(w.path("hosts", side, vm))
	if err != nil {
		return "absent"
	}
	return strings.TrimSpace(string(data))
}

func (w *world) exists(parts ...string) bool {
	_, err := os.Lstat(w.path(parts...))
	return err == nil
}

// slow makes the hosts slow with some VMs, or with none.
func (w *world) slow(yes bool) {
	w.Helper()
	which := w.rnd.IntN(3) // one of them, or both
	for i, vm := range w.vms {
		path := w.path("hosts", "slow."+vm)
		if yes && which != i {
			must(w.T, os.WriteFile(path, nil, 0o644))
			continue
		}
		must(w.T, os.RemoveAll(path))
	}
}

// note adds a line to what a failure prints.
func (w *world) note(format string, args ...any) {
	w.trace = append(w.trace, time.Now().UTC().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// wrong ends the simulation with what was found, and how it came to it.
func (w *world) wrong(format string, args ...any) {
	w.Helper()
	last := w.trace[max(0, len(w.trace)-60):]
	w.Fatalf("WRONG: "+format+"\nwhat was done:\n%s", append(args, strings.Join(last, "\n"))...)
}

func (w *world) pick(list ...string) string { return list[w.rnd.IntN(len(list))] }

func (w *world) chance(percent int) bool { return w.rnd.IntN(100) < percent }

// finish brings all VMs back to rest, and asks for the last time.
func (w *world) finish() {
	w.Helper()
	for _, vm := range w.vms {
		w.heal(vm)
		w.judge(vm)
	}
	w.Logf("%v", w.counts)
}
