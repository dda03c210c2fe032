package hrl

import (
	"sync"

	"sitrep/internal/durable"
)

const (
	pageSize  = 4096    // what memory, offset and length of a write around the page cache are multiples of
	sinkSize  = 2 << 20 // bytes of one buffer
	sinkCount = 3       // one fills while two are written
	directMin = 64 << 10
	// cachedMax is how much of a log that is going to be applied is left in the page cache: it is read twice soon, once to verify
	// it and once to apply it. Of a longer one the rest goes around the cache, which others use too.
	cachedMax = 256 << 20
)

// Buffered is how many bytes at most a Writer has taken and not yet written to its file.
const Buffered = sinkCount * sinkSize

// sink collects small writes at ascending offsets in large buffers, and writes full ones in the background while the next
// fills. Memory and file offset of a byte agree modulo pageSize, so that the middle of each run can go around the page
// cache; what is skipped is never written and stays a hole. It is not safe for concurrent use.
type sink struct {
	f    durable.File
	keep int64        // bytes that are still to be left in the page cache
	free chan *buffer // those that nobody writes
	cur  *buffer      // the one that fills, nil: none

	mu  sync.Mutex
	err error // the first error of a background write
}

// buffer holds runs of bytes that go to different places of the file.
type buffer struct {
	mem  []byte
	n    int // used
	runs []run
}

// run says that mem[at:at+n] goes to off.
type run struct {
	at, n int
	off   int64
}

// newSink leaves the first keep bytes, about, in the page cache.
func newSink(f durable.File, keep int64) *sink {
	s := &sink{f: f, keep: keep, free: make(chan *buffer, sinkCount)}
	for range sinkCount {
		s.free <- &buffer{}
	}
	return s
}

// write takes a copy of p, which goes to off. Ranges of different calls may not overlap.
func (s *sink) write(p []byte, off int64) error {
	for len(p) > 0 {
		if s.cur == nil {
			s.cur = <-s.free
			s.cur.prepare()
		}
		n := s.cur.add(p, off)
		p, off = p[n:], off+int64(n)
		if len(p) > 0 {
			s.submit()
		}
	}
	return s.failed()
}

// prepare empties the buffer. Its memory is allocated at first use: a large slice begins at a page, which the
// file checks before it relies on it.
func (b *buffer) prepare() {
	if b.mem == nil {
		b.mem = make([]byte, sinkSize)
	}
	b.n, b.runs = 0, b.runs[:0]
}

// add copies as much of p as there is room for.
func (b *buffer) add(p []byte, off int64) int {
	last := len(b.runs) - 1
	if last < 0 || b.runs[last].off+int64(b.runs[last].n) != off {
		b.n += int((off - int64(b.n)) & (pageSize - 1))
		if b.n >= len(b.mem) {
			return 0
		}
		b.runs = append(b.runs, run{at: b.n, off: off})
		last++
	}
	n := copy(b.mem[b.n:], p)
	b.n += n
	b.runs[last].n += n
	return n
}

// submit has the current buffer written in the background.
func (s *sink) submit() {
	b := s.cur
	s.cur = nil
	put := s.put
	if s.keep > 0 {
		put = s.putCached
	}
	s.keep -= int64(b.n)
	go func() {
		for _, r := range b.runs {
			if err := put(b.mem[r.at:r.at+r.n], r.off); err != nil {
				s.fail(err)
				break
			}
		}
		s.free <- b
	}()
}

// put writes one run: the whole pages in its middle by themselves, so that they can go around the page cache.
func (s *sink) put(p []byte, off int64) error {
	head := int(-off & (pageSize - 1))
	for len(p) > 0 {
		n := len(p)
		if len(p) >= head+directMin {
			n = head
			if head == 0 {
				n = len(p) &^ (pageSize - 1)
			}
		}
		if _, err := s.f.WriteAt(p[:n], off); err != nil {
			return err
		}
		p, off, head = p[n:], off+int64(n), 0
	}
	return nil
}

func (s *sink) putCached(p []byte, off int64) error {
	_, err := durable.WriteCached(s.f, p, off)
	return err
}

// drain returns when everything was written, or could not be.
func (s *sink) drain() error {
	if s.cur != nil {
		s.submit()
	}
	var all [sinkCount]*buffer
	for i := range all {
		all[i] = <-s.free
	}
	for _, b := range all {
		s.free <- b
	}
	return s.failed()
}

func (s *sink) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
}

func (s *sink) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}
