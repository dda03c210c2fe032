package home_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sitrep/failover/home"
	"sitrep/internal/disk"
	"sitrep/internal/disk/vhdx"
	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
)

// sourceOf lays a content down as a raw recovered disk.
func sourceOf(t testing.TB, fs durable.FS, path string, guest []byte) source {
	t.Helper()
	_ = fs.Remove(path)
	create(t, fs, path, shape{disk.Raw, disk.Fixed, "raw"}, guest)
	return open(t, fs, path, disk.Raw)
}

// TestModel brings random disks of every format home, in passes, and compares; prices are exact.
func TestModel(t *testing.T) {
	r := seeded(t)
	for name, s := range shapes() {
		t.Run(name, func(t *testing.T) {
			for range 4 {
				model(t, r, s)
			}
		})
	}
}

func model(t *testing.T, r *rand.Rand, s shape) {
	fs := crashfs.New()
	guest := make([]byte, 512*(1+r.IntN(6<<11)))
	scribble(r, guest, 20)
	target := "/vms/web/os.disk"
	create(t, fs, target, s, guest)
	was := guest
	guest = bytes.Clone(guest)
	for pass := range 4 {
		scribble(r, guest, r.IntN(15))
		if s.grows() && r.IntN(3) == 0 {
			guest = append(guest, make([]byte, 512*(1+r.IntN(3000)))...)
			scribble(r, guest, 5)
		}
		src := sourceOf(t, fs, "/recovered", guest)
		j := job(fs, "/state", home.Disk{Name: "os", Source: src, Target: target, Format: s.format})
		j.Again = r.IntN(3) > 0
		differs, data := differing(guest, was)
		ops := fs.Ops()
		price := must(j.Price(t.Context()))(t)[0]
		if price.Differs != differs || price.Data != data || price.Size != int64(len(guest)) || price.SizeBefore != int64(len(was)) {
			t.Fatalf("pass %d: %+v, want %d and %d of data", pass, price, differs, data)
		}
		if fs.Ops() != ops {
			t.Fatalf("a price wrote something: %v", fs.Log()[ops:])
		}
		res := must(j.Bring(t.Context()))(t)[0]
		if res.Differs != differs || res.Data != data {
			t.Fatalf("pass %d: %+v, want %d", pass, res, differs)
		}
		if !bytes.Equal(content(t, fs, target, s.format), guest) {
			t.Fatalf("pass %d: content differs", pass)
		}
		if again := must(j.Price(t.Context()))(t)[0]; again.Differs != 0 {
			t.Fatalf("pass %d: %+v still differ", pass, again)
		}
		src.Close()
		was = bytes.Clone(guest)
	}
	j := job(fs, "/state", home.Disk{Name: "os", Target: target, Format: s.format})
	ok(t, j.Forget(t.Context()))
	leftOnly(t, fs, "/vms/web", "os.disk")
	leftOnly(t, fs, "/state")
}

func leftOnly(t *testing.T, fs durable.FS, dir string, names ...string) {
	t.Helper()
	var got []string
	for _, e := range must(fs.ReadDir(dir))(t) {
		got = append(got, e.Name)
	}
	if fmt.Sprint(got) != fmt.Sprint(names) {
		t.Errorf("in %s: %v, want %v", dir, got, names)
	}
}

// TestJudgedByQEMU: a recovered qcow2 that QEMU wrote to comes home into every format, and qemu-img finds no difference.
func TestJudgedByQEMU(t *testing.T) {
	r := seeded(t)
	for name, s := range shapes() {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			qcow, target := filepath.Join(dir, "r.qcow2"), filepath.Join(dir, "os."+string(s.format))
			qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", qcow, "24M")
			guest := make([]byte, 24<<20)
			scribble(r, guest, 20)
			create(t, durable.OS(), target, s, guest)
			for pass, write := range []string{"write -P 7 3000320 3M", "write -z 4M 1M", "write -P 9 20M 4M"} {
				qemu(t, "qemu-io", "-f", "qcow2", "-c", write, qcow)
				src := open(t, durable.OS(), qcow, disk.QCOW2)
				j := job(durable.OS(), filepath.Join(dir, "state"), home.Disk{Name: "os", Source: src, Target: target, Format: s.format})
				j.Again, j.Pause = true, nil
				res := must(j.Bring(t.Context()))(t)[0]
				src.Close()
				if pass > 0 && (!res.BySums || res.ReadTarget > res.Differs+1<<20) {
					t.Errorf("pass %d read the original: %+v", pass, res)
				}
				qemu(t, "qemu-img", "compare", "-f", "qcow2", "-F", s.qemu, qcow, target)
				if s.format == disk.VHDX {
					qemu(t, "qemu-img", "check", "-f", "vhdx", target)
				}
			}
		})
	}
}

// TestSumsAreAHint: whatever happens to the original or to the sums between two passes, the second one is right.
func TestSumsAreAHint(t *testing.T) {
	for name, happen := range map[string]func(t *testing.T, dir string){
		"nothing":  func(*testing.T, string) {},
		"original": func(t *testing.T, dir string) { overwrite(t, filepath.Join(dir, "os.vhd"), 70_000) },
		"sums":     func(t *testing.T, dir string) { overwrite(t, only(t, filepath.Join(dir, "state", "*.sums")), 33) },
		"no sums":  func(t *testing.T, dir string) { ok(t, os.Remove(only(t, filepath.Join(dir, "state", "*.sums")))) },
		"no state": func(t *testing.T, dir string) { ok(t, os.RemoveAll(filepath.Join(dir, "state"))) },
		"both at once": func(t *testing.T, dir string) {
			overwrite(t, filepath.Join(dir, "os.vhd"), 5)
			overwrite(t, only(t, filepath.Join(dir, "state", "*.sums")), 3)
		},
		"sums cut":       func(t *testing.T, dir string) { ok(t, os.Truncate(only(t, filepath.Join(dir, "state", "*.sums")), 16)) },
		"record removed": func(t *testing.T, dir string) { ok(t, os.Remove(only(t, filepath.Join(dir, "*.json")))) },
	} {
		t.Run(name, func(t *testing.T) {
			dir, fs := t.TempDir(), durable.OS()
			target := filepath.Join(dir, "os.vhd")
			guest := make([]byte, 4<<20)
			r := rand.New(rand.NewPCG(1, 2))
			scribble(r, guest, 30)
			guest[5], guest[70_000] = 1, 1
			create(t, fs, target, shapes()["vhd"], make([]byte, len(guest)))
			for pass := range 2 {
				src := sourceOf(t, fs, filepath.Join(dir, "recovered"), guest)
				j := job(fs, filepath.Join(dir, "state"), home.Disk{Name: "os", Source: src, Target: target})
				j.Again, j.Pause = true, nil
				res := must(j.Bring(t.Context()))(t)[0]
				src.Close()
				if want := name == "nothing"; pass == 1 && res.BySums != want {
					t.Errorf("by sums: %v", res.BySums)
				}
				if !bytes.Equal(content(t, fs, target, disk.VHD), guest) {
					t.Fatalf("pass %d: content differs", pass)
				}
				if pass == 0 {
					happen(t, dir)
					scribble(r, guest, 3)
				}
			}
		})
	}
}

func only(t *testing.T, pattern string) string {
	t.Helper()
	names := must(filepath.Glob(pattern))(t)
	if len(names) != 1 {
		t.Fatalf("%s: %v", pattern, names)
	}
	return names[0]
}

// overwrite flips a byte of a file.
func overwrite(t *testing.T, path string, at int64) {
	t.Helper()
	f := must(os.OpenFile(path, os.O_RDWR, 0))(t)
	b := make([]byte, 1)
	must(f.ReadAt(b, at))(t)
	b[0] ^= 0x55
	must(f.WriteAt(b, at))(t)
	ok(t, f.Close())
}

// TestDifferencing: only the top layer is written to.
func TestDifferencing(t *testing.T) {
	fs := crashfs.New()
	r := rand.New(rand.NewPCG(4, 4))
	guest := make([]byte, 6<<20)
	scribble(r, guest, 30)
	create(t, fs, "/v/base.vhdx", shapes()["vhdx"], guest)
	parent := must(vhdx.Open(must(fs.Open("/v/base.vhdx"))(t), vhdx.Options{}))(t)
	w := must(vhdx.Create(must(fs.Create("/v/top.avhdx"))(t), vhdx.Spec{Kind: vhdx.Differencing, Parent: parent, RelativePath: `.\base.vhdx`}))(t)
	ok(t, w.Close())
	before := must(durable.ReadFile(fs, "/v/base.vhdx", 1<<30))(t)
	scribble(r, guest, 10)
	src := sourceOf(t, fs, "/recovered", guest)
	must(job(fs, "/state", home.Disk{Name: "os", Source: src, Target: "/v/top.avhdx"}).Bring(t.Context()))(t)
	if !bytes.Equal(content(t, fs, "/v/top.avhdx", disk.VHDX), guest) {
		t.Error("content differs")
	}
	if !bytes.Equal(before, must(durable.ReadFile(fs, "/v/base.vhdx", 1<<30))(t)) {
		t.Error("the parent was written to")
	}
}

// TestRefused: what cannot be brought home is refused before anything is written.
func TestRefused(t *testing.T) {
	guest := make([]byte, 1<<20)
	scribble(rand.New(rand.NewPCG(4, 5)), guest, 30)
	for name, c := range map[string]struct {
		shape  string
		size   int
		code   fault.Code
		say    string
		before func(fs *crashfs.FS)
	}{
		"smaller":            {shape: "raw", size: 1<<20 - 512, code: fault.DiskShrunk},
		"larger fixed vhdx":  {shape: "fixed-vhdx", size: 1<<20 + 4096, code: fault.DiskUnsupported, say: "1048576"},
		"larger dynamic vhd": {shape: "dynamic-vhd", size: 1<<20 + 4096, code: fault.DiskUnsupported},
		"full": {shape: "vhdx", size: 1 << 20, code: fault.NoSpace, say: "the volume has", before: func(fs *crashfs.FS) {
			fs.SetCapacity(fs.Allocated() + 64<<10)
		}},
		"no room in the original": {shape: "raw", size: 1 << 20, code: fault.NoSpace, say: "have to be free", before: func(fs *crashfs.FS) {
			fs.SetCapacity(fs.Allocated() + 2<<20)
		}},
		"another failback": {shape: "raw", size: 1 << 20, code: fault.LogForeign, before: func(fs *crashfs.FS) {
			err := durable.WriteFile(fs, fmt.Sprintf("/v/web.home-%s.json", hrl.ID{9}), []byte(`{"phase":"sealed"}`))
			if err != nil {
				panic(err)
			}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			fs := crashfs.New()
			create(t, fs, "/v/os", shapes()[c.shape], make([]byte, 1<<20))
			src := sourceOf(t, fs, "/recovered", append(bytes.Clone(guest), make([]byte, 8192)...)[:c.size])
			before := must(durable.ReadFile(fs, "/v/os", 1<<30))(t)
			if c.before != nil {
				c.before(fs)
			}
			j := job(fs, "/state", home.Disk{Name: "os", Source: src, Target: "/v/os", Format: shapes()[c.shape].format})
			_, err := j.Bring(t.Context())
			if e := fault.Find(err); e == nil || e.Code != c.code || e.VM != "web" || e.Path == "" || !strings.Contains(e.Error(), c.say) {
				t.Errorf("error %v, want %s", err, c.code)
			}
			if !bytes.Equal(before, must(durable.ReadFile(fs, "/v/os", 1<<30))(t)) {
				t.Error("the original was written to")
			}
			for _, e := range must(fs.ReadDir("/v"))(t) {
				if strings.HasSuffix(e.Name, ".hrl") {
					t.Errorf("left behind: %s", e.Name)
				}
			}
		})
	}
}

// stopAt runs a Bring that is cut off when the phase of its record becomes the given one.
func stopAt(t *testing.T, fs *crashfs.FS, j *home.Job, phase string) {
	t.Helper()
	ops := 0
	for k := 1; ; k++ {
		copy := fs.AfterCrash(crashfs.KeepAll, 0)
		copy.CutAfter(k)
		on := *j
		on.FS = copy
		if _, err := on.Bring(t.Context()); err == nil {
			t.Fatalf("never %s", phase)
		}
		left := copy.AfterCrash(crashfs.KeepAll, 0)
		data, err := durable.ReadFile(left, fmt.Sprintf("/v/web.home-%s.json", j.ID), 1<<20)
		if err == nil && bytes.Contains(data, []byte(`"phase": "`+phase+`"`)) {
			ops++
		}
		if ops == 3 { // a little further than the record
			j.FS = left
			return
		}
	}
}

// TestLogsAreProved: a log that is damaged, missing or another's is found before a byte is written; Bring makes a new one.
func TestLogsAreProved(t *testing.T) {
	for name, c := range map[string]struct {
		hurt  func(t *testing.T, fs durable.FS, log string)
		phase string
		code  fault.Code
	}{
		"flipped":             {flip, "sealed", fault.LogCorrupt},
		"flipped, half way":   {flip, "applying", fault.LogCorrupt},
		"missing":             {func(t *testing.T, fs durable.FS, log string) { ok(t, fs.Remove(log)) }, "sealed", fault.LogGap},
		"missing, half way":   {func(t *testing.T, fs durable.FS, log string) { ok(t, fs.Remove(log)) }, "applying", fault.LogGap},
		"another disk's":      {foreign(func(id *hrl.Identity) { id.Disk = "data" }), "sealed", fault.LogForeign},
		"another failback's":  {foreign(func(id *hrl.Identity) { id.Replica[3]++ }), "applying", fault.LogForeign},
		"of another position": {foreign(func(id *hrl.Identity) { id.To.ID[0]++ }), "sealed", fault.LogForeign},
		"original changed": {func(t *testing.T, fs durable.FS, _ string) {
			f := must(fs.OpenRW("/v/os"))(t)
			must(f.WriteAt([]byte("booted"), 4096))(t)
			ok(t, f.Close())
		}, "sealed", fault.DiskModified},
	} {
		t.Run(name, func(t *testing.T) {
			fs := crashfs.New()
			guest := make([]byte, 1<<20)
			create(t, fs, "/v/os", shapes()["raw"], guest)
			scribble(rand.New(rand.NewPCG(4, 6)), guest, 30)
			create(t, fs, "/recovered", shapes()["raw"], guest)
			src := open(t, fs, "/recovered", disk.Raw)
			j := job(fs, "/state", home.Disk{Name: "os", Source: src, Target: "/v/os", Format: disk.Raw})
			stopAt(t, fs, j, c.phase)
			var log string
			for _, e := range must(j.FS.ReadDir("/v"))(t) {
				if strings.HasSuffix(e.Name, ".hrl") {
					log = "/v/" + e.Name
				}
			}
			c.hurt(t, j.FS, log)
			before := must(durable.ReadFile(j.FS, "/v/os", 1<<30))(t)
			if _, err := j.Resume(t.Context()); !fault.Is(err, c.code) {
				t.Fatalf("error %v, want %s", err, c.code)
			}
			if !bytes.Equal(before, must(durable.ReadFile(j.FS, "/v/os", 1<<30))(t)) {
				t.Fatal("the original was written to")
			}
			if c.phase == "applying" {
				if err := j.Forget(t.Context()); !fault.Is(err, fault.WrongState) {
					t.Fatalf("forget: %v", err)
				}
			}
			_, err := j.Bring(t.Context())
			if c.code == fault.LogForeign {
				if !fault.Is(err, fault.LogForeign) {
					t.Fatal(err)
				}
				return
			}
			ok(t, err)
			if !bytes.Equal(content(t, j.FS, "/v/os", disk.Raw), guest) {
				t.Error("content differs")
			}
		})
	}
}

func flip(t *testing.T, fs durable.FS, log string) {
	t.Helper()
	f := must(fs.OpenRW(log))(t)
	p := make([]byte, 1)
	at := must(f.Size())(t) / 2
	must(f.ReadAt(p, at))(t)
	p[0] ^= 1
	must(f.WriteAt(p, at))(t)
	ok(t, f.Close())
}

// foreign puts a good log of something else in the place of the log.
func foreign(change func(*hrl.Identity)) func(*testing.T, durable.FS, string) {
	return func(t *testing.T, fs durable.FS, log string) {
		t.Helper()
		f := must(fs.Open(log))(t)
		id := *must(hrl.Open(f))(t).Info().Identity
		ok(t, f.Close())
		change(&id)
		ok(t, fs.Remove(log))
		w := must(hrl.Create(fs, log, id))(t)
		ok(t, w.Append(0, bytes.Repeat([]byte("evil"), 1024), nil))
		must(w.Seal())(t)
	}
}

// TestForget gives up a failback whose logs are sealed: the original stays what it was.
func TestForget(t *testing.T) {
	fs := crashfs.New()
	guest := make([]byte, 1<<20)
	create(t, fs, "/v/os", shapes()["raw"], guest)
	scribble(rand.New(rand.NewPCG(4, 6)), guest, 30)
	create(t, fs, "/recovered", shapes()["raw"], guest)
	j := job(fs, "/state", home.Disk{Name: "os", Source: open(t, fs, "/recovered", disk.Raw), Target: "/v/os", Format: disk.Raw})
	stopAt(t, fs, j, "sealed")
	ok(t, j.Forget(t.Context()))
	leftOnly(t, j.FS, "/v", "os")
	leftOnly(t, j.FS, "/state")
	if done, err := j.Resume(t.Context()); done || err != nil || !bytes.Equal(content(t, j.FS, "/v/os", disk.Raw), make([]byte, 1<<20)) {
		t.Error(done, err)
	}
}

// TestInterrupted: a cancelled run writes nothing and leaves nothing but what the next one uses.
func TestInterrupted(t *testing.T) {
	fs := crashfs.New()
	guest := make([]byte, 4<<20)
	create(t, fs, "/v/os", shapes()["vhdx"], guest)
	scribble(rand.New(rand.NewPCG(4, 6)), guest, 30)
	src := sourceOf(t, fs, "/recovered", guest)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := job(fs, "/state", home.Disk{Name: "os", Source: src, Target: "/v/os", Format: disk.VHDX}).Bring(ctx); !fault.Cancelled(err) {
		t.Error(err)
	}
	leftOnly(t, fs, "/v", "os")
}

// TestCreateTargets makes the originals at another place, and brings what has changed since.
func TestCreateTargets(t *testing.T) {
	for name, s := range shapes() {
		t.Run(name, func(t *testing.T) {
			fs := crashfs.New()
			r := rand.New(rand.NewPCG(6, 6))
			guest := make([]byte, 3<<20)
			for pass := range 2 {
				scribble(r, guest, 30)
				src := sourceOf(t, fs, "/recovered", guest)
				j := job(fs, "/state", home.Disk{Name: "os", Source: src, Target: "/new/web/os", Format: s.format, Kind: s.kind})
				made := must(j.CreateTargets(t.Context()))(t)
				if again := must(j.CreateTargets(t.Context()))(t); made == 0 || again != made {
					t.Errorf("%d bytes were made, and said again it is %d", made, again)
				}
				if pass == 1 {
					must(j.Bring(t.Context()))(t)
				}
				if !bytes.Equal(content(t, fs, "/new/web/os", s.format), guest) {
					t.Fatal("content differs")
				}
				src.Close()
			}
			ok(t, job(fs, "/state", home.Disk{Name: "os", Target: "/new/web/os"}).Forget(t.Context()))
			leftOnly(t, fs, "/new/web", "os")
		})
	}
}

// TestWholeVM: when the second disk fails, the first one is not written to.
func TestWholeVM(t *testing.T) {
	fs := crashfs.New()
	guest := make([]byte, 1<<20)
	create(t, fs, "/v/os", shapes()["raw"], guest)
	create(t, fs, "/v/data", shapes()["raw"], guest)
	scribble(rand.New(rand.NewPCG(4, 6)), guest, 30)
	a, b := sourceOf(t, fs, "/ra", guest), sourceOf(t, fs, "/rb", guest)
	j := job(fs, "/state", home.Disk{Name: "os", Source: a, Target: "/v/os"}, home.Disk{Name: "data", Source: b, Target: "/v/data"})
	broken := errors.New("broken")
	fs.FailOn(func(op crashfs.Op) error {
		if op.Kind == crashfs.Read && op.Name == "/rb" {
			return broken
		}
		return nil
	})
	if _, err := j.Bring(t.Context()); !errors.Is(err, broken) || fault.Find(err).Disk != "data" {
		t.Error(err)
	}
	fs.FailOn(nil)
	if !bytes.Equal(content(t, fs, "/v/os", disk.Raw), make([]byte, 1<<20)) {
		t.Error("the first disk was written to")
	}
	must(j.Bring(t.Context()))(t)
	if !bytes.Equal(content(t, fs, "/v/os", disk.Raw), guest) || !bytes.Equal(content(t, fs, "/v/data", disk.Raw), guest) {
		t.Error("content differs")
	}
}
