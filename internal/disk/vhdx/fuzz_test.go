package vhdx

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"sitrep/internal/block"
	"sitrep/internal/fault"
)

// fuzzBase is an image that FuzzOpen spoils, and where its tables are.
type fuzzBase struct {
	chain []*memFile
	spots []block.Range
	log   block.Range
}

// fuzzBases are a dynamic disk, a differencing one, and both with a log in use.
func fuzzBases(t testing.TB) []fuzzBase {
	parent, child := newMem(), newMem()
	model := make([]uint32, 6*mib/512)
	w := create(t, parent, Spec{Size: 6 * mib, BlockSize: mib})
	mutation{off: 0, n: 3*mib + 4096}.do(t, w, model, 1)
	mustClose(t, w)
	w = create(t, child, Spec{Kind: Differencing, BlockSize: mib, Parent: mustOpen(t, parent), RelativePath: `.\p.vhdx`})
	mutation{off: mib + 512, n: 70 * kib}.do(t, w, model, 2)
	mutation{off: 2 * mib, n: mib, zero: true}.do(t, w, model, 2)
	mustClose(t, w)
	dirty := func(chain []*memFile) []*memFile {
		f := chain[0].clone()
		w, err := OpenRW(f, parentsOf(chain))
		if err != nil {
			t.Fatal(err)
		}
		for i := range int64(3) {
			mutation{off: (3+i)*mib + 512*i, n: 9 * kib}.do(t, w, model, uint32(10+i))
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		return append([]*memFile{f}, chain[1:]...)
	}
	var out []fuzzBase
	for _, chain := range [][]*memFile{{parent}, {child, parent}, dirty([]*memFile{parent}), dirty([]*memFile{child, parent})} {
		m := mustOpen(t, chain...)
		b := fuzzBase{chain: chain, log: block.Range{Off: m.ring().off, Len: m.ring().size}}
		b.spots = append(b.spots, []block.Range{{Off: 0, Len: 600}, {Off: header1At, Len: 96}, {Off: header2At, Len: 96}, {Off: region1At, Len: 128},
			{Off: region2At, Len: 128}, {Off: newMetadataAt, Len: 32 * 9}, {Off: newMetadataAt + tableSize, Len: 400},
			{Off: m.geo.bat.Off, Len: 64}, {Off: m.geo.bitmapEntryOff(0), Len: 8}, {Off: b.log.Off, Len: 10 * sectorSize}}...)
		out = append(out, b)
	}
	return out
}

// spoil applies patches: each is a spot (1 byte), an offset in it (2 bytes), a length (1 byte) and that many bytes. Spot
// 255 sets the size of the file.
func (b fuzzBase) spoil(patches []byte, fixSums bool) *memFile {
	f := b.chain[0].clone()
	for len(patches) >= 4 {
		spot, off, n := patches[0], int64(binary.LittleEndian.Uint16(patches[1:])), int(patches[3])
		data := patches[4:min(4+n, len(patches))]
		patches = patches[4+len(data):]
		if spot == 255 {
			f.resize(off * 256)
			continue
		}
		r := b.spots[int(spot)%len(b.spots)]
		off %= r.Len
		f.put(data[:min(int64(len(data)), r.Len-off)], r.Off+off)
	}
	if fixSums {
		fixChecksums(f, b.log)
	}
	return f
}

// fixChecksums makes spoilt structures pass their checksums, so that what is in them is looked at.
func fixChecksums(f *memFile, log block.Range) {
	for at, n := range map[int64]int{header1At: headerSize, header2At: headerSize, region1At: tableSize, region2At: tableSize} {
		p := make([]byte, n)
		f.ReadAt(p, at)
		putChecksum(p)
		f.put(p, at)
	}
	for at := log.Off; at < log.Off+16*sectorSize; at += sectorSize {
		p := make([]byte, sectorSize)
		f.ReadAt(p, at)
		n := int64(binary.LittleEndian.Uint32(p[8:]))
		if string(p[:4]) != logMagic || n < 64 || n > 16*sectorSize {
			continue
		}
		p = make([]byte, n)
		f.ReadAt(p, at)
		putChecksum(p)
		f.put(p, at)
	}
}

// FuzzOpen opens, reads and writes spoilt images: that ends with an error of the disk or with a disk that keeps its word,
// in bounded time and memory.
func FuzzOpen(f *testing.F) {
	bases := fuzzBases(f)
	for i := range bases {
		for spot := range byte(10) {
			f.Add(byte(i), true, []byte{spot, 8, 0, 4, 1, 0, 0, 0})
			f.Add(byte(i), true, []byte{spot, 16, 0, 8, 0, 0, 0xF0, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F})
			f.Add(byte(i), false, []byte{spot, 0, 0, 1, 'x'})
		}
		f.Add(byte(i), true, []byte{255, 0, 0x50, 0})
		f.Add(byte(i), true, []byte{6, 8, 0, 8, 0, 0, 0, 0, 0, 1, 0, 0}) // another size
		f.Add(byte(i), true, []byte{7, 0, 0, 8, 6, 0, 0x60, 0, 0, 0, 0, 0})
		f.Add(byte(i), true, []byte{7, 8, 0, 8, 7, 0, 0x60, 0, 0, 0, 0, 0})
	}
	f.Fuzz(func(t *testing.T, which byte, fix bool, patches []byte) {
		b := bases[int(which)%len(bases)]
		file := b.spoil(patches, fix)
		chain := append([]*memFile{file}, b.chain[1:]...)
		m, err := openChain(chain...)
		if err != nil {
			wantDiskFault(t, err)
			return
		}
		content := readSome(t, m)
		logless := m.head.logLength == 0
		w, err := OpenRW(file, parentsOf(chain))
		if err != nil {
			if !logless {
				t.Fatalf("Open takes it, OpenRW does not: %v", err)
			}
			return
		}
		if content != nil {
			if got := readSome(t, w.m); !bytes.Equal(got, content) {
				t.Fatal("content differs after the replay")
			}
		}
		writeSome(t, w, chain)
	})
}

func wantDiskFault(t *testing.T, err error) {
	t.Helper()
	for _, code := range []fault.Code{fault.DiskCorrupt, fault.DiskUnsupported, fault.DiskFormat, fault.ChainBroken} {
		if fault.Is(err, code) {
			return
		}
	}
	t.Fatalf("an error of no known class: %v", err)
}

// readSome walks the extents and reads the beginning of the disk; nil when that fails with an error of the disk.
func readSome(t *testing.T, m *Image) []byte {
	t.Helper()
	for off, n := int64(0), 0; off < m.Size() && n < 2000; n++ {
		e, err := m.Extent(off, m.Size()-off)
		if err != nil {
			wantDiskFault(t, err)
			return nil
		}
		if e.Off != off || e.Len <= 0 || e.End() > m.Size() {
			t.Fatal(e)
		}
		run, _, err := m.LayerExtent(off, e.Len)
		if err != nil || run.Off != off || run.Len <= 0 || run.Len > e.Len {
			t.Fatal(run, err)
		}
		off = e.End()
	}
	p := make([]byte, min(m.Size(), 8*mib))
	if n, err := m.ReadAt(p, 0); n != len(p) {
		wantDiskFault(t, err)
		return nil
	}
	for off := int64(0); off < int64(len(p)); {
		e, err := m.Extent(off, int64(len(p))-off)
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == block.Zero && !block.IsZero(p[off:e.End()]) {
			t.Fatalf("%v is not zero", e.Range)
		}
		off = e.End()
	}
	return p
}

// writeSome writes to the disk and checks that the writes are there afterwards.
func writeSome(t *testing.T, w *Writer, chain []*memFile) {
	t.Helper()
	if w.Size() < 64*kib || w.m.v.size > 1<<40 {
		return
	}
	p := bytes.Repeat([]byte("fuzz"), 16*kib/4)
	off := (w.Size() - 16*kib) &^ 4095
	if _, err := w.WriteAt(p, off); err != nil {
		wantDiskFault(t, err)
		return
	}
	if err := w.ZeroAt(0, 3*kib); err != nil {
		wantDiskFault(t, err)
		return
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	m, err := openChain(chain...)
	if err != nil {
		t.Fatalf("cannot be opened after a write: %v", err)
	}
	got := make([]byte, len(p))
	if _, err := m.ReadAt(got, off); err != nil || !bytes.Equal(got, p) {
		t.Fatal("the write is not there", err)
	}
	if _, err := m.ReadAt(got[:3*kib], 0); err != nil || !block.IsZero(got[:3*kib]) {
		t.Fatal("the zeros are not there", err)
	}
}

// FuzzLog scans arbitrary logs: entries are what the fuzzer writes, with right checksums.
func FuzzLog(f *testing.F) {
	base := fuzzBases(f)[2]
	p := make([]byte, 4*sectorSize)
	base.chain[0].ReadAt(p, base.log.Off)
	f.Add(p)
	f.Add(p[:sectorSize])
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > 64*sectorSize {
			return
		}
		file := base.chain[0].clone()
		file.zero(base.log.Off, base.log.Len)
		file.put(p, base.log.Off)
		guid := mustOpen(t, base.chain[0]).head.logGUID
		for at := base.log.Off; at < base.log.Off+int64(len(p)); at += sectorSize {
			head := make([]byte, 4)
			file.ReadAt(head, at)
			if string(head) == logMagic {
				file.put(guid[:], at+32)
			}
		}
		fixChecksums(file, base.log)
		m, err := Open(file, Options{})
		if err != nil {
			wantDiskFault(t, err)
			return
		}
		readSome(t, m)
	})
}

// TestHostileLog scans a log in which every sector claims to begin the longest entry: in linear time.
func TestHostileLog(t *testing.T) {
	b := newLogBuilder(t, 2*mib)
	n := int64(64 * mib)
	h, _, _ := b.m.v.readHeader()
	h.logOffset, h.logLength = uint64(b.f.size), uint32(n)
	at := int64(h.logOffset)
	p := make([]byte, sectorSize)
	le := binary.LittleEndian
	copy(p, logMagic)
	le.PutUint32(p[8:], uint32(n))
	le.PutUint64(p[16:], 1)
	copy(p[32:], h.logGUID[:])
	for off := int64(0); off < n; off += sectorSize {
		b.f.put(p, at+off)
	}
	for _, where := range []int64{header1At, header2At} {
		h.sequence++
		b.f.put(h.encode(), where)
	}
	b.f.reads = 0
	if _, err := Open(b.f, Options{}); !fault.Is(err, fault.DiskCorrupt) {
		t.Fatal(err)
	}
	if limit := int(4 * n / sectorSize); b.f.reads > limit {
		t.Fatalf("%d reads of a log of %d sectors", b.f.reads, n/sectorSize)
	}
}

// TestReadError checks that an error of the file is not taken for damage.
func TestReadError(t *testing.T) {
	f := newMem()
	mustClose(t, create(t, f, Spec{Size: 4 * mib}))
	_, err := Open(failingReads{f}, Options{})
	if !errors.Is(err, errInjected) || fault.Is(err, fault.DiskCorrupt) {
		t.Fatal(err)
	}
}

// failingReads is a file that cannot be read beyond its first MiB.
type failingReads struct{ *memFile }

func (f failingReads) ReadAt(p []byte, off int64) (int, error) {
	if off >= mib {
		return 0, errInjected
	}
	return f.memFile.ReadAt(p, off)
}
