package dir_test

import (
	"bytes"
	"encoding/json"
	"errors"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/replica/dir"
	"sitrep/internal/replica/replicatest"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// write replaces a file behind the store's back.
func write(t *testing.T, fs durable.FS, path string, data []byte) {
	t.Helper()
	check(t, fs.MkdirAll(filepath.Dir(path)))
	check(t, durable.WriteFile(fs, path, data))
}

func read(t *testing.T, fs durable.FS, path string) []byte {
	t.Helper()
	data, err := durable.ReadFile(fs, path, 64<<20)
	check(t, err)
	return data
}

func names(t *testing.T, fs durable.FS, folder string) []string {
	t.Helper()
	list, err := fs.ReadDir(folder)
	check(t, err)
	var out []string
	for _, e := range list {
		out = append(out, e.Name)
	}
	return out
}

// grown returns a store with one replica that has gone through some steps and is closed.
func grown(t *testing.T, clone bool) (*crashfs.FS, *replicatest.History) {
	t.Helper()
	fs := crashfs.New()
	fs.SetClone(clone)
	h := replicatest.NewHistory("vm", 3, logsOn(fs))
	check(t, errors.Join(story(t.Context(), h, dir.New(fs, root)), h.Close()))
	return fs, h
}

func TestLayout(t *testing.T) {
	fs, _ := grown(t, false)
	if got, want := names(t, fs, root), []string{"sitrep-store.json", "vm"}; !slices.Equal(got, want) {
		t.Errorf("the store holds %q instead of %q", got, want)
	}
	want := []string{"data.1.sums", "data.1.vhd", "ledger.json", "ledger.lock", "lock", "os.sums", "os.vhd", "points", "shelf"}
	if got := names(t, fs, root+"/vm"); !slices.Equal(got, want) {
		t.Errorf("the replica holds %q instead of %q", got, want)
	}
	steps := names(t, fs, root+"/vm/points")
	if len(steps) != 1 { // two points: that of today needs none
		t.Fatalf("the steps are %q", steps)
	}
	if got, want := names(t, fs, root+"/vm/points/"+steps[0]), []string{"data.1.undo.hrl", "os.undo.hrl"}; !slices.Equal(got, want) {
		t.Errorf("the step holds %q instead of %q", got, want)
	}
	fs, _ = grown(t, true)
	steps = names(t, fs, root+"/vm/points")
	if got, want := names(t, fs, root+"/vm/points/"+steps[0]), []string{"data.1.sums", "data.1.vhd", "os.sums", "os.vhd"}; !slices.Equal(got, want) {
		t.Errorf("the step holds %q instead of %q", got, want)
	}
}

// TestRetention keeps fewer and fewer points: only the steps that they need stay.
func TestRetention(t *testing.T) {
	for _, clone := range []bool{false, true} {
		fs, h := grown(t, clone)
		check(t, h.Attach(t.Context(), dir.New(fs, root)))
		h.Keep = 6
		for range 6 {
			check(t, h.Step(t.Context(), false))
		}
		for keep := 6; keep > 0; keep-- {
			h.Keep = keep
			check(t, errors.Join(h.Step(t.Context(), false), h.Check(t.Context())))
			if steps := names(t, fs, root+"/vm/points"); len(steps) != keep-1 {
				t.Errorf("%d points have the steps %q", keep, steps)
			}
		}
		check(t, h.Close())
	}
}

// TestLeftovers puts half-made things everywhere; the next run clears them away and touches nothing else.
func TestLeftovers(t *testing.T) {
	fs, h := grown(t, false)
	vm := root + "/vm"
	for _, path := range []string{vm + "/os.vhd", vm + "/ledger.json", vm + "/shelf/a.hrl", vm + "/points/1-x/data.1.undo.hrl"} {
		write(t, fs, durable.TempName(path), []byte("half"))
	}
	write(t, fs, filepath.Join(durable.TempName(vm+"/points/7-x"), "os.undo.hrl"), []byte("half"))
	write(t, fs, vm+"/points/notes/readme.txt", []byte("ours"))
	write(t, fs, vm+"/readme.txt", []byte("ours"))
	before := len(names(t, fs, vm+"/points")) + len(names(t, fs, vm)) + len(names(t, fs, vm+"/shelf"))
	check(t, h.Attach(t.Context(), dir.New(fs, root)))
	check(t, h.Step(t.Context(), false))
	check(t, h.Check(t.Context()))
	check(t, h.Close())
	after := len(names(t, fs, vm+"/points")) + len(names(t, fs, vm)) + len(names(t, fs, vm+"/shelf"))
	if after != before-4 {
		t.Errorf("%d of the 4 leftovers are gone", before-after)
	}
	read(t, fs, vm+"/points/notes/readme.txt")
	check(t, dir.New(fs, root).Remove(t.Context(), "vm"))
	if got := names(t, fs, vm); !slices.Equal(got, []string{"readme.txt"}) {
		t.Errorf("of the removed replica is left %q", got)
	}
}

func TestIdentityFile(t *testing.T) {
	id := hrl.NewID().String()
	for name, c := range map[string]struct {
		data string
		want fault.Code
	}{
		"empty":     {"", fault.StoreUnnamed},
		"truncated": {`{"format": 1, "id": "` + id, fault.StoreUnnamed},
		"no id":     {`{"format": 1}`, fault.StoreUnnamed},
		"bad id":    {`{"format": 1, "id": "xyz"}`, fault.StoreUnnamed},
		"newer":     {`{"format": 2, "id": "` + id + `"}`, fault.LedgerVersion},
		"good":      {`{"format": 1, "id": "` + id + `"}`, ""},
	} {
		fs, h := grown(t, false)
		write(t, fs, root+"/sitrep-store.json", []byte(c.data))
		store := dir.New(fs, root)
		_, perr := store.Prepare(t.Context(), hrl.ID{})
		r, oerr := store.Open(t.Context(), h.VM)
		for _, err := range []error{perr, oerr} {
			if e := fault.Find(err); c.want == "" && err != nil || c.want != "" && (e == nil || e.Code != c.want) {
				t.Errorf("%s: the error is %v, want one of code %q", name, err, c.want)
			}
		}
		if r != nil {
			check(t, r.Close())
		}
		if got := string(read(t, fs, root+"/sitrep-store.json")); got != c.data {
			t.Errorf("%s: the identity was changed to %q", name, got)
		}
	}
}

func TestFoldersThatAreNoStoreYet(t *testing.T) {
	fs := crashfs.New()
	write(t, fs, root+"/readme.txt", []byte("a volume of ours"))
	check(t, fs.MkdirAll(root+"/lost+found"))
	_, err := dir.New(fs, root).Prepare(t.Context(), hrl.NewID())
	wantCode(t, err, fault.StoreNotMounted)
	_, err = dir.New(fs, root).Prepare(t.Context(), hrl.ID{})
	check(t, err)
	for name := range dir.New(fs, root).List(t.Context()) {
		t.Errorf("%s is taken for a replica", name)
	}

	fs, h := grown(t, false)
	check(t, fs.Remove(root+"/sitrep-store.json"))
	_, err = dir.New(fs, root).Prepare(t.Context(), hrl.ID{})
	wantCode(t, err, fault.StoreUnnamed)
	_, err = dir.New(fs, root).Prepare(t.Context(), hrl.NewID())
	wantCode(t, err, fault.StoreUnnamed)
	_, err = dir.New(fs, root).Open(t.Context(), h.VM)
	wantCode(t, err, fault.StoreUnnamed)
}

// TestUnmounted takes the store away under a run.
func TestUnmounted(t *testing.T) {
	fs, h := grown(t, false)
	r, err := dir.New(fs, root).Open(t.Context(), h.VM)
	check(t, err)
	s, err := r.Ledger().Load(t.Context())
	check(t, err)
	check(t, fs.Rename(root, "/vol/elsewhere"))
	check(t, fs.MkdirAll(root))
	_, err = r.Ledger().Load(t.Context())
	wantCode(t, err, fault.StoreNotMounted)
	_, err = r.Ledger().Save(t.Context(), s)
	wantCode(t, err, fault.StoreNotMounted)
	_, err = r.Disk(t.Context(), s.Disks[0])
	wantCode(t, err, fault.StoreNotMounted)
	if got := names(t, fs, root); len(got) > 0 {
		t.Errorf("the empty mount point holds %q now", got)
	}
	check(t, r.Close())
}

func TestLedgerDamage(t *testing.T) {
	path := root + "/vm/ledger.json"
	open := func(fs *crashfs.FS) error {
		r, err := dir.New(fs, root).Open(t.Context(), "vm")
		if err == nil {
			err = r.Close()
		}
		_, verr := dir.New(fs, root).View(t.Context(), "vm")
		if a, b := fault.Find(err), fault.Find(verr); (a == nil) != (b == nil) || a != nil && a.Code != b.Code {
			t.Errorf("Open says %v, View says %v", err, verr)
		}
		return err
	}
	fs, _ := grown(t, false)
	good := read(t, fs, path)
	check(t, open(fs))

	write(t, fs, path, good[:len(good)/2])
	err := open(fs)
	wantCode(t, err, fault.LedgerCorrupt)
	if e := fault.Find(err); e.Path != path || !e.HasOff || e.Off == 0 || e.VM != "vm" {
		t.Errorf("the error does not tell the place: %v", err)
	}
	write(t, fs, path, bytes.Replace(good, []byte(`"vm": "vm"`), []byte(`"vm": "web"`), 1))
	wantCode(t, open(fs), fault.ReplicaForeign)
	write(t, fs, path, bytes.Replace(good, []byte(`"format": 1`), []byte(`"format": 2`), 1))
	wantCode(t, open(fs), fault.LedgerVersion)
	write(t, fs, path, make([]byte, replica.MaxLedger+1))
	wantCode(t, open(fs), fault.LedgerCorrupt)

	check(t, fs.Remove(path))
	wantCode(t, open(fs), fault.LedgerCorrupt) // with disks there, it is lost, not absent
	first := replicatest.FirstState("vm")
	_, err = dir.New(fs, root).Create(t.Context(), first)
	wantCode(t, err, fault.LedgerCorrupt)
	wantCode(t, dir.New(fs, root).Remove(t.Context(), "vm"), fault.LedgerCorrupt)
	write(t, fs, path, good)
	check(t, open(fs))
}

// TestPagesChanged has something else change the files of a disk.
func TestPagesChanged(t *testing.T) {
	vhd, sums := root+"/vm/os.vhd", root+"/vm/os.sums"
	for name, c := range map[string]struct {
		change func(t *testing.T, fs *crashfs.FS)
		want   fault.Code
	}{
		"missing":          {func(t *testing.T, fs *crashfs.FS) { check(t, fs.Remove(vhd)) }, fault.ReplicaMissing},
		"sums missing":     {func(t *testing.T, fs *crashfs.FS) { check(t, fs.Remove(sums)) }, fault.ReplicaChanged},
		"empty":            {func(t *testing.T, fs *crashfs.FS) { write(t, fs, vhd, nil) }, fault.ReplicaChanged},
		"shorter":          {func(t *testing.T, fs *crashfs.FS) { resize(t, fs, vhd, -512) }, fault.ReplicaChanged},
		"longer":           {func(t *testing.T, fs *crashfs.FS) { resize(t, fs, vhd, 4096) }, fault.ReplicaChanged},
		"footer damaged":   {func(t *testing.T, fs *crashfs.FS) { spoil(t, fs, vhd, -100) }, fault.ReplicaChanged},
		"of another disk":  {func(t *testing.T, fs *crashfs.FS) { otherDisk(t, fs, vhd) }, fault.ReplicaChanged},
		"data is not seen": {func(t *testing.T, fs *crashfs.FS) { spoil(t, fs, vhd, -5000) }, ""},
	} {
		fs, _ := grown(t, false)
		r, err := dir.New(fs, root).Open(t.Context(), "vm")
		check(t, err)
		s, err := r.Ledger().Load(t.Context())
		check(t, err)
		before := stamp(t, r, s.Disks[0])
		c.change(t, fs)
		p, err := r.Disk(t.Context(), s.Disks[0])
		if e := fault.Find(err); c.want == "" && err != nil || c.want != "" && (e == nil || e.Code != c.want || e.Disk != "os" || e.Path == "") {
			t.Errorf("%s: the error is %v, want one of code %q", name, err, c.want)
		}
		if p != nil {
			check(t, p.Close())
			if stamp(t, r, s.Disks[0]) == before {
				t.Errorf("%s: the stamp is the same", name)
			}
		}
		check(t, r.Close())
	}
}

func stamp(t *testing.T, r replica.Replica, d replica.Disk) string {
	t.Helper()
	p, err := r.Disk(t.Context(), d)
	check(t, err)
	s, err := p.Stamp(t.Context())
	check(t, err)
	check(t, p.Close())
	return s
}

func resize(t *testing.T, fs durable.FS, path string, by int64) {
	t.Helper()
	f, err := fs.OpenRW(path)
	check(t, err)
	size, err := f.Size()
	check(t, err)
	check(t, errors.Join(f.Truncate(size+by), f.Close()))
}

// spoil flips a bit of the byte at off, counted from the end when it is negative.
func spoil(t *testing.T, fs durable.FS, path string, off int64) {
	t.Helper()
	f, err := fs.OpenRW(path)
	check(t, err)
	size, err := f.Size()
	check(t, err)
	if off < 0 {
		off += size
	}
	var b [1]byte
	if n, err := f.ReadAt(b[:], off); n != 1 {
		t.Fatal(err)
	}
	b[0] ^= 4
	_, err = f.WriteAt(b[:], off)
	check(t, errors.Join(err, f.Close()))
}

// otherDisk puts a disk of the same size, but of another replica, in the place of path.
func otherDisk(t *testing.T, fs *crashfs.FS, path string) {
	t.Helper()
	other, _ := grown(t, false)
	write(t, fs, path, read(t, other, root+"/vm/os.vhd"))
}

// TestUndoDamage flips bits of undo logs, one after the other: what is read of a recovery point is right, or it is not
// read.
func TestUndoDamage(t *testing.T) {
	fs, h := grown(t, false)
	steps := names(t, fs, root+"/vm/points")
	rng := rand.New(rand.NewPCG(1, 1))
	found := 0
	for _, disk := range []string{"os", "data.1"} {
		path := filepath.Join(root, "vm/points", steps[0], disk+".undo.hrl")
		size := int64(len(read(t, fs, path)))
		for range 150 {
			off := rng.Int64N(size)
			spoil(t, fs, path, off)
			err := h.Fork(1, nil).Attach(t.Context(), dir.New(fs, root))
			if err != nil {
				found++
				if !fault.Is(err, fault.PointMissing) && !fault.Is(err, fault.LogVersion) || !strings.Contains(err.Error(), path) {
					t.Fatalf("offset %d of %s: %v", off, path, err)
				}
			}
			spoil(t, fs, path, off)
			fs = fs.AfterCrash(crashfs.KeepAll, 0) // without locks
		}
	}
	if found < 100 {
		t.Errorf("only %d of 300 damages were found", found)
	}
}

// TestUndoMissing takes away what points need: they say what is missing, which points these are, and what is left is swept.
func TestUndoMissing(t *testing.T) {
	for _, folder := range []bool{false, true} {
		fs, h := grown(t, false)
		steps := names(t, fs, root+"/vm/points")
		path := filepath.Join(root, "vm/points", steps[0], "os.undo.hrl")
		check(t, fs.Remove(path))
		if folder {
			check(t, fs.Remove(filepath.Join(root, "vm/points", steps[0], "data.1.undo.hrl")))
			check(t, fs.Remove(filepath.Join(root, "vm/points", steps[0])))
		}
		stray := filepath.Join(root, "vm/points", hrl.Pos{}.String())
		check(t, fs.MkdirAll(stray))
		r, err := dir.New(fs, root).Open(t.Context(), h.VM)
		check(t, err)
		defer r.Close()
		s, err := r.Ledger().Load(t.Context())
		check(t, err)
		_, err = r.Points().Open(t.Context(), s, s.Points[0].ID)
		wantCode(t, err, fault.PointMissing)
		if e := fault.Find(err); !strings.HasPrefix(e.Path, filepath.Dir(path)) {
			t.Errorf("the error does not name the file: %v", err)
		}
		missing, err := replica.MissingPoints(t.Context(), r, s)
		check(t, err)
		if !slices.Equal(missing, []string{s.Points[0].ID}) {
			t.Errorf("the missing points are %q", missing)
		}
		plainly, err := replica.GlancePoints(t.Context(), r, s)
		check(t, err)
		if !slices.Equal(plainly, missing) {
			t.Errorf("plainly missing are %q", plainly)
		}
		wantCode(t, r.Points().Sweep(t.Context(), s), fault.PointMissing)
		if _, err := fs.Stat(stray); !errors.Is(err, iofs.ErrNotExist) {
			t.Errorf("what no point needs was not swept: %v", err)
		}
		v, err := r.Points().Open(t.Context(), s, s.Points[1].ID)
		check(t, err)
		check(t, v.Close())
	}
}

// TestQEMU reads the replica with another implementation of its format, before and after it has grown.
func TestQEMU(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("qemu-img is missing: apt-get install qemu-utils")
		}
		t.Skip("qemu-img is missing: apt-get install qemu-utils")
	}
	folder := t.TempDir()
	store := dir.New(durable.OS(), filepath.Join(folder, "store"))
	h := replicatest.NewHistory("vm", 9, replicatest.OSLogs(t))
	check(t, h.Begin(t.Context(), store))
	for step := range 3 {
		check(t, h.Step(t.Context(), step == 1))
		v, err := store.View(t.Context(), "vm")
		check(t, err)
		s, err := v.Ledger().Load(t.Context())
		check(t, err)
		for _, d := range s.Disks {
			comparePages(t, v, d, filepath.Join(folder, "raw"))
		}
		check(t, v.Close())
	}
	check(t, h.Close())
}

func comparePages(t *testing.T, v replica.Replica, d replica.Disk, raw string) {
	t.Helper()
	p, err := v.Disk(t.Context(), d)
	check(t, err)
	defer p.Close()
	data := make([]byte, p.Size())
	check(t, p.ReadAt(t.Context(), data, 0))
	check(t, os.WriteFile(raw, data, 0o600))
	out, err := exec.Command("qemu-img", "compare", "-f", "raw", "-F", "vpc", raw, p.Path()).CombinedOutput()
	if err != nil {
		t.Fatalf("disk %s: %v: %s", d.Name, err, out)
	}
	out, err = exec.Command("qemu-img", "info", "-f", "vpc", "--output=json", p.Path()).CombinedOutput()
	check(t, err)
	var info struct {
		Format string `json:"format"`
		Size   int64  `json:"virtual-size"`
	}
	check(t, json.Unmarshal(out, &info))
	if info.Format != "vpc" || info.Size != d.Size {
		t.Errorf("disk %s: qemu-img sees %+v, the ledger says %d bytes", d.Name, info, d.Size)
	}
}
