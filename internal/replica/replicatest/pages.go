package replicatest

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/sums"
)

func testPages(t *testing.T, place Place) {
	ctx := t.Context()
	r := begin(t, place, FirstState("vm"))
	p := disk(t, r)
	want := make([]byte, p.Size())
	h := NewHistory("vm", 11, nil)
	for range 300 {
		off := h.rng.Int64N(p.Size()/512) * 512
		n := min(h.rng.Int64N(40)*512, p.Size()-off)
		part := want[off : off+n]
		if h.rng.IntN(2) == 0 {
			clear(part)
			check(t, p.ZeroAt(ctx, off, n))
		} else {
			h.scribble(part, block.NewSet(block.Range{Len: n}))
			check(t, p.WriteAt(ctx, part, off))
		}
		off = h.rng.Int64N(p.Size())
		got := make([]byte, h.rng.Int64N(p.Size()-off+1))
		check(t, p.ReadAt(ctx, got, off))
		if !bytes.Equal(got, want[off:off+int64(len(got))]) {
			t.Fatalf("%d bytes at %d are others", len(got), off)
		}
	}
	extent := func(off, n int64) (block.Extent, error) { return p.Extent(ctx, off, n) }
	check(t, checkExtents(p.Size(), want, extent))
	check(t, p.ZeroAt(ctx, 0, p.Size()))
	check(t, p.ReadAt(ctx, want, 0))
	if !block.IsZero(want) {
		t.Error("ZeroAt of everything leaves data")
	}
	check(t, p.Flush(ctx))
	check(t, p.Close())
	p = disk(t, reopen(t, place, r, "vm"))
	check(t, p.WriteAt(ctx, bytes.Repeat([]byte{7}, 512), p.Size()-512))
	check(t, p.ReadAt(ctx, want[:1], p.Size()-1))
	if want[0] != 7 {
		t.Error("the last byte is another one")
	}
	if p.Path() == "" {
		t.Error("the pages have no path")
	}
}

func testPagesRefuse(t *testing.T, place Place) {
	ctx := t.Context()
	p := disk(t, begin(t, place, FirstState("vm")))
	size := p.Size()
	ranges := []block.Range{{Off: -512, Len: 512}, {Off: size, Len: 512}, {Off: size - 512, Len: 1024}, {Off: 1 << 62, Len: 512}}
	for _, r := range ranges {
		buf := make([]byte, r.Len)
		_, xerr := p.Extent(ctx, r.Off, r.Len)
		for what, err := range map[string]error{
			"ReadAt": p.ReadAt(ctx, buf, r.Off), "WriteAt": p.WriteAt(ctx, buf, r.Off),
			"ZeroAt": p.ZeroAt(ctx, r.Off, r.Len), "Extent": xerr,
		} {
			if err == nil {
				t.Errorf("%s of %v works on a disk of %d bytes", what, r, size)
			}
		}
	}
	for _, r := range []block.Range{{Off: 1, Len: 512}, {Off: 0, Len: 511}, {Off: 256, Len: 256}} {
		if p.WriteAt(ctx, make([]byte, r.Len), r.Off) == nil || p.ZeroAt(ctx, r.Off, r.Len) == nil {
			t.Errorf("%v is written to, although it is not made of sectors", r)
		}
	}
	if p.ZeroAt(ctx, 0, 1<<62) == nil || p.ZeroAt(ctx, 512, -512) == nil {
		t.Error("ZeroAt takes lengths that cannot be")
	}
	check(t, p.WriteAt(ctx, nil, size))
	check(t, p.ReadAt(ctx, nil, size))
}

func testPagesGrow(t *testing.T, place Place) {
	ctx := t.Context()
	r := begin(t, place, FirstState("vm"))
	p := disk(t, r)
	size := p.Size()
	want := bytes.Repeat([]byte{1}, int(size))
	check(t, p.WriteAt(ctx, want, 0))
	wantCode(t, p.Grow(ctx, size-512), fault.DiskShrunk)
	if p.Grow(ctx, size+1) == nil {
		t.Error("a disk has a part of a sector")
	}
	check(t, p.Grow(ctx, size))
	for _, more := range []int64{512, 3 * BlockSize, 512} {
		size += more
		check(t, p.Grow(ctx, size))
		check(t, p.Grow(ctx, size))
		want = append(want, make([]byte, more)...)
		got := make([]byte, size)
		if p.Size() != size {
			t.Fatalf("the size is %d instead of %d", p.Size(), size)
		}
		check(t, p.ReadAt(ctx, got, 0))
		check(t, firstDifference(got, want))
		copy(want[size-512:], bytes.Repeat([]byte{2}, 512))
		check(t, p.WriteAt(ctx, want[size-512:], size-512))
	}
	check(t, p.Flush(ctx))
	check(t, p.Close())
	r = reopen(t, place, r, "vm") // the ledger still has the old size: a run was killed
	p = disk(t, r)
	check(t, p.Grow(ctx, size))
	got := make([]byte, size)
	check(t, p.ReadAt(ctx, got, 0))
	check(t, firstDifference(got, want))
}

func testPagesMissing(t *testing.T, place Place) {
	ctx := t.Context()
	r := begin(t, place, FirstState("vm"))
	d := load(t, r).Disks[1]
	d.Seeded = 512
	_, err := r.Disk(ctx, d)
	wantCode(t, err, fault.ReplicaMissing)
	v, err := place().View(ctx, "vm")
	check(t, err)
	d.Seeded = 0
	_, err = v.Disk(ctx, d)
	wantCode(t, err, fault.ReplicaMissing)
	p, err := r.Disk(ctx, d)
	check(t, err)
	check(t, p.Close())
	s := load(t, r)
	s.Applied = hrl.Pos{}.Next()
	_, err = r.Ledger().Save(ctx, s)
	check(t, err)
	_, err = r.Disk(ctx, s.Disks[0])
	wantCode(t, err, fault.ReplicaMissing)
}

func testConcurrent(t *testing.T, place Place) {
	ctx := t.Context()
	r := begin(t, place, FirstState("vm"))
	p := disk(t, r)
	want := make([]byte, p.Size())
	var tasks sync.WaitGroup
	for i := range block.Count(p.Size(), BlockSize) {
		b := block.Nth(i, BlockSize, p.Size())
		tasks.Go(func() {
			part := want[b.Off:b.End()]
			copy(part, bytes.Repeat([]byte{byte(i) + 1}, len(part)))
			for range 10 {
				err := errors.Join(p.ZeroAt(ctx, b.Off, b.Len), p.WriteAt(ctx, part, b.Off),
					p.StoreSums(ctx, i, sumsOf(part)), p.ReadAt(ctx, make([]byte, b.Len), b.Off))
				_, xerr := p.Extent(ctx, b.Off, b.Len)
				if err := errors.Join(err, xerr); err != nil {
					t.Error(err)
				}
			}
		})
	}
	tasks.Wait()
	check(t, p.Flush(ctx))
	check(t, checkDisk(ctx, p, want))
}

func testStamp(t *testing.T, place Place) {
	ctx := t.Context()
	r := begin(t, place, FirstState("vm"))
	p := disk(t, r)
	check(t, p.WriteAt(ctx, make([]byte, 512), 0))
	check(t, p.Flush(ctx))
	before, err := p.Stamp(ctx)
	check(t, err)
	check(t, p.ReadAt(ctx, make([]byte, 512), 0))
	check(t, p.Close())
	r = reopen(t, place, r, "vm")
	p = disk(t, r)
	same, err := p.Stamp(ctx)
	check(t, err)
	if before == "" || same != before {
		t.Errorf("the stamp was %q and is %q, although nothing was written", before, same)
	}
	time.Sleep(20 * time.Millisecond) // until the clock of any filesystem has moved
	check(t, p.WriteAt(ctx, make([]byte, 512), 0))
	check(t, p.Flush(ctx))
	if after, err := p.Stamp(ctx); err != nil || after == before {
		t.Errorf("the stamp is still %q (error %v)", after, err)
	}
}

func testSums(t *testing.T, place Place) {
	ctx := t.Context()
	r := begin(t, place, FirstState("vm"))
	p := disk(t, r)
	n := block.Count(p.Size(), BlockSize)
	want := make([]sums.Sum, n)
	got := make([]sums.Sum, n)
	check(t, p.LoadSums(ctx, 0, got))
	if !slices.Equal(got, want) {
		t.Fatal("a new disk has sums")
	}
	for i := int64(3); i < n; i += 5 {
		want[i] = sums.Of([]byte{byte(i)})
		check(t, p.StoreSums(ctx, i, want[i:i+1]))
	}
	check(t, p.ClearSums(ctx, 8, 1))
	want[8] = sums.Sum{}
	check(t, p.Flush(ctx))
	check(t, p.Close())
	p = disk(t, reopen(t, place, r, "vm"))
	check(t, p.LoadSums(ctx, 0, got))
	if !slices.Equal(got, want) {
		t.Fatal("the sums are others")
	}
	seen := make([]sums.Sum, n)
	for at := int64(0); at < n; {
		start, k, err := p.NextSums(ctx, at, n)
		check(t, err)
		if k == 0 {
			break
		}
		if start < at || start+k > n {
			t.Fatalf("from %d of %d the run is [%d,+%d)", at, n, start, k)
		}
		check(t, p.LoadSums(ctx, start, seen[start:start+k]))
		at = start + k
	}
	if !slices.Equal(seen, want) {
		t.Fatal("NextSums leaves sums out")
	}
	if p.LoadSums(ctx, -1, got[:1]) == nil || p.StoreSums(ctx, -1, got[:1]) == nil || p.ClearSums(ctx, 0, -1) == nil ||
		p.StoreSums(ctx, p.Size(), got[:1]) == nil {
		t.Error("sums of blocks that cannot be are taken")
	}
}
