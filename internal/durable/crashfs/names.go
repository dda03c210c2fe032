package crashfs

import (
	"errors"
	iofs "io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"
)

var (
	errIsFolder  = errors.New("is a folder")
	errNotFolder = errors.New("is a file, not a folder")
)

// nameKey is one name in one folder.
type nameKey struct {
	dir  *inode
	name string
}

// nameOp is a change of names that happens as a whole or not at all.
type nameOp struct {
	remove nameKey // dir nil: removes nothing
	set    nameKey // dir nil: sets nothing
	to     *inode  // what set then stands for
}

func (o nameOp) touches(k nameKey) bool { return k.dir != nil && (o.remove == k || o.set == k) }

func (o nameOp) in(dir *inode) bool { return o.remove.dir == dir || o.set.dir == dir }

// apply makes the change in a view of the names: those seen or those on disk.
func (o nameOp) apply(view func(dir *inode) map[string]*inode) {
	if o.remove.dir != nil {
		delete(view(o.remove.dir), o.remove.name)
	}
	if o.set.dir != nil {
		view(o.set.dir)[o.set.name] = o.to
	}
}

func seen(dir *inode) map[string]*inode { return dir.names }

func onDisk(dir *inode) map[string]*inode { return dir.diskNames }

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func (s *FS) lookup(name string) (*inode, error) {
	f := s.root
	for part := range strings.SplitSeq(strings.TrimPrefix(clean(name), "/"), "/") {
		if part == "" {
			return f, nil // the root
		}
		if !f.dir {
			return nil, syscall.ENOTDIR
		}
		if f = f.names[part]; f == nil {
			return nil, iofs.ErrNotExist
		}
	}
	return f, nil
}

func (s *FS) folder(name string) (*inode, error) {
	d, err := s.lookup(name)
	if err == nil && !d.dir {
		err = errNotFolder
	}
	return d, err
}

// key finds the folder of a name.
func (s *FS) key(name string) (nameKey, error) {
	name = clean(name)
	if name == "/" {
		return nameKey{}, iofs.ErrInvalid
	}
	d, err := s.folder(path.Dir(name))
	return nameKey{d, path.Base(name)}, err
}

// free is key for a name that must not be there.
func (s *FS) free(name string) (nameKey, error) {
	if clean(name) == "/" {
		return nameKey{}, iofs.ErrExist
	}
	k, err := s.key(name)
	if err == nil && k.dir.names[k.name] != nil {
		err = iofs.ErrExist
	}
	return k, err
}

// change makes a change of names that is not yet durable.
func (s *FS) change(o nameOp) {
	o.apply(seen)
	s.pending = append(s.pending, o)
}

func (s *FS) addNew(name string, dir bool) (*inode, error) {
	k, err := s.free(name)
	if err != nil {
		return nil, err
	}
	f := s.newInode(dir)
	s.add(k, f)
	return f, nil
}

func (s *FS) add(k nameKey, f *inode) {
	s.change(nameOp{set: k, to: f})
	f.links++
	s.touchName(f)
}

func (s *FS) unlink(f *inode) {
	f.links--
	s.touchName(f)
	s.freeUnused(f)
}

// Remove is part of durable.FS.
func (s *FS) Remove(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	op := Op{Kind: Remove, Name: name}
	if err := s.begin(op); err != nil {
		return err
	}
	k, err := s.key(name)
	if err != nil {
		return pathError(op, err)
	}
	f := k.dir.names[k.name]
	switch {
	case f == nil:
		return pathError(op, iofs.ErrNotExist)
	case len(f.names) > 0:
		return pathError(op, syscall.ENOTEMPTY)
	}
	s.change(nameOp{remove: k})
	s.unlink(f)
	return nil
}

// Rename is part of durable.FS.
func (s *FS) Rename(oldName, newName string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	op := Op{Kind: Rename, Name: oldName, To: newName}
	if err := s.begin(op); err != nil {
		return err
	}
	if err := s.rename(oldName, newName); err != nil {
		return pathError(op, err)
	}
	return nil
}

func (s *FS) rename(oldName, newName string) error {
	from, err := s.key(oldName)
	if err != nil {
		return err
	}
	f := from.dir.names[from.name]
	if f == nil {
		return iofs.ErrNotExist
	}
	to, err := s.key(newName)
	if err != nil {
		return err
	}
	old := to.dir.names[to.name]
	if old == f && !f.dir {
		return nil // POSIX: two names of one file, nothing happens
	}
	if err := mayReplace(f, old); err != nil {
		return err
	}
	if f.dir && strings.HasPrefix(clean(newName), clean(oldName)+"/") {
		return iofs.ErrInvalid
	}
	s.change(nameOp{remove: from, set: to, to: f})
	s.touchName(f)
	if old != nil {
		s.unlink(old)
	}
	return nil
}

// mayReplace is os.Rename's rule: a folder is never replaced, and replaces no file.
func mayReplace(f, old *inode) error {
	switch {
	case old == nil:
		return nil
	case old.dir:
		return iofs.ErrExist
	case f.dir:
		return errNotFolder
	}
	return nil
}

// Link is part of durable.FS.
func (s *FS) Link(oldName, newName string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.second(Op{Kind: Link, Name: oldName, To: newName}, func(f *inode) (*inode, error) { return f, nil })
}

// Clone is part of durable.FS.
func (s *FS) Clone(oldName, newName string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.second(Op{Kind: Clone, Name: oldName, To: newName}, func(f *inode) (*inode, error) {
		if !s.clones {
			return nil, errors.ErrUnsupported
		}
		return s.cloneOf(f), nil
	})
}

// second gives op.To to what is made of the file op.Name.
func (s *FS) second(op Op, made func(f *inode) (*inode, error)) error {
	if err := s.begin(op); err != nil {
		return err
	}
	f, err := s.lookup(op.Name)
	if err == nil && f.dir {
		err = errIsFolder
	}
	var k nameKey
	if err == nil {
		k, err = s.free(op.To)
	}
	if err == nil {
		f, err = made(f)
	}
	if err != nil {
		return pathError(op, err)
	}
	s.add(k, f)
	return nil
}

// MkdirAll is part of durable.FS. It makes and syncs folder by folder, as the operating system's one does.
func (s *FS) MkdirAll(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mkdirAll(clean(name))
}

func (s *FS) mkdirAll(name string) error {
	parent := path.Dir(name)
	op := Op{Kind: Mkdir, Name: name}
	if f, err := s.lookup(name); err == nil {
		if !f.dir {
			return pathError(op, errNotFolder)
		}
		return s.syncDir(parent)
	}
	if err := s.mkdirAll(parent); err != nil {
		return err
	}
	if err := s.begin(op); err != nil {
		return err
	}
	if _, err := s.addNew(name, true); err != nil {
		return pathError(op, err)
	}
	return s.syncDir(parent)
}

// SyncDir is part of durable.FS.
func (s *FS) SyncDir(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.syncDir(name)
}

func (s *FS) syncDir(name string) error {
	op := Op{Kind: SyncDir, Name: name}
	if err := s.begin(op); err != nil {
		return err
	}
	d, err := s.folder(name)
	if err != nil {
		return pathError(op, err)
	}
	s.commit(func(o nameOp) bool { return o.in(d) })
	return nil
}

// commit makes durable the pending changes that are chosen, and those that a chosen one builds on: the earlier ones of
// the same names. The others stay pending.
func (s *FS) commit(chosen func(nameOp) bool) {
	keep := s.closure(chosen, func(o, earlier nameOp) bool {
		return earlier.touches(o.remove) || earlier.touches(o.set)
	})
	var rest []nameOp
	for i, o := range s.pending {
		if keep[i] {
			o.apply(onDisk)
		} else {
			rest = append(rest, o)
		}
	}
	s.pending = rest
}

// closure says of each pending change whether it is chosen, or needed by a chosen later one.
func (s *FS) closure(chosen func(nameOp) bool, needs func(o, earlier nameOp) bool) []bool {
	keep := make([]bool, len(s.pending))
	for i, o := range slices.Backward(s.pending) {
		keep[i] = keep[i] || chosen(o)
		for j, earlier := range s.pending[:i] {
			keep[j] = keep[j] || keep[i] && needs(o, earlier)
		}
	}
	return keep
}
