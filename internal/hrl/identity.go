package hrl

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"sitrep/internal/block"
)

// Kind says in which direction a log leads.
type Kind uint8

const (
	// Redo leads forward: it holds what the disk has at To.
	Redo Kind = 1
	// Undo leads back: it holds what the disk had at To, an earlier position, before it was overwritten.
	Undo Kind = 2
)

func (k Kind) String() string {
	switch k {
	case Redo:
		return "redo"
	case Undo:
		return "undo"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Bounds of what a log can describe.
const (
	// MaxRecord is the longest data record of our logs, and the largest block size, in bytes.
	MaxRecord = 1 << 20
	// MaxDisk is the largest disk, in bytes: 64 TiB, the limit of VHDX.
	MaxDisk = 1 << 46
	// minBlock is the smallest block size, in bytes.
	minBlock = 512
)

// Identity says whose log it is and what it claims: whoever has the disk at From comes to To by it.
type Identity struct {
	Replica       ID     // whose replica it is for
	VM, Disk      string // at most 255 bytes each
	Kind          Kind
	From, To      Pos
	SizeBefore    int64     // bytes of the disk at From
	Size          int64     // bytes of the disk at To; every record lies in it
	BlockSize     int64     // bytes, a power of two from 512 to MaxRecord
	CutAt         time.Time // when To was cut, kept to the nanosecond
	AppConsistent bool      // applications had flushed when To was cut
	DataWriteGUID [16]byte  // DataWriteGuid of the VHDX at To, zero for another format
}

// check refuses what no log can describe.
func (id *Identity) check() error {
	bs := id.BlockSize
	switch {
	case id.Kind == Redo && id.From.Seq >= id.To.Seq, id.Kind == Undo && id.From.Seq <= id.To.Seq:
		return fmt.Errorf("a log of kind %s cannot lead from %d to %d", id.Kind, id.From.Seq, id.To.Seq)
	case id.Kind != Redo && id.Kind != Undo:
		return fmt.Errorf("a log of %s is not known", id.Kind)
	case !validName(id.VM) || !validName(id.Disk):
		return fmt.Errorf("names of VM and disk have 1 to %d bytes of UTF-8", maxNameLength)
	case id.SizeBefore < 0 || id.SizeBefore > MaxDisk || id.Size < 0 || id.Size > MaxDisk:
		return errors.New("the size of the disk is out of range")
	case bs < minBlock || bs > MaxRecord || bs&(bs-1) != 0:
		return fmt.Errorf("a block of %d bytes is out of range", bs)
	case id.CutAt.Year() < 1970 || id.CutAt.Year() > 2261: // what UnixNano can hold
		return errors.New("the time of the cut is out of range")
	}
	return nil
}

func validName(s string) bool { return s != "" && len(s) <= maxNameLength && utf8.ValidString(s) }

// LogID is the UniqueId of the log of this kind that leads to pos: a UUID of version 8 (RFC 9562). A log's
// PreviousUniqueId is the LogID of its From, so that any reader of [MS-HRL] sees the chain.
func LogID(kind Kind, pos Pos, disk string) ID {
	b := fmt.Appendf(nil, "sitrep log %s %s %s", kind, pos, disk)
	sum := sha256.Sum256(b)
	id := ID(sum[:16])
	id[6] = id[6]&0x0f | 0x80
	id[8] = id[8]&0x3f | 0x80
	return id
}

func allZero(p []byte) bool { return block.IsZero(p) }
