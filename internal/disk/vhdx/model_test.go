package vhdx

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"sitrep/internal/block"
)

// seed is the seed of a random test: from SITREP_SEED, else from the clock. It is printed when the test fails.
func seed(t testing.TB) *rand.Rand {
	t.Helper()
	n := uint64(time.Now().UnixNano())
	if s := os.Getenv("SITREP_SEED"); s != "" {
		v, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		n = v
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("SITREP_SEED=%d", n)
		}
	})
	return rand.New(rand.NewPCG(n, 1))
}

// fill makes the content of 512-byte sectors from the number of the write that wrote them; number 0 is all zeros.
func fill(p []byte, sector int64, tag uint32) {
	for i := 0; i < len(p); i += 512 {
		fillSector(p[i:i+512], sector+int64(i/512), tag)
	}
}

// words are the two that a sector is made of, in turn.
func words(sector int64, tag uint32) (a, b uint64) {
	if tag == 0 {
		return 0, 0
	}
	return uint64(sector)*0x9E3779B97F4A7C15 + 1, uint64(tag)
}

func fillSector(p []byte, sector int64, tag uint32) {
	a, b := words(sector, tag)
	for i := 0; i < 512; i += 16 {
		binary.LittleEndian.PutUint64(p[i:], a)
		binary.LittleEndian.PutUint64(p[i+8:], b)
	}
}

// readTag says which write a sector came from; an error when it is of none.
func readTag(p []byte, sector int64) (uint32, error) {
	tag := uint32(binary.LittleEndian.Uint64(p[8:]))
	a, b := words(sector, tag)
	for i := 0; i < 512; i += 16 {
		if binary.LittleEndian.Uint64(p[i:]) != a || binary.LittleEndian.Uint64(p[i+8:]) != b {
			return 0, fmt.Errorf("sector %d is torn or of another place: % x", sector, p[:32])
		}
	}
	return tag, nil
}

// tags reads the whole disk as tags. It trusts Extent for what is zero, after it has looked.
func tags(r Parent) ([]uint32, error) {
	out := make([]uint32, r.Size()/512)
	buf := make([]byte, 256*kib)
	for off := int64(0); off < r.Size(); {
		e, err := r.Extent(off, r.Size()-off)
		if err != nil {
			return nil, err
		}
		if e.Off != off || e.Len <= 0 || e.End() > r.Size() {
			return nil, fmt.Errorf("extent at %d: %v", off, e)
		}
		for ; off < e.End(); off += int64(len(buf)) {
			p := buf[:min(int64(len(buf)), e.End()-off)]
			if n, err := r.ReadAt(p, off); n != len(p) {
				return nil, fmt.Errorf("read at %d: %d of %d bytes: %w", off, n, len(p), err)
			}
			if e.Kind == block.Zero {
				if !block.IsZero(p) {
					return nil, fmt.Errorf("extent %v is said to be zero and is not", e.Range)
				}
				continue
			}
			for i := 0; i < len(p); i += 512 {
				s := (off + int64(i)) / 512
				if out[s], err = readTag(p[i:i+512], s); err != nil {
					return nil, err
				}
			}
		}
		off = e.End()
	}
	return out, nil
}

// sameTags compares the content of a disk with a model.
func sameTags(t testing.TB, r Parent, want []uint32) {
	t.Helper()
	got, err := tags(r)
	if err != nil {
		t.Fatal(err)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("sector %d is of write %d, not of %d", i, got[i], want[i])
		}
	}
}

// mutation is one step of a random run.
type mutation struct {
	off, n int64
	zero   bool
}

// randomMutation picks a range that likes the edges of blocks. Ranges are multiples of 512 bytes.
func randomMutation(r *rand.Rand, size, blockSize int64) mutation {
	var m mutation
	m.off = r.Int64N(size/512) * 512
	switch r.IntN(4) {
	case 0:
		m.off -= m.off % blockSize
	case 1:
		m.off = max(0, m.off-m.off%blockSize-512*r.Int64N(20))
	}
	switch r.IntN(6) {
	case 0:
		m.n = blockSize
	case 1:
		m.n = blockSize + 512*r.Int64N(4000)
	default:
		m.n = 512 * (1 + r.Int64N(64))
	}
	m.n = min(m.n, size-m.off)
	m.zero = r.IntN(4) == 0
	return m
}

// do applies the mutation to a disk and a model.
func (m mutation) do(t testing.TB, w *Writer, model []uint32, tag uint32) {
	t.Helper()
	if m.zero {
		tag = 0
		if err := w.ZeroAt(m.off, m.n); err != nil {
			t.Fatal(err)
		}
	} else {
		p := make([]byte, m.n)
		fill(p, m.off/512, tag)
		if n, err := w.WriteAt(p, m.off); err != nil || n != len(p) {
			t.Fatalf("write %d bytes at %d: %d, %v", m.n, m.off, n, err)
		}
	}
	for i := m.off / 512; i < (m.off+m.n)/512; i++ {
		model[i] = tag
	}
}

func create(t testing.TB, f *memFile, s Spec) *Writer {
	t.Helper()
	w, err := Create(f, s)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// open opens a chain: the first file is the top layer.
func openChain(files ...*memFile) (*Image, error) {
	return Open(files[0], parentsOf(files))
}

func parentsOf(files []*memFile) Options {
	if len(files) == 1 {
		return Options{}
	}
	return Options{OpenParent: func(ParentLocator) (Parent, error) { return openChain(files[1:]...) }}
}

func mustOpen(t testing.TB, files ...*memFile) *Image {
	t.Helper()
	m, err := openChain(files...)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func mustClose(t testing.TB, c interface{ Close() error }) {
	t.Helper()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}
