// Package tracktest is the contract of package track as a test that can be run: every kind of tracker passes it.
//
// A guest writes to disks at random; a byte array is the model of each. Whatever a tracker emits is put into a copy, and
// after every cut the copy has to be the model.
package tracktest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/track"
)

// Fixture is a tracker to be tested, and where its disks are.
type Fixture struct {
	FS  durable.FS
	Dir string // an empty folder for the disks
	// Open opens the tracker, which remembers what it did when it was opened before.
	Open func(disks []track.Disk) (track.Tracker, error)
	// Age makes all writes so far so old that a tracker can be certain that it would see new ones.
	Age func()
}

// Kinds are the disks that the contract is tested with.
func Kinds() []disk.Spec {
	return []disk.Spec{
		{Format: disk.Raw},
		{Format: disk.VHD, Kind: disk.Fixed},
		{Format: disk.VHD, Kind: disk.Dynamic},
		{Format: disk.VHDX, Kind: disk.Dynamic},
	}
}

// Test tests the contract. make is called for every part of it.
func Test(t *testing.T, make func(t *testing.T) Fixture) {
	for _, kind := range Kinds() {
		t.Run(fmt.Sprintf("model/%s-%s", kind.Format, kind.Kind), func(t *testing.T) {
			t.Parallel()
			testModel(t, make(t), kind)
		})
	}
	parts := map[string]func(*testing.T, *rig){
		"lost": testLost, "repeated": testRepeated, "untouched": testUntouched, "grown": testGrown, "shrunk": testShrunk,
		"from": testFrom, "interrupted": testInterrupted, "not scanned": testNotScanned, "forget": testForget, "base": testBase,
	}
	for name, part := range parts {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			part(t, newRig(t, make(t), disk.Spec{Format: disk.Raw}, seed))
		})
	}
}

// testModel lets a guest write, and cuts, for many rounds; now and then the tracker is opened again.
func testModel(t *testing.T, f Fixture, kind disk.Spec) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := newRig(t, f, kind, seed)
	r.Seed()
	for range 12 {
		switch r.rng.IntN(5) {
		case 0:
			r.Reopen()
		case 1:
			r.guests[0].Resize(r.guests[0].Size() + int64(1+r.rng.IntN(400))*512)
		case 2:
			r.f.Age()
		}
		if r.rng.IntN(4) > 0 {
			r.Write()
		}
		r.Round()
	}
}

func testLost(t *testing.T, r *rig) {
	other := hrl.Pos{}.Next()
	if p := r.tracker.Position(); !p.IsZero() {
		t.Fatalf("a new tracker stands at %v", p)
	}
	r.wantLost(other)
	r.Seed()
	r.wantLost(other)
	r.wantLost(hrl.Pos{Seq: r.at.Seq, ID: hrl.NewID()})
	r.Write()
	r.Round()
	r.Reopen()
	r.Round()
}

func (r *rig) wantLost(since hrl.Pos) {
	r.t.Helper()
	if _, err := r.tracker.Cut(context.Background(), since); !fault.Is(err, fault.PositionLost) {
		r.t.Fatalf("changes since a foreign position: %v", err)
	}
}

// testRepeated: what was not advanced comes again.
func testRepeated(t *testing.T, r *rig) {
	r.Seed()
	r.Change()
	for range 3 {
		c := r.Cut()
		first := r.Scan(c)
		if first.Changed == 0 {
			t.Fatal("nothing has changed")
		}
		r.close(c)
		if got := r.tracker.Position(); got != r.at {
			t.Fatalf("position %v moved without Advance", got)
		}
		r.Reopen()
	}
	r.Round()
}

func testUntouched(t *testing.T, r *rig) {
	r.Seed()
	r.f.Age()
	r.Round() // reads, and is certain from then on
	for range 2 {
		c := r.Cut()
		for _, d := range c.Disks() {
			if !d.Untouched() {
				t.Errorf("disk %s is not known to be untouched", d.Name())
			}
		}
		if st := r.Scan(c); st.Scanned != 0 || st.Changed != 0 {
			t.Errorf("untouched disks: %+v", st)
		}
		if err := errors.Join(c.Check(context.Background()), c.Confirm(context.Background())); err != nil {
			t.Fatal(err)
		}
		r.close(c)
		r.Reopen()
	}
	r.guests[0].WriteAt([]byte{^r.guests[0].model[77]}, 77)
	c := r.Cut()
	if c.Disks()[0].Untouched() {
		t.Error("a disk that was written to is said to be untouched")
	}
	if err := c.Confirm(context.Background()); err == nil {
		t.Error("a disk that was not scanned was confirmed")
	}
	r.close(c)
	c = r.Cut()
	if st := r.Scan(c); st.Changed == 0 {
		t.Error("the change was not seen")
	}
	if err := c.Confirm(context.Background()); err == nil {
		t.Error("a disk that has changed was confirmed")
	}
	r.close(c)
	r.Round()
}

func testGrown(t *testing.T, r *rig) {
	r.Seed()
	g := r.guests[0]
	for _, by := range []int64{512, g.d.BlockSize, 3*g.d.BlockSize + 512} {
		before := g.Size()
		g.Resize(before + by)
		c := r.Cut()
		if d := c.Disks()[0]; d.Size() != before+by || d.SizeBefore() != before {
			t.Errorf("sizes %d, %d, not %d, %d", d.SizeBefore(), d.Size(), before, before+by)
		}
		if err := c.Confirm(context.Background()); err == nil {
			t.Error("a disk that has grown was confirmed")
		}
		r.close(c)
		r.Round()
		g.WriteAt([]byte("end"), g.Size()-3)
		r.Round()
	}
}

func testShrunk(t *testing.T, r *rig) {
	r.Seed()
	size := r.guests[0].Size()
	r.guests[0].Resize(size - 512)
	if _, err := r.tracker.Cut(context.Background(), r.at); !fault.Is(err, fault.DiskShrunk) {
		t.Fatalf("a shrunk disk: %v", err)
	}
	r.guests[0].Resize(size)
	r.Round()
}

// testFrom: a scan may begin anywhere, and reports every byte from there on as done, once.
func testFrom(t *testing.T, r *rig) {
	r.Write()
	c, err := r.tracker.Cut(context.Background(), hrl.Pos{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.close(c)
	for i, d := range c.Disks() {
		g := r.guests[i]
		for _, from := range []int64{0, g.d.BlockSize, g.Size() / 2 / g.d.BlockSize * g.d.BlockSize, block.RoundUp(g.Size(), g.d.BlockSize)} {
			copied := &copyOf{blockSize: g.d.BlockSize}
			copied.grow(g.Size())
			copy(copied.data, g.model[:min(from, g.Size())])
			copied.scan(t, d, from, r.rng)
			g.compare(t, copied)
		}
	}
	if _, err := c.Disks()[0].Scan(context.Background(), track.Options{From: 1}, nil); err == nil {
		t.Error("a scan began within a block")
	}
	if err := c.Advance(context.Background(), hrl.Pos{}.Next()); err == nil {
		t.Error("a cut since the beginning was advanced")
	}
}

func testInterrupted(t *testing.T, r *rig) {
	r.Seed()
	r.Change()
	c := r.Cut()
	ctx, cancel := context.WithCancel(context.Background())
	_, err := c.Disks()[0].Scan(ctx, track.Options{Unit: r.guests[0].d.BlockSize, Tasks: 2}, func(context.Context, track.Change) error {
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted: %v", err)
	}
	own := errors.New("enough")
	_, err = c.Disks()[0].Scan(context.Background(), track.Options{}, func(context.Context, track.Change) error { return own })
	if !errors.Is(err, own) {
		t.Fatalf("emit failed: %v", err)
	}
	if err := c.Advance(context.Background(), r.at.Next()); err == nil {
		t.Fatal("advanced after an interrupted scan")
	}
	r.close(c)
	r.Round()
}

// testNotScanned: the position does not move over what was not read.
func testNotScanned(t *testing.T, r *rig) {
	r.Seed()
	r.Change()
	c := r.Cut()
	if _, err := r.tracker.Cut(context.Background(), r.at); err == nil {
		t.Error("two cuts at a time")
	}
	if err := c.Advance(context.Background(), r.at.Next()); err == nil {
		t.Error("advanced without a scan")
	}
	copied := &copyOf{blockSize: r.guests[0].d.BlockSize}
	copied.grow(r.guests[0].Size())
	copied.scan(t, c.Disks()[0], r.guests[0].d.BlockSize, r.rng)
	if err := c.Advance(context.Background(), r.at.Next()); err == nil {
		t.Error("advanced after a part of a scan")
	}
	r.close(c)
	if err := c.Advance(context.Background(), r.at.Next()); err == nil {
		t.Error("advanced a closed cut")
	}
	r.Round()
}

func testForget(t *testing.T, r *rig) {
	r.Seed()
	at := r.at
	if err := r.tracker.Forget(); err != nil {
		t.Fatal(err)
	}
	r.wantLost(at)
	r.Reopen0(hrl.Pos{})
	r.wantLost(at)
	if err := r.tracker.Forget(); err != nil {
		t.Fatal(err)
	}
	r.Seed()
	r.Write()
	r.Round()
}

// testBase: a cut of everything is confirmed when the tracker was rebased to it, and to nothing else.
func testBase(t *testing.T, r *rig) {
	ctx := context.Background()
	r.Change()
	r.f.Age()
	c, err := r.tracker.Cut(ctx, hrl.Pos{})
	if err != nil {
		t.Fatal(err)
	}
	r.Scan(c)
	if err := c.Confirm(ctx); err == nil {
		t.Error("confirmed without a position")
	}
	right := r.copies[0].data[0]
	for _, first := range []byte{right + 1, right} {
		r.copies[0].data[0] = first
		at := hrl.Pos{}.Next()
		if err := r.tracker.Rebase(ctx, at, r.base()); err != nil {
			t.Fatal(err)
		}
		r.moved(at)
		if err := c.Confirm(ctx); (err == nil) != (first == right) {
			t.Errorf("right base %v, confirmed: %v", first == right, err)
		}
	}
	r.close(c)
	r.Reopen()
	c = r.Cut()
	for _, d := range c.Disks() {
		if !d.Untouched() {
			t.Errorf("disk %s is not known to be untouched", d.Name())
		}
	}
	r.close(c)
	r.Change()
	r.Round()
}

func random(rng *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}
