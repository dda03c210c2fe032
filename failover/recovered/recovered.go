// Package recovered makes the disks that a recovered VM runs on: it copies a disk as of a recovery point into a new file
// of the format that the host wants.
//
// It is one pass. What the source knows to be zero is never read, what turns out to be zero is not written, and memory is
// a few buffers whatever the size of the disk. The source proves its own bytes (see replica.PointDisk), and nothing
// else is between it and the new file: that is why the pages of a store are not cloned here, fast as that would be.
//
// While it is being made the file has a temporary name. It gets its own when it is whole and durable, so that whatever
// interrupts a copy, a disk by that name is one that boots. Beside it lies a small record of what it was made for:
// repeated after a crash, a copy that was complete is found and left alone (a VM may have written to it by then), and a
// file of somebody else by that name is never taken for it.
package recovered

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/disk/qcow2"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/progress"
)

// Source is a disk that does not change while it is copied. replica.PointDisk and disk.Image are Sources.
type Source interface {
	io.ReaderAt
	Size() int64
	Extent(off, n int64) (block.Extent, error)
}

// Config says what to copy, and what becomes of it.
type Config struct {
	FS     durable.FS
	Source Source
	Path   string      // of the new file; its folder is made
	Format disk.Format // Raw (sparse), VHD, VHDX or QCOW2
	Kind   disk.Kind   // Fixed or Dynamic; "" is the usual one of the format: VHD fixed, VHDX dynamic
	// SectorSize is the size in bytes of the disk's logical sectors: 0 is 512. A VHD has no other.
	SectorSize int
	ID         hrl.ID // what it is made for, a failover: a file that was made for another one is refused
	VM, Disk   string // for errors and the meter
	Meter      progress.Meter
	Tasks      int // reads in flight; 0 is 8
}

// Result says what was done.
type Result struct {
	Size    int64 // guest bytes
	Read    int64 // bytes of the source
	Written int64 // guest bytes that were not zero, by the call that made the disk
	Found   bool  // an earlier call had made the disk: nothing was done
	Took    time.Duration
}

// record is what lies beside the disk.
type record struct {
	ID     hrl.ID      `json:"id"`
	VM     string      `json:"vm"`
	Disk   string      `json:"disk"`
	Format disk.Format `json:"format"`
	Size   int64       `json:"size"`
	// Written is guest bytes that were not zero: how much was copied, for whoever finds the disk.
	Written int64 `json:"written,omitempty"`
	identity
}

const maxRecord = 64 << 10 // bytes

// RecordPath is the name of the record beside a disk.
func RecordPath(path string) string { return path + ".recovered.json" }

// Make makes the disk. It and its name are durable on return. Cut off anywhere it can be called again; two calls for one
// path at a time are the caller's to prevent. Codes: Exists for a file by that name which was made for something else,
// NoSpace before anything is written where the filesystem can tell, DiskUnsupported for what the format cannot hold.
func Make(ctx context.Context, c Config) (r Result, err error) {
	began := time.Now()
	defer func() { err = fault.In(err, c.VM, c.Disk) }()
	r.Size = c.Source.Size()
	if r.Written, r.Found, err = c.found(); r.Found || err != nil {
		return r, err
	}
	if err := c.prepare(ctx); err != nil {
		return r, err
	}
	m := &maker{Config: c, tmp: durable.TempName(c.Path)}
	if err := m.make(ctx); err != nil {
		return r, errors.Join(err, m.undo())
	}
	r.Read, r.Written, r.Took = m.read.Load(), m.written.Load(), time.Since(began)
	return r, nil
}

// found says whether an earlier call has made the disk, and how much it wrote into it.
func (c *Config) found() (written int64, found bool, err error) {
	was, there, err := recordOf(c.FS, c.Path)
	if err == nil && !there && was.ID != (hrl.ID{}) && was.ID != c.ID {
		err = fault.New(fault.Exists, "another failover, of VM %s, makes a disk of this name here", was.VM).At(c.Path)
	}
	if err != nil || !there {
		return 0, false, err
	}
	now, err := identityOf(c.FS, c.Path)
	if err != nil {
		return 0, false, err
	}
	same := was.identity.is(now)
	written, was.Written, was.identity = was.Written, 0, identity{}
	if was != c.record() || !same {
		return 0, false, fault.New(fault.Exists, "a file by the name of the recovered disk is there, and it was not made for this failover").At(c.Path)
	}
	return written, true, c.FS.SyncDir(filepath.Dir(c.Path)) // the rename may not have been durable yet
}

// recordOf reads what lies beside a disk; a record that cannot be understood is the zero one. there is about the disk.
func recordOf(fsys durable.FS, path string) (was record, there bool, err error) {
	_, err = fsys.Stat(path)
	there = err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return was, false, err
	}
	have, err := durable.ReadFile(fsys, RecordPath(path), maxRecord)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return was, false, err
	}
	if json.Unmarshal(have, &was) != nil {
		was = record{}
	}
	return was, there, nil
}

// Made says whether a disk is there, and how much Make wrote into it if it made it for id: 0 for a disk of somebody else.
func Made(fsys durable.FS, path string, id hrl.ID) (written int64, there bool, err error) {
	was, there, err := recordOf(fsys, path)
	if was.ID != id {
		was.Written = 0
	}
	return was.Written, there, err
}

func (c *Config) record() record {
	return record{ID: c.ID, VM: c.VM, Disk: c.Disk, Format: c.Format, Size: c.Source.Size()}
}

// prepare removes what an earlier call has left, and looks for space.
func (c *Config) prepare(ctx context.Context) error {
	dir := filepath.Dir(c.Path)
	if err := c.FS.MkdirAll(dir); err != nil {
		return err
	}
	names, err := c.FS.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range names {
		base := filepath.Base(c.Path)
		if durable.IsTempOf(e.Name, base) || durable.IsTempOf(e.Name, RecordPath(base)) {
			if err := durable.RemoveIfThere(c.FS, filepath.Join(dir, e.Name)); err != nil {
				return err
			}
		}
	}
	free, ok := durable.Free(c.FS, dir)
	if !ok {
		return nil
	}
	need, err := dataBytes(ctx, c.Source)
	if err == nil && need > free {
		err = fault.New(fault.NoSpace, "the recovered disk needs up to %d bytes, and the volume has %d", need, free).At(dir)
	}
	return err
}

// dataBytes is how many bytes of a disk are not known to be zero.
func dataBytes(ctx context.Context, s Source) (n int64, err error) {
	for off := int64(0); off < s.Size(); {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		e, err := s.Extent(off, s.Size()-off)
		if err != nil {
			return 0, err
		}
		if e.Kind == block.Data {
			n += e.Len
		}
		off = e.End()
	}
	return n, nil
}

// make copies, and gives the file its name.
func (m *maker) make(ctx context.Context) error {
	if err := m.open(); err != nil {
		return err
	}
	if err := m.mark(); err != nil {
		return errors.Join(err, m.out.close())
	}
	task := "recover " + m.Disk
	m.Meter.Begin(task, m.Source.Size(), 0)
	defer m.Meter.End(task)
	m.count = func(n int64) { m.Meter.Add(task, n) }
	err := m.copy(ctx)
	if err == nil {
		err = m.out.finish()
	}
	if err = errors.Join(err, m.out.close()); err != nil {
		return err
	}
	if err := m.mark(); err != nil { // with how much was written
		return err
	}
	if _, err := m.FS.Stat(m.Path); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = fault.New(fault.Exists, "a file of this name was put there while the disk was made").At(m.Path)
		}
		return err
	}
	if err := m.FS.Rename(m.tmp, m.Path); err != nil {
		return err
	}
	m.named = true
	return m.FS.SyncDir(filepath.Dir(m.Path))
}

// mark writes the record of the file that is being made. It is durable on return.
func (m *maker) mark() (err error) {
	rec := m.record()
	rec.Written = m.written.Load()
	if rec.identity, err = identityOf(m.FS, m.tmp); err != nil {
		return err
	}
	data, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return err
	}
	m.marked = true
	return durable.WriteFile(m.FS, RecordPath(m.Path), append(data, '\n'))
}

// undo removes what a call that failed has made.
func (m *maker) undo() error {
	err := durable.RemoveIfThere(m.FS, m.tmp)
	if m.marked && !m.named {
		err = errors.Join(err, durable.RemoveIfThere(m.FS, RecordPath(m.Path)))
	}
	return err
}

// sink is a disk that is being made. It reads as zero where nothing was put.
type sink interface {
	// put writes guest bytes whose offset is a multiple of granule, as is their length except at the end of the disk.
	put(off int64, p []byte) error
	// finish makes the whole disk durable.
	finish() error
	close() error
}

// granule is the unit in which zeros are left out: the cluster of a qcow2.
const granule = qcow2.ClusterSize
