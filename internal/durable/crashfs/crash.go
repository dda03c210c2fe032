package crashfs

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"

	"sitrep/internal/block"
)

// Policy says what a crash leaves of what was not made durable.
type Policy uint8

const (
	// DropUnsynced loses all of it: data, sizes and names.
	DropUnsynced Policy = iota
	// KeepAll loses nothing: the disk happened to have written everything.
	KeepAll
	// Torn chooses by the seed: each 512-byte sector has its durable content or one that it was given since, each file
	// its durable size (or times) or one of those since, each change of names happened or not, a rename as a whole.
	// A rename or removal that happened brings with it the earlier changes of the name that it took away. The write
	// that the cut interrupted takes part.
	Torn
	// ProcessKill ends the process only (kill -9): everything issued is kept, and what was not durable still is not,
	// so that a power cut may follow. Of the write that was interrupted, the seed chooses how many sectors were done.
	ProcessKill
)

// Policies are all policies.
func Policies() []Policy { return []Policy{DropUnsynced, KeepAll, Torn, ProcessKill} }

func (p Policy) String() string {
	return []string{"drop-unsynced", "keep-all", "torn", "process-kill"}[p]
}

// flight is a write that the cut interrupted.
type flight struct {
	f    *inode
	data []byte
	off  int64
}

// AfterCrash returns the filesystem that is found after a crash at this moment, or, when the power was cut, at that
// one. It works, holds no locks and no open files, fails nothing and has counted no operations. The FS itself stays as
// it is, so every policy and seed can be tried on one history. What the policy does not leave to chance does not
// depend on the seed.
func (s *FS) AfterCrash(policy Policy, seed uint64) *FS {
	s.mu.Lock()
	defer s.mu.Unlock()
	rng := rand.New(rand.NewPCG(seed, 0))
	c, copies := s.copy()
	switch policy {
	case DropUnsynced:
		settle(copies, func(f *inode) content { return f.disk.clone() })
	case KeepAll:
		c.commit(func(nameOp) bool { return true })
		settle(copies, func(f *inode) content { return f.now })
	case Torn:
		c.land(s.flight, copies, func(n int) int { return n })
		c.tearNames(rng)
		settle(copies, func(f *inode) content { return f.torn(rng) })
	case ProcessKill:
		c.land(s.flight, copies, func(n int) int { return upToSector(s.flight, min(n, rng.IntN(n+sectorSize))) })
	}
	if policy != ProcessKill {
		c.pending = nil
		c.boots++
	}
	c.recount()
	return c
}

// upToSector shortens the part of an interrupted write that was done to whole sectors: a kernel does not stop within one.
func upToSector(w *flight, n int) int {
	if n == len(w.data) {
		return n
	}
	end := (w.off + int64(n)) / sectorSize * sectorSize
	return int(max(end-w.off, 0))
}

// land does the first bytes of the write that the cut interrupted.
func (s *FS) land(w *flight, copies map[*inode]*inode, first func(n int) int) {
	if w == nil || copies[w.f] == nil {
		return // none, or in a file that no name leads to
	}
	if n := first(len(w.data)); n > 0 {
		s.clock++
		_, _ = s.writeAt(copies[w.f], w.data[:n], w.off) // without room less of it was done
	}
}

// tearNames keeps of the pending changes what chance leaves.
func (s *FS) tearNames(rng *rand.Rand) {
	keep := s.closure(func(nameOp) bool { return rng.IntN(2) == 1 }, func(o, earlier nameOp) bool {
		return earlier.touches(o.remove)
	})
	for i, o := range s.pending {
		if keep[i] {
			o.apply(onDisk)
		}
	}
}

// settle makes the chosen contents, and the names on disk, all that there is.
func settle(copies map[*inode]*inode, choose func(*inode) content) {
	byID := func(a, b *inode) int { return cmp.Compare(a.id, b.id) }
	for _, f := range slices.SortedFunc(maps.Values(copies), byID) {
		f.now = choose(f)
		f.disk = f.now.clone()
		f.dirty, f.sizes = map[int64][]*page{}, nil
		f.names = maps.Clone(f.diskNames)
		f.alloc = block.Set{}
		for _, i := range slices.Sorted(maps.Keys(f.now.pages)) {
			f.alloc.Add(block.Range{Off: i * pageSize, Len: pageSize})
		}
	}
}

// torn is a content of which chance chose each unsynced part.
func (f *inode) torn(rng *rand.Rand) content {
	c := f.disk.clone()
	for _, i := range slices.Sorted(maps.Keys(f.dirty)) {
		if pg := tornPage(append([]*page{f.disk.pages[i]}, f.dirty[i]...), rng); pg != nil {
			c.pages[i] = pg
		} else {
			delete(c.pages, i)
		}
	}
	sizes := append([]int64{f.disk.size}, f.sizes...)
	c.size = sizes[rng.IntN(len(sizes))]
	if rng.IntN(2) == 1 {
		c.mtime, c.ctime = f.now.mtime, f.now.ctime
	}
	c.trim()
	return c
}

// tornPage takes each sector of one of the versions; nil is a hole.
func tornPage(versions []*page, rng *rand.Rand) *page {
	var out *page
	for at := 0; at < pageSize; at += sectorSize {
		pg := versions[rng.IntN(len(versions))]
		if pg == nil {
			continue
		}
		if out == nil {
			out = new(page)
		}
		copy(out[at:at+sectorSize], pg[at:])
	}
	return out
}

// trim drops what lies after the end.
func (c content) trim() {
	for i, pg := range c.pages {
		switch tail := c.size - i*pageSize; {
		case tail <= 0:
			delete(c.pages, i)
		case tail < pageSize:
			short := *pg
			clear(short[tail:])
			c.pages[i] = &short
		}
	}
}

// recount counts links and space anew.
func (s *FS) recount() {
	s.allocated = 0
	s.shared = map[*page]int{}
	s.root.links = 1
	used := map[*page]bool{}
	done := map[*inode]bool{}
	var walk func(d *inode)
	walk = func(d *inode) {
		for _, f := range d.names {
			f.links++
			if done[f] {
				continue
			}
			done[f] = true
			for _, pg := range f.now.pages {
				if used[pg] {
					s.shared[pg]++
					continue
				}
				used[pg] = true
				s.allocated += pageSize
			}
			walk(f)
		}
	}
	walk(s.root)
}

// copy returns a filesystem with the same content and the same pending changes, and which inode became which.
func (s *FS) copy() (*FS, map[*inode]*inode) {
	c := &FS{boots: s.boots, nextID: s.nextID, clock: s.clock, clones: s.clones, capacity: s.capacity, shared: maps.Clone(s.shared)}
	c.allocated = s.allocated
	copies := map[*inode]*inode{}
	c.root = copyInode(s.root, copies)
	for _, o := range s.pending {
		if o.remove.dir != nil {
			o.remove.dir = copyInode(o.remove.dir, copies)
		}
		if o.set.dir != nil {
			o.set.dir, o.to = copyInode(o.set.dir, copies), copyInode(o.to, copies)
		}
		c.pending = append(c.pending, o)
	}
	return c, copies
}

func copyInode(f *inode, copies map[*inode]*inode) *inode {
	if c := copies[f]; c != nil {
		return c
	}
	c := &inode{id: f.id, dir: f.dir, now: f.now.clone(), disk: f.disk.clone(), sizes: slices.Clone(f.sizes)}
	c.alloc = *block.NewSet(slices.Collect(f.alloc.All())...)
	copies[f] = c
	c.dirty = make(map[int64][]*page, len(f.dirty))
	for i, versions := range f.dirty {
		c.dirty[i] = slices.Clone(versions)
	}
	if f.dir {
		c.names, c.diskNames = copyNames(f.names, copies), copyNames(f.diskNames, copies)
	}
	return c
}

func copyNames(names map[string]*inode, copies map[*inode]*inode) map[string]*inode {
	out := make(map[string]*inode, len(names))
	for name, f := range names {
		out[name] = copyInode(f, copies)
	}
	return out
}
