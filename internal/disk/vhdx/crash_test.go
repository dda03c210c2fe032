package vhdx

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
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
	var script []event
	size := int64(len(h.start)) * 512
	for i := range steps {
		if r.IntN(4) == 0 {
			script = append(script, event{flush: true})
			continue
		}
		script = append(script, event{m: randomMutation(r, size, mib), tag: uint32(1000 + i)})
	}
	h.play(t, script)
}

// play does what the script says and records.
func (h *history) play(t *testing.T, script []event) {
	t.Helper()
	f := h.base.clone()
	f.ops = &h.ops
	w, err := OpenRW(f, parentsOf(append([]*memFile{f}, h.parent...)))
	if err != nil {
		t.Fatal(err)
	}
	model := append([]uint32(nil), h.start...)
	for _, e := range script {
		e.at = len(h.ops)
		if e.flush {
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			e.at = len(h.ops)
		} else {
			e.m.do(t, w, model, e.tag)
		}
		h.events = append(h.events, e)
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

// The ways of a crash: a kill loses nothing; a power cut loses all that was not synced, or all but the last operation, or
// all but the first, or, in lostSome, some sectors.
const (
	killed = iota
	lostAll
	lostAllButLast
	lostAllButFirst
	lostMiddle // all but the first and the last
	lostSome
)

// syncedBefore is the last sync among the first cut operations, or -1.
func (h *history) syncedBefore(cut int) int {
	for i := cut - 1; i >= 0; i-- {
		if h.ops[i].kind == 's' {
			return i
		}
	}
	return -1
}

// ways are the modes that make a difference after cut operations.
func (h *history) ways(cut int) []int {
	switch cut - 1 - h.syncedBefore(cut) {
	case 0:
		return []int{killed}
	case 1:
		return []int{killed, lostAll, lostSome, lostSome}
	case 2:
		return []int{killed, lostAll, lostAllButLast, lostAllButFirst, lostSome, lostSome}
	}
	return []int{killed, lostAll, lostAllButLast, lostAllButFirst, lostMiddle, lostSome, lostSome}
}

// left is the file after a crash after cut operations.
func (h *history) left(cut, mode int, r *rand.Rand) *memFile {
	synced := h.syncedBefore(cut)
	f := h.base.clone()
	for i, o := range h.ops[:cut] {
		switch {
		case i <= synced, mode == killed, (mode == lostAllButLast || mode == lostMiddle) && i == cut-1,
			(mode == lostAllButFirst || mode == lostMiddle) && i == synced+1:
			f.play(o)
		case mode == lostSome:
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
	if before := (&view{f: h.base, real: h.base.size, size: h.base.size}); !slices.Equal(inMemory, h.start) {
		if old, _, err := before.readHeader(); err != nil || old.dataWriteGUID == m.DataWriteGUID() {
			return fmt.Errorf("the content changed, its DataWriteGuid did not (%v)", err)
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

// checkAll cuts the history at every operation, in every way.
func (h *history) checkAll(t *testing.T, r *rand.Rand) {
	t.Helper()
	for cut := range len(h.ops) + 1 {
		may := h.allowed(cut)
		for _, mode := range h.ways(cut) {
			if err := h.check(h.left(cut, mode, r), may); err != nil {
				t.Fatalf("crash after %d of %d operations, mode %d: %v", cut, len(h.ops), mode, err)
			}
		}
	}
}

func content(t *testing.T, chain []*memFile) []uint32 {
	t.Helper()
	c, err := tags(mustOpen(t, chain...))
	if err != nil {
		t.Fatal(err)
	}
	return c
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
				h.checkAll(t, r)
			})
		}
	}
}

// TestCrashScripts cuts the histories of what is known to be delicate.
func TestCrashScripts(t *testing.T) {
	write := func(off, n int64, tag uint32) event { return event{m: mutation{off: off, n: n}, tag: tag} }
	zero := func(off, n int64) event { return event{m: mutation{off: off, n: n, zero: true}} }
	flush := event{flush: true}
	for name, script := range map[string][]event{
		"space freed and wanted at once": {write(0, 2*mib, 10), flush, zero(0, mib), write(2*mib, mib, 11), write(0, 4096, 12)},
		"closed without a flush":         {write(mib, 4096, 10), write(0, 4096, 11)},
		"flushes close together":         {write(0, 4096, 10), flush, flush, write(mib, 4096, 11), flush, write(2*mib, 4096, 12), flush},
		"many tables at once":            {write(0, 512, 10), write(mib, 512, 11), write(2*mib, 512, 12)},
		"one sector at a time":           {write(512, 512, 10), flush, write(1024, 512, 11), flush, write(mib-512, 1024, 12)},
		"written, zeroed, written":       {write(0, mib, 10), zero(0, mib), write(0, 512, 11), flush, zero(0, mib), flush, write(mib/2, 512, 12)},
	} {
		for _, kind := range []Kind{Dynamic, Differencing} {
			t.Run(name+"/"+kind.String(), func(t *testing.T) {
				r := seed(t)
				h := newHistory(t, r, kind, 512)
				h.play(t, script)
				h.checkAll(t, r)
				if kind == Differencing { // and on a child that holds nothing yet, no bitmap either
					h = &history{parent: h.parent, start: content(t, h.parent), base: newMem()}
					mustClose(t, create(t, h.base, Spec{Kind: Differencing, BlockSize: mib, Parent: mustOpen(t, h.parent...)}))
					h.play(t, script)
					h.checkAll(t, r)
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
		for _, mode := range []int{killed, lostAll} {
			h.checkReplay(t, r, cut, mode)
		}
	}
}

// checkReplay opens what a crash left for writing, and cuts that in turn.
func (h *history) checkReplay(t *testing.T, r *rand.Rand, cut, mode int) {
	t.Helper()
	dirty, may := h.left(cut, mode, r), h.allowed(cut)
	again := &history{base: dirty, parent: h.parent, start: content(t, append([]*memFile{dirty}, h.parent...))}
	f := dirty.clone()
	f.ops = &again.ops
	w, err := OpenRW(f, parentsOf(append([]*memFile{f}, h.parent...)))
	if err != nil {
		t.Fatal(err)
	}
	mustClose(t, w)
	for second := range again.ops {
		for _, mode := range again.ways(second) {
			if err := h.check(again.left(second, mode, r), may); err != nil {
				t.Fatalf("crash after %d operations, then after %d of the replay, mode %d: %v", cut, second, mode, err)
			}
		}
	}
}

// TestHeaderProtocol checks that the headers are written in turn, and that each is durable before anything else happens.
func TestHeaderProtocol(t *testing.T) {
	r := seed(t)
	h := newHistory(t, r, Dynamic, 512)
	h.play(t, []event{{m: mutation{off: 0, n: 3 * mib}, tag: 10}, {flush: true}, {m: mutation{off: mib, n: mib, zero: true}}})
	_, last, err := (&view{f: h.base, real: h.base.size, size: h.base.size}).readHeader()
	if err != nil {
		t.Fatal(err)
	}
	written := 0
	for i, o := range h.ops {
		if o.kind != 'w' || (o.off != header1At && o.off != header2At) {
			continue
		}
		written++
		if o.off == last || h.ops[i+1].kind != 's' {
			t.Fatalf("operation %d: header at %d after the one at %d, then %c", i, o.off, last, h.ops[i+1].kind)
		}
		last = o.off
	}
	if written != 6 {
		t.Fatalf("%d header writes", written)
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
	h := history{base: newMem(), ops: ops}
	for cut := range len(ops) + 1 {
		for _, mode := range h.ways(cut) {
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
