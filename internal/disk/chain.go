package disk

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"sitrep/internal/disk/vhd"
	"sitrep/internal/disk/vhdx"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

const (
	// maxDepth is the greatest number of files in a chain.
	maxDepth = vhd.MaxDepth
	// maxOpened bounds how many files one Open looks at: a child names several places where its parent may be.
	maxOpened = 4 * maxDepth
)

// chain opens a file and its parents. While it works, files holds those from the top down to the one at hand.
type chain struct {
	fs      durable.FS
	parents []string // files and folders in which parents may lie, besides the folder of the top file
	files   []durable.File
	opened  int
}

// parent opens the file of a parent, which lies where parents may lie and is a regular file. What a child says of its
// parent is no reason to read any file of the host: whoever can write the child could have it replicated.
func (c *chain) parent(path string) (durable.File, error) {
	real, err := durable.Resolve(c.fs, path)
	if err != nil {
		return nil, err
	}
	if !c.mayLie(real) {
		return nil, fault.New(fault.ParentElsewhere, "it is named as a parent and lies neither in the folder of the disk, %s, nor in its parents: of the site file",
			filepath.Dir(c.files[0].Name())).At(real)
	}
	f, err := c.fs.Open(real)
	if err != nil {
		return nil, err
	}
	stamp, serr := f.Stamp()
	size, err := f.Size()
	if err = errors.Join(serr, err); err == nil && stamp.Size != size { // a device, whose entry in the folder has none
		err = fault.New(fault.ChainBroken, "a parent has to be a file").At(real)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// mayLie says whether a parent may lie at a path, links followed: in the folder of the top file, or of what that is a link
// to, or in one of c.parents. Folders below count.
func (c *chain) mayLie(path string) bool {
	top := c.files[0].Name()
	in := append([]string{filepath.Dir(top)}, c.parents...)
	if real, err := durable.Resolve(c.fs, top); err == nil {
		in = append(in, filepath.Dir(real))
	}
	return slices.ContainsFunc(in, func(allowed string) bool {
		real, err := durable.Resolve(c.fs, allowed)
		if err != nil {
			return false
		}
		rel, err := filepath.Rel(real, path)
		return err == nil && filepath.IsLocal(rel)
	})
}

// opener is how the next file is opened: the top one as it is named, the others as parents.
func (c *chain) opener() func(string) (durable.File, error) {
	if len(c.files) == 0 {
		return c.fs.Open
	}
	return c.parent
}

// push opens a file below the ones that are open. It refuses one that is in the chain already.
func (c *chain) push(path string, open func(string) (durable.File, error)) (durable.File, error) {
	if len(c.files) >= maxDepth {
		return nil, fault.New(fault.ChainBroken, "the chain of parents is longer than %d files", maxDepth).At(path)
	}
	if c.opened++; c.opened > maxOpened {
		return nil, fault.New(fault.ChainBroken, "looking for the parents, %d files were opened in vain", maxOpened).At(path)
	}
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	for _, above := range c.files {
		if same, err := sameFile(above, f); err != nil || same {
			f.Close()
			if err != nil {
				return nil, fault.FromOS(err)
			}
			return nil, fault.New(fault.ChainBroken, "the chain of parents leads back to this file").At(path)
		}
	}
	c.files = append(c.files, f)
	return f, nil
}

// cut closes the files from the n-th on. Some of them may have been closed by the image that owned them.
func (c *chain) cut(n int) {
	for _, f := range c.files[n:] {
		f.Close()
	}
	c.files = c.files[:n]
}

// sameFile compares by what the filesystem says where it tells files apart, else by name.
func sameFile(a, b durable.File) (bool, error) {
	sa, err := a.Stamp()
	if err != nil {
		return false, err
	}
	sb, err := b.Stamp()
	if err != nil {
		return false, err
	}
	if sa.Inode != 0 && sb.Inode != 0 {
		return sa.Same(sb), nil
	}
	return filepath.Clean(a.Name()) == filepath.Clean(b.Name()), nil
}

func (c *chain) vhd(path string) (*vhd.Image, error) {
	n := len(c.files)
	f, err := c.push(path, c.opener())
	if err != nil {
		return nil, err
	}
	m, err := vhd.Open(f, c.vhdOptions(path))
	if err != nil {
		c.cut(n)
	}
	return m, err
}

func (c *chain) vhdOptions(child string) vhd.Options {
	return vhd.Options{OpenParent: func(l vhd.ParentLocator) (*vhd.Image, error) {
		fits := func(m *vhd.Image) bool { return m.UUID() == l.Linkage }
		return follow(c, child, l.Paths, c.vhd, fits)
	}}
}

func (c *chain) vhdx(path string) (*vhdx.Image, error) {
	n := len(c.files)
	f, err := c.push(path, c.opener())
	if err != nil {
		return nil, err
	}
	m, err := vhdx.Open(f, c.vhdxOptions(path))
	if err != nil {
		c.cut(n)
	}
	return m, err
}

func (c *chain) vhdxOptions(child string) vhdx.Options {
	return vhdx.Options{OpenParent: func(l vhdx.ParentLocator) (vhdx.Parent, error) {
		fits := func(m *vhdx.Image) bool {
			id := m.DataWriteGUID()
			return id == l.Linkage || !l.Linkage2.IsZero() && id == l.Linkage2
		}
		m, err := follow(c, child, l.Paths, c.vhdx, fits)
		if err != nil {
			return nil, err // not m: a nil pointer in an interface is not nil
		}
		return m, nil
	}}
}

// follow opens the parent of child: the first of the places where it may be that holds the right disk.
func follow[M io.Closer](c *chain, child string, paths []string, open func(string) (M, error), fits func(M) bool) (none M, err error) {
	var tried, looked []string
	var wrong string // a place that holds another disk
	n := len(c.files)
	for _, place := range c.places(child, paths) {
		looked = append(looked, place.String())
		path, ok := resolve(c.fs, place)
		if !ok || slices.Contains(tried, path) {
			continue
		}
		tried = append(tried, path)
		m, oerr := open(path)
		switch {
		case oerr != nil:
			err = cmp.Or(err, parentError(child, path, oerr))
		case fits(m):
			return m, nil
		default:
			wrong = path
			m.Close()
			c.files = c.files[:n]
		}
	}
	switch {
	case wrong != "":
		return none, fault.New(fault.ChainBroken, "the parent %s is not the disk, or not the state of it, that this one was made on", wrong).At(child)
	case err != nil:
		return none, err
	case len(looked) == 0:
		return none, fault.New(fault.ChainBroken, "the file has a parent and does not name it").At(child)
	}
	slices.Sort(looked)
	return none, fault.New(fault.ChainBroken, "the parent was not found; looked for %s", strings.Join(slices.Compact(looked), ", ")).At(child)
}

// parentError classifies that a file which should be the parent of child cannot be opened.
func parentError(child, path string, err error) error {
	e := fault.Find(err)
	if e == nil {
		e = fault.FromOS(err)
	}
	switch e.Code {
	case fault.NotFound, fault.DiskFormat:
		return fault.Wrap(fault.ChainBroken, err, "the parent %s cannot be opened", path).At(child)
	}
	return e
}

// place is a path below a folder, in parts that may be written in other letter case than the files' names.
type place struct {
	dir   string
	parts []string
}

func (p place) String() string { return filepath.Join(append([]string{p.dir}, p.parts...)...) }

// places are where the parent of child may be: where the paths say, seen from the child and from what it is a link to; under
// their last name beside both, and in the folders of c.parents; and the files of c.parents themselves.
func (c *chain) places(child string, paths []string) []place {
	dirs := []string{filepath.Dir(child)}
	if real, err := durable.Resolve(c.fs, child); err == nil && filepath.Dir(real) != dirs[0] {
		dirs = append(dirs, filepath.Dir(real))
	}
	var out, beside []place
	for _, p := range paths {
		slashed := strings.TrimPrefix(strings.ReplaceAll(p, `\`, "/"), "//?/")
		parts := strings.Split(slashed, "/")
		drive := len(parts[0]) == 2 && parts[0][1] == ':'
		switch {
		case filepath.IsAbs(filepath.FromSlash(slashed)):
			out = append(out, place{dir: filepath.FromSlash(slashed)})
		case runtime.GOOS != "windows" && drive:
		default:
			for _, dir := range dirs {
				out = append(out, place{dir, parts})
			}
		}
		for _, dir := range slices.Concat(dirs, c.parents) {
			beside = append(beside, place{dir, parts[len(parts)-1:]})
		}
	}
	for _, p := range c.parents {
		if _, err := c.fs.ReadDir(p); err != nil { // else it is a folder
			beside = append(beside, place{dir: p})
		}
	}
	return append(out, beside...)
}

// resolve finds the file of a place.
func resolve(fsys durable.FS, p place) (string, bool) {
	path := p.dir
	for _, part := range p.parts {
		if part == "" || part == "." {
			continue
		}
		next, ok := lookup(fsys, path, part)
		if !ok {
			return "", false
		}
		path = next
	}
	if len(p.parts) > 0 {
		return path, true
	}
	_, err := fsys.Stat(path)
	return path, err == nil
}

// lookup finds a name in a folder: as it is written, else in another letter case, as Windows would.
func lookup(fsys durable.FS, dir, name string) (string, bool) {
	path := filepath.Join(dir, name)
	if _, err := fsys.Stat(path); err == nil {
		return path, true
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", false
	}
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return "", false
	}
	for _, e := range entries {
		if strings.EqualFold(e.Name, name) {
			return filepath.Join(dir, e.Name), true
		}
	}
	return "", false
}
