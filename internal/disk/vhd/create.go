package vhd

import (
	"bytes"
	"math"
	"math/bits"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// DefaultBlockSize is the size in bytes of the blocks of new dynamic disks.
const DefaultBlockSize = 2 << 20

// Spec describes a disk that is to be made.
type Spec struct {
	Type      Type      // Fixed or Dynamic
	Size      int64     // guest bytes, a multiple of 512
	BlockSize int64     // bytes, a power of two; 0 is DefaultBlockSize. Of dynamic disks only.
	ID        UUID      // zero: a new one
	Created   time.Time // zero: now
}

// complete fills in the defaults and checks the numbers.
func (s Spec) complete() (Spec, error) {
	if s.BlockSize == 0 {
		s.BlockSize = DefaultBlockSize
	}
	if s.ID == (UUID{}) {
		s.ID = NewUUID()
	}
	if s.Created.IsZero() {
		s.Created = time.Now()
	}
	sparse := s.Type == Dynamic
	switch {
	case s.Type != Fixed && s.Type != Dynamic:
		return s, fault.New(fault.DiskUnsupported, "a VHD of the type %s cannot be made", s.Type)
	case s.Size <= 0 || s.Size%SectorSize != 0 || s.Size > math.MaxInt64-FooterSize:
		return s, fault.New(fault.DiskUnsupported, "a VHD cannot have %d bytes: its size is a multiple of %d", s.Size, SectorSize)
	case sparse && s.Size > MaxSparseSize:
		return s, fault.New(fault.DiskUnsupported, "a dynamic VHD cannot have %d bytes, more than 2040 GiB", s.Size)
	case sparse && (s.BlockSize < SectorSize || s.BlockSize > maxBlockSize || bits.OnesCount64(uint64(s.BlockSize)) != 1):
		return s, fault.New(fault.DiskUnsupported, "the block size of a VHD cannot be %d bytes", s.BlockSize)
	case sparse && block.Count(s.Size, s.BlockSize) > maxEntries:
		return s, fault.New(fault.DiskUnsupported, "the block size of %d bytes is too small for a VHD of %d", s.BlockSize, s.Size)
	}
	return s, nil
}

// Create makes an all-zero disk in the empty file f, and returns it when it is durable; the name of the file is the
// caller's to make durable. A crash during Create leaves a file that cannot be opened, or the disk.
func Create(f durable.File, s Spec) (*Writer, error) {
	s, err := s.complete()
	if err != nil {
		return nil, fault.Find(err).At(f.Name())
	}
	footer := NewFooter(s.Size, s.ID, s.Created)
	if s.Type == Fixed {
		err = writeAll(f, part{s.Size, footer.bytes()})
	} else {
		err = createDynamic(f, footer, s)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return nil, fault.FromOS(err)
	}
	return OpenRW(f, Options{})
}

// createDynamic writes the copy of the footer, the header and the table in the order in which Windows lays them out.
func createDynamic(f durable.File, footer Footer, s Spec) error {
	footer.Type, footer.DataOffset = Dynamic, FooterSize
	h := header{
		tableOffset: FooterSize + headerSize, version: 0x00010000,
		entries: uint32(block.Count(s.Size, s.BlockSize)), blockSize: uint32(s.BlockSize),
	}
	end := int64(h.tableOffset) + block.RoundUp(4*int64(h.entries), SectorSize)
	fill := bytes.Repeat([]byte{0xff}, int(min(1<<20, end-int64(h.tableOffset))))
	for at := int64(h.tableOffset); at < end; at += int64(len(fill)) {
		if err := writeAll(f, part{at, fill[:min(int64(len(fill)), end-at)]}); err != nil {
			return err
		}
	}
	return writeAll(f, part{FooterSize, h.bytes()}, part{0, footer.bytes()}, part{end, footer.bytes()})
}

// part is bytes and the place in the file at which they belong.
type part struct {
	at    int64
	bytes []byte
}

func writeAll(f durable.File, parts ...part) error {
	for _, p := range parts {
		if _, err := f.WriteAt(p.bytes, p.at); err != nil {
			return err
		}
	}
	return nil
}
