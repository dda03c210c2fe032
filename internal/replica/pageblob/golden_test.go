package pageblob_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"sitrep/internal/block"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/replica/pageblob/azuritetest"
	"sitrep/internal/replica/replicatest"
)

const golden = "testdata/requests.txt"

// TestRequests keeps what each operation costs: whoever changes it sees it. SITREP_UPDATE=1 writes the table anew.
func TestRequests(t *testing.T) {
	ctx := t.Context()
	count := newCounter(t)
	opts := quick()
	opts.Transport = over(count.RoundTrip)
	name := azuritetest.Container(t)
	store := open(t, name, opts)
	var table strings.Builder
	step := func(what string, f func() error) {
		count.take()
		if err := f(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		table.WriteString(what + "\n\t" + strings.ReplaceAll(count.take(), "\n", "\n\t") + "\n")
	}
	var r replica.Replica
	var s replica.State
	var p replica.Pages
	first := replicatest.FirstState("vm")
	first.Disks = first.Disks[:1]
	first.Disks[0].Size, first.Disks[0].BlockSize = 64<<20, 64<<10
	step("prepare a new store", func() error { _, err := store.Prepare(ctx, hrl.ID{}); return err })
	step("create a replica", func() (err error) { r, err = store.Create(ctx, first); return err })
	step("read the ledger", func() (err error) { s, err = r.Ledger().Load(ctx); return err })
	step("write the ledger", func() (err error) { s, err = r.Ledger().Save(ctx, s); return err })
	step("make a disk", func() (err error) { p, err = r.Disk(ctx, s.Disks[0]); return err })
	mib := bytes.Repeat([]byte{7}, 1<<20)
	step("write 16 MiB in pieces of 1 MiB to a new disk, with sums", func() error {
		for i := range int64(16) {
			if err := errors.Join(p.WriteAt(ctx, mib, i<<20), p.StoreSums(ctx, i*16, sumsOfOnes(16))); err != nil {
				return err
			}
		}
		return p.Flush(ctx)
	})
	step("write 32 blocks of 4 KiB, each after a gap of 4 KiB, to a new area", func() error {
		for i := range int64(32) {
			if err := p.WriteAt(ctx, mib[:4096], 32<<20+i*8192); err != nil {
				return err
			}
		}
		return p.Flush(ctx)
	})
	step("zero 24 MiB of a new area, and 5 MiB of data", func() error {
		return errors.Join(p.ZeroAt(ctx, 40<<20, 24<<20), p.ZeroAt(ctx, 0, 5<<20), p.Flush(ctx))
	})
	step("stamp the pages", func() error { _, err := p.Stamp(ctx); return err })
	step("close and open again", func() error {
		if err := errors.Join(p.Close(), r.Close()); err != nil {
			return err
		}
		var err error
		if r, err = store.Open(ctx, "vm"); err == nil {
			p, err = r.Disk(ctx, s.Disks[0])
		}
		return err
	})
	step("write 2 blocks of 4 KiB with an unknown gap", func() error {
		return errors.Join(p.WriteAt(ctx, mib[:4096], 6<<20), p.WriteAt(ctx, mib[:4096], 6<<20+8192), p.Flush(ctx))
	})
	step("write 32 blocks of 4 KiB with unknown gaps", func() error {
		for i := range int64(32) {
			if err := p.WriteAt(ctx, mib[:4096], 6<<20+i*8192); err != nil {
				return err
			}
		}
		return p.Flush(ctx)
	})
	step("change one sum", func() error { return errors.Join(p.StoreSums(ctx, 5, sumsOfOnes(1)), p.Flush(ctx)) })
	step("read 1 MiB", func() error { return p.ReadAt(ctx, make([]byte, 1<<20), 8<<20) })
	step("put a small log", func() error { _, err := r.Shelf().Put(ctx, "os.1.hrl", logOf(t, "log")); return err })
	step("read a small log", func() error {
		f, err := r.Shelf().Open(ctx, "os.1.hrl")
		if err != nil {
			return err
		}
		_, err = f.ReadAt(make([]byte, 3), 0)
		return errors.Join(err, f.Close())
	})
	step("remove a log", func() error { return r.Shelf().Remove(ctx, "os.1.hrl") })
	s.Applied = hrl.Pos{}.Next()
	s.Points = []replica.Point{{ID: "p", At: s.Applied, Sizes: map[string]int64{"os": s.Disks[0].Size}}}
	step("preserve a point", func() error {
		return r.Points().Preserve(ctx, s, s.Applied.Next(), map[string]*block.Set{}, false)
	})
	step("preserve it again", func() error {
		return r.Points().Preserve(ctx, s, s.Applied.Next(), map[string]*block.Set{}, true)
	})
	step("open a point and read 1 MiB", func() error {
		v, err := r.Points().Open(ctx, s, "p")
		if err != nil {
			return err
		}
		d, err := v.Disk("os")
		if err == nil {
			_, err = d.ReadAt(make([]byte, 1<<20), 30<<20)
		}
		return err
	})
	s.Points = nil
	step("sweep a point", func() error { return r.Points().Sweep(ctx, s) })
	step("sweep nothing", func() error { return r.Points().Sweep(ctx, s) })
	step("close", func() error { return errors.Join(p.Close(), r.Close()) })
	if os.Getenv("SITREP_UPDATE") != "" {
		if err := os.WriteFile(golden, []byte(table.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || string(want) != table.String() {
		t.Errorf("the operations cost other requests than %s says (%v):\n%s", golden, err, table.String())
	}
}
