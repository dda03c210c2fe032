package vhdx

import (
	"encoding/binary"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// Spec describes a virtual disk to be created. Zero means the default, where one is named.
type Spec struct {
	Kind               Kind
	Size               int64 // guest bytes, a multiple of LogicalSectorSize, at most 64 TiB; default: the parent's
	BlockSize          int64 // 1 to 256 MiB, a power of two; default 32 MiB, of a differencing disk 2 MiB
	LogicalSectorSize  int64 // 512 or 4096; default 512, of a differencing disk the parent's
	PhysicalSectorSize int64 // 512 or 4096; default 4096
	DiskID             GUID  // default random; a child should have its parent's

	// Of a differencing disk only. The Writer closes the parent. Paths are Windows paths.
	Parent       Parent
	RelativePath string // from the folder of the child, such as `.\parent.vhdx`
	AbsolutePath string // such as `\\?\d:\disks\parent.vhdx`; may be empty
}

// Places in a file that we create.
const (
	newLogAt      = headerArea
	newLogSize    = mib
	newMetadataAt = newLogAt + newLogSize
	metadataSize  = mib
	newBATAt      = newMetadataAt + metadataSize
)

// Create makes a virtual disk in an empty file and opens it for writing. The disk is durable on return (its name is not:
// that is for the caller). After a crash before that, the file is not a VHDX: its first bytes are written last. Close
// closes the file and the parent; when Create fails both stay open.
func Create(f durable.File, s Spec) (*Writer, error) {
	s = s.withDefaults()
	p := params{kind: s.Kind, size: s.Size, blockSize: s.BlockSize, logicalSector: s.LogicalSectorSize, physicalSector: s.PhysicalSectorSize, diskID: s.DiskID}
	if why := p.check(); why != "" {
		return nil, fault.New(fault.DiskUnsupported, "%s", why).At(f.Name())
	}
	if (s.Kind == Differencing) != (s.Parent != nil) {
		return nil, fault.New(fault.DiskUnsupported, "a differencing disk has a parent, and no other disk has one").At(f.Name())
	}
	g := newGeometry(p, block.Range{Off: newBATAt})
	g.bat.Len = max(block.RoundUp(g.batBytes(), mib), mib)
	if err := writeNew(f, s, g); err != nil {
		return nil, fault.FromOS(err)
	}
	return OpenRW(f, Options{OpenParent: func(ParentLocator) (Parent, error) { return s.Parent, nil }})
}

func (s Spec) withDefaults() Spec {
	orElse := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	sector, size, blockSize := int64(512), int64(0), int64(32*mib)
	if s.Parent != nil {
		sector, size, blockSize = s.Parent.LogicalSectorSize(), s.Parent.Size(), 2*mib
	}
	orElse(&s.LogicalSectorSize, sector)
	orElse(&s.PhysicalSectorSize, 4096)
	orElse(&s.Size, size)
	orElse(&s.BlockSize, blockSize)
	if s.DiskID.IsZero() {
		s.DiskID = NewGUID()
	}
	return s
}

// writeNew writes all structures of a new file. The file identifier comes last and makes it a VHDX.
func writeNew(f durable.File, s Spec, g geometry) error {
	size := g.bat.End()
	if s.Kind == Fixed {
		size += g.blocks * g.blockSize
	}
	if err := f.Truncate(size); err != nil {
		return err
	}
	h := header{fileWriteGUID: NewGUID(), dataWriteGUID: NewGUID(), version: 1, logLength: newLogSize, logOffset: newLogAt}
	next := h
	next.sequence++
	table := encodeRegions(g.bat)
	for _, part := range []struct {
		at   int64
		data []byte
	}{{header1At, h.encode()}, {header2At, next.encode()}, {region1At, table}, {region2At, table}, {newMetadataAt, encodeMetadata(s)}} {
		if _, err := f.WriteAt(part.data, part.at); err != nil {
			return err
		}
	}
	if s.Kind == Fixed {
		if err := writeFixedBAT(f, g); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if _, err := f.WriteAt(append([]byte(identifierMagic), encodeUTF16("sitrep")...), identifierAt); err != nil {
		return err
	}
	return f.Sync()
}

// writeFixedBAT gives every block its place: one after the other behind the BAT. They are holes that read as zero.
func writeFixedBAT(f durable.File, g geometry) error {
	buf := make([]byte, 0, mib)
	at := g.bat.Off
	for b := range g.blocks {
		buf = binary.LittleEndian.AppendUint64(buf, uint64(makeEntry(fullyPresent, g.bat.End()+b*g.blockSize)))
		if b%g.ratio == g.ratio-1 && b != g.blocks-1 {
			buf = binary.LittleEndian.AppendUint64(buf, 0) // the sector bitmap, which such a disk does not have
		}
		if len(buf) < mib-8 && b != g.blocks-1 {
			continue
		}
		if _, err := f.WriteAt(buf, at); err != nil {
			return err
		}
		at, buf = at+int64(len(buf)), buf[:0]
	}
	return nil
}

func encodeRegions(bat block.Range) []byte {
	p := make([]byte, tableSize)
	le := binary.LittleEndian
	copy(p, regionMagic)
	le.PutUint32(p[8:], 2)
	put := func(e []byte, id GUID, r block.Range) {
		copy(e, id[:])
		le.PutUint64(e[16:], uint64(r.Off))
		le.PutUint32(e[24:], uint32(r.Len))
		le.PutUint32(e[28:], 1) // required
	}
	put(p[16:], regionBAT(), bat)
	put(p[48:], regionMetadata(), block.Range{Off: newMetadataAt, Len: metadataSize})
	putChecksum(p)
	return p
}

// encodeMetadata returns the beginning of the metadata region: the table and the items.
func encodeMetadata(s Spec) []byte {
	le := binary.LittleEndian
	var flags uint32
	switch s.Kind {
	case Fixed:
		flags = leaveAllocated
	case Differencing:
		flags = hasParent
	}
	p := make([]byte, tableSize)
	copy(p, metadataMagic)
	count := 0
	put := func(id GUID, flags uint32, data []byte) {
		e := p[32+32*count:][:32]
		count++
		copy(e, id[:])
		le.PutUint32(e[16:], uint32(len(p)))
		le.PutUint32(e[20:], uint32(len(data)))
		le.PutUint32(e[24:], flags)
		p = append(p, data...)
	}
	u32 := func(v int64) []byte { return le.AppendUint32(nil, uint32(v)) }
	put(itemFileParameters(), itemIsRequired, le.AppendUint32(u32(s.BlockSize), flags))
	put(itemDiskSize(), itemIsRequired|itemIsVirtualDisk, le.AppendUint64(nil, uint64(s.Size)))
	put(itemDiskID(), itemIsRequired|itemIsVirtualDisk, s.DiskID[:])
	put(itemLogicalSectorSize(), itemIsRequired|itemIsVirtualDisk, u32(s.LogicalSectorSize))
	put(itemPhysicalSectorSize(), itemIsRequired|itemIsVirtualDisk, u32(s.PhysicalSectorSize))
	if s.Parent != nil {
		put(itemParentLocator(), itemIsRequired, encodeLocator(s.Parent.DataWriteGUID(), s.RelativePath, s.AbsolutePath))
	}
	le.PutUint16(p[10:], uint16(count))
	return p
}
