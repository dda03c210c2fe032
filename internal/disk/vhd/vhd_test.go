package vhd_test

import (
	"bytes"
	"compress/bzip2"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"sitrep/internal/block"
	"sitrep/internal/disk/vhd"
	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
)

const testdata = "../../../testdata/disk/"

// unpack decompresses an image of testdata into a folder.
func unpack(t testing.TB, dir, name string) string {
	t.Helper()
	in, err := os.Open(testdata + name + ".bz2")
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	data, err := io.ReadAll(bzip2.NewReader(in))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func openFile(t testing.TB, fs durable.FS, path string) durable.File {
	t.Helper()
	return must(fs.Open(path))(t)
}

func open(t testing.TB, path string) *vhd.Image {
	t.Helper()
	m := must(vhd.Open(openFile(t, durable.OS(), path), vhd.Options{}))(t)
	t.Cleanup(func() { m.Close() })
	return m
}

type image interface {
	io.ReaderAt
	Size() int64
	Extent(off, n int64) (block.Extent, error)
}

// content reads a whole disk, and checks on the way that what Extent calls zero is zero, and that its runs fit.
func content(t testing.TB, m image) []byte {
	t.Helper()
	data := make([]byte, m.Size())
	if n, err := m.ReadAt(data, 0); n != len(data) {
		t.Fatalf("read %d of %d bytes: %v", n, len(data), err)
	}
	for off := int64(0); off < m.Size(); {
		e := must(m.Extent(off, m.Size()-off))(t)
		if e.Off != off || e.Len <= 0 || e.End() > m.Size() {
			t.Fatalf("extent %v asked for at %d of %d", e, off, m.Size())
		}
		if e.Kind == block.Zero && !block.IsZero(data[e.Off:e.End()]) {
			t.Fatalf("extent %v is said to be zero", e)
		}
		off = e.End()
	}
	return data
}

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

func wantCode(t testing.TB, err error, code fault.Code) {
	t.Helper()
	if !fault.Is(err, code) {
		t.Fatalf("error %v, want %s", err, code)
	}
	if e := fault.Find(err); e.Path == "" {
		t.Fatalf("error %v names no file", err)
	}
}

// qemu runs a program of QEMU.
func qemu(t testing.TB, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing", name)
		}
		t.Skipf("%s is missing: apt-get install qemu-utils", name)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestGeometry(t *testing.T) {
	for _, c := range []struct {
		size int64
		want vhd.Geometry
	}{
		{4 << 20, vhd.Geometry{Cylinders: 120, Heads: 4, Sectors: 17}},       // Windows 10
		{127 << 30, vhd.Geometry{Cylinders: 65278, Heads: 16, Sectors: 255}}, // Hyper-V
		{512, vhd.Geometry{Cylinders: 0, Heads: 4, Sectors: 17}},
		{34 << 20, vhd.Geometry{Cylinders: 140, Heads: 16, Sectors: 31}}, // 4096 tracks: too many for 4 heads
		{34<<20 - 17*512, vhd.Geometry{Cylinders: 1023, Heads: 4, Sectors: 17}},
		{504 << 20, vhd.Geometry{Cylinders: 1024, Heads: 16, Sectors: 63}},
		{2040 << 30, vhd.Geometry{Cylinders: 65535, Heads: 16, Sectors: 255}},
		{32 << 40, vhd.Geometry{Cylinders: 65535, Heads: 16, Sectors: 255}},
	} {
		if got := vhd.GeometryOf(c.size); got != c.want {
			t.Errorf("geometry of %d bytes: %+v, want %+v", c.size, got, c.want)
		}
	}
}

func TestWindowsImages(t *testing.T) {
	for _, c := range []struct{ name, sum, kind string }{
		{"ntfs-dynamic.vhd", "8b10b52e3d1e76075d05a5101a6536b9fa8376a5b8f7c22f502d0987d165c876", "dynamic"},
		{"ntfs-fixed.vhd", "cd81fade3878f1b2957f1ece168201876bdf4e90c9b30f60c2f232eba5fea76c", "fixed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := open(t, unpack(t, t.TempDir(), c.name))
			if got := sum(content(t, m)); got != c.sum {
				t.Errorf("sha256 %s, want %s", got, c.sum)
			}
			if got := m.Kind().String(); got != c.kind {
				t.Errorf("kind %s", got)
			}
			if m.Footer().Created().Year() < 2015 {
				t.Errorf("created %v", m.Footer().Created())
			}
		})
	}
}

// TestFooterOfWindows makes the footer that Windows made from its values.
func TestFooterOfWindows(t *testing.T) {
	path := unpack(t, t.TempDir(), "ntfs-fixed.vhd")
	data := must(os.ReadFile(path))(t)
	want := data[len(data)-vhd.FooterSize:]
	var f vhd.Footer
	if err := f.UnmarshalBinary(want); err != nil {
		t.Fatal(err)
	}
	made := must(vhd.NewFooter(4<<20, f.ID, f.Created()).MarshalBinary())(t)
	if !bytes.Equal(made, want) {
		t.Errorf("made\n%x\nwant\n%x", made[:85], want[:85])
	}
	for i := range want {
		for bit := range 8 {
			bad := bytes.Clone(want)
			bad[i] ^= 1 << bit
			if err := f.UnmarshalBinary(bad); err == nil {
				t.Fatalf("bit %d of byte %d flipped: no error", bit, i)
			}
		}
	}
}

func TestCreateAgainstQemu(t *testing.T) {
	for _, spec := range []vhd.Spec{
		{Type: vhd.Fixed, Size: 3<<20 + 512},
		{Type: vhd.Fixed, Size: 64 << 20},
		{Type: vhd.Dynamic, Size: 64 << 20},
		{Type: vhd.Dynamic, Size: 5<<20 + 512, BlockSize: 512 << 10},
		{Type: vhd.Dynamic, Size: 300 << 30},
	} {
		t.Run(fmt.Sprint(spec.Type, spec.Size, spec.BlockSize), func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "a.vhd")
			w := must(vhd.Create(must(durable.OS().Create(path))(t), spec))(t)
			rng := newRand(t)
			for range 40 {
				p := fill(1+rng.Int64N(300_000), rng)
				off := rng.Int64N(min(spec.Size, 60<<20) - int64(len(p)))
				must(w.WriteAt(p, off))(t)
			}
			must(w.WriteAt([]byte("the end"), spec.Size-7))(t)
			if spec.Size < 1<<30 {
				data := content(t, w)
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				raw := filepath.Join(dir, "a.raw")
				if err := os.WriteFile(raw, data, 0o600); err != nil {
					t.Fatal(err)
				}
				qemu(t, "qemu-img", "compare", "-f", "vpc", "-F", "raw", path, raw)
			} else if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			qemu(t, "qemu-io", "-f", "vpc", "-c", "write -P 0x77 1000k 3000", path)
			m := open(t, path)
			got := make([]byte, 3000)
			must(m.ReadAt(got, 1000<<10))(t)
			if !bytes.Equal(got, bytes.Repeat([]byte{0x77}, 3000)) {
				t.Error("what qemu wrote is not there")
			}
		})
	}
}

func TestQemuImages(t *testing.T) {
	for _, options := range []string{"subformat=fixed", "subformat=dynamic", "subformat=fixed,force_size=on", "subformat=dynamic,force_size=on"} {
		t.Run(options, func(t *testing.T) {
			dir := t.TempDir()
			path, raw := filepath.Join(dir, "q.vhd"), filepath.Join(dir, "q.raw")
			qemu(t, "qemu-img", "create", "-f", "vpc", "-o", options, path, "67108864")
			rng := newRand(t)
			for range 12 {
				off, n := rng.Int64N(60<<20)&^511, 512*(1+rng.Int64N(4000))
				qemu(t, "qemu-io", "-f", "vpc", "-c", fmt.Sprintf("write -P %d %d %d", 1+rng.IntN(255), off, n), path)
			}
			qemu(t, "qemu-img", "convert", "-f", "vpc", "-O", "raw", path, raw)
			m := open(t, path)
			if want := must(os.ReadFile(raw))(t); !bytes.Equal(content(t, m), want) {
				t.Errorf("content differs (%d bytes, want %d)", m.Size(), len(want))
			}
			layer, total := block.NewSet(), block.NewSet()
			for off := int64(0); off < m.Size(); {
				run, present, err := m.LayerExtent(off, m.Size()-off)
				if err != nil {
					t.Fatal(err)
				}
				if present {
					layer.Add(run)
				}
				total.Add(run)
				off = run.End()
			}
			if total.Bytes() != m.Size() || m.Kind() == vhd.Fixed && layer.Bytes() != m.Size() {
				t.Errorf("layer of %d, walked %d of %d bytes", layer.Bytes(), total.Bytes(), m.Size())
			}
		})
	}
}

func TestInPlaceOnQemuAndWindowsImages(t *testing.T) {
	dir := t.TempDir()
	q := filepath.Join(dir, "q.vhd")
	qemu(t, "qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=dynamic,force_size=on", q, "33554432")
	qemu(t, "qemu-io", "-f", "vpc", "-c", "write -P 9 5M 64k", q)
	for _, path := range []string{q, unpack(t, dir, "ntfs-dynamic.vhd"), unpack(t, dir, "ntfs-fixed.vhd")} {
		want := content(t, open(t, path))
		w := must(vhd.OpenRW(must(durable.OS().OpenRW(path))(t), vhd.Options{}))(t)
		rng := newRand(t)
		for range 30 {
			change(t, rng, w, want, 1)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(content(t, open(t, path)), want) {
			t.Fatalf("%s: content differs", path)
		}
		raw := filepath.Join(dir, "want.raw")
		os.WriteFile(raw, want, 0o600)
		qemu(t, "qemu-img", "compare", "-f", "vpc", "-F", "raw", path, raw)
	}
}

func TestReadAtEnds(t *testing.T) {
	fs := crashfs.New()
	w := must(vhd.Create(must(fs.Create("/a.vhd"))(t), vhd.Spec{Type: vhd.Dynamic, Size: 1 << 20}))(t)
	p := make([]byte, 1024)
	if n, err := w.ReadAt(p, 1<<20-512); n != 512 || err != io.EOF {
		t.Errorf("read over the end: %d, %v", n, err)
	}
	if n, err := w.ReadAt(p, 1<<20); n != 0 || err != io.EOF {
		t.Errorf("read at the end: %d, %v", n, err)
	}
	for _, off := range []int64{-1, -1 << 63, 1<<63 - 1, 1<<20 - 1} {
		if _, err := w.WriteAt(p, off); err == nil {
			t.Errorf("write at %d: no error", off)
		}
		if err := w.ZeroAt(off, 1024); err == nil {
			t.Errorf("zero at %d: no error", off)
		}
	}
	if _, err := w.ReadAt(p, -1); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read at -1: %v", err)
	}
}

func TestCreateRefuses(t *testing.T) {
	fs := crashfs.New()
	for i, s := range []vhd.Spec{
		{Type: vhd.Differencing, Size: 1 << 20}, {Type: vhd.Fixed}, {Type: vhd.Fixed, Size: 1000}, {Type: vhd.Fixed, Size: -512},
		{Type: vhd.Dynamic, Size: 2041 << 30}, {Type: vhd.Dynamic, Size: 1 << 20, BlockSize: 3 << 20},
		{Type: vhd.Dynamic, Size: 1 << 20, BlockSize: -1}, {Type: vhd.Dynamic, Size: 2040 << 30, BlockSize: 4096},
	} {
		_, err := vhd.Create(must(fs.Create(fmt.Sprint("/", i)))(t), s)
		wantCode(t, err, fault.DiskUnsupported)
	}
}
