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

// changed is when the file was last changed, in nanoseconds by the clock of its filesystem.
func (s stamp) changed() int64 {
	if s.ChangeTime != 0 {
		return s.ChangeTime
	}
	return s.ModTime
}

// chain is the files of one disk at one moment, the image itself first and then its parents.
//
// Two equal chains mean that nothing was written in between, if the first one was settled: if, before it was looked at, the
// clock of the filesystem had gone past the last change. Any write after that gets a later time. Else a write within the
// same tick would leave the same time; ticks are 10 ms or less on most filesystems, and 2 s on FAT. What clock that is, and
// how it ticks, only a file made beside the disk tells: the one of a file server need not be ours.
type chain struct {
	files  []string
	stamps []stamp
	// synced says that the files were synchronized first, where that tells (durable.TellsWrites). Then the pages that another program maps are clean, and its next
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
	// Some systems refuse it on a file that is open for reading only, and on some filesystems it says nothing of the next write.
	synced = f.Sync() == nil && durable.TellsWrites(f)
	s.Stamp, err = f.Stamp()
	s.Written, s.Device = deviceWrites(name)
	return s, synced, err
}

// clock is the time on a filesystem. It has to be asked before the stamps are taken that it is compared with.
type clock struct {
	now   int64 // nanoseconds since 1970
	asked bool  // else it is our own, because the filesystem cannot be asked
}

// clocks asks the clocks of the folders of files.
func (t *Tracker) clocks(files []string) []clock {
	folders := map[string]clock{}
	out := make([]clock, len(files))
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
func (t *Tracker) clock(name string) clock {
	ours := clock{now: t.c.Now().UnixNano()}
	if _, device := deviceWrites(name); device {
		return ours // its times say nothing, and its folder is not one for files
	}
	probe := durable.TempName(name)
	f, err := t.fs.Create(probe)
	if err != nil {
		return ours // a folder that cannot be written to
	}
	s, serr := f.Stamp()
	if err := errors.Join(serr, f.Close(), t.fs.Remove(probe)); err != nil {
		return ours
	}
	return clock{now: stamp{Stamp: s}.changed(), asked: true}
}

// settled says whether the clocks had gone past all changes of the chain by more than margin, or, where our own clock
// stands for one that could not be asked, by more than unasked.
func (c chain) settled(now []clock, margin func(stamp) time.Duration, unasked time.Duration) bool {
	for i, s := range c.stamps {
		m := margin(s)
		if !now[i].asked {
			m = unasked
		}
		if !s.Device && time.Duration(now[i].now-s.changed()) <= m {
			return false
		}
	}
	return true
}

// still says whether equal stamps, during this cut, mean that nothing was written.
func (c chain) still(now []clock) bool {
	return c.settled(now, func(stamp) time.Duration { return 0 }, coarseTick)
}

// Ticks of filesystems: coarseTick is the longest in use, 2 s, of FAT. A time that is no multiple of 10 ms comes from a
// clock that ticks at least every 10 ms (one of FAT, of HFS+ or of a server that cuts seconds off never shows such a time);
// fineTick is ten times that.
const (
	coarseTick = 2 * time.Second
	fineTick   = 100 * time.Millisecond
)

func tick(s stamp) time.Duration {
	if s.changed()%int64(10*time.Millisecond) != 0 {
		return fineTick
	}
	return coarseTick
}

// certain says whether a chain that is equal to c, at any later time, means that nothing was written to the disk. Clocks
// are corrected now and then: that is what the margins are for.
func (c chain) certain(now []clock) bool {
	return c.synced && !c.device() && c.settled(now, tick, 24*time.Hour)
}
