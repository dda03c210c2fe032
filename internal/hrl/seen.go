package hrl

import (
	"iter"
	"math"
)

// seen is a set of block numbers: a bitmap in pieces, of which only the touched ones take memory. A dense 64 TiB disk in
// blocks of 64 KiB takes 128 MiB; runs that fill whole pieces take almost none.
type seen struct {
	pieces map[int64]*piece
}

const (
	wordBits  = 64
	pieceBits = 1 << 15
)

// piece holds pieceBits bits; nil words mean that all are set.
type piece struct{ words []uint64 }

// add puts the blocks [first, end) into the set and says whether all of them were new. When one was not, nothing changes.
func (s *seen) add(first, end int64) bool {
	if s.any(first, end) {
		return false
	}
	if s.pieces == nil {
		s.pieces = map[int64]*piece{}
	}
	for n, sp := range spans(first, end) {
		if sp.to-sp.from == pieceBits {
			s.pieces[n] = &piece{}
			continue
		}
		p := s.pieces[n]
		if p == nil {
			p = &piece{words: make([]uint64, pieceBits/wordBits)}
			s.pieces[n] = p
		}
		p.eachWord(sp, func(w *uint64, mask uint64) bool { *w |= mask; return true })
	}
	return true
}

// any says whether one of the blocks [first, end) is in the set.
func (s *seen) any(first, end int64) bool {
	for n, sp := range spans(first, end) {
		p := s.pieces[n]
		if p == nil {
			continue
		}
		if p.words == nil {
			return true
		}
		hit := false
		p.eachWord(sp, func(w *uint64, mask uint64) bool { hit = *w&mask != 0; return !hit })
		if hit {
			return true
		}
	}
	return false
}

// span is the bits [from, to) of a piece.
type span struct{ from, to int64 }

// spans yields the numbers of the pieces that [first, end) touches, and what it touches of each.
func spans(first, end int64) iter.Seq2[int64, span] {
	return func(yield func(int64, span) bool) {
		for first < end {
			n := first / pieceBits
			base := n * pieceBits
			sp := span{from: first - base, to: min(end-base, pieceBits)}
			if !yield(n, sp) {
				return
			}
			first = base + sp.to
		}
	}
}

// eachWord calls f with each word that holds bits of sp and the mask of them, until f returns false.
func (p *piece) eachWord(sp span, f func(w *uint64, mask uint64) bool) {
	for at := sp.from; at < sp.to; {
		i, low := at/wordBits, at%wordBits
		n := min(sp.to-at, wordBits-low)
		if !f(&p.words[i], uint64(math.MaxUint64)>>(wordBits-n)<<low) {
			return
		}
		at += n
	}
}
