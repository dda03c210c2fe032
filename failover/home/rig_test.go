package home_test

import (
	"bytes"
	"context"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"sitrep/failover/home"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/hrl"
	"sitrep/internal/progress"
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

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func qemu(t testing.TB, name string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing", name)
		}
		t.Skipf("%s is missing: apt-get install qemu-utils", name)
	}
	if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

// seeded is a random source; SITREP_SEED repeats one.
func seeded(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("SITREP_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("SITREP_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// shape is how an original lies in its file.
type shape struct {
	format disk.Format
	kind   disk.Kind
	qemu   string
}

func shapes() map[string]shape {
	return map[string]shape{"raw": {disk.Raw, disk.Fixed, "raw"}, "vhd": {disk.VHD, disk.Fixed, "vpc"}, "dynamic-vhd": {disk.VHD, disk.Dynamic, "vpc"},
		"vhdx": {disk.VHDX, disk.Dynamic, "vhdx"}, "fixed-vhdx": {disk.VHDX, disk.Fixed, "vhdx"}}
}

// grows says whether a disk of this shape can be made larger.
func (s shape) grows() bool {
	return s.format == disk.Raw || s.format == disk.VHD && s.kind == disk.Fixed || s.format == disk.VHDX && s.kind == disk.Dynamic
}

// create makes a disk with a content.
func create(t testing.TB, fs durable.FS, path string, s shape, guest []byte) {
	t.Helper()
	ok(t, fs.MkdirAll(filepath.Dir(path)))
	spec := disk.Spec{Format: s.format, Kind: s.kind, Size: int64(len(guest))}
	if s.kind == disk.Dynamic {
		spec.BlockSize = 1 << 20
	}
	w := must(disk.Create(fs, path, spec))(t)
	for off := 0; off < len(guest); off += 4096 {
		if p := guest[off:min(off+4096, len(guest))]; !bytes.Equal(p, make([]byte, len(p))) {
			must(w.WriteAt(p, int64(off)))(t)
		}
	}
	ok(t, w.Close())
}

// content is what a guest sees on a disk.
func content(t testing.TB, fs durable.FS, path string, f disk.Format) []byte {
	t.Helper()
	d := must(disk.Open(fs, path, f))(t)
	defer d.Close()
	p := make([]byte, d.Size())
	must(d.ReadAt(p, 0))(t)
	return p
}

// scribble changes a disk as a guest would: pieces of data, and pieces of zeros.
func scribble(r *rand.Rand, guest []byte, times int) {
	for range times {
		off := r.IntN(len(guest)) / 512 * 512
		n := min(len(guest)-off, 512<<r.IntN(10))
		b := byte(r.IntN(3)) * byte(r.Uint32()) // zeros are more frequent
		for i := range n {
			guest[off+i] = b * byte(1+i%7)
		}
	}
}

// differing is the bytes of the 4096-byte pieces that differ between the content of two disks, and of those not zero.
func differing(a, b []byte) (differs, data int64) {
	b = append(bytes.Clone(b), make([]byte, len(a)-len(b))...)
	for off := 0; off < len(a); off += 4096 {
		p, q := a[off:min(off+4096, len(a))], b[off:min(off+4096, len(a))]
		if !bytes.Equal(p, q) {
			differs += int64(len(p))
			if !bytes.Equal(p, make([]byte, len(p))) {
				data += int64(len(p))
			}
		}
	}
	return differs, data
}

// source is a recovered disk in memory.
type source struct{ *disk.Disk }

func open(t testing.TB, fs durable.FS, path string, f disk.Format) source {
	t.Helper()
	return source{must(disk.Open(fs, path, f))(t)}
}

func noPause(ctx context.Context, _ time.Duration) error { return ctx.Err() }

func job(fs durable.FS, state string, disks ...home.Disk) *home.Job {
	return &home.Job{VM: "web", ID: hrl.ID{7}, FS: fs, Disks: disks, StateDir: state, Meter: progress.None(), Log: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return time.Unix(1_700_000_000, 0) }, Pause: noPause}
}
