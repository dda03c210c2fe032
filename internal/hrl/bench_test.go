package hrl_test

import (
	"context"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"testing"

	"sitrep/internal/durable"
	"sitrep/internal/hrl"
	"sitrep/internal/sums"
)

const benchBytes = 166 << 20

// BenchmarkRaw is what a log can be compared with: the same bytes in 2 MiB writes, and a sync.
func BenchmarkRaw(b *testing.B) {
	p := noise(rand.New(rand.NewPCG(1, 1)), 2<<20)
	b.SetBytes(benchBytes)
	for i := range b.N {
		f, err := durable.OS().Create(filepath.Join(b.TempDir(), strconv.Itoa(i)))
		if err != nil {
			b.Fatal(err)
		}
		for off := int64(0); off < benchBytes; off += int64(len(p)) {
			if _, err := f.WriteAt(p, off); err != nil {
				b.Fatal(err)
			}
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

// BenchmarkAppend writes scattered blocks whose sums are known, as a tracker has them.
func BenchmarkAppend(b *testing.B) {
	for _, bs := range []int64{4 << 10, 64 << 10, 1 << 20} {
		b.Run(strconv.FormatInt(bs, 10), func(b *testing.B) {
			p := noise(rand.New(rand.NewPCG(1, 1)), bs)
			known := []sums.Sum{sums.Of(p)}
			b.SetBytes(benchBytes)
			for i := range b.N {
				name := filepath.Join(b.TempDir(), strconv.Itoa(i))
				w := create(b, durable.OS(), name, identity(4*benchBytes, bs))
				for off := int64(0); off < 2*benchBytes; off += 2 * bs {
					if err := w.Append(off, p, known); err != nil {
						b.Fatal(err)
					}
				}
				if _, err := w.Seal(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	for _, bs := range []int64{4 << 10, 64 << 10, 1 << 20} {
		b.Run(strconv.FormatInt(bs, 10), func(b *testing.B) {
			p := noise(rand.New(rand.NewPCG(1, 1)), bs)
			known := []sums.Sum{sums.Of(p)}
			name := filepath.Join(b.TempDir(), "x")
			w := create(b, durable.OS(), name, identity(4*benchBytes, bs))
			for off := int64(0); off < 2*benchBytes; off += 2 * bs {
				if err := w.Append(off, p, known); err != nil {
					b.Fatal(err)
				}
			}
			if _, err := w.Seal(); err != nil {
				b.Fatal(err)
			}
			f, err := durable.OS().Open(name)
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			b.SetBytes(benchBytes)
			for b.Loop() {
				l, err := hrl.Open(f)
				if err != nil {
					b.Fatal(err)
				}
				if err := l.Verify(context.Background()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
