package scan_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/sums"
	"sitrep/internal/track"
	"sitrep/internal/track/scan"
)

// countingFS counts which bytes of the files with one suffix are read.
type countingFS struct {
	durable.FS
	suffix string
	mu     *sync.Mutex
	once   *block.Set
	bytes  *int64
}

func counting(fsys durable.FS, suffix string) countingFS {
	return countingFS{fsys, suffix, new(sync.Mutex), new(block.Set), new(int64)}
}

func (c countingFS) Open(name string) (durable.File, error) {
	f, err := c.FS.Open(name)
	if err != nil || !strings.HasSuffix(name, c.suffix) {
		return f, err
	}
	return countingFile{f, c}, nil
}

type countingFile struct {
	durable.File
	c countingFS
}

func (f countingFile) ReadAt(p []byte, off int64) (int, error) {
	f.c.mu.Lock()
	f.c.once.Add(block.Range{Off: off, Len: int64(len(p))})
	*f.c.bytes += int64(len(p))
	f.c.mu.Unlock()
	return f.File.ReadAt(p, off)
}

func rawTracker(t *testing.T, fsys durable.FS, dir, path string, base []byte) (*scan.Tracker, hrl.Pos) {
	t.Helper()
	tr, err := scan.Open(fsys, scan.Config{VM: "vm", Dir: dir, Disks: []track.Disk{
		{Name: "d", Path: path, Format: disk.Raw, BlockSize: smallBlock},
	}})
	if err != nil {
		t.Fatal(err)
	}
	at := hrl.Pos{}.Next()
	if err := tr.Rebase(context.Background(), at, map[string]track.Base{"d": memBase(base)}); err != nil {
		t.Fatal(err)
	}
	return tr, at
}

func mustCut(t *testing.T, tr *scan.Tracker, at hrl.Pos) track.Cut {
	t.Helper()
	c, err := tr.Cut(context.Background(), at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func ignore(context.Context, track.Change) error { return nil }

// TestReadsOnce: every allocated byte is read once, holes are not, and an untouched disk is not read at all.
func TestReadsOnce(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "d.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	const size = 64 << 20
	for _, off := range []int64{0, 1 << 20, 5<<20 + 4096, 40 << 20} {
		p := make([]byte, 3<<20/2)
		for i := range p {
			p[i] = byte(1 + rng.IntN(255))
		}
		if _, err := f.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Truncate(size), f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	data := block.NewSet(block.Range{Len: 5 << 20 / 2}, block.Range{Off: 5<<20 + 4096, Len: 3 << 20 / 2},
		block.Range{Off: 40 << 20, Len: 3 << 20 / 2})

	a := aging(durable.OS())
	fsys := counting(a, "d.img")
	tr, at := rawTracker(t, fsys, filepath.Join(dir, "state"), path, make([]byte, size))
	a.age()
	c := mustCut(t, tr, at)
	*fsys.bytes = 0
	st, err := c.Disks()[0].Scan(context.Background(), track.Options{}, ignore)
	if err != nil {
		t.Fatal(err)
	}
	if *fsys.bytes != data.Bytes() || fsys.once.Bytes() != data.Bytes() || st.Scanned != data.Bytes() {
		t.Errorf("read %d bytes, %d different ones (%+v); the disk has %d", *fsys.bytes, fsys.once.Bytes(), st, data.Bytes())
	}
	to := at.Next()
	if err := errors.Join(c.Check(context.Background()), c.Advance(context.Background(), to), c.Close()); err != nil {
		t.Fatal(err)
	}
	*fsys.bytes = 0
	began := time.Now()
	c = mustCut(t, tr, to)
	st, err = c.Disks()[0].Scan(context.Background(), track.Options{}, ignore)
	if err != nil || !c.Disks()[0].Untouched() || *fsys.bytes != 0 || st.Scanned != 0 {
		t.Errorf("an untouched disk: %d bytes read, %+v, %v", *fsys.bytes, st, err)
	}
	t.Logf("untouched in %v", time.Since(began))
}

// TestModified: a disk that is written to while it is read does not pass Check, and the position stays.
func TestModified(t *testing.T) {
	for _, how := range []string{"write", "same bytes", "truncate", "replaced"} {
		t.Run(how, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "d.img")
			base := bytes.Repeat([]byte{7}, 1<<20)
			if err := os.WriteFile(path, base, 0o600); err != nil {
				t.Fatal(err)
			}
			tr, at := rawTracker(t, noClones{durable.OS()}, filepath.Join(dir, "state"), path, base[:len(base)/2])
			c := mustCut(t, tr, at)
			var once sync.Once
			_, err := c.Disks()[0].Scan(context.Background(), track.Options{Tasks: 1, Unit: 4 * smallBlock}, func(context.Context, track.Change) error {
				var err error
				once.Do(func() { err = modify(path, how) })
				return err
			})
			if err != nil && !fault.Is(err, fault.DiskModified) {
				t.Fatal(err)
			}
			if err := c.Check(context.Background()); !fault.Is(err, fault.DiskModified) {
				t.Errorf("Check: %v", err)
			}
			if err := c.Advance(context.Background(), at.Next()); !fault.Is(err, fault.DiskModified) {
				t.Errorf("Advance: %v", err)
			}
			if tr.Position() != at {
				t.Errorf("stands at %v", tr.Position())
			}
		})
	}
}

type noClones struct{ durable.FS }

func (noClones) Clone(string, string) error { return errors.ErrUnsupported }

func modify(path, how string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	switch how {
	case "write":
		_, err = f.WriteAt([]byte{1}, 900<<10)
	case "same bytes":
		_, err = f.WriteAt([]byte{7}, 900<<10)
	case "truncate":
		err = f.Truncate(2 << 20)
	case "replaced":
		if err = os.WriteFile(path+".new", bytes.Repeat([]byte{7}, 1<<20), 0o600); err == nil {
			err = os.Rename(path+".new", path)
		}
	}
	return err
}

// TestBusy: a disk that is always being written to is refused where there are no clones, and with several disks.
func TestBusy(t *testing.T) {
	for _, clones := range []bool{false, true} {
		fsys := crashfs.New()
		fsys.SetClone(clones)
		for _, d := range smallDisks() {
			if err := durable.WriteFile(fsys, d.Path, make([]byte, smallSize)); err != nil {
				t.Fatal(err)
			}
		}
		busy := busyFS{fsys}
		for n, want := range map[int]bool{1: clones, 2: false} {
			tr, err := scan.Open(busy, scan.Config{VM: "vm", Disks: smallDisks()[:n], Dir: "/state/vm"})
			if err != nil {
				t.Fatal(err)
			}
			c, err := tr.Cut(context.Background(), hrl.Pos{})
			if want != (err == nil) || err != nil && !fault.Is(err, fault.DiskModified) {
				t.Errorf("clones %v, %d disks: %v", clones, n, err)
			}
			if err == nil {
				if !c.Disks()[0].Frozen() {
					t.Error("not frozen")
				}
				c.Close()
			}
			names, err := fsys.ReadDir("/")
			if err != nil || len(names) > len(smallDisks())+1 {
				t.Errorf("left behind: %v, %v", names, err)
			}
		}
	}
}

// busyFS writes to a disk whenever one is opened.
type busyFS struct{ *crashfs.FS }

func (b busyFS) Open(name string) (durable.File, error) {
	if f, err := b.OpenRW("/os.img"); err == nil {
		f.WriteAt([]byte{1}, 0)
		f.Close()
	}
	return b.FS.Open(name)
}

// TestClone: what is written after the cut is not seen in it, and in the next one it is; a clone that a crash left is
// removed, and nothing else.
func TestClone(t *testing.T) {
	fsys := crashfs.New()
	fsys.SetClone(true)
	base := make([]byte, smallSize)
	other := "/.other.img.sitrep-tmp-0123456789abcdef"
	for _, name := range []string{"/d.img", durable.TempName("/d.img"), other} {
		if err := durable.WriteFile(fsys, name, base); err != nil {
			t.Fatal(err)
		}
	}
	tr, at := rawTracker(t, fsys, "/state/vm", "/d.img", base)
	v := &vm{fs: fsys, states: map[hrl.Pos]map[string][]byte{at: {"d": base}}}
	c := mustCut(t, tr, at)
	write := func(p string, off int64) {
		f, err := fsys.OpenRW("/d.img")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(p), off); err != nil {
			t.Fatal(err)
		}
	}
	write("after", 5000)
	got, err := changes(c, v.states[at])
	if err != nil || !bytes.Equal(got["d"], base) || !c.Disks()[0].Frozen() {
		t.Fatalf("frozen %v, %v", c.Disks()[0].Frozen(), err)
	}
	if err := errors.Join(c.Confirm(context.Background()), c.Close()); err != nil {
		t.Fatal(err)
	}
	c = mustCut(t, tr, at)
	got, err = changes(c, v.states[at])
	if err != nil || string(got["d"][5000:5005]) != "after" {
		t.Fatalf("the next cut: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	names, err := fsys.ReadDir("/")
	if err != nil || len(names) != 3 {
		t.Errorf("left behind: %v, %v", names, err)
	}
	if _, err := fsys.Stat(other); err != nil {
		t.Errorf("the clone of another disk: %v", err)
	}
}

// TestHuge: a disk of 1 TiB with little in it takes little time and memory.
func TestHuge(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "d.img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 1 << 40
	if err := f.Truncate(size); err != nil {
		t.Skipf("no large files here: %v", err)
	}
	for _, off := range []int64{0, 300 << 30, size - 5} {
		if _, err := f.WriteAt([]byte("data!"), off); err != nil {
			t.Fatal(err)
		}
	}
	tr, err := scan.Open(durable.OS(), scan.Config{VM: "vm", Dir: filepath.Join(dir, "state"), Disks: []track.Disk{
		{Name: "d", Path: path, Format: disk.Raw, BlockSize: 64 << 10},
	}})
	if err != nil {
		t.Fatal(err)
	}
	at := hrl.Pos{}.Next()
	if err := tr.Rebase(context.Background(), at, map[string]track.Base{"d": empty(size)}); err != nil {
		t.Fatal(err)
	}
	for round, want := range []int64{3 * 64 << 10, 64 << 10, 0} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		began := time.Now()
		c := mustCut(t, tr, at)
		st, err := c.Disks()[0].Scan(context.Background(), track.Options{}, ignore)
		if err != nil || st.Changed != want {
			t.Fatalf("round %d: %+v, %v", round, st, err)
		}
		runtime.ReadMemStats(&after)
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("round %d took %v", round, took)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 40<<20 {
			t.Errorf("round %d allocated %d bytes", round, n)
		}
		at = at.Next()
		if want == 0 {
			at.Seq-- // nothing to advance
			continue
		}
		if err := errors.Join(c.Advance(context.Background(), at), c.Close()); err != nil {
			t.Fatal(err)
		}
		// The next round has one change: a block in the middle becomes zero.
		if _, err := f.WriteAt(make([]byte, 5), 300<<30); err != nil {
			t.Fatal(err)
		}
	}
}

// empty is the sums of an empty disk.
type empty int64

func (e empty) Size() int64 { return int64(e) }
func (e empty) All(context.Context, func(int64, sums.Sum) error) error {
	return nil
}
