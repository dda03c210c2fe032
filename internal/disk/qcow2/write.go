package qcow2

import (
	"encoding/binary"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// ClusterSize is the size in bytes of the clusters of new disks.
const ClusterSize = 1 << clusterBits

// perCluster is how many entries a table of one cluster has.
const perCluster = ClusterSize / entrySize

// Writer writes a new disk from its front to its end, in one pass, with memory for one L2 table and the L1 table (8 bytes
// for each 512 MiB). It is not safe for concurrent use. The file is no qcow2 before Finish has returned: the header is
// written last.
type Writer struct {
	file  durable.File
	size  int64
	end   int64 // of the file, whole clusters
	next  int64 // guest bytes before this offset are settled
	l1    []uint64
	l2    []uint64
	table int64 // which L2 table l2 is
	used  bool  // l2 has an entry
}

// Create begins a disk of size guest bytes (a multiple of 512, at most MaxSize) in the empty file f, which stays the
// caller's to close.
func Create(f durable.File, size int64) (*Writer, error) {
	if size <= 0 || size > MaxSize || size%sectorSize != 0 {
		return nil, fault.New(fault.DiskUnsupported, "a qcow2 disk cannot have %d bytes", size).At(f.Name())
	}
	h := header{size: uint64(size), clusterBits: clusterBits}
	return &Writer{file: f, size: size, end: ClusterSize, l1: make([]uint64, h.l1Needed()), l2: make([]uint64, perCluster)}, nil
}

// Append writes guest bytes. off is a multiple of ClusterSize and not before the end of an earlier Append; len(p) is one
// too, except at the end of the disk. What lies between two Appends is zero, and takes no space.
func (w *Writer) Append(off int64, p []byte) error {
	r := block.Range{Off: off, Len: int64(len(p))}
	if off < w.next || !r.Within(w.size) || off%ClusterSize != 0 || r.End()%ClusterSize != 0 && r.End() != w.size {
		return outside(w.file.Name(), off, r.Len, w.size)
	}
	for len(p) > 0 {
		table := off / ClusterSize / perCluster
		n := min(int64(len(p)), (table+1)*perCluster*ClusterSize-off)
		if err := w.turnTo(table); err != nil {
			return err
		}
		if err := w.put(off, p[:n]); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	w.next = off
	return nil
}

// put writes bytes of clusters that the present L2 table names.
func (w *Writer) put(off int64, p []byte) error {
	if _, err := w.file.WriteAt(p, w.end); err != nil {
		return fault.FromOS(err)
	}
	first := off / ClusterSize % perCluster
	for i := range block.Count(int64(len(p)), ClusterSize) {
		w.l2[first+i] = uint64(w.end) | copied
		w.end += ClusterSize
	}
	w.used = true
	return nil
}

// turnTo makes a table the present one, and writes the one before.
func (w *Writer) turnTo(table int64) error {
	if table == w.table {
		return nil
	}
	if err := w.writeL2(); err != nil {
		return err
	}
	w.table = table
	return nil
}

func (w *Writer) writeL2() error {
	if !w.used {
		return nil
	}
	at, err := w.append(encode(w.l2))
	if err != nil {
		return err
	}
	w.l1[w.table] = uint64(at) | copied
	clear(w.l2)
	w.used = false
	return nil
}

// append writes whole clusters at the end of the file.
func (w *Writer) append(p []byte) (at int64, err error) {
	at = w.end
	if _, err := w.file.WriteAt(p, at); err != nil {
		return 0, fault.FromOS(err)
	}
	w.end += block.RoundUp(int64(len(p)), ClusterSize)
	return at, nil
}

// Finish writes what belongs around the guest's bytes. When it returns the disk is whole and durable; the name of the file
// is the caller's to make durable.
func (w *Writer) Finish() error {
	if err := w.writeL2(); err != nil {
		return err
	}
	h := header{size: uint64(w.size), l1Entries: uint32(len(w.l1))}
	at, err := w.append(encode(w.l1))
	if err != nil {
		return err
	}
	h.l1At = uint64(at)
	if err := w.writeRefcounts(&h); err != nil {
		return err
	}
	if err := w.file.Truncate(w.end); err != nil { // the last cluster may have been written in part
		return fault.FromOS(err)
	}
	if err := w.sync(); err != nil {
		return err
	}
	if _, err := w.file.WriteAt(h.encode(), 0); err != nil {
		return fault.FromOS(err)
	}
	return w.sync()
}

func (w *Writer) sync() error {
	if err := w.file.Sync(); err != nil {
		return fault.FromOS(err)
	}
	return nil
}

// writeRefcounts writes that every cluster of the file, those with the counts included, has one user.
func (w *Writer) writeRefcounts(h *header) error {
	const perBlock = ClusterSize / (refcountBits / 8)
	used := w.end / ClusterSize
	blocks, tables := int64(1), int64(1)
	for blocks*perBlock < used+blocks+tables {
		blocks = block.Count(used+blocks+tables, perBlock)
		tables = block.Count(blocks, perCluster)
	}
	used += blocks + tables
	places := make([]uint64, tables*perCluster)
	counts := make([]byte, ClusterSize)
	for i := range blocks {
		clear(counts)
		for c := range min(perBlock, used-i*perBlock) {
			binary.BigEndian.PutUint16(counts[2*c:], 1)
		}
		at, err := w.append(counts)
		if err != nil {
			return err
		}
		places[i] = uint64(at)
	}
	at, err := w.append(encode(places))
	h.refcountsAt, h.refcountTables = uint64(at), uint32(tables)
	return err
}

func encode(table []uint64) []byte {
	p := make([]byte, 0, len(table)*entrySize)
	for _, e := range table {
		p = binary.BigEndian.AppendUint64(p, e)
	}
	return p
}
