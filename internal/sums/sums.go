// Package sums holds block sums: the xxh3-128 of every block of a disk.
//
// They are what a disk is compared by: a tracker that has nothing from the hypervisor finds changes by them, a replica
// is proved by them, and resynchronization sends what they say differs. A block of zeros has the zero Sum, so a table
// of a sparse disk is a sparse file, and "nothing is known to be here" and "zeros are here" read the same: a new table
// is the table of an empty disk.
//
// The table in a file is nothing but the Sums of block 0, 1, 2 and so on, 16 bytes each, most significant byte first as
// xxh3 prints them; sums of blocks after the end of the file are zero. The size of a block and of the disk, and the Seal
// that proves the table whole, are kept by its owner.
package sums

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"github.com/zeebo/xxh3"

	"sitrep/internal/block"
	"sitrep/internal/durable"
)

// Size is the length of a Sum in bytes.
const Size = 16

// Sum is the xxh3-128 of one block, or zero when all bytes of the block are zero.
type Sum [Size]byte

// Of returns the sum of a block. The last block of a disk is summed at its real length.
func Of(p []byte) Sum {
	if len(p) == 0 || p[0] == 0 && block.IsZero(p) {
		return Sum{}
	}
	s := Sum(xxh3.Hash128(p).Bytes())
	if s == (Sum{}) {
		s[Size-1] = 1 // one block in 2^128; it may not look like zeros
	}
	return s
}

// IsZero says whether the block is all zeros.
func (s Sum) IsZero() bool { return s == Sum{} }

func (s Sum) String() string { return hex.EncodeToString(s[:]) }

// Seal proves a whole table: the sum, modulo 2^128, of a hash of every (block number, Sum) whose Sum is not zero. It
// can be kept up to date by the changed blocks alone, and does not depend on the order in which they are added.
type Seal struct{ hi, lo uint64 }

// Add puts block i with sum s into the seal.
func (l *Seal) Add(i int64, s Sum) {
	hi, lo := element(i, s)
	var carry uint64
	l.lo, carry = bits.Add64(l.lo, lo, 0)
	l.hi, _ = bits.Add64(l.hi, hi, carry)
}

// Remove takes block i with sum s out of the seal.
func (l *Seal) Remove(i int64, s Sum) {
	hi, lo := element(i, s)
	var borrow uint64
	l.lo, borrow = bits.Sub64(l.lo, lo, 0)
	l.hi, _ = bits.Sub64(l.hi, hi, borrow)
}

// Join puts everything that is in o into the seal: parts of a table may be sealed side by side.
func (l *Seal) Join(o Seal) {
	var carry uint64
	l.lo, carry = bits.Add64(l.lo, o.lo, 0)
	l.hi, _ = bits.Add64(l.hi, o.hi, carry)
}

func element(i int64, s Sum) (hi, lo uint64) {
	if s.IsZero() {
		return 0, 0
	}
	var b [8 + Size]byte
	binary.BigEndian.PutUint64(b[:], uint64(i))
	copy(b[8:], s[:])
	h := xxh3.Hash128(b[:])
	return h.Hi, h.Lo
}

// MarshalText writes the seal as 32 hexadecimal digits.
func (l Seal) MarshalText() ([]byte, error) {
	return fmt.Appendf(nil, "%016x%016x", l.hi, l.lo), nil
}

// UnmarshalText reads what MarshalText wrote.
func (l *Seal) UnmarshalText(text []byte) error {
	var b [16]byte
	if len(text) != hex.EncodedLen(len(b)) {
		return fmt.Errorf("a seal has 32 hexadecimal digits, not %d", len(text))
	}
	if _, err := hex.Decode(b[:], text); err != nil {
		return fmt.Errorf("a seal has 32 hexadecimal digits, not %q", text)
	}
	l.hi, l.lo = binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(b[8:])
	return nil
}

// Table is a table of sums in a file. Reads may be concurrent with each other.
type Table struct {
	f durable.File
}

// NewTable returns the table that lies, or will lie, in f. Closing f stays with the caller.
func NewTable(f durable.File) *Table { return &Table{f: f} }

// Load reads the sums of the blocks first, first+1 and so on into out.
func (t *Table) Load(first int64, out []Sum) error {
	buf := make([]byte, len(out)*Size)
	n, err := t.f.ReadAt(buf, first*Size)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(buf[n:])
	for i := range out {
		out[i] = Sum(buf[i*Size:])
	}
	return nil
}

// holeMin is how many zero sums in a row are worth a hole: a page of the file.
const holeMin = 4096 / Size

// Store writes the sums of the blocks first, first+1 and so on. Long runs of zero sums make holes. Nothing is durable
// before the file's Sync.
func (t *Table) Store(first int64, in []Sum) error {
	for len(in) > 0 {
		n := zeroRun(in)
		if n >= holeMin {
			if err := t.Clear(first, int64(n)); err != nil {
				return err
			}
		} else {
			n = untilHole(in)
			if err := t.write(first, in[:n]); err != nil {
				return err
			}
		}
		first, in = first+int64(n), in[n:]
	}
	return nil
}

// untilHole is the number of sums before the next run of holeMin zero sums.
func untilHole(in []Sum) int {
	for i := 0; i < len(in); i++ {
		n := zeroRun(in[i:])
		if n >= holeMin {
			return i
		}
		i += n
	}
	return len(in)
}

// zeroRun is the number of zero sums at the start of in.
func zeroRun(in []Sum) int {
	for i, s := range in {
		if !s.IsZero() {
			return i
		}
	}
	return len(in)
}

func (t *Table) write(first int64, in []Sum) error {
	buf := make([]byte, len(in)*Size)
	for i := range in {
		copy(buf[i*Size:], in[i][:])
	}
	_, err := t.f.WriteAt(buf, first*Size)
	return err
}

// Clear sets n sums from first on to zero, giving back the space of long runs. A hole in a file is dearer to make than a
// few zeros are to write.
func (t *Table) Clear(first, n int64) error {
	if n < holeMin {
		return t.write(first, make([]Sum, n))
	}
	return t.f.ZeroAt(first*Size, n*Size)
}

// Next returns the first run at or after block first, and before block end, that may hold sums other than zero, without
// reading any; n is 0 when there is none.
func (t *Table) Next(first, end int64) (start, n int64, err error) {
	size, err := t.f.Size()
	if err != nil {
		return 0, 0, err
	}
	limit := min(end*Size, block.RoundUp(size, Size))
	for off := first * Size; off < limit; {
		e, err := t.f.Extent(off, limit-off)
		if err != nil {
			return 0, 0, err
		}
		if e.Kind == block.Data {
			start = e.Off / Size
			return start, block.Count(e.End(), Size) - start, nil
		}
		off = e.End()
	}
	return end, 0, nil
}

// All calls f for every sum of the blocks before end that is not zero, in ascending order.
func (t *Table) All(end int64, f func(i int64, s Sum) error) error {
	buf := make([]Sum, 4096)
	for at := int64(0); at < end; {
		start, n, err := t.Next(at, end)
		if err != nil || n == 0 {
			return err
		}
		n = min(n, int64(len(buf)))
		if err := t.Load(start, buf[:n]); err != nil {
			return err
		}
		for i, s := range buf[:n] {
			if s.IsZero() {
				continue
			}
			if err := f(start+int64(i), s); err != nil {
				return err
			}
		}
		at = start + n
	}
	return nil
}

// Seal computes the seal of the blocks before end.
func (t *Table) Seal(end int64) (Seal, error) {
	var l Seal
	err := t.All(end, func(i int64, s Sum) error { l.Add(i, s); return nil })
	return l, err
}
