package home

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"sitrep/internal/disk"
	"sitrep/internal/disk/vhd"
	"sitrep/internal/disk/vhdx"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/sums"
)

// pass is one comparison of one disk.
type pass struct {
	job    *Job
	disk   *Disk
	dst    *disk.Disk
	base   *sums.Table // nil: the original is read
	basefd durable.File
	stamps []durable.Stamp // of the original's files; nil when they say nothing
}

// hold makes durable what others have written to the original: else a power cut could give it other bytes, and other
// times, than those that the log is made for. Some systems refuse that on a file that is open for reading; then a power
// cut is found out by the stamps.
func (j *Job) hold(files []string) error {
	for _, name := range files {
		f, err := j.FS.Open(name)
		if err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			j.Log.Debug("the original cannot be synchronized", "file", name, "error", err)
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

// begin opens the original, calls hold with its files, and looks at what an earlier pass knows of it.
func (j *Job) begin(rec *record, i int, hold func(files []string) error) (p *pass, err error) {
	d := &j.Disks[i]
	format := d.Format
	if rec != nil { // what it was found to be, whatever its guest has written since
		format = rec.Disks[i].Format
	}
	dst, err := disk.Open(j.FS, d.Target, format, d.Parents...)
	if err != nil {
		return nil, err
	}
	p = &pass{job: j, disk: d, dst: dst}
	if err = hold(dst.Files()); err == nil {
		p.stamps, err = stampsOf(dst)
	}
	if err == nil {
		err = p.checkSizes()
	}
	if err == nil && dst.Kind() == disk.Device && d.LogDir == "" {
		err = fault.New(fault.DiskUnsupported, "the change log of a block device needs a folder, and none was given").At(d.Target)
	}
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	if rec != nil && rec.Phase == idle {
		p.useBase(rec.Disks[i].Base)
	}
	return p, nil
}

func (p *pass) close() error {
	err := p.dst.Close()
	if p.basefd != nil {
		err = errors.Join(err, p.basefd.Close())
	}
	return err
}

// checkSizes refuses a recovered disk that the original cannot become.
func (p *pass) checkSizes() error {
	from, to := p.dst.Size(), p.disk.Source.Size()
	switch {
	case to < from:
		return fault.New(fault.DiskShrunk, "the recovered disk has %d bytes and the original %d: it cannot be made smaller", to, from).At(p.disk.Target)
	case to == from:
		return nil
	case to > hrl.MaxDisk:
		return fault.New(fault.DiskUnsupported, "the recovered disk has %d bytes, more than 64 TiB", to).At(p.disk.Target)
	}
	return p.checkGrowth(to)
}

// checkGrowth says whether the original can be made as large: raw files, fixed VHDs and dynamic VHDX can.
func (p *pass) checkGrowth(to int64) error {
	path, kind, format := p.disk.Target, p.dst.Kind(), p.dst.Format()
	switch {
	case kind == disk.RawFile:
		return nil
	case kind == disk.Fixed && format == disk.VHD:
		s, err := p.job.FS.Stat(path)
		if err == nil && s.Size != p.dst.Size()+vhd.FooterSize {
			err = fault.New(fault.DiskUnsupported, "the recovered disk is larger, and the footer of the original does not lie right behind its %d bytes",
				p.dst.Size()).At(path)
		}
		return err
	}
	if m, ok := p.dst.Image.(*vhdx.Image); ok && kind == disk.Dynamic {
		return m.CheckGrow(to)
	}
	return fault.New(fault.DiskUnsupported, "the recovered disk is larger than the original's %d bytes: make the original (%s, %s) as large with the tools of its hypervisor",
		p.dst.Size(), format, kind).At(path)
}

// comparison prepares to compare; the caller fills in what becomes of the result.
func (p *pass) comparison(task string) *comparison {
	meter := p.job.Meter
	meter.Begin(task, p.disk.Source.Size(), 0)
	return &comparison{src: p.disk.Source, dst: p.dst, base: p.base, tasks: p.job.Tasks, count: func(n int64) { meter.Add(task, n) }}
}

func (p *pass) priceOf(c *comparison, began time.Time) DiskPrice {
	return DiskPrice{Name: p.disk.Name, Size: p.disk.Source.Size(), SizeBefore: p.dst.Size(), Read: c.read.Load(), ReadTarget: c.readTarget.Load(),
		Differs: c.differs.Load(), Data: c.data.Load(), Allocates: c.allocates.Load(), BySums: p.base != nil, Took: time.Since(began)}
}

func (j *Job) price(ctx context.Context, rec *record, i int) (_ DiskPrice, err error) {
	began := time.Now()
	p, err := j.begin(rec, i, func([]string) error { return nil })
	if err != nil {
		return DiskPrice{}, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	task := "compare " + p.disk.Name
	c := p.comparison(task)
	defer j.Meter.End(task)
	if err := c.run(ctx); err != nil {
		return DiskPrice{}, err
	}
	return p.priceOf(c, began), nil
}

// capture compares all disks and seals a log of what differs of each. It returns the record of that, saved: the originals
// will become what the logs say.
func (j *Job) capture(ctx context.Context) (rec *record, _ []Result, err error) {
	was, err := j.load()
	if err != nil {
		return nil, nil, err
	}
	if was != nil {
		err = j.holdRecord()
	}
	if err == nil {
		err = j.sweep(was)
	}
	if err != nil {
		return nil, nil, err
	}
	rec = &record{Version: recordVersion, VM: j.VM, ID: j.ID, Phase: sealed, CutAt: j.Now()}
	from := hrl.Pos{ID: j.ID}
	if was != nil {
		from = was.At
		if was.Phase == applying { // its logs are lost, and what the originals hold was never on a disk
			rec.Phase = applying
		}
		from.Seq = max(from.Seq, was.To.Seq)
		rec.Brought = was.Brought
	}
	rec.At, rec.To = from, from.Next()
	if err := j.folders(); err != nil {
		return nil, nil, err
	}
	var results []Result
	for i := range j.Disks {
		d, price, err := j.captureDisk(ctx, was, rec, i)
		if err != nil {
			return nil, nil, fault.In(j.spaceOf(j.undo(was, err), i), j.VM, j.Disks[i].Name)
		}
		rec.Disks = append(rec.Disks, d)
		results = append(results, Result{DiskPrice: price})
	}
	if err := j.checkSpace(results); err != nil {
		return nil, nil, j.undo(was, err)
	}
	return rec, results, j.save(rec)
}

// undo removes what a capture that failed has made. What cannot be removed now is removed by the next one.
func (j *Job) undo(was *record, err error) error {
	if serr := j.sweep(was); serr != nil {
		j.Log.Debug("the files of a capture that failed are left behind", "vm", j.VM, "error", serr)
	}
	return err
}

func (j *Job) folders() error {
	if err := j.FS.MkdirAll(j.StateDir); err != nil {
		return err
	}
	for i := range j.Disks {
		if dir := j.Disks[i].LogDir; dir != "" {
			if err := j.FS.MkdirAll(dir); err != nil {
				return err
			}
		}
	}
	return nil
}

func (j *Job) captureDisk(ctx context.Context, was, rec *record, i int) (out diskRecord, price DiskPrice, err error) {
	began := time.Now()
	p, err := j.begin(was, i, j.hold)
	if err != nil {
		return out, price, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	out = diskRecord{Name: p.disk.Name, Target: p.disk.Target, Format: p.dst.Format(), Kind: p.dst.Kind(), Parents: p.disk.Parents, SizeBefore: p.dst.Size(),
		Size: p.disk.Source.Size(), Stamps: p.stamps}
	task := "capture " + p.disk.Name
	c := p.comparison(task)
	defer j.Meter.End(task)
	log := &lazyLog{job: j, disk: p.disk, id: hrl.Identity{Replica: j.ID, VM: j.VM, Disk: p.disk.Name, Kind: hrl.Redo, From: rec.At, To: rec.To,
		SizeBefore: out.SizeBefore, Size: out.Size, BlockSize: grain, CutAt: rec.CutAt}}
	c.found = log.add
	next, err := j.newTable(p.disk, rec.To)
	if err != nil {
		return out, price, err
	}
	if next != nil {
		c.next = sums.NewTable(next)
	}
	if err = c.run(ctx); err == nil {
		err = p.unchanged()
	}
	if err == nil {
		out.Log, err = log.seal()
	}
	if next != nil {
		if err == nil {
			err = next.Sync()
		}
		err = errors.Join(err, next.Close())
		out.Next = &base{Sums: next.Name(), Seal: c.seal, Size: out.Size}
	}
	if err != nil {
		return out, price, errors.Join(err, log.abort())
	}
	return out, p.priceOf(c, began), nil
}

// newTable makes the file of the sums of this pass; nil when none are wanted.
func (j *Job) newTable(d *Disk, to hrl.Pos) (durable.File, error) {
	if !j.Again {
		return nil, nil
	}
	path := j.sumsPath(d, to)
	if err := durable.RemoveIfThere(j.FS, path); err != nil {
		return nil, err
	}
	f, err := j.FS.Create(path)
	if err != nil {
		return nil, err
	}
	if err := j.FS.SyncDir(filepath.Dir(path)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// unchanged says whether nobody has written to the original while it was compared.
func (p *pass) unchanged() error {
	now, err := currentStamps(p.job.FS, p.dst.Files())
	if err == nil && p.stamps != nil && !sameStamps(now, p.stamps) {
		err = fault.New(fault.DiskModified, "somebody wrote to the original while it was compared with the recovered disk").At(p.disk.Target)
	}
	return err
}

// lazyLog is a change log that exists from its first record on.
type lazyLog struct {
	job  *Job
	disk *Disk
	id   hrl.Identity

	mu sync.Mutex // guards the making of w
	w  *hrl.Writer
}

func (l *lazyLog) writer() (_ *hrl.Writer, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.w == nil {
		l.w, err = hrl.Create(l.job.FS, l.job.logPath(l.disk, l.id.To), l.id)
	}
	return l.w, err
}

func (l *lazyLog) add(off int64, data []byte) error {
	w, err := l.writer()
	if err != nil {
		return err
	}
	return w.Append(off, data, nil)
}

// seal ends the log and returns its path; "" when there is none.
func (l *lazyLog) seal() (string, error) {
	if l.w == nil {
		return "", nil
	}
	_, err := l.w.Seal()
	return l.job.logPath(l.disk, l.id.To), err
}

func (l *lazyLog) abort() error {
	if l.w == nil {
		return nil
	}
	return l.w.Abort()
}

// slack is how much more space than what is known to be needed has to be free, in bytes: for tables, and the record.
const slack = 4 << 20

// checkSpace refuses to begin writing when the volume of an original cannot take what is written where nothing was.
func (j *Job) checkSpace(results []Result) error {
	need := map[string]int64{}
	for i, r := range results {
		dir := filepath.Dir(j.Disks[i].Target)
		if r.Allocates > 0 {
			need[dir] += r.Allocates
		}
	}
	for dir, n := range need {
		if free, ok := durable.Free(j.FS, dir); ok && free < n+slack {
			return fault.New(fault.NoSpace, "%d bytes have to be free for the disks to be brought home, and the volume has %d; nothing was written to them",
				n+slack, free).At(dir)
		}
	}
	return nil
}

// spaceOf adds numbers to an error of a volume that became full while a log was written.
func (j *Job) spaceOf(err error, i int) error {
	if !fault.Is(err, fault.NoSpace) {
		return err
	}
	free, _ := durable.Free(j.FS, j.Disks[i].logDir())
	return fault.Wrap(fault.NoSpace, err, "the change log takes as many bytes as differ, and the volume has %d; the disk was not written to", free).
		At(j.Disks[i].logDir())
}
