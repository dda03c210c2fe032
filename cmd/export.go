package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/internal/state"
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

// exporting is an export that may step aside for other runs, and goes on where it stood.
type exporting struct {
	exportOptions
	o       *exportObject
	at      *exportedDisk // that is being written, nil: none
	claimed bool          // the point is held against retention for it
}

// export writes the disks of a recovery point as fixed VHDs into a folder. Nothing moves the pages of the replica while they are read;
// replication goes on all the same, because the export steps aside for it. A file that is there is not replaced.
func (w *world) export(ctx context.Context, vm *site.VM, x exportOptions, o *exportObject) (err error) {
	e := &exporting{exportOptions: x, o: o}
	if w.opts.dryRun {
		return w.locked(ctx, vm, func(ctx context.Context) error {
			return w.onReplica(ctx, vm, forLooking, &o.vmHead, func(s *session) error { return s.planExport(e) })
		})
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.undo(w.fs))
		}
		if e.claimed { // it was ended while it waited for its turn
			w.unclaim(ctx, vm, e)
		}
	}()
	return w.politely(ctx, vm, turns{limit: turnLimit, asks: turnPolite}, func(turn context.Context) error {
		return w.onReplica(turn, vm, forLooking, &o.vmHead, func(s *session) error {
			err := s.export(turn, e)
			if turn.Err() != nil && ctx.Err() == nil && fault.Cancelled(err) {
				return errors.Join(err, s.claim(turn, e))
			}
			return errors.Join(err, s.release(turn, e))
		})
	})
}

func (s *session) planExport(e *exporting) error {
	point, err := choosePoint(s.state, e.point)
	if err == nil {
		e.o.Point = point.ID
		s.say("%s: plan: write the disks of point %s, %s, into %s", s.vm.Name, point.ID, size(pointSize(*point)), e.folder)
	}
	return err
}

// claim holds the point for as long as the export lasts: other runs have their turn, and make new points. Where the store cannot be
// written to, this machine drops none.
func (s *session) claim(ctx context.Context, e *exporting) error {
	st := s.state
	if !st.Claim(e.point) {
		return nil
	}
	_, err := s.engine.Replica.Ledger().Save(context.WithoutCancel(ctx), st)
	if fault.Is(err, fault.Permission) || fault.Is(err, fault.NoSpace) {
		return nil
	}
	e.claimed = e.claimed || err == nil
	return err
}

// release lets retention have the point again.
func (s *session) release(ctx context.Context, e *exporting) error {
	ctx = context.WithoutCancel(ctx)
	if !e.claimed {
		return nil
	}
	st, err := s.engine.Replica.Ledger().Load(ctx)
	if err == nil && st.Unclaim(e.point) {
		_, err = s.engine.Replica.Ledger().Save(ctx, st)
	}
	e.claimed = err != nil
	return err
}

// unclaim is release for an export that has no turn.
func (w *world) unclaim(ctx context.Context, vm *site.VM, e *exporting) {
	var head vmHead
	ctx = context.WithoutCancel(ctx)
	err := w.inTurn(ctx, vm, state.Changes, turns{limit: turnPolite, asks: forever}, stays, func(ctx context.Context) error {
		return w.onReplica(ctx, vm, forLooking, &head, func(s *session) error { return s.release(ctx, e) })
	})
	if err != nil {
		w.log.Warn("the recovery point stays held", "vm", vm.Name, "point", e.point, "error", err,
			"next", w.commands("sitrep points "+vm.Name+" --release "+e.point))
	}
}

// export does what is left of an export.
func (s *session) export(ctx context.Context, e *exporting) (err error) {
	point, err := choosePoint(s.state, e.point)
	if err != nil {
		return err
	}
	e.point, e.o.Point = point.ID, point.ID // the latest one stays that, whatever comes
	view, err := s.engine.Replica.Points().Open(ctx, s.state, point.ID)
	if err != nil {
		return s.rotten(ctx, *point, err)
	}
	defer func() { joined(&err, view.Close()) }()
	if err := s.fs.MkdirAll(e.folder); err != nil {
		return err
	}
	for _, d := range s.state.Disks {
		if _, ok := point.Sizes[d.Name]; !ok || e.has(d.Name) {
			continue
		}
		if err := s.exportDisk(ctx, view, d.Name, e); err != nil {
			return s.rotten(ctx, *point, fault.In(err, s.vm.Name, d.Name))
		}
		done := e.o.Disks[len(e.o.Disks)-1]
		s.say("%s: %s of point %s is in %s", s.vm.Name, d.Name, point.ID, done.Path)
	}
	if point.Damaged != "" {
		s.noteDamaged(ctx, point.ID, "")
	}
	return nil
}

// has says that a disk is written.
func (e *exporting) has(disk string) bool {
	return slices.ContainsFunc(e.o.Disks, func(d exportDiskObject) bool { return d.Name == disk })
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

// undo removes the disks that were written before one could not be: a part of a VM is no VM.
func (e *exporting) undo(fsys durable.FS) error {
	var errs []error
	if e.at != nil {
		errs = append(errs, e.at.dst.Close(), durable.RemoveIfThere(fsys, e.at.Path))
		e.at = nil
	}
	for _, d := range e.o.Disks {
		errs = append(errs, durable.RemoveIfThere(fsys, d.Path))
	}
	e.o.Disks = []exportDiskObject{}
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

// exportedDisk is a disk that is being written. What lies before off is.
type exportedDisk struct {
	exportDiskObject
	dst disk.Writable
	off int64
}

// exportDisk writes what is left of a disk.
func (s *session) exportDisk(ctx context.Context, view replica.PointView, name string, e *exporting) error {
	src, err := view.Disk(name)
	if err != nil {
		return err
	}
	if e.at == nil {
		if e.at, err = s.beginDisk(name, filepath.Join(e.folder, s.vm.Name+"."+name+".vhd"), src.Size()); err != nil {
			return err
		}
	}
	s.meter.Begin("export "+name, src.Size(), e.at.off)
	defer s.meter.End("export " + name)
	if err := s.copyPoint(ctx, src, e.at); err != nil {
		return err
	}
	done := e.at
	if err := done.dst.Flush(); err != nil {
		return err
	}
	e.at, e.o.Disks = nil, append(e.o.Disks, done.exportDiskObject)
	return errors.Join(done.dst.Close(), s.fs.SyncDir(filepath.Dir(done.Path)))
}

func (s *session) beginDisk(name, path string, size int64) (*exportedDisk, error) {
	dst, err := disk.Create(s.fs, path, disk.Spec{Format: disk.VHD, Kind: disk.Fixed, Size: size})
	if errors.Is(err, fs.ErrExist) {
		return nil, fault.New(fault.Exists, "the file is there already: give another folder").At(path)
	}
	if err != nil {
		return nil, err
	}
	return &exportedDisk{exportDiskObject: exportDiskObject{Name: name, Path: path, Size: size}, dst: dst}, nil
}

// copyPoint copies what is not zero into a new disk.
func (s *session) copyPoint(ctx context.Context, src replica.PointDisk, at *exportedDisk) error {
	buf := durable.AlignedBuffer(exportUnit)
	for at.off < src.Size() {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := src.Extent(at.off, src.Size()-at.off) // a hole is one step, whatever its size
		if err != nil {
			return err
		}
		if e.Kind == block.Data {
			e.Len = min(e.Len, exportUnit)
			if err := copyUnit(src, at, buf[:e.Len]); err != nil {
				return err
			}
		}
		s.meter.Add("export "+at.Name, e.Len)
		at.off = e.End()
	}
	return nil
}

func copyUnit(src replica.PointDisk, at *exportedDisk, p []byte) error {
	if n, err := src.ReadAt(p, at.off); n < len(p) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("reading the recovery point at %d: %w", at.off, err)
	}
	if block.IsZero(p) {
		return nil
	}
	at.Data += int64(len(p))
	_, err := at.dst.WriteAt(p, at.off)
	return err
}
