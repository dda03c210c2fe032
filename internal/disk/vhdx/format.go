package vhdx

import (
	"encoding/binary"
	"hash/crc32"
)

// Sizes and places of [MS-VHDX] 2.2.
const (
	kib = 1 << 10
	mib = 1 << 20
	tib = 1 << 40

	sectorSize   = 4 * kib // unit of the log and of everything that is changed through it
	headerSize   = 4 * kib
	tableSize    = 64 * kib // a region table, and the metadata table
	identifierAt = 0
	header1At    = 64 * kib
	header2At    = 128 * kib
	region1At    = 192 * kib
	region2At    = 256 * kib
	headerArea   = mib // nothing else begins before it

	maxEntries  = 2047      // of a region table and of a metadata table
	maxItem     = mib       // bytes of one metadata item
	maxDiskSize = 64 * tib  // 2.6.2.2
	maxLog      = 1 << 30   // ours: a log is 1 MiB in practice
	maxFile     = 128 * tib // ours: the largest disk, its tables and as much again for waste
	minBlock    = mib
	maxBlock    = 256 * mib
	chunkBits   = 1 << 23 // sectors described by one sector bitmap block (2.4)
	bitmapSize  = mib     // bytes of a sector bitmap block
)

const (
	identifierMagic = "vhdxfile"
	headerMagic     = "head"
	regionMagic     = "regi"
	metadataMagic   = "metadata"
)

// state is the state of a BAT entry ([MS-VHDX] 2.5.1.1, 2.5.1.2).
type state uint8

const (
	notPresent       state = 0
	undefined        state = 1
	zeroed           state = 2
	unmapped         state = 3
	fullyPresent     state = 6
	partiallyPresent state = 7
	bitmapPresent    state = 6
)

// batEntry is one entry of the block allocation table.
type batEntry uint64

func makeEntry(s state, fileOff int64) batEntry { return batEntry(uint64(fileOff) | uint64(s)) }

func (e batEntry) state() state { return state(e & 7) }

// mb is the place in the file, in MiB. It means nothing in the states notPresent and zeroed.
func (e batEntry) mb() uint64 { return uint64(e) >> 20 }

// reserved is what the specification wants to be zero.
func (e batEntry) reserved() uint64 { return uint64(e) >> 3 & (1<<17 - 1) }

func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// checksum is the CRC-32C of p with the four bytes at 4, where every checked structure keeps it, taken as zero.
func checksum(p []byte) uint32 {
	sum := crc32.Update(0, castagnoli(), p[:4])
	sum = crc32.Update(sum, castagnoli(), []byte{0, 0, 0, 0})
	return crc32.Update(sum, castagnoli(), p[8:])
}

func checksumOK(p []byte) bool { return binary.LittleEndian.Uint32(p[4:]) == checksum(p) }

func putChecksum(p []byte) { binary.LittleEndian.PutUint32(p[4:], checksum(p)) }

// header is one of the two headers ([MS-VHDX] 2.2.2).
type header struct {
	sequence      uint64
	fileWriteGUID GUID
	dataWriteGUID GUID
	logGUID       GUID
	logVersion    uint16
	version       uint16
	logLength     uint32
	logOffset     uint64
}

// decodeHeader reads a header of headerSize bytes; ok is false when its signature or checksum is wrong.
func decodeHeader(p []byte) (h header, ok bool) {
	if string(p[:4]) != headerMagic || !checksumOK(p) {
		return header{}, false
	}
	le := binary.LittleEndian
	h.sequence = le.Uint64(p[8:])
	copy(h.fileWriteGUID[:], p[16:])
	copy(h.dataWriteGUID[:], p[32:])
	copy(h.logGUID[:], p[48:])
	h.logVersion = le.Uint16(p[64:])
	h.version = le.Uint16(p[66:])
	h.logLength = le.Uint32(p[68:])
	h.logOffset = le.Uint64(p[72:])
	return h, true
}

func (h header) encode() []byte {
	p := make([]byte, headerSize)
	le := binary.LittleEndian
	copy(p, headerMagic)
	le.PutUint64(p[8:], h.sequence)
	copy(p[16:], h.fileWriteGUID[:])
	copy(p[32:], h.dataWriteGUID[:])
	copy(p[48:], h.logGUID[:])
	le.PutUint16(p[64:], h.logVersion)
	le.PutUint16(p[66:], h.version)
	le.PutUint32(p[68:], h.logLength)
	le.PutUint64(p[72:], h.logOffset)
	putChecksum(p)
	return p
}

// The GUIDs of regions and metadata items are functions, so that nothing can change them.

func regionBAT() GUID      { return mustGUID("2DC27766-F623-4200-9D64-115E9BFD4A08") }
func regionMetadata() GUID { return mustGUID("8B7CA206-4790-4B9A-B8FE-575F050F886E") }

func itemFileParameters() GUID     { return mustGUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B") }
func itemDiskSize() GUID           { return mustGUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8") }
func itemDiskID() GUID             { return mustGUID("BECA12AB-B2E6-4523-93EF-C309E000C746") }
func itemLogicalSectorSize() GUID  { return mustGUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F") }
func itemPhysicalSectorSize() GUID { return mustGUID("CDA348C7-445D-4471-9CC9-E9885251C556") }
func itemParentLocator() GUID      { return mustGUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C") }

// itemIncomplete is in a file whose creation was not finished. It is not in the specification; Microsoft's own
// implementation writes it.
func itemIncomplete() GUID { return mustGUID("71CC85F0-1B69-4E28-9558-C3BF83AE75D3") }

func locatorVHDX() GUID { return mustGUID("B04AEFB7-D19E-4A81-B789-25B8E9445913") }
