package vhdx

import (
	"path/filepath"
	"sync"
	"testing"

	"sitrep/internal/durable"
)

// TestConcurrentReads reads one image from several goroutines, and a Writer while it is written to.
func TestConcurrentReads(t *testing.T) {
	f := newMem()
	w := create(t, f, Spec{Size: 40 * mib, BlockSize: mib})
	model := make([]uint32, 40*mib/512)
	for b := range int64(20) {
		mutation{off: 2 * b * mib, n: 64 * kib}.do(t, w, model, uint32(b+1))
	}
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			p := make([]byte, 512)
			for b := range int64(20) {
				off := 2 * b * mib
				if _, err := w.ReadAt(p, off); err != nil {
					t.Error(err)
				}
				if tag, err := readTag(p, off/512); err != nil || tag != uint32(b+1) {
					t.Error(tag, err)
				}
				if _, err := w.Extent(off, 2*mib); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for b := range int64(20) {
		mutation{off: 2*b*mib + mib, n: 4096}.do(t, w, model, 99)
		if b%5 == 0 {
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	wg.Wait()
	mustClose(t, w)
	m := mustOpen(t, f)
	for range 3 {
		wg.Go(func() {
			if got, err := tags(m); err != nil || got[2*mib/512] != 2 {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// BenchmarkRead reads 256 MiB of a dynamic disk in the file system, 1 MiB at a time.
func BenchmarkRead(b *testing.B) {
	const size = 256 * mib
	name := filepath.Join(b.TempDir(), "a.vhdx")
	f, err := durable.OS().Create(name)
	if err != nil {
		b.Fatal(err)
	}
	w, err := Create(f, Spec{Size: size})
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, mib)
	fill(p, 0, 1)
	for off := int64(0); off < size; off += mib {
		if _, err := w.WriteAt(p, off); err != nil {
			b.Fatal(err)
		}
	}
	mustClose(b, w)
	if f, err = durable.OS().Open(name); err != nil {
		b.Fatal(err)
	}
	m, err := Open(f, Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		for off := int64(0); off < size; off += mib {
			if _, err := m.ReadAt(p, off); err != nil {
				b.Fatal(err)
			}
		}
	}
	mustClose(b, m)
}

// BenchmarkExtentSparse walks a sparse disk of 1 TiB with blocks of 1 MiB.
func BenchmarkExtentSparse(b *testing.B) {
	f := newMem()
	mustClose(b, create(b, f, Spec{Size: tib, BlockSize: mib}))
	m := mustOpen(b, f)
	for b.Loop() {
		if e, err := m.Extent(0, tib); err != nil || e.Len != tib {
			b.Fatal(e, err)
		}
	}
}

// BenchmarkOpenHuge opens a disk of 64 TiB with blocks of 1 MiB.
func BenchmarkOpenHuge(b *testing.B) {
	f := newMem()
	mustClose(b, create(b, f, Spec{Size: 64 * tib, BlockSize: mib}))
	b.ReportAllocs()
	for b.Loop() {
		mustOpen(b, f)
	}
}
