package disk

import (
	"errors"
	"io/fs"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// Kind says how the guest's bytes lie in the top file of a disk.
type Kind string

// The kinds. Raw disks are RawFile or Device.
const (
	Fixed        Kind = "fixed"
	Dynamic      Kind = "dynamic"
	Differencing Kind = "differencing"
	RawFile      Kind = "raw"
	Device       Kind = "device"
)

// Disk is an open image with all the files that it consists of. It may be read concurrently.
type Disk struct {
	Image
	format Format
	kind   Kind
	sector int
	files  []durable.File
	layer  func(off, n int64) (run block.Range, present bool, err error) // nil: everything
}

// Open opens a disk for reading. A format other than Auto is taken at its word: nothing is guessed, so that a guest
// cannot make its raw disk be taken for another format by what it writes on it, and a file that is not of that format
// is fault.DiskFormat. With Auto name and signature have to agree, else it is fault.DiskFormat too. parents are the files and
// folders in which the parents of a differencing disk may lie, besides the disk's own folder; one that lies elsewhere is
// fault.ParentElsewhere. Other errors are fault.DiskMissing, DiskCorrupt, DiskUnsupported (a format or a feature that cannot
// be read), and ChainBroken, each with the file.
func Open(fsys durable.FS, path string, format Format, parents ...string) (*Disk, error) {
	c := &chain{fs: fsys, parents: parents}
	format, err := c.formatOf(path, format)
	if err != nil {
		return nil, err
	}
	d := &Disk{format: format, sector: sectorSize}
	switch format {
	case VHD:
		err = d.openVHD(c, path)
	case VHDX:
		err = d.openVHDX(c, path)
	case QCOW2:
		err = d.openQCOW2(c, path)
	default:
		err = d.openRaw(c, path)
	}
	if err != nil {
		c.cut(0)
		return nil, missing(err, path)
	}
	d.files = c.files
	return d, nil
}

// formatOf checks the word for a format, and probes the file when the word is Auto.
func (c *chain) formatOf(path string, format Format) (Format, error) {
	switch format {
	case Raw, VHD, VHDX, QCOW2, Auto:
	default:
		return Auto, fault.New(fault.DiskUnsupported, "the format %q is unknown", format).At(path)
	}
	if format != Raw {
		if err := refuseSet(path); err != nil {
			return Auto, err
		}
	}
	if format != Auto {
		return format, nil
	}
	f, err := c.fs.Open(path)
	if err != nil {
		return Auto, missing(err, path)
	}
	defer f.Close()
	return probe(f)
}

// missing classifies that the disk itself is not there; what its parents lack was classified by follow.
func missing(err error, path string) error {
	if fault.Find(err) != nil {
		return err
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fault.Wrap(fault.DiskMissing, fs.ErrNotExist, "the disk cannot be opened").At(path)
	}
	return fault.FromOS(err)
}

func (d *Disk) openVHD(c *chain, path string) error {
	m, err := c.vhd(path)
	if err != nil {
		return err
	}
	d.Image, d.kind, d.layer = m, Kind(m.Kind().String()), m.LayerExtent
	return nil
}

func (d *Disk) openVHDX(c *chain, path string) error {
	m, err := c.vhdx(path)
	if err != nil {
		return err
	}
	d.Image, d.kind, d.layer = m, Kind(m.Kind().String()), m.LayerExtent
	d.sector = int(m.LogicalSectorSize())
	return nil
}

func (d *Disk) openQCOW2(c *chain, path string) error {
	m, err := c.qcow2(path)
	if err != nil {
		return err
	}
	d.Image, d.kind, d.layer = m, Dynamic, m.LayerExtent
	if m.HasParent() {
		d.kind = Differencing
	}
	return nil
}

func (d *Disk) openRaw(c *chain, path string) error {
	f, err := c.push(path, c.fs.Open)
	if err != nil {
		return err
	}
	m, err := openRaw(f)
	if err != nil {
		return err
	}
	s, err := f.Stamp()
	if err != nil {
		return fault.FromOS(err)
	}
	d.Image, d.kind = m, RawFile
	if s.Size == 0 { // but it has bytes: what the folder says of a device is 0
		d.kind = Device
	}
	return nil
}

// Format is the format of the file, never Auto.
func (d *Disk) Format() Format { return d.format }

// Kind says how the guest's bytes lie in the top file.
func (d *Disk) Kind() Kind { return d.kind }

// SectorSize is the size in bytes of the disk's logical sectors: 512, or 4096 of some VHDX.
func (d *Disk) SectorSize() int { return d.sector }

// Files are the paths of all files of the chain, the top one first.
func (d *Disk) Files() []string {
	out := make([]string, len(d.files))
	for i, f := range d.files {
		out[i] = f.Name()
	}
	return out
}

// Stamps are the stamps of all files of the chain, the top one first.
func (d *Disk) Stamps() ([]durable.Stamp, error) {
	out := make([]durable.Stamp, len(d.files))
	for i, f := range d.files {
		s, err := f.Stamp()
		if err != nil {
			return nil, fault.FromOS(err)
		}
		out[i] = s
	}
	return out, nil
}

// maxLayerRuns bounds the memory of Layer: 64 MiB.
const maxLayerRuns = 4 << 20

// Layer is the set of ranges that the top file alone holds: of a differencing disk what was written since it was made,
// otherwise the allocated blocks, or everything. When there are very many ranges, those that lie close together become
// one, so that the set may then hold more than was written, but never less.
func (d *Disk) Layer() (*block.Set, error) { return d.layerOf(maxLayerRuns) }

func (d *Disk) layerOf(maxRuns int) (*block.Set, error) {
	size := d.Size()
	if d.layer == nil {
		return block.NewSet(block.Range{Len: size}), nil
	}
	set, unit := block.NewSet(), int64(1)
	for off := int64(0); off < size; {
		run, present, err := d.layer(off, size-off)
		if err != nil {
			return nil, err
		}
		off = run.End()
		if !present {
			continue
		}
		set.Add(coarse(run, unit, size))
		if set.Runs() > maxRuns {
			unit = max(unit*8, sectorSize*8)
			set = coarseSet(set, unit, size)
		}
	}
	return set, nil
}

// coarse rounds a range outward to multiples of unit, on a disk of size bytes.
func coarse(r block.Range, unit, size int64) block.Range {
	return r.Outward(unit).Intersect(block.Range{Len: size})
}

func coarseSet(s *block.Set, unit, size int64) *block.Set {
	out := block.NewSet()
	for r := range s.All() {
		out.Add(coarse(r, unit, size))
	}
	return out
}
