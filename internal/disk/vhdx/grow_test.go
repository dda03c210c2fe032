package vhdx

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
)

// bytesOf is the content of a disk.
func bytesOf(t *testing.T, m *Image) []byte {
	t.Helper()
	p := make([]byte, m.Size())
	if _, err := m.ReadAt(p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestGrow makes disks larger again and again, writes to them in between, and lets qemu-img judge.
func TestGrow(t *testing.T) {
	needQEMU(t)
	r := seed(t)
	f := newMem()
	w := create(t, f, Spec{Kind: Dynamic, Size: 2*mib + 4608, BlockSize: mib})
	want := make([]byte, w.Size())
	for range 6 {
		for range 5 {
			p := bytes.Repeat([]byte{byte(1 + r.IntN(255))}, 512*(1+r.IntN(2000)))
			off := int64(r.IntN(len(want))) / 512 * 512
			p = p[:min(int64(len(p)), int64(len(want))-off)]
			if _, err := w.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
			copy(want[off:], p)
		}
		if _, err := w.WriteAt([]byte("end"), w.Size()-3); err != nil { // so that the last block is there
			t.Fatal(err)
		}
		copy(want[len(want)-3:], "end")
		want = append(want, make([]byte, 512*(1+r.IntN(5000)))...)
		if err := w.Grow(int64(len(want))); err != nil {
			t.Fatal(err)
		}
		if w.Size() != int64(len(want)) {
			t.Fatalf("%d bytes", w.Size())
		}
		if r.IntN(2) == 0 {
			mustClose(t, w)
			var err error
			if w, err = OpenRW(f, Options{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	mustClose(t, w)
	if !bytes.Equal(bytesOf(t, mustOpen(t, f)), want) {
		t.Fatal("content differs")
	}
	dir := t.TempDir()
	name, raw := filepath.Join(dir, "d.vhdx"), filepath.Join(dir, "d.raw")
	f.save(t, name)
	if err := os.WriteFile(raw, want, 0o600); err != nil {
		t.Fatal(err)
	}
	qemu(t, "qemu-img", "check", "-q", "-f", "vhdx", name)
	qemu(t, "qemu-img", "compare", "-q", "-f", "raw", "-F", "vhdx", raw, name)
}

// TestGrowRefused: what cannot grow says so, and how far it could.
func TestGrowRefused(t *testing.T) {
	for _, c := range []struct {
		spec Spec
		to   int64
	}{
		{Spec{Kind: Fixed, Size: 2 * mib, BlockSize: mib}, 4 * mib},
		{Spec{Kind: Dynamic, Size: 2 * mib, BlockSize: mib}, mib},
		{Spec{Kind: Dynamic, Size: 2 * mib, BlockSize: mib}, 2*mib + 100},
		{Spec{Kind: Dynamic, Size: 2 * mib, BlockSize: mib}, 1 << 40},
	} {
		w := create(t, newMem(), c.spec)
		if err := w.Grow(c.to); !fault.Is(err, fault.DiskUnsupported) {
			t.Errorf("%+v to %d: %v", c.spec, c.to, err)
		}
		if w.Size() != c.spec.Size {
			t.Errorf("%d bytes", w.Size())
		}
		mustClose(t, w)
	}
}

// TestCrashInGrow cuts the power at every operation: the disk has its old size or the new one, and its content.
func TestCrashInGrow(t *testing.T) {
	base := crashfs.New()
	f, err := base.Create("/d")
	if err != nil {
		t.Fatal(err)
	}
	w, err := Create(f, Spec{Kind: Dynamic, Size: 2*mib + 4608, BlockSize: mib})
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 4*mib)
	r := rand.New(rand.NewPCG(1, 2))
	for i := int64(0); i < w.Size(); i += 700 {
		want[i] = byte(r.Uint32())
	}
	if _, err := w.WriteAt(want[:w.Size()], 0); err != nil {
		t.Fatal(err)
	}
	mustClose(t, w)
	if err := base.SyncDir("/"); err != nil {
		t.Fatal(err)
	}
	sizes := map[int64]int{}
	for k := 1; ; k++ {
		fs := base.AfterCrash(crashfs.KeepAll, 0)
		f, err := fs.OpenRW("/d")
		if err != nil {
			t.Fatal(err)
		}
		fs.CutAfter(k)
		w, err := OpenRW(f, Options{})
		if err == nil {
			if err = w.Grow(4 * mib); err == nil {
				err = w.Close()
			}
		}
		for _, policy := range crashfs.Policies() {
			g, err := fs.AfterCrash(policy, uint64(k)).Open("/d")
			if err != nil {
				t.Fatal(err)
			}
			m, err := Open(g, Options{})
			if err != nil {
				t.Fatalf("cut at %d, then %s: %v", k, policy, err)
			}
			if got := bytesOf(t, m); !bytes.Equal(got, want[:len(got)]) || len(got) != 2*mib+4608 && len(got) != 4*mib {
				t.Fatalf("cut at %d, then %s: %d bytes, or other content", k, policy, len(got))
			}
			sizes[m.Size()]++
		}
		if err == nil {
			break
		}
	}
	if len(sizes) != 2 {
		t.Errorf("sizes %v", sizes)
	}
}
