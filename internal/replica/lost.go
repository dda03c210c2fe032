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
	if k, ok := inside[PointKeeper](r); ok {
		return k.MissingPoints(ctx, s)
	}
	return nil, nil
}

// PointProver is a replica that can prove its recovery points by their seals: that the block sums by which their content will be proved
// are those that the point had.
type PointProver interface {
	// UnprovenPoints returns the IDs of the points of s that are missing, or that Points.Open would refuse for their block sums,
	// oldest first. No content is read.
	UnprovenPoints(ctx context.Context, s State) ([]string, error)
}

// UnprovenPoints asks r, whatever it is wrapped in, which points of s are missing or cannot be proved; where its store cannot prove points,
// which are missing.
func UnprovenPoints(ctx context.Context, r Replica, s State) ([]string, error) {
	if k, ok := inside[PointProver](r); ok {
		return k.UnprovenPoints(ctx, s)
	}
	return MissingPoints(ctx, r, s)
}

// PointGlancer is a replica in which looking for missing points costs next to nothing.
type PointGlancer interface {
	// GlancePoints returns the IDs of points of s of which something is plainly missing, oldest first.
	GlancePoints(ctx context.Context, s State) ([]string, error)
}

// GlancePoints asks r, whatever it is wrapped in, which points of s are plainly missing; none where that costs something.
func GlancePoints(ctx context.Context, r Replica, s State) ([]string, error) {
	if k, ok := inside[PointGlancer](r); ok {
		return k.GlancePoints(ctx, s)
	}
	return nil, nil
}

// DropLost moves the points of s that are missing from Points to Lost, and saves the ledger. It returns those that it found, and the
// state as it is then. While the VM is away its points are left alone: the failover was made from one of them.
func DropLost(ctx context.Context, r Replica, s State) (State, []Point, error) {
	return dropLost(ctx, r, s, MissingPoints)
}

// DropUnproven is DropLost for the points that are missing or cannot be proved any more.
func DropUnproven(ctx context.Context, r Replica, s State) (State, []Point, error) {
	return dropLost(ctx, r, s, UnprovenPoints)
}

func dropLost(ctx context.Context, r Replica, s State, which func(context.Context, Replica, State) ([]string, error)) (State, []Point, error) {
	ids, err := which(ctx, r, s)
	if err != nil || len(ids) == 0 {
		return s, nil, err
	}
	next := s
	found := next.LosePoints(func(p Point) bool { return slices.Contains(ids, p.ID) })
	if s.Phase.Away() {
		return s, found, nil
	}
	s, err = r.Ledger().Save(ctx, next)
	return s, found, err
}

// Only is the state with one of its points: what is asked about it is asked about no other.
func (s *State) Only(id string) State {
	out := *s
	out.Points = nil
	if p := s.Point(id); p != nil {
		out.Points = []Point{*p}
	}
	return out
}

// LosePoints moves the points that lost says from Points to Lost.
func (s *State) LosePoints(lost func(Point) bool) (found []Point) {
	var left []Point
	for _, p := range s.Points {
		if lost(p) {
			found = append(found, p)
		} else {
			left = append(left, p)
		}
	}
	if len(found) > 0 {
		s.Points, s.Lost = left, inOrder(s.Lost, found)
	}
	return found
}

// AddPoint adds the newest recovery point and applies a retention of keep points; see Retain. A lost point that the retention would
// have dropped by now, had it not been lost, is forgotten. From the begin of a failover to its end no point is dropped: what the source
// wrote last makes a new one, and must not cost the one that was asked for.
func (s *State) AddPoint(p Point, keep int) {
	if s.Failover != nil {
		keep = len(s.Points) + len(s.Lost) + 1
	}
	s.Points = append(s.Points, p)
	s.retain(keep)
}

// Trim keeps the newest keep points, as AddPoint does, when there is no new one: the policy may keep fewer than before.
func (s *State) Trim(keep int) {
	if s.Failover == nil {
		s.retain(keep)
	}
}

func (s *State) retain(keep int) {
	s.Points, _ = Retain(s.Points, keep, s.claimed())
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

// claimed is the ID of the point that a test failover reads, or is about to: until its disks are made no retention drops it.
func (s *State) claimed() string {
	if s.Test == nil || len(s.Test.VM) > 0 {
		return ""
	}
	return s.Test.Point
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
