package replica

import (
	"cmp"
	"context"
	"slices"
)

// PointKeeper is a replica that can tell, without reading any of them, which recovery points are still there. What they need can be
// removed behind the program's back: a rule of a storage account that deletes old snapshots does so.
type PointKeeper interface {
	// MissingPoints returns the IDs of the points of s that Points.Open would find missing, oldest first. The replica may be open
	// for reading only.
	MissingPoints(ctx context.Context, s State) ([]string, error)
}

// MissingPoints asks r, whatever it is wrapped in, which points of s are missing; none where its store cannot tell. Nothing is tried
// again around it: a store that can do this tries by itself.
func MissingPoints(ctx context.Context, r Replica, s State) ([]string, error) {
	for {
		if k, ok := r.(PointKeeper); ok {
			return k.MissingPoints(ctx, s)
		}
		w, ok := r.(interface{ unwrap() Replica })
		if !ok {
			return nil, nil
		}
		r = w.unwrap()
	}
}

// DropLost moves the points of s that are missing from Points to Lost, and saves the ledger. It returns those that it found, and the
// state as it is then. While the VM is away its points are left alone: the failover was made from one of them.
func DropLost(ctx context.Context, r Replica, s State) (State, []Point, error) {
	ids, err := MissingPoints(ctx, r, s)
	if err != nil || len(ids) == 0 {
		return s, nil, err
	}
	var found, left []Point
	for _, p := range s.Points {
		if slices.Contains(ids, p.ID) {
			found = append(found, p)
		} else {
			left = append(left, p)
		}
	}
	if s.Phase.Away() {
		return s, found, nil
	}
	s.Points, s.Lost = left, inOrder(s.Lost, found)
	s, err = r.Ledger().Save(ctx, s)
	return s, found, err
}

// AddPoint adds the newest recovery point and applies a retention of keep points; see Retain. A lost point that the retention would
// have dropped by now, had it not been lost, is forgotten.
func (s *State) AddPoint(p Point, keep int) {
	s.Points, _ = Retain(append(s.Points, p), keep)
	s.Lost = slices.DeleteFunc(slices.Clone(s.Lost), func(l Point) bool {
		newer := 0
		for _, p := range s.Points {
			if p.At.Seq > l.At.Seq {
				newer++
			}
		}
		return newer >= max(keep, 1)
	})
}

// AllPoints is Points and Lost together, oldest first.
func (s *State) AllPoints() []Point { return inOrder(s.Lost, s.Points) }

func inOrder(a, b []Point) []Point {
	all := slices.Concat(a, b)
	slices.SortStableFunc(all, func(a, b Point) int { return cmp.Compare(a.At.Seq, b.At.Seq) })
	return all
}

// IsLost says whether a point of this ID was there and is lost.
func (s *State) IsLost(id string) bool {
	return slices.ContainsFunc(s.Lost, func(p Point) bool { return p.ID == id })
}
