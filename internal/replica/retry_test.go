package replica_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/replica/dir"
	"sitrep/internal/replica/mem"
	"sitrep/internal/replica/replicatest"
	"sitrep/internal/sums"
)

// once is what may not be done twice.
var once = []string{"Create", "Flush", "Grow", "Close", "Pages.Close"}

// random fails every nth time on average, before or after, but for what is done once.
func random(seed uint64, n int) flaw {
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, 0))
	return func(op string, w when) error {
		mu.Lock()
		defer mu.Unlock()
		if slices.Contains(once, op) || rng.IntN(2*n) > 0 {
			return nil
		}
		code := fault.IO
		if rng.IntN(2) == 0 {
			code = fault.Busy
		}
		return fault.New(code, "injected into %s", op)
	}
}

// awake does not sleep.
func awake(ctx context.Context, _ time.Duration) error { return ctx.Err() }

// stubborn tries so often that what fails one time in three never fails as a whole.
func stubborn() replica.Retries { return replica.Retries{Tries: 50, Sleep: awake} }

func never(string, when) error { return nil }

func TestContractWithRetries(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	flaws := map[string]flaw{"sound": never, "flawed": random(seed, 3)}
	for name, flaw := range flaws {
		t.Run(name+" memory", func(t *testing.T) {
			replicatest.TestStore(t, func(*testing.T) replicatest.Place {
				s := &flawedStore{mem.New(), flaw}
				return func() replica.Store { return replica.WithRetries(s, stubborn()) }
			})
		})
	}
	t.Run("flawed folder", func(t *testing.T) {
		replicatest.TestStore(t, func(t *testing.T) replicatest.Place {
			root := t.TempDir()
			return func() replica.Store {
				return replica.WithRetries(&flawedStore{dir.New(durable.OS(), root), flaws["flawed"]}, stubborn())
			}
		})
	})
}

// script fails the first n times that an operation comes to a place, with err, and counts the operations.
type script struct {
	op    string
	at    when
	n     int
	err   error
	calls map[string]int
}

func (s *script) flaw(op string, w when) error {
	if w == before || op == "Close" || op == "Pages.Close" {
		s.calls[op]++
	}
	if op != s.op || w != s.at || s.n == 0 {
		return nil
	}
	s.n--
	return s.err
}

// bench is a replica in memory with one position, on which every operation works, behind retries and a script.
type bench struct {
	t      *testing.T
	script script
	mem    *mem.Store
	store  replica.Store
	rep    replica.Replica
	pages  replica.Pages
	state  replica.State
	log    durable.File
	waits  []time.Duration
	rand   float64
	sleep  func(context.Context, time.Duration) error
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, mem: mem.New(), rand: 0.5, script: script{calls: map[string]int{}}}
	b.sleep = awake
	b.store = replica.WithRetries(&flawedStore{b.mem, b.script.flaw}, replica.Retries{
		Rand: func() float64 { return b.rand },
		Sleep: func(ctx context.Context, d time.Duration) error {
			b.waits = append(b.waits, d)
			return b.sleep(ctx, d)
		},
	})
	ctx := t.Context()
	h := replicatest.NewHistory("vm", 3, replicatest.OSLogs(t))
	b.ok(h.Begin(ctx, b.mem), h.Step(ctx, false), h.Close())
	var err error
	b.rep, err = b.store.Open(ctx, "vm")
	b.ok(err)
	b.state, err = b.rep.Ledger().Load(ctx)
	b.ok(err)
	b.pages, err = b.rep.Disk(ctx, b.state.Disks[0])
	b.ok(err)
	b.log, err = replicatest.OSLogs(t)("log", []byte("log"))
	b.ok(err)
	_, err = b.rep.Shelf().Put(ctx, "log.hrl", b.log)
	b.ok(err)
	t.Cleanup(func() { b.script.n = 0; b.ok(b.log.Close(), b.rep.Close()) })
	return b
}

func (b *bench) ok(errs ...error) {
	b.t.Helper()
	if err := errors.Join(errs...); err != nil {
		b.t.Fatal(err)
	}
}

// fail makes the next n of an operation fail.
func (b *bench) fail(op string, at when, n int, err error) {
	b.script = script{op: op, at: at, n: n, err: err, calls: map[string]int{}}
	b.waits = nil
}

// ops is every operation that can fail, as the flawed store calls them.
func (b *bench) ops(ctx context.Context) map[string]func() error {
	point := func(f func(replica.PointView) error) func() error {
		return func() error {
			v, err := b.rep.Points().Open(ctx, b.state, b.state.Points[0].ID)
			if err != nil {
				return err
			}
			return errors.Join(f(v), v.Close())
		}
	}
	pointDisk := func(f func(replica.PointDisk) error) func() error {
		return point(func(v replica.PointView) error {
			d, err := v.Disk("os")
			if err != nil {
				return err
			}
			return f(d)
		})
	}
	log := func(f func(durable.File) error) func() error {
		return func() error {
			l, err := b.rep.Shelf().Open(ctx, "log.hrl")
			if err != nil {
				return err
			}
			return errors.Join(f(l), l.Close())
		}
	}
	return map[string]func() error{
		"Prepare": func() error { _, err := b.store.Prepare(ctx, hrl.ID{}); return err },
		"Create": func() error {
			r, err := b.store.Create(ctx, replicatest.FirstState("new"))
			if err == nil {
				err = r.Close()
			}
			return err
		},
		"Open": func() error {
			b.ok(b.rep.Close())
			r, err := b.store.Open(ctx, "vm")
			if err == nil {
				b.rep = r
			}
			return err
		},
		"View": func() error {
			r, err := b.store.View(ctx, "vm")
			if err == nil {
				err = r.Close()
			}
			return err
		},
		"List": func() (err error) {
			for _, lerr := range b.store.List(ctx) {
				err = errors.Join(err, lerr)
			}
			return err
		},
		"Store.Remove": func() error { return b.store.Remove(ctx, "another") },
		"Disk": func() error {
			p, err := b.rep.Disk(ctx, b.state.Disks[0])
			if err == nil {
				err = p.Close()
			}
			return err
		},
		"Close": func() error {
			r, err := b.store.View(ctx, "vm")
			b.ok(err)
			return r.Close()
		},
		"ReadAt":       func() error { return b.pages.ReadAt(ctx, make([]byte, 512), 0) },
		"WriteAt":      func() error { return b.pages.WriteAt(ctx, make([]byte, 512), 0) },
		"ZeroAt":       func() error { return b.pages.ZeroAt(ctx, 0, 512) },
		"Extent":       func() error { _, err := b.pages.Extent(ctx, 0, 512); return err },
		"Grow":         func() error { return b.pages.Grow(ctx, b.pages.Size()) },
		"LoadSums":     func() error { return b.pages.LoadSums(ctx, 0, make([]sums.Sum, 1)) },
		"StoreSums":    func() error { return b.pages.StoreSums(ctx, 0, make([]sums.Sum, 1)) },
		"ClearSums":    func() error { return b.pages.ClearSums(ctx, 0, 1) },
		"NextSums":     func() error { _, _, err := b.pages.NextSums(ctx, 0, 1); return err },
		"Flush":        func() error { return b.pages.Flush(ctx) },
		"Stamp":        func() error { _, err := b.pages.Stamp(ctx); return err },
		"Pages.Close":  func() error { return b.pages.Close() },
		"Put":          func() error { _, err := b.rep.Shelf().Put(ctx, "log.hrl", b.log); return err },
		"Shelf.Open":   log(func(durable.File) error { return nil }),
		"Log.ReadAt":   log(func(f durable.File) error { _, err := f.ReadAt(make([]byte, 3), 0); return err }),
		"Log.Size":     log(func(f durable.File) error { _, err := f.Size(); return err }),
		"Log.Extent":   log(func(f durable.File) error { _, err := f.Extent(0, 3); return err }),
		"Names":        func() error { _, err := b.rep.Shelf().Names(ctx); return err },
		"Shelf.Remove": func() error { return b.rep.Shelf().Remove(ctx, "another.hrl") },
		"Load":         func() error { _, err := b.rep.Ledger().Load(ctx); return err },
		"Save": func() error {
			s, err := b.rep.Ledger().Load(ctx)
			b.ok(err)
			_, err = b.rep.Ledger().Save(ctx, s)
			return err
		},
		"Preserve": func() error {
			return b.rep.Points().Preserve(ctx, b.state, b.state.Applied.Next(), nil, false)
		},
		"Preserved":    func() error { _, _, err := b.rep.Points().Preserved(ctx, b.state, b.state.Applied); return err },
		"Reached":      func() error { _, err := b.rep.Points().Reached(ctx, b.state); return err },
		"Points.Open":  point(func(replica.PointView) error { return nil }),
		"Sweep":        func() error { return b.rep.Points().Sweep(ctx, b.state) },
		"Point.Disk":   pointDisk(func(replica.PointDisk) error { return nil }),
		"Point.ReadAt": pointDisk(func(d replica.PointDisk) error { _, err := d.ReadAt(make([]byte, 9), 0); return err }),
		"Point.Extent": pointDisk(func(d replica.PointDisk) error { _, err := d.Extent(0, 9); return err }),
	}
}

func momentary() error { return fault.New(fault.IO, "the cable was loose") }

// TestEveryOperation: what may be done twice is, until it works or was tried four times; the rest is done once.
func TestEveryOperation(t *testing.T) {
	for op := range newBench(t).ops(t.Context()) {
		for _, at := range []when{before, after} {
			if at == before && strings.HasSuffix(op, "Close") || at == after && op == "List" {
				continue
			}
			for _, failures := range []int{1, 3, 4} {
				b := newBench(t)
				f := b.ops(t.Context())[op]
				b.fail(op, at, failures, momentary())
				err := f()
				calls := b.script.calls[op]
				what := fmt.Sprintf("%s, failing %d times (after: %v)", op, failures, at)
				switch {
				case slices.Contains(once, op):
					if err == nil || len(b.waits) > 0 || b.script.n != failures-1 {
						t.Errorf("%s: error %v after %d waits", what, err, len(b.waits))
					}
				case failures < 4:
					if err != nil || len(b.waits) != failures || calls != failures+1 && op != "Load" && op != "List" {
						t.Errorf("%s: error %v, %d calls, %d waits", what, err, calls, len(b.waits))
					}
				default:
					if e := fault.Find(err); e == nil || e.Code != fault.IO || len(b.waits) != 3 || b.script.n != 0 {
						t.Errorf("%s: error %v after %d waits", what, err, len(b.waits))
					}
				}
				if op == "Open" && err != nil { // what failed has left no lock
					r, err := b.mem.Open(t.Context(), "vm")
					b.ok(err)
					b.rep = r
				}
			}
		}
	}
}

func TestPauses(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		rand float64
		want []time.Duration // in milliseconds
	}{{0, []time.Duration{50, 200, 800}}, {0.5, []time.Duration{100, 400, 1600}}, {1, []time.Duration{150, 600, 2400}}} {
		b.rand = c.rand
		b.fail("ReadAt", before, 9, momentary())
		err := b.pages.ReadAt(t.Context(), make([]byte, 512), 0)
		if err == nil || !strings.Contains(err.Error(), "the cable was loose (tried 4 times)") {
			t.Errorf("the error is %v", err)
		}
		for i := range c.want {
			c.want[i] *= time.Millisecond
		}
		if !slices.Equal(b.waits, c.want) {
			t.Errorf("pauses %v, want %v", b.waits, c.want)
		}
	}
	var longest time.Duration
	s := replica.WithRetries(&flawedStore{b.mem, func(string, when) error { return momentary() }}, replica.Retries{
		Tries: 200, Pause: time.Hour,
		Sleep: func(_ context.Context, d time.Duration) error { longest = max(longest, d); return nil },
	})
	if _, err := s.Prepare(t.Context(), hrl.ID{}); err == nil || longest > 7500*time.Millisecond || longest < 2*time.Second {
		t.Errorf("error %v, the longest pause is %s", err, longest)
	}
}

// TestWhichErrors: only what may be gone in a moment is tried again.
func TestWhichErrors(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		name  string
		err   error
		again bool
	}{
		{"io", fault.New(fault.IO, ""), true},
		{"busy", fault.New(fault.Busy, ""), true},
		{"wrapped", fmt.Errorf("while reading: %w", fault.New(fault.Busy, "")), true},
		{"errno EIO", syscall.EIO, true},
		{"PathError EIO", &fs.PathError{Op: "read", Path: "x", Err: syscall.EIO}, true},
		{"not known", errors.New("strange"), true},
		{"cut off", io.ErrUnexpectedEOF, true},
		{"two of them", errors.Join(fault.New(fault.IO, ""), fault.New(fault.Busy, "")), true},
		{"the end", io.EOF, false},
		{"no space", fault.New(fault.NoSpace, ""), false},
		{"errno ENOSPC", syscall.ENOSPC, false},
		{"permission", fault.New(fault.Permission, ""), false},
		{"io of permission", fault.Wrap(fault.IO, fs.ErrPermission, ""), false},
		{"errno ENOENT", syscall.ENOENT, false},
		{"io of not there", fault.Wrap(fault.IO, fs.ErrNotExist, ""), false},
		{"conflict", fault.New(fault.LedgerConflict, ""), false},
		{"fenced", fault.New(fault.Fenced, ""), false},
		{"locked", fault.New(fault.RunLocked, ""), false},
		{"not mounted", fault.New(fault.StoreNotMounted, ""), false},
		{"changed", fault.New(fault.ReplicaChanged, ""), false},
		{"fenced, and closing failed", errors.Join(fault.New(fault.Fenced, ""), fault.New(fault.IO, "")), false},
		{"closing failed, and fenced", errors.Join(fault.New(fault.IO, ""), fault.New(fault.Fenced, "")), false},
		{"cancelled", context.Canceled, false},
		{"io of cancelled", fault.Wrap(fault.IO, context.Canceled, ""), false},
		{"deadline", fault.Wrap(fault.IO, context.DeadlineExceeded, ""), false},
		{"of a newer version", fault.New("quantum", ""), false},
	} {
		b.fail("ReadAt", before, 1, c.err)
		err := b.pages.ReadAt(t.Context(), make([]byte, 512), 0)
		if (err == nil) != c.again || (len(b.waits) > 0) != c.again {
			t.Errorf("%s: error %v after %d waits", c.name, err, len(b.waits))
		}
		if !c.again && err != c.err {
			t.Errorf("%s: the error became %v", c.name, err)
		}
	}
}

func TestCancelledWhileWaiting(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancel(t.Context())
	b.sleep = func(context.Context, time.Duration) error { cancel(); return ctx.Err() }
	b.fail("ReadAt", before, 9, momentary())
	err := b.pages.ReadAt(ctx, make([]byte, 512), 0)
	if !fault.Cancelled(err) || fault.Find(err).Code != fault.Interrupted || b.script.calls["ReadAt"] != 1 {
		t.Errorf("error %v after %d calls", err, b.script.calls["ReadAt"])
	}
	b.fail("ReadAt", before, 9, momentary()) // a store that takes no notice of the context
	err = b.pages.ReadAt(ctx, make([]byte, 512), 0)
	if !fault.Cancelled(err) || len(b.waits) > 0 {
		t.Errorf("error %v after %d waits", err, len(b.waits))
	}
	b.fail("List", before, 9, momentary())
	for _, err := range b.store.List(ctx) {
		if !fault.Cancelled(err) {
			t.Errorf("List yields %v", err)
		}
	}
}

// TestRealSleep: without a Sleep of its own, a wait is one, and ends with the context.
func TestRealSleep(t *testing.T) {
	s := script{op: "Prepare", n: 2, err: momentary(), calls: map[string]int{}}
	store := replica.WithRetries(&flawedStore{mem.New(), s.flaw}, replica.Retries{Pause: 20 * time.Millisecond})
	begin := time.Now()
	if _, err := store.Prepare(t.Context(), hrl.ID{}); err != nil || time.Since(begin) < 50*time.Millisecond {
		t.Errorf("error %v after %s", err, time.Since(begin))
	}
	s.n = 2
	store = replica.WithRetries(&flawedStore{mem.New(), s.flaw}, replica.Retries{Pause: time.Hour})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := store.Prepare(ctx, hrl.ID{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v after %s", err, time.Since(begin))
	}
}

// TestListAgain: a list that breaks off is listed anew, and no name comes twice.
func TestListAgain(t *testing.T) {
	b := newBench(t)
	for _, vm := range []string{"a", "b", "z"} {
		r, err := b.mem.Create(t.Context(), replicatest.FirstState(vm))
		b.ok(err, r.Close())
	}
	calls := 0
	flaw := func(string, when) error {
		if calls++; calls == 3 {
			return momentary()
		}
		return nil
	}
	var got []string
	for name, err := range replica.WithRetries(&flawedStore{b.mem, flaw}, stubborn()).List(t.Context()) {
		b.ok(err)
		got = append(got, name)
	}
	if !slices.Equal(got, []string{"a", "b", "vm", "z"}) || calls != 7 {
		t.Errorf("the list is %q after %d calls", got, calls)
	}
}

// TestSaveWithLostAnswers is about a Save of which it is not known whether it was done.
func TestSaveWithLostAnswers(t *testing.T) {
	ctx := t.Context()
	for _, at := range []when{before, after} {
		for failures := range 4 {
			b := newBench(t)
			s := b.state
			s.Reason = "because"
			b.fail("Save", at, failures, momentary())
			got, err := b.rep.Ledger().Save(ctx, s)
			b.ok(err)
			stored, err := b.rep.Ledger().Load(ctx)
			b.ok(err)
			done := 1
			if at == after {
				done += failures // each was done, and the last one with an answer
			}
			if got.Version != s.Version+uint64(done) || stored.Version != got.Version || stored.Reason != "because" {
				t.Errorf("%d failures (after: %v): version %d after %d, stored %d %q", failures, at, got.Version, s.Version, stored.Version, stored.Reason)
			}
			if _, err := b.rep.Ledger().Save(ctx, got); err != nil {
				t.Errorf("the state that Save returned cannot be saved: %v", err)
			}
		}
		b := newBench(t)
		b.fail("Save", at, 4, momentary())
		got, err := b.rep.Ledger().Save(ctx, b.state)
		if err == nil || got.Version != b.state.Version {
			t.Errorf("error %v, version %d", err, got.Version)
		}
	}
}

// TestSaveOfAnOldState: that the ledger holds what an old state would make of it does not make this Save the one that did.
func TestSaveOfAnOldState(t *testing.T) {
	ctx := t.Context()
	for _, another := range []bool{false, true} {
		b := newBench(t)
		old := b.state
		old.Reason = "because"
		_, err := b.rep.Ledger().Save(ctx, old)
		b.ok(err)
		if another { // a run that has read the ledger and then goes back
			b.ok(b.rep.Close())
			b.rep, err = b.store.Open(ctx, "vm")
			b.ok(err)
			_, err = b.rep.Ledger().Load(ctx)
			b.ok(err)
		}
		b.fail("Save", before, 1, momentary())
		if _, err := b.rep.Ledger().Save(ctx, old); fault.Find(err) == nil || fault.Find(err).Code != fault.LedgerConflict {
			t.Errorf("another run: %v, the error is %v", another, err)
		}
	}
}

// fixed is a store with one replica that is open already.
type fixed struct {
	replica.Store
	r replica.Replica
}

func (f fixed) Open(context.Context, string) (replica.Replica, error) { return f.r, nil }

// TestSaveAndAnother: a Save that fails while another run changes the ledger does not overwrite what that one did.
func TestSaveAndAnother(t *testing.T) {
	ctx := t.Context()
	changed := func(s *replica.State) { s.Reason = "theirs" }
	takenOver := func(s *replica.State) { s.Reason = "theirs"; s.Generation++ }
	for _, c := range []struct {
		name   string
		at     when
		change func(*replica.State)
		code   fault.Code
	}{
		{"changed", before, changed, fault.LedgerConflict},
		{"changed on top", after, changed, fault.LedgerConflict},
		{"taken over", before, takenOver, fault.Fenced},
		{"taken over on top", after, takenOver, fault.Fenced},
	} {
		store := mem.New()
		h := replicatest.NewHistory("vm", 3, replicatest.OSLogs(t))
		if err := errors.Join(h.Begin(ctx, store), h.Close()); err != nil {
			t.Fatal(err)
		}
		raw, err := store.Open(ctx, "vm")
		if err != nil {
			t.Fatal(err)
		}
		other := func(context.Context, time.Duration) error {
			s, err := raw.Ledger().Load(ctx)
			if err == nil {
				c.change(&s)
				_, err = raw.Ledger().Save(ctx, s)
			}
			return err
		}
		fails := script{op: "Save", at: c.at, n: 1, err: momentary(), calls: map[string]int{}}
		mine, err := replica.WithRetries(&flawedStore{fixed{r: raw}, fails.flaw}, replica.Retries{Sleep: other}).Open(ctx, "vm")
		if err != nil {
			t.Fatal(err)
		}
		s, err := mine.Ledger().Load(ctx)
		if err != nil {
			t.Fatal(err)
		}
		s.Reason = "mine"
		got, err := mine.Ledger().Save(ctx, s)
		if e := fault.Find(err); e == nil || e.Code != c.code || got.Version != s.Version {
			t.Errorf("%s: version %d, error %v, want %s", c.name, got.Version, err, c.code)
		}
		stored, err := raw.Ledger().Load(ctx)
		if err != nil || stored.Reason != "theirs" {
			t.Errorf("%s: the ledger says %q (error %v)", c.name, stored.Reason, err)
		}
	}
}
