package vhd

import (
	"encoding/binary"
	"math"
	"net/url"
	"slices"
	"strings"
	"unicode/utf16"

	"sitrep/internal/block"
	"sitrep/internal/fault"
)

// ParentLocator is what a differencing disk says of its parent.
type ParentLocator struct {
	// Linkage is the UUID of the parent.
	Linkage UUID
	// Paths are the names that the parent may have, as they were written (mostly with backslashes), without
	// repetitions, in this order: relative to the child, absolute, and the one of the header.
	Paths []string
}

// maxPathLen is the greatest length of a path in a locator, in bytes: 32767 UTF-16 units, the limit of Windows.
const maxPathLen = 65534

// platforms are the kinds of names that are read, in the order of their use; others no current writer makes.
func platforms() []string { return []string{"W2ru", "MacX", "W2ku"} }

// nameRanges are the parts of the file that hold names of the parent.
func (m *Image) nameRanges() (out []block.Range) {
	if m.footer.Type != Differencing {
		return nil
	}
	for _, l := range m.header.locators {
		if r := l.where(); slices.Contains(platforms(), string(l.code[:])) && r.Within(m.fileSize) {
			out = append(out, r)
		}
	}
	return out
}

// where is the range of the file that holds the name; it may lie outside of the file.
func (l locator) where() block.Range {
	return block.Range{Off: int64(min(l.offset, math.MaxInt64)), Len: int64(l.length)}
}

// openParent has the parent opened, and checks that it is the one that the child was made on.
func (m *Image) openParent(o Options) error {
	l, err := m.parentLocator()
	if err != nil {
		return err
	}
	if o.OpenParent == nil {
		return fault.New(fault.ChainBroken, "a differencing disk cannot be read without its parent").At(m.file.Name())
	}
	p, err := o.OpenParent(l)
	if err != nil {
		return err
	}
	if p.footer.ID != l.Linkage {
		p.Close()
		return fault.New(fault.ChainBroken, "the parent should have the UUID %s, but %s has %s",
			l.Linkage, p.file.Name(), p.footer.ID).At(m.file.Name())
	}
	if m.depth = p.depth + 1; m.depth >= MaxDepth {
		p.Close()
		return fault.New(fault.ChainBroken, "the chain of parents is longer than %d files", MaxDepth).At(m.file.Name())
	}
	m.parent = p
	return nil
}

// parentLocator reads the names of the parent.
func (m *Image) parentLocator() (ParentLocator, error) {
	l := ParentLocator{Linkage: m.header.parentID}
	for _, code := range platforms() {
		for _, at := range m.header.locators {
			if string(at.code[:]) != code {
				continue
			}
			path, err := m.locatorPath(at)
			if err != nil {
				return l, err
			}
			l.add(path)
		}
	}
	l.add(fromUTF16(m.header.parentName[:], binary.BigEndian))
	return l, nil
}

func (l *ParentLocator) add(path string) {
	if path == "" {
		return
	}
	for _, p := range l.Paths {
		if p == path {
			return
		}
	}
	l.Paths = append(l.Paths, path)
}

func (m *Image) locatorPath(at locator) (string, error) {
	r := at.where()
	if r.Len > maxPathLen || !r.Within(m.fileSize) {
		return "", m.corrupt(int64(m.footer.DataOffset), "a name of the parent at %d with %d bytes lies outside of the file", at.offset, at.length)
	}
	buf := make([]byte, r.Len)
	if err := m.readFull(buf, r.Off); err != nil {
		return "", err
	}
	if string(at.code[:]) == "MacX" { // a file URL in UTF-8
		path := strings.TrimRight(string(buf), "\x00")
		path = strings.TrimPrefix(strings.TrimPrefix(path, "file://"), "localhost")
		if plain, err := url.PathUnescape(path); err == nil {
			path = plain
		}
		if len(path) > 2 && path[0] == '/' && path[2] == ':' { // of a drive
			path = path[1:]
		}
		return path, nil
	}
	return fromUTF16(buf, binary.LittleEndian), nil
}

// fromUTF16 decodes up to the first NUL.
func fromUTF16(b []byte, order binary.ByteOrder) string {
	units := make([]uint16, 0, len(b)/2)
	for ; len(b) >= 2; b = b[2:] {
		u := order.Uint16(b)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
}
