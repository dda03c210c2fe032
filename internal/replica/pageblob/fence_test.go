package pageblob_test

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/replica/pageblob/azuritetest"
	"sitrep/internal/replica/replicatest"
	"sitrep/internal/sums"
)

func wantCode(t *testing.T, what string, err error, code fault.Code) {
	t.Helper()
	if e := fault.Find(err); e == nil || e.Code != code {
		t.Errorf("%s: the error is %v, want one of code %s", what, err, code)
	}
}

// takeOver is what a failover does to the ledger.
func takeOver(s replica.State) (replica.State, error) {
	if s.Owner.Site != "recovery" {
		s.Generation++
		s.Owner = replica.Owner{Site: "recovery", Host: "h9", Since: time.Date(2026, 3, 1, 0, 7, 0, 0, time.UTC)}
	}
	return s, nil
}

func guestBytes(t *testing.T, r replica.Replica, d replica.Disk) []byte {
	t.Helper()
	p, err := r.Disk(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	out := make([]byte, p.Size())
	if err := p.ReadAt(t.Context(), out, 0); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestTwoSites: the old site is stopped in the middle of a write, the recovery site takes over, and the old one continues.
func TestTwoSites(t *testing.T) {
	ctx := t.Context()
	name := azuritetest.Container(t)
	h := replicatest.NewHistory("vm", 8, replicatest.OSLogs(t))
	if err := errors.Join(h.Begin(ctx, open(t, name, quick())), h.Step(ctx, false), h.Close()); err != nil {
		t.Fatal(err)
	}
	next := wire(t)
	var stopAt func(*http.Request) bool
	stopped, goOn := make(chan bool), make(chan bool)
	opts := quick()
	opts.Transport = over(func(r *http.Request) (*http.Response, error) {
		if stopAt != nil && stopAt(r) {
			stopAt = nil
			stopped <- true
			<-goOn
		}
		return next.RoundTrip(r)
	})
	old, err := open(t, name, opts).Open(ctx, "vm")
	if err != nil {
		t.Fatal(err)
	}
	st, err := old.Ledger().Load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	before := guestBytes(t, old, st.Disks[0])
	pages, err := old.Disk(ctx, st.Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := old.Shelf().Put(ctx, "os.9.hrl", logOf(t, "old")); err != nil {
		t.Fatal(err)
	}
	stopAt = func(r *http.Request) bool { return r.URL.Query().Get("comp") == "page" }
	written := make(chan error)
	go func() {
		err := pages.WriteAt(ctx, bytes.Repeat([]byte{0xEE}, 8192), 4096)
		written <- errors.Join(err, pages.Flush(ctx))
	}()
	<-stopped

	recovery := quick()
	recovery.Holder = "recovery"
	wantCode(t, "opening what another site works on", second(open(t, name, recovery).Open(ctx, "vm")), fault.ReplicaHeld)
	theirs, err := open(t, name, recovery).Seize(ctx, "vm", takeOver)
	if err != nil {
		t.Fatal(err)
	}
	goOn <- true
	err = <-written
	wantCode(t, "the write that was stopped", err, fault.Fenced)
	for _, word := range []string{"recovery", "h9", "2026-03-01T00:07:00Z"} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("the error does not name %s: %v", word, err)
		}
	}
	now, err := theirs.Ledger().Load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got := guestBytes(t, theirs, now.Disks[0]); !bytes.Equal(got, before) {
		t.Error("the old site has written")
	}
	if err := pages.Close(); err != nil {
		t.Fatal(err)
	}

	_, save := old.Ledger().Save(ctx, st)
	_, put := old.Shelf().Put(ctx, "os.10.hrl", logOf(t, "old"))
	s, serr := old.Disk(ctx, st.Disks[1])
	if serr == nil {
		serr = errors.Join(s.StoreSums(ctx, 0, sumsOfOnes(3)), s.Flush(ctx), s.Close())
	}
	lessPoints := st
	lessPoints.Points = nil
	for what, err := range map[string]error{"Save": save, "Put": put, "sums": serr, "Remove": old.Shelf().Remove(ctx, "os.9.hrl"),
		"Sweep": orNothing(old.Points().Sweep(ctx, lessPoints), snapshotsOf(t, name))} {
		wantCode(t, what+" of the old site", err, fault.Fenced)
	}
	if err := old.Close(); err != nil {
		t.Errorf("the old site closes: %v", err)
	}
	wantCode(t, "the old site opens the replica", second(open(t, name, quick()).Open(ctx, "vm")), fault.ReplicaHeld)
	if err := theirs.Close(); err != nil {
		t.Fatal(err)
	}
}

func second[T any](_ T, err error) error { return err }

// orNothing is the error of a Sweep, which has nothing to refuse when there is no snapshot.
func orNothing(err error, snapshots int) error {
	if err == nil && snapshots == 0 {
		return fault.New(fault.Fenced, "")
	}
	return err
}

func snapshotsOf(t *testing.T, name string) int { return twice(t, name) }

// TestSeizeAgain: a takeover that is interrupted at any request is completed by being done again, and afterwards the pages are
// known to be what the ledger says; or are known not to be, when something else wrote to them before.
func TestSeizeAgain(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	for _, touched := range []string{"", "pages", "sums"} {
		for stop := 1; ; stop++ {
			name := azuritetest.Container(t)
			h := replicatest.NewHistory("vm", 8, replicatest.OSLogs(t))
			if err := errors.Join(h.Begin(ctx, open(t, name, quick())), h.Close()); err != nil {
				t.Fatal(err)
			}
			r, err := open(t, name, quick()).Open(ctx, "vm")
			if err != nil {
				t.Fatal(err)
			}
			st := stamped(t, r)
			if touched != "" {
				p, err := r.Disk(ctx, st.Disks[0])
				if touched == "pages" {
					err = errors.Join(err, p.WriteAt(ctx, make([]byte, 512), 0))
				} else {
					err = errors.Join(err, p.StoreSums(ctx, 0, []sums.Sum{{1}}))
				}
				if err = errors.Join(err, p.Flush(ctx), p.Close()); err != nil {
					t.Fatal(err)
				}
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			next, n := wire(t), 0
			cut, cancel := context.WithCancel(ctx)
			opts := quick()
			opts.Holder = "recovery"
			opts.Transport = over(func(r *http.Request) (*http.Response, error) {
				resp, err := next.RoundTrip(r)
				if n++; n == stop {
					cancel() // it is done, and the run has ended before it knew
				}
				return resp, err
			})
			took, err := open(t, name, opts).Seize(cut, "vm", takeOver)
			done := err == nil
			cancel()
			opts.Transport = nil
			if !done {
				if took, err = open(t, name, opts).Seize(ctx, "vm", takeOver); err != nil {
					t.Fatalf("again after request %d: %v", stop, err)
				}
			}
			now, err := took.Ledger().Load(ctx)
			if err != nil || now.Generation != st.Generation+1 {
				t.Fatalf("generation %d, error %v", now.Generation, err)
			}
			for i, d := range now.Disks {
				p, err := took.Disk(ctx, d)
				if err != nil {
					t.Fatal(err)
				}
				stamp, err := p.Stamp(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if known := stamp == d.Stamp; known == (touched != "" && i == 0) {
					t.Errorf("stopped after request %d (touched: %q): disk %s has the stamp %q, the ledger %q", stop, touched, d.Name, stamp, d.Stamp)
				}
				p.Close()
			}
			if err := took.Close(); err != nil {
				t.Fatal(err)
			}
			if done {
				break
			}
		}
	}
}

// stamped notes the pages' stamps in the ledger, as engines do.
func stamped(t *testing.T, r replica.Replica) replica.State {
	t.Helper()
	ctx := t.Context()
	st, err := r.Ledger().Load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range st.Disks {
		p, err := r.Disk(ctx, st.Disks[i])
		if err != nil {
			t.Fatal(err)
		}
		if st.Disks[i].Stamp, err = p.Stamp(ctx); err != nil {
			t.Fatal(err)
		}
		p.Close()
	}
	if st, err = r.Ledger().Save(ctx, st); err != nil {
		t.Fatal(err)
	}
	return st
}

// TestSameHolder: a run that was killed leaves its lease, and the next run of the same site has it.
func TestSameHolder(t *testing.T) {
	ctx := t.Context()
	name := azuritetest.Container(t)
	h := replicatest.NewHistory("vm", 9, replicatest.OSLogs(t))
	if err := h.Begin(ctx, open(t, name, quick())); err != nil { // and is killed
		t.Fatal(err)
	}
	other := quick()
	other.Holder = "other"
	wantCode(t, "another site", second(open(t, name, other).Open(ctx, "vm")), fault.ReplicaHeld)
	r, err := open(t, name, quick()).Open(ctx, "vm")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if r, err = open(t, name, other).Open(ctx, "vm"); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestForeignWrite: what something else wrote to the pages is never read as a recovery point.
func TestForeignWrite(t *testing.T) {
	ctx := t.Context()
	name := azuritetest.Container(t)
	h := replicatest.NewHistory("vm", 10, replicatest.OSLogs(t))
	if err := errors.Join(h.Begin(ctx, open(t, name, quick())), h.Close()); err != nil {
		t.Fatal(err)
	}
	r, err := open(t, name, quick()).Open(ctx, "vm")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	st := stamped(t, r)
	v, err := r.Points().Open(ctx, st, st.Points[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	d, err := v.Disk("os")
	if err != nil {
		t.Fatal(err)
	}
	p, err := r.Disk(ctx, st.Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	garbage := bytes.Repeat([]byte{0x99}, 512)
	if err := errors.Join(p.WriteAt(ctx, garbage, 0), p.Flush(ctx), p.Close()); err != nil {
		t.Fatal(err)
	}
	_, err = d.ReadAt(make([]byte, 512), 0)
	wantCode(t, "a view of pages that were written to", err, fault.ReplicaChanged)
	if v, err = r.Points().Open(ctx, st, st.Points[0].ID); err != nil {
		t.Fatal(err)
	}
	if d, err = v.Disk("os"); err != nil {
		t.Fatal(err)
	}
	_, err = d.ReadAt(make([]byte, 512), 0)
	wantCode(t, "a block that is not what its sum says", err, fault.ReplicaCorrupt)
	var set block.Set
	set.Add(block.Range{Len: 4096})
	if err := r.Points().Preserve(ctx, st, st.Applied.Next(), map[string]*block.Set{"os": &set}, false); err != nil {
		t.Fatal(err)
	}
	if v, err = r.Points().Open(ctx, st, st.Points[0].ID); err != nil {
		t.Fatal(err)
	}
	if d, err = v.Disk("os"); err != nil {
		t.Fatal(err)
	}
	_, err = d.ReadAt(make([]byte, 512), 0)
	wantCode(t, "a block of a snapshot that is not what its sum says", err, fault.ReplicaCorrupt)
	if n, err := d.ReadAt(make([]byte, 4096), 8192); n != 4096 {
		t.Errorf("the block beside it: %v", err)
	}
}

// TestFlushWhileWriting: a Flush ends although others go on writing, and what was written before it is there.
func TestFlushWhileWriting(t *testing.T) {
	ctx := t.Context()
	store := open(t, azuritetest.Container(t), quick())
	if _, err := store.Prepare(ctx, hrl.ID{}); err != nil {
		t.Fatal(err)
	}
	first := replicatest.FirstState("vm")
	first.Disks[0].Size = 64 << 20
	r, err := store.Create(ctx, first)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := r.Disk(ctx, first.Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan bool)
	var others sync.WaitGroup
	for i := range int64(4) {
		others.Go(func() {
			for n := int64(0); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := p.WriteAt(ctx, bytes.Repeat([]byte{byte(n) | 1}, 4096), 8<<20+(i*997+n*7919)%12000*4096); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range byte(5) {
		want := bytes.Repeat([]byte{i + 1}, 8192)
		if err := errors.Join(p.WriteAt(ctx, want, 0), p.Flush(ctx)); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		if err := p.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("after a flush there is something else: %v", err)
		}
	}
	close(stop)
	others.Wait()
	if err := errors.Join(p.Flush(ctx), p.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestOlderStamp: the stamp of an older version's ledger, which speaks of the pages only, is accepted as what it is: for pages that
// are what it says, until the disk is flushed; for snapshots the seal is asked.
func TestOlderStamp(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	h := replicatest.NewHistory("vm", 8, replicatest.OSLogs(t))
	name := azuritetest.Container(t)
	if err := errors.Join(h.Begin(ctx, open(t, name, quick())), h.Close()); err != nil {
		t.Fatal(err)
	}
	r, err := open(t, name, quick()).Open(ctx, "vm")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	st := stamped(t, r)
	d := st.Disks[0]
	whole := d.Stamp
	d.Stamp, _, _ = strings.Cut(d.Stamp, " ")
	if d.Stamp == whole {
		t.Fatalf("the stamp is %q", whole)
	}
	p, err := r.Disk(ctx, d)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if s, err := p.Stamp(ctx); err != nil || s != d.Stamp {
		t.Errorf("the stamp is %q, the ledger has %q (%v)", s, d.Stamp, err)
	}
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	if s, err := p.Stamp(ctx); err != nil || s != whole {
		t.Errorf("after a flush the stamp is %q, not %q (%v)", s, whole, err)
	}
	seal, err := replica.DiskSums{Pages: p, Of: d}.Seal(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(st.Points); n == 0 || st.Points[n-1].At != st.Applied {
		t.Fatal("the pages are at no recovery point")
	}
	before := snapshotsOf(t, name)
	d.Seal = &seal
	st.Disks[0] = d
	if err := errors.Join(p.StoreSums(ctx, 0, []sums.Sum{{9}}), p.Flush(ctx)); err != nil {
		t.Fatal(err)
	}
	at := &st.Points[len(st.Points)-1]
	if at.Seals[d.Name] != seal {
		t.Fatalf("the point has the seal %v, its pages have %v", at.Seals[d.Name], seal)
	}
	for _, d := range st.Disks[1:] { // only the first is looked at
		st.Disk(d.Name).Seal, st.Disk(d.Name).Stamp, at.Seals[d.Name] = &seal, "none", seal
	}
	for _, older := range []bool{false, true} {
		if older { // its points had no seals: that of the pages is asked
			at.Seals = nil
		}
		if err := r.Points().Preserve(ctx, st, st.Applied.Next(), nil, false); err != nil {
			t.Error(err)
		}
		if n := snapshotsOf(t, name); n != before {
			t.Errorf("%d snapshots were made of a disk with foreign sums; the points have no seals: %t", n-before, older)
		}
	}
}
