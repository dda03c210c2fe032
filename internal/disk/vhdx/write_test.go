package vhdx

import (
	"bytes"
	"fmt"
	"testing"

	"sitrep/internal/block"
)

// TestRandomWrites writes to disks of every kind at random, closes and opens them again now and then, and compares with
// a model. Children are put on top of what was written, three layers deep.
func TestRandomWrites(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		for _, bs := range []int64{mib, 32 * mib} {
			for _, kind := range []Kind{Fixed, Dynamic} {
				t.Run(fmt.Sprintf("%d/%dMiB/%s", sector, bs/mib, kind), func(t *testing.T) {
					testRandomWrites(t, Spec{Kind: kind, Size: 3*bs + 5*64*kib, BlockSize: bs, LogicalSectorSize: sector})
				})
			}
		}
	}
}

func testRandomWrites(t *testing.T, s Spec) {
	r := seed(t)
	var chain []*memFile
	model := make([]uint32, s.Size/512)
	tag := uint32(1)
	for layer := range 3 {
		f := newMem()
		if layer > 0 {
			s = Spec{Kind: Differencing, BlockSize: s.BlockSize, Parent: mustOpen(t, chain...), RelativePath: `.\p.vhdx`}
		}
		w := create(t, f, s)
		chain = append([]*memFile{f}, chain...)
		before := append([]uint32(nil), model...)
		changed := new(block.Set)
		for i := range int(60*mib/s.BlockSize + 10) {
			m := randomMutation(r, w.Size(), w.BlockSize())
			m.do(t, w, model, tag)
			changed.Add(block.Range{Off: m.off, Len: m.n})
			tag++
			switch r.IntN(12) {
			case 0:
				if err := w.Flush(); err != nil {
					t.Fatal(err)
				}
			case 1:
				mustClose(t, w)
				sameTags(t, mustOpen(t, chain...), model)
				var err error
				if w, err = OpenRW(f, parentsOf(chain)); err != nil {
					t.Fatal(err)
				}
			case 2:
				sameTags(t, w, model)
			}
			if i == 8 {
				randomReads(t, w, model, r.Int64N(1000))
			}
		}
		sameTags(t, w, model)
		mustClose(t, w)
		m := mustOpen(t, chain...)
		sameTags(t, m, model)
		if layer > 0 {
			checkLayer(t, m, changed, before, model)
		}
	}
}

// randomReads reads odd ranges and compares.
func randomReads(t *testing.T, w *Writer, model []uint32, odd int64) {
	t.Helper()
	for off := odd; off < w.Size(); off += 3*mib + 7*odd + 1 {
		p := make([]byte, min(200*kib+odd, w.Size()-off))
		if _, err := w.ReadAt(p, off); err != nil {
			t.Fatal(err)
		}
		want := make([]byte, 512*(int64(len(p))/512+2))
		for i := range int64(len(want) / 512) {
			if s := off/512 + i; s < int64(len(model)) {
				fillSector(want[512*i:][:512], s, model[s])
			}
		}
		if !bytes.Equal(p, want[off%512:][:len(p)]) {
			t.Fatalf("%d bytes at %d differ", len(p), off)
		}
	}
}

// checkLayer checks that a child holds at least what was written to it, and no sector besides those of the whole blocks
// and sectors that were touched.
func checkLayer(t *testing.T, m *Image, changed *block.Set, before, after []uint32) {
	t.Helper()
	held := new(block.Set)
	for off := int64(0); off < m.Size(); {
		run, h, err := m.LayerExtent(off, m.Size()-off)
		if err != nil || run.Off != off || run.Len <= 0 {
			t.Fatal(run, err)
		}
		if h {
			held.Add(run)
		}
		off = run.End()
	}
	for r := range changed.All() {
		if run, ok := held.Next(r); !ok || run != r {
			t.Fatalf("%v was written, but the layer holds %v of it", r, run)
		}
	}
	allowed := new(block.Set)
	for r := range changed.All() {
		allowed.Add(r.Outward(m.LogicalSectorSize()))
	}
	for r := range held.All() {
		for off := r.Off; off < r.End(); off += 512 {
			if before[off/512] != after[off/512] && !changed.Contains(off) {
				t.Fatalf("offset %d changed without being written", off)
			}
		}
		if run, ok := allowed.Next(r); !ok || (run != r && run.Len < 1) {
			t.Fatalf("the layer holds %v, of which nothing was written", r)
		}
	}
}

// TestUnaligned writes byte ranges that are no whole sectors, on a child with sectors of 4 KiB.
func TestUnaligned(t *testing.T) {
	base := newMem()
	w := create(t, base, Spec{Size: 4 * mib, BlockSize: mib, LogicalSectorSize: 4096})
	model := bytes.Repeat([]byte("parent.."), 4*mib/8)
	if _, err := w.WriteAt(model, 0); err != nil {
		t.Fatal(err)
	}
	mustClose(t, w)
	f := newMem()
	w = create(t, f, Spec{Kind: Differencing, BlockSize: mib, Parent: mustOpen(t, base)})
	r := seed(t)
	for i := range 200 {
		off := r.Int64N(4*mib - 9000)
		n := 1 + r.Int64N(9000)
		p := bytes.Repeat([]byte{byte(i + 1)}, int(n))
		var err error
		if i%5 == 0 {
			clear(p)
			err = w.ZeroAt(off, n)
		} else {
			_, err = w.WriteAt(p, off)
		}
		if err != nil {
			t.Fatal(err)
		}
		copy(model[off:], p)
	}
	mustClose(t, w)
	got := make([]byte, 4*mib)
	if _, err := mustOpen(t, f, base).ReadAt(got, 0); err != nil || !bytes.Equal(got, model) {
		t.Fatal("content differs", err)
	}
}

// TestSpaceReused checks that a disk that is zeroed and written again and again does not grow without end.
func TestSpaceReused(t *testing.T) {
	f := newMem()
	w := create(t, f, Spec{Size: 16 * mib, BlockSize: mib})
	p := make([]byte, mib)
	fill(p, 0, 7)
	for i := range 100 {
		if _, err := w.WriteAt(p, int64(i%16)*mib); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := w.ZeroAt(int64(i%16)*mib, mib); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, w)
	if f.size > 8*mib {
		t.Fatalf("the file has %d bytes", f.size)
	}
	if e, err := mustOpen(t, f).Extent(0, 16*mib); err != nil || e.Kind != block.Zero || e.Len != 16*mib {
		t.Fatal(e, err)
	}
}

// TestStale checks that space that was used before does not show through in a block that is written in part.
func TestStale(t *testing.T) {
	f := newMem()
	w := create(t, f, Spec{Size: 8 * mib, BlockSize: 2 * mib})
	model := make([]uint32, 8*mib/512)
	mutation{off: 0, n: 4 * mib}.do(t, w, model, 1)
	mutation{off: 0, n: 4 * mib, zero: true}.do(t, w, model, 0)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	mutation{off: 5 * mib, n: 512}.do(t, w, model, 2)
	sameTags(t, w, model)
	mustClose(t, w)
	sameTags(t, mustOpen(t, f), model)
}

// TestUntouched checks that a disk that is opened for writing and not written to does not change, so that its children
// stay valid.
func TestUntouched(t *testing.T) {
	f := newMem()
	mustClose(t, create(t, f, Spec{Size: 8 * mib}))
	before := f.bytes()
	w, err := OpenRW(f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.ZeroAt(0, 8*mib); err != nil { // is zero already
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, w)
	if !bytes.Equal(before, f.bytes()) {
		t.Fatal("the file changed")
	}
}

// TestGUIDs checks which GUIDs change with a write.
func TestGUIDs(t *testing.T) {
	f := newMem()
	mustClose(t, create(t, f, Spec{Size: 8 * mib}))
	before := mustOpen(t, f)
	w, err := OpenRW(f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(make([]byte, 512), 0); err != nil {
		t.Fatal(err)
	}
	h, _, err := (&view{f: f, real: f.size, size: f.size}).readHeader()
	if err != nil || h.logGUID.IsZero() {
		t.Fatal("no LogGuid while it is written to", err)
	}
	mustClose(t, w)
	after := mustOpen(t, f)
	if after.head.dataWriteGUID == before.head.dataWriteGUID || after.head.fileWriteGUID == before.head.fileWriteGUID {
		t.Fatal("the GUIDs did not change")
	}
	if !after.head.logGUID.IsZero() {
		t.Fatal("the log is still in use after Close")
	}
	p1, p2 := make([]byte, headerSize), make([]byte, headerSize)
	f.ReadAt(p1, header1At)
	f.ReadAt(p2, header2At)
	h1, ok1 := decodeHeader(p1)
	h2, ok2 := decodeHeader(p2)
	h1.sequence, h2.sequence = 0, 0
	if !ok1 || !ok2 || h1 != h2 {
		t.Fatal("the two headers do not say the same")
	}
}

// TestCommitsByItself changes more table sectors than one entry of the log takes, without a Flush, and leaves the log
// in use.
func TestCommitsByItself(t *testing.T) {
	f := newMem()
	w := create(t, f, Spec{Size: 1 * tib, BlockSize: mib})
	p := make([]byte, 512)
	for i := range int64(300) {
		if _, err := w.WriteAt(fillOne(p, i), i*700*mib); err != nil {
			t.Fatal(err)
		}
		if w.dirty > maxLogged {
			t.Fatal("too much for one entry", w.dirty)
		}
	}
	if w.log.sequence < 3 {
		t.Fatal("no commit", w.log.sequence)
	}
	m := mustOpen(t, f) // as after a kill: what was committed is there
	found := 0
	for i := range int64(300) {
		if _, err := m.ReadAt(p, i*700*mib); err != nil {
			t.Fatal(err)
		}
		if !block.IsZero(p) {
			found++
		}
	}
	if found < 200 || found == 300 {
		t.Fatal(found)
	}
	mustClose(t, w)
	m = mustOpen(t, f)
	q := make([]byte, 512)
	for i := range int64(300) {
		if _, err := m.ReadAt(p, i*700*mib); err != nil || !bytes.Equal(p, fillOne(q, i)) {
			t.Fatal(i, err)
		}
	}
}

func fillOne(p []byte, i int64) []byte {
	fillSector(p, i, uint32(i+1))
	return p
}

// TestLargeBlocks writes to a child with the largest blocks, whose bitmaps span pages.
func TestLargeBlocks(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		parent, child := newMem(), newMem()
		const size = 600 * mib
		mustClose(t, create(t, parent, Spec{Size: size, BlockSize: 256 * mib, LogicalSectorSize: sector}))
		w := create(t, child, Spec{Kind: Differencing, BlockSize: 256 * mib, Parent: mustOpen(t, parent)})
		want := new(block.Set)
		r := seed(t)
		for range 60 {
			run := block.Range{Off: r.Int64N(size/4096) * 4096, Len: 4096 * (1 + r.Int64N(1000))}.Intersect(block.Range{Len: size})
			if _, err := w.WriteAt(bytes.Repeat([]byte{1}, int(run.Len)), run.Off); err != nil {
				t.Fatal(err)
			}
			want.Add(run)
		}
		mustClose(t, w)
		m := mustOpen(t, child, parent)
		held := new(block.Set)
		for off := int64(0); off < size; {
			run, h, err := m.LayerExtent(off, size-off)
			if err != nil {
				t.Fatal(err)
			}
			if h {
				held.Add(run)
			}
			off = run.End()
		}
		if fmt.Sprint(held) != fmt.Sprint(want) {
			t.Fatalf("held %v, written %v", held, want)
		}
		p := make([]byte, 1)
		for run := range want.All() {
			for _, off := range []int64{run.Off, run.End() - 1} {
				if _, err := m.ReadAt(p, off); err != nil || p[0] != 1 {
					t.Fatal(off, p, err)
				}
			}
		}
	}
}

// TestGarbage writes into blocks whose place, or whose bits, hold what was left over from an earlier life.
func TestGarbage(t *testing.T) {
	parent, child := newMem(), newMem()
	model := make([]uint32, 4*mib/512)
	w := create(t, parent, Spec{Size: 4 * mib, BlockSize: mib})
	mutation{off: 0, n: 3 * mib}.do(t, w, model, 1)
	mustClose(t, w)
	bat := mustOpen(t, parent).geo.bat.Off
	parent.put(make([]byte, 16), bat) // the first two blocks are gone, their bytes are still in the file
	mutation{off: 0, n: 2 * mib, zero: true}.model(model)
	w, err := OpenRW(parent, Options{})
	if err != nil {
		t.Fatal(err)
	}
	before := parent.size
	mutation{off: 5 * kib, n: kib}.do(t, w, model, 2)
	mutation{off: 3*mib + kib, n: kib}.do(t, w, model, 3)
	sameTags(t, w, model)
	mustClose(t, w)
	sameTags(t, mustOpen(t, parent), model)
	if parent.size != before {
		t.Fatal("the free space was not used")
	}

	w = create(t, child, Spec{Kind: Differencing, BlockSize: mib, Parent: mustOpen(t, parent)})
	below := append([]uint32(nil), model...)
	mutation{off: 0, n: mib / 2}.do(t, w, model, 4)
	mustClose(t, w)
	child.put(make([]byte, 8), bat) // its bits are still set
	model = below
	if w, err = OpenRW(child, parentsOf([]*memFile{child, parent})); err != nil {
		t.Fatal(err)
	}
	sameTags(t, w, model)
	mutation{off: mib - 512, n: 512}.do(t, w, model, 5)
	sameTags(t, w, model)
	mustClose(t, w)
	sameTags(t, mustOpen(t, child, parent), model)
}
