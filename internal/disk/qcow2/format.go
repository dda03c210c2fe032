// Package qcow2 reads the disk format of QEMU and writes new disks of it, front to back.
//
// A qcow2 file is a row of clusters, 64 KiB each unless the header says otherwise. The L1 table has an entry for each
// L2 table, an L2 table one for each cluster of the guest: where it lies in the file, plain or compressed, or that it is
// zeros, or nothing, which means what the backing file has there, and zeros if there is none. With extended entries, each
// says that of 32 parts of its cluster. Beside that there are reference counts, which only writers need, and internal
// snapshots, which have tables of their own and are not looked at. All numbers are big-endian (docs/interop/qcow2.rst of QEMU).
//
// What cannot be read is refused clearly instead of being guessed at: encryption, external data files, features that are
// not known, and files that QEMU has marked as dirty or corrupt. What is read may be hostile: memory is bounded by the
// header's limits, and every offset is checked before it is used.
package qcow2

import (
	"encoding/binary"
	"fmt"

	"sitrep/internal/block"
	"sitrep/internal/fault"
)

// Magic is what a file begins with.
const Magic = "QFI\xfb"

// MaxSize is the largest disk that is read or made, in bytes: 64 TiB, as of a change log.
const MaxSize = 1 << 46

const (
	clusterBits    = 16 // of new disks
	minClusterBits = 9
	maxClusterBits = 21
	headerV2       = 72
	headerV3       = 104
	newHeader      = 112 // of new disks: with the compression type and padding
	maxL1          = 32 << 20
	entrySize      = 8
	maxName        = 1023 // bytes of the name of the backing file
	subclusters    = 32   // of a cluster with an extended entry
	sectorSize     = 512

	offsetMask   = 0x00fffffffffffe00
	copied       = 1 << 63 // the cluster is this table's alone
	compressed   = 1 << 62
	readsAsZero  = 1 << 0
	refcountBits = 16 // of new disks
)

// Bits of the incompatible features.
const (
	featureDirty       = 1 << 0 // reference counts may be wrong
	featureCorrupt     = 1 << 1
	featureDataFile    = 1 << 2
	featureCompression = 1 << 3 // compressed clusters are of the kind that the header names
	featureExtendedL2  = 1 << 4
)

// header is what the beginning of a file says.
type header struct {
	version        uint32
	backing        uint64
	clusterBits    uint32
	size           uint64
	encryption     uint32
	l1Entries      uint32
	l1At           uint64
	refcountsAt    uint64
	refcountTables uint32 // clusters
	incompatible   uint64
	length         uint32 // of the header itself
	compression    uint8
	nameLen        uint32 // of the backing file's name
}

// The kinds of compressed clusters.
const (
	deflated  = 0
	zstandard = 1
)

// extensionFormat is the header extension that names the format of the backing file.
const extensionFormat = 0xe2792aca

// decode reads a header of at least headerV2 bytes; what lies behind the end of a short file is zero.
func (h *header) decode(p []byte) {
	be := binary.BigEndian
	h.version = be.Uint32(p[4:])
	h.backing = be.Uint64(p[8:])
	h.nameLen = be.Uint32(p[16:])
	h.length = headerV2
	h.clusterBits = be.Uint32(p[20:])
	h.size = be.Uint64(p[24:])
	h.encryption = be.Uint32(p[32:])
	h.l1Entries = be.Uint32(p[36:])
	h.l1At = be.Uint64(p[40:])
	h.refcountsAt = be.Uint64(p[48:])
	h.refcountTables = be.Uint32(p[56:])
	if h.version >= 3 {
		h.incompatible = be.Uint64(p[72:])
		h.length = be.Uint32(p[100:])
		if h.length > headerV3 && h.incompatible&featureCompression != 0 {
			h.compression = p[104]
		}
	}
}

// encode makes the header of a new disk: version 3, 16-bit reference counts.
func (h header) encode() []byte {
	be := binary.BigEndian
	p := make([]byte, newHeader)
	copy(p, Magic)
	be.PutUint32(p[4:], 3)
	be.PutUint32(p[20:], clusterBits)
	be.PutUint64(p[24:], h.size)
	be.PutUint32(p[36:], h.l1Entries)
	be.PutUint64(p[40:], h.l1At)
	be.PutUint64(p[48:], h.refcountsAt)
	be.PutUint32(p[56:], h.refcountTables)
	be.PutUint32(p[96:], 4) // 1 << 4 bits
	be.PutUint32(p[100:], newHeader)
	return p
}

// refuse says what cannot be read of a file of this header, or nil.
func (h header) refuse(fileSize int64) *fault.Error {
	unsupported := func(format string, args ...any) *fault.Error {
		return fault.New(fault.DiskUnsupported, format, args...)
	}
	corrupt := func(format string, args ...any) *fault.Error { return fault.New(fault.DiskCorrupt, format, args...) }
	known := uint64(featureDirty | featureCorrupt | featureDataFile | featureCompression | featureExtendedL2)
	switch {
	case h.version != 2 && h.version != 3:
		return unsupported("version %d of qcow is not supported", h.version)
	case h.incompatible&^known != 0:
		return unsupported("the qcow2 file needs features that are not known: bits %#x", h.incompatible&^known)
	case h.encryption != 0:
		return unsupported("the qcow2 file is encrypted")
	case h.incompatible&featureDataFile != 0:
		return unsupported("the qcow2 file keeps its data in another file")
	case h.compression != deflated && h.compression != zstandard:
		return unsupported("the qcow2 file has clusters of the unknown compression %d", h.compression)
	case h.incompatible&featureDirty != 0:
		return corrupt("QEMU has the qcow2 file open with lazy reference counts, or did not close it: switch the VM off, then repair it (qemu-img check -r all)")
	case h.incompatible&featureCorrupt != 0:
		return corrupt("QEMU has marked the qcow2 file as corrupt: repair it first (qemu-img check -r all)")
	case h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits:
		return corrupt("clusters of 2^%d bytes", h.clusterBits)
	case h.extended() && h.clusterBits < minExtendedBits, h.length < headerV2 || h.version == 3 && h.length < headerV3,
		h.backing != 0 && (h.nameLen == 0 || h.nameLen > maxName || h.backing+uint64(h.nameLen) > 1<<h.clusterBits || h.backing < uint64(h.length)):
		return corrupt("the header of the qcow2 file contradicts itself")
	case h.size == 0 || h.size > MaxSize || h.size%sectorSize != 0:
		return unsupported("a disk cannot have %d bytes", h.size)
	}
	return h.refuseL1(fileSize)
}

func (h header) refuseL1(fileSize int64) *fault.Error {
	need := h.l1Needed()
	switch {
	case need*entrySize > maxL1:
		return fault.New(fault.DiskUnsupported, "a disk of %d bytes with clusters of %d is too large", h.size, int64(1)<<h.clusterBits)
	case int64(h.l1Entries) < need:
		return fault.New(fault.DiskCorrupt, "the L1 table has %d entries, the disk needs %d", h.l1Entries, need)
	case h.l1At%(1<<h.clusterBits) != 0 || h.l1At == 0 || h.l1At > MaxSize*2 ||
		!(block.Range{Off: int64(h.l1At), Len: need * entrySize}).Within(fileSize):
		return fault.New(fault.DiskCorrupt, "the L1 table at %d does not lie in the file", h.l1At)
	}
	return nil
}

// minExtendedBits makes parts of a cluster of a sector at least.
const minExtendedBits = 14

func (h header) extended() bool { return h.incompatible&featureExtendedL2 != 0 }

// l1Needed is how many L2 tables the disk has.
func (h header) l1Needed() int64 {
	bits := 2*h.clusterBits - 3
	if h.extended() {
		bits--
	}
	return block.Count(int64(h.size), int64(1)<<bits)
}

func outside(name string, off, n, size int64) error {
	return fmt.Errorf("range [%d,+%d) lies outside of the disk of %d bytes: %s", off, n, size, name)
}
