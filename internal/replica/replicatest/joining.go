package replicatest

import (
	"context"
	"errors"
	"slices"
	"testing"

	"sitrep/internal/block"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

// testJoining adds a disk to a replica that has positions and points: see replica.State.EveryDisk.
func testJoining(t *testing.T, place Place) {
	ctx := t.Context()
	h := NewHistory("vm", 71, OSLogs(t))
	check(t, h.Begin(ctx, place()))
	check(t, errors.Join(h.Step(ctx, false), h.Step(ctx, false), h.Sign(ctx)))

	stranger := replica.Disk{Name: "added", Source: "added.raw", Format: "raw", Size: 9 * BlockSize, BlockSize: BlockSize}
	_, err := h.rep.Disk(ctx, stranger)
	wantCode(t, err, fault.ReplicaMissing) // the ledger does not know it
	h.joining(t, stranger)
	check(t, h.withDisk(ctx, stranger, func(p replica.Pages) error { return p.WriteAt(ctx, bytesOf(1, 512), 0) }))

	d := stranger // another disk of the name, of which nothing was copied either
	d.Size = 7*BlockSize + 512
	h.joining(t, d)
	content := h.scribble(make([]byte, d.Size), block.NewSet(block.Range{Len: d.Size}))
	check(t, h.withDisk(ctx, d, func(p replica.Pages) error {
		if p.Size() != d.Size {
			t.Errorf("the pages have %d bytes, the disk %d", p.Size(), d.Size)
		}
		return errors.Join(p.ZeroAt(ctx, 0, d.Size), p.ClearSums(ctx, 0, block.Count(d.Size, BlockSize)),
			h.write(ctx, p, block.NewSet(block.Range{Len: d.Size}), content))
	}))
	check(t, h.Check(ctx))

	seal := sealOf(content)
	d.Seeded, d.Seal = d.Size, &seal
	check(t, h.withDisk(ctx, d, func(p replica.Pages) (err error) { d.Stamp, err = p.Stamp(ctx); return err }))
	h.joining(t, d)
	old := h.OpenRun(t)
	p, err := old.Disk(ctx, d)
	check(t, err)
	t.Cleanup(func() { p.Close() })
	check(t, h.Seize(ctx, place()))
	err = errors.Join(p.WriteAt(ctx, bytesOf(9, 512), 0), p.Flush(ctx)) // by a run that was taken over from
	if err != nil && !fault.Is(err, fault.Fenced) {
		t.Errorf("the error of the older run is %v", err)
	}
	check(t, old.Close())

	at := h.state.Joining[0]
	check(t, h.withDisk(ctx, at, func(p replica.Pages) error {
		if stamp, err := p.Stamp(ctx); err != nil || stamp != at.Stamp {
			t.Errorf("the copy has the stamp %q, the ledger says %q (%v)", stamp, at.Stamp, err)
		}
		return checkDisk(ctx, p, content)
	}))
	s := h.state
	s.Joining, s.Disks, s.Joined, s.Consistent = nil, append(slices.Clone(s.Disks), at), []string{at.Name}, false
	check(t, h.save(ctx, s))
	h.content[s.Applied]["added"] = content
	check(t, h.Check(ctx)) // the points are those of the VM without it
	for range 2 {
		check(t, errors.Join(h.Step(ctx, true), h.Check(ctx)))
	}
	ids, err := replica.UnprovenPoints(ctx, h.rep, h.state)
	if err != nil || len(ids) > 0 {
		t.Errorf("points cannot be proved: %v (%v)", ids, err)
	}
	has := func(p replica.Point) bool { _, ok := p.Sizes["added"]; return ok }
	if n := len(h.state.Points); has(h.state.Points[0]) || !has(h.state.Points[n-1]) {
		t.Errorf("of %d points the oldest must not have the disk, and the newest must", n)
	}
	for range 6 { // until all points have it
		check(t, errors.Join(h.Step(ctx, false), h.Check(ctx)))
	}
	check(t, h.Close())
	check(t, h.Attach(ctx, place()))
	check(t, h.Close())
}

func (h *History) joining(t *testing.T, d replica.Disk) {
	t.Helper()
	s := h.state
	s.Joining = []replica.Disk{d}
	check(t, h.save(context.WithoutCancel(t.Context()), s))
}

func bytesOf(b byte, n int) []byte { return slices.Repeat([]byte{b}, n) }
