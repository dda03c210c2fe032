package pageblob_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	az "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"

	"sitrep/internal/block"
	"sitrep/internal/disk/vhd"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/replica/pageblob/azuritetest"
)

// way is how a promotion is made: what the service, or the emulator, does when it is asked for a copy.
type way struct {
	name string
	next func(t *testing.T) roundTrip
}

func ways() []way {
	return []way{
		{"by the service", unaliased},
		{"the service cannot", func(t *testing.T) roundTrip {
			next := wire(t)
			return func(r *http.Request) (*http.Response, error) {
				if header(r, "x-ms-copy-source") != "" {
					return answer(r, 501, "APINotImplemented", ""), nil
				}
				return next.RoundTrip(r)
			}
		}},
		{"the copy shares its pages", func(t *testing.T) roundTrip { return wire(t).RoundTrip }},
	}
}

func (w way) run(t *testing.T, f func(t *testing.T, next roundTrip)) {
	t.Run(w.name, func(t *testing.T) { f(t, w.next(t)) })
}

func blobOf(t *testing.T, container, name string) *az.Client {
	return containerOf(t, container).NewPageBlobClient("vm/promoted/" + name + ".vhd")
}

// scribble writes to a page blob behind everybody's back.
func scribble(t *testing.T, c *az.Client, off int64, b byte) {
	t.Helper()
	_, err := c.UploadPages(t.Context(), streaming.NopCloser(bytes.NewReader(bytes.Repeat([]byte{b}, 512))), blob.HTTPRange{Offset: off, Count: 512}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

func absent(t *testing.T, c *az.Client) {
	t.Helper()
	if _, err := c.GetProperties(t.Context(), nil); err == nil {
		t.Errorf("%s is there", c.URL())
	}
}

// TestPromoteApart: whatever the service's copies are, what a machine writes to a promoted disk is in no recovery point, the
// replica's own disk is as it was, and the disk has an identity of its own.
func TestPromoteApart(t *testing.T) {
	for _, w := range ways() {
		w.run(t, func(t *testing.T, next roundTrip) {
			name := azuritetest.Container(t)
			r, s := promoted(t, name, next)
			p := r.(replica.Promoter)
			seen := map[vhd.UUID]bool{}
			for i, point := range s.Points {
				want := pointBytes(t, r, s, point.ID, "os")
				id := fmt.Sprintf("f%d-os", i)
				made, err := p.Promote(t.Context(), s, replica.Promotion{Point: point.ID, Disk: "os", Name: id})
				if err != nil || strings.Contains(made.Where, "?") {
					t.Fatal(made, err)
				}
				same := made
				same.Found = true
				if again, err := p.Promote(t.Context(), s, replica.Promotion{Point: point.ID, Disk: "os", Name: id}); again != same || made.Found || err != nil {
					t.Errorf("again it is %v (%v), and was %v", again, err, made)
				}
				c := blobOf(t, name, id)
				var f vhd.Footer
				got := download(t, c)
				if err := f.UnmarshalBinary(got[len(got)-vhd.FooterSize:]); err != nil || seen[f.ID] || !bytes.Equal(got[:len(want)], want) {
					t.Errorf("identity %s, %v, or other content", f.ID, err)
				}
				seen[f.ID] = true
				for off := int64(0); off < int64(len(want)); off += 4096 {
					scribble(t, c, off, 0xAB)
				}
				if !bytes.Equal(pointBytes(t, r, s, point.ID, "os"), want) {
					t.Error("a write to the disk shows in the recovery point")
				}
			}
			pages, err := r.Disk(t.Context(), *s.Disk("os")) // which looks for its footer
			if err != nil {
				t.Fatal(err)
			}
			if err := pages.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// dataAt is the first block of a disk of a point that is not zero.
func dataAt(t *testing.T, r replica.Replica, s replica.State, id, disk string) int64 {
	t.Helper()
	for off, b := range pointBytes(t, r, s, id, disk) {
		if b != 0 {
			return int64(off) / s.Disk(disk).BlockSize * s.Disk(disk).BlockSize
		}
	}
	t.Fatal("all of it is zero")
	return 0
}

// TestPromoteProves: what a stranger wrote to the replica before the snapshot was taken comes into no machine, whichever way the
// disk is made. Nothing is left of it. Without the proof nobody notices.
func TestPromoteProves(t *testing.T) {
	for _, w := range ways() {
		w.run(t, func(t *testing.T, next roundTrip) {
			name := azuritetest.Container(t)
			r, s := promoted(t, name, next)
			p := r.(replica.Promoter)
			last := s.Points[len(s.Points)-1].ID // which has no snapshot yet
			off := dataAt(t, r, s, last, "os")
			scribble(t, containerOf(t, name).NewPageBlobClient("vm/os.vhd"), off, 0x5A)
			what := replica.Promotion{Point: last, Disk: "os", Name: "bad"}
			_, err := p.Promote(t.Context(), s, what)
			wantCode(t, "a damaged replica", err, fault.ReplicaCorrupt)
			if e := fault.Find(err); e.Disk != "os" || !e.HasOff || e.Off != off {
				t.Errorf("%v does not name disk and offset %d", err, off)
			}
			absent(t, blobOf(t, name, "bad"))
			what.Proof = replica.ProofNone
			if _, err := p.Promote(t.Context(), s, what); (w.name == "by the service") != (err == nil) {
				t.Errorf("unproven: %v", err)
			}
		})
	}
}

// TestPromoteBadCopy: a copy of the service that is not what it was made of is the copy's fault, not the replica's.
func TestPromoteBadCopy(t *testing.T) {
	name := azuritetest.Container(t)
	next := unaliased(t)
	r, s := promoted(t, name, func(r *http.Request) (*http.Response, error) {
		resp, err := next(r)
		if err == nil && r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/promoted/") && r.URL.Query().Get("comp") == "" {
			data, rerr := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err = rerr; err == nil {
				data[len(data)/2] ^= 1
				resp.Body = io.NopCloser(bytes.NewReader(data))
			}
		}
		return resp, err
	})
	_, err := r.(replica.Promoter).Promote(t.Context(), s, replica.Promotion{Point: s.Points[0].ID, Disk: "os", Name: "x"})
	wantCode(t, "a damaged copy", err, fault.StoreCorrupted)
	absent(t, blobOf(t, name, "x"))
}

// TestPromoteProgress: all of the disk is counted, whichever way it is made.
func TestPromoteProgress(t *testing.T) {
	for _, w := range ways() {
		w.run(t, func(t *testing.T, next roundTrip) {
			r, s := promoted(t, azuritetest.Container(t), next)
			var n int64
			what := replica.Promotion{Point: s.Points[0].ID, Disk: "os", Name: "x", Progress: func(more int64) { n += more }}
			if _, err := r.(replica.Promoter).Promote(t.Context(), s, what); err != nil || n != s.Points[0].Sizes["os"] {
				t.Errorf("%d bytes of %d, %v", n, s.Points[0].Sizes["os"], err)
			}
		})
	}
}

// TestPromoteCutEverywhere kills the run at its requests (with SITREP_LONG at each of them), before the request arrives or after
// it was done, and runs it again: the disk is then whole, and nothing before that looked as if it were.
func TestPromoteCutEverywhere(t *testing.T) {
	for _, w := range ways() {
		w.run(t, func(t *testing.T, next roundTrip) {
			name := azuritetest.Container(t)
			var left atomic.Int64
			var lost atomic.Bool
			left.Store(1 << 40)
			r, s := promoted(t, name, func(r *http.Request) (*http.Response, error) {
				n := left.Add(-1)
				if n == 0 && lost.Load() {
					if resp, err := next(r); err == nil {
						resp.Body.Close()
					}
				}
				if n <= 0 {
					return nil, errReset
				}
				return next(r)
			})
			p := r.(replica.Promoter)
			point := s.Points[1].ID
			want := pointBytes(t, r, s, point, "os")
			first, step, kinds := int64(1), int64(1), []bool{false, true}
			if os.Getenv("SITREP_LONG") == "" {
				first, step, kinds = 1+rand.Int64N(2), 2, []bool{rand.IntN(2) == 0}
				t.Logf("from request %d, done: %v", first, kinds)
			}
			for k := first; ; k += step {
				done := false
				for _, l := range kinds {
					what := replica.Promotion{Point: point, Disk: "os", Name: fmt.Sprintf("k%d-%v", k, l)}
					lost.Store(l)
					left.Store(k)
					_, err := p.Promote(t.Context(), s, what)
					left.Store(1 << 40)
					done = done || err == nil
					if _, err := p.Promote(t.Context(), s, what); err != nil {
						t.Fatalf("killed at request %d (done: %v), then: %v", k, l, err)
					}
					if got := download(t, blobOf(t, name, what.Name)); !bytes.Equal(got[:len(want)], want) {
						t.Fatalf("killed at request %d (done: %v): the disk is not that of the point", k, l)
					}
					if err := p.RemovePromoted(t.Context(), what.Name); err != nil {
						t.Fatal(err)
					}
				}
				if done {
					t.Logf("%d requests", k-1)
					return
				}
			}
		})
	}
}

// TestPromoteLeftBehind: a run that hangs in the middle of a promotion, and wakes up when another owner has made the disk and a
// machine has written to it, changes nothing any more, and deletes nothing.
func TestPromoteLeftBehind(t *testing.T) {
	name := azuritetest.Container(t)
	stuck, wake := make(chan struct{}), make(chan struct{})
	var once sync.Once
	next := ways()[1].next(t)
	r, s := promoted(t, name, func(r *http.Request) (*http.Response, error) {
		if strings.Contains(r.URL.Path, "/promoted/") && header(r, "x-ms-page-write") == "update" {
			once.Do(func() { close(stuck); <-wake })
		}
		return next(r)
	})
	what := replica.Promotion{Point: s.Points[0].ID, Disk: "os", Name: "f-os"}
	old := r.(replica.Promoter)
	ended := make(chan error, 1)
	go func() { _, err := old.Promote(context.WithoutCancel(t.Context()), s, what); ended <- err }()
	<-stuck
	opts := quick()
	opts.Holder = "another"
	now, err := open(t, name, opts).Seize(t.Context(), "vm", func(s replica.State) (replica.State, error) {
		s.Generation++
		s.Owner.Site = "another"
		return s, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer now.Close()
	mine, err := now.Ledger().Load(t.Context())
	if err == nil {
		_, err = now.(replica.Promoter).Promote(t.Context(), mine, what)
	}
	if err != nil {
		t.Fatal(err)
	}
	c := blobOf(t, name, "f-os")
	for off := int64(0); off < s.Points[0].Sizes["os"]; off += 512 {
		scribble(t, c, off, 0xAB)
	}
	want := download(t, c)
	close(wake)
	wantCode(t, "the run that was left behind", <-ended, fault.Fenced)
	wantCode(t, "its deletion", old.RemovePromoted(t.Context(), "f-os"), fault.Fenced)
	if !bytes.Equal(download(t, c), want) {
		t.Error("it has changed what the machine runs from")
	}
}

// TestOpenPromoted reads a promoted disk as a failback does.
func TestOpenPromoted(t *testing.T) {
	name := azuritetest.Container(t)
	r, s := promoted(t, name, unaliased(t))
	p := r.(replica.Promoter)
	point := s.Points[0]
	size := point.Sizes["os"]
	ctx := t.Context()
	_, err := p.OpenPromoted(ctx, "x", size)
	wantCode(t, "nothing", err, fault.NotFound)
	made, err := p.Promote(ctx, s, replica.Promotion{Point: point.ID, Disk: "os", Name: "x"})
	if err != nil {
		t.Fatal(err)
	}
	stamp := func() string {
		t.Helper()
		d, err := p.OpenPromoted(ctx, "x", size)
		if err != nil {
			t.Fatal(err)
		}
		return d.Stamp()
	}
	if got := stamp(); got != made.Stamp {
		t.Errorf("its stamp is %s, and was %s", got, made.Stamp)
	}
	c := blobOf(t, name, "x")
	scribble(t, c, 512, 0xCD)
	if stamp() == made.Stamp {
		t.Error("its stamp does not show that something wrote to it")
	}
	want := download(t, c)
	read := func(size int64) []byte {
		t.Helper()
		v, err := open(t, name, quick()).View(ctx, "vm") // by whoever only reads
		if err != nil {
			t.Fatal(err)
		}
		d, err := v.(replica.Promoter).OpenPromoted(ctx, "x", size)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, d.Size())
		if n, err := d.ReadAt(got, 0); n != len(got) || err != nil {
			t.Fatal(n, err)
		}
		if n, err := d.ReadAt(make([]byte, 1024), d.Size()-512); n != 512 || err != io.EOF {
			t.Errorf("across the end: %d, %v", n, err)
		}
		for off := int64(0); off < d.Size(); {
			e, err := d.Extent(off, d.Size()-off)
			if err != nil || e.Off != off || e.Len <= 0 {
				t.Fatal(e, err)
			}
			if e.Kind == block.Zero && !block.IsZero(want[e.Off:e.End()]) {
				t.Errorf("%v is not zero", e)
			}
			off = e.End()
		}
		_, err = d.Extent(0, d.Size()+1)
		wantCode(t, "beyond the end", err, fault.IO)
		if err := errors.Join(d.Close(), v.Close()); err != nil {
			t.Fatal(err)
		}
		return got
	}
	padded := int64(len(want) - vhd.FooterSize)
	if padded == size {
		t.Fatalf("a disk of %d bytes shows nothing of whole MiB", size)
	}
	if got := read(size); !bytes.Equal(got, want[:size]) {
		t.Errorf("%d bytes, want %d, or others", len(got), size)
	}
	scribble(t, c, padded-512, 1) // a machine uses what is behind: then it is a part of the disk
	want = download(t, c)
	if got := read(size); !bytes.Equal(got, want[:padded]) {
		t.Errorf("%d bytes, want %d, or others", len(got), padded)
	}
	_, err = p.OpenPromoted(ctx, "x", padded+512)
	wantCode(t, "a smaller one", err, fault.DiskCorrupt)
	scribble(t, c, padded, 1)
	_, err = p.OpenPromoted(ctx, "x", size)
	wantCode(t, "no footer", err, fault.DiskCorrupt)
	list, err := p.Promoted(ctx)
	if err != nil || !slices.Equal(list, []string{"x"}) {
		t.Errorf("the list is %q, %v", list, err)
	}
	_, err = p.OpenPromoted(ctx, "../os", size)
	wantCode(t, "no name", err, fault.UsageError)
}

// TestRemovePromotedInUse: a disk that something writes to all the time is not deleted.
func TestRemovePromotedInUse(t *testing.T) {
	name := azuritetest.Container(t)
	next := unaliased(t)
	var busy atomic.Bool
	r, s := promoted(t, name, func(r *http.Request) (*http.Response, error) {
		if busy.Load() && r.Method == http.MethodDelete {
			scribble(t, blobOf(t, name, "x"), 0, 1)
		}
		return next(r)
	})
	p := r.(replica.Promoter)
	if _, err := p.Promote(t.Context(), s, replica.Promotion{Point: s.Points[0].ID, Disk: "os", Name: "x"}); err != nil {
		t.Fatal(err)
	}
	busy.Store(true)
	wantCode(t, "in use", p.RemovePromoted(t.Context(), "x"), fault.Busy)
	busy.Store(false)
	if err := p.RemovePromoted(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	absent(t, blobOf(t, name, "x"))
}

// TestPromoteAbortLeftBehind: a run that waits for a copy, and ends when another owner has made the disk of it, does not delete it.
func TestPromoteAbortLeftBehind(t *testing.T) {
	name := azuritetest.Container(t)
	next := unaliased(t)
	waiting := make(chan struct{})
	var once sync.Once
	r, s := promoted(t, name, func(r *http.Request) (*http.Response, error) {
		resp, err := next(r)
		if err == nil && r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/promoted/") && resp.StatusCode == 200 {
			resp.Header.Set("x-ms-copy-status", "pending")
			once.Do(func() { close(waiting) })
		}
		return resp, err
	})
	what := replica.Promotion{Point: s.Points[0].ID, Disk: "os", Name: "f-os"}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { _, err := r.(replica.Promoter).Promote(ctx, s, what); ended <- err }()
	<-waiting
	now, err := open(t, name, quick()).Seize(t.Context(), "vm", func(s replica.State) (replica.State, error) {
		s.Generation++
		return s, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer now.Close()
	mine, err := now.Ledger().Load(t.Context())
	if err == nil {
		_, err = now.(replica.Promoter).Promote(t.Context(), mine, what)
	}
	if err != nil {
		t.Fatal(err)
	}
	c := blobOf(t, name, "f-os")
	want := download(t, c)
	cancel()
	if err := <-ended; !fault.Cancelled(err) && !fault.Is(err, fault.Fenced) {
		t.Errorf("it ended with %v", err)
	}
	if !bytes.Equal(download(t, c), want) {
		t.Error("the disk is another one")
	}
}
