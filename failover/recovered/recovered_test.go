package recovered_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sitrep/failover/recovered"
	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/progress"
	"sitrep/internal/replica"
)

// A disk of a recovery point and a disk of a host are both Sources.
var (
	_ recovered.Source = replica.PointDisk(nil)
	_ recovered.Source = disk.Image(nil)
)

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func qemu(t testing.TB, args ...string) {
	t.Helper()
	path, err := exec.LookPath("qemu-img")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("qemu-img is missing")
		}
		t.Skip("qemu-img is missing: apt-get install qemu-utils")
	}
	if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %q: %v\n%s", args, err, out)
	}
}

// source is a disk in memory that knows which of its pages of 4096 bytes are zero, except the first half of it.
type source struct {
	data  []byte
	reads atomic.Int64
	after int64 // reads fail from this one on, when it is not 0
}

func (s *source) Size() int64 { return int64(len(s.data)) }

func (s *source) ReadAt(p []byte, off int64) (int, error) {
	if n := s.reads.Add(1); s.after != 0 && n >= s.after {
		return 0, fault.New(fault.ReplicaCorrupt, "a flipped byte")
	}
	n := copy(p, s.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (s *source) kind(off int64) block.Kind {
	if off < s.Size()/2 || !block.IsZero(s.data[off:min(off+4096, s.Size())]) {
		return block.Data
	}
	return block.Zero
}

func (s *source) Extent(off, n int64) (block.Extent, error) {
	first := off / 4096 * 4096
	e := block.Extent{Range: block.Range{Off: off}, Kind: s.kind(first)}
	end := first
	for end < off+n && s.kind(end) == e.Kind {
		end += 4096
	}
	e.Len = min(end, off+n) - off
	return e, nil
}

func random(r *rand.Rand, size int64) *source {
	p := make([]byte, size)
	for at := int64(0); at < size; {
		n := min(size-at, 512+r.Int64N(1<<20)/512*512)
		if r.IntN(2) == 0 {
			for i := at; i < at+n; i += 8 {
				p[i] = byte(1 + r.IntN(255))
			}
		}
		at += n
	}
	return &source{data: p}
}

func seeded(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func config(fs durable.FS, s recovered.Source, path string, f disk.Format) recovered.Config {
	return recovered.Config{FS: fs, Source: s, Path: path, Format: f, VM: "web", Disk: "os", ID: hrl.ID{1}, Meter: progress.None()}
}

type target struct {
	format disk.Format
	kind   disk.Kind
	qemu   string
}

func targets() []target {
	return []target{{disk.Raw, "", "raw"}, {disk.VHD, "", "vpc"}, {disk.VHD, disk.Dynamic, "vpc"}, {disk.VHDX, "", "vhdx"},
		{disk.VHDX, disk.Fixed, "vhdx"}, {disk.QCOW2, "", "qcow2"}}
}

func sameContent(t *testing.T, fs durable.FS, path string, f disk.Format, want []byte) {
	t.Helper()
	d := must(disk.Open(fs, path, f))(t)
	defer d.Close()
	got := make([]byte, d.Size())
	must(d.ReadAt(got, 0))(t)
	if !bytes.Equal(got, want) {
		t.Errorf("%s: content differs (%d bytes, want %d)", path, len(got), len(want))
	}
}

// TestFormats copies random disks into every format, and has qemu-img judge.
func TestFormats(t *testing.T) {
	r := seeded(t)
	for _, size := range []int64{512, 3<<20 + 512*7, 37 << 20} {
		s := random(r, size)
		for _, to := range targets() {
			t.Run(fmt.Sprintf("%d %s %s", size, to.format, to.kind), func(t *testing.T) {
				dir := t.TempDir()
				path, raw := filepath.Join(dir, "new", "d."+string(to.format)), filepath.Join(dir, "raw")
				c := config(durable.OS(), s, path, to.format)
				c.Kind = to.kind
				res := must(recovered.Make(t.Context(), c))(t)
				if res.Found || res.Size != size || res.Read > size || res.Written > res.Read {
					t.Errorf("%+v", res)
				}
				sameContent(t, durable.OS(), path, to.format, s.data)
				if err := os.WriteFile(raw, s.data, 0o600); err != nil {
					t.Fatal(err)
				}
				qemu(t, "compare", "-f", "raw", "-F", to.qemu, raw, path)
				if to.qemu == "qcow2" || to.qemu == "vhdx" {
					qemu(t, "check", "-f", to.qemu, path)
				}
				if names := must(os.ReadDir(filepath.Dir(path)))(t); len(names) != 2 {
					t.Errorf("left behind: %v", names)
				}
				if again := must(recovered.Make(t.Context(), c))(t); !again.Found || again.Written != res.Written {
					t.Errorf("again: %+v", again)
				}
			})
		}
	}
}

// TestCutEverywhere cuts the power at every operation: by the disk's name there is nothing or the whole disk, and the
// next call completes it.
func TestCutEverywhere(t *testing.T) {
	s := random(rand.New(rand.NewPCG(1, 2)), 1<<20+512)
	for _, to := range targets() {
		t.Run(fmt.Sprint(to.format, to.kind), func(t *testing.T) {
			for k := 1; ; k++ {
				fs := crashfs.New()
				fs.CutAfter(k)
				c := config(fs, s, "/vms/web/d", to.format)
				c.Kind, c.Tasks = to.kind, 2
				_, err := recovered.Make(t.Context(), c)
				if err == nil {
					if k < 8 {
						t.Fatalf("%d operations", k-1)
					}
					return
				}
				if !errors.Is(err, crashfs.ErrCut) {
					t.Fatal(err)
				}
				for _, policy := range crashfs.Policies() {
					c.FS = fs.AfterCrash(policy, uint64(k))
					if _, err := c.FS.Stat(c.Path); err == nil {
						sameContent(t, c.FS, c.Path, to.format, s.data)
					}
					if _, err := recovered.Make(t.Context(), c); err != nil {
						t.Fatalf("cut at %d, then %s: %v", k, policy, err)
					}
					sameContent(t, c.FS, c.Path, to.format, s.data)
					if names := must(c.FS.ReadDir("/vms/web"))(t); len(names) != 2 {
						t.Fatalf("left behind: %v", names)
					}
				}
			}
		})
	}
}

// TestNotTaken: a file of another failover, or of somebody, is neither taken nor touched.
func TestNotTaken(t *testing.T) {
	fs := crashfs.New()
	s := random(rand.New(rand.NewPCG(1, 2)), 1<<20)
	c := config(fs, s, "/d", disk.Raw)
	must(recovered.Make(t.Context(), c))(t)
	other := c
	other.ID = hrl.ID{2}
	if _, err := recovered.Make(t.Context(), other); !fault.Is(err, fault.Exists) || fault.Find(err).VM != "web" {
		t.Errorf("another failover: %v", err)
	}
	if err := fs.Remove(recovered.RecordPath("/d")); err != nil {
		t.Fatal(err)
	}
	if _, err := recovered.Make(t.Context(), c); !fault.Is(err, fault.Exists) {
		t.Errorf("without a record: %v", err)
	}
	sameContent(t, fs, "/d", disk.Raw, s.data)
	owner := recovered.Owner{ID: c.ID, VM: c.VM, Disk: c.Disk}
	for range 2 {
		if why := must(recovered.Remove(fs, "/d", owner))(t); why == "" {
			t.Fatal("a disk without a mark was removed")
		}
	}
	if err := fs.Remove("/d"); err != nil {
		t.Fatal(err)
	}
	must(recovered.Make(t.Context(), other))(t)
}

// TestFailures: an error of the source ends the copy and leaves nothing; so do no space, an interruption and what a format
// cannot hold.
func TestFailures(t *testing.T) {
	for _, to := range targets() {
		fs := crashfs.New()
		s := random(rand.New(rand.NewPCG(3, 2)), 9<<20)
		c := config(fs, s, "/v/d", to.format)
		c.Kind = to.kind
		s.after = 3
		_, err := recovered.Make(t.Context(), c)
		if !fault.Is(err, fault.ReplicaCorrupt) {
			t.Errorf("%v: %v", to, err)
		}
		s.after = 0
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := recovered.Make(ctx, c); !fault.Cancelled(err) {
			t.Errorf("%v: %v", to, err)
		}
		fs.SetCapacity(2 << 20)
		if _, err := recovered.Make(t.Context(), c); !fault.Is(err, fault.NoSpace) || !strings.Contains(err.Error(), "2097152") {
			t.Errorf("%v: %v", to, err)
		}
		fs.SetCapacity(0)
		if to.format == disk.VHD {
			c.SectorSize = 4096
			if _, err := recovered.Make(t.Context(), c); !fault.Is(err, fault.DiskUnsupported) {
				t.Errorf("%v: %v", to, err)
			}
			c.SectorSize = 0
		}
		if names := must(fs.ReadDir("/v"))(t); len(names) != 0 {
			t.Errorf("%v: left behind: %v", to, names)
		}
		must(recovered.Make(t.Context(), c))(t)
		sameContent(t, fs, c.Path, to.format, s.data)
	}
}

// BenchmarkMake copies a disk of 512 MiB, half of it data, out of a file; qemu-img does the same, as fast as it can.
func BenchmarkMake(b *testing.B) {
	dir := b.TempDir()
	src := filepath.Join(dir, "src")
	f := must(os.Create(src))(b)
	chunk := make([]byte, 8<<20)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range chunk {
		chunk[i] = byte(r.Uint32())
	}
	for off := int64(0); off < 512<<20; off += 16 << 20 {
		must(f.WriteAt(chunk, off))(b)
	}
	if err := errors.Join(f.Truncate(512<<20), f.Sync(), f.Close()); err != nil {
		b.Fatal(err)
	}
	for _, to := range targets() {
		path := filepath.Join(dir, "to")
		b.Run(fmt.Sprintf("sitrep/%s%s", to.format, to.kind), func(b *testing.B) {
			b.SetBytes(512 << 20)
			for b.Loop() {
				d := must(disk.Open(durable.OS(), src, disk.Raw))(b)
				c := config(durable.OS(), d, path, to.format)
				c.Kind = to.kind
				must(recovered.Make(b.Context(), c))(b)
				d.Close()
				must(recovered.Remove(durable.OS(), path, recovered.Owner{ID: hrl.ID{1}, VM: "web", Disk: "os"}))(b)
			}
		})
		b.Run(fmt.Sprintf("qemu-img/%s%s", to.format, to.kind), func(b *testing.B) {
			b.SetBytes(512 << 20)
			subformat := map[disk.Kind]string{disk.Fixed: "fixed", disk.Dynamic: "dynamic", "": map[string]string{"vpc": "fixed", "vhdx": "dynamic"}[to.qemu]}[to.kind]
			args := []string{"convert", "-t", "none", "-W", "-f", "raw", "-O", to.qemu, src, path}
			if subformat != "" {
				args = append([]string{"convert", "-t", "none", "-W", "-o", "subformat=" + subformat}, args[4:]...)
			}
			for b.Loop() {
				qemu(b, args...)
				f := must(os.OpenFile(path, os.O_RDWR, 0))(b)
				if err := errors.Join(f.Sync(), f.Close(), os.Remove(path)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
