package recovered

import (
	"context"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"sitrep/internal/block"
	"sitrep/internal/durable"
)

const (
	unit  = 2 << 20 // bytes of one read: on a new file larger ones pay
	tasks = 8
)

// maker makes one disk.
type maker struct {
	Config
	tmp      string
	out      sink
	marked   bool // the record is there
	named    bool // the file has its own name
	parallel bool // out takes pieces in any order, and several at once
	count    func(n int64)

	read, written atomic.Int64
}

// piece is a part of the disk on its way.
type piece struct {
	block.Range
	buf  []byte
	done chan struct{} // closed when buf is filled and, where the sink can do that, put
}

// copy copies the disk: several pieces are read at once, and put in the order of the disk unless the sink takes any.
func (m *maker) copy(ctx context.Context) error {
	n := m.Tasks
	if n <= 0 {
		n = tasks
	}
	free, way := make(chan []byte, n), make(chan *piece, n)
	for range n {
		free <- nil // made at first use
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(way)
		return m.send(ctx, g, free, way)
	})
	g.Go(func() error { return m.receive(ctx, free, way) })
	return g.Wait()
}

// send begins to read the pieces of the disk that are not known to be zero.
func (m *maker) send(ctx context.Context, g *errgroup.Group, free <-chan []byte, way chan<- *piece) error {
	for off := int64(0); off < m.Source.Size(); {
		r, err := m.next(ctx, off)
		if err != nil || r.Empty() {
			return err
		}
		off = r.End()
		p := &piece{Range: r, done: make(chan struct{})}
		select {
		case p.buf = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		g.Go(func() error { return m.carry(p) })
		way <- p // there are as many places as buffers
	}
	return nil
}

// next is the next piece at or after off, a multiple of granule, that is not known to be zero; empty at the end.
func (m *maker) next(ctx context.Context, off int64) (block.Range, error) {
	size := m.Source.Size()
	for at := off; at < size; {
		if err := ctx.Err(); err != nil {
			return block.Range{}, err
		}
		e, err := m.Source.Extent(at, size-at)
		if err != nil {
			return block.Range{}, err
		}
		if e.Kind == block.Data {
			r := e.Range.Outward(granule)
			r = block.Range{Off: r.Off, Len: min(r.End(), (r.Off/unit+1)*unit, size) - r.Off}
			m.count(r.Off - off)
			return r, nil
		}
		at = e.End()
	}
	m.count(size - off)
	return block.Range{}, nil
}

func (m *maker) carry(p *piece) error {
	if p.buf == nil {
		p.buf = durable.AlignedBuffer(unit)
	}
	if err := durable.ReadFull(m.Source, p.buf[:p.Len], p.Off); err != nil {
		return err
	}
	m.read.Add(p.Len)
	if m.parallel {
		if err := m.put(p); err != nil {
			return err
		}
	}
	close(p.done)
	return nil
}

// receive takes the pieces in the order of the disk.
func (m *maker) receive(ctx context.Context, free chan<- []byte, way <-chan *piece) error {
	for p := range way {
		select {
		case <-p.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if !m.parallel {
			if err := m.put(p); err != nil {
				return err
			}
		}
		free <- p.buf
	}
	return ctx.Err()
}

// put writes what is not zero of a piece.
func (m *maker) put(p *piece) error {
	for at := int64(0); at < p.Len; {
		n := run(p.buf[at:p.Len], false)
		if n > 0 {
			if err := m.out.put(p.Off+at, p.buf[at:at+n]); err != nil {
				return err
			}
			m.written.Add(n)
		}
		at += n
		at += run(p.buf[at:p.Len], true)
	}
	m.count(p.Len)
	return nil
}

// run is how many bytes at the beginning of p consist of granules that are all zero, or of those that are not.
func run(p []byte, zero bool) int64 {
	n := 0
	for n < len(p) {
		end := min(n+granule, len(p))
		if block.IsZero(p[n:end]) != zero {
			break
		}
		n = end
	}
	return int64(n)
}
