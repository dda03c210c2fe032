package dir

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
)

var (
	_ replica.PointKeeper = (*vmReplica)(nil)
	_ replica.PointProver = (*vmReplica)(nil)
)

// asLeft says whether the pages and the sums of a disk are the files that the ledger knows.
func (r *vmReplica) asLeft(d *replica.Disk) (bool, error) {
	if d.Stamp == "" {
		return false, nil
	}
	var now [2]string
	for i, path := range []string{r.pagesPath(d.Name), r.sumsPath(d.Name)} {
		stamp, err := r.fs.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		now[i] = fileStamp(stamp)
	}
	return d.Stamp == now[0]+" "+now[1], nil
}

// judge says whether a disk is, along a chain, what it was at the point that the chain begins at. m is what trace found; nil when nothing
// is known that could prove it.
func (p *points) judge(ctx context.Context, s *replica.State, c *chain, m *mark) error {
	switch {
	case m != nil && m.holds():
		return nil
	case c.broken != nil:
		return c.broken
	case m == nil && (c.clone || s.Resync == nil || !s.Resync.Deep || s.Resync.Sealed[c.disk]):
		return nil // of an older version, and nothing speaks against it
	case m != nil && m.short:
		// Of an older version too, and the disk has grown since: the ledger has to know the pages.
		known, err := p.r.asLeft(s.Disk(c.disk))
		if err != nil || known || c.clone {
			return err
		}
	}
	return fault.New(fault.PointDamaged, "the block sums that the recovery point is seen by are not those that it had: files of the replica "+
		"were replaced, or are of another time").At(c.sums)
}

// MissingPoints names the points that the store has no more, by looking at names and at the heads of undo logs; points that are seen
// through pages which the ledger does not know are proved by block sums. See replica.PointKeeper.
func (r *vmReplica) MissingPoints(ctx context.Context, s replica.State) ([]string, error) {
	ids, err := (&points{r}).lost(ctx, &s, false)
	return ids, fault.In(err, r.vm, "")
}

// UnprovenPoints names the points that are missing, or of which the block sums are not proved; see replica.PointProver.
func (r *vmReplica) UnprovenPoints(ctx context.Context, s replica.State) ([]string, error) {
	ids, err := (&points{r}).lost(ctx, &s, true)
	return ids, fault.In(err, r.vm, "")
}

// lost names the points that Open would refuse before anything is read of them. With all, every point is proved.
func (p *points) lost(ctx context.Context, s *replica.State, all bool) ([]string, error) {
	bad := map[string]bool{}
	for i := range s.Disks {
		if err := p.lostOf(ctx, s, &s.Disks[i], all, bad); err != nil {
			return nil, fault.In(err, p.r.vm, s.Disks[i].Name)
		}
	}
	var ids []string
	for _, point := range s.Points {
		unknown := false
		for name := range point.Sizes {
			unknown = unknown || s.Disk(name) == nil
		}
		if bad[point.ID] || unknown {
			ids = append(ids, point.ID)
		}
	}
	return ids, nil
}

// asked is a point of which it is asked whether a disk is proved along a chain.
type asked struct {
	point *replica.Point
	mark  *mark // nil: nothing is known that could prove it
}

func (p *points) lostOf(ctx context.Context, s *replica.State, d *replica.Disk, all bool, bad map[string]bool) error {
	known, err := p.r.asLeft(d)
	if err != nil {
		return err
	}
	on := map[hrl.Pos]*chain{} // chains that were gone through, by the positions on them
	ask := map[*chain][]asked{}
	for i := range s.Points {
		point := &s.Points[i]
		if _, ok := point.Sizes[d.Name]; !ok {
			continue
		}
		c := on[point.At]
		if c == nil {
			if c, err = p.chainOf(ctx, s, point.At, d.Name); err != nil {
				return err
			}
			for _, at := range append(slices.Clone(c.at), c.end) {
				on[at] = c
			}
		}
		if all || c.broken != nil || !c.clone && !known {
			ask[c] = append(ask[c], asked{point, markOf(s, point, c)})
		}
	}
	for c, list := range ask {
		if err := p.askAll(ctx, s, c, list, bad); err != nil {
			return err
		}
	}
	return nil
}

// askAll notes the points of a chain that are not what they were.
func (p *points) askAll(ctx context.Context, s *replica.State, c *chain, list []asked, bad map[string]bool) error {
	var marks []*mark
	for _, a := range list {
		if a.mark != nil {
			marks = append(marks, a.mark)
		}
	}
	_, err := p.trace(ctx, s, c, marks)
	gone := fault.Is(err, fault.PointMissing) || fault.Is(err, fault.ReplicaMissing) || fault.Is(err, fault.ReplicaChanged)
	if err != nil && !gone {
		return err
	}
	for _, a := range list {
		if a.mark != nil && a.mark.short && a.mark.at == a.point.At && !gone { // its last block has to be read
			err = p.tryOpen(ctx, s, a.point)
		} else if !gone {
			err = p.judge(ctx, s, c, a.mark)
		}
		switch {
		case gone, fault.Is(err, fault.PointMissing), fault.Is(err, fault.PointDamaged), fault.Is(err, fault.ReplicaCorrupt),
			fault.Is(err, fault.ReplicaChanged), fault.Is(err, fault.ReplicaMissing):
			bad[a.point.ID] = true
		case err != nil:
			return err
		}
	}
	return nil
}

func (p *points) tryOpen(ctx context.Context, s *replica.State, point *replica.Point) error {
	v, err := p.Open(ctx, *s, point.ID)
	if err != nil {
		return err
	}
	return v.Close()
}
