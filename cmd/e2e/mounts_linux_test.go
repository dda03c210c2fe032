package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mount mounts a filesystem on a new folder until the end of the test.
func mount(t *testing.T, source, folder, kind string, flags uintptr, options string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting a filesystem needs root")
	}
	check(t, os.MkdirAll(folder, 0o755))
	err := unix.Mount(source, folder, kind, flags, options)
	if errors.Is(err, unix.EPERM) {
		t.Skipf("mounting a filesystem is not allowed here: %v", err)
	}
	check(t, err)
	t.Cleanup(func() {
		if err := unix.Unmount(folder, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// small mounts a volume of so many MiB.
func small(t *testing.T, folder string, size int) {
	t.Helper()
	mount(t, "tmpfs", folder, "tmpfs", 0, fmt.Sprintf("size=%dm", size))
}

// resize gives such a volume another size.
func resize(t *testing.T, folder string, size int) {
	t.Helper()
	check(t, unix.Mount("tmpfs", folder, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%dm", size)))
}

// full makes a site whose VM has a raw disk of 40 MiB without a hole.
func full(t *testing.T, r *rig) *machine {
	t.Helper()
	g := newQEMU(t, r.path("web01", "os.raw"), "raw", 40*mib)
	fillRaw(t, g.path, random(t), 0, 40*mib)
	return r.add("web01", map[string]guest{"os": g})
}

// rewrite changes 30 MiB of it.
func rewrite(t *testing.T, m *machine) {
	t.Helper()
	rnd := random(t)
	for i := range int64(30) {
		m.disks["os"].put(t, []change{{off: i * mib, n: mib, data: noise(rnd, mib)}})
	}
}

func TestStoreFullAtSeed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	small(t, r.path("store"), 24)
	m := full(t, r)
	o := r.refused(1, "no-space", []string{"web01", r.path("store")}, "protect", "web01")
	r.refused(1, "no-space", []string{"web01", r.path("store")}, "protect", "web01")
	resize(t, r.path("store"), 100)
	r.ok(r.advised(o)...)
	r.same(m)
	m.remember(t)
	r.pointsAre(m)
	r.proven(m)
}

func TestStoreFullAtDelta(t *testing.T) {
	t.Parallel()
	for name, size := range map[string]int{"log": 60, "undo": 85} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			small(t, r.path("store"), size)
			m := full(t, r)
			r.protect(m)
			rewrite(t, m)
			var o outcome
			for range 2 {
				r.untouched(m, func() {
					o = r.refused(1, "no-space", []string{"web01", r.path("store")}, "delta", "web01", "--now")
				})
				r.ok("verify", "web01")
			}
			resize(t, r.path("store"), 200)
			r.mended(m, o)
		})
	}
}

// TestFullBesideDisk has no room for the change log. The guest gets the room back that was taken from it.
func TestFullBesideDisk(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.policy = ", source_reserve: off"
	small(t, r.path("web01"), 60)
	m := full(t, r)
	r.protect(m)
	rewrite(t, m)
	var o outcome
	r.untouched(m, func() {
		o = r.refused(1, "no-space", []string{"web01", "os", r.path("web01")}, "delta", "web01")
	})
	r.clean(m)
	rewrite(t, m)
	resize(t, r.path("web01"), 100)
	r.mended(m, o)
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	rnd := random(t)
	r, m := rich(t, rnd)
	for _, folder := range []string{r.path("store"), r.path("web01")} {
		r.scribble(m, rnd)
		mount(t, folder, folder, "", unix.MS_BIND, "")
		check(t, unix.Mount("", folder, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
		var o outcome
		r.untouched(m, func() {
			o = r.refused(4, "permission", []string{"web01", folder}, "delta", "web01")
			r.ok("points", "web01")
			r.ok("status", "web01")
		})
		check(t, unix.Mount("", folder, "", unix.MS_REMOUNT|unix.MS_BIND, ""))
		r.mended(m, o)
	}
}

// TestSecondRun starts a run while another one, which is held still, works on the VM.
func TestSecondRun(t *testing.T) {
	t.Parallel()
	rnd := random(t)
	r, m, g := one(t, 64*mib)
	fillRaw(t, g.path, rnd, 0, 64*mib)
	r.protect(m)
	fillRaw(t, g.path, rnd, 0, 50*mib) // not nearly all of it: another disk would look so
	before := len(r.records())
	var out, errs bytes.Buffer
	c := r.command("delta", "web01")
	c.Stdout, c.Stderr = &out, &errs
	check(t, c.Start())
	t.Cleanup(func() { c.Process.Kill() }) // however this ends
	for len(r.records()) == before {
		time.Sleep(time.Millisecond)
	}
	check(t, c.Process.Signal(unix.SIGSTOP))
	for range 2 {
		r.refused(11, "locked", []string{"web01", "delta"}, "delta", "web01")
	}
	check(t, c.Process.Signal(unix.SIGCONT))
	if o := r.wait(c, &out, &errs); o.code != 0 {
		t.Fatal(o)
	}
	m.past = append(m.past, m.now(t))
	r.same(m)
	r.pointsAre(m)
	r.proven(m)
}

// records lists the records of jobs.
func (r *rig) records() []string {
	r.Helper()
	list, err := filepath.Glob(r.path(".sitrep", "jobs", "*.json"))
	check(r.T, err)
	return list
}

// newRigXFS makes a site on a filesystem with reflinks.
func newRigXFS(t *testing.T) *rig {
	t.Helper()
	needQEMU(t)
	need(t, "mkfs.xfs", "xfsprogs")
	if os.Getuid() != 0 {
		t.Skip("mounting a filesystem needs root")
	}
	dir := t.TempDir()
	volume, folder := filepath.Join(dir, "volume"), filepath.Join(dir, "site")
	check(t, os.WriteFile(volume, nil, 0o600))
	check(t, os.Truncate(volume, 2<<30))
	tool(t, "mkfs.xfs", "-q", "-m", "reflink=1", volume)
	check(t, os.Mkdir(folder, 0o755))
	if out, err := exec.Command("mount", "-o", "loop", volume, folder).CombinedOutput(); err != nil {
		t.Skipf("no loop mount here: %v\n%s", err, out)
	}
	t.Cleanup(func() { tool(t, "umount", folder) })
	return &rig{T: t, dir: folder, keep: 24}
}

// TestReflinks is the life of a VM, killed too, where disks and pages can be cloned.
func TestReflinks(t *testing.T) {
	t.Parallel()
	k := newKiller(newRigXFS(t), 64*mib)
	k.live(times(7, 52, 2))
	var clones int
	check(t, filepath.WalkDir(k.path("store", "web01", "points"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".vhd" {
			clones++
		}
		return err
	}))
	if clones == 0 {
		t.Error("no recovery point is a clone: the test has tested nothing new")
	}
}
