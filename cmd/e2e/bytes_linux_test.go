package e2e_test

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const blockSize = 64 << 10 // of what tests write

// TestDeltaBytes changes 1 % of the blocks of a full disk, scattered, a part of each: what is written to logs, and what is
// sent, is those blocks and little more.
func TestDeltaBytes(t *testing.T) {
	t.Parallel()
	seeds := random(t)
	for _, size := range []int64{4 << 10, 16 << 10, 64 << 10, mib} {
		seed := seeds.Uint64()
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			t.Parallel()
			deltaBytes(t, rand.New(rand.NewPCG(seed, 0)), size)
		})
	}
}

func deltaBytes(t *testing.T, rnd *rand.Rand, blockSize int64) {
	const size = 100 * mib
	r, m, g := one(t, size)
	r.policy = fmt.Sprintf(", block_size: %dKiB", blockSize>>10)
	r.writeSite()
	fillRaw(t, g.path, rnd, 0, size)
	r.protect(m)
	for _, part := range []int64{512, blockSize} { // what is written of each block
		n := size / blockSize / 100
		var list []change
		for _, b := range rnd.Perm(int(size / blockSize))[:n] {
			at := int64(b)*blockSize + rnd.Int64N((blockSize-part)/512+1)*512
			list = append(list, change{off: at, n: part, data: noise(rnd, part)})
		}
		g.put(t, list)
		changed := n * blockSize

		o := r.vm("delta", "--capture-only", "web01")
		if d := o.Disks[0]; d.Changed != changed || d.Blocks != n || d.Scanned != size {
			t.Errorf("captured %d bytes in %d blocks of %d read, want %d in %d of %d", d.Changed, d.Blocks, d.Scanned, changed, n, size)
		}
		if n := allocated(t, r.path("web01"), ".hrl"); n < changed || n > changed+changed/20 {
			t.Errorf("the log takes %d bytes of the volume, the changed blocks have %d", n, changed)
		}
		before := allocated(t, r.path("store"), "")
		o = r.vm("delta", "web01")
		grown := allocated(t, r.path("store"), "") - before
		if o.Shipped != 1 || o.Applied != 1 {
			t.Errorf("%d cuts shipped, %d applied", o.Shipped, o.Applied)
		}
		if o.Sent < changed || o.Sent > changed+changed/20 {
			t.Errorf("%d bytes sent, the changed blocks have %d", o.Sent, changed)
		}
		if grown > changed+changed/10 { // the undo of the point; pages are overwritten in place
			t.Errorf("the store grew by %d bytes", grown)
		}
		t.Logf("%d blocks: %d bytes changed, %d sent, the store grew by %d", n, changed, o.Sent, grown)
		r.same(m)
		m.remember(t)
		r.pointsAre(m)
	}
	r.proven(m)
}

// TestUntouched brings a VM up to date to which nothing was written: its disks are not read.
func TestUntouched(t *testing.T) {
	t.Parallel()
	rnd := random(t)
	const size = 64 * mib
	r, m, g := one(t, size)
	m.disks["data"] = newQEMU(t, r.path("web01", "data.vhdx"), "vhdx/dynamic", 256*mib)
	r.writeSite()
	fillRaw(t, g.path, rnd, 0, size)
	m.disks["data"].put(t, scattered(rnd, 256*mib, 512))
	r.protect(m)
	time.Sleep(2500 * time.Millisecond) // the longest tick of a filesystem, after which times are believed
	r.vm("delta", "web01")

	began := time.Now()
	read, o := r.reads("delta", "web01", "--json")
	took := time.Since(began)
	vm := o.object(t).VMs[0]
	if !vm.Unchanged || vm.Sent != 0 {
		t.Errorf("unchanged %v, %d bytes sent", vm.Unchanged, vm.Sent)
	}
	for _, d := range vm.Disks {
		if d.Scanned != 0 {
			t.Errorf("disk %s: %d bytes were scanned", d.Name, d.Scanned)
		}
	}
	if read > 4*mib { // headers and tables of the images, the ledger, the program's own files
		t.Errorf("%d bytes were read", read)
	}
	t.Logf("%v, %d bytes read, whatever of", took, read)

	g.put(t, []change{{off: size - 512, n: 512, data: noise(rnd, 512)}})
	if read, _ := r.reads("delta", "web01"); read < size { // the measurement measures
		t.Errorf("%d bytes were read to find a change", read)
	}
	r.same(m)
	m.remember(t)
	r.pointsAre(m)
}

// reads runs the binary, and returns how many bytes it has read, from whatever file.
func (r *rig) reads(args ...string) (n int64, o outcome) {
	r.Helper()
	var out, errs bytes.Buffer
	c := r.command(args...)
	c.Stdout, c.Stderr = &out, &errs
	check(r.T, c.Start())
	// It has ended, but is kept to be looked at.
	for {
		err := unix.Waitid(unix.P_PID, c.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err == nil {
			break
		}
		if err != unix.EINTR {
			r.Fatal(err)
		}
	}
	account, aerr := os.ReadFile(fmt.Sprintf("/proc/%d/io", c.Process.Pid))
	o = r.wait(c, &out, &errs)
	if o.code != 0 {
		r.Fatal(o)
	}
	if aerr != nil {
		r.Skipf("what a process read cannot be found out here: %v", aerr)
	}
	_, rest, _ := strings.Cut(string(account), "rchar: ")
	line, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.ParseInt(line, 10, 64)
	check(r.T, err)
	return n, o
}

// TestHugeDisk protects a disk of 1 TiB that holds little: neither memory nor what is kept depends on the size.
func TestHugeDisk(t *testing.T) {
	t.Parallel()
	rnd := random(t)
	data := int64(64 * mib)
	if long() {
		data = 1024 * mib
	}
	const size = 1 << 40
	r, m, g := one(t, size)
	const pieces = 64
	for i := range int64(pieces) { // spread over the disk
		fillRaw(t, g.path, rnd, i*(size/pieces)+rnd.Int64N(1000)*blockSize, data/pieces)
	}
	o := r.peak("protect", "web01", "--json")
	if vm := o.object(t).VMs[0]; vm.Sent != data {
		t.Errorf("%d bytes sent, the disk holds %d", vm.Sent, data)
	}
	r.judged(m)

	g.put(t, []change{{off: size - 3*blockSize, n: 2 * blockSize, data: noise(rnd, 2*blockSize)}, {off: 0, n: 100 * mib}})
	r.peak("delta", "web01")
	r.judged(m)
	r.peak("verify", "web01")

	if n := allocated(t, r.path("store"), ".vhd"); n > data+2*mib {
		t.Errorf("the replica takes %d bytes, the disk holds %d", n, data)
	}
	if n := allocated(t, r.path("store"), ".sums") + allocated(t, r.path(".sitrep"), ""); n > 4*mib {
		t.Errorf("block sums and memory take %d bytes", n)
	}
	ledger, err := os.Stat(r.path("store", "web01", "ledger.json"))
	check(t, err)
	if ledger.Size() > 16<<10 {
		t.Errorf("the ledger has %d bytes", ledger.Size())
	}
	t.Logf("sums in the store: %d bytes of the volume, the site's memory: %d, the ledger: %d", allocated(t, r.path("store"), ".sums"),
		allocated(t, r.path(".sitrep"), ""), ledger.Size())
}

// judged is same, with the time that QEMU takes for it.
func (r *rig) judged(m *machine) {
	r.Helper()
	began := time.Now()
	r.same(m)
	r.Logf("qemu-img compare took %v", time.Since(began).Round(time.Millisecond))
}

// peak runs the binary, and fails the test if it takes too much memory.
func (r *rig) peak(args ...string) outcome {
	r.Helper()
	to := filepath.Join(r.TempDir(), "peak")
	run := r.command(args...)
	c := exec.Command(os.Args[0], run.Args...)
	c.Env = append(os.Environ(), measureEnv+"="+to)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	check(r.T, c.Start())
	o := r.wait(c, &out, &errs)
	if o.code != 0 {
		r.Fatal(o)
	}
	peak, err := strconv.ParseInt(string(read(r.T, to)), 10, 64)
	check(r.T, err)
	r.Logf("%s: %d MiB at most", args[0], peak>>20)
	if peak == 0 || peak > 128*mib {
		r.Errorf("%q took %d bytes of memory", args, peak)
	}
	return o
}

// fillRaw writes noise to a raw disk.
func fillRaw(t *testing.T, path string, rnd *rand.Rand, off, n int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	check(t, err)
	for n > 0 {
		k := min(n, 4*mib)
		_, err := f.WriteAt(noise(rnd, k), off)
		check(t, err)
		off, n = off+k, n-k
	}
	check(t, f.Close())
}

// allocated is what the files below a folder, of names with this ending, take of their volume, in bytes. A file with two
// names counts once.
func allocated(t *testing.T, folder, suffix string) (n int64) {
	t.Helper()
	seen := map[uint64]bool{}
	check(t, filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, suffix) {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		s := info.Sys().(*syscall.Stat_t)
		if !seen[s.Ino] {
			n += s.Blocks * 512
		}
		seen[s.Ino] = true
		return nil
	}))
	return n
}
