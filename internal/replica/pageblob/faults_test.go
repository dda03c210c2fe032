package pageblob_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"sitrep/internal/fault"
	"sitrep/internal/replica/pageblob/azuritetest"
	"sitrep/internal/replica/replicatest"
)

// TestFaultyNetwork leads a replica through many positions while a fifth of all requests fail. Whatever fails, nothing that was
// promised is lost, and no snapshot is there twice.
func TestFaultyNetwork(t *testing.T) {
	t.Parallel()
	cycles := 12
	if os.Getenv("SITREP_LONG") != "" {
		cycles = 200
	}
	name := azuritetest.Container(t)
	const seed = 3
	bad := newFaulty(t, seed, 0.2)
	opts := quick()
	opts.Transport = over(bad.RoundTrip)
	ctx := t.Context()
	h := replicatest.NewHistory("vm", seed, replicatest.OSLogs(t))
	again := func(what string, f func() error) { // until it works: each failure is a run that ended
		for try := 0; ; try++ {
			err := f()
			if err == nil {
				return
			}
			if try == 60 { // what is lost stays lost
				t.Fatalf("seed %d: %s: %v", seed, what, err)
			}
		}
	}
	recovered := func(what string, err error) {
		if err == nil {
			return
		}
		again(what, func() error {
			if err := h.Attach(ctx, open(t, name, opts)); err != nil {
				return err
			}
			return h.Recover(ctx, open(t, name, opts))
		})
	}
	recovered("begin", h.Begin(ctx, open(t, name, opts)))
	for i := range cycles {
		recovered(fmt.Sprint("cycle ", i), h.Step(ctx, i%5 == 2))
		again("check", func() error { return h.Check(ctx) })
	}
	t.Logf("seed %d, failures: %v", seed, bad.seen)
	for _, what := range []string{"busy", "reset", "lost answer", "truncated", "timeout", "clock", "denied"} {
		if bad.seen[what] == 0 {
			t.Errorf("there was no %q", what)
		}
	}
	good := open(t, name, quick())
	if err := h.Attach(ctx, good); err != nil {
		t.Fatal(err)
	}
	if err := h.Step(ctx, false); err != nil { // sweeps
		t.Fatal(err)
	}
	twice(t, name)
	if err := errors.Join(h.Check(ctx), h.Close()); err != nil {
		t.Fatal(err)
	}
}

// containerOf is the container as the SDK sees it, for looking behind the store's back.
func containerOf(t *testing.T, name string) *container.Client {
	t.Helper()
	c, err := container.NewClientFromConnectionString(azurite.Server(t).ConnectionString(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// twice fails when a blob has two snapshots of one position.
func twice(t *testing.T, name string) (snapshots int) {
	t.Helper()
	seen := map[string]bool{}
	pager := containerOf(t, name).NewListBlobsFlatPager(&container.ListBlobsFlatOptions{
		Include: container.ListBlobsInclude{Snapshots: true, Metadata: true}})
	for pager.More() {
		page, err := pager.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range page.Segment.BlobItems {
			if b.Snapshot == nil {
				continue
			}
			snapshots++
			for k, v := range b.Metadata {
				if key := *b.Name + " " + *v; strings.EqualFold(k, "sitrep_position") {
					if seen[key] {
						t.Errorf("there are two snapshots of %s", key)
					}
					seen[key] = true
				}
			}
		}
	}
	return snapshots
}

// TestSnapshotWithLostAnswers: each answer to a snapshot is lost, and each is there once.
func TestSnapshotWithLostAnswers(t *testing.T) {
	t.Parallel()
	name := azuritetest.Container(t)
	next, lost := wire(t), 0
	opts := quick()
	opts.Transport = over(func(r *http.Request) (*http.Response, error) {
		resp, err := next.RoundTrip(r)
		if err == nil && r.Method == http.MethodPut && r.URL.Query().Get("comp") == "snapshot" {
			resp.Body.Close()
			lost++
			return nil, errReset
		}
		return resp, err
	})
	ctx := t.Context()
	h := replicatest.NewHistory("vm", 5, replicatest.OSLogs(t))
	if err := h.Begin(ctx, open(t, name, opts)); err != nil {
		t.Fatal(err)
	}
	h.Keep = 9
	for range 3 {
		if err := h.Step(ctx, false); err != nil {
			t.Fatal(err)
		}
	}
	if n := twice(t, name); n != 12 || lost != 12 { // two blobs of two disks at three positions
		t.Errorf("%d snapshots after %d lost answers", n, lost)
	}
	if err := errors.Join(h.Check(ctx), h.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestHangs: a server that takes a request and never answers does not hang the run.
func TestHangs(t *testing.T) {
	t.Parallel()
	name := azuritetest.Container(t)
	next := wire(t)
	hang := make(chan bool, 1)
	opts := quick()
	opts.Retry = policy.RetryOptions{MaxRetries: 5, TryTimeout: 2 * time.Second, RetryDelay: time.Millisecond}
	hanging := "" // what hangs: the comp of the request; "" is any
	opts.Transport = over(func(r *http.Request) (*http.Response, error) {
		if comp := r.URL.Query().Get("comp"); hanging != "" && comp != hanging {
			return next.RoundTrip(r)
		}
		select {
		case <-hang:
			<-r.Context().Done()
			return nil, r.Context().Err()
		default:
			return next.RoundTrip(r)
		}
	})
	h := replicatest.NewHistory("vm", 6, replicatest.OSLogs(t))
	if err := h.Begin(t.Context(), open(t, name, opts)); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"", "snapshot", "page", "lease"} {
		hanging = what
		hang <- true
		err := errors.Join(h.Step(t.Context(), false), h.Check(t.Context()), h.Close())
		if err != nil || len(hang) > 0 {
			t.Fatalf("%q hangs: %v", what, err)
		}
		if err := h.Attach(t.Context(), open(t, name, opts)); err != nil {
			t.Fatal(err)
		}
	}
	hanging = ""
	forever := make(chan bool)
	close(forever)
	hang = forever
	opts.Retry.MaxRetries = -1
	_, err := open(t, name, opts).View(t.Context(), "vm")
	if e := fault.Find(err); e == nil || e.Code != fault.StoreUnreachable {
		t.Errorf("a server that never answers: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := open(t, name, opts).View(ctx, "vm"); !fault.Cancelled(err) {
		t.Errorf("cancelled while it hangs: %v", err)
	}
}

// TestLostAnswersOfChanges: a create, and a change of the ledger, that was done although the answer was lost.
func TestLostAnswersOfChanges(t *testing.T) {
	name := azuritetest.Container(t)
	next := wire(t)
	lose := 0
	opts := quick()
	opts.Transport = over(func(r *http.Request) (*http.Response, error) {
		resp, err := next.RoundTrip(r)
		if err == nil && lose > 0 && r.Method == http.MethodPut {
			lose--
			resp.Body.Close()
			return nil, errReset
		}
		return resp, err
	})
	ctx := t.Context()
	store := open(t, name, opts)
	if _, err := store.Prepare(ctx, [16]byte{}); err != nil {
		t.Fatal(err)
	}
	lose = 2 // of the lease, and of the ledger
	r, err := store.Create(ctx, replicatest.FirstState("vm"))
	if err != nil || lose != 0 {
		t.Fatal(err, lose)
	}
	s, err := r.Ledger().Load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		lose = 1
		s.Reason += "x"
		if s, err = r.Ledger().Save(ctx, s); err != nil || lose != 0 {
			t.Fatal(err, lose)
		}
	}
	if s, err = r.Ledger().Load(ctx); err != nil || s.Reason != "xxx" || s.Version != 4 {
		t.Errorf("version %d, %q, %v", s.Version, s.Reason, err)
	}
	p, err := r.Disk(ctx, s.Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	lose = 3
	if err := errors.Join(p.Grow(ctx, s.Disks[0].Size+3<<20), p.Close(), r.Close()); err != nil || lose != 0 {
		t.Fatal(err, lose)
	}
}
