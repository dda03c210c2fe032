package vhd

import (
	"cmp"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

const (
	// MaxDepth is the greatest number of files in a chain of parents.
	MaxDepth = 256
	// maxBlockSize and maxEntries bound what a table may ask for: 32 MiB of memory, enough for 2040 GiB in blocks of
	// 256 KiB (writers use 2 MiB, or 512 KiB).
	maxBlockSize = 256 << 20
	maxEntries   = 1 << 23
)

// Options tells Open what it cannot know by itself.
type Options struct {
	// OpenParent opens the parent of a differencing disk. Open checks that it is the right one, and owns it then.
	// It may be nil when no differencing disk is expected; one is an error then.
	OpenParent func(ParentLocator) (*Image, error)
}

// Image is a guest's view of a VHD file and its parents. It may be read concurrently.
type Image struct {
	file      durable.File
	footer    Footer
	footerPos int64 // of the footer at the end of the file; -1 when it is damaged and the copy was used
	fileSize  int64 // when it was opened
	size      int64 // guest bytes, a multiple of 512
	depth     int   // files below this one
	parent    *Image

	// The following are of dynamic and differencing disks.
	header    header
	blockSize int64
	bitmapLen int64         // bytes in the file, whole sectors
	used      []block.Range // file ranges that are no blocks, sorted
	blocksEnd int64         // the first byte of the file after everything that is used, footer not counted

	mu    sync.RWMutex     // guards the two below, which a Writer changes
	table []uint32         // sector of each block, or absent
	dirty map[int64][]byte // bitmaps that are newer than the ones in the file

	last atomic.Pointer[bitmap] // the bitmap that was read last
}

// bitmap is the bitmap of one block. It is never changed.
type bitmap struct {
	block int64
	bits  []byte
}

// Open opens a VHD file for reading. The image owns f when Open succeeds. Errors are faults with file and offset:
// DiskFormat (no VHD), DiskCorrupt, DiskUnsupported, ChainBroken. Time and memory are bounded by the size of the disk.
func Open(f durable.File, o Options) (*Image, error) {
	m, err := open(f)
	if err != nil {
		return nil, err
	}
	if m.footer.Type == Differencing {
		if err := m.openParent(o); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func open(f durable.File) (*Image, error) {
	m := &Image{file: f, dirty: map[int64][]byte{}}
	if err := m.readFooter(); err != nil {
		return nil, err
	}
	size := m.footer.CurrentSize
	if size == 0 || size > math.MaxInt64-SectorSize {
		return nil, m.corrupt(max(m.footerPos, 0), "the footer says that the disk has %d bytes", size)
	}
	m.size = block.RoundUp(int64(size), SectorSize)
	if m.footer.Type == Fixed {
		return m, m.checkFixed()
	}
	return m, m.openSparse()
}

func (m *Image) corrupt(off int64, format string, args ...any) error {
	return fault.New(fault.DiskCorrupt, format, args...).AtOff(m.file.Name(), off)
}

func (m *Image) unsupported(off int64, format string, args ...any) error {
	return fault.New(fault.DiskUnsupported, format, args...).AtOff(m.file.Name(), off)
}

// readFull fills p; that the file ends before is a damaged image.
func (m *Image) readFull(p []byte, off int64) error {
	n, err := m.file.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return m.corrupt(off, "the file ends %d bytes too early", len(p)-n)
	}
	return fault.FromOS(err)
}

// readFooter takes the footer at the end or, when that is damaged, the copy at the beginning of a disk that is not fixed.
func (m *Image) readFooter() error {
	size, err := m.file.Size()
	if err != nil {
		return fault.FromOS(err)
	}
	m.fileSize, m.footerPos = size, -1
	if size < FooterSize {
		return fault.New(fault.DiskFormat, "the file has %d bytes and cannot hold a VHD footer", size).At(m.file.Name())
	}
	end, pos := make([]byte, FooterSize), size-FooterSize
	if err := m.readFull(end, pos); err != nil {
		return err
	}
	if !HasCookie(end) && HasCookie(end[1:]) { // the 511 bytes of Virtual PC before 2004
		end, pos = append(end[1:], 0), pos+1
	}
	endErr := m.footer.UnmarshalBinary(end)
	if endErr == nil {
		m.footerPos = pos
		return nil
	}
	if HasCookie(end) && saysFixed(end) {
		return fault.Find(endErr).AtOff(m.file.Name(), pos) // what lies at offset 0 is the guest's
	}
	head := make([]byte, FooterSize)
	if err := m.readFull(head, 0); err != nil {
		return err
	}
	headErr := m.footer.UnmarshalBinary(head)
	if headErr == nil && m.footer.Type != Fixed {
		return nil
	}
	if HasCookie(head) && !HasCookie(end) {
		if headErr == nil {
			headErr = fault.New(fault.DiskCorrupt, "the footer of a fixed disk lies at the beginning of the file")
		}
		return fault.Find(headErr).AtOff(m.file.Name(), 0)
	}
	return fault.Find(endErr).AtOff(m.file.Name(), pos)
}

// saysFixed says whether a damaged footer was one of a fixed disk, by two of its fields.
func saysFixed(b []byte) bool {
	be := binary.BigEndian
	return Type(be.Uint32(b[footerTypeAt:])) == Fixed && be.Uint64(b[footerOffsetAt:]) == noOffset
}

func (m *Image) checkFixed() error {
	if have := m.footerPos; int64(m.footer.CurrentSize) > have {
		return m.corrupt(m.footerPos, "the footer says that the disk has %d bytes, but the file holds %d", m.footer.CurrentSize, have)
	}
	return nil
}

// openSparse reads the header and the table, and checks that no two things lie at the same place.
func (m *Image) openSparse() error {
	if m.size > MaxSparseSize {
		return m.corrupt(max(m.footerPos, 0), "a %s disk cannot have %d bytes", m.footer.Type, m.size)
	}
	at := block.Range{Off: int64(min(m.footer.DataOffset, math.MaxInt64)), Len: headerSize}
	if at.Off < FooterSize || !at.Within(m.fileSize) {
		return m.corrupt(max(m.footerPos, 0), "the footer says that the header lies at %d, outside of the file", m.footer.DataOffset)
	}
	buf := make([]byte, headerSize)
	if err := m.readFull(buf, at.Off); err != nil {
		return err
	}
	if err := m.header.unmarshal(buf); err != nil {
		return fault.Find(err).AtOff(m.file.Name(), at.Off)
	}
	m.used = append(m.used, block.Range{Len: FooterSize}, at)
	if err := m.readTable(at.Off); err != nil {
		return err
	}
	return m.checkPlaces()
}

func (m *Image) readTable(headerAt int64) error {
	m.blockSize = int64(m.header.blockSize)
	if bits.OnesCount32(m.header.blockSize) != 1 || m.blockSize < SectorSize || m.blockSize > maxBlockSize {
		return m.corrupt(headerAt, "the block size cannot be %d bytes", m.blockSize)
	}
	m.bitmapLen = block.RoundUp(block.Count(m.blockSize/SectorSize, 8), SectorSize)
	need := block.Count(m.size, m.blockSize)
	if int64(m.header.entries) < need {
		return m.corrupt(headerAt, "the table has %d entries, but the disk has %d blocks", m.header.entries, need)
	}
	if need > maxEntries {
		return m.unsupported(headerAt, "a disk of %d bytes in blocks of %d has more than %d blocks", m.size, m.blockSize, maxEntries)
	}
	at := block.Range{Off: int64(min(m.header.tableOffset, math.MaxInt64)), Len: 4 * need}
	if at.Off < FooterSize || !at.Within(m.dataEnd()) {
		return m.corrupt(headerAt, "the table at %d with %d bytes lies outside of the file", m.header.tableOffset, at.Len)
	}
	m.used = append(m.used, at)
	buf := make([]byte, min(at.Len, 1<<20))
	m.table = make([]uint32, need)
	for i := 0; i < len(m.table); i += len(buf) / 4 {
		part := buf[:min(len(buf), 4*(len(m.table)-i))]
		if err := m.readFull(part, at.Off+4*int64(i)); err != nil {
			return err
		}
		for k := 0; k < len(part); k += 4 {
			m.table[i+k/4] = binary.BigEndian.Uint32(part[k:])
		}
	}
	return nil
}

// dataEnd is the end of the part of the file in which blocks can lie.
func (m *Image) dataEnd() int64 {
	if m.footerPos >= 0 {
		return m.footerPos
	}
	return m.fileSize
}

// checkPlaces makes sure that each block lies in the file and at a place of its own.
func (m *Image) checkPlaces() error {
	byOff := func(a, b block.Range) int { return cmp.Compare(a.Off, b.Off) }
	slices.SortFunc(m.used, byOff)
	for i := 1; i < len(m.used); i++ {
		if m.used[i-1].End() > m.used[i].Off {
			return m.corrupt(m.used[i].Off, "the header and the table overlap")
		}
	}
	m.used = append(m.used, m.nameRanges()...)
	for _, r := range m.used {
		m.blocksEnd = max(m.blocksEnd, r.End())
	}
	places := make([]uint32, 0, m.present())
	for i, sector := range m.table {
		if sector == absent {
			continue
		}
		places = append(places, sector)
		if err := m.checkBlock(int64(i), int64(sector)*SectorSize); err != nil {
			return err
		}
	}
	return m.checkApart(places)
}

// checkApart makes sure that no two blocks overlap; places holds their sectors, in any order, and is changed.
func (m *Image) checkApart(places []uint32) error {
	if !slices.IsSorted(places) {
		slices.Sort(places)
	}
	stride := (m.bitmapLen + m.blockSize) / SectorSize
	for i := 1; i < len(places); i++ {
		if int64(places[i])-int64(places[i-1]) < stride {
			return m.corrupt(int64(places[i])*SectorSize, "two blocks of the table overlap here")
		}
	}
	return nil
}

func (m *Image) present() (n int) {
	for _, sector := range m.table {
		if sector != absent {
			n++
		}
	}
	return n
}

// checkBlock checks the place of block i. Of the last block only what the disk needs has to be in the file.
func (m *Image) checkBlock(i, pos int64) error {
	entryAt := int64(m.header.tableOffset) + 4*i
	r := block.Range{Off: pos, Len: m.bitmapLen + block.Nth(i, m.blockSize, m.size).Len}
	if r.End() > m.dataEnd() {
		return m.corrupt(entryAt, "block %d at %d ends after the file's %d bytes", i, pos, m.dataEnd())
	}
	for _, u := range m.used {
		if u.Off < r.End() && r.Off < u.End() {
			return m.corrupt(entryAt, "block %d at %d overlaps the header or the table", i, pos)
		}
	}
	m.blocksEnd = max(m.blocksEnd, pos+m.bitmapLen+m.blockSize)
	return nil
}
