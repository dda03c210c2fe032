package tracktest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/hrl"
	"sitrep/internal/sums"
	"sitrep/internal/track"
)

// rig is a VM of two disks, its tracker, and the copies that its changes go to.
type rig struct {
	t       *testing.T
	f       Fixture
	rng     *rand.Rand
	guests  []*guest
	copies  []*copyOf
	tracker track.Tracker
	at      hrl.Pos // what the copies are
}

func newRig(t *testing.T, f Fixture, kind disk.Spec, seed uint64) *rig {
	r := &rig{t: t, f: f, rng: rand.New(rand.NewPCG(seed, 0))}
	for i, name := range []string{"os", "data"} {
		d := track.Disk{Name: name, Path: filepath.Join(f.Dir, name+".img"), Format: kind.Format, BlockSize: 4096 << r.rng.IntN(5)}
		spec := kind
		spec.Size = int64(1+i)<<20 + int64(r.rng.IntN(300))*512
		g := &guest{t: t, f: f, d: d, spec: spec}
		g.create(spec.Size)
		r.guests = append(r.guests, g)
		r.copies = append(r.copies, &copyOf{blockSize: d.BlockSize})
	}
	r.Reopen0(hrl.Pos{})
	return r
}

// Reopen opens the tracker again: it has to stand where it stood.
func (r *rig) Reopen() { r.t.Helper(); r.Reopen0(r.at) }

// Reopen0 opens the tracker again, which has to stand at a position then.
func (r *rig) Reopen0(want hrl.Pos) {
	r.t.Helper()
	var disks []track.Disk
	for _, g := range r.guests {
		disks = append(disks, g.d)
	}
	var err error
	if r.tracker, err = r.f.Open(disks); err != nil {
		r.t.Fatal(err)
	}
	if got := r.tracker.Position(); got != want {
		r.t.Fatalf("the tracker stands at %v, not %v", got, want)
	}
}

// Write lets the guest write to all disks.
func (r *rig) Write() {
	r.t.Helper()
	for _, g := range r.guests {
		g.random(r.rng)
	}
}

// Change lets the guest write, so that every disk differs.
func (r *rig) Change() {
	r.t.Helper()
	r.Write()
	for _, g := range r.guests {
		g.WriteAt(random(r.rng, 16), r.rng.Int64N(g.Size()-16))
	}
}

// Seed copies all disks and makes the tracker stand there.
func (r *rig) Seed() {
	r.t.Helper()
	r.Write()
	c, err := r.tracker.Cut(context.Background(), hrl.Pos{})
	if err != nil {
		r.t.Fatal(err)
	}
	for i, g := range r.guests {
		r.copies[i] = &copyOf{blockSize: g.d.BlockSize}
	}
	r.Scan(c)
	if err := c.Check(context.Background()); err != nil {
		r.t.Fatal(err)
	}
	r.close(c)
	at := hrl.Pos{}.Next()
	if err := r.tracker.Rebase(context.Background(), at, r.base()); err != nil {
		r.t.Fatal(err)
	}
	r.moved(at)
}

// moved is called when the tracker stands at a new position, to which the copies were brought.
func (r *rig) moved(at hrl.Pos) {
	r.t.Helper()
	r.at = at
	if got := r.tracker.Position(); got != at {
		r.t.Fatalf("the tracker stands at %v, not %v", got, at)
	}
	for _, c := range r.copies {
		c.moved()
	}
}

func (r *rig) base() map[string]track.Base {
	base := map[string]track.Base{}
	for i, g := range r.guests {
		base[g.d.Name] = r.copies[i]
	}
	return base
}

// Cut opens the changes since the position of the copies.
func (r *rig) Cut() track.Cut {
	r.t.Helper()
	c, err := r.tracker.Cut(context.Background(), r.at)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// Scan puts the changes into the copies, which then have to be what the guest has.
func (r *rig) Scan(c track.Cut) (all track.Stats) {
	r.t.Helper()
	for i, d := range c.Disks() {
		if d.Name() != r.guests[i].d.Name || d.BlockSize() != r.guests[i].d.BlockSize {
			r.t.Fatalf("disk %d is %s with blocks of %d bytes", i, d.Name(), d.BlockSize())
		}
		all = all.Add(r.copies[i].scan(r.t, d, 0, r.rng))
		r.guests[i].compare(r.t, r.copies[i])
	}
	return all
}

// Round is one whole cut: afterwards the copies and the tracker are where the guest is.
func (r *rig) Round() {
	r.t.Helper()
	ctx := context.Background()
	c := r.Cut()
	defer r.close(c)
	if c.From() != r.at {
		r.t.Fatalf("the cut is from %v, not %v", c.From(), r.at)
	}
	st := r.Scan(c)
	if err := c.Check(ctx); err != nil {
		r.t.Fatal(err)
	}
	grown := slices.ContainsFunc(c.Disks(), func(d track.CutDisk) bool { return d.Size() != d.SizeBefore() })
	if st.Changed == 0 && !grown {
		if err := c.Confirm(ctx); err != nil {
			r.t.Fatal(err)
		}
		return
	}
	to := r.at.Next()
	if err := c.Advance(ctx, to); err != nil {
		r.t.Fatal(err)
	}
	r.moved(to)
}

func (r *rig) close(c track.Cut) {
	r.t.Helper()
	if err := c.Close(); err != nil {
		r.t.Fatal(err)
	}
}

// copyOf is a disk made of changes.
type copyOf struct {
	blockSize int64

	mu   sync.Mutex
	data []byte
	at   []byte // what data was at the position of the tracker; nil when that does not matter
}

// moved is called when the tracker stands where the copy is.
func (c *copyOf) moved() { c.at = bytes.Clone(c.data) }

// needless says whether a block is emitted that is what it was, in length too.
func (c *copyOf) needless(ch track.Change) bool {
	for off := ch.Off; c.at != nil && off < ch.End(); off += c.blockSize {
		end := min(off+c.blockSize, ch.End())
		now := make([]byte, end-off)
		copy(now, ch.Data[min(off-ch.Off, int64(len(ch.Data))):])
		if off < int64(len(c.at)) && bytes.Equal(now, c.at[off:min(end, int64(len(c.at)))]) {
			return true
		}
		if off >= int64(len(c.at)) && ch.Zero {
			return true
		}
	}
	return false
}

func (c *copyOf) grow(size int64) {
	if n := size - int64(len(c.data)); n > 0 {
		c.data = append(c.data, make([]byte, n)...)
	}
}

// scan applies the changes of a disk from an offset on, and checks everything that a Change and a scan promise.
func (c *copyOf) scan(t *testing.T, d track.CutDisk, from int64, rng *rand.Rand) track.Stats {
	t.Helper()
	c.grow(d.Size())
	var done, changed block.Set
	o := track.Options{From: from, Unit: c.blockSize << rng.IntN(6), Tasks: 1 + rng.IntN(4)}
	o.Done = func(r block.Range) {
		c.mu.Lock()
		defer c.mu.Unlock()
		overlap(t, "done", &done, r)
	}
	st, err := d.Scan(context.Background(), o, func(ctx context.Context, ch track.Change) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		overlap(t, "changed", &changed, ch.Range)
		return c.apply(d, ch)
	})
	if err != nil {
		t.Fatal(err)
	}
	whole := max(0, d.Size()-from)
	if done.Bytes() != whole || whole > 0 && done.Runs() != 1 {
		t.Errorf("%d of %d bytes were reported as done, in %d runs", done.Bytes(), whole, done.Runs())
	}
	if st.Changed != changed.Bytes() || st.Scanned+st.Skipped != whole {
		t.Errorf("%+v, but %d bytes changed of %d", st, changed.Bytes(), whole)
	}
	return st
}

func overlap(t *testing.T, what string, s *block.Set, r block.Range) {
	if _, twice := s.Next(r); twice {
		t.Errorf("%v was %s twice", r, what)
	}
	s.Add(r)
}

func (c *copyOf) apply(d track.CutDisk, ch track.Change) error {
	if ch.Empty() || !ch.Within(d.Size()) || ch.Off%c.blockSize != 0 || ch.Len%c.blockSize != 0 && ch.End() != d.Size() {
		return fmt.Errorf("%v is not of whole blocks", ch.Range)
	}
	if c.needless(ch) {
		return fmt.Errorf("%v has not changed", ch.Range)
	}
	if ch.Zero {
		if ch.Data != nil || ch.Sums != nil {
			return fmt.Errorf("%v is zero and has data", ch.Range)
		}
		clear(c.data[ch.Off:ch.End()])
		return nil
	}
	if int64(len(ch.Data)) != ch.Len || int64(len(ch.Sums)) != block.Count(ch.Len, c.blockSize) {
		return fmt.Errorf("%v has %d bytes and %d sums", ch.Range, len(ch.Data), len(ch.Sums))
	}
	for i, s := range ch.Sums {
		r := block.Nth(int64(i), c.blockSize, ch.Len)
		if s.IsZero() || s != sums.Of(ch.Data[r.Off:r.End()]) {
			return fmt.Errorf("block %d of %v has the wrong sum", i, ch.Range)
		}
	}
	copy(c.data[ch.Off:], ch.Data)
	return nil
}

// Size and All make a copy the base of a tracker.
func (c *copyOf) Size() int64 { return int64(len(c.data)) }

func (c *copyOf) All(_ context.Context, f func(int64, sums.Sum) error) error {
	for i := range block.Count(c.Size(), c.blockSize) {
		r := block.Nth(i, c.blockSize, c.Size())
		if s := sums.Of(c.data[r.Off:r.End()]); !s.IsZero() {
			if err := f(i, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// guest writes to one disk, and knows what it has to be.
type guest struct {
	t     *testing.T
	f     Fixture
	d     track.Disk
	spec  disk.Spec
	model []byte
}

func (g *guest) Size() int64 { return int64(len(g.model)) }

func (g *guest) create(size int64) {
	g.t.Helper()
	spec := g.spec
	spec.Size = size
	w, err := disk.Create(g.f.FS, g.d.Path, spec)
	if err != nil {
		g.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		g.t.Fatal(err)
	}
	g.model = make([]byte, size)
}

func (g *guest) use(f func(w disk.Writable) error) {
	g.t.Helper()
	w, err := disk.OpenRW(g.f.FS, g.d.Path, g.d.Format)
	if err != nil {
		g.t.Fatal(err)
	}
	err = f(w)
	if err == nil {
		err = w.Flush()
	}
	if cerr := w.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		g.t.Fatal(err)
	}
}

// WriteAt writes bytes anywhere, as sectors.
func (g *guest) WriteAt(p []byte, off int64) {
	g.t.Helper()
	copy(g.model[off:], p)
	r := block.Range{Off: off, Len: int64(len(p))}.Outward(512)
	g.use(func(w disk.Writable) error {
		_, err := w.WriteAt(g.model[r.Off:r.End()], r.Off)
		return err
	})
}

// Resize makes the disk larger or smaller. Formats other than raw are made anew.
func (g *guest) Resize(size int64) {
	g.t.Helper()
	old := g.model
	if g.d.Format != disk.Raw {
		if err := g.f.FS.Remove(g.d.Path); err != nil {
			g.t.Fatal(err)
		}
		g.create(size)
		g.WriteAt(old[:min(size, int64(len(old)))], 0)
		return
	}
	f, err := g.f.FS.OpenRW(g.d.Path)
	if err != nil {
		g.t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		g.t.Fatal(err)
	}
	g.model = make([]byte, size)
	copy(g.model, old)
}

// random writes, rewrites and zeroes some ranges.
func (g *guest) random(rng *rand.Rand) {
	g.t.Helper()
	g.use(func(w disk.Writable) error {
		for range 1 + rng.IntN(6) {
			if err := g.randomWrite(w, rng); err != nil {
				return err
			}
		}
		return nil
	})
}

func (g *guest) randomWrite(w disk.Writable, rng *rand.Rand) error {
	sectors := g.Size() / 512
	first := rng.Int64N(sectors)
	n := min(1+rng.Int64N(400), sectors-first)
	if rng.IntN(3) == 0 {
		first = sectors - n // the last block is the one that may be short
	}
	p := g.model[first*512 : (first+n)*512]
	switch rng.IntN(5) {
	case 0:
		clear(p)
		return w.ZeroAt(first*512, n*512)
	case 1:
		clear(p)
	case 2: // the same again
	default:
		copy(p, random(rng, len(p)))
	}
	_, err := w.WriteAt(p, first*512)
	return err
}

func (g *guest) compare(t *testing.T, c *copyOf) {
	t.Helper()
	if bytes.Equal(g.model, c.data) {
		return
	}
	for i := range min(len(g.model), len(c.data)) {
		if g.model[i] != c.data[i] {
			t.Fatalf("disk %s: the copy differs at byte %d (block %d) of %d", g.d.Name, i, int64(i)/c.blockSize, len(g.model))
		}
	}
	t.Fatalf("disk %s: the copy has %d bytes, the disk %d", g.d.Name, len(c.data), len(g.model))
}
