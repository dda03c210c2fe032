package vhdx

import (
	"encoding/binary"

	"sitrep/internal/block"
)

// item is one metadata item: its place in the file.
type item struct {
	block.Range
	table int64 // place of its entry in the metadata table
}

// params is what the metadata say of the disk ([MS-VHDX] 2.6.2).
type params struct {
	kind           Kind
	size           int64 // guest bytes
	sizeAt         int64 // where the file says so
	blockSize      int64
	logicalSector  int64
	physicalSector int64
	diskID         GUID
	locator        ParentLocator // of a differencing disk
}

// Bits of a metadata table entry (2.6.1.2) and of the file parameters (2.6.2.1).
const (
	itemIsUser        = 1
	itemIsVirtualDisk = 2
	itemIsRequired    = 4

	leaveAllocated = 1
	hasParent      = 2
)

// readMetadata reads the metadata region.
func (v *view) readMetadata(region block.Range) (params, error) {
	items, err := v.readItems(region)
	if err != nil {
		return params{}, err
	}
	if e, there := items[itemIncomplete()]; there {
		return params{}, v.corrupt(e.table, "the creation of the disk was not completed")
	}
	var p params
	if err := v.readParams(&p, items, region.Off); err != nil {
		return params{}, err
	}
	if p.kind == Differencing {
		p.locator, err = v.readLocator(items[itemParentLocator()], region.Off)
	}
	return p, err
}

// readItems reads the metadata table: the system items that are known.
func (v *view) readItems(region block.Range) (map[GUID]item, error) {
	table := make([]byte, tableSize)
	if err := v.read(table, region.Off); err != nil {
		return nil, err
	}
	count := int64(binary.LittleEndian.Uint16(table[10:]))
	if string(table[:8]) != metadataMagic || count > maxEntries {
		return nil, v.corrupt(region.Off, "the metadata table is damaged")
	}
	items := map[GUID]item{}
	places := make([]block.Range, 0, count)
	type key struct {
		id   GUID
		user bool
	}
	seen := map[key]bool{}
	for i := range count {
		e, where := table[32+32*i:][:32], region.Off+32+32*i
		it, flags, err := v.decodeItem(e, where, region)
		if err != nil {
			return nil, err
		}
		k := key{id: GUID(e[:16]), user: flags&itemIsUser != 0}
		if seen[k] {
			return nil, v.corrupt(where, "metadata item %s is there twice", k.id)
		}
		seen[k] = true
		switch {
		case !k.user && knownItem(k.id):
			items[k.id] = it
		case flags&itemIsRequired != 0:
			return nil, v.unsupported(where, "metadata item %s is required but unknown", k.id)
		}
		if !it.Empty() {
			places = append(places, it.Range)
		}
	}
	return items, v.checkDisjoint(places, region.Off)
}

func (v *view) decodeItem(e []byte, where int64, region block.Range) (it item, flags uint32, err error) {
	le := binary.LittleEndian
	off, length := int64(le.Uint32(e[16:])), int64(le.Uint32(e[20:]))
	it = item{Range: block.Range{Off: region.Off + off, Len: length}, table: where}
	if length == 0 {
		return it, le.Uint32(e[24:]), nil
	}
	if off < tableSize || length > maxItem || off+length > region.Len {
		return it, 0, v.corrupt(where, "a metadata item has %d bytes at %d: not a place in its region", length, off)
	}
	return it, le.Uint32(e[24:]), nil
}

func knownItem(id GUID) bool {
	switch id {
	case itemFileParameters(), itemDiskSize(), itemDiskID(), itemLogicalSectorSize(), itemPhysicalSectorSize(),
		itemParentLocator(), itemIncomplete():
		return true
	}
	return false
}

// readItem reads an item that has to be there and has to have n bytes.
func (v *view) readItem(items map[GUID]item, id GUID, n int, regionOff int64) ([]byte, error) {
	it, there := items[id]
	if !there {
		return nil, v.corrupt(regionOff, "metadata item %s is missing", id)
	}
	if it.Len != int64(n) {
		return nil, v.corrupt(it.table, "metadata item %s has %d bytes, not %d", id, it.Len, n)
	}
	p := make([]byte, n)
	return p, v.read(p, it.Off)
}

func (v *view) readParams(p *params, items map[GUID]item, regionOff int64) error {
	le := binary.LittleEndian
	take := func(id GUID, n int, use func([]byte)) error {
		b, err := v.readItem(items, id, n, regionOff)
		if err == nil {
			use(b)
		}
		return err
	}
	var flags uint32
	var size uint64
	for _, err := range []error{
		take(itemFileParameters(), 8, func(b []byte) { p.blockSize, flags = int64(le.Uint32(b)), le.Uint32(b[4:]) }),
		take(itemDiskSize(), 8, func(b []byte) { size = le.Uint64(b) }),
		take(itemDiskID(), 16, func(b []byte) { p.diskID = GUID(b) }),
		take(itemLogicalSectorSize(), 4, func(b []byte) { p.logicalSector = int64(le.Uint32(b)) }),
		take(itemPhysicalSectorSize(), 4, func(b []byte) { p.physicalSector = int64(le.Uint32(b)) }),
	} {
		if err != nil {
			return err
		}
	}
	switch {
	case flags&hasParent != 0:
		p.kind = Differencing
	case flags&leaveAllocated != 0:
		p.kind = Fixed
	default:
		p.kind = Dynamic
	}
	if size > maxDiskSize {
		return v.corrupt(items[itemDiskSize()].Off, "the disk has %d bytes, more than %d", size, int64(maxDiskSize))
	}
	p.size, p.sizeAt = int64(size), items[itemDiskSize()].Off
	if why := p.check(); why != "" {
		return v.corrupt(regionOff, "%s", why)
	}
	return nil
}

// check says what is wrong with the numbers, or "".
func (p *params) check() string {
	switch {
	case p.logicalSector != 512 && p.logicalSector != 4096:
		return "the logical sector size is neither 512 nor 4096"
	case p.physicalSector != 512 && p.physicalSector != 4096:
		return "the physical sector size is neither 512 nor 4096"
	case p.blockSize < minBlock || p.blockSize > maxBlock || p.blockSize&(p.blockSize-1) != 0:
		return "the block size is not a power of two from 1 to 256 MiB"
	case p.size <= 0 || p.size > maxDiskSize || p.size%p.logicalSector != 0:
		return "the size of the disk is not a whole number of sectors up to 64 TiB"
	}
	return ""
}
