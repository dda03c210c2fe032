package vhdx

import (
	"cmp"
	"encoding/binary"
	"slices"

	"sitrep/internal/block"
	"sitrep/internal/fault"
)

// readIdentifier checks that the file is a VHDX file at all.
func (v *view) readIdentifier() error {
	p := make([]byte, len(identifierMagic))
	if v.real < int64(len(p)) {
		return fault.New(fault.DiskFormat, "not a VHDX file: it is too short").At(v.name)
	}
	if err := v.readRaw(p, identifierAt); err != nil {
		return err
	}
	if string(p) != identifierMagic {
		return fault.New(fault.DiskFormat, "not a VHDX file: it does not begin with %q", identifierMagic).At(v.name)
	}
	return nil
}

// readHeader returns the current header and its place ([MS-VHDX] 2.2.2). Two headers of the same sequence number are
// accepted when they are equal: Disk2vhd writes such files, and Microsoft's own code takes the first one.
func (v *view) readHeader() (h header, at int64, err error) {
	p1, p2 := make([]byte, headerSize), make([]byte, headerSize)
	if err := v.readRaw(p1, header1At); err != nil {
		return h, 0, err
	}
	if err := v.readRaw(p2, header2At); err != nil {
		return h, 0, err
	}
	h1, ok1 := decodeHeader(p1)
	h2, ok2 := decodeHeader(p2)
	switch {
	case !ok1 && !ok2:
		return h, 0, v.corrupt(header1At, "both headers are damaged")
	case ok1 && ok2 && h1.sequence == h2.sequence && h1 != h2:
		return h, 0, v.corrupt(header1At, "the two headers differ but have the same sequence number %d", h1.sequence)
	case ok1 && (!ok2 || h1.sequence >= h2.sequence):
		h, at = h1, header1At
	default:
		h, at = h2, header2At
	}
	return h, at, v.checkHeader(h, at)
}

func (v *view) checkHeader(h header, at int64) error {
	if h.version != 1 {
		return v.unsupported(at, "version %d of the format", h.version)
	}
	if h.logGUID.IsZero() && h.logLength == 0 {
		return nil
	}
	log := block.Range{Off: int64(h.logOffset), Len: int64(h.logLength)}
	if h.logOffset%mib != 0 || h.logLength%mib != 0 || log.Len == 0 || log.Off < headerArea || !log.Within(v.real) {
		return v.corrupt(at, "the log has %d bytes at offset %d: not a place in this file of %d bytes", h.logLength, h.logOffset, v.real)
	}
	if log.Len > maxLog {
		return v.unsupported(at, "the log has %d bytes, more than %d", h.logLength, maxLog)
	}
	if !h.logGUID.IsZero() && h.logVersion != 0 {
		return v.unsupported(at, "version %d of the log", h.logVersion)
	}
	return nil
}

// regions is where the parts of the file lie.
type regions struct {
	bat, metadata block.Range
	taken         []block.Range // all of them, the log and the header area too; sorted and disjoint
}

// readRegions reads the region table ([MS-VHDX] 2.2.3), the second copy when the first one is damaged.
func (v *view) readRegions(h header) (regions, error) {
	p := make([]byte, tableSize)
	for _, at := range []int64{region1At, region2At} {
		if err := v.read(p, at); err != nil {
			return regions{}, err
		}
		if string(p[:4]) == regionMagic && checksumOK(p) {
			return v.decodeRegions(p, at, h)
		}
	}
	return regions{}, v.corrupt(region1At, "both region tables are damaged")
}

func (v *view) decodeRegions(p []byte, at int64, h header) (regions, error) {
	r := regions{taken: []block.Range{{Off: 0, Len: headerArea}}}
	if h.logLength > 0 {
		r.taken = append(r.taken, block.Range{Off: int64(h.logOffset), Len: int64(h.logLength)})
	}
	count := binary.LittleEndian.Uint32(p[8:])
	if count > maxEntries {
		return r, v.corrupt(at, "the region table has %d entries, more than %d", count, maxEntries)
	}
	seen := map[GUID]bool{}
	for i := range int64(count) {
		e, where := p[16+32*i:], at+16+32*i
		guid := GUID(e[:16])
		if seen[guid] {
			return r, v.corrupt(where, "region %s is there twice", guid)
		}
		seen[guid] = true
		if err := v.addRegion(&r, guid, e, where); err != nil {
			return r, err
		}
	}
	if r.bat.Empty() || r.metadata.Empty() {
		return r, v.corrupt(at, "the region table lacks the BAT or the metadata")
	}
	return r, v.checkDisjoint(r.taken, at)
}

// addRegion takes one entry of the region table. Required is not asked for in the regions that are known: QEMU writes
// 0 there.
func (v *view) addRegion(r *regions, guid GUID, e []byte, where int64) error {
	le := binary.LittleEndian
	off, length := le.Uint64(e[16:]), le.Uint32(e[24:])
	region := block.Range{Off: int64(off), Len: int64(length)}
	if off%mib != 0 || length%mib != 0 || region.Off < headerArea || !region.Within(v.size) {
		return v.corrupt(where, "region %s has %d bytes at offset %d: not a place in this file of %d bytes", guid, length, off, v.size)
	}
	switch {
	case guid == regionBAT():
		r.bat = region
	case guid == regionMetadata():
		r.metadata = region
	case le.Uint32(e[28:])&1 != 0:
		return v.unsupported(where, "region %s is required but unknown", guid)
	}
	r.taken = append(r.taken, region)
	return nil
}

// checkDisjoint sorts the ranges and refuses two that overlap.
func (v *view) checkDisjoint(ranges []block.Range, at int64) error {
	slices.SortFunc(ranges, func(a, b block.Range) int { return cmp.Compare(a.Off, b.Off) })
	for i := 1; i < len(ranges); i++ {
		if ranges[i-1].End() > ranges[i].Off {
			return v.corrupt(at, "%v and %v overlap", ranges[i-1], ranges[i])
		}
	}
	return nil
}
