package scan_test

import (
	"context"
	"fmt"
	"testing"

	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/hrl"
	"sitrep/internal/track"
	"sitrep/internal/track/scan"
)

// TestPowerCut: after a power cut the bytes that a guest wrote last may be there and the times from before, so a disk whose
// times have not changed is read all the same; after a kill of the process it need not be.
func TestPowerCut(t *testing.T) {
	ctx := context.Background()
	fs := crashfs.New()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ok(fs.MkdirAll("/d"))
	ok(durable.WriteFile(fs, "/d/os.raw", make([]byte, 64<<10)))
	for i := range 200 { // until the clock is certainly past the disk's times
		ok(durable.WriteFile(fs, fmt.Sprintf("/d/other%d", i), nil))
	}
	open := func(fs *crashfs.FS) *scan.Tracker {
		t.Helper()
		tr, err := scan.Open(fs, scan.Config{VM: "vm", Dir: "/state",
			Disks: []track.Disk{{Name: "os", Path: "/d/os.raw", Format: disk.Raw, BlockSize: 4096}}})
		ok(err)
		return tr
	}
	tr, at := open(fs), hrl.Pos{}.Next()
	cut, err := tr.Cut(ctx, hrl.Pos{})
	ok(err)
	_, err = cut.Disks()[0].Scan(ctx, track.Options{}, func(context.Context, track.Change) error { return nil })
	ok(err)
	ok(tr.Rebase(ctx, at, map[string]track.Base{"os": &collected{size: 64 << 10}}))
	ok(cut.Confirm(ctx))
	ok(cut.Close())
	for policy, want := range map[crashfs.Policy]bool{crashfs.ProcessKill: true, crashfs.KeepAll: false, crashfs.DropUnsynced: false} {
		cut, err := open(fs.AfterCrash(policy, 1)).Cut(ctx, at)
		ok(err)
		if got := cut.Disks()[0].Untouched(); got != want {
			t.Errorf("%v: untouched %v", policy, got)
		}
		ok(cut.Close())
	}
}
