package home

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/sums"
)

// stampsOf are the stamps of a disk's files; nil of a block device, whose times say nothing.
func stampsOf(d *disk.Disk) ([]durable.Stamp, error) {
	if d.Kind() == disk.Device {
		return nil, nil
	}
	return d.Stamps()
}

// currentStamps are the stamps of files as they are now.
func currentStamps(fsys durable.FS, files []string) ([]durable.Stamp, error) {
	out := make([]durable.Stamp, len(files))
	for i, name := range files {
		s, err := fsys.Stat(name)
		if err != nil {
			return nil, fault.FromOS(err)
		}
		out[i] = s
	}
	return out, nil
}

// sameStamps says whether files were not written to between two looks. What number a filesystem has may change when a
// machine is started again, and says nothing.
func sameStamps(a, b []durable.Stamp) bool {
	return slices.EqualFunc(a, b, func(x, y durable.Stamp) bool {
		x.Device, y.Device = 0, 0
		return x == y
	})
}

// useBase has the original's content told by the sums of the pass before, if its files are what that pass has left, and
// the sums what it has kept.
func (p *pass) useBase(b *base) {
	if b == nil || b.Stamps == nil || b.Size != p.dst.Size() || !sameStamps(b.Stamps, p.stamps) {
		return
	}
	f, err := p.job.FS.Open(b.Sums)
	if err != nil {
		return
	}
	t := sums.NewTable(f)
	seal, err := t.Seal(block.Count(b.Size, sumBlock))
	if err != nil || seal != b.Seal {
		p.job.Log.Info("the sums of the pass before are not there as they were left, so the original is read", "vm", p.job.VM, "disk", p.disk.Name)
		f.Close()
		return
	}
	p.base, p.basefd = t, f
}

// Ticks of filesystems' clocks, with a wide margin; package track/scan has the reasons.
const (
	coarseTick = 2 * time.Second
	fineTick   = 100 * time.Millisecond
	waits      = 25 // for so many pauses of fineTick a clock is waited for
)

// settle waits until the clocks of the disk's filesystems have gone past its last change, and returns the stamps: equal
// ones later mean that nothing was written since. nil when that cannot be had.
func (j *Job) settle(ctx context.Context, d *diskRecord) ([]durable.Stamp, error) {
	files, err := j.filesOf(d)
	if err != nil || files == nil {
		return nil, err
	}
	for range waits {
		clocks, err := j.clocks(files)
		if err != nil {
			return nil, nil // a folder that no file can be made in
		}
		stamps, err := currentStamps(j.FS, files)
		if err != nil {
			return nil, err
		}
		if settled(stamps, clocks) {
			return stamps, nil
		}
		if err := j.pause(ctx, fineTick); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// filesOf are the files of an original; nil of a block device.
func (j *Job) filesOf(d *diskRecord) ([]string, error) {
	m, err := disk.Open(j.FS, d.Target, d.Format, d.Parents...)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	if m.Kind() == disk.Device {
		return nil, nil
	}
	return m.Files(), nil
}

// clocks are the times of the filesystems that files lie on.
func (j *Job) clocks(files []string) ([]int64, error) {
	seen := map[string]int64{}
	out := make([]int64, len(files))
	for i, name := range files {
		dir := filepath.Dir(name)
		now, ok := seen[dir]
		if !ok {
			var err error
			if now, err = j.clock(name); err != nil {
				return nil, err
			}
			seen[dir] = now
		}
		out[i] = now
	}
	return out, nil
}

// clock makes a file beside name, to see what time it gets.
func (j *Job) clock(name string) (int64, error) {
	probe := durable.TempName(name)
	f, err := j.FS.Create(probe)
	if err != nil {
		return 0, err
	}
	s, err := f.Stamp()
	return changed(s), errors.Join(err, f.Close(), j.FS.Remove(probe))
}

// changed is when a file was last changed, by the clock of its filesystem, in nanoseconds.
func changed(s durable.Stamp) int64 {
	if s.ChangeTime != 0 {
		return s.ChangeTime
	}
	return s.ModTime
}

func settled(stamps []durable.Stamp, clocks []int64) bool {
	for i, s := range stamps {
		tick := coarseTick
		if changed(s)%int64(10*time.Millisecond) != 0 {
			tick = fineTick
		}
		if time.Duration(clocks[i]-changed(s)) <= tick {
			return false
		}
	}
	return true
}
