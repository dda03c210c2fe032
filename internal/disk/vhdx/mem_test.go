package vhdx

import (
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"sync"
	"testing"

	"sitrep/internal/block"
	"sitrep/internal/durable"
)

const chunk = 4096

// memFile is a sparse file in memory. It can record what is done to it, so that a test can look at what a crash at any
// moment would have left.
type memFile struct {
	mu     sync.Mutex
	chunks map[int64][]byte // never changed in place: copies of the file share them
	size   int64
	ops    *[]op // nil: no recording
	reads  int   // ReadAt calls
	failAt int   // operations that change something left before every one fails; 0: never
}

type op struct {
	kind byte // 'w'rite, 'z'ero, 't'runcate, 's'ync
	off  int64
	n    int64
	data []byte
}

var errInjected = errors.New("injected")

func newMem() *memFile { return &memFile{chunks: map[int64][]byte{}} }

func (f *memFile) clone() *memFile {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &memFile{chunks: maps.Clone(f.chunks), size: f.size}
}

func (f *memFile) Name() string { return "mem.vhdx" }
func (f *memFile) Close() error { return nil }
func (f *memFile) Size() (int64, error) {
	return f.size, nil
}

func (f *memFile) record(o op) error {
	if f.failAt > 0 {
		if f.failAt--; f.failAt == 0 {
			f.failAt = 1
			return errInjected
		}
	}
	if f.ops != nil {
		*f.ops = append(*f.ops, o)
	}
	return nil
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.reads++
	n := int(min(int64(len(p)), max(f.size-off, 0)))
	for done := 0; done < n; {
		at := off + int64(done)
		k := min(n-done, int(chunk-at%chunk))
		if c := f.chunks[at/chunk]; c != nil {
			copy(p[done:done+k], c[at%chunk:])
		} else {
			clear(p[done : done+k])
		}
		done += k
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) put(p []byte, off int64) {
	f.size = max(f.size, off+int64(len(p)))
	for len(p) > 0 {
		k := min(len(p), int(chunk-off%chunk))
		c := make([]byte, chunk)
		copy(c, f.chunks[off/chunk])
		copy(c[off%chunk:], p[:k])
		f.chunks[off/chunk] = c
		p, off = p[k:], off+int64(k)
	}
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.record(op{kind: 'w', off: off, n: int64(len(p)), data: append([]byte(nil), p...)}); err != nil {
		return 0, err
	}
	f.put(p, off)
	return len(p), nil
}

func (f *memFile) zero(off, n int64) {
	n = min(n, f.size-off)
	for n > 0 {
		k := min(n, chunk-off%chunk)
		if c := f.chunks[off/chunk]; k == chunk {
			delete(f.chunks, off/chunk)
		} else if c != nil {
			c = append([]byte(nil), c...)
			clear(c[off%chunk:][:k])
			f.chunks[off/chunk] = c
		}
		off, n = off+k, n-k
	}
}

func (f *memFile) ZeroAt(off, n int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.record(op{kind: 'z', off: off, n: n}); err != nil {
		return err
	}
	f.zero(off, n)
	return nil
}

func (f *memFile) resize(size int64) {
	if size < f.size {
		f.zero(size, f.size-size)
	}
	f.size = size
}

func (f *memFile) Truncate(size int64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.record(op{kind: 't', n: size}); err != nil {
		return err
	}
	f.resize(size)
	return nil
}

func (f *memFile) Sync() error { return f.record(op{kind: 's'}) }

func (f *memFile) Stamp() (durable.Stamp, error) { return durable.Stamp{}, nil }

func (f *memFile) Extent(off, n int64) (block.Extent, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	kind := func(at int64) block.Kind {
		if f.chunks[at/chunk] == nil {
			return block.Zero
		}
		return block.Data
	}
	e := block.Extent{Range: block.Range{Off: off}, Kind: kind(off)}
	for e.Len < n && kind(e.End()) == e.Kind {
		e.Len = min(n, e.Len+chunk-e.End()%chunk)
	}
	return e, nil
}

// save writes the file to the disk, sparse.
func (f *memFile) save(t testing.TB, name string) {
	t.Helper()
	out, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := out.Truncate(f.size); err != nil {
		t.Fatal(err)
	}
	for i, c := range f.chunks {
		n := min(chunk, f.size-i*chunk)
		if n <= 0 || block.IsZero(c) {
			continue
		}
		if _, err := out.WriteAt(c[:n], i*chunk); err != nil {
			t.Fatal(err)
		}
	}
}

// memOf is a memory copy of some bytes.
func memOf(p []byte) *memFile {
	f := newMem()
	for off := 0; off < len(p); off += chunk {
		if c := p[off:min(off+chunk, len(p))]; !block.IsZero(c) {
			f.put(c, int64(off))
		}
	}
	f.size = int64(len(p))
	return f
}

// bytes is the whole content.
func (f *memFile) bytes() []byte {
	p := make([]byte, f.size)
	f.ReadAt(p, 0)
	return p
}

// play applies an operation as it was done.
func (f *memFile) play(o op) {
	switch o.kind {
	case 'w':
		f.put(o.data, o.off)
	case 'z':
		f.zero(o.off, o.n)
	case 't':
		f.resize(o.n)
	}
}

// playSome applies a random subset of the sectors of an operation: what a power cut may leave of it.
func (f *memFile) playSome(o op, r *rand.Rand) {
	switch o.kind {
	case 't':
		if r.IntN(2) == 0 {
			f.play(o)
		}
	case 'w':
		for i := int64(0); i < o.n; i += 512 {
			if r.IntN(2) == 0 {
				f.put(o.data[i:min(i+512, o.n)], o.off+i)
			}
		}
	case 'z':
		for i := int64(0); i < o.n; i += chunk {
			if r.IntN(2) == 0 {
				f.zero(o.off+i, min(chunk, o.n-i))
			}
		}
	}
}
