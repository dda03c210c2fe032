package scan

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// stamp is what one file looked like.
type stamp struct {
	durable.Stamp
	// Device says that the file is a block device, whose times say nothing about its content. Written is then the
	// count of sectors written to it since the machine started, where the system keeps one.
	Device  bool   `json:"block_device,omitempty"`
	Written uint64 `json:"sectors_written,omitempty"`
}

// changed is when the file was last changed by the clock of its filesystem.
func (s stamp) changed() time.Time { return time.Unix(0, max(s.ModTime, s.ChangeTime)) }

// grain is how far the clock of a filesystem may stand still, judged by a time that it gave: FAT and old network
// filesystems count in seconds, all others in the ticks of the kernel, 10 ms or less, or finer.
func (s stamp) grain() time.Duration {
	const fine = 10 * time.Millisecond
	if s.ModTime%int64(fine) == 0 || s.ChangeTime%int64(fine) == 0 {
		return coarseGrain
	}
	return 5 * fine
}

// coarseGrain is the largest grain of a filesystem in use: 2 s, of FAT.
const coarseGrain = 2 * time.Second

// chain is the files of one disk at one moment, the image itself first and then its parents.
//
// Two equal chains mean that nothing was written in between, if the times of the first one were settled: if the clock of
// the filesystem had moved on since the last write by more than its grain. Else a write within the same tick would
// leave the same time. What clock that is, only a file made on the same filesystem tells: the one of a file server
// need not be ours.
type chain struct {
	files  []string
	stamps []stamp
	// synced says that the files were synchronized first. Then the pages that another program maps are clean, and its next
	// write to one of them moves the times.
	synced bool
}

func (c chain) equal(o chain) bool { return slices.Equal(c.stamps, o.stamps) }

// device says whether any of the files is a block device.
func (c chain) device() bool {
	return slices.ContainsFunc(c.stamps, func(s stamp) bool { return s.Device })
}

// lookAt takes the stamps of files.
func lookAt(fsys durable.FS, files []string) (chain, error) {
	c := chain{files: files, synced: true}
	for _, name := range files {
		s, synced, err := stampOf(fsys, name)
		if err != nil {
			return c, err
		}
		c.stamps = append(c.stamps, s)
		c.synced = c.synced && synced
	}
	return c, nil
}

func stampOf(fsys durable.FS, name string) (s stamp, synced bool, err error) {
	f, err := fsys.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return s, false, fault.Wrap(fault.DiskMissing, err, "cannot open the disk").At(name)
	}
	if err != nil {
		return s, false, err
	}
	defer f.Close()
	synced = f.Sync() == nil // some systems refuse it on a file that is open for reading only
	s.Stamp, err = f.Stamp()
	s.Written, s.Device = deviceWrites(name)
	return s, synced, err
}

// clocks is the time on the filesystems of a chain, one for each of its files. It has to be asked before the stamps are
// taken that it is compared with.
type clocks []time.Time

// unaskedClock is how far a clock that cannot be asked may be from ours.
const unaskedClock = 24 * time.Hour

func (t *Tracker) clocks(files []string) clocks {
	folders := map[string]time.Time{}
	out := make(clocks, len(files))
	for i, name := range files {
		dir := filepath.Dir(name)
		if _, ok := folders[dir]; !ok {
			folders[dir] = t.clock(name)
		}
		out[i] = folders[dir]
	}
	return out
}

// clock makes a file beside name, to see what time it gets.
func (t *Tracker) clock(name string) time.Time {
	unasked := t.c.Now().Add(-unaskedClock)
	probe := durable.TempName(name)
	f, err := t.fs.Create(probe)
	if err != nil {
		return unasked
	}
	s, serr := f.Stamp()
	if err := errors.Join(serr, f.Close(), t.fs.Remove(probe)); err != nil {
		return unasked
	}
	return stamp{Stamp: s}.changed()
}

// settled says whether all times of the chain are further back than margin and than the clock's grain.
func (c chain) settled(now clocks, margin time.Duration) bool {
	for i, s := range c.stamps {
		if !s.Device && now[i].Sub(s.changed()) <= max(margin, s.grain()) {
			return false
		}
	}
	return true
}

// certain says whether a chain that is equal to c, at any later time, means that nothing was written to the disk.
func (c chain) certain(now clocks) bool {
	return c.synced && !c.device() && c.settled(now, coarseGrain)
}
