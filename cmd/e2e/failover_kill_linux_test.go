package e2e_test

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sitrep/internal/fault"
)

// powerScript keeps the power states of VMs in files below power/NAME, NAME being that of the script. It is a host that no kill of
// sitrep stops.
const powerScript = `#!/bin/sh
cd "$(dirname "$0")/power/$(basename "$0")" || exit 1
case "$SITREP_OPERATION" in
state) cat "$1" 2>/dev/null || echo absent ;;
create) echo off >"$1.new" && mv "$1.new" "$1" ;;
start) echo running >"$1.new" && mv "$1.new" "$1" ;;
stop) echo off >"$1.new" && mv "$1.new" "$1" ;;
delete) rm -f "$1" ;;
esac
`

// scripted gives a rig two hosts that are scripts: the source of its VMs, and one at the recovery site, with raw disks.
func (r *rig) scripted() {
	r.Helper()
	for _, side := range []string{"src", "dr"} {
		check(r.T, os.MkdirAll(r.path("power", side), 0o755))
		check(r.T, os.WriteFile(r.path(side), []byte(powerScript), 0o700))
	}
	for _, m := range r.vms {
		r.setPower("src", m.name, "running")
	}
	site := string(read(r.T, r.path("site.yaml")))
	section := func(name string) string {
		return fmt.Sprintf("script: {create: ./%[1]s, start: ./%[1]s, stop: ./%[1]s, state: ./%[1]s, delete: ./%[1]s}", name)
	}
	site = strings.ReplaceAll(site, "          hypervisor: none\n", "          hypervisor: script\n          "+section("src")+"\n")
	site += "recovery: {host: dr, hypervisor: script, format: raw, " + section("dr") + "}\n"
	check(r.T, os.WriteFile(r.path("site.yaml"), []byte(site), 0o600))
}

func (r *rig) setPower(side, vm, power string) {
	r.Helper()
	check(r.T, os.WriteFile(r.path("power", side, vm), []byte(power+"\n"), 0o644))
}

// powers fails the test unless the VM is so at its source and at the recovery site.
func (r *rig) powers(vm, source, recovery string) {
	r.Helper()
	for side, want := range map[string]string{"src": source, "dr": recovery} {
		got := "absent"
		if data, err := os.ReadFile(r.path("power", side, vm)); err == nil {
			got = strings.TrimSpace(string(data))
		}
		if got != want {
			r.Fatalf("%s is %s at %s, want %s", vm, got, side, want)
		}
	}
}

// recoveredDisks are those of a VM at the recovery site.
func (r *rig) recoveredDisks(m *machine) map[string]*qemuGuest {
	out := map[string]*qemuGuest{}
	for name := range m.disks {
		out[name] = &qemuGuest{path: r.path("recovered", m.name, name+".raw"), qemu: "raw", asSite: "raw"}
	}
	return out
}

// recoveredIs fails the test unless the recovered disks hold what is wanted.
func (r *rig) recoveredIs(m *machine, want moment) {
	r.Helper()
	for name, g := range r.recoveredDisks(m) {
		if got := fmt.Sprint(g.size(r.T), " ", g.hash(r.T)); got != want[name] {
			r.Fatalf("recovered disk %s holds %s, want %s", name, got, want[name])
		}
	}
}

// TestKillFailover ends failovers and failbacks with kill -9 at random moments, and runs the same command again, as an operator
// would. Each comes to its end, with every byte where it belongs.
func TestKillFailover(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	k := &failoverKiller{rig: r, rnd: random(t), took: map[string]time.Duration{}, left: times(10, 60, 3)}
	k.m = r.add("web01", map[string]guest{
		"os":   newQEMU(t, r.path("web01", "os.raw"), "raw", 32*mib),
		"data": newQEMU(t, r.path("web01", "data.vhdx"), "vhdx/dynamic", 8*mib),
	})
	r.scripted()
	k.write()
	r.ok("protect", "web01")
	for round := 0; k.left > 0 || round == 0; round++ {
		k.life(round)
	}
	t.Logf("%d kills, of %v", k.kills, k.killed)
}

type failoverKiller struct {
	*rig
	rnd    *rand.Rand
	m      *machine
	took   map[string]time.Duration
	left   int // kills that are still to be made
	kills  int
	killed []string
}

// write is what the VM does at its source.
func (k *failoverKiller) write() {
	k.Helper()
	for _, g := range k.m.disks {
		k.writeTo(g)
	}
}

func (k *failoverKiller) writeTo(g guest) {
	k.Helper()
	size := g.size(k.T)
	list := scattered(k.rnd, size, g.sector())
	for range 10 {
		c := change{off: k.rnd.Int64N(size/512-1024) * 512, n: (1 + k.rnd.Int64N(1024)) * 512}
		c.data = noise(k.rnd, c.n)
		list = append(list, c)
	}
	g.put(k.T, list)
}

// life is one failover, and the way home.
func (k *failoverKiller) life(round int) {
	k.Helper()
	kind := []string{"planned", "unplanned"}[round%2]
	mode := []string{"minimal-downtime", "during-failover"}[k.rnd.IntN(2)]
	k.write()
	k.ok("delta", "web01", "--now")
	k.write()
	before := k.m.now(k.T)
	k.insist("failed-over", "failover", kind, "web01")
	k.powers("web01", "off", "running")
	k.recoveredIs(k.m, before)
	if now := k.m.now(k.T); !equalMoments(now, before) {
		k.Fatal("the failover has written to the source")
	}
	if round%3 == 2 {
		k.insist("replicating", "failover", "undo", "web01")
		k.powers("web01", "running", "absent")
		k.ok("delta", "web01", "--now")
		k.same(k.m)
		return
	}
	k.insist("failover-committed", "failover", "commit", "web01")
	for _, g := range k.recoveredDisks(k.m) {
		k.writeTo(g)
	}
	there := moment{}
	for name, g := range k.recoveredDisks(k.m) {
		there[name] = g.hash(k.T)
	}
	k.insist("failback-complete", "failback", "web01", "--mode", mode)
	k.powers("web01", "running", "off")
	for name, g := range k.m.disks {
		if g.hash(k.T) != there[name] {
			k.Fatalf("disk %s at home is not what it was at the recovery site", name)
		}
	}
	k.insist("replicating", "failover", "commit", "web01")
	k.powers("web01", "running", "absent")
	k.ok("delta", "web01", "--now")
	k.same(k.m)
	k.ok("verify", "web01")
	k.ok("verify", "--against-source", "web01")
	if entries, err := os.ReadDir(k.path("web01")); err != nil || len(entries) != len(k.m.disks) {
		k.Fatal("beside the disks: ", entries, err)
	}
	if left := k.list(k.path("recovered")); len(left) > 0 {
		k.Fatal("at the recovery site is left: ", left)
	}
}

// insist runs a command until it comes to its end, and kills it a few times before. One that was complete when it was killed is
// refused then, in the state that it leads to.
func (k *failoverKiller) insist(state string, args ...string) {
	k.Helper()
	verb := strings.Join(args, " ")
	for range k.rnd.IntN(4) {
		if k.left <= 0 {
			break
		}
		limit := max(k.took[verb], 50*time.Millisecond) * 11 / 10
		var out, errs bytes.Buffer
		c := k.command(args...)
		c.Stdout, c.Stderr = &out, &errs
		check(k.T, c.Start())
		timer := time.AfterFunc(time.Duration(k.rnd.Int64N(int64(limit))), func() { c.Process.Kill() })
		o := k.wait(c, &out, &errs)
		timer.Stop()
		if o.code >= 0 {
			k.ended(state, o)
			return
		}
		k.kills, k.left, k.killed = k.kills+1, k.left-1, append(k.killed, args[0]+" "+args[1])
	}
	began := time.Now()
	o := k.run(args...)
	k.ended(state, o)
	k.took[verb] = time.Since(began)
}

func (k *failoverKiller) ended(state string, o outcome) {
	k.Helper()
	if got := k.vm("status", "web01").State; o.code != 0 && o.code != 6 || got != state {
		k.Fatalf("after %d kills (%v) the state is %s, want %s: %v", k.kills, k.killed, got, state, o)
	}
}

// TestStaleSite stops a run of the old site in the middle of an apply, fails the VM over from another machine, and lets the stopped
// run go on: it is refused, says what to run, keeps its log, and what was recovered is every byte that had been received.
func TestStaleSite(t *testing.T) {
	t.Parallel()
	const size = 48 * mib
	r, m, g := one(t, size)
	r.scripted()
	rnd := random(t)
	fillRaw(t, g.path, rnd, 0, size)
	r.protect(m)
	c, out, errs := r.stopApplying(m, func() { fillRaw(t, g.path, rnd, 0, size-8*mib) })
	want := g.hash(t)
	r.setPower("src", "web01", "running")
	check(t, os.Rename(r.path("power", "src"), r.path("power", "lost"))) // and nobody can stop the source

	r.ok("--state", r.path("elsewhere"), "failover", "unplanned", "web01")
	rec := r.recoveredDisks(m)["os"]
	if got := rec.hash(t); got != want {
		t.Fatal("the recovered disk is not what the old site had sent")
	}
	left := r.hashes(r.path("store", "web01"))
	rec.put(t, []change{{off: 0, n: 4096, data: noise(rnd, 4096)}})
	running := rec.hash(t)
	for range 2 { // what was stopped, and then a new one
		check(t, c.Process.Signal(unix.SIGCONT))
		o := r.wait(c, out, errs)
		obj := o.object(t)
		if o.code != 6 || obj.Error == nil || obj.Error.Code != string(fault.Fenced) || !strings.Contains(o.stderr, "status web01") {
			t.Fatalf("exit code 6 is wanted: %v", o)
		}
		c = r.command("delta", "web01", "--now", "--json")
		out, errs = new(bytes.Buffer), new(bytes.Buffer)
		c.Stdout, c.Stderr = out, errs
		check(t, c.Start())
	}
	_ = r.wait(c, out, errs)
	now := r.hashes(r.path("store", "web01"))
	maps.DeleteFunc(now, func(path, _ string) bool { return strings.HasSuffix(path, "lock") })
	maps.DeleteFunc(left, func(path, _ string) bool { return strings.HasSuffix(path, "lock") })
	if !maps.Equal(now, left) {
		t.Errorf("the stale runs have changed the replica: %v, it was %v", slices.Sorted(maps.Keys(now)), slices.Sorted(maps.Keys(left)))
	}
	if rec.hash(t) != running {
		t.Error("the stale runs have written to the recovered disk")
	}
	r.ok("--state", r.path("elsewhere"), "failover", "commit", "web01")
}
