package vhdx

import (
	"fmt"
	"io"

	"sitrep/internal/block"
)

// where says where the bytes of a part of the disk are.
type where uint8

const (
	// inFile: in this file. Their block is fully present when piece.whole.
	inFile where = iota
	// isZero: nowhere; they are zero, whatever a parent has.
	isZero
	// absent: not in this layer. They are the parent's, or zero when there is none.
	absent
)

// piece is a run of the disk whose bytes are all in one place.
type piece struct {
	where where
	n     int64
	at    int64 // place in the file, when inFile
	whole bool  // the sector bitmap has no say
}

// piece returns the first run at off, clipped to n. Neighbouring blocks that are neighbours in the file as well, or
// that are in no file, make one run.
func (m *Image) piece(off, n int64) (piece, error) {
	b := off / m.geo.blockSize
	entries, err := m.entries(b)
	if err != nil {
		return piece{}, err
	}
	e := entryOf(entries)
	if err := m.checkPayload(e, b); err != nil {
		return piece{}, err
	}
	inBlock := off % m.geo.blockSize
	first := piece{where: whereIs(e), n: min(n, m.geo.blockSize-inBlock), whole: e.state() == fullyPresent}
	if first.where != inFile {
		return m.extend(first, e, b, n)
	}
	first.at = int64(e.mb())*mib + inBlock
	if first.whole {
		return m.extend(first, e, b, n)
	}
	present, run, err := m.bitRun(off, off+first.n)
	first.n = run
	if !present {
		first.where = absent
	}
	return first, err
}

func whereIs(e batEntry) where {
	switch e.state() {
	case notPresent:
		return absent
	case fullyPresent, partiallyPresent:
		return inFile
	}
	return isZero
}

// extend adds the blocks after b that go on where the piece ends, up to n bytes.
func (m *Image) extend(p piece, e batEntry, b, n int64) (piece, error) {
	var apart batEntry // of two entries whose blocks are neighbours in the file
	if p.where == inFile {
		apart = batEntry(m.geo.blockSize)
	}
	for p.n < n {
		b++
		entries, err := m.entries(b)
		if err != nil {
			return p, err
		}
		for ; len(entries) > 0 && p.n < n; entries = entries[8:] {
			next := entryOf(entries)
			if !m.goesOn(p.where, e, next, apart, b) {
				return p, nil
			}
			e = next
			p.n = min(n, p.n+m.geo.blockSize)
			b++
		}
		b--
	}
	return p, nil
}

// goesOn says whether block b, with the entry next, continues a piece whose last block has the entry e.
func (m *Image) goesOn(w where, e, next, apart batEntry, b int64) bool {
	if w != inFile {
		return whereIs(next) == w && next.state() < 4
	}
	return next == e+apart && m.checkPayload(next, b) == nil
}

// ReadAt reads guest bytes. Memory and offsets are passed on to the file as they are: aligned memory is read into
// directly, and blocks that are neighbours in the file are read at once.
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("%s: read at the negative offset %d", m.v.name, off)
	}
	total := len(p)
	want := int(min(int64(total), max(m.geo.size-off, 0)))
	for done := 0; done < want; {
		n, err := m.readPiece(p[done:want], off+int64(done))
		if err != nil {
			return done, err
		}
		done += n
	}
	if want < total {
		return want, io.EOF
	}
	return want, nil
}

func (m *Image) readPiece(p []byte, off int64) (int, error) {
	pc, err := m.piece(off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	p = p[:pc.n]
	switch pc.where {
	case inFile:
		err = m.v.read(p, pc.at)
	case absent:
		err = m.readParent(p, off)
	default:
		clear(p)
	}
	return len(p), err
}

// readParent fills p from the parent; a disk without one, and what lies beyond the parent's end, is zero.
func (m *Image) readParent(p []byte, off int64) error {
	var inside int64
	if m.parent != nil {
		inside = min(max(m.parent.Size()-off, 0), int64(len(p)))
	}
	clear(p[inside:])
	if inside == 0 {
		return nil
	}
	n, err := m.parent.ReadAt(p[:inside], off)
	if int64(n) == inside {
		return nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// lookahead bounds how much of the disk is looked at in one step, so that the part of a step that a caller does not
// get to see, and asks for again, costs little.
const lookahead = 4 << 30

// Extent returns the first run of one kind at off, clipped to n bytes (n > 0, off+n <= Size). It reads tables but no
// data. Zero is said of what no layer has, of blocks that are zero by their state, and of holes in the file.
func (m *Image) Extent(off, n int64) (block.Extent, error) {
	if err := m.checkRange(off, n); err != nil {
		return block.Extent{}, err
	}
	run, err := m.extentStep(off, min(n, lookahead))
	for err == nil && run.Len < n {
		var next block.Extent
		next, err = m.extentStep(run.End(), min(n-run.Len, lookahead))
		if next.Kind != run.Kind {
			break
		}
		run.Len += next.Len
	}
	return run, err
}

func (m *Image) extentStep(off, n int64) (block.Extent, error) {
	pc, err := m.piece(off, n)
	if err != nil {
		return block.Extent{}, err
	}
	out := block.Extent{Range: block.Range{Off: off, Len: pc.n}, Kind: block.Zero}
	switch {
	case pc.where == inFile && pc.whole:
		e, err := m.v.extent(pc.at, pc.n)
		out.Len, out.Kind = min(e.Len, pc.n), e.Kind
		return out, err
	case pc.where == inFile:
		out.Kind = block.Data
	case pc.where == absent:
		return m.parentExtent(off, pc.n)
	}
	return out, nil
}

func (m *Image) parentExtent(off, n int64) (block.Extent, error) {
	if m.parent == nil || off >= m.parent.Size() {
		return block.Extent{Range: block.Range{Off: off, Len: n}, Kind: block.Zero}, nil
	}
	return m.parent.Extent(off, min(n, m.parent.Size()-off))
}

// LayerExtent tells what this layer alone says of the disk: it returns the first run at off, clipped to n bytes (n > 0,
// off+n <= Size), and whether the layer holds it. It holds what is present, and what is zero or unmapped by its state: in a
// differencing disk that is what was changed since the parent was frozen. The rest is the parent's. It reads no data.
func (m *Image) LayerExtent(off, n int64) (run block.Range, held bool, err error) {
	if err := m.checkRange(off, n); err != nil {
		return run, false, err
	}
	run.Off = off
	for run.Len < n {
		pc, err := m.piece(run.End(), min(n-run.Len, lookahead))
		if err != nil {
			return run, held, err
		}
		if run.Len > 0 && held != (pc.where != absent) {
			break
		}
		held = pc.where != absent
		run.Len += pc.n
	}
	return run, held, nil
}
