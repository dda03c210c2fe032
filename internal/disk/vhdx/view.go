package vhdx

import (
	"errors"
	"io"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// view is the file as it is after the replay of its log.
type view struct {
	f    durable.File
	name string
	real int64 // bytes the file has
	size int64 // bytes it has after the replay
	over overlay
}

func newView(f durable.File) (*view, error) {
	size, err := f.Size()
	if err != nil {
		return nil, fault.FromOS(err)
	}
	return &view{f: f, name: f.Name(), real: size, size: size}, nil
}

func (v *view) corrupt(off int64, format string, args ...any) error {
	return fault.New(fault.DiskCorrupt, format, args...).AtOff(v.name, off)
}

func (v *view) unsupported(off int64, format string, args ...any) error {
	return fault.New(fault.DiskUnsupported, format, args...).AtOff(v.name, off)
}

// readRaw fills p from the file itself; what lies after its end is an error.
func (v *view) readRaw(p []byte, off int64) error {
	n, err := v.f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return v.corrupt(off, "the file ends before offset %d: it is truncated", off+int64(len(p)))
	}
	e := *fault.FromOS(err)
	return e.AtOff(v.name, off)
}

// readFile fills p from the file; what lies between its end and its end after the replay reads as zero.
func (v *view) readFile(p []byte, off int64) error {
	if off+int64(len(p)) > v.size {
		return v.corrupt(off, "the file ends before offset %d: it is truncated", off+int64(len(p)))
	}
	inside := min(max(v.real-off, 0), int64(len(p)))
	clear(p[inside:])
	if inside == 0 {
		return nil
	}
	return v.readRaw(p[:inside], off)
}

// read fills p with what the file contains after the replay.
func (v *view) read(p []byte, off int64) error {
	for i := v.over.find(off); len(p) > 0; i++ {
		if i == len(v.over) || v.over[i].Off >= off+int64(len(p)) {
			return v.readFile(p, off)
		}
		c := &v.over[i]
		if gap := c.Off - off; gap > 0 {
			if err := v.readFile(p[:gap], off); err != nil {
				return err
			}
			p, off = p[gap:], c.Off
		}
		n := min(int64(len(p)), c.End()-off)
		if err := v.readChange(p[:n], off, c); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

func (v *view) readChange(p []byte, off int64, c *change) error {
	if c.zero {
		clear(p)
		return nil
	}
	sector := make([]byte, sectorSize)
	if err := v.readRaw(sector, c.at); err != nil {
		return err
	}
	c.apply(sector)
	copy(p, sector[off-c.Off:])
	return nil
}

// extent tells Data from Zero without reading: the first run at off, clipped to n.
func (v *view) extent(off, n int64) (block.Extent, error) {
	n, kind, ask := v.overlaid(off, n)
	if !ask {
		return block.Extent{Range: block.Range{Off: off, Len: n}, Kind: kind}, nil
	}
	e, err := v.f.Extent(off, n)
	if err != nil {
		err = fault.FromOS(err)
	}
	return e, err
}

// overlaid clips n to what the log alone decides, or to what it leaves to the file (ask).
func (v *view) overlaid(off, n int64) (clipped int64, kind block.Kind, ask bool) {
	i := v.over.find(off)
	if i == len(v.over) || v.over[i].Off >= off+n {
		return n, block.Data, true
	}
	c := v.over[i]
	if c.Off > off {
		return c.Off - off, block.Data, true
	}
	if c.zero {
		kind = block.Zero
	}
	return min(n, c.End()-off), kind, false
}
