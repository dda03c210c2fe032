package cmd

import (
	"context"
	"fmt"
	"maps"
	"strings"

	"sitrep/failover"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/site"
)

// promote copies the disks of a recovery point to disks of their own inside the store, or deletes what an earlier promote of
// the point demote has made. One of the two is "".
func (w *world) promote(ctx context.Context, vm *site.VM, promote, demote string, o *exportObject) error {
	return w.locked(ctx, vm, func(ctx context.Context) error {
		return w.onReplica(ctx, vm, forUpkeep, &o.vmHead, func(s *session) error {
			p, ok := replica.PromoterOf(s.engine.Replica)
			if !ok {
				return fault.New(fault.PrerequisiteFail, "a store in a folder has nothing to promote: \"sitrep points %s --export ID --to FOLDER\" makes disks",
					vm.Name).At(s.store.Describe())
			}
			if demote != "" {
				return s.removePromoted(ctx, p, demote)
			}
			return s.promotePoint(ctx, p, promote, o)
		})
	})
}

// promotedName is the name of a promoted disk in the store.
func promotedName(point, disk string) string { return point + "-" + disk }

// proof is how copies that the store has made by itself are proven.
func (w *world) proof() replica.Proof {
	if w.site.Recovery.Disks == site.DisksInStore && !w.site.Recovery.Verify {
		return replica.ProofNone
	}
	return replica.ProofRead
}

// promotions are the promoted disks of each recovery point, as far as it is still known which one they are of.
func promotions(ctx context.Context, r replica.Replica, st replica.State) (map[string][]string, error) {
	p, ok := replica.PromoterOf(r)
	if !ok {
		return nil, nil
	}
	names, err := p.Promoted(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string][]string{}
	for _, point := range st.Points {
		for _, name := range names {
			if strings.HasPrefix(name, promotedName(point.ID, "")) || failover.PromotedFor(st, point.ID, name) {
				out[point.ID] = append(out[point.ID], name)
			}
		}
	}
	return out, nil
}

func (s *session) promotePoint(ctx context.Context, p replica.Promoter, id string, o *exportObject) error {
	point, err := choosePoint(s.state, id)
	if err != nil {
		return err
	}
	o.Point = point.ID
	if s.opts.dryRun {
		s.planned(s.vm, "copy the disks of point %s, %s, inside the store", point.ID, size(pointSize(*point)))
		return nil
	}
	for _, d := range s.state.Disks {
		bytes, ok := point.Sizes[d.Name]
		if !ok {
			continue
		}
		task := "copy " + d.Name
		s.meter.Begin(task, bytes, 0)
		made, err := p.Promote(ctx, s.state, replica.Promotion{Point: point.ID, Disk: d.Name, Name: promotedName(point.ID, d.Name), Proof: s.proof(),
			Progress: func(n int64) { s.meter.Add(task, n) }})
		s.meter.End(task)
		if err != nil {
			return fault.In(err, s.vm.Name, d.Name)
		}
		since, err := s.writtenSince(ctx, promotedName(point.ID, d.Name), made)
		if err != nil {
			return fault.In(err, s.vm.Name, d.Name)
		}
		o.Disks = append(o.Disks, exportDiskObject{Name: d.Name, Path: made.Where, Size: bytes, Written: since})
		s.say("%s: %s of point %s is %s%s", s.vm.Name, d.Name, point.ID, made.Where, since.text(s.vm.Name, point.ID))
	}
	return nil
}

// written says whether something has written to a promoted disk since it was made.
type written string

const (
	notWritten     written = ""
	hasWritten     written = "yes"
	perhapsWritten written = "unknown"
)

func (x written) text(vm, point string) string {
	var how string
	switch x {
	case notWritten:
		return ""
	case hasWritten:
		how = "something has written to it since it was made, so it is not the disk of the point any more"
	default:
		how = "whether something has written to it since is not known"
	}
	return fmt.Sprintf("; it was there already, and %s (made anew: first \"sitrep points %s --demote %s\")", how, vm, point)
}

// writtenSince compares a promoted disk with what the ledger says of it, and notes in the ledger what was made just now.
func (s *session) writtenSince(ctx context.Context, name string, made replica.Promoted) (written, error) {
	ledger := s.engine.Replica.Ledger()
	st, err := ledger.Load(ctx)
	if err != nil {
		return notWritten, err
	}
	was, known := st.Promoted[name]
	switch {
	case !made.Found:
		st.Promoted = maps.Clone(st.Promoted)
		if st.Promoted == nil {
			st.Promoted = map[string]string{}
		}
		st.Promoted[name] = made.Stamp
		_, err := ledger.Save(ctx, st)
		return notWritten, err
	case !known:
		return perhapsWritten, nil
	case was != made.Stamp:
		return hasWritten, nil
	}
	return notWritten, nil
}

// forgetPromoted takes what was deleted out of the ledger.
func (s *session) forgetPromoted(ctx context.Context, names []string) error {
	ledger := s.engine.Replica.Ledger()
	st, err := ledger.Load(ctx)
	if err != nil {
		return err
	}
	left := maps.Clone(st.Promoted)
	for _, name := range names {
		delete(left, name)
	}
	if len(left) == len(st.Promoted) {
		return nil
	}
	st.Promoted = left
	_, err = ledger.Save(ctx, st)
	return err
}

// removePromoted deletes promoted disks. The point itself may be gone by now.
func (s *session) removePromoted(ctx context.Context, p replica.Promoter, id string) error {
	for _, d := range s.state.Disks {
		if err := failover.MayDemote(s.state, promotedName(id, d.Name)); err != nil {
			return err
		}
	}
	if s.opts.dryRun {
		s.planned(s.vm, "delete what was promoted of point %s", id)
		return nil
	}
	var names []string
	for _, d := range s.state.Disks {
		names = append(names, promotedName(id, d.Name))
		if err := p.Demote(ctx, promotedName(id, d.Name)); err != nil {
			return fault.In(err, s.vm.Name, d.Name)
		}
	}
	if err := s.forgetPromoted(ctx, names); err != nil {
		return err
	}
	s.say("%s: what was promoted of point %s is deleted", s.vm.Name, id)
	return nil
}
