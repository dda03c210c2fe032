package replica

import (
	"context"
	"iter"
	"math"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/sums"
	"sitrep/internal/wait"
)

// Limiter lets bytes through at a rate that may change in the course of the day. Bytes are paid for before they are let
// through: whoever asks for n waits until n were earned, however small the rate is against n, and those who ask at the same
// time wait in turn, so that one Limiter holds for all disks of a run. What is not used is kept for one second: that is the
// burst by which any stretch of time may exceed the rate. It may be used concurrently; a nil Limiter has no limit.
type Limiter struct {
	rate  func(t time.Time) int64
	now   func() time.Time
	sleep func(ctx context.Context, d time.Duration) error

	turn chan struct{} // held by who is waiting for bytes to be earned; guards what follows
	last time.Time     // up to when bytes were earned
	left float64       // earned and not used
}

// NewLimiter returns a Limiter. rate is the bytes a second at a time, 0 for no limit; it is asked anew at every full minute
// of the clock on the wall while somebody waits, so it may change at full minutes only, and times have the location that now
// gives them. sleep waits, and returns at once with the error of ctx when that ends; nil: it waits in real time.
func NewLimiter(rate func(t time.Time) int64, now func() time.Time, sleepFor func(ctx context.Context, d time.Duration) error) *Limiter {
	if sleepFor == nil {
		sleepFor = wait.For
	}
	return &Limiter{rate: rate, now: now, sleep: sleepFor, turn: make(chan struct{}, 1)}
}

// Wait returns when n bytes may be sent, or with the error of ctx when that ends before.
func (l *Limiter) Wait(ctx context.Context, n int64) error {
	if l == nil {
		return nil
	}
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-l.turn }()
	rate := l.earn()
	l.left = min(l.left, rate) // nobody waited: what is more than a second's is lost
	for need := float64(n); ; {
		if rate == 0 {
			return nil
		}
		if l.left >= need {
			l.left = min(l.left-need, rate)
			return nil
		}
		need -= l.left
		l.left = 0
		if err := l.sleep(ctx, nap(need/rate, l.last)); err != nil {
			return err
		}
		rate = l.earn()
	}
}

// earn counts what was earned since the last time, at the rate that held then, and returns the rate that holds now.
func (l *Limiter) earn() (rate float64) {
	now := l.now()
	if l.last.IsZero() {
		l.last = now
	}
	l.left += float64(l.rate(l.last)) * max(0, now.Sub(l.last).Seconds())
	l.last = now
	if rate = float64(l.rate(now)); rate == 0 {
		l.left = 0
	}
	return rate
}

// minNap keeps waiting for the last few bytes from becoming a busy loop.
const minNap = time.Millisecond

// nap is how long to wait at now for what is earned in so many seconds: not over a full minute of the clock on the wall, at
// which the rate may become another one.
func nap(seconds float64, now time.Time) time.Duration {
	rest := time.Minute - time.Duration(now.Second())*time.Second - time.Duration(now.Nanosecond())
	if seconds >= rest.Seconds() {
		return rest
	}
	return min(max(time.Duration(math.Ceil(seconds*1e9)), minNap), rest)
}

// minPiece is the smallest part that a write is divided into, in bytes.
const minPiece = 64 << 10

// piece is the most that is sent at once: what a second earns, in whole parts of minPiece. A write as a whole, waited for
// and then sent as fast as the line is, would fill the line's queues with seconds of it.
func (l *Limiter) piece() int {
	if l == nil {
		return math.MaxInt
	}
	rate := l.rate(l.now())
	if rate == 0 {
		return math.MaxInt
	}
	return int(max(rate/minPiece, 1) * minPiece)
}

// WithLimit returns a store that is s, but for the bytes of disks and change logs that are sent to it (Pages.WriteAt,
// Shelf.Put), which wait for the Limiter that of returns for the VM's name; nil is no limit. Zeros and holes cost nothing, and
// neither do ledgers and block sums, which are less than a thousandth of it. A log counts by what is read of it: where the store
// gives the file a second name it is nothing, and where the store compresses it is more than what is sent.
//
// It belongs inside WithRetries, so that what is sent again is paid for again.
func WithLimit(s Store, of func(vm string) *Limiter) Store { return Metered(s, of, nil) }

// Metered is WithLimit that tells count how many of these bytes went, when they have; a log that is not limited counts when all of it is there.
// count may be called concurrently; nil: nobody counts.
func Metered(s Store, of func(vm string) *Limiter, count func(vm string, n int64)) Store {
	return &limitStore{s, of, count}
}

// As those of WithRetries, these wrappers embed nothing of what they wrap.

type limitStore struct {
	in    Store
	of    func(vm string) *Limiter
	count func(vm string, n int64) // nil: nobody counts
}

func (s *limitStore) Describe() string { return s.in.Describe() }

func (s *limitStore) Prepare(ctx context.Context, want hrl.ID) (hrl.ID, error) {
	return s.in.Prepare(ctx, want)
}

func (s *limitStore) wrap(vm string, r Replica, err error) (Replica, error) {
	l := s.of(vm)
	if err != nil || l == nil && s.count == nil {
		return r, err
	}
	sent := func(int64) {}
	if s.count != nil {
		sent = func(n int64) { s.count(vm, n) }
	}
	return &limitReplica{r, l, sent}, nil
}

func (s *limitStore) Create(ctx context.Context, first State) (Replica, error) {
	r, err := s.in.Create(ctx, first)
	return s.wrap(first.VM, r, err)
}

func (s *limitStore) Open(ctx context.Context, vm string) (Replica, error) {
	r, err := s.in.Open(ctx, vm)
	return s.wrap(vm, r, err)
}

func (s *limitStore) Seize(ctx context.Context, vm string, take func(State) (State, error)) (Replica, error) {
	r, err := s.in.Seize(ctx, vm, take)
	return s.wrap(vm, r, err)
}

// View sends nothing.
func (s *limitStore) View(ctx context.Context, vm string) (Replica, error) { return s.in.View(ctx, vm) }

func (s *limitStore) List(ctx context.Context) iter.Seq2[string, error] { return s.in.List(ctx) }

func (s *limitStore) Remove(ctx context.Context, vm string) error { return s.in.Remove(ctx, vm) }

type limitReplica struct {
	in   Replica
	l    *Limiter
	sent func(n int64)
}

func (r *limitReplica) Disk(ctx context.Context, d Disk) (Pages, error) {
	p, err := r.in.Disk(ctx, d)
	if err != nil {
		return nil, err
	}
	return &limitPages{p, r.l, r.sent}, nil
}

func (r *limitReplica) Shelf() Shelf   { return &limitShelf{r.in.Shelf(), r.l, r.sent} }
func (r *limitReplica) Ledger() Ledger { return r.in.Ledger() }
func (r *limitReplica) Points() Points { return r.in.Points() }
func (r *limitReplica) Close() error   { return r.in.Close() }

type limitPages struct {
	in   Pages
	l    *Limiter
	sent func(n int64)
}

// WriteAt writes in parts that are paid for one by one. An empty write is passed on as well: it may be refused.
func (p *limitPages) WriteAt(ctx context.Context, b []byte, off int64) error {
	for {
		n := min(len(b), p.l.piece())
		if err := p.l.Wait(ctx, int64(n)); err != nil {
			return fault.In(err, "", "")
		}
		if err := p.in.WriteAt(ctx, b[:n], off); err != nil {
			return err
		}
		p.sent(int64(n))
		if b, off = b[n:], off+int64(n); len(b) == 0 {
			return nil
		}
	}
}

func (p *limitPages) ReadAt(ctx context.Context, b []byte, off int64) error {
	return p.in.ReadAt(ctx, b, off)
}
func (p *limitPages) ZeroAt(ctx context.Context, off, n int64) error { return p.in.ZeroAt(ctx, off, n) }
func (p *limitPages) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	return p.in.Extent(ctx, off, n)
}
func (p *limitPages) Size() int64                                { return p.in.Size() }
func (p *limitPages) Grow(ctx context.Context, size int64) error { return p.in.Grow(ctx, size) }
func (p *limitPages) LoadSums(ctx context.Context, first int64, out []sums.Sum) error {
	return p.in.LoadSums(ctx, first, out)
}
func (p *limitPages) StoreSums(ctx context.Context, first int64, in []sums.Sum) error {
	return p.in.StoreSums(ctx, first, in)
}
func (p *limitPages) ClearSums(ctx context.Context, first, n int64) error {
	return p.in.ClearSums(ctx, first, n)
}
func (p *limitPages) NextSums(ctx context.Context, first, end int64) (start, n int64, err error) {
	return p.in.NextSums(ctx, first, end)
}
func (p *limitPages) Flush(ctx context.Context) error           { return p.in.Flush(ctx) }
func (p *limitPages) Stamp(ctx context.Context) (string, error) { return p.in.Stamp(ctx) }
func (p *limitPages) Path() string                              { return p.in.Path() }
func (p *limitPages) Close() error                              { return p.in.Close() }

type limitShelf struct {
	in   Shelf
	l    *Limiter
	sent func(n int64)
}

func (s *limitShelf) Put(ctx context.Context, name string, f durable.File) (int64, error) {
	if s.l != nil {
		return s.in.Put(ctx, name, &limitLog{f, s.l, s.sent, ctx})
	}
	n, err := s.in.Put(ctx, name, f)
	s.sent(n)
	return n, err
}

func (s *limitShelf) Open(ctx context.Context, name string) (durable.File, error) {
	return s.in.Open(ctx, name)
}
func (s *limitShelf) Names(ctx context.Context) ([]string, error)   { return s.in.Names(ctx) }
func (s *limitShelf) Remove(ctx context.Context, name string) error { return s.in.Remove(ctx, name) }
func (s *limitShelf) Path(name string) string                       { return s.in.Path(name) }

// limitLog is a log on its way to the shelf: what the store reads of it, it sends.
type limitLog struct {
	durable.File
	l    *Limiter
	sent func(n int64)
	ctx  context.Context // of the Put
}

func (f *limitLog) ReadAt(b []byte, off int64) (int, error) {
	if err := f.l.Wait(f.ctx, int64(len(b))); err != nil {
		return 0, err
	}
	n, err := f.File.ReadAt(b, off)
	f.sent(int64(n))
	return n, err
}
