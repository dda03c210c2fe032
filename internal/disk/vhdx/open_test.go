package vhdx

import (
	"bytes"
	"compress/bzip2"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"sitrep/internal/block"
	"sitrep/internal/fault"
)

// fixture is a disk image of testdata/disk.
func fixture(t testing.TB, name string) *memFile {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "..", "..", "testdata", "disk", name+".bz2"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, err := io.ReadAll(bzip2.NewReader(f))
	if err != nil {
		t.Fatal(err)
	}
	return memOf(p)
}

// TestWindows reads a chain that Windows made.
func TestWindows(t *testing.T) {
	parent, child := fixture(t, "ntfs-parent.vhdx"), fixture(t, "ntfs-differential.vhdx")
	for _, c := range []struct {
		m    *Image
		kind Kind
		sum  string
	}{
		{mustOpen(t, parent), Fixed, "c5523065bc6ef82267be56c5f8888e2876ead8ba7edba2a65a3da8b076231b68"},
		{mustOpen(t, child, parent), Differencing, "1ef1fb5360247aa7d36a38415bc7bf6e1e52f62af5e6bd1283815e82584c7efc"},
	} {
		p := readAll(t, c.m)
		sum := sha256.Sum256(p)
		if c.m.Kind() != c.kind || len(p) != 4*mib || hex.EncodeToString(sum[:]) != c.sum {
			t.Fatal(c.m.Kind(), len(p), hex.EncodeToString(sum[:]))
		}
		for off := int64(0); off < c.m.Size(); {
			e, err := c.m.Extent(off, c.m.Size()-off)
			if err != nil || (e.Kind == block.Zero && !block.IsZero(p[off:e.End()])) {
				t.Fatal(e, err)
			}
			off = e.End()
		}
	}
}

// TestWindowsLayer compares the extents of the child with what differs from the parent.
func TestWindowsLayer(t *testing.T) {
	parent, child := fixture(t, "ntfs-parent.vhdx"), fixture(t, "ntfs-differential.vhdx")
	p, m := readAll(t, mustOpen(t, parent)), mustOpen(t, child, parent)
	c := readAll(t, m)
	l := m.Locator()
	if l.Paths[0] != `.\ntfs-parent.vhdx` || len(l.Paths) != 3 || !l.Linkage2.IsZero() {
		t.Fatal(l)
	}
	held, differs := new(block.Set), 0
	for off := int64(0); off < m.Size(); {
		run, h, err := m.LayerExtent(off, m.Size()-off)
		if err != nil {
			t.Fatal(err)
		}
		if h {
			held.Add(run)
		}
		off = run.End()
	}
	for off := int64(0); off < m.Size(); off += 512 {
		if !bytes.Equal(p[off:off+512], c[off:off+512]) {
			differs++
			if !held.Contains(off) {
				t.Fatalf("sector at %d differs, but the child does not hold it", off)
			}
		}
	}
	if differs == 0 || held.Bytes() > 512*int64(4*differs) {
		t.Fatalf("%d sectors differ, the child holds %d bytes", differs, held.Bytes())
	}
	w, err := OpenRW(child, parentsOf([]*memFile{child, parent}))
	if err != nil {
		t.Fatal(err)
	}
	copy(c[700*kib:], bytes.Repeat([]byte("x"), 300*kib))
	if _, err := w.WriteAt(c[700*kib:1000*kib], 700*kib); err != nil {
		t.Fatal(err)
	}
	mustClose(t, w)
	if !bytes.Equal(readAll(t, mustOpen(t, child, parent)), c) {
		t.Fatal("content differs after a write")
	}
}

// TestChain checks what breaks a chain.
func TestChain(t *testing.T) {
	parent, child := newMem(), newMem()
	mustClose(t, create(t, parent, Spec{Size: 4 * mib, BlockSize: mib}))
	mustClose(t, create(t, child, Spec{Kind: Differencing, Parent: mustOpen(t, parent), RelativePath: `.\a.vhdx`, AbsolutePath: `\\?\c:\a.vhdx`}))
	broken := func(o Options) {
		t.Helper()
		if _, err := Open(child, o); !fault.Is(err, fault.ChainBroken) {
			t.Fatal(err)
		}
	}
	broken(Options{})
	broken(Options{OpenParent: func(l ParentLocator) (Parent, error) {
		if l.Paths[0] != `.\a.vhdx` || l.Paths[1] != `\\?\c:\a.vhdx` {
			t.Fatal(l.Paths)
		}
		return nil, fs.ErrNotExist
	}})
	other := newMem()
	mustClose(t, create(t, other, Spec{Size: 4 * mib, LogicalSectorSize: 4096}))
	h, at, _ := (&view{f: other, real: other.size, size: other.size}).readHeader()
	h.dataWriteGUID = mustOpen(t, parent).DataWriteGUID()
	other.put(h.encode(), at)
	broken(parentsOf([]*memFile{child, other}))
	corrupt := fault.New(fault.DiskCorrupt, "x")
	if _, err := Open(child, Options{OpenParent: func(ParentLocator) (Parent, error) { return nil, corrupt }}); !errors.Is(err, corrupt) {
		t.Fatal(err)
	}
	if _, err := Open(child, parentsOf([]*memFile{child, parent})); err != nil {
		t.Fatal(err)
	}
	w, err := OpenRW(parent, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(make([]byte, 512), 0); err != nil {
		t.Fatal(err)
	}
	mustClose(t, w)
	broken(parentsOf([]*memFile{child, parent}))
}

// TestLargerChild reads a child that is larger than its parent: what the parent lacks is zero.
func TestLargerChild(t *testing.T) {
	parent, child := newMem(), newMem()
	w := create(t, parent, Spec{Size: 2*mib + 512, BlockSize: mib})
	model := make([]uint32, 6*mib/512)
	mutation{off: 0, n: w.Size()}.do(t, w, model, 3)
	mustClose(t, w)
	w = create(t, child, Spec{Kind: Differencing, Size: 6 * mib, BlockSize: mib, Parent: mustOpen(t, parent)})
	sameTags(t, w, model)
	mutation{off: 2*mib - 512, n: 2048}.do(t, w, model, 4)
	mustClose(t, w)
	sameTags(t, mustOpen(t, child, parent), model)
}

// TestStates reads blocks of every state.
func TestStates(t *testing.T) {
	parent, child := newMem(), newMem()
	model := make([]uint32, 8*mib/512)
	w := create(t, parent, Spec{Size: 8 * mib, BlockSize: mib})
	mutation{off: 0, n: 8 * mib}.do(t, w, model, 1)
	mustClose(t, w)
	w = create(t, child, Spec{Kind: Differencing, BlockSize: mib, Parent: mustOpen(t, parent)})
	mutation{off: 0, n: mib}.do(t, w, model, 2)
	mustClose(t, w)
	bat := mustOpen(t, child, parent).geo.bat.Off
	garbage := batEntry(0xABC << 20)
	set := func(f *memFile, b int64, e batEntry) {
		f.put(binary.LittleEndian.AppendUint64(nil, uint64(e)), bat+8*b)
	}
	set(child, 1, garbage|batEntry(zeroed))
	set(child, 2, garbage|batEntry(unmapped))
	set(child, 3, garbage|batEntry(undefined))
	set(child, 4, garbage|batEntry(notPresent))
	for b := int64(1); b < 4; b++ {
		mutation{off: b * mib, n: mib, zero: true}.model(model)
	}
	m := mustOpen(t, child, parent)
	sameTags(t, m, model)
	run, held, err := m.LayerExtent(0, m.Size())
	if err != nil || !held || run.Len != 4*mib {
		t.Fatal(run, held, err)
	}
	set(parent, 5, garbage|batEntry(unmapped)) // the content as such, so that the linkage holds
	set(parent, 6, garbage|batEntry(notPresent))
	mutation{off: 5 * mib, n: 2 * mib, zero: true}.model(model)
	sameTags(t, mustOpen(t, child, parent), model)
	w, err = OpenRW(child, parentsOf([]*memFile{child, parent}))
	if err != nil {
		t.Fatal(err)
	}
	for b := range int64(8) {
		mutation{off: b*mib + 5*kib, n: 3 * kib}.do(t, w, model, uint32(50+b))
	}
	mustClose(t, w)
	sameTags(t, mustOpen(t, child, parent), model)
}

func (m mutation) model(model []uint32) {
	for i := m.off / 512; i < (m.off+m.n)/512; i++ {
		model[i] = 0
	}
}

// TestDamage checks what is refused, and with which error.
func TestDamage(t *testing.T) {
	base := newMem()
	w := create(t, base, Spec{Size: 8 * mib, BlockSize: mib})
	p := make([]byte, 8*mib)
	fill(p, 0, 1)
	if _, err := w.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	mustClose(t, w)
	bat := mustOpen(t, base).geo.bat.Off
	u64 := func(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }
	u32 := func(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }
	inHeader := func(change func(*header)) func(f *memFile) {
		return func(f *memFile) {
			h, at, _ := (&view{f: f, real: f.size, size: f.size}).readHeader()
			change(&h)
			f.put(h.encode(), at)
		}
	}
	region := func(off int64, data []byte) func(f *memFile) {
		return func(f *memFile) {
			p := make([]byte, tableSize)
			f.ReadAt(p, region1At)
			copy(p[off:], data)
			putChecksum(p)
			f.put(p, region1At)
			f.put(p, region2At)
		}
	}
	put := func(data []byte, off int64) func(f *memFile) { return func(f *memFile) { f.put(data, off) } }
	extra := func(id GUID, flags uint32) func(f *memFile) {
		return func(f *memFile) {
			f.put(append(append(append([]byte(nil), id[:]...), make([]byte, 8)...), u32(flags)...), newMetadataAt+32+32*5)
			f.put([]byte{6, 0}, newMetadataAt+10)
		}
	}
	item := newMetadataAt + int64(tableSize)
	for name, c := range map[string]struct {
		spoil func(f *memFile)
		code  fault.Code // "": it is accepted
	}{
		"signature":            {put([]byte("VHDXFILE"), 0), fault.DiskFormat},
		"empty file":           {func(f *memFile) { f.resize(0) }, fault.DiskFormat},
		"header 1":             {put([]byte{1}, header1At+20), ""},
		"header 2":             {put([]byte{1}, header2At+20), ""},
		"both headers":         {func(f *memFile) { f.put([]byte{1}, header1At+20); f.put([]byte{1}, header2At+20) }, fault.DiskCorrupt},
		"version 2":            {inHeader(func(h *header) { h.version = 2 }), fault.DiskUnsupported},
		"log version, no log":  {inHeader(func(h *header) { h.logVersion = 9 }), ""},
		"log not on a MiB":     {inHeader(func(h *header) { h.logOffset += 4096 }), fault.DiskCorrupt},
		"log on the BAT":       {inHeader(func(h *header) { h.logOffset = uint64(bat) }), fault.DiskCorrupt},
		"log 2^63":             {inHeader(func(h *header) { h.logOffset = 1 << 63 }), fault.DiskCorrupt},
		"equal headers":        {func(f *memFile) { p := make([]byte, headerSize); f.ReadAt(p, header2At); f.put(p, header1At) }, ""},
		"equal sequence":       {func(f *memFile) { headerTwins(f) }, fault.DiskCorrupt},
		"region table 1":       {put([]byte{9}, region1At+20), ""},
		"both region tables":   {func(f *memFile) { f.put([]byte{9}, region1At+20); f.put([]byte{9}, region2At+20) }, fault.DiskCorrupt},
		"region not required":  {region(16+28, u32(0)), ""},
		"region unknown":       {region(48, []byte{1, 2, 3}), fault.DiskUnsupported},
		"region missing":       {region(8, u32(1)), fault.DiskCorrupt},
		"region twice":         {region(48, regionBATBytes()), fault.DiskCorrupt},
		"region outside":       {region(16+16, u64(1<<40)), fault.DiskCorrupt},
		"region unaligned":     {region(16+16, u64(uint64(bat)+512)), fault.DiskCorrupt},
		"region 2^63":          {region(16+16, u64(1<<63)), fault.DiskCorrupt},
		"regions overlap":      {region(16+16, u64(newMetadataAt)), fault.DiskCorrupt},
		"4G regions":           {region(8, u32(1<<32-1)), fault.DiskCorrupt},
		"metadata signature":   {put([]byte("METADATA"), newMetadataAt), fault.DiskCorrupt},
		"metadata count":       {put([]byte{0xFF, 0xFF}, newMetadataAt+10), fault.DiskCorrupt},
		"unknown item":         {extra(GUID{1}, 0), ""},
		"unknown user item":    {extra(itemDiskSize(), itemIsUser), ""},
		"required item":        {extra(GUID{1}, itemIsRequired), fault.DiskUnsupported},
		"required user item":   {extra(itemDiskSize(), itemIsUser|itemIsRequired), fault.DiskUnsupported},
		"incomplete":           {extra(itemIncomplete(), 0), fault.DiskCorrupt},
		"item twice":           {extra(itemDiskSize(), 0), fault.DiskCorrupt},
		"item too early":       {put(u32(100), newMetadataAt+32+16), fault.DiskCorrupt},
		"item outside":         {put(u32(1<<32-4), newMetadataAt+32+16), fault.DiskCorrupt},
		"item too short":       {put(u32(4), newMetadataAt+32+20), fault.DiskCorrupt},
		"items overlap":        {put(u32(tableSize), newMetadataAt+64+16), fault.DiskCorrupt},
		"block size 0":         {put(u32(0), item), fault.DiskCorrupt},
		"block size 3M":        {put(u32(3*mib), item), fault.DiskCorrupt},
		"block size 512M":      {put(u32(512*mib), item), fault.DiskCorrupt},
		"parent, no locator":   {put(u32(hasParent), item+4), fault.DiskCorrupt},
		"size 65 TiB":          {put(u64(65*tib), item+8), fault.DiskCorrupt},
		"size -1":              {put(u64(1<<64-512), item+8), fault.DiskCorrupt},
		"size odd":             {put(u64(8*mib-100), item+8), fault.DiskCorrupt},
		"size 0":               {put(u64(0), item+8), fault.DiskCorrupt},
		"BAT too short":        {put(u64(1*tib), item+8), fault.DiskCorrupt},
		"sector size":          {put(u32(1024), item+8+8+16), fault.DiskCorrupt},
		"state 4":              {put(u64(4), bat), fault.DiskCorrupt},
		"state 5":              {put(u64(uint64(makeEntry(5, 6*mib))), bat), fault.DiskCorrupt},
		"partial, no parent":   {put(u64(uint64(makeEntry(partiallyPresent, 6*mib))), bat), fault.DiskCorrupt},
		"block outside":        {put(u64(uint64(makeEntry(fullyPresent, 500*mib))), bat), fault.DiskCorrupt},
		"block 2^63":           {put(u64(1<<63|6), bat), fault.DiskCorrupt},
		"block at 0":           {put(u64(6), bat), fault.DiskCorrupt},
		"block on the log":     {put(u64(uint64(makeEntry(fullyPresent, newLogAt))), bat), fault.DiskCorrupt},
		"block on the BAT":     {put(u64(uint64(makeEntry(fullyPresent, bat))), bat), fault.DiskCorrupt},
		"two blocks, one file": {put(u64(uint64(makeEntry(fullyPresent, bat+2*mib))), bat), fault.DiskCorrupt},
		"reserved bits":        {put(u64(uint64(makeEntry(fullyPresent, bat+mib))|1<<10), bat), fault.DiskCorrupt},
		"garbage in state 0":   {put(u64(0xFFFFFF<<20), bat), ""},
		"truncated":            {func(f *memFile) { f.resize(f.size - mib) }, fault.DiskCorrupt},
		"truncated by 1":       {func(f *memFile) { f.resize(f.size - 1) }, fault.DiskCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			f := base.clone()
			c.spoil(f)
			if c.code != "" {
				wantFault(t, f, c.code)
				if _, err := OpenRW(f, Options{}); !fault.Is(err, c.code) {
					t.Fatal(err)
				}
				return
			}
			if _, err := tags(mustOpen(t, f)); err != nil {
				t.Fatal(err)
			}
		})
	}
	t.Run("every truncation", func(t *testing.T) {
		for n := int64(0); n < base.size; n += 61 * kib {
			f := base.clone()
			f.resize(n)
			if m, err := Open(f, Options{}); err == nil || m != nil {
				t.Fatalf("%d of %d bytes are accepted", n, base.size)
			}
		}
	})
}

func regionBATBytes() []byte { g := regionBAT(); return g[:] }

// headerTwins gives both headers the same sequence number but another content.
func headerTwins(f *memFile) {
	h, _, _ := (&view{f: f, real: f.size, size: f.size}).readHeader()
	f.put(h.encode(), header1At)
	h.fileWriteGUID = NewGUID()
	f.put(h.encode(), header2At)
}

// TestHuge opens the largest disk there is: in little memory and time, whatever its BAT holds.
func TestHuge(t *testing.T) {
	f := newMem()
	w := create(t, f, Spec{Size: 64 * tib, BlockSize: mib})
	p := make([]byte, mib)
	fill(p, 0, 5)
	for _, off := range []int64{0, 17 * tib, 64*tib - mib} {
		if _, err := w.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	mustClose(t, w)
	if len(f.chunks) > 3*256+700 {
		t.Fatalf("the file takes %d KiB", 4*len(f.chunks))
	}
	m := mustOpen(t, f)
	var data, runs int64
	for off := int64(0); off < m.Size(); runs++ {
		e, err := m.Extent(off, m.Size()-off)
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == block.Data {
			data += e.Len
		}
		off = e.End()
	}
	if data != 3*mib || runs > 6 {
		t.Fatal(data, runs)
	}
	if len(m.tables.m) > maxPages {
		t.Fatal("too many pages are kept", len(m.tables.m))
	}
}

// TestOneRead checks that a large read of blocks that are neighbours in the file is one read of the file, into the memory
// of the caller.
func TestOneRead(t *testing.T) {
	f := newMem()
	w := create(t, f, Spec{Kind: Fixed, Size: 32 * mib, BlockSize: mib})
	mustClose(t, w)
	m := mustOpen(t, f)
	p := make([]byte, 20*mib)
	m.ReadAt(p[:1], 0) // the BAT
	f.reads = 0
	if _, err := m.ReadAt(p, 5*mib+4096); err != nil || f.reads != 1 {
		t.Fatalf("%d reads, %v", f.reads, err)
	}
}

// TestReadBounds reads around the end of the disk.
func TestReadBounds(t *testing.T) {
	f := newMem()
	mustClose(t, create(t, f, Spec{Size: mib}))
	m := mustOpen(t, f)
	p := make([]byte, 1024)
	for _, c := range []struct {
		off int64
		n   int
		err error
	}{{mib - 1024, 1024, nil}, {mib - 512, 512, io.EOF}, {mib, 0, io.EOF}, {1 << 60, 0, io.EOF}} {
		if n, err := m.ReadAt(p, c.off); n != c.n || err != c.err {
			t.Fatal(c, n, err)
		}
	}
	if _, err := m.ReadAt(p, -1); err == nil {
		t.Fatal("negative offset")
	}
	for _, c := range [][2]int64{{0, 0}, {0, mib + 1}, {-1, 1}, {mib, 1}, {1, 1<<63 - 1}} {
		if _, err := m.Extent(c[0], c[1]); err == nil {
			t.Fatal(c)
		}
		if _, _, err := m.LayerExtent(c[0], c[1]); err == nil {
			t.Fatal(c)
		}
	}
	w, err := OpenRW(f, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt(p, mib-512); err == nil {
		t.Fatal("write beyond the end")
	}
	if err := w.ZeroAt(mib, 1); err == nil {
		t.Fatal("zero beyond the end")
	}
}

func TestGUID(t *testing.T) {
	const s = "2dc27766-f623-4200-9d64-115e9bfd4a08"
	for _, in := range []string{s, "{2DC27766-F623-4200-9D64-115E9BFD4A08}"} {
		g, err := ParseGUID(in)
		if err != nil || g.String() != s || g != regionBAT() {
			t.Fatal(g, err)
		}
	}
	if g := regionBAT(); !bytes.Equal(g[:8], []byte{0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42}) {
		t.Fatalf("% x", g[:])
	}
	for _, bad := range []string{"", "{}", s[1:], s + "0", "2dc27766xf623-4200-9d64-115e9bfd4a08", "2dc27766-f623-4200-9d64-115e9bfd4a0g", "2dc27766-f623-4200-9d64--15e9bfd4a08"} {
		if _, err := ParseGUID(bad); err == nil {
			t.Fatal(bad)
		}
	}
}
