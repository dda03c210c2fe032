// Package block is the interval arithmetic of a virtual disk, once.
//
// A disk is a row of bytes from 0 to its size. What changed, what is known to be zero and what has to be sent are all
// sets of half-open byte ranges on that row. Every other package speaks of ranges in these types, so that clipping,
// merging and rounding are written, and tested against a bitmap, in one place only.
//
// Offsets and lengths are bytes. No function here panics on any int64 input that satisfies its stated condition.
package block

import (
	"bytes"
	"fmt"
	"iter"
	"slices"
)

// Range is the half-open byte range [Off, Off+Len). Off and Len are never negative, and their sum is at most the largest
// int64: ranges from foreign bytes are checked with Within before anything else is asked of them.
type Range struct {
	Off int64 `json:"off"`
	Len int64 `json:"len"`
}

// End is the first byte after the range.
func (r Range) End() int64 { return r.Off + r.Len }

// Empty says whether the range holds no byte.
func (r Range) Empty() bool { return r.Len <= 0 }

// Intersect returns what r and o have in common; the result is empty when they have nothing.
func (r Range) Intersect(o Range) Range {
	off, end := max(r.Off, o.Off), min(r.End(), o.End())
	if end <= off {
		return Range{Off: off}
	}
	return Range{Off: off, Len: end - off}
}

// Within says whether the whole range lies in [0, size), without overflowing on hostile values.
func (r Range) Within(size int64) bool {
	return r.Off >= 0 && r.Len >= 0 && r.Off <= size && r.Len <= size-r.Off
}

// Outward returns the smallest range that holds r and begins and ends at multiples of unit (unit > 0). Its end must be
// an int64.
func (r Range) Outward(unit int64) Range {
	off := r.Off - r.Off%unit
	end := RoundUp(r.End(), unit)
	return Range{Off: off, Len: end - off}
}

func (r Range) String() string { return fmt.Sprintf("[%d,+%d)", r.Off, r.Len) }

// RoundUp rounds n up to a multiple of unit (n >= 0, unit > 0), which must be an int64.
func RoundUp(n, unit int64) int64 {
	if rest := n % unit; rest != 0 {
		return n + (unit - rest)
	}
	return n
}

// Count is the number of blocks of blockSize bytes that a disk of size bytes has; the last one may be short.
// It is right for every size >= 0 and blockSize > 0.
func Count(size, blockSize int64) int64 {
	n := size / blockSize
	if size%blockSize != 0 {
		n++
	}
	return n
}

// Nth is the range of the i-th block of blockSize bytes on a disk of size bytes; the last one is clipped to the disk.
func Nth(i, blockSize, size int64) Range {
	off := i * blockSize
	return Range{Off: off, Len: min(blockSize, size-off)}
}

// Kind says what is known about the bytes of an extent.
type Kind uint8

const (
	// Data means that the bytes have to be read: they hold data, or nothing is known about them.
	Data Kind = iota
	// Zero means that every byte is known to be zero.
	Zero
)

func (k Kind) String() string {
	if k == Zero {
		return "zero"
	}
	return "data"
}

// Extent is a range of one kind.
type Extent struct {
	Range
	Kind Kind
}

// Set is a set of bytes, kept as sorted, disjoint, non-adjacent ranges. The zero value is the empty set.
// It is not safe for concurrent use while it is being changed. A change costs little however many ranges there are.
type Set struct {
	// parts are the ranges in order, none of them empty: a change moves the ranges of one part, not all behind it.
	parts [][]Range
}

// maxPart is the most ranges of a part.
const maxPart = 512

// place is where a range is in a set.
type place struct{ part, i int }

// NewSet returns the union of the given ranges.
func NewSet(ranges ...Range) *Set {
	s := new(Set)
	for _, r := range ranges {
		s.Add(r)
	}
	return s
}

// Add puts the bytes of r into the set.
func (s *Set) Add(r Range) {
	if r.Empty() {
		return
	}
	at, n := s.firstEndingAtOrAfter(r.Off), 0
	for old := range s.from(at) {
		if old.Off > r.End() {
			break
		}
		off, end := min(r.Off, old.Off), max(r.End(), old.End())
		r = Range{Off: off, Len: end - off}
		n++
	}
	s.replace(at, n, r)
}

// firstEndingAtOrAfter is the place of the first range whose end is at or after off.
func (s *Set) firstEndingAtOrAfter(off int64) place {
	p := len(s.parts)
	if p == 0 || last(s.parts[p-1]).End() < off {
		return place{part: p}
	}
	p, _ = slices.BinarySearchFunc(s.parts, off, func(part []Range, off int64) int { return before(last(part), off) })
	i, _ := slices.BinarySearchFunc(s.parts[p], off, before)
	return place{p, i}
}

func last(part []Range) Range { return part[len(part)-1] }

// before compares for a search: whether a range ends before off.
func before(r Range, off int64) int {
	if r.End() < off {
		return -1
	}
	return 1
}

// from yields the ranges from a place on, in ascending order.
func (s *Set) from(at place) iter.Seq[Range] {
	return func(yield func(Range) bool) {
		i := at.i
		for p := at.part; p < len(s.parts); p++ {
			for _, r := range s.parts[p][i:] {
				if !yield(r) {
					return
				}
			}
			i = 0
		}
	}
}

// replace puts ranges in the place of n others. They are few.
func (s *Set) replace(at place, n int, with ...Range) {
	if at.part == len(s.parts) { // behind all others
		if at.part == 0 || len(s.parts[at.part-1])+len(with) > maxPart {
			s.parts = append(s.parts, slices.Clone(with))
			return
		}
		s.parts[at.part-1] = append(s.parts[at.part-1], with...)
		return
	}
	here := s.parts[at.part]
	k := min(n, len(here)-at.i)
	here = slices.Replace(here, at.i, at.i+k, with...)
	next := at.part + 1
	for n -= k; n > 0 && n >= len(s.parts[next]); next++ {
		n -= len(s.parts[next])
	}
	if n > 0 {
		s.parts[next] = slices.Delete(s.parts[next], 0, n)
	}
	switch half := len(here) / 2; {
	case len(here) == 0:
		s.parts = slices.Delete(s.parts, at.part, next)
	case len(here) > maxPart:
		s.parts = slices.Replace(s.parts, at.part, next, here[:half:half], slices.Clone(here[half:]))
	default:
		s.parts = slices.Replace(s.parts, at.part, next, here)
	}
}

// Remove takes the bytes of r out of the set.
func (s *Set) Remove(r Range) {
	if r.Empty() {
		return
	}
	var kept []Range
	at, n := s.firstEndingAtOrAfter(r.Off), 0
	for old := range s.from(at) {
		if old.Off >= r.End() {
			break
		}
		if old.Off < r.Off {
			kept = append(kept, Range{Off: old.Off, Len: r.Off - old.Off})
		}
		if old.End() > r.End() {
			kept = append(kept, Range{Off: r.End(), Len: old.End() - r.End()})
		}
		n++
	}
	if n > 0 {
		s.replace(at, n, kept...)
	}
}

// Contains says whether the byte at off is in the set.
func (s *Set) Contains(off int64) bool {
	_, ok := s.Next(Range{Off: off, Len: 1})
	return ok
}

// Next returns the first run of the set that intersects w, clipped to w; ok is false when there is none.
func (s *Set) Next(w Range) (run Range, ok bool) {
	for r := range s.from(s.firstEndingAtOrAfter(w.Off)) {
		if r.Off >= w.End() {
			break
		}
		if run = r.Intersect(w); !run.Empty() {
			return run, true
		}
	}
	return Range{}, false
}

// All yields the ranges of the set in ascending order.
func (s *Set) All() iter.Seq[Range] { return s.from(place{}) }

// Chunks yields the set in ascending order in pieces of at most n bytes (n > 0).
func (s *Set) Chunks(n int64) iter.Seq[Range] {
	return func(yield func(Range) bool) {
		for r := range s.All() {
			for r.Len > 0 {
				piece := Range{Off: r.Off, Len: min(n, r.Len)}
				if !yield(piece) {
					return
				}
				r.Off, r.Len = piece.End(), r.Len-piece.Len
			}
		}
	}
}

// Runs is the number of disjoint ranges.
func (s *Set) Runs() (n int) {
	for _, part := range s.parts {
		n += len(part)
	}
	return n
}

// Bytes is the number of bytes in the set.
func (s *Set) Bytes() int64 {
	var n int64
	for r := range s.All() {
		n += r.Len
	}
	return n
}

// zeros is what IsZero compares with: bytes.Equal against a page that stays in the cache runs at memory speed.
// It is never written.
var zeros [16 << 10]byte

// IsZero says whether every byte of p is zero.
func IsZero(p []byte) bool {
	for len(p) > len(zeros) {
		if !bytes.Equal(p[:len(zeros)], zeros[:]) {
			return false
		}
		p = p[len(zeros):]
	}
	return bytes.Equal(p, zeros[:len(p)])
}
