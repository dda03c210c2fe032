package dir

import (
	"context"
	"errors"
	"io/fs"

	"sitrep/internal/block"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
)

// Preserved tells what the step back to s.Applied holds; see replica.Points.
func (p *points) Preserved(ctx context.Context, s replica.State, to hrl.Pos) (ranges map[string]*block.Set, all bool, err error) {
	if len(s.Points) == 0 {
		return nil, true, nil
	}
	ranges = map[string]*block.Set{}
	clones := 0
	for i := range s.Disks {
		d := &s.Disks[i]
		if _, err := p.r.fs.Stat(p.clonePath(s.Applied, d.Name)); err == nil {
			clones++
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, false, fault.In(err, p.r.vm, d.Name)
		}
		if ranges[d.Name], err = p.preservedOf(ctx, &s, d, to); err != nil {
			return nil, false, fault.In(err, p.r.vm, d.Name)
		}
	}
	return ranges, clones == len(s.Disks), nil
}

func (p *points) preservedOf(ctx context.Context, s *replica.State, d *replica.Disk, to hrl.Pos) (*block.Set, error) {
	l, err := p.openUndo(ctx, s, s.Applied, d.Name)
	if err != nil {
		return nil, err
	}
	defer l.file.Close()
	if id := l.Info().Identity; id.From != to {
		return nil, replica.Unseen(fault.New(fault.PointMissing, "the undo log leads back from %s, not from %s", id.From, to).At(l.file.Name()))
	}
	held := new(block.Set)
	for rec, err := range l.Records(ctx) {
		if err != nil {
			return nil, damaged(err)
		}
		held.Add(rec.Range)
	}
	return held, nil
}
