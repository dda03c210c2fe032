package pageblob_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	az "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"

	"sitrep/internal/disk/vhd"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/replica/mem"
	"sitrep/internal/replica/pageblob/azuritetest"
	"sitrep/internal/replica/replicatest"
)

// unaliased mends the emulator's copies.
func unaliased(t *testing.T) roundTrip { return azurite.Server(t).Unaliased(t, wire(t)).RoundTrip }

// promoted is a replica with three points, of which the pages have left the first two, opened over a transport.
func promoted(t *testing.T, name string, next roundTrip) (replica.Replica, replica.State) {
	t.Helper()
	ctx := t.Context()
	h := replicatest.NewHistory("vm", 14, replicatest.OSLogs(t))
	err := h.Begin(ctx, open(t, name, quick()))
	if err = errors.Join(err, h.Step(ctx, true), h.Step(ctx, false), h.Close()); err != nil {
		t.Fatal(err)
	}
	opts := quick()
	opts.Transport = over(next)
	r, err := open(t, name, opts).Open(ctx, "vm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	s, err := r.Ledger().Load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return r, s
}

// pointBytes is a disk of a point.
func pointBytes(t *testing.T, r replica.Replica, s replica.State, id, disk string) []byte {
	t.Helper()
	v, err := r.Points().Open(t.Context(), s, id)
	if err != nil {
		t.Fatal(err)
	}
	d, err := v.Disk(disk)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, d.Size())
	if n, err := d.ReadAt(out, 0); n != len(out) {
		t.Fatal(err)
	}
	return out
}

func download(t *testing.T, c *az.Client) []byte {
	t.Helper()
	resp, err := c.DownloadStream(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestPromote copies points, by the service and without it, and writes to the copies.
func TestPromote(t *testing.T) {
	for _, served := range []bool{true, false} {
		name := azuritetest.Container(t)
		c := containerOf(t, name)
		next := unaliased(t)
		copies := 0
		r, s := promoted(t, name, func(r *http.Request) (*http.Response, error) {
			if header(r, "x-ms-copy-source") != "" {
				copies++
				if !served {
					return answer(r, 501, "APINotImplemented", ""), nil
				}
			}
			return next(r)
		})
		p, ok := replica.PromoterOf(r)
		if !ok {
			t.Fatal("it is no Promoter")
		}
		ctx := t.Context()
		for _, point := range s.Points {
			want := pointBytes(t, r, s, point.ID, "os")
			made, err := p.Promote(ctx, s, replica.Promotion{Point: point.ID, Disk: "os", Name: point.ID})
			if err != nil {
				t.Fatalf("point %s: %v", point.ID, err)
			}
			blobName := "vm/promoted/" + point.ID + ".vhd"
			if !strings.HasSuffix(made.Where, blobName) {
				t.Errorf("it is at %s", made.Where)
			}
			copied := c.NewPageBlobClient(blobName)
			got := download(t, copied)
			if !bytes.Equal(got[:len(want)], want) || len(got)%(1<<20) != vhd.FooterSize {
				t.Errorf("point %s was copied wrong", point.ID)
			}
			var f vhd.Footer
			if err := f.UnmarshalBinary(got[len(got)-vhd.FooterSize:]); err != nil || int(f.CurrentSize) != len(got)-vhd.FooterSize {
				t.Errorf("the footer says %d bytes: %v", f.CurrentSize, err)
			}
			garbage := bytes.Repeat([]byte{0xAB}, 4096)
			if _, err := copied.UploadPages(ctx, streaming.NopCloser(bytes.NewReader(garbage)), blob.HTTPRange{Count: 4096}, nil); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(pointBytes(t, r, s, point.ID, "os"), want) {
				t.Error("a write to the copy shows in the recovery point")
			}
			if _, err := p.Promote(ctx, s, replica.Promotion{Point: point.ID, Disk: "os", Name: point.ID}); err != nil { // again: the machine's writes stay
				t.Fatal(err)
			}
			if !bytes.Equal(download(t, copied)[:4096], garbage) {
				t.Error("what a machine wrote was copied over")
			}
			_, err = p.Promote(ctx, s, replica.Promotion{Point: point.ID, Disk: "data.1", Name: point.ID})
			wantCode(t, "a name that is taken", err, fault.Exists)
			if err := errors.Join(p.RemovePromoted(ctx, point.ID), p.RemovePromoted(ctx, point.ID)); err != nil {
				t.Fatal(err)
			}
		}
		if copies == 0 {
			t.Error("the service was not asked")
		}
		_, err := p.Promote(ctx, s, replica.Promotion{Point: "none", Disk: "os", Name: "x"})
		wantCode(t, "a point that is not there", err, fault.PointMissing)
	}
}

// TestPromoterOf: a wrapper hides nothing, and adds nothing.
func TestPromoterOf(t *testing.T) {
	store := replica.WithRetries(open(t, azuritetest.Container(t), quick()), replica.Retries{})
	h := replicatest.NewHistory("vm", 1, replicatest.OSLogs(t))
	if err := errors.Join(h.Begin(t.Context(), store), h.Close()); err != nil {
		t.Fatal(err)
	}
	r, err := store.Open(t.Context(), "vm")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, ok := replica.PromoterOf(r); !ok {
		t.Error("the wrapped replica is no Promoter")
	}
	plain := mem.New()
	if _, err := plain.Prepare(t.Context(), hrl.ID{}); err != nil {
		t.Fatal(err)
	}
	m, err := replica.WithRetries(plain, replica.Retries{}).Create(t.Context(), replicatest.FirstState("vm"))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, ok := replica.PromoterOf(m); ok {
		t.Error("a replica in memory is a Promoter")
	}
}

// TestPromoteWaits: a copy that takes its time is waited for; when the run ends it is aborted, and nothing is left.
func TestPromoteWaits(t *testing.T) {
	name := azuritetest.Container(t)
	next := unaliased(t)
	pending, aborted := 5, 0
	var looked func()
	r, s := promoted(t, name, func(r *http.Request) (*http.Response, error) {
		if r.URL.Query().Get("comp") == "copy" {
			aborted++
			return answer(r, 204, "", ""), nil
		}
		resp, err := next(r)
		if err == nil && r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/promoted/") && resp.StatusCode == 200 && pending > 0 {
			pending--
			resp.Header.Set("x-ms-copy-status", "pending")
			if looked != nil {
				looked()
			}
		}
		return resp, err
	})
	p := r.(replica.Promoter)
	if _, err := p.Promote(t.Context(), s, replica.Promotion{Point: s.Points[0].ID, Disk: "os", Name: "a"}); err != nil || pending != 0 {
		t.Fatalf("%v, %d looks left", err, pending)
	}
	ctx, cancel := context.WithCancel(t.Context())
	pending, looked = 1000, cancel
	_, err := p.Promote(ctx, s, replica.Promotion{Point: s.Points[0].ID, Disk: "os", Name: "b"})
	if !fault.Cancelled(err) || aborted != 1 {
		t.Errorf("%v, aborted %d times", err, aborted)
	}
	pending = 0
	if _, err := containerOf(t, name).NewBlobClient("vm/promoted/b.vhd").GetProperties(t.Context(), nil); err == nil {
		t.Error("the copy that was given up is there")
	}
	if _, err := p.Promote(t.Context(), s, replica.Promotion{Point: s.Points[0].ID, Disk: "os", Name: "b"}); err != nil {
		t.Fatal(err)
	}
}
