package hrl_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/hrl"
)

// This file knows the format from [MS-HRL] alone: a plain reader, and a writer of logs that are not ours. It shares
// nothing with the package.

type specHeader struct {
	Cookie                [8]byte
	LogFormatVersion      uint32
	TimeStamp             uint32
	CreatorApplication    [4]byte
	CreatorVersion        uint32
	OriginalSize          uint64
	CurrentSize           uint64
	Checksum              uint32
	EOLLocation           uint64
	ErrorCode             int32
	MetadataSize          uint32
	UniqueID              [16]byte
	PreviousUniqueID      [16]byte
	LastModifiedTimeStamp uint32
	TotalMetadataEntries  uint64
	FileType              uint32
	Flags                 [2]byte
	Vhd2DataWriteGUID     [16]byte
	Reserved              [3970]byte
}

type specMetadata struct {
	PreviousMetadataLocation uint64
	ValidMetadataEntries     uint32
	Checksum                 uint32
	Reserved                 [16]byte
}

type specEntry struct {
	ByteOffset    uint64
	Checksum      uint32
	DataLength    uint32
	TimeStamp     uint32
	MetaOperation uint8
	DataChecksum  uint32
	Location      uint8
	Reserved      [6]byte
}

func unpack[T any](r io.ReaderAt, off int64) (v T, err error) {
	err = binary.Read(io.NewSectionReader(r, off, int64(binary.Size(v))), binary.LittleEndian, &v)
	return v, err
}

func pack(v any) []byte {
	p, err := binary.Append(nil, binary.LittleEndian, v)
	if err != nil {
		panic(err)
	}
	return p
}

// specChecksum is CalculateChecksum of [MS-HRL] 2.6.
func specChecksum(p []byte, ignore int) uint32 {
	var sum uint32
	for i, b := range p {
		if i < ignore || i >= ignore+4 {
			sum += uint32(b)
		}
	}
	return ^sum
}

// specWrite is one write as a plain reader sees it.
type specWrite struct {
	off, n int64
	at     int64
	time   uint32
}

// specRead is [MS-HRL] 2.5.
func specRead(r io.ReaderAt) (h specHeader, list []specWrite, err error) {
	if h, err = unpack[specHeader](r, 0); err != nil {
		return h, nil, err
	}
	if string(h.Cookie[:7]) != "msctlog" || h.LogFormatVersion != 0x20000 || h.FileType != 0 || h.Flags != [2]byte{} {
		return h, nil, errors.New("not a log")
	}
	if specChecksum(pack(h), 40) != h.Checksum {
		return h, nil, errors.New("header checksum")
	}
	if h.EOLLocation == 0 {
		return h, nil, errors.New("not closed")
	}
	var stack []int64
	for at := int64(h.EOLLocation) - int64(h.MetadataSize); ; {
		stack = append(stack, at)
		m, err := unpack[specMetadata](r, at)
		if err != nil {
			return h, nil, err
		}
		if m.PreviousMetadataLocation == 0 {
			break
		}
		at -= int64(m.PreviousMetadataLocation)
	}
	data := int64(4096)
	for _, at := range slices.Backward(stack) {
		m, err := unpack[specMetadata](r, at)
		if err != nil {
			return h, nil, err
		}
		if specChecksum(pack(m), 12) != m.Checksum {
			return h, nil, errors.New("metadata checksum")
		}
		for i := range int64(m.ValidMetadataEntries) {
			e, err := unpack[specEntry](r, at+32+32*i)
			if err != nil {
				return h, nil, err
			}
			if specChecksum(pack(e), 8) != e.Checksum || e.MetaOperation != 1 || e.Location != 0 {
				return h, nil, errors.New("entry checksum")
			}
			list = append(list, specWrite{off: int64(e.ByteOffset), n: int64(e.DataLength), at: data, time: e.TimeStamp})
			data += int64(e.DataLength)
		}
		data = at + int64(h.MetadataSize)
	}
	return h, list, nil
}

// specReplay is what a plain reader makes of a disk.
func specReplay(r io.ReaderAt, disk []byte) error {
	_, list, err := specRead(r)
	for _, w := range list {
		if _, err := r.ReadAt(disk[w.off:w.off+w.n], w.at); err != nil {
			return err
		}
	}
	return err
}

// specLog is a log as another writer makes it.
type specLog struct {
	version      uint32
	metadataSize uint32
	cookieEnd    byte
	open         bool // EOLLocation is left 0
	dataSums     bool // DataChecksum is computed
	slack        int  // unused bytes between data and metadata
	perBlock     int
	entries      []specEntry
	data         [][]byte
}

func (l *specLog) add(off uint64, data []byte) {
	l.entries = append(l.entries, specEntry{ByteOffset: off, DataLength: uint32(len(data)), TimeStamp: 1, MetaOperation: 1})
	l.data = append(l.data, data)
}

func (l *specLog) bytes() []byte {
	out := make([]byte, 4096)
	last := -1
	metadata := func(entries []specEntry) {
		out = append(out, make([]byte, l.slack)...)
		var m specMetadata
		if last >= 0 {
			m.PreviousMetadataLocation = uint64(len(out) - last)
		}
		last = len(out)
		m.ValidMetadataEntries = uint32(len(entries))
		m.Checksum = specChecksum(pack(m), 12)
		out = append(out, pack(m)...)
		for _, e := range entries {
			out = append(out, pack(e)...)
		}
		out = append(out, make([]byte, last+int(l.metadataSize)-len(out))...)
	}
	metadata(nil)
	for i := 0; i < len(l.entries); i += l.perBlock {
		part := slices.Clone(l.entries[i:min(i+l.perBlock, len(l.entries))])
		for j := range part {
			out = append(out, l.data[i+j]...)
			if l.dataSums {
				part[j].DataChecksum = specChecksum(l.data[i+j], len(l.data[i+j])) // nothing is ignored
			}
			part[j].Checksum = specChecksum(pack(part[j]), 8)
		}
		metadata(part)
	}
	h := specHeader{
		LogFormatVersion: l.version, CurrentSize: uint64(len(out)), MetadataSize: l.metadataSize,
		UniqueID: [16]byte{1}, PreviousUniqueID: [16]byte{2}, TotalMetadataEntries: uint64(len(l.entries)),
	}
	copy(h.Cookie[:], "msctlog")
	h.Cookie[7] = l.cookieEnd
	if !l.open {
		h.EOLLocation = uint64(len(out))
	}
	if l.version == 0x20000 {
		h.Vhd2DataWriteGUID = [16]byte{3}
	}
	h.Checksum = specChecksum(pack(h), 40)
	copy(out, pack(h))
	return out
}

// memFile is a file in memory.
type memFile struct{ p []byte }

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("a read at %d", off)
	}
	return bytes.NewReader(f.p).ReadAt(p, off)
}
func (f *memFile) WriteAt([]byte, int64) (int, error) { return 0, errors.ErrUnsupported }
func (f *memFile) Close() error                       { return nil }
func (f *memFile) Name() string                       { return "memory" }
func (f *memFile) Size() (int64, error)               { return int64(len(f.p)), nil }
func (f *memFile) Truncate(int64) error               { return errors.ErrUnsupported }
func (f *memFile) Extent(int64, int64) (block.Extent, error) {
	return block.Extent{}, errors.ErrUnsupported
}
func (f *memFile) ZeroAt(int64, int64) error     { return errors.ErrUnsupported }
func (f *memFile) Sync() error                   { return nil }
func (f *memFile) Stamp() (durable.Stamp, error) { return durable.Stamp{}, errors.ErrUnsupported }

var _ durable.File = (*memFile)(nil)

// replayBytes opens, verifies and replays a log that is given as bytes.
func replayBytes(p, disk []byte) (hrl.Info, error) {
	l, err := hrl.Open(&memFile{p: p})
	if err != nil {
		return hrl.Info{}, err
	}
	return l.Info(), replay(l, disk)
}

func readFile(t testing.TB, name string) []byte {
	t.Helper()
	p, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}
