package durable_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sitrep/internal/block"
	"sitrep/internal/durable"
)

// lockEnv tells a child of TestMain which lock to take and keep.
const lockEnv = "DURABLE_TEST_LOCK"

func TestMain(m *testing.M) {
	if name := os.Getenv(lockEnv); name != "" {
		_, err := durable.OS().Lock(name)
		fmt.Println("locked:", err)
		time.Sleep(time.Minute) // until it is killed
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestLock(t *testing.T) {
	name := filepath.Join(t.TempDir(), "l")
	l, err := durable.OS().Lock(name)
	must(t, err)
	if _, err := durable.OS().Lock(name); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("second lock: %v", err)
	}
	must(t, l.Close())
	l, err = durable.OS().Lock(name)
	must(t, err)
	must(t, l.Close())
	if _, err := durable.OS().Lock(filepath.Join(name, "x")); err == nil || errors.Is(err, durable.ErrLocked) {
		t.Errorf("lock below a file: %v", err)
	}
}

func TestLockEndsWithItsProcess(t *testing.T) {
	name := filepath.Join(t.TempDir(), "l")
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), lockEnv+"="+name)
	out, err := child.StdoutPipe()
	must(t, err)
	must(t, child.Start())
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "locked: <nil>\n" {
		t.Errorf("child said %q, %v", line, err)
	}
	if _, err := durable.OS().Lock(name); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("while the child lives: %v", err)
	}
	must(t, child.Process.Kill())
	_ = child.Wait() // it was killed
	l, err := durable.OS().Lock(name)
	must(t, err)
	must(t, l.Close())
}

func TestExtentOfSparseFile(t *testing.T) {
	const size = 1<<40 + 5
	f, err := durable.OS().Create(filepath.Join(t.TempDir(), "f"))
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(size))
	wrote := block.NewSet()
	for _, off := range []int64{0, 1 << 20, 1<<30 + 4096, 1<<40 - 1<<20} {
		_, err := f.WriteAt(bytes.Repeat([]byte{1}, 100000), off)
		must(t, err)
		wrote.Add(block.Range{Off: off, Len: 100000})
	}
	data := block.NewSet()
	var extents int
	for off := int64(0); off < size; extents++ {
		e, err := f.Extent(off, size-off)
		must(t, err)
		if e.Off != off || e.Len <= 0 || e.End() > size {
			t.Fatalf("extent %v at %d", e, off)
		}
		if e.Kind == block.Data {
			data.Add(e.Range)
		}
		off = e.End()
	}
	for r := range wrote.All() {
		data.Remove(r)
	}
	if data.Bytes() > 4*128<<10 || extents > 20 {
		t.Errorf("%d extents, %d bytes more than were written are called data", extents, data.Bytes())
	}
	for _, tt := range []struct {
		off, n int64
		want   block.Extent
	}{
		{0, 10, block.Extent{Range: block.Range{Off: 0, Len: 10}, Kind: block.Data}},
		{99999, 1, block.Extent{Range: block.Range{Off: 99999, Len: 1}, Kind: block.Data}},
		{1 << 29, 77, block.Extent{Range: block.Range{Off: 1 << 29, Len: 77}, Kind: block.Zero}},
		{size - 1, 50, block.Extent{Range: block.Range{Off: size - 1, Len: 50}, Kind: block.Zero}},
		{size, 50, block.Extent{Range: block.Range{Off: size, Len: 50}, Kind: block.Zero}},
		{size + 1000, 50, block.Extent{Range: block.Range{Off: size + 1000, Len: 50}, Kind: block.Zero}},
	} {
		if e, err := f.Extent(tt.off, tt.n); err != nil || e != tt.want {
			t.Errorf("Extent(%d, %d) = %v, %v", tt.off, tt.n, e, err)
		}
	}
	must(t, f.ZeroAt(0, 1<<30))
	if e, err := f.Extent(0, 1<<30); err != nil || e.Kind != block.Zero || e.Len != 1<<30 {
		t.Errorf("after ZeroAt: %v, %v", e, err)
	}
}

func TestMkdirAllBelowWhatMayNotBeListed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a")
	must(t, os.MkdirAll(filepath.Join(dir, "b"), 0o700))
	must(t, os.Chmod(dir, 0o300))
	t.Cleanup(func() { os.Chmod(dir, 0o700) })
	must(t, durable.OS().MkdirAll(filepath.Join(dir, "b", "c")))
}

// model is a file beside the bytes that it should have.
type model struct {
	t     *testing.T
	f     durable.File
	rng   *rand.Rand
	bytes []byte
}

// place chooses an offset and a length: often large and aligned, so that the page cache is gone around, else anything.
func (m *model) place() (off int64, p []byte) {
	const space = 3 << 20
	switch m.rng.IntN(4) {
	case 0, 1:
		off = m.rng.Int64N(space/4096) * 4096
		return off, durable.AlignedBuffer((16 + m.rng.IntN(64)) * 4096)
	case 2: // large, but not aligned in one of three ways
		off = m.rng.Int64N(space/4096)*4096 + m.rng.Int64N(2)*512
		buf := durable.AlignedBuffer(200<<10 + m.rng.IntN(2)*100)
		return off, buf[m.rng.IntN(2)*8:]
	}
	return m.rng.Int64N(space), make([]byte, m.rng.IntN(10000))
}

func (m *model) read() {
	off, p := m.place()
	n, err := m.f.ReadAt(p, off)
	want := m.bytes[min(off, int64(len(m.bytes))):]
	want = want[:min(len(want), len(p))]
	wantErr := error(nil)
	if len(want) < len(p) {
		wantErr = io.EOF
	}
	if n != len(want) || err != wantErr || !bytes.Equal(p[:n], want) {
		m.t.Fatalf("ReadAt(%d bytes, %d) of %d = %d, %v, right content %v",
			len(p), off, len(m.bytes), n, err, bytes.Equal(p[:n], want[:min(n, len(want))]))
	}
}

func (m *model) write() {
	off, p := m.place()
	for i := range p {
		p[i] = byte(m.rng.Uint32())
	}
	if n, err := m.f.WriteAt(p, off); n != len(p) || err != nil {
		m.t.Fatalf("WriteAt(%d bytes, %d) = %d, %v", len(p), off, n, err)
	}
	if end := off + int64(len(p)); len(p) > 0 {
		m.resize(max(end, int64(len(m.bytes))))
		copy(m.bytes[off:], p)
	}
}

func (m *model) resize(n int64) {
	m.bytes = append(m.bytes[:min(n, int64(len(m.bytes)))], make([]byte, max(0, n-int64(len(m.bytes))))...)
}

func (m *model) step() {
	switch m.rng.IntN(20) {
	case 0:
		n := m.rng.Int64N(3 << 20)
		must(m.t, m.f.Truncate(n))
		m.resize(n)
	case 1:
		off, p := m.place()
		must(m.t, m.f.ZeroAt(off, int64(len(p))))
		clear(m.bytes[min(off, int64(len(m.bytes))):min(off+int64(len(p)), int64(len(m.bytes)))])
	case 2:
		must(m.t, m.f.Sync())
	case 3, 4, 5, 6, 7, 8:
		m.write()
	default:
		m.read()
	}
	if size, err := m.f.Size(); err != nil || size != int64(len(m.bytes)) {
		m.t.Fatalf("size %d, %v, want %d", size, err, len(m.bytes))
	}
}

func runModel(t *testing.T, dir string, between func(name string)) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	name := filepath.Join(dir, "f")
	f, err := durable.OS().Create(name)
	must(t, err)
	defer f.Close()
	if between != nil {
		between(name)
	}
	m := &model{t: t, f: f, rng: rand.New(rand.NewPCG(seed, 0))}
	for range 400 {
		m.step()
	}
}

func TestLargeAndSmallTransfers(t *testing.T) {
	t.Run("plain", func(t *testing.T) { runModel(t, t.TempDir(), nil) })
	t.Run("renamed before the first transfer", func(t *testing.T) {
		runModel(t, t.TempDir(), func(name string) {
			must(t, os.Rename(name, name+"2"))
			must(t, os.WriteFile(name, bytes.Repeat([]byte{0xEE}, 4<<20), 0o600)) // not ours
		})
	})
	t.Run("removed before the first transfer", func(t *testing.T) {
		runModel(t, t.TempDir(), func(name string) { must(t, os.Remove(name)) })
	})
	t.Run("tmpfs", func(t *testing.T) {
		dir, err := os.MkdirTemp("/dev/shm", "durable-test-")
		if err != nil {
			t.Skip("no tmpfs: ", err)
		}
		defer os.RemoveAll(dir)
		runModel(t, dir, nil)
	})
}

// Transfers that do not overlap may run at the same time, large and small, on one file.
func TestConcurrentTransfers(t *testing.T) {
	const lane = 1<<20 + 4096*3 + 512 // neighbours share a page
	f, err := durable.OS().Create(filepath.Join(t.TempDir(), "f"))
	must(t, err)
	defer f.Close()
	must(t, f.Truncate(6*lane))
	var wg sync.WaitGroup
	for i := range int64(6) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			buf := durable.AlignedBuffer(256 << 10)
			for round := range byte(40) {
				n := int64(len(buf))
				off := block.RoundUp(i*lane, 4096) + rng.Int64N(100)*4096
				if round%2 == 1 {
					off, n = i*lane+rng.Int64N(1000), 1+rng.Int64N(3000)
				}
				fill := bytes.Repeat([]byte{round + 1}, int(n))
				copy(buf, fill)
				if _, err := f.WriteAt(buf[:n], off); err != nil {
					t.Error(err)
				}
				clear(buf)
				if _, err := f.ReadAt(buf[:n], off); err != nil || !bytes.Equal(buf[:n], fill) {
					t.Errorf("lane %d, round %d: wrong content, %v", i, round, err)
				}
			}
		})
	}
	wg.Wait()
}

// Large reads leave the page cache as it was.
func TestLargeReadsGoAroundThePageCache(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	f, err := durable.OS().Create(name)
	must(t, err)
	defer f.Close()
	buf := durable.AlignedBuffer(8 << 20)
	for i := range buf {
		buf[i] = byte(i)
	}
	_, err = f.WriteAt(buf, 0)
	must(t, err)
	must(t, f.Sync())
	plain, err := os.Open(name)
	must(t, err)
	defer plain.Close()
	must(t, unix.Fadvise(int(plain.Fd()), 0, 0, unix.FADV_DONTNEED))
	pages := func() uint64 {
		var stat unix.Cachestat_t
		if err := unix.Cachestat(uint(plain.Fd()), &unix.CachestatRange{Len: 8 << 20}, &stat, 0); err != nil {
			t.Skip("this kernel cannot tell what is cached: ", err)
		}
		return stat.Cache
	}
	if n := pages(); n != 0 {
		t.Skipf("this filesystem keeps %d pages in the cache", n)
	}
	for off := int64(0); off < 8<<20; off += 1 << 20 {
		_, err := f.ReadAt(buf[off:off+1<<20], off)
		must(t, err)
	}
	if n := pages(); n != 0 {
		t.Errorf("%d pages are in the cache after large reads", n)
	}
}

// What WriteCached writes stays in the page cache, and is what is read back; a large write by itself does not stay.
func TestWriteCached(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	f, err := durable.OS().Create(name)
	must(t, err)
	defer f.Close()
	want := durable.AlignedBuffer(2 << 20)
	for i := range want {
		want[i] = byte(i % 251)
	}
	_, err = f.WriteAt(want[:1<<20], 0)
	must(t, err)
	must(t, f.Sync())
	plain, err := os.Open(name)
	must(t, err)
	defer plain.Close()
	cached := func(off uint64) uint64 {
		var stat unix.Cachestat_t
		if err := unix.Cachestat(uint(plain.Fd()), &unix.CachestatRange{Off: off, Len: 1 << 20}, &stat, 0); err != nil {
			t.Skip("this kernel cannot tell what is cached: ", err)
		}
		return stat.Cache
	}
	if n := cached(0); n != 0 {
		t.Skipf("this filesystem keeps %d pages in the cache", n)
	}
	if n, err := durable.WriteCached(f, want[1<<20:], 1<<20); n != 1<<20 || err != nil {
		t.Fatal(n, err)
	}
	must(t, f.Sync())
	if n := cached(1 << 20); n == 0 {
		t.Error("nothing is in the cache")
	}
	got := durable.AlignedBuffer(2 << 20)
	must(t, durable.ReadFull(f, got, 0))
	if !bytes.Equal(got, want) {
		t.Error("wrong content")
	}
}

// mount makes a filesystem in a sparse file of size bytes and mounts it, or skips the test where that cannot be.
func mount(t *testing.T, size int64, mkfs ...string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting a filesystem needs root")
	}
	if _, err := exec.LookPath(mkfs[0]); err != nil {
		need := mkfs[0] + " is missing: apt-get install xfsprogs e2fsprogs"
		if os.Getenv("CI") == "true" {
			t.Fatal(need)
		}
		t.Skip(need)
	}
	dir := t.TempDir()
	image, at := filepath.Join(dir, "image"), filepath.Join(dir, "mnt")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, size))
	must(t, os.Mkdir(at, 0o700))
	if out, err := exec.Command(mkfs[0], append(mkfs[1:], image)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", mkfs, err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, at).CombinedOutput(); err != nil {
		t.Skipf("this system lets nothing be mounted: %v, %s", err, strings.TrimSpace(string(out)))
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("umount: %v, %s", err, out)
		}
	})
	return at
}

func TestCloneOnXFS(t *testing.T) {
	dir := mount(t, 600<<20, "mkfs.xfs", "-q", "-m", "reflink=1")
	osfs := durable.OS()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	f, err := osfs.Create(a)
	must(t, err)
	defer f.Close()
	content := bytes.Repeat([]byte("0123456789"), 1<<20+3)
	_, err = f.WriteAt(content, 4097)
	must(t, err)
	must(t, osfs.Clone(a, b))
	if err := osfs.Clone(a, b); !errors.Is(err, os.ErrExist) {
		t.Errorf("cloned over a file: %v", err)
	}
	_, err = f.WriteAt(make([]byte, 1<<20), 0) // the copy is frozen
	must(t, err)
	got, err := durable.ReadFile(osfs, b, 1<<30)
	must(t, err)
	if !bytes.Equal(got, append(make([]byte, 4097), content...)) {
		t.Errorf("the copy has %d bytes, not those of the moment", len(got))
	}
	if err := osfs.Clone(a, filepath.Join(t.TempDir(), "x")); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("to another filesystem: %v", err)
	}
	t.Run("transfers", func(t *testing.T) { runModel(t, filepath.Join(dir), nil) })
}

func TestCloneOnExt4(t *testing.T) {
	dir := mount(t, 64<<20, "mkfs.ext4", "-q", "-F")
	osfs := durable.OS()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	must(t, durable.WriteFile(osfs, a, []byte("x")))
	if err := osfs.Clone(a, b); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("clone: %v", err)
	}
	if n := strings.Join(names(t, dir), " "); n != "a lost+found" {
		t.Errorf("the folder has %s", n)
	}
	if err := osfs.Clone(filepath.Join(dir, "none"), b); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("clone of nothing: %v", err)
	}
	if err := osfs.Link(a, filepath.Join(t.TempDir(), "x")); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("link to another filesystem: %v", err)
	}
	t.Run("full", func(t *testing.T) {
		err := durable.Replace(osfs, b, func(f durable.File) error {
			buf := durable.AlignedBuffer(16 << 20)
			for off := int64(0); off < 1<<30; off += int64(len(buf)) {
				if _, err := f.WriteAt(buf, off); err != nil {
					return err
				}
			}
			return nil
		})
		if !errors.Is(err, unix.ENOSPC) {
			t.Errorf("filling the volume: %v", err)
		}
		if n := strings.Join(names(t, dir), " "); n != "a lost+found" {
			t.Errorf("the folder has %s", n)
		}
	})
}

// A block device is all data where nothing else is known, has its size, and can be zeroed at any byte.
func TestBlockDevice(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a loop device needs root")
	}
	image := filepath.Join(t.TempDir(), "image")
	const size = 4<<20 + 512
	must(t, os.WriteFile(image, bytes.Repeat([]byte{9}, size), 0o600))
	out, err := exec.Command("losetup", "--find", "--show", image).Output()
	if err != nil {
		t.Skip("this system has no loop devices: ", err)
	}
	dev := strings.TrimSpace(string(out))
	defer exec.Command("losetup", "-d", dev).Run()
	f, err := durable.OS().OpenRW(dev)
	must(t, err)
	defer f.Close()
	if n, err := f.Size(); n != size || err != nil {
		t.Fatalf("size %d, %v", n, err)
	}
	if e, err := f.Extent(0, size); err != nil || e.Kind != block.Data || e.Len <= 0 {
		t.Errorf("extent %v, %v", e, err)
	}
	want := bytes.Repeat([]byte{9}, size)
	for _, r := range []block.Range{{Off: 100, Len: 1000}, {Off: 8192, Len: 1 << 20}, {Off: size - 7, Len: 100}} {
		must(t, f.ZeroAt(r.Off, r.Len))
		clear(want[r.Off:min(r.End(), size)])
	}
	got := durable.AlignedBuffer(8 << 20)
	if n, err := f.ReadAt(got, 0); n != size || err != io.EOF || !bytes.Equal(got[:n], want) {
		t.Errorf("read %d, %v, right content %v", n, err, bytes.Equal(got[:n], want))
	}
}

// TestDirectErrorsNameTheFile: an error of a transfer around the page cache is about the file, not about its descriptor.
func TestDirectErrorsNameTheFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "disk.raw")
	must(t, os.WriteFile(name, nil, 0o600))
	f, err := durable.OS().Open(name) // for reading
	must(t, err)
	defer f.Close()
	for _, n := range []int{512, 1 << 20} {
		var pe *fs.PathError
		_, err := f.WriteAt(durable.AlignedBuffer(n), 0)
		if !errors.As(err, &pe) || pe.Path != name {
			t.Errorf("writing %d bytes: %v", n, err)
		}
	}
}
