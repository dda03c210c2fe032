package cmd

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"sitrep/internal/durable/crashfs"
	"sitrep/internal/replica"
	"sitrep/internal/replica/dir"
	"sitrep/internal/sums"
)

var errNoLedger = errors.New("no ledger")

// swap makes a block of the replica another one, so that everything in the store agrees with it.
func (m *rig) swap(disk string, block int64) {
	m.t.Helper()
	ctx := m.t.Context()
	r, err := dir.New(m.fs, "/store").Open(ctx, "web01")
	if err != nil {
		m.t.Fatal(err)
	}
	defer r.Close()
	st, err := r.Ledger().Load(ctx)
	if err != nil {
		m.t.Fatal(err)
	}
	d := st.Disk(disk)
	pages, err := r.Disk(ctx, *d)
	if err != nil {
		m.t.Fatal(err)
	}
	other := bytes.Repeat([]byte{0xee}, 4096)
	for _, err := range []error{pages.WriteAt(ctx, other, block*4096), pages.StoreSums(ctx, block, []sums.Sum{sums.Of(other)}), pages.Flush(ctx)} {
		if err != nil {
			m.t.Fatal(err)
		}
	}
	seal, err := replica.DiskSums{Pages: pages, Of: *d}.Seal(ctx)
	if err != nil {
		m.t.Fatal(err)
	}
	d.Seal = &seal
	if d.Stamp, err = pages.Stamp(ctx); err != nil {
		m.t.Fatal(err)
	}
	if _, err := r.Ledger().Save(ctx, st); err != nil {
		m.t.Fatal(err)
	}
	if err := pages.Close(); err != nil {
		m.t.Fatal(err)
	}
}

// TestCompareFindsDifference: a replica that agrees with itself and not with the source is found, also beside what the VM has written
// since; the mark is seen by everything that asks for it, and the command that it names cures it.
func TestCompareFindsDifference(t *testing.T) {
	cures := map[string][]string{"named": {"resync", "web01", "--deep", "--now"}, "due": {"resync", "--due", "--all"}, "delta": {"delta", "web01", "--now"}}
	for name, cure := range cures {
		t.Run(name, func(t *testing.T) {
			m := newRig(t, `log_limit_percent: 100, resync_window: {from: "00:00", to: "23:59"}`)
			m.must(0, "protect", "web01")
			m.swap("os", 3)
			m.write("os", 9*4096, 4096, 9)
			m.write("data", 0, 4096, 9)
			m.must(0, "verify", "web01")
			o := m.object("verify", "web01", "--against-source")
			_, stderr := m.must(7, "verify", "web01", "--against-source")
			if !strings.Contains(stderr, "4096 bytes in 1 runs") || !strings.Contains(stderr, "resync web01 --deep --now") {
				t.Error(stderr)
			}
			disk := o["disks"].([]any)[0].(map[string]any)
			if n := len(disk["not_replicated"].([]any)); n != 1 {
				t.Errorf("%v", o)
			}
			m.must(2, "status", "--check")
			m.must(0, cure...)
			if stdout, _ := m.must(1, "status", "--check"); !strings.Contains(stdout, "a recovery point is lost") { // it was never what the source was
				t.Error(stdout)
			}
			m.must(0, "verify", "web01", "--against-source")
			m.must(0, "delta", "web01")
			m.same()
		})
	}
}

// TestMarkInMemory: a difference that only this site's memory tells of is no other than one in the ledger.
func TestMarkInMemory(t *testing.T) {
	m := newRig(t, `log_limit_percent: 100, resync_window: {from: "00:00", to: "23:59"}`)
	m.must(0, "protect", "web01")
	m.swap("os", 3)
	ledger := 0
	m.fs.FailOn(func(op crashfs.Op) error {
		if strings.Contains(op.Name, "ledger.json") && op.Kind.Changes() {
			ledger++
			return errNoLedger
		}
		return nil
	})
	m.must(7, "verify", "web01", "--against-source")
	m.fs.FailOn(nil)
	if ledger == 0 {
		t.Fatal("the ledger was not to be marked")
	}
	m.must(2, "status", "--check")
	m.now = m.now.Add(time.Minute)
	m.must(0, "resync", "--due", "--all")
	m.must(0, "status", "--check")
	m.same()
}

// TestCompareNewer: what the VM writes after the last delta is told and marks nothing, in whatever step the cycle is.
func TestCompareNewer(t *testing.T) {
	m := newRig(t, "log_limit_percent: 100, apply: elsewhere")
	m.must(0, "protect", "web01")
	newer := func(want int64) {
		t.Helper()
		o := m.object("verify", "web01", "--against-source")
		var n int64
		for _, d := range o["disks"].([]any) {
			list, _ := d.(map[string]any)["not_replicated"].([]any)
			for _, r := range list {
				n += int64(r.(map[string]any)["len"].(float64))
			}
		}
		if n != want || o["health"] != healthNormal || o["error"] != nil {
			t.Errorf("%d bytes are newer, want %d: %v", n, want, o)
		}
		m.must(0, "status", "--check")
	}
	newer(0)
	m.write("os", 0, 8192, 9)
	newer(8192)
	m.must(0, "delta", "web01", "--capture-only") // in a log beside the disk
	newer(8192)
	m.must(0, "delta", "web01") // on the shelf
	newer(8192)
	m.write("os", 4096, 8192, 10)
	newer(12288)
	m.must(0, "apply", "web01")
	newer(8192)
	m.must(0, "delta", "web01")
	m.must(0, "apply", "web01")
	newer(0)
	m.same()
}
