package vhdx

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// history is what a run did: to the file, and to the disk.
type history struct {
	base   *memFile // the file before
	parent []*memFile
	ops    []op
	start  []uint32 // content before
	events []event
}

// event is a write of the disk, or a Flush that returned, at a moment of the file's history.
type event struct {
	at    int // operations of the file before it (of a write) or when it returned (of a flush)
	flush bool
	m     mutation
	tag   uint32
}

// run writes at random and records.
func (h *history) run(t *testing.T, r *rand.Rand, steps int) {
	f := h.base.clone()
	f.ops = &h.ops
	w, err := OpenRW(f, parentsOf(append([]*memFile{f}, h.parent...)))
	if err != nil {
		t.Fatal(err)
	}
	model := append([]uint32(nil), h.start...)
	for i := range steps {
		if r.IntN(4) == 0 {
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			h.events = append(h.events, event{at: len(h.ops), flush: true})
			continue
		}
		m, tag := randomMutation(r, w.Size(), w.BlockSize()), uint32(1000+i)
		h.events = append(h.events, event{at: len(h.ops), m: m, tag: tag})
		m.do(t, w, model, tag)
	}
	mustClose(t, w)
	h.events = append(h.events, event{at: len(h.ops), flush: true})
	sameTags(t, mustOpen(t, append([]*memFile{f}, h.parent...)...), model)
}

// allowed returns, of every sector, which writes it may be of when the file's history ends after cut operations.
func (h *history) allowed(cut int) [][]uint32 {
	may := make([][]uint32, len(h.start))
	for s, tag := range h.start {
		may[s] = []uint32{tag}
	}
	for _, e := range h.events {
		if e.at > cut || (!e.flush && e.at == cut) {
			break
		}
		if e.flush {
			for s := range may {
				may[s] = may[s][len(may[s])-1:]
			}
			continue
		}
		tag := e.tag
		if e.m.zero {
			tag = 0
		}
		for s := e.m.off / 512; s < (e.m.off+e.m.n)/512; s++ {
			may[s] = append(may[s][:len(may[s]):len(may[s])], tag)
		}
	}
	return may
}

// left is the file after a crash after cut operations: mode 0 is a kill, which loses nothing; in mode 1 a power cut loses
// all that was not synced; in the other modes it loses some of it.
func (h *history) left(cut, mode int, r *rand.Rand) *memFile {
	synced := 0
	for i, o := range h.ops[:cut] {
		if o.kind == 's' {
			synced = i
		}
	}
	f := h.base.clone()
	for i, o := range h.ops[:cut] {
		switch {
		case i <= synced || mode == 0:
			f.play(o)
		case mode > 1:
			f.playSome(o, r)
		}
	}
	return f
}

// check looks at what a crash left, in memory and after a replay into the file: both have to be the same valid image.
func (h *history) check(f *memFile, may [][]uint32) error {
	files := append([]*memFile{f}, h.parent...)
	m, err := openChain(files...)
	if err != nil {
		return err
	}
	inMemory, err := tags(m)
	if err != nil {
		return err
	}
	for s, tag := range inMemory {
		ok := false
		for _, a := range may[s] {
			ok = ok || a == tag
		}
		if !ok {
			return fmt.Errorf("sector %d is of write %d; allowed: %v", s, tag, may[s])
		}
	}
	w, err := OpenRW(f, parentsOf(files))
	if err != nil {
		return fmt.Errorf("open for writing: %w", err)
	}
	replayed, err := tags(w)
	if err != nil {
		return fmt.Errorf("after the replay: %w", err)
	}
	for s := range replayed {
		if replayed[s] != inMemory[s] {
			return fmt.Errorf("sector %d differs after the replay", s)
		}
	}
	return w.Close()
}

func crashSpec(sector int64) Spec {
	return Spec{Size: 3*mib + 64*kib, BlockSize: mib, LogicalSectorSize: sector}
}

// TestCrash cuts the history of a run at every operation on the file.
func TestCrash(t *testing.T) {
	for _, kind := range []Kind{Fixed, Dynamic, Differencing} {
		for _, sector := range []int64{512, 4096} {
			t.Run(fmt.Sprintf("%s/%d", kind, sector), func(t *testing.T) {
				r := seed(t)
				h := newHistory(t, r, kind, sector)
				h.run(t, r, 16)
				for cut := range len(h.ops) + 1 {
					may := h.allowed(cut)
					for mode := range 4 {
						if err := h.check(h.left(cut, mode, r), may); err != nil {
							t.Fatalf("crash after %d of %d operations, mode %d: %v", cut, len(h.ops), mode, err)
						}
					}
				}
			})
		}
	}
}

func newHistory(t *testing.T, r *rand.Rand, kind Kind, sector int64) *history {
	s := crashSpec(sector)
	h := &history{start: make([]uint32, s.Size/512)}
	if kind != Differencing {
		s.Kind = kind
	}
	h.base = h.layer(t, r, s, 1)
	if kind == Differencing {
		h.parent = []*memFile{h.base}
		h.base = h.layer(t, r, Spec{Kind: Differencing, BlockSize: mib, Parent: mustOpen(t, h.base), RelativePath: `.\p.vhdx`}, 100)
	}
	return h
}

// layer makes a disk with a few writes on it.
func (h *history) layer(t *testing.T, r *rand.Rand, s Spec, tag uint32) *memFile {
	f := newMem()
	w := create(t, f, s)
	for i := range uint32(4) {
		randomMutation(r, w.Size(), w.BlockSize()).do(t, w, h.start, tag+i)
	}
	mustClose(t, w)
	return f
}

// TestCrashInReplay cuts the replay itself at every operation.
func TestCrashInReplay(t *testing.T) {
	r := seed(t)
	h := newHistory(t, r, Differencing, 512)
	h.run(t, r, 8)
	for cut := range h.ops {
		dirty, may := h.left(cut, 0, r), h.allowed(cut)
		again := &history{base: dirty, parent: h.parent}
		f := dirty.clone()
		f.ops = &again.ops
		w, err := OpenRW(f, parentsOf(append([]*memFile{f}, h.parent...)))
		if err != nil {
			t.Fatal(err)
		}
		mustClose(t, w)
		for second := range again.ops {
			for mode := range 3 {
				if err := h.check(again.left(second, mode, r), may); err != nil {
					t.Fatalf("crash after %d operations, then after %d of the replay, mode %d: %v", cut, second, mode, err)
				}
			}
		}
	}
}

// TestCrashInCreate checks that a disk whose creation was cut is no VHDX, or a whole one.
func TestCrashInCreate(t *testing.T) {
	r := seed(t)
	var ops []op
	f := newMem()
	f.ops = &ops
	create(t, f, Spec{Kind: Fixed, Size: 3 * mib, BlockSize: mib})
	whole := 0
	for cut := range len(ops) + 1 {
		for mode := range 5 {
			h := history{base: newMem(), ops: ops}
			f := h.left(cut, mode, r)
			head := make([]byte, 8)
			f.ReadAt(head, 0)
			m, err := openChain(f)
			if err != nil && string(head) == identifierMagic {
				t.Fatalf("after %d operations, mode %d: %v", cut, mode, err)
			}
			if err == nil {
				whole++
				sameTags(t, m, make([]uint32, 3*mib/512))
			}
		}
	}
	if whole == 0 {
		t.Fatal("never whole")
	}
}

// TestIOErrors makes every operation fail in turn: the error is returned, what is left is a valid image.
func TestIOErrors(t *testing.T) {
	r := seed(t)
	h := newHistory(t, r, Differencing, 512)
	h.run(t, r, 12)
	for k := 1; k <= len(h.ops); k++ {
		f := h.base.clone()
		f.failAt = k
		files := append([]*memFile{f}, h.parent...)
		w, err := OpenRW(f, parentsOf(files))
		if err != nil {
			t.Fatal(err)
		}
		var failed error
		for _, e := range h.events {
			switch {
			case e.flush:
				err = w.Flush()
			case e.m.zero:
				err = w.ZeroAt(e.m.off, e.m.n)
			default:
				p := make([]byte, e.m.n)
				fill(p, e.m.off/512, e.tag)
				_, err = w.WriteAt(p, e.m.off)
			}
			if err != nil {
				failed = err
			}
		}
		if err := w.Close(); err != nil {
			failed = err
		}
		if failed == nil {
			t.Fatalf("operation %d failed and nobody said so", k)
		}
		f.failAt = 0
		m, err := openChain(files...)
		if err != nil {
			t.Fatalf("after operation %d failed: %v", k, err)
		}
		if _, err := tags(m); err != nil {
			t.Fatalf("after operation %d failed: %v", k, err)
		}
	}
}

// TestCrashQEMU lets qemu-img replay and judge some of what a crash leaves.
func TestCrashQEMU(t *testing.T) {
	needQEMU(t)
	r := seed(t)
	h := newHistory(t, r, Dynamic, 512)
	h.run(t, r, 25)
	dir := t.TempDir()
	tried := 0
	for cut := range h.ops {
		f := h.left(cut, 0, r)
		head, _, err := (&view{f: f, real: f.size, size: f.size}).readHeader()
		if err != nil {
			t.Fatal(err)
		}
		if head.logGUID.IsZero() || h.ops[max(cut-1, 0)].kind != 's' || tried == 12 {
			continue
		}
		tried++
		want, err := tags(mustOpen(t, f))
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, "cut.vhdx")
		f.save(t, name)
		qemu(t, "qemu-img", "check", "-q", "-r", "all", "-f", "vhdx", name)
		raw := filepath.Join(dir, "cut.raw")
		qemu(t, "qemu-img", "convert", "-f", "vhdx", "-O", "raw", name, raw)
		got, err := os.ReadFile(raw)
		if err != nil {
			t.Fatal(err)
		}
		for s := range want {
			if tag := uint32(binary.LittleEndian.Uint64(got[s*512+8:])); tag != want[s] {
				t.Fatalf("cut %d: sector %d is of write %d after qemu's replay, of %d after ours", cut, s, tag, want[s])
			}
		}
	}
	if tried < 3 {
		t.Fatalf("only %d dirty logs were tried", tried)
	}
}
