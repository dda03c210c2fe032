package failover

import (
	"context"
	"errors"
	"strings"

	"sitrep/internal/disk"
	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
)

// storeDisks are promoted disks (replica.Promoter), beside the replica.
//
// Their names are made of the kind of the failover, its ID and the disk. The ID is new for each test, each failover, and each other
// point that a failover is changed to, so a name means one disk of one point for one VM, ever. That Promote leaves alone what is
// there already, because a machine may have written to it, is therefore right in each case:
//
//   - A second test of the same point has another ID. It does not get what the guest of the first one wrote.
//   - A failover that goes on after a kill has the ID of before. What is complete was made by it, for the VM that it is about to
//     make; and no VM was made of it yet, because that comes after the ledger says that all disks are there.
//   - Once the ledger says so, Promote is not called any more. The VM writes to its disks until they are removed, by their names.
//   - Going to another point, and back to the first, is a new ID too: the disks are as the point was.
//   - A failover that another machine has taken over keeps its ID. What the first one had completed is as good as if the second
//     had; what it still does is refused by the store, which knows its generation.
type storeDisks struct {
	*Job
	kind Kind
	id   hrl.ID
}

func (p *storeDisks) name(disk string) string { return storePrefix(p.kind, p.id) + disk }

func storePrefix(k Kind, id hrl.ID) string {
	what := "failover"
	if k == Test {
		what = "test"
	}
	return what + "-" + id.String() + "-"
}

func (p *storeDisks) plan(disks, point string) string {
	how := ", and read them to prove them"
	if p.Proof == replica.ProofNone {
		how = ""
	}
	return "copy " + disks + " of point " + point + " inside the store" + how
}

func (p *storeDisks) disk(string) (string, disk.Format) { return "", disk.VHD }

func (p *storeDisks) ready(ctx context.Context, _ []host.Disk) error {
	rep, err := p.Store.View(ctx, p.VM)
	if err != nil {
		return err
	}
	_, err = promoter(rep, p.Store)
	return errors.Join(err, rep.Close())
}

func promoter(rep replica.Replica, s replica.Store) (replica.Promoter, error) {
	p, ok := replica.PromoterOf(rep)
	if !ok {
		return nil, fault.New(fault.PrerequisiteFail, "this kind of store makes no disks that a VM could run from: take \"disks: store\" out of the site file").
			At(s.Describe())
	}
	return p, nil
}

func (p *storeDisks) make(ctx context.Context, rep replica.Replica, st replica.State, rec *replica.Failover, disks []host.Disk) (bytes int64, err error) {
	to, err := promoter(rep, p.Store)
	if err != nil {
		return 0, err
	}
	rec.DiskStamps = map[string]string{}
	for i := range disks {
		d := &disks[i]
		made, err := p.makeOne(ctx, to, st, rec.Point, *d, func(n int64) { bytes += n })
		if err != nil {
			return bytes, fault.In(err, p.VM, d.Name)
		}
		d.Path, rec.DiskStamps[d.Name] = made.Where, made.Stamp
	}
	return bytes, nil
}

func (p *storeDisks) makeOne(ctx context.Context, to replica.Promoter, st replica.State, point string, d host.Disk,
	count func(int64)) (replica.Promoted, error) {
	task := "copy " + d.Name
	p.Meter.Begin(task, d.Size, 0)
	defer p.Meter.End(task)
	return to.Promote(ctx, st, replica.Promotion{Point: point, Disk: d.Name, Name: p.name(d.Name), Proof: p.Proof,
		Progress: func(n int64) { count(n); p.Meter.Add(task, n) }})
}

// storeImage is a promoted disk with the replica that it was opened of.
type storeImage struct {
	replica.PromotedDisk
	rep replica.Replica
}

func (i storeImage) Close() error { return errors.Join(i.PromotedDisk.Close(), i.rep.Close()) }

func (p *storeDisks) open(ctx context.Context, d host.Disk) (disk.Image, error) {
	img, err := p.opened(ctx, d)
	if err != nil {
		return nil, err
	}
	return img, nil
}

func (p *storeDisks) opened(ctx context.Context, d host.Disk) (*storeImage, error) {
	rep, err := p.Store.View(ctx, p.VM)
	if err != nil {
		return nil, err
	}
	from, err := promoter(rep, p.Store)
	if err != nil {
		return nil, errors.Join(err, rep.Close())
	}
	img, err := from.OpenPromoted(ctx, p.name(d.Name), d.Size)
	if err != nil {
		return nil, errors.Join(err, rep.Close())
	}
	return &storeImage{img, rep}, nil
}

func (p *storeDisks) untouched(ctx context.Context, stamps map[string]string, disks []host.Disk) (names []string, err error) {
	for _, d := range disks {
		img, err := p.opened(ctx, d)
		if err != nil {
			return nil, fault.In(err, p.VM, d.Name)
		}
		if was := stamps[d.Name]; was != "" && img.Stamp() == was {
			names = append(names, d.Name)
		}
		if err := img.Close(); err != nil {
			return nil, fault.In(err, p.VM, d.Name)
		}
	}
	return names, nil
}

// prove has nothing to ask: the name of a disk in the store is made of the failover's ID, and what the ledger says of its place is not
// used.
func (p *storeDisks) prove(host.Disk) error { return nil }

func (p *storeDisks) remove(ctx context.Context, names []string, made []host.Disk) (left []string, err error) {
	for _, d := range made {
		names = append(names, d.Name)
	}
	return nil, p.with(ctx, func(rep replica.Replica, _ replica.State) error {
		from, err := promoter(rep, p.Store)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := from.RemovePromoted(ctx, p.name(name)); err != nil {
				return fault.In(err, p.VM, name)
			}
		}
		return nil
	})
}

// PromotedFor says whether a promoted disk is one of those that a VM was, or is being, made of from a recovery point.
func PromotedFor(st replica.State, point, name string) bool {
	_, rec := madeFor(st, name)
	return rec != nil && rec.Point == point
}

// madeFor is the failover or the test of the ledger that a promoted disk was, or is being, made for; nil when it is none of its.
func madeFor(st replica.State, name string) (Kind, *replica.Failover) {
	is := func(k Kind, rec *replica.Failover) bool {
		return rec != nil && strings.HasPrefix(name, storePrefix(k, rec.ID))
	}
	switch {
	case is(Test, st.Test):
		return Test, st.Test
	case is(Unplanned, st.Failover): // planned ones have the same names
		return Kind(st.Failover.Kind), st.Failover
	}
	return "", nil
}

// MayDemote says whether a promoted disk may be deleted by its name: not one that the VM of a failover, or of a test, runs from, which
// goes when that ends. Where protection was disabled nothing else ends it any more.
func MayDemote(st replica.State, name string) error {
	k, rec := madeFor(st, name)
	if rec == nil || st.Phase == replica.Retired {
		return nil
	}
	next := "sitrep failover cleanup " + st.VM
	how := "it goes with \"" + next + "\""
	if k != Test {
		next, how = "sitrep status "+st.VM, "it goes with \"failover undo\", or, when the VM is home again, with the \"failover commit\" after \"failback\""
	}
	return fault.New(fault.WrongState, "%s is a disk of the VM of the %s failover that began at %s, which runs from it: %s",
		name, k, stamp(rec.Started), how).Of(st.VM, "").Then(next)
}

// MayRemove says whether a replica may be removed with everything that belongs to it: not while there are promoted disks among it,
// from which a machine may run. Of a committed failover they are all that there is of the VM.
func MayRemove(ctx context.Context, rep replica.Replica, vm string) error {
	p, ok := replica.PromoterOf(rep)
	if !ok {
		return nil
	}
	strangers, err := p.Strangers(ctx)
	if err != nil {
		return err
	}
	if len(strangers) > 0 {
		return fault.New(fault.WrongState, "%s among the promoted disks, not made by sitrep, would be removed with the replica: to be moved away by hand first "+
			"(or keep both with --keep-replica): %s", plural(len(strangers), "blob"), strings.Join(strangers, ", ")).Of(vm, "").Then("sitrep unprotect " + vm)
	}
	names, err := p.Promoted(ctx)
	if err != nil || len(names) == 0 {
		return err
	}
	return fault.New(fault.WrongState, "%s that machines may run from lie beside the replica, and would be removed with it (%s): keep both with "+
		"--keep-replica, or delete them first; what \"points --promote\" has made goes with \"points %s --demote ID\"",
		plural(len(names), "disk"), strings.Join(names, ", "), vm).Of(vm, "")
}
