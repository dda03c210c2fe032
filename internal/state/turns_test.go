package state

import (
	"strings"
	"testing"
	"time"

	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
)

// TestAsks: a request stands as long as its run waits, and is one for its VM and its turn only. That of a run that was killed counts for
// nothing, and is cleared away.
func TestAsks(t *testing.T) {
	fs := crashfs.New()
	d := Open(fs, "/s", func() time.Time { return time.Unix(0, 0) })
	if _, ok := d.Asked("web01", Changes); ok {
		t.Fatal("a request out of nothing")
	}
	a, err := d.Ask(Ask{VM: "web01", Exclusive: Changes, Command: "failover planned", PID: 7})
	if err != nil {
		t.Fatal(err)
	}
	got, ok := d.Asked("web01", Changes)
	if !ok || got.Who() != "failover planned (process 7)" {
		t.Fatalf("%v %v", got, ok)
	}
	for vm, x := range map[string]Exclusive{"web01": Tests, "db01": Changes} {
		if _, ok := d.Asked(vm, x); ok {
			t.Errorf("%s %s was not asked for", vm, x)
		}
	}
	killed := Open(fs.AfterCrash(crashfs.KeepAll, 0), "/s", d.now)
	if _, ok := killed.Asked("web01", Changes); ok {
		t.Error("a run that is gone still asks")
	}
	if b, err := killed.Ask(Ask{VM: "web01", Exclusive: Tests}); err != nil {
		t.Error(err)
	} else if ids := killed.askIDs(); len(ids) != 1 {
		t.Errorf("what a killed run left is there: %v", ids)
	} else if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, ok := d.Asked("web01", Changes); ok {
		t.Error("a request that was taken back")
	}
	if list, err := fs.ReadDir("/s/asks"); err != nil || len(list) > 0 {
		t.Error(list, err)
	}
}

// TestTurnsNameTheirRun: of a test failover and a delta that run beside each other each is named for what it is in the way of.
func TestTurnsNameTheirRun(t *testing.T) {
	fs := crashfs.New()
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	d := Open(fs, "/s", func() time.Time { now = now.Add(time.Second); return now })
	for x, command := range map[Exclusive]string{Tests: "failover test", Changes: "delta"} {
		lock, err := d.LockFor("web01", x)
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
		if _, err := d.Begin(command, command, "web01"); err != nil {
			t.Fatal(err)
		}
	}
	for x, command := range map[Exclusive]string{Tests: "failover test, since 2026-03-01T", Changes: "delta, since 2026-03-01T"} {
		_, err := d.LockFor("web01", x)
		if !fault.Is(err, fault.RunLocked) || !strings.Contains(err.Error(), command) {
			t.Errorf("%s: %v", x, err)
		}
	}
}
