package dir

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
)

// probed probes a folder, and fails unless nothing is left of it.
func probed(t *testing.T, fsys durable.FS, root string) []replica.Check {
	t.Helper()
	before := names(t, fsys, filepath.Dir(root))
	p := newProbe(fsys, root, 20*time.Millisecond)
	checks, err := p.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if after := names(t, fsys, filepath.Dir(root)); !slices.Equal(before, after) {
		t.Errorf("the probe left %v of %v", after, before)
	}
	for _, c := range checks {
		t.Logf("%v %v %-45s %s", c.Holds, c.Needed, c.Name, c.Detail)
		if !c.Holds && c.Detail == "" {
			t.Errorf("%q does not hold, and nobody knows why", c.Name)
		}
	}
	return checks
}

// names are all paths under a folder.
func names(t *testing.T, fsys durable.FS, root string) (out []string) {
	t.Helper()
	entries, err := fsys.ReadDir(root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	for _, e := range entries {
		path := filepath.Join(root, e.Name)
		out = append(out, path)
		if e.Dir {
			out = append(out, names(t, fsys, path)...)
		}
	}
	return out
}

func TestProbeGoodFolder(t *testing.T) {
	folder := t.TempDir()
	store := New(durable.OS(), filepath.Join(folder, "deep", "store"))
	for _, founded := range []bool{false, true} {
		if founded {
			if _, err := store.Prepare(t.Context(), hrl.ID{}); err != nil {
				t.Fatal(err)
			}
		}
		checks := probed(t, durable.OS(), store.root)
		if bad := replica.Unfit(checks); len(bad) > 0 || len(checks) < 18 {
			t.Errorf("of %d checks these do not hold: %q", len(checks), bad)
		}
	}
}

func TestProbeInMemory(t *testing.T) {
	for _, clone := range []bool{false, true} {
		fsys := crashfs.New()
		fsys.SetClone(clone)
		checks := probed(t, fsys, "/srv/store")
		if bad := replica.Unfit(checks); len(bad) > 0 {
			t.Errorf("these do not hold: %q", bad)
		}
		if i := slices.IndexFunc(checks, func(c replica.Check) bool { return c.Name == "files can be cloned" }); checks[i].Holds != clone {
			t.Errorf("clones: %+v", checks[i])
		}
	}
}

// TestProbeIsNoReplica: whatever a probe has at any moment, it is no VM.
func TestProbeIsNoReplica(t *testing.T) {
	fsys := crashfs.New()
	store := New(fsys, "/store")
	if _, err := store.Prepare(t.Context(), hrl.ID{}); err != nil {
		t.Fatal(err)
	}
	seen := 0
	p := newProbe(&faultyFS{FS: fsys, create: func(string) error {
		seen++
		for name, err := range store.List(t.Context()) {
			t.Errorf("the list has %q: %v", name, err)
		}
		return nil
	}}, "/store", 0)
	if _, err := p.run(t.Context()); err != nil || seen == 0 {
		t.Fatal(seen, err)
	}
	if _, err := store.Open(t.Context(), filepath.Base(p.folder)); !fault.Is(err, fault.NotProtected) {
		t.Errorf("the folder of a probe can be opened: %v", err)
	}
}

func TestProbeSweeps(t *testing.T) {
	fsys := crashfs.New()
	for _, name := range []string{"sitrep-probe-killed", "sitrep-probe-running", "sitrep-probe-empty", "sitrep-probe-vm", "sitrep-probe-copy",
		"sitrep-probe-more", "web01"} {
		if err := fsys.MkdirAll("/store/" + name); err != nil {
			t.Fatal(err)
		}
		write := func(file, content string) {
			if err := durable.WriteFile(fsys, "/store/"+name+"/"+file, []byte(content)); err != nil {
				t.Fatal(err)
			}
		}
		switch name {
		case "sitrep-probe-empty":
			continue
		case "sitrep-probe-vm": // a VM that was protected by this name
			write("ledger.json", "{}")
			write("os.vhd", "a disk")
		case "sitrep-probe-copy":
			write(probeMark, "sitrep-probe-killed")
			write("first", "somebody's")
		case "sitrep-probe-more":
			write(probeMark, name)
			write("letter.txt", "somebody's")
		default:
			write(probeMark, name)
			write("first", "first")
		}
		lock, err := fsys.Lock("/store/" + name + "/lock")
		if err != nil {
			t.Fatal(err)
		}
		if name != "sitrep-probe-running" {
			lock.Close()
		}
	}
	if _, err := New(fsys, "/store").Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{"/store/sitrep-probe-copy", "/store/sitrep-probe-copy/first", "/store/sitrep-probe-copy/lock", "/store/sitrep-probe-copy/probe",
		"/store/sitrep-probe-empty", "/store/sitrep-probe-more", "/store/sitrep-probe-more/letter.txt", "/store/sitrep-probe-more/lock", "/store/sitrep-probe-more/probe",
		"/store/sitrep-probe-running", "/store/sitrep-probe-running/first", "/store/sitrep-probe-running/lock", "/store/sitrep-probe-running/probe",
		"/store/sitrep-probe-vm", "/store/sitrep-probe-vm/ledger.json", "/store/sitrep-probe-vm/lock", "/store/sitrep-probe-vm/os.vhd",
		"/store/web01", "/store/web01/first", "/store/web01/lock", "/store/web01/probe"}
	if got := names(t, fsys, "/store"); !slices.Equal(got, want) {
		t.Errorf("what is left is %v, want %v", got, want)
	}
}

func TestProbeReadOnly(t *testing.T) {
	if runtime.GOOS == "windows" || os.Getuid() == 0 {
		fsys := &faultyFS{FS: crashfs.New(), create: func(name string) error {
			return &fs.PathError{Op: "create", Path: name, Err: fs.ErrPermission}
		}}
		wantUnfit(t, probed(t, fsys, "/srv/store"), "folders and files can be made")
		return
	}
	root := t.TempDir()
	if err := os.Chmod(root, 0o500); err != nil {
		t.Fatal(err)
	}
	defer os.Chmod(root, 0o700)
	wantUnfit(t, probed(t, durable.OS(), root), "folders and files can be made")
}

func TestProbeCancelled(t *testing.T) {
	fsys := crashfs.New()
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	p := newProbe(&faultyFS{FS: fsys, create: func(string) error {
		if n++; n == 5 {
			cancel()
		}
		return nil
	}}, "/store", 0)
	checks, err := p.run(ctx)
	if !fault.Cancelled(err) || len(replica.Unfit(checks)) > 0 {
		t.Errorf("%v, %v", checks, err)
	}
	if left := names(t, fsys, "/"); len(left) > 0 {
		t.Errorf("it left %v", left)
	}
}

func wantUnfit(t *testing.T, checks []replica.Check, want ...string) {
	t.Helper()
	if got := replica.Unfit(checks); !slices.Equal(got, want) {
		t.Errorf("what does not hold is %q, want %q", got, want)
	}
}

// TestProbeFindsFaults: each way in which a filesystem is not what it should be is found, and by the check that says so.
func TestProbeFindsFaults(t *testing.T) {
	injected := errors.New("injected")
	for name, x := range map[string]struct {
		fault func(*faultyFS)
		want  []string
	}{
		"locks that lock nothing": {func(f *faultyFS) {
			f.lock = func(string) (io.Closer, error) { return io.NopCloser(nil), nil }
		}, []string{"a lock keeps others out"}},
		"no locks": {func(f *faultyFS) {
			f.lock = func(string) (io.Closer, error) { return nil, injected }
		}, []string{"a lock keeps others out", "a lock that is released can be taken"}},
		"locks that stay": {func(f *faultyFS) {
			held := map[string]bool{}
			f.lock = func(name string) (io.Closer, error) {
				if held[name] {
					return nil, durable.ErrLocked
				}
				held[name] = true
				return io.NopCloser(nil), nil
			}
		}, []string{"a lock that is released can be taken"}},
		"creates what is there": {func(f *faultyFS) {
			f.create = func(name string) error { return durable.RemoveIfThere(f.FS, name) }
		}, []string{"a file that is there is not made again"}},
		"renames in two steps": {func(f *faultyFS) {
			f.rename = func(from, to string) error {
				if err := durable.RemoveIfThere(f.FS, to); err != nil {
					return err
				}
				runtime.Gosched()
				time.Sleep(time.Millisecond) // the reader is to come between
				return f.FS.Rename(from, to)
			}
		}, []string{"a rename replaces in one step"}},
		"renames in name only": {func(f *faultyFS) {
			f.rename = func(from, _ string) error { return f.FS.Remove(from) }
		}, []string{"a rename replaces in one step"}},
		"folds names": {func(f *faultyFS) {
			f.fold = func(name string) string { return strings.ReplaceAll(name, "ö", "o\u0308") }
		}, []string{"names stay as they were given"}},
		"lists what is gone": {func(f *faultyFS) { f.stale = true }, []string{"names stay as they were given"}},
		"no sync of folders": {func(f *faultyFS) { f.syncDir = injected },
			[]string{"a rename replaces in one step", "files and folders can be made durable"}},
		"reads what was": {func(f *faultyFS) {
			f.file.read = func(name string, b []byte) {
				if filepath.Base(name) == "shared" {
					clear(b[100:101])
				}
			}
		}, []string{"what was written is read by others"}},
		"zeros that are not":      {func(f *faultyFS) { f.file.zero = true }, []string{"zeroed ranges read as zero"}},
		"holes that are not":      {func(f *faultyFS) { f.file.holes = true }, []string{"data is not taken for a hole"}},
		"no time of modification": {func(f *faultyFS) { f.file.still = true }, []string{"a write changes the time of modification"}},
		"loses large writes":      {func(f *faultyFS) { f.file.short = true }, []string{"large transfers arrive"}},
		"clones that change":      {func(f *faultyFS) { f.alias = true }, []string{"a clone stays as it was"}},
	} {
		t.Run(name, func(t *testing.T) {
			fsys := &faultyFS{FS: crashfs.New()}
			x.fault(fsys)
			wantUnfit(t, probed(t, fsys, "/srv/store"), x.want...)
		})
	}
	t.Run("what cannot be removed", func(t *testing.T) {
		p := newProbe(&faultyFS{FS: crashfs.New(), remove: injected}, "/store", 0)
		checks, err := p.run(t.Context())
		if bad := replica.Unfit(checks); err != nil || !slices.Contains(bad, "what was made can be removed") {
			t.Errorf("%q, %v", bad, err)
		}
	})
}

// faultyFS is a filesystem that is not what it should be.
type faultyFS struct {
	durable.FS
	create  func(name string) error
	lock    func(name string) (io.Closer, error)
	rename  func(from, to string) error
	fold    func(name string) string // how names are kept
	syncDir error
	remove  error
	stale   bool
	alias   bool
	file    faults
	gone    []durable.Entry
}

type faults struct {
	read  func(name string, b []byte)
	zero  bool
	holes bool
	still bool
	short bool
}

func (f *faultyFS) Create(name string) (durable.File, error) {
	if f.create != nil {
		if err := f.create(name); err != nil {
			return nil, err
		}
	}
	return f.wrap(f.FS.Create(f.folded(name)))
}

func (f *faultyFS) Open(name string) (durable.File, error)   { return f.wrap(f.FS.Open(name)) }
func (f *faultyFS) OpenRW(name string) (durable.File, error) { return f.wrap(f.FS.OpenRW(name)) }

func (f *faultyFS) wrap(h durable.File, err error) (durable.File, error) {
	if err != nil {
		return nil, err
	}
	return &faultyFile{h, f.file}, nil
}

func (f *faultyFS) Lock(name string) (io.Closer, error) {
	if f.lock != nil {
		return f.lock(name)
	}
	return f.FS.Lock(name)
}

func (f *faultyFS) Rename(from, to string) error {
	if f.rename != nil {
		return f.rename(from, to)
	}
	return f.FS.Rename(from, to)
}

func (f *faultyFS) Clone(from, to string) error {
	if f.alias {
		return f.FS.Link(from, to)
	}
	return f.FS.Clone(from, to)
}

func (f *faultyFS) SyncDir(name string) error { return errors.Join(f.syncDir, f.FS.SyncDir(name)) }

func (f *faultyFS) Remove(name string) error {
	if f.remove != nil {
		return f.remove
	}
	if f.stale && strings.HasSuffix(name, pagesSuffix) {
		f.gone = append(f.gone, durable.Entry{Name: filepath.Base(name)})
	}
	return f.FS.Remove(f.folded(name))
}

func (f *faultyFS) folded(name string) string {
	if f.fold != nil {
		return f.fold(name)
	}
	return name
}

func (f *faultyFS) ReadDir(name string) ([]durable.Entry, error) {
	list, err := f.FS.ReadDir(name)
	if strings.Contains(name, probePrefix) {
		list = append(list, f.gone...)
	}
	return list, err
}

type faultyFile struct {
	durable.File
	faults
}

func (f *faultyFile) ReadAt(b []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(b, off)
	if f.read != nil {
		f.read(f.Name(), b[:n])
	}
	return n, err
}

func (f *faultyFile) WriteAt(b []byte, off int64) (int, error) {
	if f.short && len(b) > probeMove*4 {
		half := bytes.Clone(b)
		clear(half[len(half)/2:])
		return f.File.WriteAt(half, off)
	}
	return f.File.WriteAt(b, off)
}

func (f *faultyFile) ZeroAt(off, n int64) error {
	if f.zero {
		return nil
	}
	return f.File.ZeroAt(off, n)
}

func (f *faultyFile) Extent(off, n int64) (block.Extent, error) {
	if f.holes {
		return block.Extent{Range: block.Range{Off: off, Len: n}, Kind: block.Zero}, nil
	}
	return f.File.Extent(off, n)
}

func (f *faultyFile) Stamp() (durable.Stamp, error) {
	s, err := f.File.Stamp()
	if f.still {
		s.ModTime = 1
	}
	return s, err
}
