package home

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/sums"
)

// openLog is a sealed log of one disk.
type openLog struct {
	*hrl.Log
	file durable.File
}

// apply brings the originals to what the sealed logs of a record say, and begins or goes on wherever an earlier run was
// cut off. Nothing is written before all logs were verified.
func (j *Job) apply(ctx context.Context, rec *record, results []Result) (err error) {
	logs := make([]*openLog, len(rec.Disks))
	defer func() {
		for _, l := range logs {
			if l != nil {
				err = errors.Join(err, l.file.Close())
			}
		}
	}()
	for i := range rec.Disks {
		if logs[i], err = j.openLog(ctx, rec, &rec.Disks[i]); err != nil {
			return fault.In(err, j.VM, rec.Disks[i].Name)
		}
	}
	if err := j.enter(rec); err != nil {
		return err
	}
	for i := range rec.Disks {
		began := time.Now()
		if err := j.applyDisk(ctx, &rec.Disks[i], logs[i]); err != nil {
			return fault.In(err, j.VM, rec.Disks[i].Name)
		}
		results[i].Applied = time.Since(began)
	}
	return j.leave(ctx, rec, dataOf(logs))
}

// dataOf is the bytes of data in the logs of all disks.
func dataOf(logs []*openLog) (n int64) {
	for _, l := range logs {
		if l != nil {
			n += l.Info().DataBytes
		}
	}
	return n
}

// openLog opens and verifies a log; nil when nothing of the disk differs.
func (j *Job) openLog(ctx context.Context, rec *record, d *diskRecord) (_ *openLog, err error) {
	if d.Log == "" {
		return nil, nil
	}
	f, err := j.FS.Open(d.Log)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.LogGap, "the change log that the disk is to be brought home by is missing").At(d.Log)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	log, err := hrl.Open(f)
	if err != nil {
		return nil, err
	}
	want := hrl.Identity{Replica: j.ID, VM: j.VM, Disk: d.Name, Kind: hrl.Redo, From: rec.At, To: rec.To, SizeBefore: d.SizeBefore, Size: d.Size, BlockSize: grain}
	info := log.Info()
	if id := info.Identity; id != nil {
		want.CutAt, want.DataWriteGUID = id.CutAt, id.DataWriteGUID
	}
	if info.Identity == nil || *info.Identity != want {
		return nil, fault.New(fault.LogForeign, "the change log is not the one of this disk and this failback").At(d.Log)
	}
	if !info.Sealed {
		return nil, fault.New(fault.LogCorrupt, "the change log was sealed and is not any more").At(d.Log)
	}
	return &openLog{log, f}, log.Verify(ctx)
}

// enter records that from now on the originals are neither old nor new, unless they are not what the logs were made for.
func (j *Job) enter(rec *record) error {
	for i := range rec.Disks {
		if j.InUse == nil {
			break
		}
		if err := j.InUse(rec.Disks[i].Target); err != nil {
			return fault.In(err, j.VM, rec.Disks[i].Name)
		}
	}
	if rec.Phase == applying {
		return j.holdRecord()
	}
	for i := range rec.Disks {
		d := &rec.Disks[i]
		if d.Stamps == nil {
			continue
		}
		m, err := disk.Open(j.FS, d.Target, d.Format, d.Parents...)
		if err != nil {
			return fault.In(err, j.VM, d.Name)
		}
		now, err := m.Stamps()
		if err = errors.Join(err, m.Close()); err != nil {
			return fault.In(err, j.VM, d.Name)
		}
		if !sameStamps(now, d.Stamps) {
			return fault.New(fault.DiskModified, "somebody wrote to the original after the changes for it were captured").At(d.Target).Of(j.VM, d.Name)
		}
	}
	rec.Phase = applying
	return j.save(rec)
}

// applyDisk writes one log into its disk. On return it is durable.
func (j *Job) applyDisk(ctx context.Context, d *diskRecord, log *openLog) (err error) {
	if d.Size > d.SizeBefore {
		if err := grow(j.FS, d); err != nil {
			return err
		}
	}
	if log == nil {
		return nil
	}
	w, err := disk.OpenRW(j.FS, d.Target, d.Format, d.Parents...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if w.Size() != d.Size {
		return fault.New(fault.LogForeign, "the change log is for a disk of %d bytes, and the original has %d", d.Size, w.Size()).At(d.Target)
	}
	task := "write " + d.Name
	info := log.Info()
	j.Meter.Begin(task, info.DataBytes+info.ZeroBytes, 0)
	defer j.Meter.End(task)
	if err := write(ctx, w, log, func(n int64) { j.Meter.Add(task, n) }); err != nil {
		return err
	}
	return w.Flush()
}

// ahead is how many records are read before the one that is being written.
const ahead = 3

// loaded is a record with its data.
type loaded struct {
	hrl.Record
	data []byte
}

// write writes the records of a log into a disk, reading ahead.
func write(ctx context.Context, w disk.Writable, log *openLog, count func(int64)) error {
	free, way := make(chan []byte, ahead), make(chan loaded, ahead)
	for range ahead {
		free <- nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(way)
		return read(ctx, log, free, way)
	})
	g.Go(func() error {
		for r := range way {
			if err := put(ctx, w, r); err != nil {
				return err
			}
			count(r.Len)
			if !r.Zero {
				free <- r.data[:cap(r.data)]
			}
		}
		return ctx.Err()
	})
	return g.Wait()
}

func put(ctx context.Context, w disk.Writable, r loaded) error {
	if r.Zero {
		return zero(ctx, w, r.Range)
	}
	_, err := w.WriteAt(r.data, r.Off)
	return err
}

// zero writes zeros where a disk holds something else. No space is given back: what was allocated for a VM that is to run again stays
// allocated for it. What is known to be zero is left as it is, be it a hole or allocated.
func zero(ctx context.Context, w disk.Writable, r block.Range) error {
	var zeros []byte
	for off := r.Off; off < r.End(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := w.Extent(off, min(r.End()-off, unit))
		if err != nil {
			return err
		}
		if e.Kind == block.Data {
			if zeros == nil {
				zeros = durable.AlignedBuffer(unit)
			}
			if _, err := w.WriteAt(zeros[:e.Len], off); err != nil {
				return err
			}
		}
		off = e.End()
	}
	return nil
}

// read reads the records of a log. What it reads is proved once more: it was verified, but that was another reading.
func read(ctx context.Context, log *openLog, free <-chan []byte, way chan<- loaded) error {
	for rec, err := range log.Records(ctx) {
		if err != nil {
			return err
		}
		r := loaded{Record: rec}
		if !rec.Zero {
			var buf []byte
			select {
			case buf = <-free:
			case <-ctx.Done():
				return ctx.Err()
			}
			if buf == nil {
				buf = durable.AlignedBuffer(hrl.MaxRecord)
			}
			r.data = buf[:rec.Len]
			if err := readProved(log, rec, r.data); err != nil {
				return err
			}
		}
		select {
		case way <- r:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func readProved(log *openLog, rec hrl.Record, p []byte) error {
	if err := log.Read(rec, p, 0); err != nil {
		return err
	}
	for i, want := range rec.Sums {
		b := block.Nth(int64(i), grain, rec.Len)
		if sums.Of(p[b.Off:b.End()]) != want {
			return fault.New(fault.LogCorrupt, "the change log was verified, and is read differently now").AtOff(log.file.Name(), rec.At+b.Off)
		}
	}
	return nil
}

// leave records that the originals are whole, with what is known of them for the next pass and how much was written, and
// removes what was needed.
func (j *Job) leave(ctx context.Context, rec *record, written int64) error {
	next := *rec
	next.Brought += written
	next.Phase, next.At, next.Disks = idle, rec.To, slices.Clone(rec.Disks)
	for i := range next.Disks {
		d := &next.Disks[i]
		d.Base, d.Next, d.Log, d.SizeBefore = nil, nil, "", d.Size
		if b := rec.Disks[i].Next; b != nil {
			stamps, err := j.settle(ctx, d)
			if err != nil {
				return fault.In(err, j.VM, d.Name)
			}
			if stamps != nil {
				kept := *b
				kept.Stamps = stamps
				d.Base = &kept
			}
		}
		d.Stamps = nil
	}
	if err := j.save(&next); err != nil {
		return err
	}
	return j.sweep(&next)
}
