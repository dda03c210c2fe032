package resync

import (
	"sync"

	"sitrep/internal/durable"
)

const (
	chunkSize = 4 << 20 // bytes that a memory grows by
	pageSize  = 4096    // what transfers around the page cache have to be aligned to
)

// memory lends bytes to slices, and lends the same again when a slice gives them back: a run takes what two slices need and
// leaves the garbage collector nothing, which otherwise lets as much garbage lie around as there is in use.
type memory struct {
	mu   sync.Mutex
	free [][]byte // of chunkSize
}

// loan is what one slice has of a memory. It may be used concurrently.
type loan struct {
	of     *memory
	mu     sync.Mutex
	chunks [][]byte
	rest   []byte // what is left of the last chunk
}

// take returns n bytes that are aligned to pageSize. What is in them is anything.
func (l *loan) take(n int) []byte {
	step := (n + pageSize - 1) &^ (pageSize - 1)
	if step > chunkSize {
		return durable.AlignedBuffer(n) // a block larger than the chunks; none is by default
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if step > len(l.rest) {
		l.rest = l.of.chunk()
		l.chunks = append(l.chunks, l.rest)
	}
	p := l.rest[:n:n]
	l.rest = l.rest[step:]
	return p
}

// giveBack ends the loan. Nothing that take returned may be used any more.
func (l *loan) giveBack() {
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	l.of.free = append(l.of.free, l.chunks...)
	l.chunks, l.rest = nil, nil
}

func (m *memory) chunk() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := len(m.free)
	if n == 0 {
		return durable.AlignedBuffer(chunkSize)
	}
	p := m.free[n-1]
	m.free = m.free[:n-1]
	return p
}
