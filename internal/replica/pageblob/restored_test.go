package pageblob_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/replica/pageblob/azuritetest"
	"sitrep/internal/replica/replicatest"
)

// TestOlderBlobs brings some blobs of a replica back from older copies, at random, and takes snapshots away, as a restored account or a rule
// that deletes does: every recovery point that is shown afterwards holds what was there, and the others are refused as what they are.
// SITREP_LONG takes more seeds, SITREP_SEED another one.
func TestOlderBlobs(t *testing.T) {
	azurite.Server(t) // without the emulator all of it is skipped, and not each of its parts
	seed, n := uint64(1), uint64(2)
	if os.Getenv("SITREP_LONG") != "" {
		n = 40
	}
	if v, err := strconv.ParseUint(os.Getenv("SITREP_SEED"), 10, 64); err == nil {
		seed, n = v, 1
	}
	var all restored
	for ; n > 0; seed, n = seed+1, n-1 {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			r := olderBlobs(t, seed)
			all.shown, all.refused = all.shown+r.shown, all.refused+r.refused
		})
	}
	t.Logf("%d points were shown, %d were refused", all.shown, all.refused)
	if all.shown == 0 || all.refused == 0 {
		t.Error("one of these never happened")
	}
}

// restored is a history whose blobs are brought back from older copies.
type restored struct {
	t              *testing.T
	name           string // of the container
	h              *replicatest.History
	rng            *rand.Rand
	copies         []map[string]copied
	shown, refused int
	said           string // what was brought back
}

// copied is a blob as it was.
type copied struct {
	pages    bool
	content  []byte
	metadata map[string]*string
}

func olderBlobs(t *testing.T, seed uint64) *restored {
	ctx := t.Context()
	r := &restored{t: t, name: azuritetest.Container(t), rng: rand.New(rand.NewPCG(seed, 12)), h: replicatest.NewHistory("vm", seed, replicatest.OSLogs(t))}
	r.h.Keep = 2 + r.rng.IntN(4)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(r.h.Begin(ctx, open(t, r.name, quick())))
	for range 5 {
		r.copies = append(r.copies, r.backup())
		check(r.h.Step(ctx, r.rng.IntN(4) == 0))
	}
	check(r.h.Close())
	r.check()
	if r.refused > 0 {
		t.Fatal("a point was refused before anything was brought back")
	}
	for range 4 {
		r.restore()
		r.check()
	}
	return r
}

func (r *restored) ok(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatalf("%v (brought back:%s)", err, r.said)
	}
}

// each calls do for the blobs of the replica, and for their snapshots.
func (r *restored) each(do func(b *container.BlobItem)) {
	r.t.Helper()
	pager := containerOf(r.t, r.name).NewListBlobsFlatPager(&container.ListBlobsFlatOptions{
		Include: container.ListBlobsInclude{Snapshots: true, Metadata: true}})
	for pager.More() {
		page, err := pager.NextPage(r.t.Context())
		r.ok(err)
		for _, b := range page.Segment.BlobItems {
			if !strings.Contains(*b.Name, "lock") {
				do(b)
			}
		}
	}
}

func (r *restored) backup() map[string]copied {
	r.t.Helper()
	out := map[string]copied{}
	r.each(func(b *container.BlobItem) {
		if b.Snapshot != nil || !strings.HasPrefix(*b.Name, "vm/") {
			return
		}
		got, err := containerOf(r.t, r.name).NewBlobClient(*b.Name).DownloadStream(r.t.Context(), nil)
		r.ok(err)
		content, err := io.ReadAll(got.Body)
		r.ok(errors.Join(err, got.Body.Close()))
		out[*b.Name] = copied{*b.Properties.BlobType == container.BlobTypePageBlob, content, b.Metadata}
	})
	return out
}

// restore brings some blobs back from a copy, and takes some snapshots away.
func (r *restored) restore() {
	r.t.Helper()
	ctx := r.t.Context()
	from := r.copies[r.rng.IntN(len(r.copies))]
	for _, name := range slices.Sorted(maps.Keys(from)) {
		if r.rng.IntN(3) > 0 {
			continue
		}
		r.said += " " + name
		old := from[name]
		if !old.pages {
			_, err := containerOf(r.t, r.name).NewBlockBlobClient(name).Upload(ctx, streaming.NopCloser(bytes.NewReader(old.content)),
				&blockblob.UploadOptions{Metadata: old.metadata})
			r.ok(err)
			continue
		}
		c := containerOf(r.t, r.name).NewPageBlobClient(name)
		_, err := c.Create(ctx, int64(len(old.content)), &pageblob.CreateOptions{Metadata: old.metadata})
		r.ok(err)
		const most = 4 << 20 // bytes of a write
		for off := 0; off < len(old.content); off += most {
			part := old.content[off:min(off+most, len(old.content))]
			_, err := c.UploadPages(ctx, streaming.NopCloser(bytes.NewReader(part)), blob.HTTPRange{Offset: int64(off), Count: int64(len(part))}, nil)
			r.ok(err)
		}
	}
	r.each(func(b *container.BlobItem) {
		if b.Snapshot == nil || r.rng.IntN(12) > 0 {
			return
		}
		r.said += " -" + *b.Name
		c, err := containerOf(r.t, r.name).NewBlobClient(*b.Name).WithSnapshot(*b.Snapshot)
		r.ok(err)
		_, err = c.Delete(ctx, nil)
		r.ok(err)
	})
}

// check compares every point that is offered with what it was.
func (r *restored) check() {
	r.t.Helper()
	ctx := r.t.Context()
	rep, err := open(r.t, r.name, quick()).View(ctx, "vm")
	r.ok(err)
	defer rep.Close()
	st, err := rep.Ledger().Load(ctx)
	r.ok(err)
	lost, err := replica.UnprovenPoints(ctx, rep, st)
	r.ok(err)
	for _, p := range st.Points {
		err := r.h.CheckPoint(ctx, rep, st, p)
		told := slices.Contains(lost, p.ID)
		switch e := fault.Find(err); {
		case err == nil && told:
			r.t.Fatalf("point %s is said to be lost, and can be read (brought back:%s)", p.ID, r.said)
		case err == nil:
			r.shown++
		case e == nil || !slices.Contains([]fault.Code{fault.PointDamaged, fault.PointMissing, fault.ReplicaCorrupt, fault.ReplicaChanged, fault.ReplicaMissing}, e.Code):
			r.t.Fatalf("point %s: %v (brought back:%s)", p.ID, err, r.said)
		default:
			r.refused++
		}
	}
}
