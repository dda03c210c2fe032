// Package vhd reads, writes and makes virtual disks of the VHD format ("Virtual Hard Disk Image Format
// Specification", Microsoft, version 1.0 of 2006), which Hyper-V, Azure and QEMU (there called vpc) share.
//
// All numbers are big-endian. The last 512 bytes of a file are its footer: the cookie "conectix", the size of the disk,
// its UUID and its type.
//
//	fixed         guest bytes | footer
//	dynamic       copy of the footer | header | table | blocks … | footer
//	differencing  the same, and what a block does not hold is read from the parent
//
// The table has one 32-bit entry for each block of the disk: the sector of the file at which the block lies, or all ones
// where the file has none. A block is a bitmap with one bit for each of its sectors, the most significant bit first, and
// then the guest's bytes. In a dynamic disk the bitmap says nothing (writers leave it clear or set); in a differencing
// disk a clear bit means "ask the parent", and so does a missing block.
//
// What files in the field do differently from the letter, and what this package therefore holds to:
//   - The size of the disk is the field Current Size. The geometry usually says less, and the file may be longer.
//   - The copy of the footer is there for the case that the end of the file is damaged: it is used then. A fixed disk has
//     none, so that offset 0 is never looked at there: it is the guest's.
//   - A child names its parent by UUID. The parent's time stamp in it is 0 when Windows 10 wrote it, and is not compared.
//   - The unit of a locator's "data space" differs between writers; only its length and its offset are used.
//   - Footers of 511 bytes (Virtual PC before 2004) are read.
package vhd

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"time"

	"sitrep/internal/fault"
)

// Type says how the guest's bytes lie in the file (the footer's field Disk Type).
type Type uint32

// The types.
const (
	Fixed        Type = 2
	Dynamic      Type = 3
	Differencing Type = 4
)

func (t Type) String() string {
	switch t {
	case Fixed:
		return "fixed"
	case Dynamic:
		return "dynamic"
	case Differencing:
		return "differencing"
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// UUID identifies a disk; a child holds the one of its parent.
type UUID [16]byte

func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// NewUUID returns a random UUID (version 4 of RFC 9562).
func NewUUID() UUID {
	var u UUID
	rand.Read(u[:]) // never fails (crypto/rand)
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return u
}

const (
	// FooterSize is the length of a footer in bytes.
	FooterSize = 512
	// SectorSize is the unit of the table and of the bitmaps in bytes.
	SectorSize = 512
	// MaxSparseSize is the size in bytes that a dynamic or differencing disk can have: 2040 GiB.
	MaxSparseSize = 2040 << 30

	headerSize = 1024
	noOffset   = 1<<64 - 1
	absent     = 1<<32 - 1 // table entry of a block that the file does not hold
)

const (
	footerCookie = "conectix"
	headerCookie = "cxsparse"
)

// epoch is the moment from which time stamps count seconds.
var epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// Geometry is a number of cylinders, heads and sectors per track, for guests that ask the BIOS. Its product is usually
// less than the size of the disk.
type Geometry struct {
	Cylinders uint16
	Heads     uint8
	Sectors   uint8 // per track
}

// GeometryOf computes the geometry of a disk of size bytes, as the appendix of the specification does.
func GeometryOf(size int64) Geometry {
	total := min(size/SectorSize, 65535*16*255)
	shape := func(sectors, heads int64) Geometry {
		return Geometry{uint16(total / sectors / heads), uint8(heads), uint8(sectors)}
	}
	if total >= 65535*16*63 {
		return shape(255, 16)
	}
	tracks := total / 17
	heads := max(4, (tracks+1023)/1024)
	if tracks < heads*1024 && heads <= 16 {
		return shape(17, heads)
	}
	if total/31 < 16*1024 {
		return shape(31, 16)
	}
	return shape(63, 16)
}

// Footer is the record at the end of every VHD file.
type Footer struct {
	Features       uint32
	Version        uint32 // of the format, 0x00010000
	DataOffset     uint64 // of the header in bytes; all ones for a fixed disk
	TimeStamp      uint32 // seconds since 2000-01-01 UTC
	CreatorApp     [4]byte
	CreatorVersion uint32
	CreatorHost    [4]byte
	OriginalSize   uint64 // bytes
	CurrentSize    uint64 // bytes
	Geometry       Geometry
	Type           Type
	ID             UUID
	SavedState     uint8
}

// NewFooter returns the footer of a fixed disk of size bytes (a multiple of 512) created at the given time. The creator
// is "win " on "Wi2k": QEMU then takes the size from Current Size instead of the geometry, and Azure accepts it.
func NewFooter(size int64, id UUID, created time.Time) Footer {
	return Footer{
		Features: 2, Version: 0x00010000, DataOffset: noOffset,
		TimeStamp:  uint32(max(0, created.Unix()-epoch.Unix())),
		CreatorApp: [4]byte([]byte("win ")), CreatorVersion: 0x000a0000, CreatorHost: [4]byte([]byte("Wi2k")),
		OriginalSize: uint64(size), CurrentSize: uint64(size), Geometry: GeometryOf(size), Type: Fixed, ID: id,
	}
}

// MarshalBinary returns the 512 bytes of the footer, checksum included. It never fails.
func (f Footer) MarshalBinary() ([]byte, error) { return f.bytes(), nil }

func (f Footer) bytes() []byte {
	b := make([]byte, FooterSize)
	be := binary.BigEndian
	copy(b, footerCookie)
	be.PutUint32(b[8:], f.Features)
	be.PutUint32(b[12:], f.Version)
	be.PutUint64(b[footerOffsetAt:], f.DataOffset)
	be.PutUint32(b[24:], f.TimeStamp)
	copy(b[28:], f.CreatorApp[:])
	be.PutUint32(b[32:], f.CreatorVersion)
	copy(b[36:], f.CreatorHost[:])
	be.PutUint64(b[40:], f.OriginalSize)
	be.PutUint64(b[48:], f.CurrentSize)
	be.PutUint16(b[56:], f.Geometry.Cylinders)
	b[58], b[59] = f.Geometry.Heads, f.Geometry.Sectors
	be.PutUint32(b[footerTypeAt:], uint32(f.Type))
	copy(b[68:], f.ID[:])
	b[84] = f.SavedState
	be.PutUint32(b[64:], checksum(b, 64))
	return b
}

// UnmarshalBinary reads a footer of 512 bytes. The error is a fault: DiskFormat when the cookie is not there, DiskCorrupt
// when the checksum is wrong, DiskUnsupported when the version or the type is unknown.
func (f *Footer) UnmarshalBinary(b []byte) error {
	if len(b) != FooterSize || string(b[:8]) != footerCookie {
		return fault.New(fault.DiskFormat, "there is no VHD footer")
	}
	be := binary.BigEndian
	if want, got := be.Uint32(b[64:]), checksum(b, 64); want != got {
		return fault.New(fault.DiskCorrupt, "the checksum of the VHD footer is %08x and should be %08x", want, got)
	}
	*f = Footer{
		Features: be.Uint32(b[8:]), Version: be.Uint32(b[12:]), DataOffset: be.Uint64(b[footerOffsetAt:]),
		TimeStamp: be.Uint32(b[24:]), CreatorApp: [4]byte(b[28:32]), CreatorVersion: be.Uint32(b[32:]),
		CreatorHost: [4]byte(b[36:40]), OriginalSize: be.Uint64(b[40:]), CurrentSize: be.Uint64(b[48:]),
		Geometry: Geometry{be.Uint16(b[56:]), b[58], b[59]},
		Type:     Type(be.Uint32(b[footerTypeAt:])), ID: UUID(b[68:84]), SavedState: b[84],
	}
	if f.Version>>16 != 1 {
		return fault.New(fault.DiskUnsupported, "the VHD format version %d.%d is unknown", f.Version>>16, f.Version&0xffff)
	}
	if f.Type < Fixed || f.Type > Differencing {
		return fault.New(fault.DiskUnsupported, "the VHD disk type %d is unknown", uint32(f.Type))
	}
	return nil
}

// Created is the time of the footer's time stamp.
func (f Footer) Created() time.Time { return epoch.Add(time.Duration(f.TimeStamp) * time.Second) }

// Where in a footer two of its fields lie.
const (
	footerOffsetAt = 16
	footerTypeAt   = 60
)

// IsFooter says whether the 512 bytes are a footer by cookie and checksum.
func IsFooter(b []byte) bool {
	return HasCookie(b) && len(b) == FooterSize && binary.BigEndian.Uint32(b[64:]) == checksum(b, 64)
}

// HasCookie says whether b begins with the cookie of a footer.
func HasCookie(b []byte) bool { return bytes.HasPrefix(b, []byte(footerCookie)) }

// checksum is the one's complement of the sum of all bytes, the four of the field at off left out.
func checksum(b []byte, off int) uint32 {
	var sum uint32
	for i, c := range b {
		if i < off || i >= off+4 {
			sum += uint32(c)
		}
	}
	return ^sum
}

// header is the record at Data Offset of dynamic and differencing disks.
type header struct {
	tableOffset uint64 // bytes
	version     uint32
	entries     uint32
	blockSize   uint32 // bytes, without the bitmap
	parentID    UUID
	parentName  [512]byte // UTF-16, big-endian
	locators    [8]locator
}

// locator tells where in the file a name of the parent lies.
type locator struct {
	code   [4]byte
	length uint32 // bytes
	offset uint64 // bytes
}

// headerChecksumAt is where in the header its checksum lies.
const headerChecksumAt = 36

func (h header) bytes() []byte {
	b := make([]byte, headerSize)
	be := binary.BigEndian
	copy(b, headerCookie)
	be.PutUint64(b[8:], noOffset)
	be.PutUint64(b[16:], h.tableOffset)
	be.PutUint32(b[24:], h.version)
	be.PutUint32(b[28:], h.entries)
	be.PutUint32(b[32:], h.blockSize)
	be.PutUint32(b[headerChecksumAt:], checksum(b, headerChecksumAt))
	return b
}

func (h *header) unmarshal(b []byte) error {
	be := binary.BigEndian
	if string(b[:8]) != headerCookie {
		return fault.New(fault.DiskCorrupt, "there is no VHD header where the footer points")
	}
	if want, got := be.Uint32(b[headerChecksumAt:]), checksum(b, headerChecksumAt); want != got {
		return fault.New(fault.DiskCorrupt, "the checksum of the VHD header is %08x and should be %08x", want, got)
	}
	*h = header{
		tableOffset: be.Uint64(b[16:]), version: be.Uint32(b[24:]), entries: be.Uint32(b[28:]),
		blockSize: be.Uint32(b[32:]), parentID: UUID(b[40:56]), parentName: [512]byte(b[64:576]),
	}
	for i := range h.locators {
		l := b[576+24*i:]
		h.locators[i] = locator{code: [4]byte(l[:4]), length: be.Uint32(l[8:]), offset: be.Uint64(l[16:])}
	}
	if h.version>>16 != 1 {
		return fault.New(fault.DiskUnsupported, "the version %d.%d of the VHD header is unknown", h.version>>16, h.version&0xffff)
	}
	return nil
}
