package cmd

import (
	"context"
	"strings"

	"sitrep/failover"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/site"
)

// promote copies the disks of a recovery point to disks of their own inside the store, or deletes what an earlier promote of
// the point demote has made. One of the two is "".
func (w *world) promote(ctx context.Context, vm *site.VM, promote, demote string, o *exportObject) error {
	return w.locked(vm, func() error {
		return w.onReplica(ctx, vm, forWriting, &o.vmHead, func(s *session) error {
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
		o.Disks = append(o.Disks, exportDiskObject{Name: d.Name, Path: made.Where, Size: bytes})
		s.say("%s: %s of point %s is %s", s.vm.Name, d.Name, point.ID, made.Where)
	}
	return nil
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
	for _, d := range s.state.Disks {
		if err := p.Demote(ctx, promotedName(id, d.Name)); err != nil {
			return fault.In(err, s.vm.Name, d.Name)
		}
	}
	s.say("%s: what was promoted of point %s is deleted", s.vm.Name, id)
	return nil
}
