package vhdx

import (
	"bytes"
	"encoding/binary"
	"path/filepath"
	"testing"

	"sitrep/internal/fault"
)

// logBuilder makes a file with a log by hand.
type logBuilder struct {
	f    *memFile
	m    *Image
	guid GUID
	at   int64
	seq  uint64
}

// entrySpec is what a hand-made entry contains.
type entrySpec struct {
	tail          int64 // -1: itself
	data          map[int64][]byte
	zero          [][2]int64
	flushed, last uint64
	pad           int // sectors of padding
	spoil         func(p []byte)
}

func newLogBuilder(t *testing.T, size int64) *logBuilder {
	f := newMem()
	w := create(t, f, Spec{Size: size, BlockSize: mib})
	p := make([]byte, size)
	fill(p, 0, 1)
	if _, err := w.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	mustClose(t, w)
	b := &logBuilder{f: f, m: mustOpen(t, f), guid: NewGUID(), seq: 7}
	f.zero(b.m.ring().off, b.m.ring().size)
	h := b.m.head
	h.logGUID = b.guid
	for _, at := range []int64{header1At, header2At} {
		h.sequence++
		f.put(h.encode(), at)
	}
	return b
}

func (b *logBuilder) ringSize() int64 { return b.m.ring().size }

// add writes an entry at the end of the log, round the end of the ring if need be.
func (b *logBuilder) add(e entrySpec) {
	p := b.encode(e)
	for i := 0; i < len(p); i += sectorSize {
		b.f.put(p[i:i+sectorSize], b.m.ring().off+(b.at+int64(i))%b.ringSize())
	}
	b.at = (b.at + int64(len(p))) % b.ringSize()
	b.seq++
}

func (b *logBuilder) encode(e entrySpec) []byte {
	le := binary.LittleEndian
	var descs, sectors []byte
	for off, data := range e.data {
		d := make([]byte, descSize)
		copy(d, "desc")
		copy(d[4:8], data[4092:])
		copy(d[8:16], data)
		le.PutUint64(d[16:], uint64(off))
		le.PutUint64(d[24:], b.seq)
		descs = append(descs, d...)
		s := bytes.Clone(data)
		copy(s, "data")
		le.PutUint32(s[4:], uint32(b.seq>>32))
		le.PutUint32(s[4092:], uint32(b.seq))
		sectors = append(sectors, s...)
	}
	for _, z := range e.zero {
		d := make([]byte, descSize)
		copy(d, "zero")
		le.PutUint64(d[8:], uint64(z[1]))
		le.PutUint64(d[16:], uint64(z[0]))
		le.PutUint64(d[24:], b.seq)
		descs = append(descs, d...)
	}
	p := append(make([]byte, logHeaderSize), descs...)
	p = append(p, make([]byte, (sectorSize-len(p)%sectorSize)%sectorSize)...)
	p = append(p, sectors...)
	p = append(p, make([]byte, e.pad*sectorSize)...)
	if e.tail < 0 {
		e.tail = b.at
	}
	if e.flushed == 0 {
		e.flushed = uint64(b.f.size)
	}
	copy(p, logMagic)
	le.PutUint32(p[8:], uint32(len(p)))
	le.PutUint32(p[12:], uint32(e.tail))
	le.PutUint64(p[16:], b.seq)
	le.PutUint32(p[24:], uint32(len(descs)/descSize))
	copy(p[32:], b.guid[:])
	le.PutUint64(p[48:], e.flushed)
	le.PutUint64(p[56:], max(e.last, e.flushed))
	putChecksum(p)
	if e.spoil != nil {
		e.spoil(p)
	}
	return p
}

// bat returns the first sector of the BAT with the entry of one block changed.
func (b *logBuilder) bat(block int, e batEntry) map[int64][]byte {
	p := make([]byte, sectorSize)
	b.f.ReadAt(p, b.m.geo.bat.Off)
	binary.LittleEndian.PutUint64(p[8*block:], uint64(e))
	return map[int64][]byte{b.m.geo.bat.Off: p}
}

// want is the content of a disk whose sectors are of write 1, except in the blocks that are zero.
func wantZero(size int64, blocks ...int64) []uint32 {
	model := make([]uint32, size/512)
	for i := range model {
		model[i] = 1
	}
	for _, b := range blocks {
		for s := b * mib / 512; s < min((b+1)*mib, size)/512; s++ {
			model[s] = 0
		}
	}
	return model
}

func torn(p []byte) { p[len(p)-100] ^= 1 }

// TestReplay checks which entries of a log are replayed, in memory, into the file, and by QEMU.
func TestReplay(t *testing.T) {
	const size = 4 * mib
	zero := makeEntry(zeroed, 0)
	for name, c := range map[string]struct {
		build func(b *logBuilder)
		zero  []int64 // blocks that are zero after the replay
		qemu  bool    // QEMU is asked as well
	}{
		"one entry": {func(b *logBuilder) { b.add(entrySpec{tail: -1, data: b.bat(1, zero)}) }, []int64{1}, true},
		"empty":     {func(b *logBuilder) { b.add(entrySpec{tail: -1}) }, nil, true},
		"two entries": {func(b *logBuilder) {
			b.add(entrySpec{tail: -1, data: b.bat(1, zero)})
			b.add(entrySpec{tail: 0, data: b.bat(2, zero)})
		}, []int64{2}, true}, // the second writes the whole sector
		"torn newest entry": {func(b *logBuilder) {
			b.add(entrySpec{tail: -1, data: b.bat(1, zero)})
			b.add(entrySpec{tail: 0, data: b.bat(2, zero), spoil: torn})
		}, []int64{1}, true},
		"before the tail": {func(b *logBuilder) {
			b.add(entrySpec{tail: -1, data: b.bat(1, zero)})
			b.add(entrySpec{tail: -1})
		}, nil, false}, // QEMU replays the first entry too
		"round the end": {func(b *logBuilder) {
			b.at = b.ringSize() - 3*sectorSize
			b.add(entrySpec{tail: -1})
			b.add(entrySpec{tail: b.ringSize() - 3*sectorSize, data: b.bat(1, zero)})
			b.add(entrySpec{tail: b.ringSize() - 3*sectorSize, data: b.bat(3, zero)})
		}, []int64{3}, true},
		"an entry split by the end": {func(b *logBuilder) {
			b.at = b.ringSize() - sectorSize
			b.add(entrySpec{tail: -1, data: b.bat(1, zero)})
		}, []int64{1}, true},
		"stale entries of another log": {func(b *logBuilder) {
			own := b.guid
			b.guid, b.seq = NewGUID(), 900
			for range 5 {
				b.add(entrySpec{tail: -1, data: b.bat(0, zero)})
			}
			b.guid, b.seq, b.at = own, 5, 2*sectorSize
			b.add(entrySpec{tail: -1, data: b.bat(1, zero)})
		}, []int64{1}, true},
		"older sequence elsewhere": {func(b *logBuilder) {
			b.seq, b.at = 3, 40*sectorSize
			b.add(entrySpec{tail: -1, data: b.bat(0, zero)})
			b.seq, b.at = 9, 8*sectorSize
			b.add(entrySpec{tail: -1, data: b.bat(1, zero)})
		}, []int64{1}, true},
		"newer sequence without its tail": {func(b *logBuilder) {
			b.seq, b.at = 3, 40*sectorSize
			b.add(entrySpec{tail: -1, data: b.bat(0, zero)})
			b.seq, b.at = 9, 8*sectorSize
			b.add(entrySpec{tail: 4 * sectorSize, data: b.bat(1, zero)})
		}, []int64{0}, false},
		"zero descriptor": {func(b *logBuilder) {
			b.add(entrySpec{tail: -1, zero: [][2]int64{{b.m.geo.bat.Off, sectorSize}}})
		}, []int64{0, 1, 2, 3}, false},
		"zero, then data": {func(b *logBuilder) {
			b.add(entrySpec{tail: -1, zero: [][2]int64{{b.m.geo.bat.Off, 16 * sectorSize}}})
			b.add(entrySpec{tail: 0, data: b.bat(2, zero)})
		}, []int64{2}, false},
		"data, then zero": {func(b *logBuilder) {
			b.add(entrySpec{tail: -1, data: b.bat(2, zero)})
			b.add(entrySpec{tail: 0, zero: [][2]int64{{b.m.geo.bat.Off, 16 * sectorSize}}})
		}, []int64{0, 1, 2, 3}, false},
		"padding": {func(b *logBuilder) {
			b.add(entrySpec{tail: -1, data: b.bat(1, zero), pad: 3})
		}, []int64{1}, false},
		"the file grows": {func(b *logBuilder) {
			b.add(entrySpec{tail: -1, last: uint64(b.f.size) + 4*mib, data: b.bat(1, makeEntry(fullyPresent, b.f.size+mib))})
		}, []int64{1}, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newLogBuilder(t, size)
			c.build(b)
			before := b.f.bytes()
			sameTags(t, mustOpen(t, b.f), wantZero(size, c.zero...))
			if !bytes.Equal(before, b.f.bytes()) {
				t.Fatal("Open changed the file")
			}
			if c.qemu {
				replayQEMU(t, b.f, wantZero(size, c.zero...))
			}
			w, err := OpenRW(b.f, Options{})
			if err != nil {
				t.Fatal(err)
			}
			mustClose(t, w)
			m := mustOpen(t, b.f)
			if !m.head.logGUID.IsZero() {
				t.Fatal("the log is still in use")
			}
			sameTags(t, m, wantZero(size, c.zero...))
		})
	}
}

func replayQEMU(t *testing.T, f *memFile, want []uint32) {
	t.Helper()
	needQEMU(t)
	name := filepath.Join(t.TempDir(), "a.vhdx")
	f.save(t, name)
	qemu(t, "qemu-img", "check", "-q", "-r", "all", "-f", "vhdx", name)
	raw := name + ".raw"
	qemu(t, "qemu-img", "convert", "-f", "vhdx", "-O", "raw", name, raw)
	p := make([]byte, 512*len(want))
	rawAt(t, raw, p, 0)
	for s := range want {
		if tag, err := readTag(p[512*s:][:512], int64(s)); err != nil || tag != want[s] {
			t.Fatalf("QEMU's replay: sector %d is of write %d, not of %d: %v", s, tag, want[s], err)
		}
	}
}

// TestBadLog checks logs that cannot be replayed.
func TestBadLog(t *testing.T) {
	zero := makeEntry(zeroed, 0)
	for name, c := range map[string]struct {
		build func(b *logBuilder)
		code  fault.Code
	}{
		"no entry":        {func(*logBuilder) {}, fault.DiskCorrupt},
		"only a torn one": {func(b *logBuilder) { b.add(entrySpec{tail: -1, data: b.bat(1, zero), spoil: torn}) }, fault.DiskCorrupt},
		"truncated file":  {func(b *logBuilder) { b.add(entrySpec{tail: -1, flushed: uint64(b.f.size) + mib}) }, fault.DiskCorrupt},
		"last beyond":     {func(b *logBuilder) { b.add(entrySpec{tail: -1, last: 1 << 62}) }, fault.DiskCorrupt},
		"changes header": {func(b *logBuilder) {
			b.add(entrySpec{tail: -1, data: map[int64][]byte{header1At: make([]byte, sectorSize)}})
		}, fault.DiskCorrupt},
		"changes log": {func(b *logBuilder) {
			b.add(entrySpec{tail: -1, zero: [][2]int64{{b.m.ring().off + 8*sectorSize, sectorSize}}})
		}, fault.DiskCorrupt},
		"log version": {func(b *logBuilder) {
			b.add(entrySpec{tail: -1})
			h, at, _ := b.m.v.readHeader()
			h.logVersion = 1
			b.f.put(h.encode(), at)
		}, fault.DiskUnsupported},
		"log outside": {func(b *logBuilder) {
			h, at, _ := b.m.v.readHeader()
			h.logOffset = uint64(b.f.size)
			b.f.put(h.encode(), at)
		}, fault.DiskCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			b := newLogBuilder(t, 2*mib)
			c.build(b)
			before := b.f.bytes()
			wantFault(t, b.f, c.code)
			if _, err := OpenRW(b.f, Options{}); !fault.Is(err, c.code) {
				t.Fatalf("OpenRW: %v", err)
			}
			if !bytes.Equal(before, b.f.bytes()) {
				t.Fatal("the file was changed")
			}
		})
	}
}

// TestLogWraps commits so often that the log goes round many times, and leaves it in use.
func TestLogWraps(t *testing.T) {
	f := newMem()
	w := create(t, f, Spec{Size: 64 * mib, BlockSize: mib})
	model := make([]uint32, 64*mib/512)
	for i := range 700 {
		m := mutation{off: int64(i*37%64) * mib, n: mib, zero: i/64%2 == 1}
		if !m.zero {
			m.n = 4096
		}
		m.do(t, w, model, uint32(i+1))
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if w.log.sequence < 600 {
		t.Fatal("too few entries", w.log.sequence)
	}
	sameTags(t, mustOpen(t, f), model)
	w, err := OpenRW(f.clone(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	sameTags(t, w, model)
}

// TestOverlay compares the flattened changes with a plain array, newest last.
func TestOverlay(t *testing.T) {
	r := seed(t)
	for range 300 {
		const sectors = 40
		plain := make([]int64, sectors) // -1: the file, 0: zero, else place of the data
		for i := range plain {
			plain[i] = -1
		}
		var changes []change
		for k := range r.IntN(30) {
			var c change
			c.Off, c.Len = r.Int64N(sectors)*sectorSize, sectorSize
			if c.zero = r.IntN(2) == 0; c.zero {
				c.Len = min(1+r.Int64N(10), sectors-c.Off/sectorSize) * sectorSize
			} else {
				c.at = int64(k + 1)
			}
			changes = append(changes, c)
			for s := c.Off / sectorSize; s < c.End()/sectorSize; s++ {
				plain[s] = c.at
			}
		}
		o := newOverlay(changes)
		for s := range plain {
			off := int64(s) * sectorSize
			got := int64(-1)
			if i := o.find(off); i < len(o) && o[i].Off <= off {
				if got = o[i].at; o[i].zero {
					got = 0
				}
			}
			if got != plain[s] {
				t.Fatalf("sector %d: %d, not %d, of %v", s, got, plain[s], changes)
			}
		}
	}
}

func wantFault(t testing.TB, f *memFile, code fault.Code) {
	t.Helper()
	m, err := Open(f, Options{})
	if err == nil {
		_, err = tags(m)
	}
	if !fault.Is(err, code) {
		t.Fatalf("%v, not %s", err, code)
	}
	if code == fault.DiskCorrupt {
		if e := fault.Find(err); !e.HasOff || e.Path == "" {
			t.Fatalf("the error names no place: %v", err)
		}
	}
}
