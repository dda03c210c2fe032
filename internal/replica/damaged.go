package replica

import (
	"context"
	"slices"
	"strings"

	"sitrep/internal/fault"
)

// toldPoints is how many other recovery points an error names.
const toldPoints = 3

// Unseen has an error of a point that the ledger has say why it cannot be shown: the table's cause is that there is none of that name.
func Unseen(e *fault.Error) *fault.Error {
	e.Cause = "What the recovery point is seen through in the store is missing or damaged."
	e.Mend = "Choose another one of the list, or bring what is missing back from a backup of the store."
	return e
}

// Condemns says whether an error, met while a recovery point was read, is that the pages of the replica are not what their sums
// say. Where disks are preserved as a whole, what is kept of an earlier position may be damaged while the pages are well. Elsewhere
// a point shows what was not overwritten since as it lies in the pages, and the error's path tells whether it was met there.
func Condemns(ctx context.Context, r Replica, s State, at Point, err error) bool {
	e := fault.Find(err)
	switch {
	case e == nil || e.Code != fault.ReplicaCorrupt:
		return false
	case PreservesWhole(r):
		return at.At == s.Applied
	}
	d := s.Disk(e.Disk)
	if d == nil || e.Path == "" {
		return true
	}
	pages, perr := r.Disk(ctx, *d)
	if perr != nil {
		return true
	}
	path := pages.Path()
	if perr := pages.Close(); perr != nil {
		return true
	}
	return e.Path == path
}

// DamagedPoint is the error of a recovery point that cannot be read as it was, whatever the replica is like: with the place, and
// with others that may be tried. err carries a *fault.Error.
func DamagedPoint(s State, at Point, err error) *fault.Error {
	e := fault.Find(err)
	d := fault.New(fault.PointDamaged, "%s: recovery point %s is damaged, which says nothing of the replica and of the other points; %s",
		e.Msg, at.ID, otherPoints(s, at)).Of(e.VM, e.Disk)
	d.Path, d.Off, d.HasOff = e.Path, e.Off, e.HasOff
	return d
}

// Others lists the recovery points but for one, the newest first.
func Others(s State, at Point) (ids []string) {
	for _, p := range slices.Backward(s.Points) {
		if p.ID != at.ID {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

func otherPoints(s State, at Point) string {
	ids := Others(s, at)
	switch {
	case len(ids) == 0:
		return "there is no other one"
	case len(ids) > toldPoints:
		return "the newest others are " + strings.Join(ids[:toldPoints], ", ")
	}
	return "the others are " + strings.Join(ids, ", ")
}

// NoteDamaged keeps in the ledger what was found when a point was read; "" is that it was read and is whole. A point that is gone is left out.
func NoteDamaged(ctx context.Context, r Replica, id, what string) error {
	st, err := r.Ledger().Load(ctx)
	if err != nil {
		return err
	}
	st.Points = slices.Clone(st.Points)
	p := st.Point(id)
	if p == nil || p.Damaged == what {
		return nil
	}
	p.Damaged = what
	_, err = r.Ledger().Save(ctx, st)
	return err
}

// DamagedPoints are the points that are known to be damaged, oldest first.
func (s *State) DamagedPoints() (list []Point) {
	for _, p := range s.Points {
		if p.Damaged != "" {
			list = append(list, p)
		}
	}
	return list
}
