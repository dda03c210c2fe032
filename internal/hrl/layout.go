package hrl

import (
	"encoding/binary"
	"math"
	"time"

	"github.com/zeebo/xxh3"

	"sitrep/internal/fault"
)

// Sizes of [MS-HRL], in bytes.
const (
	headerSize     = 4096
	metaHeaderSize = 32
	entrySize      = 32
	// metadataSize is the MetadataSize of our logs, the default of [MS-HRL] 2.2.
	metadataSize = 4096
	// maxMetadataSize is the largest that we read: it bounds what a reader allocates.
	maxMetadataSize = 1 << 20
	// sectorSize is what a disk writes as a whole or not at all. What changes in a header lies in its first sector.
	sectorSize = 512
)

// Values of LogFormatVersion.
const (
	version1 = 0x00010000
	version2 = 0x00020000
)

// Offsets of the header's fields, [MS-HRL] 2.2.
const (
	hCookie        = 0
	hVersion       = 8
	hTimeStamp     = 12
	hCreator       = 16
	hCreatorVer    = 20
	hOriginalSize  = 24
	hCurrentSize   = 32
	hChecksum      = 40
	hEOL           = 44
	hErrorCode     = 52
	hMetadataSize  = 56
	hUniqueID      = 60
	hPreviousID    = 76
	hLastModified  = 92
	hEntries       = 96
	hFileType      = 104
	hDataWriteGUID = 110 // version 2 only
)

// Offsets of our fields in the header's reserved area; see the package comment.
const (
	xMagic      = 126
	xFormat     = 132
	xKind       = 134
	xFlags      = 135
	xDigest     = 136
	xDataBytes  = 152
	xZeroBytes  = 160
	xReplica    = 168
	xFromSeq    = 184
	xFromID     = 192
	xToSeq      = 208
	xToID       = 216
	xSizeBefore = 232
	xSize       = 240
	xBlockSize  = 248
	xCutAt      = 256
	xVMLen      = 264
	xDiskLen    = 266
	xNames      = 268
)

// Offsets in a metadata header, [MS-HRL] 2.3.
const (
	mPrevious = 0
	mEntries  = 8
	mChecksum = 12
	mDigest   = 16 // reserved there
)

// Offsets in a metadata entry, [MS-HRL] 2.4.
const (
	eByteOffset   = 0
	eChecksum     = 8
	eDataLength   = 12
	eTimeStamp    = 16
	eOperation    = 20
	eDataChecksum = 21
	eFlags        = 26 // the first of six reserved bytes
)

const (
	cookie        = "msctlog"
	magic         = "SITREP"
	ourFormat     = 1
	creator       = "sitr"
	ourVersion    = 0x00010000
	opWrite       = 1
	flagZero      = 1 // in eFlags
	flagAppCons   = 1 // in xFlags
	maxNameLength = 255
)

var le = binary.LittleEndian

// digest is an xxh3-128.
type digest [16]byte

// checksum is the algorithm of [MS-HRL] 2.6: the one's complement of the sum of all bytes, leaving out the four at skip.
func checksum(p []byte, skip int) uint32 {
	return ^(byteSum(p[:skip]) + byteSum(p[skip+4:]))
}

func byteSum(p []byte) uint32 {
	var sum uint32
	for _, b := range p {
		sum += uint32(b)
	}
	return sum
}

// epoch is second 0 of [MS-HRL]: 2000-01-01 UTC.
const epoch = 946684800

// stamp turns a time into seconds since 2000; times that do not fit become the nearest one that does.
func stamp(t time.Time) uint32 {
	return uint32(min(max(t.Unix()-epoch, 0), math.MaxUint32))
}

func stampTime(s uint32) time.Time { return time.Unix(int64(s)+epoch, 0).UTC() }

// header is a decoded log header.
type header struct {
	version      uint32
	created      uint32
	modified     uint32
	originalSize uint64
	currentSize  uint64
	eol          uint64
	errorCode    int32
	metadataSize uint32
	uniqueID     ID
	previousID   ID
	entries      uint64
	fileType     uint32
	dataWrite    [16]byte
	ours         *ours // nil in a foreign log
}

// ours is what our logs add.
type ours struct {
	id        Identity
	dataBytes uint64
	zeroBytes uint64
	digest    digest
}

// newHeader returns the header of a log that was just begun.
func newHeader(id Identity) *header {
	id.CutAt = time.Unix(0, id.CutAt.UnixNano()).UTC() // as a reader gets it: no zone, no monotonic clock
	h := &header{
		version: version2, created: stamp(id.CutAt), modified: stamp(id.CutAt),
		originalSize: headerSize + metadataSize, metadataSize: metadataSize,
		uniqueID: LogID(id.Kind, id.To, id.Disk), dataWrite: id.DataWriteGUID, ours: &ours{id: id},
	}
	if !id.From.IsZero() {
		h.previousID = LogID(id.Kind, id.From, id.Disk)
	}
	return h
}

// encode writes the header of one of our logs, whose last metadata block has the digest last.
func (h *header) encode(last digest) []byte {
	p := make([]byte, headerSize)
	copy(p[hCookie:], cookie+" ")
	le.PutUint32(p[hVersion:], h.version)
	le.PutUint32(p[hTimeStamp:], h.created)
	copy(p[hCreator:], creator)
	le.PutUint32(p[hCreatorVer:], ourVersion)
	le.PutUint64(p[hOriginalSize:], h.originalSize)
	le.PutUint64(p[hCurrentSize:], h.currentSize)
	le.PutUint64(p[hEOL:], h.eol)
	le.PutUint32(p[hMetadataSize:], h.metadataSize)
	copy(p[hUniqueID:], h.uniqueID[:])
	copy(p[hPreviousID:], h.previousID[:])
	le.PutUint32(p[hLastModified:], h.modified)
	le.PutUint64(p[hEntries:], h.entries)
	copy(p[hDataWriteGUID:], h.dataWrite[:])
	h.ours.put(p)
	d := headerDigest(p, last)
	copy(p[xDigest:], d[:])
	le.PutUint32(p[hChecksum:], checksum(p, hChecksum))
	return p
}

func (o *ours) put(p []byte) {
	copy(p[xMagic:], magic)
	le.PutUint16(p[xFormat:], ourFormat)
	p[xKind] = byte(o.id.Kind)
	if o.id.AppConsistent {
		p[xFlags] = flagAppCons
	}
	le.PutUint64(p[xDataBytes:], o.dataBytes)
	le.PutUint64(p[xZeroBytes:], o.zeroBytes)
	copy(p[xReplica:], o.id.Replica[:])
	le.PutUint64(p[xFromSeq:], o.id.From.Seq)
	copy(p[xFromID:], o.id.From.ID[:])
	le.PutUint64(p[xToSeq:], o.id.To.Seq)
	copy(p[xToID:], o.id.To.ID[:])
	le.PutUint64(p[xSizeBefore:], uint64(o.id.SizeBefore))
	le.PutUint64(p[xSize:], uint64(o.id.Size))
	le.PutUint64(p[xBlockSize:], uint64(o.id.BlockSize))
	le.PutUint64(p[xCutAt:], uint64(o.id.CutAt.UnixNano()))
	le.PutUint16(p[xVMLen:], uint16(len(o.id.VM)))
	le.PutUint16(p[xDiskLen:], uint16(len(o.id.Disk)))
	copy(p[xNames:], o.id.VM+o.id.Disk)
}

// headerDigest covers the header, without its digest and its checksum, and the digest of the last metadata block, which
// covers all that comes before it.
func headerDigest(p []byte, last digest) digest {
	rest := xxh3.Hash128(p[xDataBytes:headerSize]).Bytes()
	b := make([]byte, 0, 256)
	b = append(b, last[:]...)
	b = append(b, p[:hChecksum]...)
	b = append(b, p[hEOL:xDigest]...)
	b = append(b, rest[:]...)
	return xxh3.Hash128(b).Bytes()
}

// blockDigest covers a metadata block at offset loc, without its digest and its checksum, the log it belongs to and the
// digest of the block before it.
func blockDigest(log ID, loc int64, previous digest, p []byte) digest {
	rest := xxh3.Hash128(p[metaHeaderSize:metadataSize]).Bytes()
	b := make([]byte, 0, 128)
	b = append(b, log[:]...)
	b = le.AppendUint64(b, uint64(loc))
	b = append(b, previous[:]...)
	b = append(b, p[:mChecksum]...)
	b = append(b, rest[:]...)
	return xxh3.Hash128(b).Bytes()
}

// decodeHeader reads the first bytes of a log, as many as it has up to headerSize. What version it is is told before any
// checksum, so that a newer log is never called a damaged one.
func decodeHeader(name string, p []byte) (*header, error) {
	bad := func(format string, args ...any) error {
		return fault.New(fault.LogCorrupt, format, args...).AtOff(name, 0)
	}
	if len(p) < hTimeStamp || allZero(p) {
		return nil, bad("the log has no header")
	}
	if c := p[hCookie+len(cookie)]; string(p[:len(cookie)]) != cookie || c != ' ' && c != 0 {
		e := fault.New(fault.LogForeign, "this is no change log: it does not begin with %q", cookie).AtOff(name, 0)
		e.Cause = "The file is no change log."
		return nil, e
	}
	version := le.Uint32(p[hVersion:])
	if version != version1 && version != version2 {
		return nil, fault.New(fault.LogVersion, "the log has version %d.%d of the format; 1.0 and 2.0 are known",
			version>>16, version&0xffff).AtOff(name, hVersion)
	}
	if len(p) < headerSize {
		return nil, bad("the log ends in its header, after %d bytes", len(p))
	}
	isOurs := version == version2 && string(p[xMagic:xMagic+len(magic)]) == magic
	if f := le.Uint16(p[xFormat:]); isOurs && f != ourFormat {
		return nil, fault.New(fault.LogVersion, "the log has format %d of sitrep; %d is known", f, ourFormat).AtOff(name, xFormat)
	}
	if want, got := checksum(p, hChecksum), le.Uint32(p[hChecksum:]); want != got {
		return nil, bad("the header's checksum is %#x, its content gives %#x", got, want)
	}
	h := decodeFields(p)
	if err := h.check(); err != "" {
		return nil, bad("%s", err)
	}
	if !isOurs {
		return h, nil
	}
	if err := h.decodeOurs(p); err != "" {
		return nil, bad("%s", err)
	}
	return h, nil
}

func decodeFields(p []byte) *header {
	h := &header{
		version:      le.Uint32(p[hVersion:]),
		created:      le.Uint32(p[hTimeStamp:]),
		modified:     le.Uint32(p[hLastModified:]),
		originalSize: le.Uint64(p[hOriginalSize:]),
		currentSize:  le.Uint64(p[hCurrentSize:]),
		eol:          le.Uint64(p[hEOL:]),
		errorCode:    int32(le.Uint32(p[hErrorCode:])),
		metadataSize: le.Uint32(p[hMetadataSize:]),
		uniqueID:     ID(p[hUniqueID:]),
		previousID:   ID(p[hPreviousID:]),
		entries:      le.Uint64(p[hEntries:]),
		fileType:     le.Uint32(p[hFileType:]),
	}
	if h.version == version2 {
		h.dataWrite = [16]byte(p[hDataWriteGUID:])
	}
	return h
}

// check tells what makes the header unusable, "" when nothing does.
func (h *header) check() string {
	switch m := h.metadataSize; {
	case h.fileType != 0:
		return "the header names a type of file other than a change log"
	case h.errorCode != 0:
		return "the writer of the log recorded an error"
	case m < sectorSize || m > maxMetadataSize || m%sectorSize != 0:
		return "the header's size of metadata is out of range"
	case h.eol > math.MaxInt64 || h.currentSize > math.MaxInt64 || h.entries > math.MaxInt64:
		return "the header holds a size that is out of range"
	}
	return ""
}

func (h *header) decodeOurs(p []byte) string {
	vm, disk := int(le.Uint16(p[xVMLen:])), int(le.Uint16(p[xDiskLen:]))
	if vm > maxNameLength || disk > maxNameLength || !allZero(p[xNames+vm+disk:]) || p[xFlags]&^flagAppCons != 0 {
		return "the header's identity is damaged"
	}
	h.ours = &ours{
		id: Identity{
			Replica: ID(p[xReplica:]), Kind: Kind(p[xKind]),
			VM: string(p[xNames : xNames+vm]), Disk: string(p[xNames+vm : xNames+vm+disk]),
			From:       Pos{Seq: le.Uint64(p[xFromSeq:]), ID: ID(p[xFromID:])},
			To:         Pos{Seq: le.Uint64(p[xToSeq:]), ID: ID(p[xToID:])},
			SizeBefore: int64(le.Uint64(p[xSizeBefore:])), Size: int64(le.Uint64(p[xSize:])),
			BlockSize: int64(le.Uint64(p[xBlockSize:])),
			CutAt:     time.Unix(0, int64(le.Uint64(p[xCutAt:]))).UTC(), AppConsistent: p[xFlags]&flagAppCons != 0,
			DataWriteGUID: h.dataWrite,
		},
		dataBytes: le.Uint64(p[xDataBytes:]), zeroBytes: le.Uint64(p[xZeroBytes:]), digest: digest(p[xDigest:]),
	}
	if err := h.ours.id.check(); err != nil {
		return err.Error()
	}
	if h.metadataSize != metadataSize || h.uniqueID != LogID(h.ours.id.Kind, h.ours.id.To, h.ours.id.Disk) {
		return "the header contradicts the identity in it"
	}
	return ""
}
