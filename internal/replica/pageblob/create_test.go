package pageblob_test

import (
	"bytes"
	"errors"
	"net/http"
	"strings"
	"testing"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/replica/pageblob/azuritetest"
	"sitrep/internal/replica/replicatest"
)

// TestStaleCreate: a site that seeds is stopped before it makes a blob, of pages or of sums, where there is none or where an earlier
// run has left one; another site takes over and seeds; the old one continues. It is refused, and changes nothing.
func TestStaleCreate(t *testing.T) {
	ctx := t.Context()
	for _, c := range []struct {
		blob string // before whose creation the old site is stopped
		left bool   // by an earlier run
		made bool   // by the new owner, before the old site continues; otherwise it has taken over only
	}{
		{"os.sums", false, true}, {"os.vhd", false, true}, {"os.sums", true, true}, {"os.vhd", true, true},
		{"os.sums", true, false}, {"os.vhd", true, false},
	} {
		name := azuritetest.Container(t)
		next := wire(t)
		stopped, goOn := make(chan bool), make(chan bool)
		seen := 0
		opts := quick()
		opts.Transport = over(func(r *http.Request) (*http.Response, error) {
			// What is left makes the first try, which is for a blob that is not there, fail; the second one replaces it.
			if azuritetest.Kind(r) == "PUT PageBlob" && strings.HasSuffix(r.URL.Path, c.blob) {
				if seen++; !c.left || seen == 2 {
					stopped <- true
					<-goOn
				}
			}
			return next.RoundTrip(r)
		})
		store := open(t, name, opts)
		if _, err := store.Prepare(ctx, [16]byte{}); err != nil {
			t.Fatal(err)
		}
		old, err := store.Create(ctx, replicatest.FirstState("vm"))
		if err != nil {
			t.Fatal(err)
		}
		st, err := old.Ledger().Load(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if c.left {
			leave(t, name, st)
		}
		made := make(chan error)
		go func() {
			p, err := old.Disk(ctx, st.Disks[0])
			if err == nil {
				err = p.Close()
			}
			made <- err
		}()
		select {
		case <-stopped:
		case err := <-made:
			t.Fatalf("%+v: the old site was not stopped: %v", c, err)
		}
		recovery := quick()
		recovery.Holder = "recovery"
		theirs, err := open(t, name, recovery).Seize(ctx, "vm", takeOver)
		if err != nil {
			t.Fatal(err)
		}
		now, err := theirs.Ledger().Load(ctx)
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Repeat([]byte{7}, int(now.Disks[0].Size))
		if c.made {
			writeDisk(t, theirs, now.Disks[0], want)
		}
		before := etags(t, name)
		goOn <- true
		err = <-made
		wantCode(t, c.blob, err, fault.Fenced)
		if err == nil || !strings.Contains(err.Error(), "recovery") {
			t.Errorf("%+v: the error does not name the new owner: %v", c, err)
		}
		if after := etags(t, name); after != before {
			t.Errorf("%+v: the old site has changed something:\n%s\n%s", c, before, after)
		}
		if !c.made {
			writeDisk(t, theirs, now.Disks[0], want)
		}
		if got := guestBytes(t, theirs, now.Disks[0]); !bytes.Equal(got, want) {
			t.Errorf("%+v: the disk is not what the new owner has written", c)
		}
		if err := errors.Join(theirs.Close(), old.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// leave makes what a run leaves that was killed before the footer was written.
func leave(t *testing.T, name string, st replica.State) {
	t.Helper()
	next := wire(t)
	opts := quick()
	opts.Retry.MaxRetries = -1
	opts.Transport = over(func(r *http.Request) (*http.Response, error) {
		if azuritetest.Kind(r) == "PUT page update" {
			return nil, errReset
		}
		return next.RoundTrip(r)
	})
	r, err := open(t, name, opts).Open(t.Context(), "vm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Disk(t.Context(), st.Disks[0]); err == nil {
		t.Fatal("the footer was written")
	}
}

func writeDisk(t *testing.T, r replica.Replica, d replica.Disk, data []byte) {
	t.Helper()
	p, err := r.Disk(t.Context(), d)
	if err == nil {
		err = errors.Join(p.WriteAt(t.Context(), data, 0), p.StoreSums(t.Context(), 0, sumsOfOnes(2)), p.Flush(t.Context()), p.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// etags is the page blobs of the VM with their ETags, as text.
func etags(t *testing.T, name string) string {
	t.Helper()
	var out []string
	pager := containerOf(t, name).NewListBlobsFlatPager(nil)
	for pager.More() {
		page, err := pager.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range page.Segment.BlobItems {
			if strings.HasSuffix(*b.Name, ".vhd") || strings.HasSuffix(*b.Name, ".sums") {
				out = append(out, *b.Name+" "+string(*b.Properties.ETag))
			}
		}
	}
	return strings.Join(out, ", ")
}

// TestLostAnswersOfCreates: a blob is made whose answer is lost, and not a second time; and one that an earlier run has left is
// replaced although the answers to that are lost too.
func TestLostAnswersOfCreates(t *testing.T) {
	ctx := t.Context()
	for _, left := range []bool{false, true} {
		name := azuritetest.Container(t)
		next, done := wire(t), 0
		opts := quick()
		opts.Transport = over(func(r *http.Request) (*http.Response, error) {
			resp, err := next.RoundTrip(r)
			if err == nil && azuritetest.Kind(r) == "PUT PageBlob" && resp.StatusCode == http.StatusCreated {
				done++
				resp.Body.Close()
				return nil, errReset
			}
			return resp, err
		})
		store := open(t, name, opts)
		if _, err := store.Prepare(ctx, [16]byte{}); err != nil {
			t.Fatal(err)
		}
		r, err := store.Create(ctx, replicatest.FirstState("vm"))
		if err != nil {
			t.Fatal(err)
		}
		st, err := r.Ledger().Load(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if left {
			leave(t, name, st)
		}
		want := bytes.Repeat([]byte{9}, int(st.Disks[0].Size))
		writeDisk(t, r, st.Disks[0], want)
		if done != 2 {
			t.Errorf("left: %v: %d blobs were made, want one of pages and one of sums", left, done)
		}
		if got := guestBytes(t, r, st.Disks[0]); !bytes.Equal(got, want) {
			t.Errorf("left: %v: the disk is not what was written", left)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
