package replicate

import (
	"context"
	"errors"
	"slices"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

// known makes sure that the replica is as the ledger left it, disk by disk. Files that are others than those that the ledger knows, as
// those of a store that was moved to another volume are, are read: when every block is what its sum says, and the sums are the sealed
// ones, nothing else has written to them, and the ledger knows them from then on. It returns the ledger as it is then.
func (j *Job) known(ctx context.Context, st replica.State) (replica.State, error) {
	var stamps map[int]string
	for i, d := range st.Disks {
		stamp, err := j.knownDisk(ctx, d)
		if err != nil {
			return st, fault.In(err, j.VM, d.Name)
		}
		if stamp != d.Stamp {
			if stamps == nil {
				stamps = map[int]string{}
			}
			stamps[i] = stamp
		}
	}
	if stamps == nil {
		return st, nil
	}
	st.Disks = slices.Clone(st.Disks)
	for i, stamp := range stamps {
		st.Disks[i].Stamp = stamp
	}
	return j.Replica.Ledger().Save(ctx, st)
}

// knownDisk returns the stamp of the pages, which are what the ledger says.
func (j *Job) knownDisk(ctx context.Context, d replica.Disk) (stamp string, err error) {
	pages, err := j.Replica.Disk(ctx, d)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, pages.Close()) }()
	changed := unchangedPages(ctx, pages, d)
	if !fault.Is(changed, fault.ReplicaChanged) {
		return d.Stamp, changed
	}
	if d.Seal == nil || replica.PreservesWhole(j.Replica) { // a blob changes by writes alone, not by being moved
		return "", changed
	}
	if stamp, err = pages.Stamp(ctx); err != nil { // before the first read
		return "", err
	}
	if seal, err := (replica.DiskSums{Pages: pages, Of: d}).Seal(ctx); err != nil || seal != *d.Seal {
		return "", errors.Join(err, changed)
	}
	j.Log.Info("the files of the replica are others than the ledger knows, as after a move of the store: they are read once, and proved by the block sums",
		"vm", j.VM, "disk", d.Name)
	if err := j.provePages(ctx, pages, d, changed); err != nil {
		return "", err
	}
	return stamp, nil
}

// provePages reads a disk and compares every block with its sum. The first that differs is told with the error changed.
func (j *Job) provePages(ctx context.Context, pages replica.Pages, d replica.Disk, changed error) error {
	task := "prove " + d.Name
	j.Meter.Begin(task, d.Size, 0)
	defer j.Meter.End(task)
	c := &checker{pages: pages, sums: replica.DiskSums{Pages: pages, Of: d}, pace: j.pace()}
	for at := int64(0); at < d.Size; {
		w, err := c.window(ctx, at)
		if err != nil {
			return err
		}
		if r, ok := c.differs.Next(w); ok {
			e := fault.Find(changed)
			return e.AtOff(e.Path, r.Off)
		}
		j.Meter.Add(task, w.Len)
		at = w.End()
	}
	return nil
}
