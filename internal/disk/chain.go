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
	fs     durable.FS
	files  []durable.File
	opened int
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
		return sa.Device == sb.Device && sa.Inode == sb.Inode, nil
	}
	return filepath.Clean(a.Name()) == filepath.Clean(b.Name()), nil
}

func (c *chain) vhd(path string) (*vhd.Image, error) {
	n := len(c.files)
	f, err := c.push(path, c.fs.Open)
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
	f, err := c.push(path, c.fs.Open)
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
	var tried []string
	var wrong string // a place that holds another disk
	n := len(c.files)
	for _, place := range places(child, paths) {
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
	}
	return none, fault.New(fault.ChainBroken, "the parent was not found: %s", strings.Join(paths, ", ")).At(child)
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

// places are where the parent of child may be: where the paths say, and in the child's own folder under their last name.
func places(child string, paths []string) []place {
	dir := filepath.Dir(child)
	var out, beside []place
	for _, p := range paths {
		slashed := strings.TrimPrefix(strings.ReplaceAll(p, `\`, "/"), "//?/")
		parts := strings.Split(slashed, "/")
		switch {
		case filepath.IsAbs(filepath.FromSlash(slashed)):
			out = append(out, place{dir: filepath.FromSlash(slashed)})
		case runtime.GOOS != "windows" && len(parts[0]) == 2 && parts[0][1] == ':': // a drive
		default:
			out = append(out, place{dir, parts})
		}
		beside = append(beside, place{dir, parts[len(parts)-1:]})
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
