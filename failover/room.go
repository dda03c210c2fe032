package failover

import (
	"context"
	"errors"
	"path/filepath"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/host"
)

// volumeFor refuses a failover whose disks do not fit on the volume where they are made.
func (j *Job) volumeFor(ctx context.Context, p Plan) error {
	return Room(ctx, []Together{{j, p}})
}

// Together is one VM of those that are failed over together.
type Together struct {
	Job  *Job
	Plan Plan
}

// Room refuses failovers whose disks do not fit together on the volume where they are made. Only what the recovery points hold counts: disks are
// made sparse. Where the room cannot be told, nothing is refused.
func Room(ctx context.Context, list []Together) error {
	free, known, most := int64(0), false, int64(0)
	for _, x := range list {
		if x.Job.DisksIn == InStore {
			continue
		}
		if !known {
			free, known = durable.Free(x.Job.FS, existing(x.Job.FS, x.Job.Folder))
		}
		most += x.Plan.Bytes
	}
	if !known || most <= free {
		return nil
	}
	var need int64
	for _, x := range list {
		if x.Job.DisksIn == InStore {
			continue
		}
		n, err := x.Job.holds(ctx, x.Plan)
		if err != nil {
			return x.Job.in(err)
		}
		need += n
	}
	if need > free {
		return fault.New(fault.NoSpace, "the recovery points hold %d KiB, and the volume of the recovered disks has %d KiB free", need>>10, free>>10).At(list[0].Job.Folder)
	}
	return nil
}

// existing is the folder, or the nearest one above it that is there.
func existing(fsys durable.FS, folder string) string {
	for {
		if _, err := fsys.Stat(folder); err == nil || filepath.Dir(folder) == folder {
			return folder
		}
		folder = filepath.Dir(folder)
	}
}

// holds is the bytes of the disks of a point that are not known to be zero.
func (j *Job) holds(ctx context.Context, p Plan) (n int64, err error) {
	st, err := j.load(ctx)
	if err != nil {
		return 0, err
	}
	r, err := j.Store.View(ctx, j.VM)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	view, err := r.Points().Open(ctx, st, p.Found.ID)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, view.Close()) }()
	for _, d := range p.VMDef.Disks {
		img, err := view.Disk(d.Name)
		if err != nil {
			return 0, fault.In(err, j.VM, d.Name)
		}
		for off := int64(0); off < d.Size; {
			e, err := img.Extent(off, d.Size-off)
			if err != nil {
				return 0, fault.In(err, j.VM, d.Name)
			}
			if e.Kind == block.Data {
				n += e.Len
			}
			off = e.End()
		}
	}
	return n, nil
}

// Memory refuses VMs that need more memory together than their host has, where that can be told.
func Memory(h host.Host, vms []host.Definition) error {
	r, ok := h.(host.Rehearser)
	if !ok {
		return nil
	}
	total, known := r.Memory()
	var need int64
	for _, d := range vms {
		need += d.Memory
	}
	if known && need > total {
		return fault.New(fault.PrerequisiteFail, "the VMs of the plan need %d MiB of memory together, and %s has %d MiB", need>>20, h.Describe(), total>>20)
	}
	return nil
}
