package crashfs

import (
	"maps"
	"slices"
	"syscall"

	"sitrep/internal/block"
	"sitrep/internal/durable"
)

const (
	pageSize   = 4096
	sectorSize = 512
	// maxVersions bounds how many unsynced versions of one page, and sizes of one file, are remembered: the latest ones.
	maxVersions = 8
)

// page is one page of a file. It is never changed, only replaced, so that versions and copies can share it.
type page [pageSize]byte

// content is what a file holds. A page that is not there is zero and takes no space.
type content struct {
	pages        map[int64]*page
	size         int64
	mtime, ctime int64
}

func (c content) clone() content {
	c.pages = maps.Clone(c.pages)
	return c
}

// inode is a file or a folder, apart from its names.
type inode struct {
	id     uint64
	dir    bool
	links  int // names that a process sees
	opens  int // open files and locks
	locked bool

	now   content // what a process sees
	disk  content // what the last Sync made durable
	alloc block.Set
	// What was written since the last Sync: each page's versions, oldest first (nil: zero), and the sizes.
	dirty map[int64][]*page
	sizes []int64

	names, diskNames map[string]*inode // of a folder: what a process sees, and what SyncDir made durable
}

func (s *FS) newInode(dir bool) *inode {
	s.nextID++
	f := &inode{id: s.nextID, dir: dir, dirty: map[int64][]*page{}}
	f.now.pages, f.disk.pages = map[int64]*page{}, map[int64]*page{}
	if dir {
		f.names, f.diskNames = map[string]*inode{}, map[string]*inode{}
	}
	s.touch(f)
	f.disk.mtime, f.disk.ctime = f.now.mtime, f.now.ctime
	return f
}

// epoch is the first time of the logical clock, in nanoseconds since 1970; tick is its step.
const (
	epoch = 1_000_000_000_000_000_000
	tick  = 1_000_000
)

// touch sets the times after a change of content; touchName after a change of a name only.
func (s *FS) touch(f *inode) {
	s.touchName(f)
	f.now.mtime = f.now.ctime
}

func (s *FS) touchName(f *inode) { f.now.ctime = epoch + s.clock*tick }

func (f *inode) stamp() durable.Stamp {
	return durable.Stamp{Device: 1, Inode: f.id, Size: f.now.size, ModTime: f.now.mtime, ChangeTime: f.now.ctime}
}

func (f *inode) readAt(p []byte, off int64) int {
	if off >= f.now.size {
		return 0
	}
	p = p[:min(int64(len(p)), f.now.size-off)]
	for done := 0; done < len(p); {
		i, at := (off+int64(done))/pageSize, int((off+int64(done))%pageSize)
		part := p[done:min(len(p), done+pageSize-at)]
		if pg := f.now.pages[i]; pg != nil {
			copy(part, pg[at:])
		} else {
			clear(part)
		}
		done += len(part)
	}
	return len(p)
}

func (s *FS) writeAt(f *inode, p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		i, at := (off+int64(done))/pageSize, int((off+int64(done))%pageSize)
		if !s.hasRoom(f, i) {
			break
		}
		pg := f.copyPage(i)
		done += copy(pg[at:], p[done:])
		s.setPage(f, i, pg)
	}
	if end := off + int64(done); done > 0 && end > f.now.size {
		f.setSize(end)
	}
	s.touch(f)
	if done < len(p) {
		return done, syscall.ENOSPC
	}
	return done, nil
}

func (f *inode) copyPage(i int64) *page {
	pg := new(page)
	if old := f.now.pages[i]; old != nil {
		*pg = *old
	}
	return pg
}

func (f *inode) setSize(size int64) {
	f.now.size = size
	f.sizes = append(f.sizes, size)
	if len(f.sizes) > maxVersions {
		f.sizes = slices.Delete(f.sizes, 0, 1)
	}
}

// hasRoom says whether page i can be written: it is there and f's alone, or the capacity allows one more.
func (s *FS) hasRoom(f *inode, i int64) bool {
	old := f.now.pages[i]
	return s.capacity == 0 || old != nil && s.shared[old] == 0 || s.allocated+pageSize <= s.capacity
}

// setPage puts pg (nil: a hole) in the place of page i.
func (s *FS) setPage(f *inode, i int64, pg *page) {
	old := f.now.pages[i]
	s.release(old)
	whole := block.Range{Off: i * pageSize, Len: pageSize}
	if pg == nil {
		delete(f.now.pages, i)
		f.alloc.Remove(whole)
	} else {
		s.allocated += pageSize
		f.now.pages[i] = pg
		if old == nil {
			f.alloc.Add(whole)
		}
	}
	f.note(i, pg)
}

// note remembers a version of page i that is not synced.
func (f *inode) note(i int64, pg *page) {
	versions := append(f.dirty[i], pg)
	if len(versions) > maxVersions {
		versions = slices.Delete(versions, 0, 1)
	}
	f.dirty[i] = versions
}

// release gives back one use of a page.
func (s *FS) release(pg *page) {
	switch {
	case pg == nil:
	case s.shared[pg] > 1:
		s.shared[pg]--
	case s.shared[pg] == 1:
		delete(s.shared, pg)
	default:
		s.allocated -= pageSize
	}
}

// zeroAt makes [off, end) zero: whole pages become holes, parts of pages are overwritten.
func (s *FS) zeroAt(f *inode, off, end int64) {
	for off < end {
		run, ok := f.alloc.Next(block.Range{Off: off, Len: end - off})
		if !ok {
			return
		}
		i, at := run.Off/pageSize, run.Off%pageSize
		to := min(end-i*pageSize, pageSize)
		if at == 0 && to == pageSize {
			s.setPage(f, i, nil)
		} else {
			pg := f.copyPage(i)
			clear(pg[at:to])
			s.setPage(f, i, pg)
		}
		off = i*pageSize + to
	}
}

func (s *FS) truncate(f *inode, size int64) {
	if size < f.now.size {
		s.zeroAt(f, size, block.RoundUp(f.now.size, pageSize))
	}
	if size != f.now.size {
		f.setSize(size)
	}
	s.touch(f)
}

func (f *inode) extent(off, n int64) block.Extent {
	w := block.Range{Off: off, Len: n}
	run, ok := f.alloc.Next(w.Intersect(block.Range{Len: f.now.size}))
	switch {
	case !ok:
		return block.Extent{Range: w, Kind: block.Zero}
	case run.Off > off:
		return block.Extent{Range: block.Range{Off: off, Len: run.Off - off}, Kind: block.Zero}
	}
	return block.Extent{Range: run, Kind: block.Data}
}

// sync makes the content durable.
func (f *inode) sync() {
	for i := range f.dirty {
		if pg := f.now.pages[i]; pg != nil {
			f.disk.pages[i] = pg
		} else {
			delete(f.disk.pages, i)
		}
	}
	clear(f.dirty)
	f.sizes = nil
	f.disk.size, f.disk.mtime, f.disk.ctime = f.now.size, f.now.mtime, f.now.ctime
}

// cloneOf returns a new file with the content of f, of which nothing is durable.
func (s *FS) cloneOf(f *inode) *inode {
	c := s.newInode(false)
	for i, pg := range f.now.pages {
		c.now.pages[i] = pg
		s.shared[pg]++
		c.note(i, pg)
	}
	c.alloc = *block.NewSet(slices.Collect(f.alloc.All())...)
	c.setSize(f.now.size)
	return c
}

// freeUnused gives back the space of a file that has neither a name nor an open file any more. Its pages stay: a power
// cut may bring back the name.
func (s *FS) freeUnused(f *inode) {
	if f.links > 0 || f.opens > 0 || f.dir {
		return
	}
	for _, pg := range f.now.pages {
		s.release(pg)
	}
}
