package failover

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"sitrep/failover/home"
	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/replica"
)

// homeJob is the engine that brings disks home, with the recovered disks open. Its disks are closed by the function that is
// returned.
func (j *Job) homeJob(ctx context.Context, st replica.State, d host.Definition, disks []HomeDisk, again bool) (*home.Job, func() error, error) {
	h := &home.Job{VM: j.VM, FS: j.FS, StateDir: j.Home.StateDir, Again: again, Meter: j.Meter, Log: j.Log, Now: j.Now, Pause: j.Pause, InUse: j.InUse}
	if fb := st.Failover.Failback; fb != nil {
		h.ID = fb.ID
	}
	var open []disk.Image
	shut := func() error {
		var errs []error
		for _, img := range open {
			errs = append(errs, img.Close())
		}
		return errors.Join(errs...)
	}
	for _, to := range disks {
		from := diskOf(d, to.Name)
		if from == nil {
			return nil, nil, errors.Join(fault.New(fault.FailoverFailed, "the recovered VM has no disk of this name").Of(j.VM, to.Name), shut())
		}
		img, err := j.madeIn(Unplanned, st.Failover).open(ctx, *from)
		if err != nil {
			return nil, nil, errors.Join(fault.In(err, j.VM, to.Name), shut())
		}
		open = append(open, img)
		at := to.target(st)
		at.Source = img
		h.Disks = append(h.Disks, at)
	}
	if err := lengthen(h, st); err != nil {
		return nil, nil, errors.Join(err, shut())
	}
	return h, shut, nil
}

func diskOf(d host.Definition, name string) *host.Disk {
	for i := range d.Disks {
		if d.Disks[i].Name == name {
			return &d.Disks[i]
		}
	}
	return nil
}

// bring makes the disks at home what the recovered ones are, and returns how much was brought that the ledger does not count
// yet: also by a run that was killed. again says that another pass follows.
func (f *homeward) bring(ctx context.Context, st replica.State, d host.Definition, again bool) (sent int64, err error) {
	h, shut, err := f.homeJob(ctx, st, d, f.Home.Disks, again)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, shut()) }()
	if _, err := h.Bring(ctx); err != nil {
		return 0, err
	}
	brought, err := h.Brought()
	return max(0, brought-(st.Failover.Failback.Sent-st.Failover.Failback.Made)), err
}

// makeTargets makes the disks at home that are not there, in the format that they had, and returns the bytes of data in those that
// this failback has made. A format whose maps are written late
// is read while the VM is held still.
func (f *homeward) makeTargets(ctx context.Context, st replica.State) (made int64, err error) {
	_, missing, err := f.disksThere()
	if err != nil {
		return 0, err
	}
	if len(missing) == 0 {
		return f.homeDisks(st).CreateTargets(ctx) // counts what a run that was killed has made
	}
	d, err := f.recovered(st)
	if err != nil {
		return 0, err
	}
	thaw, err := f.freezeIf(ctx, d.Name, f.Format == disk.QCOW2 || f.Format == disk.VHDX)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, thaw()) }()
	h, shut, err := f.homeJob(ctx, st, d, f.Home.Disks, false)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, shut()) }()
	for i := range h.Disks {
		if s := st.Disk(h.Disks[i].Name); s != nil {
			h.Disks[i].SectorSize = s.SectorSize
		}
	}
	return h.CreateTargets(ctx)
}

// homeDisks is the engine without the recovered disks.
func (j *Job) homeDisks(st replica.State) *home.Job {
	h := &home.Job{VM: j.VM, ID: st.Failover.Failback.ID, FS: j.FS, StateDir: j.Home.StateDir, Meter: j.Meter, Log: j.Log, Now: j.Now, Pause: j.Pause, InUse: j.InUse}
	for _, to := range j.Home.Disks {
		h.Disks = append(h.Disks, to.target(st))
	}
	return h
}

// target is the disk as it is brought home. Where the site file does not say its format, it is what it was when protection was
// enabled: to guess again could be misled by what the guest has written.
func (d HomeDisk) target(st replica.State) home.Disk {
	t := home.Disk{Name: d.Name, Target: d.Path, Format: disk.Format(d.Format), LogDir: d.LogDir, Parents: d.Parents}
	if s := st.Disk(d.Name); s != nil && t.Format == disk.Auto {
		t.Format = disk.Format(s.Format)
	}
	return t
}

// writableTargets refuses a failback into disks of a format that is not written to in place.
func (j *Job) writableTargets(st replica.State) error {
	for _, d := range j.Home.Disks {
		if d.target(st).Format == disk.QCOW2 {
			e := fault.New(fault.DiskUnsupported, "the disk at home is a qcow2, and nothing is written into those: name another file, which need not be there, "+
				"with its format in the site file (path: %s, format: raw); the VM at home has to use that one then", strings.TrimSuffix(d.Path, filepath.Ext(d.Path))+".raw").
				At(d.Path).Of(j.VM, d.Name)
			e.Cause, e.Mend = "Nothing is written into a qcow2 in place.", "Name the other file in the site file."
			return e
		}
	}
	return nil
}

// forget removes what a failback has left beside the disks that it has brought home.
func (j *Job) forget(ctx context.Context, st replica.State) error { return j.homeDisks(st).Forget(ctx) }

// whole completes what was begun to be written at home, so that no disk there is half old and half new, and forgets the rest.
func (j *Job) whole(ctx context.Context, st replica.State) error {
	h := j.homeDisks(st)
	if _, err := h.Resume(ctx); err != nil {
		return err
	}
	return h.Forget(ctx)
}

// Price is what a failback will bring home, and how long it takes, judged by a comparison that was really made.
type Price struct {
	Disks []DiskPrice
	// Compare is how long the comparison took, and Rate the bytes per second at which it read.
	Compare time.Duration
	Rate    float64
}

// DiskPrice is one disk, in bytes; Different is exact.
type DiskPrice struct {
	Name            string
	Size, Different int64
}

// Cost is how long a mode takes, and for how much of it the VM is down.
type Cost struct{ Total, Downtime time.Duration }

// Price compares the disks of the recovered VM with those at home. It writes nothing, and holds no VM still: what the VM writes
// meanwhile may be counted or not.
func (j *Job) Price(ctx context.Context) (p Price, err error) {
	st, err := j.load(ctx)
	if err == nil {
		err = Allowed(st, DoFailback)
	}
	if err != nil {
		return p, j.in(err)
	}
	if err := j.writableTargets(st); err != nil {
		return p, j.in(err)
	}
	d, err := j.recovered(st)
	if err != nil {
		return p, j.in(err)
	}
	there, missing, err := j.disksThere()
	if err != nil {
		return p, j.in(err)
	}
	for _, to := range missing { // made as a whole
		x, err := j.wholePrice(ctx, st, d, to)
		if err != nil {
			return p, j.in(err)
		}
		p.Disks = append(p.Disks, x)
	}
	h, shut, err := j.homeJob(ctx, st, d, there, false)
	if err != nil {
		return p, j.in(err)
	}
	defer func() { err = errors.Join(err, shut()) }()
	prices, err := h.Price(ctx)
	var read int64
	for _, x := range prices {
		p.Disks = append(p.Disks, DiskPrice{x.Name, x.Size, x.Differs})
		p.Compare += x.Took
		read += x.Read + x.ReadTarget
	}
	if s := p.Compare.Seconds(); s > 0 {
		p.Rate = float64(read) / s
	}
	return p, j.in(err)
}

// disksThere says which disks at home are there, and which have to be made.
func (j *Job) disksThere() (there, missing []HomeDisk, err error) {
	for _, d := range j.Home.Disks {
		_, err := j.FS.Stat(d.Path)
		switch {
		case err == nil:
			there = append(there, d)
		case errors.Is(err, fs.ErrNotExist):
			missing = append(missing, d)
		default:
			return nil, nil, fault.In(err, j.VM, d.Name)
		}
	}
	return there, missing, nil
}

// wholePrice is the price of a disk that is not there: all that the recovered one holds.
func (j *Job) wholePrice(ctx context.Context, st replica.State, d host.Definition, to HomeDisk) (p DiskPrice, err error) {
	from := diskOf(d, to.Name)
	if from == nil {
		return p, fault.New(fault.FailoverFailed, "the recovered VM has no disk of this name").Of(j.VM, to.Name)
	}
	img, err := j.madeIn(Unplanned, st.Failover).open(ctx, *from)
	if err != nil {
		return p, fault.In(err, j.VM, to.Name)
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	p = DiskPrice{Name: to.Name, Size: img.Size()}
	for off := int64(0); off < img.Size(); {
		if err := ctx.Err(); err != nil {
			return p, fault.FromOS(err)
		}
		e, err := img.Extent(off, img.Size()-off)
		if err != nil {
			return p, fault.In(err, j.VM, to.Name)
		}
		if e.Kind == block.Data {
			p.Different += e.Len
		}
		off = e.End()
	}
	return p, nil
}

// writes is how often a byte that differs is written: into a log, and from there, read again, into the disk.
const writes = 3

// Cost judges a mode. The second pass of minimal downtime reads the recovered disks only: half of what was compared.
func (p Price) Cost(m Mode) Cost {
	var different int64
	for _, d := range p.Disks {
		different += d.Different
	}
	write := time.Duration(0)
	if p.Rate > 0 {
		write = time.Duration(float64(different*writes) / p.Rate * float64(time.Second))
	}
	whole := p.Compare + write
	if m == DuringFailover {
		return Cost{Total: whole, Downtime: whole}
	}
	return Cost{Total: whole + p.Compare/2, Downtime: p.Compare / 2}
}

// tolerable is the downtime that is not worth a second pass.
const tolerable = 10 * time.Second

// Recommended is the mode with one pass where its downtime hardly matters, else the one with less of it.
func (p Price) Recommended() Mode {
	if p.Cost(DuringFailover).Downtime <= tolerable {
		return DuringFailover
	}
	return MinimalDowntime
}
