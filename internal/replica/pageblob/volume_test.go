package pageblob_test

import (
	"bytes"
	"errors"
	"hash/crc64"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"sitrep/internal/block"
	"sitrep/internal/hrl"
	"sitrep/internal/replica/pageblob/azuritetest"
	"sitrep/internal/replica/replicatest"
	"sitrep/internal/sums"
)

// fastPages takes writes of pages in place of the emulator, which spends a core on them: it reads the body, checks its CRC64, and
// answers when several are there, or after a moment, as a service far away would.
type fastPages struct {
	next  http.RoundTripper
	most  atomic.Int64 // requests at once
	now   atomic.Int64
	bytes atomic.Int64
	sent  atomic.Int64 // requests
	large atomic.Int64 // of the whole 4 MiB
	wrong atomic.Int64 // checksums
	heap  atomic.Int64 // most memory in use, bytes
	table *crc64.Table
	mem   sync.Mutex
}

func (f *fastPages) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Query().Get("comp") != "page" || header(r, "x-ms-page-write") != "update" {
		return f.next.RoundTrip(r)
	}
	n := f.now.Add(1)
	defer f.now.Add(-1)
	for old := f.most.Load(); n > old && !f.most.CompareAndSwap(old, n); old = f.most.Load() {
	}
	h := crc64.New(f.table)
	size, err := io.Copy(h, r.Body)
	if err != nil {
		return nil, err
	}
	f.bytes.Add(size)
	if f.sent.Add(1); size == 4<<20 {
		f.large.Add(1)
	}
	if header(r, "x-ms-content-crc64") == "" {
		f.wrong.Add(1)
	}
	time.Sleep(20 * time.Millisecond)
	f.mem.Lock()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	f.heap.Store(max(f.heap.Load(), int64(m.HeapInuse)))
	f.mem.Unlock()
	resp := answer(r, http.StatusCreated, "", "")
	resp.Header.Set("ETag", `"0x1"`)
	return resp, nil
}

// TestVolume copies a disk of which a part is data: only data is sent, in requests of 4 MiB where it lies together, and memory
// stays within its bounds with 16 requests under way.
func TestVolume(t *testing.T) {
	const (
		size  = 2 << 30
		unit  = 1 << 20
		blk   = 64 << 10
		bound = 160 << 20
	)
	fast := &fastPages{next: wire(t), table: crc64.MakeTable(0x9A6C9329AC4BC9B5)}
	opts := quick()
	opts.Transport = over(fast.RoundTrip)
	ctx := t.Context()
	store := open(t, azuritetest.Container(t), opts)
	if _, err := store.Prepare(ctx, hrl.ID{}); err != nil {
		t.Fatal(err)
	}
	first := replicatest.FirstState("vm")
	first.Disks = first.Disks[:1]
	first.Disks[0].Size, first.Disks[0].BlockSize = size, blk
	r, err := store.Create(ctx, first)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := r.Disk(ctx, first.Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	const seed = 1
	rng := rand.New(rand.NewPCG(seed, 3))
	data := bytes.Repeat([]byte("0123456789abcdef"), unit/16)
	var nonZero int64
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for off := int64(0); off < size; off += unit {
		var runs []block.Range // of this unit that are data
		switch area := off / (128 << 20) % 4; {
		case area < 2: // data lies together
			runs = []block.Range{{Off: off, Len: unit}}
		case area == 2: // and here and there
			for b := off; b < off+unit; b += blk {
				if rng.IntN(4) == 0 {
					runs = append(runs, block.Range{Off: b, Len: blk})
				}
			}
		}
		for _, run := range runs {
			nonZero += run.Len
		}
		g.Go(func() error {
			rest := block.NewSet(block.Range{Off: off, Len: unit})
			for _, run := range runs {
				rest.Remove(run)
				table := make([]sums.Sum, run.Len/blk)
				for i := range table {
					table[i] = sums.Of(data[:blk])
				}
				if err := errors.Join(p.WriteAt(gctx, data[:run.Len], run.Off), p.StoreSums(gctx, run.Off/blk, table)); err != nil {
					return err
				}
			}
			for z := range rest.All() {
				if err := p.ZeroAt(gctx, z.Off, z.Len); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := errors.Join(g.Wait(), p.Flush(ctx), p.Close()); err != nil {
		t.Fatal(err)
	}
	sent := fast.bytes.Load()
	t.Logf("seed %d: %d MiB of data, %.4f times of it sent in %d requests, %d of them of 4 MiB, %d at once, %d MiB of memory", seed,
		nonZero>>20, float64(sent)/float64(nonZero), fast.sent.Load(), fast.large.Load(), fast.most.Load(), fast.heap.Load()>>20)
	if sent < nonZero || float64(sent) > 1.01*float64(nonZero) {
		t.Errorf("%d bytes were sent for %d of data", sent, nonZero)
	}
	if fast.large.Load() < (size/2)/(4<<20)*3/4 {
		t.Errorf("only %d requests were of 4 MiB", fast.large.Load())
	}
	if fast.wrong.Load() > 0 {
		t.Errorf("%d writes had no CRC64", fast.wrong.Load())
	}
	if fast.heap.Load() > bound {
		t.Errorf("%d MiB of memory were in use", fast.heap.Load()>>20)
	}
	if n := fast.most.Load(); n < 8 || n > 16 {
		t.Errorf("%d requests were under way at once", n)
	}
}
