package cmd

import (
	"fmt"
	"testing"

	"sitrep/internal/durable/crashfs"
)

// changes are the operations since the first so many that changed something.
func changes(fsys *crashfs.FS, before int) (list []string) {
	for _, op := range fsys.Log()[before:] {
		if op.Kind.Changes() {
			list = append(list, fmt.Sprintf("%v %s", op.Kind, op.Name))
		}
	}
	return list
}

// plans are the command lines that are tried with --dry-run.
func plans() [][]string {
	return [][]string{{"delta", "web01"}, {"delta", "web01", "--capture-only"}, {"resync", "web01"}, {"resync", "--deep", "web01"},
		{"resync", "--due", "--all"}, {"apply", "web01"}, {"verify", "web01"}, {"verify", "--against-source", "web01"}, {"pause", "web01"},
		{"unprotect", "web01"}, {"points", "web01"}, {"points", "web01", "--export", "latest", "--to", "/out"}, {"status", "web01"},
		{"status", "--prometheus", "/metrics.prom"}, {"check", "web01"}, {"failover", "unplanned", "web01"}, {"failover", "planned", "web01"},
		{"failover", "test", "web01"}, {"store", "probe"}, {"why", "web01"}, {"protect", "web01"}, {"replicate", "web01"}, {"resume", "web01"}}
}

// TestDryRunAfterCrash: wherever a delta was cut off, whatever it has left is left alone by a dry run, and the next delta goes on as if
// there had been none.
func TestDryRunAfterCrash(t *testing.T) {
	start := func() *crashfs.FS {
		fsys := crashMachine(t)
		sitrep(fsys, "protect", "web01")
		if err := change(fsys, 9); err != nil {
			t.Fatal(err)
		}
		return fsys
	}
	whole := start()
	before := whole.Ops()
	sitrep(whole, "delta", "web01")
	ops := whole.Ops() - before
	for k := 1; k <= ops; k += 5 {
		fsys := start()
		fsys.CutAfter(k)
		sitrep(fsys, "delta", "web01")
		after := fsys.AfterCrash(crashfs.KeepAll, uint64(k))
		for _, args := range plans() {
			log := len(after.Log())
			code, errs := sitrep(after, append(args, "--dry-run")...)
			if list := changes(after, log); len(list) > 0 {
				t.Fatalf("%d of %d: %v --dry-run (exit code %d, %s) did %v", k, ops, args, code, errs, list)
			}
			if args[0] == "delta" && code != exitDone {
				t.Fatalf("%d of %d: %v --dry-run: exit code %d\n%s", k, ops, args, code, errs)
			}
		}
		recovered(t, after)
	}
}

// TestDryRunBesideARun: what looks at the memory of another run's tracker waits for its turn.
func TestDryRunBesideARun(t *testing.T) {
	m := newRig(t, "log_limit_percent: 100")
	m.must(0, "protect", "web01")
	lock, err := m.fs.Lock("/.sitrep/locks/web01.lock")
	if err != nil {
		t.Fatal(err)
	}
	m.must(11, "delta", "web01", "--dry-run")
	m.must(11, "resync", "web01", "--dry-run")
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	m.must(0, "delta", "web01", "--dry-run")
}
