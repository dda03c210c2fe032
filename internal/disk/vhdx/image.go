package vhdx

import (
	"errors"
	"fmt"
	"io"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// Kind is the type of a virtual disk.
type Kind uint8

const (
	// Dynamic disks take space in the file when a block is written for the first time.
	Dynamic Kind = iota
	// Fixed disks have all their space in the file from the beginning.
	Fixed
	// Differencing disks hold what was changed since their parent was frozen.
	Differencing
)

func (k Kind) String() string {
	switch k {
	case Fixed:
		return "fixed"
	case Differencing:
		return "differencing"
	}
	return "dynamic"
}

// Parent is what a differencing disk needs of the disk below it. *Image is one.
type Parent interface {
	io.ReaderAt
	// Size is the number of guest bytes; what a child has beyond it reads as zero.
	Size() int64
	Extent(off, n int64) (block.Extent, error)
	// DataWriteGUID names the content; see Image.DataWriteGUID.
	DataWriteGUID() GUID
	// LogicalSectorSize is 512 or 4096 bytes; it has to be the child's.
	LogicalSectorSize() int64
	Close() error
}

// Options say how an image is opened.
type Options struct {
	// OpenParent opens the parent of a differencing disk, trying the paths in order. It has to bound the depth of the
	// chain and to refuse cycles. When it is nil, a differencing disk is a broken chain.
	OpenParent func(ParentLocator) (Parent, error)
}

// Image is a virtual disk opened for reading. Its methods may be called concurrently, except Close.
type Image struct {
	v      *view
	head   header
	headAt int64 // place of the current header
	geo    geometry
	taken  []block.Range // regions, log and header area
	tables *pages
	parent Parent // nil unless differencing
}

// Open opens a virtual disk for reading. A log that is in use is replayed in memory; the file is not written to, and
// must not change while it is open. Close closes the file and the parents; when Open fails the file stays open.
//
// A file that is not a VHDX is fault.DiskFormat; what is damaged is fault.DiskCorrupt with the place in the file; what
// is required but unknown is fault.DiskUnsupported; a parent that is missing, was modified, or has other sectors is
// fault.ChainBroken.
func Open(f durable.File, o Options) (*Image, error) {
	m, err := open(f)
	if err != nil {
		return nil, err
	}
	if err := m.checkBAT(newSpace(m.v.size)); err != nil {
		return nil, err
	}
	if err := m.openParent(o); err != nil {
		return nil, err
	}
	return m, nil
}

// open reads everything except the BAT.
func open(f durable.File) (*Image, error) {
	v, err := newView(f)
	if err != nil {
		return nil, err
	}
	if v.real > maxFile {
		return nil, v.unsupported(0, "the file has %d bytes, more than %d", v.real, int64(maxFile))
	}
	m := &Image{v: v}
	if err := v.readIdentifier(); err != nil {
		return nil, err
	}
	if m.head, m.headAt, err = v.readHeader(); err != nil {
		return nil, err
	}
	if !m.head.logGUID.IsZero() {
		if err := m.ring().replay(); err != nil {
			return nil, err
		}
	}
	return m, m.load()
}

// load reads the region table and the metadata.
func (m *Image) load() error {
	r, err := m.v.readRegions(m.head)
	if err != nil {
		return err
	}
	p, err := m.v.readMetadata(r.metadata)
	if err != nil {
		return err
	}
	m.geo, m.taken, m.tables = newGeometry(p, r.bat), r.taken, newPages(m.v)
	need := m.geo.batBytes()
	if m.geo.kind == Differencing && m.geo.blocks > 0 { // some writers leave out a last bitmap entry that is not used
		need = m.geo.entryOff(m.geo.blocks-1) + 8 - m.geo.bat.Off
	}
	if need > r.bat.Len {
		return m.v.corrupt(r.bat.Off, "the BAT has %d bytes, but a disk of %d bytes needs %d", r.bat.Len, p.size, need)
	}
	return nil
}

func (m *Image) ring() *ring {
	return &ring{v: m.v, guid: m.head.logGUID, off: int64(m.head.logOffset), size: int64(m.head.logLength)}
}

func (m *Image) openParent(o Options) error {
	if m.geo.kind != Differencing {
		return nil
	}
	if o.OpenParent == nil {
		return m.chainBroken(nil, "the disk has a parent, which is not there")
	}
	p, err := o.OpenParent(m.geo.locator)
	if err != nil {
		if e := fault.Find(err); e != nil && e.Code != fault.NotFound && e.Code != fault.DiskMissing {
			return err
		}
		return m.chainBroken(err, "the parent cannot be opened")
	}
	if err := m.checkParent(p); err != nil {
		return errors.Join(err, p.Close())
	}
	m.parent = p
	return nil
}

func (m *Image) chainBroken(cause error, format string, args ...any) error {
	return fault.Wrap(fault.ChainBroken, cause, format, args...).At(m.v.name)
}

func (m *Image) checkParent(p Parent) error {
	if !m.geo.locator.matches(p.DataWriteGUID()) {
		return m.chainBroken(nil, "the parent was modified: its DataWriteGuid is %s, this disk was made for %s", p.DataWriteGUID(), m.geo.locator.Linkage)
	}
	if p.LogicalSectorSize() != m.geo.logicalSector {
		return m.chainBroken(nil, "the parent has sectors of %d bytes, this disk of %d", p.LogicalSectorSize(), m.geo.logicalSector)
	}
	return nil
}

// Size is the number of guest bytes, a multiple of LogicalSectorSize.
func (m *Image) Size() int64 { return m.geo.size }

// Kind is the type of the disk.
func (m *Image) Kind() Kind { return m.geo.kind }

// BlockSize is the size of a payload block in bytes: 1 to 256 MiB, a power of two.
func (m *Image) BlockSize() int64 { return m.geo.blockSize }

// LogicalSectorSize is 512 or 4096 bytes.
func (m *Image) LogicalSectorSize() int64 { return m.geo.logicalSector }

// PhysicalSectorSize is 512 or 4096 bytes.
func (m *Image) PhysicalSectorSize() int64 { return m.geo.physicalSector }

// DataWriteGUID names the content of the disk: every writer changes it before its first change of what a guest can see
// ([MS-VHDX] 2.2.2).
func (m *Image) DataWriteGUID() GUID { return m.head.dataWriteGUID }

// DiskID is the identity of the virtual disk, which its children share.
func (m *Image) DiskID() GUID { return m.geo.diskID }

// Root is the first file of the chain, as far as its parents are VHDX.
func (m *Image) Root() *Image {
	for {
		p, ok := m.parent.(*Image)
		if !ok {
			return m
		}
		m = p
	}
}

// Locator says which file the parent is; it is empty unless the disk is a differencing one.
func (m *Image) Locator() ParentLocator { return m.geo.locator }

// Close closes the file and the parents.
func (m *Image) Close() error {
	err := m.v.f.Close()
	if m.parent != nil {
		err = errors.Join(err, m.parent.Close())
	}
	return err
}

// checkRange refuses a range that is not on the disk.
func (m *Image) checkRange(off, n int64) error {
	if n <= 0 || !(block.Range{Off: off, Len: n}).Within(m.geo.size) {
		return fmt.Errorf("%s: %d bytes at %d are not on a disk of %d bytes", m.v.name, n, off, m.geo.size)
	}
	return nil
}
