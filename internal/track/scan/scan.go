// Package scan is the tracker that needs nothing from a hypervisor: it reads the disks and compares every block with
// the block sums of the last position.
//
// What it remembers lies in one folder for each VM:
//
//	position.json   the position; of each disk its size, where its sums lie, the seal that proves them, and what the
//	                files of the disk looked like
//	DISK.N.sums     the sums of the blocks at the position (package sums), sparse
//	DISK.N.redo     only while the position moves: the sums that are new
//
// position.json decides. It is replaced in one step, and names the other files by their number N; a file that it does
// not name is nothing. A position moves in this order: the redo file is durable; position.json names the new position
// and the redo file; the sums are changed; position.json no longer names the redo file. A crash in between is completed
// by Open, because applying the redo file twice is the same as once.
//
// Whatever it keeps may be damaged, and a sum that is wrong could hide a change. So position.json proves itself, and the
// seals prove the sums while a scan reads them. What cannot be proved is no position: fault.PositionLost, never a guess.
//
// The frozen view is a reflink clone of the image file where the filesystem can make one. Elsewhere the image itself is
// read, and the times of its files tell whether it was written to meanwhile. The same times tell that a disk was not
// touched since the last cut, so that it is not read at all; see chain for when they are believed.
package scan

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/sums"
	"sitrep/internal/track"
)

// Config is what a Tracker is opened with.
type Config struct {
	VM    string
	Disks []track.Disk
	Dir   string           // the folder for what it remembers; nothing else may be kept there
	Now   func() time.Time // nil means time.Now
}

// Tracker is the scanning tracker of one VM. Whoever opens it holds the lock of the VM. Its methods are not concurrent.
type Tracker struct {
	fs   durable.FS
	c    Config
	rec  *record // nil: no position
	why  error   // why there is none; nil when there never was
	next uint64  // the number of the next file
	open *cut
	// looking says that nothing may be written; see Look.
	looking bool
}

var _ track.Tracker = (*Tracker)(nil)

// Open reads what the tracker remembers, and completes an Advance that a crash interrupted. What is damaged is no error
// here: the tracker then stands at no position, and Reason tells why.
func Open(fsys durable.FS, c Config) (*Tracker, error) {
	t, err := newTracker(fsys, c)
	if err != nil {
		return nil, err
	}
	if err := t.load(); err != nil {
		return nil, fault.In(err, c.VM, "")
	}
	return t, nil
}

func newTracker(fsys durable.FS, c Config) (*Tracker, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	seen := map[string]bool{}
	for _, d := range c.Disks {
		if d.BlockSize <= 0 || !filepath.IsLocal(d.Name) || strings.ContainsAny(d.Name, `/\`) || seen[d.Name] {
			return nil, fault.New(fault.SiteInvalid, "cannot track a disk of this name or block size (%d)", d.BlockSize).
				Of(c.VM, d.Name)
		}
		seen[d.Name] = true
	}
	return &Tracker{fs: fsys, c: c}, nil
}

// Position is the position that the tracker stands at; zero when it knows none.
func (t *Tracker) Position() hrl.Pos {
	if t.rec == nil {
		return hrl.Pos{}
	}
	return t.rec.Position
}

// Reason tells why the tracker stands at no position; nil when it does, or never did.
func (t *Tracker) Reason() error { return t.why }

// Rebase makes the tracker stand at a position, with sums from elsewhere. The next cut reads all disks.
func (t *Tracker) Rebase(ctx context.Context, at hrl.Pos, base map[string]track.Base) error {
	if at.IsZero() {
		return errors.New("a tracker cannot stand at the zero position")
	}
	if err := t.fs.MkdirAll(t.c.Dir); err != nil {
		return fault.In(err, t.c.VM, "")
	}
	n := t.number()
	rec := &record{Format: formatVersion, VM: t.c.VM, Position: at}
	for _, d := range t.c.Disks {
		b, ok := base[d.Name]
		if !ok {
			return fmt.Errorf("the sums of disk %s are not given", d.Name)
		}
		r, err := t.fill(ctx, d, b, n)
		if err != nil {
			return t.undone(fault.In(err, t.c.VM, d.Name))
		}
		rec.Disks = append(rec.Disks, r)
	}
	return t.commit(rec)
}

// fill makes the sums file of one disk, durable but for its name.
func (t *Tracker) fill(ctx context.Context, d track.Disk, b track.Base, n uint64) (r diskRecord, err error) {
	r = diskRecord{Name: d.Name, Size: b.Size(), BlockSize: d.BlockSize, Sums: n}
	f, err := t.fs.Create(t.sumsPath(d.Name, n))
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := runWriter{table: sums.NewTable(f)}
	err = b.All(ctx, func(i int64, s sums.Sum) error {
		if i < 0 || i >= r.blocks() {
			return fmt.Errorf("a sum of block %d, of a disk of %d blocks", i, r.blocks())
		}
		r.Seal.Add(i, s)
		return w.add(i, s)
	})
	if err = errors.Join(err, w.flush()); err != nil {
		return r, err
	}
	return r, f.Sync()
}

// Forget removes everything that the tracker keeps. It is durable on return.
func (t *Tracker) Forget() error {
	t.rec, t.why = nil, nil
	err := t.fs.Remove(t.recordPath())
	if err == nil {
		err = t.fs.SyncDir(t.c.Dir)
	} else if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil {
		err = t.sweep(nil)
	}
	return fault.In(err, t.c.VM, "")
}

// Cut freezes the disks and opens the changes since a position.
func (t *Tracker) Cut(ctx context.Context, since hrl.Pos) (track.Cut, error) {
	if t.open != nil {
		return nil, errors.New("the last cut of this tracker is still open")
	}
	if since != t.Position() && !since.IsZero() {
		return nil, t.lost(since)
	}
	c, err := t.newCut(ctx, since)
	if err != nil {
		return nil, fault.In(err, t.c.VM, "")
	}
	t.open = c
	return c, nil
}

func (t *Tracker) lost(since hrl.Pos) error {
	switch {
	case t.why != nil:
		return fault.Wrap(fault.PositionLost, t.why, "the changes since %v are not known", since).Of(t.c.VM, "")
	case t.rec == nil:
		return fault.New(fault.PositionLost, "the changes since %v are not known: nothing is remembered of this VM", since).
			Of(t.c.VM, "")
	}
	return fault.New(fault.PositionLost, "the changes since %v are not known: the disks were last read for %v",
		since, t.rec.Position).Of(t.c.VM, "")
}

// number returns a number that no file of the folder has.
func (t *Tracker) number() uint64 {
	t.next++
	return t.next
}

func (t *Tracker) recordPath() string { return filepath.Join(t.c.Dir, "position.json") }

func (t *Tracker) sumsPath(disk string, n uint64) string {
	return filepath.Join(t.c.Dir, fmt.Sprintf("%s.%d.sums", disk, n))
}

func (t *Tracker) redoPath(disk string, n uint64) string {
	return filepath.Join(t.c.Dir, fmt.Sprintf("%s.%d.redo", disk, n))
}
