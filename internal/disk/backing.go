package disk

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"sitrep/internal/disk/qcow2"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

func (c *chain) qcow2(path string) (*qcow2.Image, error) {
	n := len(c.files)
	f, err := c.push(path, c.opener())
	if err != nil {
		return nil, err
	}
	m, err := qcow2.Open(f, qcow2.Options{OpenParent: func(b qcow2.Backing) (qcow2.Parent, error) { return c.backing(path, b) }})
	if err != nil {
		c.cut(n)
		return nil, err
	}
	return m, nil
}

// backing opens the backing file of a qcow2. Nothing in it tells that it is the right one, so it is looked for only where its
// name says, and by its last name where the site file says that parents lie.
func (c *chain) backing(child string, b qcow2.Backing) (Image, error) {
	name := strings.TrimPrefix(b.Name, "file:")
	if scheme, _, found := strings.Cut(name, ":"); found && !strings.Contains(scheme, "/") {
		return nil, fault.New(fault.DiskUnsupported, "the backing file %q is no file", b.Name).At(child)
	}
	format, err := backingFormat(b)
	if err != nil {
		return nil, err.At(child)
	}
	places := c.backingPlaces(child, name)
	for _, path := range places {
		if _, err := c.fs.Stat(path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		m, err := c.open(path, format)
		if err != nil {
			return nil, parentError(child, path, err)
		}
		return m, nil
	}
	return nil, fault.New(fault.ChainBroken, "the backing file was not found; looked for %s", strings.Join(places, ", ")).At(child)
}

// backingFormat is the format that a qcow2 says of its backing file; Auto if it says nothing.
func backingFormat(b qcow2.Backing) (Format, *fault.Error) {
	switch b.Format {
	case "":
		return Auto, nil
	case "raw", "file":
		return Raw, nil
	case "qcow2":
		return QCOW2, nil
	case "vpc":
		return VHD, nil
	case "vhdx":
		return VHDX, nil
	}
	return Auto, fault.New(fault.DiskUnsupported, "the backing file %s has the format %q, which is not supported: disks are %s", b.Name, b.Format, formats())
}

func (c *chain) backingPlaces(child, name string) (out []string) {
	if filepath.IsAbs(name) {
		out = append(out, filepath.Clean(name))
	} else {
		out = append(out, filepath.Join(filepath.Dir(child), name))
		if real, err := durable.Resolve(c.fs, child); err == nil {
			out = append(out, filepath.Join(filepath.Dir(real), name))
		}
	}
	for _, p := range c.parents {
		if _, err := c.fs.ReadDir(p); err == nil {
			p = filepath.Join(p, filepath.Base(name))
		}
		if filepath.Base(p) == filepath.Base(name) {
			out = append(out, p)
		}
	}
	slices.Sort(out[1:])
	return slices.Compact(out)
}

// open opens a file of any format, as a parent of those that are open.
func (c *chain) open(path string, format Format) (Image, error) {
	if format == Auto {
		f, err := c.parent(path)
		if err != nil {
			return nil, err
		}
		format, err = probe(f)
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
	}
	switch format {
	case VHD:
		m, err := c.vhd(path)
		if err != nil {
			return nil, err // not m: a nil pointer in an interface is not nil
		}
		return m, nil
	case VHDX:
		m, err := c.vhdx(path)
		if err != nil {
			return nil, err
		}
		return m, nil
	case QCOW2:
		m, err := c.qcow2(path)
		if err != nil {
			return nil, err
		}
		return m, nil
	}
	f, err := c.push(path, c.opener())
	if err != nil {
		return nil, err
	}
	m, err := openRaw(f)
	if err != nil {
		return nil, err
	}
	return m, nil
}
