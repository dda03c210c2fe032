// Package qcow2 reads the disk format of QEMU and writes new disks of it, front to back.
//
// A qcow2 file is a row of clusters, 64 KiB each unless the header says otherwise. The L1 table has an entry for each
// L2 table, an L2 table one for each cluster of the guest: where it lies in the file, or that it is zeros, or nothing,
// which without a backing file means zeros too. Beside that there are reference counts, which only writers need. All
// numbers are big-endian (docs/interop/qcow2.rst of QEMU).
//
// Disks of this format are what a VM is recovered to, and what is read when it is brought home after QEMU has written
// to it. So everything that such a disk cannot have is refused clearly instead of being guessed at: backing files,
// encryption, compressed clusters, external data files, extended L2 entries, and features that are not known. What is
// read may be hostile: memory is bounded by the header's limits, and every offset is checked before it is used.
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
	featureCompression = 1 << 3 // compressed clusters are of another kind; there may be none
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
}

// decode reads a header of at least headerV2 bytes; what lies behind the end of a short file is zero.
func (h *header) decode(p []byte) {
	be := binary.BigEndian
	h.version = be.Uint32(p[4:])
	h.backing = be.Uint64(p[8:])
	h.clusterBits = be.Uint32(p[20:])
	h.size = be.Uint64(p[24:])
	h.encryption = be.Uint32(p[32:])
	h.l1Entries = be.Uint32(p[36:])
	h.l1At = be.Uint64(p[40:])
	h.refcountsAt = be.Uint64(p[48:])
	h.refcountTables = be.Uint32(p[56:])
	if h.version >= 3 {
		h.incompatible = be.Uint64(p[72:])
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
	case h.backing != 0:
		return unsupported("the qcow2 file has a backing file: merge them first (qemu-img rebase -b '')")
	case h.encryption != 0:
		return unsupported("the qcow2 file is encrypted")
	case h.incompatible&featureDataFile != 0:
		return unsupported("the qcow2 file keeps its data in another file")
	case h.incompatible&featureExtendedL2 != 0:
		return unsupported("the qcow2 file has extended L2 entries")
	case h.incompatible&featureCorrupt != 0:
		return corrupt("QEMU has marked the qcow2 file as corrupt: repair it first (qemu-img check -r all)")
	case h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits:
		return corrupt("clusters of 2^%d bytes", h.clusterBits)
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

// l1Needed is how many L2 tables the disk has.
func (h header) l1Needed() int64 {
	return block.Count(int64(h.size), int64(1)<<(2*h.clusterBits-3))
}

func outside(name string, off, n, size int64) error {
	return fmt.Errorf("range [%d,+%d) lies outside of the disk of %d bytes: %s", off, n, size, name)
}
