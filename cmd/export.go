package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/site"
)

// exportUnit is how many bytes of a recovery point are copied at once.
const exportUnit = 1 << 20

// exportObject is what points --export says. Sizes are bytes.
type exportObject struct {
	vmHead
	Point string             `json:"point"`
	Disks []exportDiskObject `json:"disks"`
}

type exportDiskObject struct {
	Name string `json:"name"`
	Path string `json:"path"`
	Size int64  `json:"size"`
	Data int64  `json:"data_bytes"`
	// Written is of a promoted disk that was there already: "yes" or "unknown" when it may not be the point's any more.
	Written written `json:"written_to,omitempty"`
}

// exportOptions are which point goes where.
type exportOptions struct {
	point  string // an ID, or "latest"
	folder string
}

// export writes the disks of a recovery point as fixed VHDs into a folder. The replica is locked meanwhile, so that nothing
// moves its pages, and not changed. A file that is there is not replaced.
func (w *world) export(ctx context.Context, vm *site.VM, x exportOptions, o *exportObject) error {
	return w.locked(ctx, vm, func(ctx context.Context) error {
		return w.onReplica(ctx, vm, forLooking, &o.vmHead, func(s *session) error { return s.export(ctx, x, o) })
	})
}

func (s *session) export(ctx context.Context, x exportOptions, o *exportObject) (err error) {
	point, err := choosePoint(s.state, x.point)
	if err != nil {
		return err
	}
	o.Point = point.ID
	if s.opts.dryRun {
		s.say("%s: plan: write the disks of point %s, %s, into %s", s.vm.Name, point.ID, size(pointSize(*point)), x.folder)
		return nil
	}
	view, err := s.engine.Replica.Points().Open(ctx, s.state, point.ID)
	if err != nil {
		return s.rotten(ctx, *point, err)
	}
	defer func() { joined(&err, view.Close()) }()
	if err := s.fs.MkdirAll(x.folder); err != nil {
		return err
	}
	for _, d := range s.state.Disks {
		if _, ok := point.Sizes[d.Name]; !ok {
			continue
		}
		done, err := s.exportDisk(ctx, view, d.Name, filepath.Join(x.folder, s.vm.Name+"."+d.Name+".vhd"))
		if err != nil {
			return errors.Join(s.rotten(ctx, *point, fault.In(err, s.vm.Name, d.Name)), s.unexport(o))
		}
		o.Disks = append(o.Disks, done)
		s.say("%s: %s of point %s is in %s", s.vm.Name, d.Name, point.ID, done.Path)
	}
	if point.Damaged != "" {
		s.noteDamaged(ctx, point.ID, "")
	}
	return nil
}

// noteDamaged keeps what was found of a point, "" for nothing. That it cannot is no reason to keep back what is known.
func (s *session) noteDamaged(ctx context.Context, id, what string) {
	if err := replica.NoteDamaged(context.WithoutCancel(ctx), s.engine.Replica, id, what); err != nil {
		s.log.Warn("what was found of the recovery point cannot be kept", "vm", s.vm.Name, "point", id, "error", err)
	}
}

// rotten marks a VM whose replica's bytes are not what its sums say. A recovery point can be damaged all by itself: then that one is marked.
func (s *session) rotten(ctx context.Context, at replica.Point, err error) error {
	switch {
	case fault.Is(err, fault.PointDamaged):
		s.noteDamaged(ctx, at.ID, err.Error())
		return err
	case !fault.Is(err, fault.ReplicaCorrupt):
		return err
	case !replica.Condemns(ctx, s.engine.Replica, s.state, at, err):
		s.noteDamaged(ctx, at.ID, err.Error())
		return replica.DamagedPoint(s.state, at, err)
	case s.state.Phase.Away():
		return err
	}
	return errors.Join(err, s.engine.Mark(context.WithoutCancel(ctx), fault.ReplicaCorrupt, err.Error(), s.now().UTC()))
}

// unexport removes the disks that were written before one could not be: a part of a VM is no VM.
func (s *session) unexport(o *exportObject) error {
	var errs []error
	for _, d := range o.Disks {
		errs = append(errs, durable.RemoveIfThere(s.fs, d.Path))
	}
	o.Disks = []exportDiskObject{}
	return errors.Join(errs...)
}

// choosePoint finds a point by its ID. A wrong one is a mistake on the command line, and nothing of the VM's.
func choosePoint(st replica.State, id string) (*replica.Point, error) {
	if n := len(st.Points); id == "latest" && n > 0 {
		return &st.Points[n-1], nil
	}
	if p := st.Point(id); p != nil {
		return p, nil
	}
	if st.IsLost(id) {
		return nil, replica.Unseen(fault.New(fault.PointMissing, "recovery point %s is lost: something else removed or replaced what it is seen through in the store", id).Of(st.VM, ""))
	}
	return nil, fault.New(fault.UsageError, "the VM has no recovery point %q; \"sitrep points %s\" lists them", id, st.VM).Of(st.VM, "")
}

func (s *session) exportDisk(ctx context.Context, view replica.PointView, name, path string) (o exportDiskObject, err error) {
	src, err := view.Disk(name)
	if err != nil {
		return o, err
	}
	o = exportDiskObject{Name: name, Path: path, Size: src.Size()}
	dst, err := disk.Create(s.fs, path, disk.Spec{Format: disk.VHD, Kind: disk.Fixed, Size: src.Size()})
	if errors.Is(err, fs.ErrExist) {
		return o, fault.New(fault.Exists, "the file is there already: give another folder").At(path)
	}
	if err != nil {
		return o, err
	}
	s.meter.Begin("export "+name, src.Size(), 0)
	defer s.meter.End("export " + name)
	o.Data, err = s.copyPoint(ctx, dst, src, name)
	if err == nil {
		err = dst.Flush()
	}
	if err = errors.Join(err, dst.Close()); err != nil {
		return o, errors.Join(err, durable.RemoveIfThere(s.fs, path))
	}
	return o, s.fs.SyncDir(filepath.Dir(path))
}

// copyPoint copies what is not zero into a new disk.
func (s *session) copyPoint(ctx context.Context, dst disk.Writable, src replica.PointDisk, name string) (data int64, err error) {
	buf := durable.AlignedBuffer(exportUnit)
	for off := int64(0); off < src.Size(); {
		if err := ctx.Err(); err != nil {
			return data, err
		}
		e, err := src.Extent(off, src.Size()-off) // a hole is one step, whatever its size
		if err != nil {
			return data, err
		}
		if e.Kind == block.Data {
			e.Len = min(e.Len, exportUnit)
			p := buf[:e.Len]
			if n, err := src.ReadAt(p, off); n < len(p) {
				if err == nil || err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				return data, fmt.Errorf("reading the recovery point at %d: %w", off, err)
			}
			if !block.IsZero(p) {
				if _, err := dst.WriteAt(p, off); err != nil {
					return data, err
				}
				data += e.Len
			}
		}
		s.meter.Add("export "+name, e.Len)
		off = e.End()
	}
	return data, nil
}
