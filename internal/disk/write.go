package disk

import (
	"errors"
	"path/filepath"

	"sitrep/internal/disk/vhd"
	"sitrep/internal/disk/vhdx"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// Spec describes a disk that is to be made.
type Spec struct {
	Format     Format // Raw, VHD or VHDX
	Kind       Kind   // Fixed or Dynamic; of no meaning for Raw, which is a sparse file
	Size       int64  // guest bytes, a multiple of SectorSize
	BlockSize  int64  // bytes; 0: the format's default. Of dynamic disks only.
	SectorSize int    // bytes; 0 is 512. Other than that only VHDX: 4096.
}

// OpenRW opens a disk for reading and writing in place; see Open. Parents are only read. A qcow2 is
// fault.DiskUnsupported.
func OpenRW(fsys durable.FS, path string, format Format, parents ...string) (Writable, error) {
	c := &chain{fs: fsys, parents: parents}
	format, err := c.formatOf(path, format)
	if err != nil {
		return nil, err
	}
	if format == QCOW2 {
		return nil, fault.New(fault.DiskUnsupported, "a qcow2 disk is not written to in place").At(path)
	}
	f, err := c.push(path, fsys.OpenRW)
	if err != nil {
		return nil, missing(err, path)
	}
	w, err := c.writer(f, path, format)
	if err != nil {
		c.cut(0)
		return nil, missing(err, path)
	}
	return w, nil
}

func (c *chain) writer(f durable.File, path string, format Format) (Writable, error) {
	switch format {
	case VHD:
		return orNil(vhd.OpenRW(f, c.vhdOptions(path)))
	case VHDX:
		return orNil(vhdx.OpenRW(f, c.vhdxOptions(path)))
	}
	r, err := openRaw(f)
	if err != nil {
		return nil, err
	}
	return rawWriter{r}, nil
}

// orNil makes an interface of a pointer, nil when there is an error.
func orNil[W Writable](w W, err error) (Writable, error) {
	if err != nil {
		return nil, err
	}
	return w, nil
}

// Create makes an all-zero disk at a path at which nothing is yet. The file and its name are durable on return; when it
// fails, or the power is cut before, there is at most an unusable file.
func Create(fsys durable.FS, path string, s Spec) (Writable, error) {
	if err := s.check(); err != nil {
		return nil, err.At(path)
	}
	f, err := fsys.Create(path)
	if err != nil {
		return nil, fault.FromOS(err)
	}
	w, err := s.create(f)
	if err == nil {
		if err = fsys.SyncDir(filepath.Dir(path)); err == nil {
			return w, nil
		}
	}
	return nil, fault.FromOS(errors.Join(err, f.Close(), fsys.Remove(path)))
}

// check refuses what no format can do; the formats check the rest.
func (s Spec) check() *fault.Error {
	sector := max(s.SectorSize, sectorSize)
	switch {
	case s.Format != Raw && s.Kind != Fixed && s.Kind != Dynamic:
		return fault.New(fault.DiskUnsupported, "a disk of the kind %q cannot be made", s.Kind)
	case s.Format != VHDX && sector != sectorSize:
		return fault.New(fault.DiskUnsupported, "a disk of the format %q cannot have sectors of %d bytes", s.Format, s.SectorSize)
	case s.Size <= 0 || s.Size%int64(sector) != 0:
		return fault.New(fault.DiskUnsupported, "a disk cannot have %d bytes: its size is a multiple of %d", s.Size, sector)
	}
	return nil
}

func (s Spec) create(f durable.File) (Writable, error) {
	switch s.Format {
	case VHD:
		typ := vhd.Fixed
		if s.Kind == Dynamic {
			typ = vhd.Dynamic
		}
		return orNil(vhd.Create(f, vhd.Spec{Type: typ, Size: s.Size, BlockSize: s.BlockSize}))
	case VHDX:
		kind := vhdx.Fixed
		if s.Kind == Dynamic {
			kind = vhdx.Dynamic
		}
		return orNil(vhdx.Create(f, vhdx.Spec{Kind: kind, Size: s.Size, BlockSize: s.BlockSize, LogicalSectorSize: int64(s.SectorSize)}))
	case Raw:
		if err := f.Truncate(s.Size); err != nil {
			return nil, fault.FromOS(err)
		}
		if err := f.Sync(); err != nil {
			return nil, fault.FromOS(err)
		}
		return rawWriter{&rawImage{file: f, have: s.Size, size: s.Size}}, nil
	}
	return nil, fault.New(fault.DiskUnsupported, "a disk of the format %q cannot be made", s.Format).At(f.Name())
}
