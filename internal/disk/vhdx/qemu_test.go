package vhdx

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sitrep/internal/durable"
)

// needQEMU skips the test when qemu-img or qemu-io is missing, except where CI=true.
func needQEMU(t testing.TB) {
	t.Helper()
	for _, name := range []string{"qemu-img", "qemu-io"} {
		if _, err := exec.LookPath(name); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skipf("%s is missing: apt-get install qemu-utils", name)
		}
	}
}

func qemu(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

func openOS(t testing.TB, name string) *Image {
	t.Helper()
	f, err := durable.OS().Open(name)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Open(f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func readAll(t testing.TB, m *Image) []byte {
	t.Helper()
	p := make([]byte, m.Size())
	if n, err := m.ReadAt(p, 0); n != len(p) {
		t.Fatal(n, err)
	}
	return p
}

// TestReadQEMU reads what QEMU wrote.
func TestReadQEMU(t *testing.T) {
	needQEMU(t)
	dir := t.TempDir()
	for _, subformat := range []string{"fixed", "dynamic"} {
		for _, bs := range []int64{1, 4, 32} {
			t.Run(fmt.Sprintf("%s/%dM", subformat, bs), func(t *testing.T) {
				name := filepath.Join(dir, fmt.Sprintf("%s%d.vhdx", subformat, bs))
				size := 11*mib + 512*5
				qemu(t, "qemu-img", "create", "-q", "-f", "vhdx", "-o", fmt.Sprintf("block_size=%dM,subformat=%s", bs, subformat), name, fmt.Sprint(size))
				qemu(t, "qemu-io", "-f", "vhdx", name, "-c", "write -P 0x11 0 64k", "-c", "write -P 0x22 3M 2M", "-c", "write -z 4M 1M",
					"-c", "write -P 0x33 1000k 100k", "-c", "write -P 0x44 11M 2560")
				m := openOS(t, name)
				if m.Size() != int64(size) || m.BlockSize() != bs*mib || m.Kind().String() != subformat {
					t.Fatal(m.Size(), m.BlockSize(), m.Kind())
				}
				want := make([]byte, size)
				for _, w := range []struct {
					b      byte
					off, n int
				}{{0x11, 0, 64 * kib}, {0x22, 3 * mib, 2 * mib}, {0, 4 * mib, mib}, {0x33, 1000 * kib, 100 * kib}, {0x44, 11 * mib, 2560}} {
					copy(want[w.off:], bytes.Repeat([]byte{w.b}, w.n))
				}
				if !bytes.Equal(readAll(t, m), want) {
					t.Fatal("content differs")
				}
				for off := int64(0); off < m.Size(); {
					e, err := m.Extent(off, m.Size()-off)
					if err != nil {
						t.Fatal(err)
					}
					if e.Kind == 1 && !bytes.Equal(want[off:e.End()], make([]byte, e.Len)) {
						t.Fatalf("%v is not zero", e.Range)
					}
					off = e.End()
				}
			})
		}
	}
}

// TestWriteForQEMU writes disks, lets QEMU check and read them, lets QEMU write to them and reads that.
func TestWriteForQEMU(t *testing.T) {
	needQEMU(t)
	r := seed(t)
	for _, s := range []Spec{
		{Kind: Fixed, Size: 9*mib + 1024, BlockSize: mib},
		{Kind: Dynamic, Size: 9*mib + 1024, BlockSize: mib},
		{Kind: Dynamic, Size: 70 * mib, BlockSize: 32 * mib},
		{Kind: Dynamic, Size: 5 << 30, BlockSize: mib}, // two chunks
	} {
		t.Run(fmt.Sprintf("%s/%d/%dM", s.Kind, s.Size, s.BlockSize/mib), func(t *testing.T) {
			dir := t.TempDir()
			name, raw := filepath.Join(dir, "a.vhdx"), filepath.Join(dir, "a.raw")
			f, err := durable.OS().Create(name)
			if err != nil {
				t.Fatal(err)
			}
			w, err := Create(f, s)
			if err != nil {
				t.Fatal(err)
			}
			model := newMem()
			model.size = s.Size
			for i := range 40 {
				m := randomMutation(r, s.Size, min(s.BlockSize, 2*mib))
				if m.zero {
					model.zero(m.off, m.n)
					err = w.ZeroAt(m.off, m.n)
				} else {
					p := bytes.Repeat([]byte{byte(i + 1)}, int(m.n))
					model.put(p, m.off)
					_, err = w.WriteAt(p, m.off)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			mustClose(t, w)
			model.save(t, raw)
			qemu(t, "qemu-img", "check", "-q", "-f", "vhdx", name)
			if s.Size >= 1<<30 { // to compare all of it takes long
				spotChecks(t, name, model)
				return
			}
			qemu(t, "qemu-img", "compare", "-f", "vhdx", "-F", "raw", name, raw)
			for _, c := range []string{name, raw} {
				format := "raw"
				if c == name {
					format = "vhdx"
				}
				qemu(t, "qemu-io", "-f", format, c, "-c", "write -P 0x99 1536k 3M", "-c", "write -P 0x77 9M 1k")
			}
			qemu(t, "qemu-img", "compare", "-f", "vhdx", "-F", "raw", name, raw)
			m := openOS(t, name)
			want := make([]byte, 512*kib)
			for off := int64(0); off < s.Size; off += int64(len(want)) {
				p, q := make([]byte, min(512*kib, s.Size-off)), want[:min(512*kib, s.Size-off)]
				rawAt(t, raw, q, off)
				if _, err := m.ReadAt(p, off); err != nil || !bytes.Equal(p, q) {
					t.Fatalf("content at %d differs after QEMU wrote: %v", off, err)
				}
			}
		})
	}
}

// spotChecks lets QEMU read where the model has data, and just beside it.
func spotChecks(t *testing.T, name string, model *memFile) {
	t.Helper()
	args := []string{"qemu-io", "-r", "-f", "vhdx", name}
	one := make([]byte, 1)
	for i := range model.chunks {
		off := max(0, i*chunk-512)
		for _, at := range []int64{off, i * chunk} {
			model.ReadAt(one, at)
			args = append(args, "-c", fmt.Sprintf("read -q -P %d %d 512", one[0], at))
		}
		if len(args) > 800 {
			break
		}
	}
	if out := qemu(t, args...); strings.Contains(out, "failed") {
		t.Fatal(out)
	}
}

func rawAt(t testing.TB, name string, p []byte, off int64) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(p, off); err != nil {
		t.Fatal(err)
	}
}
