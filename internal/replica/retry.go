package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/sums"
	"sitrep/internal/wait"
)

// Retries is how often, inside one run, an operation on a store is tried, and how long is waited between two tries. In the
// zero Retries every field has its default.
type Retries struct {
	// Tries of one operation, the first included. Default 4.
	Tries int
	// Pause is what is waited on average before the second try; before each further one it is four times as long, up to
	// 5 seconds. Default 100 ms.
	Pause time.Duration
	// Sleep waits, and returns at once with the error of ctx when that ends.
	Sleep func(ctx context.Context, d time.Duration) error
	// Rand returns a number from 0 to before 1: pauses are between half and one and a half times as long, so that those who
	// failed together do not come back together. It may be called concurrently.
	Rand func() float64
	// Log is told of every failure that is tried again.
	Log *slog.Logger
}

// maxPause keeps pauses far below what an operator takes for a program that hangs.
const maxPause = 5 * time.Second

func (r Retries) complete() *Retries {
	if r.Tries <= 0 {
		r.Tries = 4
	}
	if r.Pause <= 0 {
		r.Pause = 100 * time.Millisecond
	}
	if r.Sleep == nil {
		r.Sleep = wait.For
	}
	if r.Rand == nil {
		r.Rand = rand.Float64
	}
	if r.Log == nil {
		r.Log = slog.New(slog.DiscardHandler)
	}
	return &r
}

// WithRetries returns a store that is s, but for operations that fail for a moment (fault.IO, fault.Busy): these are tried
// again a few times before they fail. Errors of other kinds are returned as they are: waiting does not make space,
// permissions or missing files come back within seconds, and a conflict is an answer.
//
// Only what may be done twice is: what writes the same bytes to the same place, replaces something as a whole, or only
// reads. These are done once:
//
//   - Flush, and Grow, which flushes: when a flush fails, the kernel may have dropped the pages that it could not write and
//     taken them for clean; the next flush then succeeds without them. After a failed flush only writing everything anew
//     helps, which is what the next run does, because the ledger does not say that it was done.
//   - Create: a second try could not tell the replica that the first one made from another's.
//   - Close.
//
// Save is done again only after a look at what the first try has left: see retryLedger.
//
// Errors of a storage account (fault.StoreUnreachable, fault.StoreThrottled, fault.StoreCorrupted) are returned as they are: a
// store that speaks over a network has sent the request again by itself, for longer than is waited here, and trying all that
// again would only keep a run from ending.
func WithRetries(s Store, r Retries) Store { return &retryStore{in: s, Retries: r.complete()} }

// do calls f until it succeeds, fails for good, or has failed often enough.
func (r *Retries) do(ctx context.Context, what string, f func() error) error {
	for try := 1; ; try++ {
		err := f()
		if err == nil || !momentary(err) {
			return err
		}
		if try >= r.Tries {
			return fmt.Errorf("%w (tried %d times)", err, try)
		}
		if ctx.Err() == nil {
			r.Log.Warn("a store operation failed and is tried again", "operation", what, "try", try, "error", err)
		}
		if cerr := r.wait(ctx, try); cerr != nil {
			return fmt.Errorf("%w, before it was tried again after: %v", fault.FromOS(cerr), err) // an interruption, and no failure
		}
	}
}

// wait waits after the try of this number.
func (r *Retries) wait(ctx context.Context, try int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	pause := r.Pause
	for i := 1; i < try && pause < maxPause; i++ {
		pause *= 4
	}
	pause = min(pause, maxPause)
	return r.Sleep(ctx, pause/2+time.Duration(r.Rand()*float64(pause)))
}

// value is do for a function with a result.
func value[T any](ctx context.Context, r *Retries, what string, f func() (T, error)) (v T, err error) {
	err = r.do(ctx, what, func() (err error) {
		v, err = f()
		return err
	})
	return v, err
}

// momentary says whether err may be gone when the operation is tried again. Of joined errors, each has to be.
func momentary(err error) bool {
	if err == io.EOF {
		return false // that is where the file ends; one that is wrapped may be a connection's end
	}
	for _, never := range []error{context.Canceled, context.DeadlineExceeded, fs.ErrNotExist, fs.ErrPermission} {
		if errors.Is(err, never) {
			return false
		}
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range many.Unwrap() {
			if !momentary(err) {
				return false
			}
		}
		return true
	}
	code := fault.FromOS(err).Code
	return code == fault.IO || code == fault.Busy
}

// The wrappers embed nothing of what they wrap: a method that is new in an interface has to be decided on here.

type retryStore struct {
	*Retries
	in Store
}

func (s *retryStore) Describe() string { return s.in.Describe() }

func (s *retryStore) Prepare(ctx context.Context, want hrl.ID) (hrl.ID, error) {
	return value(ctx, s.Retries, "prepare the store", func() (hrl.ID, error) { return s.in.Prepare(ctx, want) })
}

func (s *retryStore) Create(ctx context.Context, first State) (Replica, error) {
	return s.wrap(s.in.Create(ctx, first))
}

func (s *retryStore) Open(ctx context.Context, vm string) (Replica, error) {
	return s.wrap(value(ctx, s.Retries, "open the replica", func() (Replica, error) { return s.in.Open(ctx, vm) }))
}

func (s *retryStore) View(ctx context.Context, vm string) (Replica, error) {
	return s.wrap(value(ctx, s.Retries, "view the replica", func() (Replica, error) { return s.in.View(ctx, vm) }))
}

func (s *retryStore) wrap(r Replica, err error) (Replica, error) {
	if err != nil {
		return nil, err
	}
	return &retryReplica{Retries: s.Retries, in: r}, nil
}

func (s *retryStore) Seize(ctx context.Context, vm string, take func(State) (State, error)) (Replica, error) {
	return s.wrap(value(ctx, s.Retries, "take over the replica", func() (Replica, error) { return s.in.Seize(ctx, vm, take) }))
}

// List lists all names before it yields the first: a name is not yielded twice.
func (s *retryStore) List(ctx context.Context) iter.Seq2[string, error] {
	type entry struct {
		name string
		err  error
	}
	return func(yield func(string, error) bool) {
		var list []entry
		err := s.do(ctx, "list the replicas", func() error {
			list = nil
			var errs []error
			for name, err := range s.in.List(ctx) {
				list = append(list, entry{name, err})
				errs = append(errs, err)
			}
			return errors.Join(errs...)
		})
		if fault.Cancelled(err) {
			yield("", err)
			return
		}
		for _, e := range list { // with its errors, of which err is made
			if !yield(e.name, e.err) {
				return
			}
		}
	}
}

func (s *retryStore) Remove(ctx context.Context, vm string) error {
	return s.do(ctx, "remove the replica", func() error { return s.in.Remove(ctx, vm) })
}

type retryReplica struct {
	*Retries
	in   Replica
	seen atomic.Uint64 // the last Version of the ledger
}

func (r *retryReplica) Disk(ctx context.Context, d Disk) (Pages, error) {
	p, err := value(ctx, r.Retries, "open the pages", func() (Pages, error) { return r.in.Disk(ctx, d) })
	if err != nil {
		return nil, err
	}
	return &retryPages{Retries: r.Retries, in: p}, nil
}

func (r *retryReplica) Shelf() Shelf   { return &retryShelf{Retries: r.Retries, in: r.in.Shelf()} }
func (r *retryReplica) Ledger() Ledger { return &retryLedger{r.Retries, r.in.Ledger(), &r.seen} }
func (r *retryReplica) Points() Points { return &retryPoints{Retries: r.Retries, in: r.in.Points()} }
func (r *retryReplica) Close() error   { return r.in.Close() }

type retryPages struct {
	*Retries
	in Pages
}

func (p *retryPages) ReadAt(ctx context.Context, b []byte, off int64) error {
	return p.do(ctx, "read pages", func() error { return p.in.ReadAt(ctx, b, off) })
}

func (p *retryPages) WriteAt(ctx context.Context, b []byte, off int64) error {
	return p.do(ctx, "write pages", func() error { return p.in.WriteAt(ctx, b, off) })
}

func (p *retryPages) ZeroAt(ctx context.Context, off, n int64) error {
	return p.do(ctx, "zero pages", func() error { return p.in.ZeroAt(ctx, off, n) })
}

func (p *retryPages) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	return value(ctx, p.Retries, "find pages", func() (block.Extent, error) { return p.in.Extent(ctx, off, n) })
}

func (p *retryPages) Size() int64 { return p.in.Size() }

func (p *retryPages) Grow(ctx context.Context, size int64) error { return p.in.Grow(ctx, size) }

func (p *retryPages) LoadSums(ctx context.Context, first int64, out []sums.Sum) error {
	return p.do(ctx, "read block sums", func() error { return p.in.LoadSums(ctx, first, out) })
}

func (p *retryPages) StoreSums(ctx context.Context, first int64, in []sums.Sum) error {
	return p.do(ctx, "write block sums", func() error { return p.in.StoreSums(ctx, first, in) })
}

func (p *retryPages) ClearSums(ctx context.Context, first, n int64) error {
	return p.do(ctx, "clear block sums", func() error { return p.in.ClearSums(ctx, first, n) })
}

func (p *retryPages) NextSums(ctx context.Context, first, end int64) (start, n int64, err error) {
	err = p.do(ctx, "find block sums", func() (err error) {
		start, n, err = p.in.NextSums(ctx, first, end)
		return err
	})
	return start, n, err
}

func (p *retryPages) Flush(ctx context.Context) error { return p.in.Flush(ctx) }

func (p *retryPages) Stamp(ctx context.Context) (string, error) {
	return value(ctx, p.Retries, "stamp the pages", func() (string, error) { return p.in.Stamp(ctx) })
}

func (p *retryPages) Path() string { return p.in.Path() }
func (p *retryPages) Close() error { return p.in.Close() }

type retryShelf struct {
	*Retries
	in Shelf
}

func (s *retryShelf) Put(ctx context.Context, name string, f durable.File) (int64, error) {
	return value(ctx, s.Retries, "put a log on the shelf", func() (int64, error) { return s.in.Put(ctx, name, f) })
}

func (s *retryShelf) Open(ctx context.Context, name string) (durable.File, error) {
	f, err := value(ctx, s.Retries, "open a log", func() (durable.File, error) { return s.in.Open(ctx, name) })
	if err != nil {
		return nil, err
	}
	return &retryLog{File: f, r: reader{s.Retries, ctx}}, nil
}

func (s *retryShelf) Names(ctx context.Context) ([]string, error) {
	return value(ctx, s.Retries, "list the shelf", func() ([]string, error) { return s.in.Names(ctx) })
}

func (s *retryShelf) Remove(ctx context.Context, name string) error {
	return s.do(ctx, "remove a log", func() error { return s.in.Remove(ctx, name) })
}

func (s *retryShelf) Path(name string) string { return s.in.Path(name) }

// reader tries again for those whose methods have no context: it is the one of the call that opened them.
type reader struct {
	*Retries
	ctx context.Context
}

func (r reader) readAt(what string, in io.ReaderAt, b []byte, off int64) (int, error) {
	return value(r.ctx, r.Retries, what, func() (int, error) { return in.ReadAt(b, off) })
}

func (r reader) extent(what string, in func(off, n int64) (block.Extent, error), off, n int64) (block.Extent, error) {
	return value(r.ctx, r.Retries, what, func() (block.Extent, error) { return in(off, n) })
}

// retryLog is a log that was opened for reading; what would change it fails in its own way.
type retryLog struct {
	durable.File
	r reader
}

func (l *retryLog) ReadAt(b []byte, off int64) (int, error) {
	return l.r.readAt("read a log", l.File, b, off)
}

func (l *retryLog) Size() (int64, error) {
	return value(l.r.ctx, l.r.Retries, "read a log", l.File.Size)
}

func (l *retryLog) Extent(off, n int64) (block.Extent, error) {
	return l.r.extent("read a log", l.File.Extent, off, n)
}

// retryLedger saves again after a look. A Save that failed may have been done all the same, the answer lost. Saving the
// same state again would then be a conflict with oneself. What is found is not taken for durable, because the step that
// failed may be the one that makes it so: it is saved once more, on top, and has the next Version then.
type retryLedger struct {
	*Retries
	in   Ledger
	seen *atomic.Uint64
}

func (l *retryLedger) Load(ctx context.Context) (State, error) {
	s, err := value(ctx, l.Retries, "read the ledger", func() (State, error) { return l.in.Load(ctx) })
	if err == nil {
		l.seen.Store(s.Version)
	}
	return s, err
}

func (l *retryLedger) Save(ctx context.Context, s State) (State, error) {
	next, failed := s, false
	stale := l.seen.Load() > s.Version // then whatever there is was saved before
	saved, err := value(ctx, l.Retries, "write the ledger", func() (State, error) {
		if failed {
			stored, err := l.in.Load(ctx)
			if err != nil {
				return s, err
			}
			if !stale && isSaved(stored, next) {
				next.Version = stored.Version
			}
		}
		failed = true
		return l.in.Save(ctx, next)
	})
	if err != nil {
		return s, err
	}
	l.seen.Store(saved.Version)
	return saved, nil
}

// isSaved says whether stored is what a Save of s makes. Where another one has changed the ledger, it is not, and the
// store's own comparison refuses the next Save.
func isSaved(stored, s State) bool {
	s.Format = Format
	s.Version++
	a, aerr := Encode(stored)
	b, berr := Encode(s)
	return aerr == nil && berr == nil && bytes.Equal(a, b)
}

type retryPoints struct {
	*Retries
	in Points
}

func (p *retryPoints) Preserve(ctx context.Context, s State, to hrl.Pos, overwritten map[string]*block.Set, redo bool) error {
	return p.do(ctx, "preserve recovery points", func() error { return p.in.Preserve(ctx, s, to, overwritten, redo) })
}

func (p *retryPoints) Preserved(ctx context.Context, s State, to hrl.Pos) (ranges map[string]*block.Set, all bool, err error) {
	err = p.do(ctx, "read what is preserved", func() (err error) {
		ranges, all, err = p.in.Preserved(ctx, s, to)
		return err
	})
	return ranges, all, err
}

func (p *retryPoints) Reached(ctx context.Context, s State) (hrl.Pos, error) {
	return value(ctx, p.Retries, "read where the pages are", func() (hrl.Pos, error) { return p.in.Reached(ctx, s) })
}

func (p *retryPoints) Open(ctx context.Context, s State, id string) (PointView, error) {
	v, err := value(ctx, p.Retries, "open a recovery point", func() (PointView, error) { return p.in.Open(ctx, s, id) })
	if err != nil {
		return nil, err
	}
	return &retryView{r: reader{p.Retries, ctx}, in: v}, nil
}

func (p *retryPoints) Sweep(ctx context.Context, s State) error {
	return p.do(ctx, "remove old recovery points", func() error { return p.in.Sweep(ctx, s) })
}

type retryView struct {
	r  reader
	in PointView
}

func (v *retryView) Disk(name string) (PointDisk, error) {
	d, err := value(v.r.ctx, v.r.Retries, "open a recovery point", func() (PointDisk, error) { return v.in.Disk(name) })
	if err != nil {
		return nil, err
	}
	return &retryDisk{r: v.r, in: d}, nil
}

func (v *retryView) Close() error { return v.in.Close() }

type retryDisk struct {
	r  reader
	in PointDisk
}

func (d *retryDisk) ReadAt(b []byte, off int64) (int, error) {
	return d.r.readAt("read a recovery point", d.in, b, off)
}

func (d *retryDisk) Size() int64 { return d.in.Size() }

func (d *retryDisk) Extent(off, n int64) (block.Extent, error) {
	return d.r.extent("read a recovery point", d.in.Extent, off, n)
}
