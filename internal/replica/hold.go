package replica

import (
	"slices"
	"time"

	"sitrep/internal/hrl"
)

// Massive is one cut that has changed unusually much of what a disk held. Sizes are bytes, in whole blocks.
type Massive struct {
	Disk    string    `json:"disk"`
	At      hrl.Pos   `json:"position"` // that the cut leads to
	CutAt   time.Time `json:"cut_at"`
	Since   time.Time `json:"since"`
	Changed int64     `json:"bytes_changed"` // of Data
	Data    int64     `json:"bytes_data"`    // that the disk held before
	// Noise is how many percent of what was changed look compressed or encrypted and did not before, by samples.
	Noise int `json:"noise_percent"`
	// Point is the ID of the recovery point before it, which is held.
	Point string `json:"point"`
	// More is how many such cuts came after it, before anybody has acknowledged it.
	More int `json:"more,omitempty"`
}

// Percent is how much of what the disk held was changed.
func (m Massive) Percent() int { return int(100 * m.Changed / max(m.Data, 1)) }

// Reasons for which a point is held.
const (
	HeldByHand  = "by hand"
	HeldMassive = "before a massive change"
	HeldExport  = "for an export"
)

// HoldBefore holds the newest point against retention because of a massive change that follows it. While an earlier one has not been
// acknowledged the point before that is the good one, and no other is held.
func (s *State) HoldBefore(m Massive) {
	if s.Massive != nil {
		old := *s.Massive
		old.More++
		s.Massive = &old
		return
	}
	s.Points = slices.Clone(s.Points)
	last := &s.Points[len(s.Points)-1]
	if last.Held == "" {
		last.Held = HeldMassive
	}
	m.Point = last.ID
	s.Massive = &m
}

// Hold holds a point against retention. It returns whether that is new.
func (s *State) Hold(id string) bool { return s.setHeld(id, HeldByHand) }

// Claim holds a point for an export. It returns whether that is new: a point that is held already needs no claim.
func (s *State) Claim(id string) bool { return s.setHeld(id, HeldExport) }

// Unclaim is the end of Claim. It returns whether the point was held for an export.
func (s *State) Unclaim(id string) bool {
	p := s.Point(id)
	return p != nil && p.Held == HeldExport && s.setHeld(id, "")
}

// Release lets retention drop a point again, with the next recovery point. That of a massive change acknowledges the change, also when the
// point itself is there no more. It returns whether the point was held.
func (s *State) Release(id string) bool {
	if s.Massive != nil && s.Massive.Point == id {
		s.Massive = nil
	}
	return s.setHeld(id, "")
}

// KeepOnly removes every other point, and those that are lost. Whoever chooses the one point that stays has decided about a massive change
// too: it is acknowledged.
func (s *State) KeepOnly(p Point) {
	if p.Held == HeldMassive {
		p.Held = ""
	}
	s.Points, s.Lost, s.Massive = []Point{p}, nil, nil
}

func (s *State) setHeld(id, why string) bool {
	i := slices.IndexFunc(s.Points, func(p Point) bool { return p.ID == id })
	if i < 0 || (s.Points[i].Held != "") == (why != "") {
		return false
	}
	s.Points = slices.Clone(s.Points)
	s.Points[i].Held = why
	return true
}
