package pageblob

import (
	"context"
	"errors"
	"sync"

	"sitrep/internal/block"
	"sitrep/internal/fault"
)

// pageFile is a page blob with what is known of it: where it has pages, and whether a write to it failed.
type pageFile struct {
	*pageBlob
	ranges rangeMap
	life   context.Context // of requests in the background: it ends with Close
	end    context.CancelFunc

	mu  sync.Mutex
	err error // the first that a request in the background met
}

func newPageFile(ctx context.Context, b *pageBlob) *pageFile {
	f := &pageFile{pageBlob: b, ranges: rangeMap{from: &b.source}}
	f.life, f.end = context.WithCancel(context.WithoutCancel(ctx))
	return f
}

// fails keeps the first error. What was to be written is lost then, so everything that follows fails too: only writing it all
// anew helps, which is what the next run does.
func (f *pageFile) fails(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil && err != nil {
		f.err = err
	}
}

func (f *pageFile) failed() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *pageFile) isZero(r block.Range) bool { return f.ranges.isZero(r) }
func (f *pageFile) noteData(r block.Range)    { f.ranges.note(r, block.Data) }
func (f *pageFile) noteZero(r block.Range)    { f.ranges.note(r, block.Zero) }

// rangeMap remembers where a blob has pages. It asks the service a part at a time: the list of a fragmented blob takes long, and
// the service gives up after a time.
type rangeMap struct {
	from *source

	mu    sync.Mutex
	step  int64     // bytes that are asked for at once; 0: not asked yet
	known block.Set // what was asked for, or written
	data  block.Set // of it: may be other than zero
}

const (
	rangeStep    = 64 << 30
	rangeStepMin = 128 << 20 // always safe, as the service's documentation says
)

// note keeps what a range is from now on.
func (m *rangeMap) note(r block.Range, k block.Kind) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.known.Add(r)
	if k == block.Data {
		m.data.Add(r)
	} else {
		m.data.Remove(r)
	}
}

// isZero says whether it is known, without asking, that a range is zero.
func (m *rangeMap) isZero(r block.Range) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	run, ok := m.known.Next(r)
	if !ok || run != r {
		return r.Empty()
	}
	_, ok = m.data.Next(r)
	return !ok
}

// extent is the first run of one kind at r.Off, clipped to r.
func (m *rangeMap) extent(ctx context.Context, r block.Range) (block.Extent, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := block.Extent{Range: block.Range{Off: r.Off}, Kind: block.Zero}
	for e.End() < r.End() {
		rest := block.Range{Off: e.End(), Len: r.End() - e.End()}
		if run, ok := m.data.Next(rest); ok && run.Off == rest.Off {
			if e.Len > 0 {
				return e, nil
			}
			return block.Extent{Range: run, Kind: block.Data}, nil
		}
		run, ok := m.known.Next(rest)
		if !ok || run.Off != rest.Off {
			if err := m.ask(ctx, rest); err != nil {
				return e, err
			}
			continue
		}
		if next, ok := m.data.Next(run); ok {
			run.Len = next.Off - run.Off
		}
		e.Len += run.Len
	}
	return e, nil
}

// fill reads what the service has of a range, and zero where it has no pages.
func (m *rangeMap) fill(ctx context.Context, buf []byte, off int64) error {
	clear(buf)
	for rest := (block.Range{Off: off, Len: int64(len(buf))}); !rest.Empty(); {
		e, err := m.extent(ctx, rest)
		if err != nil {
			return err
		}
		if e.Kind == block.Data {
			if err := m.from.read(ctx, buf[e.Off-off:][:e.Len], e.Off); err != nil {
				return err
			}
		}
		rest = block.Range{Off: e.End(), Len: rest.End() - e.End()}
	}
	return nil
}

// ask asks the service about the beginning of r, which is not known.
func (m *rangeMap) ask(ctx context.Context, r block.Range) error {
	if m.step == 0 {
		m.step = rangeStep
	}
	for {
		part := block.Range{Off: r.Off, Len: min(r.Len, m.step)}
		part = part.Outward(sector)
		var found block.Set
		err := m.from.ranges(ctx, part, found.Add)
		if err != nil && m.step > rangeStepMin && (fault.Is(err, fault.StoreThrottled) || fault.Is(err, fault.StoreUnreachable)) {
			m.step = max(m.step/8, rangeStepMin)
			continue
		}
		if err != nil {
			return err
		}
		unknown := block.NewSet(part)
		for k := range m.known.All() {
			unknown.Remove(k)
		}
		for u := range unknown.All() {
			m.known.Add(u)
			for {
				run, ok := found.Next(u)
				if !ok {
					break
				}
				m.data.Add(run)
				u = block.Range{Off: run.End(), Len: u.End() - run.End()}
			}
		}
		return nil
	}
}

// in fills in whose error it is.
func in(err error, vm, disk string) error {
	if errors.Is(err, context.Canceled) && fault.Find(err) == nil {
		err = fault.Wrap(fault.Interrupted, context.Canceled, "")
	}
	return fault.In(err, vm, disk)
}
