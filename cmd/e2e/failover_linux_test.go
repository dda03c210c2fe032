package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sitrep/internal/host"
	"sitrep/internal/host/guesttest"
)

func someFiles(rnd *rand.Rand) map[string][]byte {
	return map[string][]byte{"etc/name": []byte("web01\n"), "srv/blob": noise(rnd, 300_000), "srv/other": noise(rnd, 70_001)}
}

// TestFailoverAndHome is the whole life of a VM that really runs: replicated while it writes, failed over with its source shut
// down, running and writing at the recovery site, brought home into its VHDX, replicated again.
func TestFailoverAndHome(t *testing.T) {
	rnd := random(t)
	v := &bootVM{name: "web01", format: "vhdx", files: someFiles(rnd), data: map[string][]byte{"db": noise(rnd, 1<<20)}}
	r := newBootRig(t, "vhd", v)
	r.make(v, guesttest.Loop)
	ctx := context.Background()
	check(t, r.source.Start(ctx, "web01"))
	r.said(r.source, "web01", "@@ N 2")
	r.ok("protect", "web01")
	for range 2 { // the guest goes on writing meanwhile
		r.rounds(r.source, "web01", 2)
		r.ok("delta", "web01", "--now")
	}
	last := r.rounds(r.source, "web01", 1)

	o := r.ok("failover", "planned", "web01")
	if r.power(r.source, "web01") != host.Off || r.power(r.recovery, "web01") != host.Running {
		t.Fatalf("after a planned failover the source is %s, the recovered VM %s: %v", r.power(r.source, "web01"), r.power(r.recovery, "web01"), o)
	}
	if got, want := r.image(v.dataPath(r), "raw"), r.image(r.path("store", "web01", "data.vhd"), "vhd"); got != want {
		t.Fatal("the replica is not the source that was stopped")
	}
	if got, want := r.image(v.osPath(r), "vhdx"), r.image(r.path("store", "web01", "os.vhd"), "vhd"); got != want {
		t.Fatal("the replica is not the source that was stopped")
	}
	there := r.said(r.recovery, "web01", "@@ UP")
	r.tells(there, v)
	r.said(r.recovery, "web01", "@@ N ")
	if n := guesttest.Rounds(r.console(r.recovery, "web01")); n < last {
		t.Fatalf("the recovered guest is at round %d, the source had said %d", n, last)
	}
	r.refused(6, "fenced", []string{"web01"}, "delta", "web01", "--now") // the source's cron job
	r.ok("failover", "commit", "web01")
	last = r.rounds(r.recovery, "web01", 2)

	plan := r.ok("failback", "web01", "--dry-run")
	if !strings.Contains(plan.stdout, "differ") || !strings.Contains(plan.stdout, "recommended") {
		t.Fatalf("the failback is not priced: %v", plan)
	}
	if r.power(r.recovery, "web01") != host.Running {
		t.Fatal("the recovered VM was not let go on")
	}
	r.ok("failback", "web01", "--mode", "minimal-downtime")
	home := r.said(r.source, "web01", "@@ UP")
	r.tells(home, v)
	r.said(r.source, "web01", "@@ N ")
	if n := guesttest.Rounds(r.console(r.source, "web01")); n < last {
		t.Fatalf("the guest at home is at round %d, at the recovery site it had said %d", n, last)
	}
	r.ok("failover", "commit", "web01")
	if p := r.power(r.recovery, "web01"); p != host.Absent {
		t.Fatalf("the recovered VM is %s after the commit of its failback", p)
	}
	if _, err := os.Stat(r.path("recovered", "web01")); !os.IsNotExist(err) {
		t.Errorf("its folder is left: %v", err)
	}
	check(t, r.source.Stop(ctx, "web01", 0))
	d := r.vm("delta", "web01", "--now")
	if whole := int64(guesttest.DiskSize + guesttest.DataSize); d.Sent > whole/2 {
		t.Errorf("the first delta in the old direction sent %d of %d bytes", d.Sent, whole)
	}
	if r.image(v.osPath(r), "vhdx") != r.image(r.path("store", "web01", "os.vhd"), "vhd") {
		t.Error("the replica is not the source")
	}
	r.ok("verify", "web01")
	r.ok("verify", "--against-source", "web01")
}

// TestSiteLost: nothing is left of the protected site but what is in the store. The VM comes up from the latest point, and
// then from an older one.
func TestSiteLost(t *testing.T) {
	rnd := random(t)
	v := &bootVM{name: "web01", format: "raw", files: someFiles(rnd)}
	r := newBootRig(t, "qcow2", v)
	r.make(v, guesttest.Write) // writes, and powers off
	ctx := context.Background()
	r.ok("protect", "web01")
	for range 2 {
		check(t, r.source.Start(ctx, "web01"))
		r.said(r.source, "web01", "@@ DONE")
		check(t, r.source.Stop(ctx, "web01", 0))
		r.ok("delta", "web01", "--now")
	}
	newest := guesttest.Files(r.console(r.source, "web01"))
	guesttest.SetMode(t, v.osPath(r), "raw", guesttest.Serve)
	r.ok("delta", "web01", "--now")
	points := r.ledger("web01").Points
	check(t, r.source.Delete(ctx, "web01"))
	for _, lost := range []string{"disks", "vms", ".sitrep"} {
		check(t, os.RemoveAll(r.path(lost)))
	}

	o := r.ok("--state", r.path("elsewhere"), "failover", "unplanned", "web01")
	files := guesttest.Files(r.said(r.recovery, "web01", "@@ UP"))
	for path, sum := range newest {
		if files[path] != sum {
			t.Fatalf("file %s is not what it was: %v", path, o)
		}
	}
	check(t, r.recovery.Stop(ctx, "web01", 0))
	r.ok("--state", r.path("elsewhere"), "failover", "unplanned", "web01") // was done already

	// The point before the last writes: its guest writes and powers off by itself, which its boot check does not mind.
	r.ok("--state", r.path("elsewhere"), "failover", "unplanned", "web01", "--point", points[1].ID)
	older := guesttest.Files(r.said(r.recovery, "web01", "@@ UP"))
	if _, there := older["new-1"]; there || older["srv/blob"] != guesttest.Sum(v.files["srv/blob"]) || older["new-0"] != newest["new-0"] {
		t.Fatalf("the older point shows %v, the newest %v", older, newest)
	}
	r.ok("--state", r.path("elsewhere"), "failover", "commit", "web01")
	if n := len(r.ledger("web01").Points); n != 1 {
		t.Errorf("%d recovery points after the commit", n)
	}
}

// TestTestFailover: a VM is tested while its source runs and is replicated; replica and points stay what they are, byte for byte.
func TestTestFailover(t *testing.T) {
	rnd := random(t)
	v := &bootVM{name: "web01", format: "raw", files: someFiles(rnd)}
	r := newBootRig(t, "vhdx", v)
	r.make(v, guesttest.Edit)
	ctx := context.Background()
	check(t, r.source.Start(ctx, "web01"))
	r.said(r.source, "web01", "@@ EDITED")
	r.ok("protect", "web01")
	before := r.storeBytes("web01")
	o := r.ok("failover", "test", "web01")
	if !strings.Contains(o.stdout, "isolated") {
		t.Errorf("the table of networks is not shown: %v", o)
	}
	r.tells(r.said(r.recovery, "web01-test", "@@ EDITED"), v)
	for path, sum := range r.storeBytes("web01") {
		if before[path] != sum {
			t.Errorf("the test failover has changed %s", path)
		}
		delete(before, path)
	}
	if len(before) > 0 || r.power(r.source, "web01") != host.Running {
		t.Errorf("the test failover has removed %v; the source is %s", before, r.power(r.source, "web01"))
	}
	r.ok("delta", "web01", "--now")
	r.refused(6, "test-failover-running", []string{"web01"}, "failover", "planned", "web01")
	r.refused(6, "test-failover-running", []string{"web01"}, "failover", "test", "web01")
	r.ok("failover", "cleanup", "web01", "--notes", "all well")
	if p := r.power(r.recovery, "web01-test"); p != host.Absent {
		t.Errorf("the test VM is %s", p)
	}
	if _, err := os.Stat(r.path("recovered", "web01-test")); !os.IsNotExist(err) {
		t.Errorf("the folder of the test is left: %v", err)
	}
	if s := r.ok("status", "web01"); !strings.Contains(s.stdout, "all well") {
		t.Errorf("the status does not remember the test: %v", s)
	}
}

// TestUndo: what the recovered VM wrote is given up, and the source starts as it was stopped.
func TestUndo(t *testing.T) {
	rnd := random(t)
	v := &bootVM{name: "web01", format: "vhd", files: someFiles(rnd)}
	r := newBootRig(t, "raw", v)
	r.make(v, guesttest.Edit)
	ctx := context.Background()
	check(t, r.source.Start(ctx, "web01"))
	first := guesttest.Files(r.said(r.source, "web01", "@@ EDITED"))
	r.ok("protect", "web01")
	r.ok("failover", "planned", "web01")
	stopped := r.image(v.osPath(r), "vhd")
	r.said(r.recovery, "web01", "@@ EDITED")
	if r.image(v.osPath(r), "vhd") != stopped {
		t.Fatal("the source was written to")
	}
	r.ok("failover", "undo", "web01")
	files := guesttest.Files(r.said(r.source, "web01", "@@ UP"))
	for path, sum := range first {
		if files[path] != sum && path != "marker" {
			t.Errorf("file %s is not what it was at the source", path)
		}
	}
	if _, there := files["new-2"]; there {
		t.Error("the source shows what the recovered VM wrote")
	}
	r.said(r.source, "web01", "@@ EDITED")
	r.ok("delta", "web01", "--now")
	check(t, r.source.Stop(ctx, "web01", 0))
	r.ok("delta", "web01", "--now")
	if r.image(v.osPath(r), "vhd") != r.image(r.path("store", "web01", "os.vhd"), "vhd") {
		t.Error("the replica is not the source")
	}
}

// TestFailoverControls: what must not boot, does not.
func TestFailoverControls(t *testing.T) {
	t.Parallel()
	rnd := random(t)
	protected := func(t *testing.T) (*rig, *machine) {
		r, m := rich(t, rand.New(rand.NewPCG(rnd.Uint64(), 0)))
		return r, m
	}
	t.Run("flipped byte", func(t *testing.T) {
		r, m := protected(t)
		info, err := os.Stat(r.replica(m, "os"))
		check(t, err)
		edit(t, r.replica(m, "os"), 9*mib, flip)
		check(t, os.Chtimes(r.replica(m, "os"), info.ModTime(), info.ModTime()))
		r.refused(5, "replica-corrupt", []string{"web01", "os"}, "failover", "unplanned", "web01", "--no-shutdown")
		if entries := r.list(r.path("recovered")); len(entries) != 1 || filepath.Base(entries[0]) != ".recovered.json" { // whose folder it is
			t.Errorf("left behind: %v", entries)
		}
		r.ok("failover", "undo", "web01")
		if entries, err := os.ReadDir(r.path("recovered")); err != nil || len(entries) > 0 { // the folder is gone too
			t.Errorf("left behind by the undo: %v (%v)", entries, err)
		}
	})
	t.Run("missing segment", func(t *testing.T) {
		r, m := protected(t)
		r.scribble(m, rand.New(rand.NewPCG(1, 1)))
		r.policy = ", apply: elsewhere"
		r.writeSite()
		r.ok("delta", "web01", "--now") // ships, and does not apply
		logs := r.list(r.path("store", "web01", "shelf"))
		if len(logs) == 0 {
			t.Fatal("nothing lies on the shelf")
		}
		check(t, os.Remove(logs[0]))
		r.refused(4, "failover-failed", []string{"web01", "latest-processed"}, "failover", "unplanned", "web01", "--no-shutdown")
		r.ok("failover", "unplanned", "web01", "--no-shutdown", "--point", "latest-processed")
	})
	t.Run("no sealed point", func(t *testing.T) {
		r, _, _ := one(t, 4*mib)
		r.ok("protect", "web01", "--later")
		r.refused(6, "wrong-state", []string{"web01", "initial replication"}, "failover", "unplanned", "web01")
		r.ok("replicate", "web01")
		o := r.run("failover", "unplanned", "web01", "--point", "20260101T000000Z-00000000")
		if o.code != 2 || !strings.Contains(o.stderr, "is no recovery point") {
			t.Errorf("a point that was never sealed: %v", o)
		}
	})
}

// TestRecoveryPlan is three VMs in two groups, with scripts, a manual action, and an action that fails first.
func TestRecoveryPlan(t *testing.T) {
	rnd := random(t)
	var vms []*bootVM
	for _, name := range []string{"db01", "app01", "web01"} {
		vms = append(vms, &bootVM{name: name, format: "raw", files: map[string][]byte{"etc/name": []byte(name), "srv/blob": noise(rnd, 50_000)}})
	}
	r := newBootRig(t, "vhd", vms...)
	check(t, os.MkdirAll(r.path("hooks"), 0o755))
	script := func(name, text string) {
		check(t, os.WriteFile(r.path("hooks", name), []byte("#!/bin/sh\n"+text+"\n"), 0o755))
	}
	script("first.sh", fmt.Sprintf("cat > %s; echo first >> %s", r.path("context.json"), r.path("ran")))
	script("check.sh", fmt.Sprintf("echo check $SITREP_TYPE $SITREP_GROUP >> %s; test -e %s || { echo the database is not there >&2; exit 3; }", r.path("ran"), r.path("mended")))
	script("last.sh", fmt.Sprintf("echo last >> %s", r.path("ran")))
	r.more = `recovery_plans:
  - name: shop
    groups:
      - {pre: [{script: ./hooks/first.sh}], vms: [db01, app01], post: [{script: ./hooks/check.sh, timeout: 1m}]}
      - {pre: [{manual: "Point DNS at the recovery site"}], vms: [web01], post: [{script: ./hooks/last.sh}]}
`
	r.writeBootSite()
	for _, v := range vms {
		r.make(v, guesttest.Serve)
	}
	check(t, r.source.Start(context.Background(), "db01")) // the others are off, and are recovered all the same
	r.said(r.source, "db01", "@@ UP")
	r.ok("protect", "--all")
	o := r.refused(4, "hook-failed", []string{"check.sh", "the database is not there"}, "failover", "planned", "--plan", "shop")
	for name, want := range map[string]host.Power{"db01": host.Running, "app01": host.Running, "web01": host.Off} {
		if got := r.power(r.recovery, name); got != want {
			t.Fatalf("%s is %s, want %s: %v", name, got, want, o)
		}
	}
	check(t, os.WriteFile(r.path("mended"), nil, 0o600))
	r.refused(12, "manual-action", []string{"Point DNS"}, "failover", "continue", "--plan", "shop")
	if got := r.power(r.recovery, "web01"); got != host.Off {
		t.Fatalf("web01 is %s before the manual action was done", got)
	}
	r.ok("failover", "continue", "--plan", "shop", "--done", "Point DNS at the recovery site")
	for _, v := range vms {
		r.tells(r.said(r.recovery, v.name, "@@ UP"), v)
		if got := r.power(r.source, v.name); got != host.Off {
			t.Errorf("the source of %s is %s", v.name, got)
		}
	}
	if got, want := string(read(t, r.path("ran"))), "first\ncheck planned 1\ncheck planned 1\nlast\n"; got != want {
		t.Errorf("the scripts ran as %q, want %q", got, want)
	}
	if c := string(read(t, r.path("context.json"))); !strings.Contains(c, `"plan":"shop"`) || !strings.Contains(c, `"db01"`) {
		t.Errorf("a script was told %s", c)
	}
	r.ok("failover", "commit", "--plan", "shop")
	if !long() {
		return
	}
	r.refused(12, "manual-action", []string{"Point DNS"}, "failback", "--plan", "shop", "--mode", "during-failover")
	r.ok("failover", "continue", "--plan", "shop", "--done", "group 2: pre-step 1")
	for _, v := range vms {
		r.tells(r.said(r.source, v.name, "@@ UP"), v)
	}
	r.ok("failover", "commit", "--plan", "shop")
	for _, v := range vms {
		if got := r.power(r.recovery, v.name); got != host.Absent {
			t.Errorf("the recovered %s is %s", v.name, got)
		}
	}
}
