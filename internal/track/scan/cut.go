package scan

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/disk/vhdx"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/sums"
	"sitrep/internal/track"
	"sitrep/internal/wait"
)

// cut is an open cut.
type cut struct {
	t     *Tracker
	since hrl.Pos
	at    time.Time
	disks []*cutDisk
	// checked says that Check succeeded and nothing was read after it.
	checked bool
	// ended says that no more is to come of the cut: it is closed, or Advance or Confirm was called, right or wrong.
	ended bool
}

// cutDisk is one disk of a cut.
type cutDisk struct {
	cut  *cut
	d    track.Disk
	prev *diskRecord // nil when since is zero
	view *disk.Disk
	temp string // the clone that view reads; "" when it reads the disk itself

	identity disk.Identity // when the view was taken
	another  string        // why that is not the disk that the position is of; "" if it may be

	chain     chain // of the disk itself, when the view was taken
	certain   bool  // chain.certain
	untouched bool

	sumsFile durable.File // of prev; nil when there is none
	result   *result      // of the last complete scan, when prev is not nil
	read     *sums.Seal   // of what the last complete scan read, when prev is nil
}

// result is what a complete scan leaves for Advance.
type result struct {
	seal    sums.Seal // of the table with the changes
	redo    *redoWriter
	changed bool
}

func (t *Tracker) newCut(ctx context.Context, since hrl.Pos) (c *cut, err error) {
	c = &cut{t: t, since: since}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.release())
			c = nil
		}
	}()
	for _, d := range t.c.Disks {
		if !t.looking {
			if err := sweepClones(t.fs, d.Path); err != nil {
				return c, fault.In(err, "", d.Name)
			}
		}
		cd := &cutDisk{cut: c, d: d, identity: d.Identity}
		if !since.IsZero() {
			prev := *t.rec.disk(d.Name)
			cd.prev = &prev
		}
		c.disks = append(c.disks, cd)
	}
	if err := c.freeze(ctx); err != nil {
		return c, err
	}
	for _, d := range c.disks {
		if err := d.openSums(); err != nil {
			return c, fault.In(err, "", d.d.Name)
		}
	}
	return c, nil
}

func (d *cutDisk) openSums() (err error) {
	if d.prev == nil {
		return nil
	}
	if d.Size() < d.prev.Size {
		return fault.New(fault.DiskShrunk, "the disk has %d bytes and had %d; a replica cannot shrink",
			d.Size(), d.prev.Size).At(d.d.Path)
	}
	if !d.untouched {
		d.sumsFile, err = d.cut.t.openSums(*d.prev)
	}
	return err
}

// sweepClones removes the clones of a disk that crashes left beside it, or beside what its path is a link to.
func sweepClones(fsys durable.FS, path string) error {
	real, err := durable.Resolve(fsys, path)
	if err != nil || filepath.Dir(real) == filepath.Dir(path) {
		return sweepBeside(fsys, path)
	}
	return errors.Join(sweepBeside(fsys, path), sweepBeside(fsys, real))
}

func sweepBeside(fsys durable.FS, path string) error {
	dir, base := filepath.Split(path)
	entries, err := fsys.ReadDir(filepath.Clean(dir))
	if err != nil {
		return nil // that the disk cannot be found is said better by opening it
	}
	for _, e := range entries {
		if e.Dir || !durable.IsTempOf(e.Name, base) {
			continue
		}
		if err := durable.RemoveIfThere(fsys, filepath.Join(dir, e.Name)); err != nil {
			return err
		}
	}
	return nil
}

// Attempts at a view of all disks at one moment, and the pause after the first one; it doubles. Together the pauses are
// longer than the longest tick.
const (
	freezeTries = 10
	freezePause = 5 * time.Millisecond
)

// freeze takes a view of all disks at one moment.
func (c *cut) freeze(ctx context.Context) error {
	pause := freezePause
	for try := 1; ; try++ {
		err := c.tryFreeze(ctx)
		if !fault.Is(err, fault.DiskModified) || try == freezeTries {
			return err
		}
		if err := errors.Join(c.thaw(), wait.For(ctx, pause)); err != nil {
			return err
		}
		pause *= 2
	}
}

// tryFreeze looks at the files of all disks, takes the views, and looks again. Disks whose views are not all clones have to
// be the same both times; a single clone is of one moment by itself.
func (c *cut) tryFreeze(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	untouched := true
	for _, d := range c.disks {
		if err := d.look(); err != nil {
			return fault.In(err, "", d.d.Name)
		}
		untouched = untouched && d.untouched
	}
	c.at = c.t.c.Now()
	if untouched && len(c.disks) > 0 {
		return nil
	}
	for _, d := range c.disks {
		if err := d.take(); err != nil {
			return fault.In(err, "", d.d.Name)
		}
	}
	for _, d := range c.disks {
		if err := d.lookAgain(); err != nil {
			return fault.In(err, "", d.d.Name)
		}
	}
	return nil
}

// look opens the disk and compares its stamps with those of the last cut.
func (d *cutDisk) look() (err error) {
	if d.view, err = disk.Open(d.cut.t.fs, d.d.Path, d.d.Format, d.d.Parents...); err != nil {
		return err
	}
	if d.chain, err = lookAt(d.cut.t.fs, d.view.Files()); err != nil {
		return err
	}
	d.untouched = d.prev != nil && d.prev.Certain && d.prev.Boot == d.cut.t.fs.Boot() && d.prev.Size == d.view.Size() &&
		d.chain.equal(chain{stamps: d.prev.Stamps})
	d.certain = d.untouched
	return nil
}

// HeldBytes is how many bytes a cut since the position would read from the disks themselves, while their VM has to hold still: what may be
// other than zero on the disks that were written to, and that cannot be cloned. Nothing is read.
func (t *Tracker) HeldBytes() (n int64, err error) {
	for _, of := range t.c.Disks {
		d := &cutDisk{cut: &cut{t: t}, d: of}
		if t.rec != nil {
			d.prev = t.rec.disk(of.Name)
		}
		held, err := d.heldBytes()
		if err = errors.Join(err, d.closeView()); err != nil {
			return n, fault.In(err, t.c.VM, of.Name)
		}
		n += held
	}
	return n, nil
}

func (d *cutDisk) heldBytes() (n int64, err error) {
	if err := d.look(); err != nil || d.untouched {
		return 0, err
	}
	if d.clone(); d.temp != "" {
		return 0, nil
	}
	for off := int64(0); off < d.view.Size(); {
		e, err := d.view.Extent(off, d.view.Size()-off)
		if err != nil {
			return n, err
		}
		if e.Kind == block.Data {
			n += e.Len
		}
		off = e.End()
	}
	return n, nil
}

// take makes the view that will be read: a clone where the filesystem can. The stamps are taken before it, and the
// clocks before the stamps.
func (d *cutDisk) take() (err error) {
	if d.untouched {
		return nil
	}
	files := d.view.Files()
	if err := d.closeView(); err != nil {
		return err
	}
	t := d.cut.t
	now := t.clocks(files)
	if d.chain, err = lookAt(t.fs, files); err != nil {
		return err
	}
	d.certain = d.chain.certain(now) && t.fs.Boot() != ""
	d.clone()
	path, parents := d.d.Path, d.d.Parents
	if d.temp != "" {
		path, parents = d.temp, append(slices.Clip(parents), filepath.Dir(path)) // the clone of a link lies elsewhere
	}
	if d.view, err = disk.Open(t.fs, path, d.d.Format, parents...); err != nil {
		return err
	}
	if d.mustStandStill() && !d.chain.still(now) {
		return d.modified("the disk was written to just now")
	}
	return d.identify()
}

// clone makes a reflink clone of the image file, if that can be done at all. Whatever prevents it, the disk itself can
// still be read.
func (d *cutDisk) clone() {
	if d.chain.device() {
		return
	}
	real, err := durable.Resolve(d.cut.t.fs, d.d.Path) // beside a link it could be on another filesystem
	if err != nil {
		return
	}
	temp := durable.TempName(real)
	if d.cut.t.fs.Clone(real, temp) == nil {
		d.temp = temp
	}
}

// mustStandStill says whether the view is right only if nothing is written to the disk while views are taken.
func (d *cutDisk) mustStandStill() bool {
	return !d.cut.t.looking && (d.temp == "" || len(d.cut.disks) > 1)
}

// lookAgain is asked after all views were taken.
func (d *cutDisk) lookAgain() error {
	now, err := lookAt(d.cut.t.fs, d.chain.files)
	if err != nil {
		return err
	}
	if now.equal(d.chain) {
		return nil
	}
	d.certain = false
	if d.mustStandStill() || !(chain{stamps: now.stamps[1:]}).equal(chain{stamps: d.chain.stamps[1:]}) {
		return d.modified("the disk is being written to")
	}
	return nil
}

func (d *cutDisk) modified(msg string) error {
	return fault.New(fault.DiskModified, "%s", msg).At(d.d.Path)
}

func (d *cutDisk) closeView() (err error) {
	if d.view != nil {
		err = d.view.Close()
		d.view = nil
	}
	if d.temp != "" {
		err = errors.Join(err, durable.RemoveIfThere(d.cut.t.fs, d.temp))
		d.temp = ""
	}
	return err
}

func (c *cut) thaw() error {
	var errs []error
	for _, d := range c.disks {
		errs = append(errs, d.closeView())
	}
	return errors.Join(errs...)
}

func (c *cut) release() error {
	errs := []error{c.thaw()}
	for _, d := range c.disks {
		if d.sumsFile != nil {
			errs = append(errs, d.sumsFile.Close())
			d.sumsFile = nil
		}
		errs = append(errs, d.dropResult())
	}
	return errors.Join(errs...)
}

func (d *cutDisk) dropResult() (err error) {
	if d.result != nil {
		err = d.result.redo.remove()
		d.result = nil
	}
	return err
}

func (c *cut) From() hrl.Pos { return c.since }
func (c *cut) At() time.Time { return c.at }

// AppConsistent is never so by itself: nobody has told the applications; see track.Quiesced.
func (c *cut) AppConsistent() bool { return false }

func (c *cut) Disks() []track.CutDisk {
	out := make([]track.CutDisk, len(c.disks))
	for i, d := range c.disks {
		out[i] = d
	}
	return out
}

// Check compares the files of the disks that are read as they are with what they were when the cut was opened.
func (c *cut) Check(ctx context.Context) error {
	for _, d := range c.disks {
		if err := ctx.Err(); err != nil {
			return err
		}
		if d.Frozen() {
			continue
		}
		now, err := lookAt(c.t.fs, d.chain.files)
		if err == nil && !now.equal(d.chain) {
			err = d.modified("the disk was written to while it was being read")
		}
		if err != nil {
			return fault.In(err, c.t.c.VM, d.d.Name)
		}
	}
	c.checked = true
	return nil
}

// Advance makes to the position of the tracker.
func (c *cut) Advance(ctx context.Context, to hrl.Pos) error {
	if to.IsZero() {
		return errors.New("a tracker cannot stand at the zero position")
	}
	rec, err := c.outcome(ctx)
	if err != nil {
		return err
	}
	rec.Position = to
	c.ended = true
	for i, d := range c.disks {
		r := &rec.Disks[i]
		r.Size = d.Size()
		if d.result == nil {
			continue
		}
		r.Seal = d.result.seal
		if r.Redo, err = d.result.redo.finish(); err != nil {
			return fault.In(err, c.t.c.VM, d.d.Name)
		}
	}
	return c.t.commit(rec)
}

// Confirm remembers that nothing changed.
func (c *cut) Confirm(ctx context.Context) error {
	if c.since.IsZero() {
		return c.confirmBase(ctx)
	}
	rec, err := c.outcome(ctx)
	if err != nil {
		return err
	}
	news := false
	for i, d := range c.disks {
		if d.result != nil && d.result.changed || d.Size() != d.prev.Size {
			return fmt.Errorf("disk %s has changed since %v", d.d.Name, c.since)
		}
		news = news || rec.Disks[i].Certain && !d.untouched
	}
	if !news {
		return nil
	}
	return c.t.commit(rec)
}

// confirmBase remembers that the position, to which the tracker was rebased meanwhile, is what the cut has read.
func (c *cut) confirmBase(ctx context.Context) error {
	switch {
	case c.ended:
		return errors.New("the cut has ended")
	case c.t.rec == nil:
		return errors.New("a cut since the beginning is confirmed after Rebase")
	}
	if err := c.stillChecked(ctx); err != nil {
		return err
	}
	rec := c.t.rec.clone()
	for _, d := range c.disks {
		r := rec.disk(d.d.Name)
		if r.Size != d.Size() || d.read != nil && *d.read != r.Seal {
			return fmt.Errorf("disk %s at %v is not what the cut has read", d.d.Name, rec.Position)
		}
		r.Stamps, r.Certain, r.Boot = d.chain.stamps, d.certain, c.t.fs.Boot()
	}
	return c.t.commit(rec)
}

// stillChecked is Check, unless nothing was read since the last one.
func (c *cut) stillChecked(ctx context.Context) error {
	if c.checked {
		return nil
	}
	return c.Check(ctx)
}

// outcome is a copy of the tracker's record in which the disks look like what the cut has read.
func (c *cut) outcome(ctx context.Context) (*record, error) {
	switch {
	case c.ended:
		return nil, errors.New("the cut has ended")
	case c.since.IsZero():
		return nil, errors.New("a cut since the beginning ends with Rebase")
	case c.since != c.t.Position():
		return nil, c.t.lost(c.since)
	}
	if err := c.stillChecked(ctx); err != nil {
		return nil, err
	}
	rec := &record{Format: formatVersion, VM: c.t.c.VM, Position: c.since}
	for _, d := range c.disks {
		if d.result == nil && !d.untouched {
			return nil, fmt.Errorf("disk %s was not scanned to its end", d.d.Name)
		}
		r := *d.prev
		r.Stamps, r.Certain, r.Boot = d.chain.stamps, d.certain, c.t.fs.Boot()
		rec.Disks = append(rec.Disks, r)
	}
	return rec, nil
}

// Close gives up the view. What was not advanced is forgotten.
func (c *cut) Close() error {
	c.ended = true
	if c.t.open == c {
		c.t.open = nil
	}
	return fault.In(c.release(), c.t.c.VM, "")
}

func (d *cutDisk) Name() string     { return d.d.Name }
func (d *cutDisk) Size() int64      { return d.view.Size() }
func (d *cutDisk) BlockSize() int64 { return d.d.BlockSize }
func (d *cutDisk) Untouched() bool  { return d.untouched }
func (d *cutDisk) Frozen() bool     { return d.temp != "" }

func (d *cutDisk) SizeBefore() int64 {
	if d.prev == nil {
		return 0
	}
	return d.prev.Size
}

// Image is the view itself. Whatever is read from it asks for another Check.
func (d *cutDisk) Image() disk.Image {
	d.cut.checked = false
	return d.view
}

// DataWriteGUID is that of the image file itself, not of its parents.
func (d *cutDisk) DataWriteGUID() [16]byte {
	if m, ok := d.view.Image.(interface{ DataWriteGUID() vhdx.GUID }); ok {
		return m.DataWriteGUID()
	}
	return [16]byte{}
}
