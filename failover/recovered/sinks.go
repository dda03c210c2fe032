package recovered

import (
	"errors"
	"time"

	"sitrep/internal/disk"
	"sitrep/internal/disk/qcow2"
	"sitrep/internal/disk/vhd"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// open begins the disk under its temporary name.
func (m *maker) open() (err error) {
	c := m.Config
	if c.Kind == "" && c.Format == disk.VHD {
		c.Kind = disk.Fixed
	} else if c.Kind == "" {
		c.Kind = disk.Dynamic
	}
	switch {
	case c.Format == disk.QCOW2:
		m.out, err = m.openQCOW2()
	case c.Format == disk.Raw, c.Format == disk.VHD && c.Kind == disk.Fixed && c.SectorSize <= vhd.SectorSize:
		m.parallel = true
		m.out, err = m.openFlat()
	default: // and what no format can do is refused here
		spec := disk.Spec{Format: c.Format, Kind: c.Kind, Size: c.Source.Size(), SectorSize: c.SectorSize}
		var w disk.Writable
		if w, err = disk.Create(c.FS, m.tmp, spec); err == nil {
			m.out = image{w}
		}
	}
	return err
}

// flat is a file in which the guest's bytes lie as they are: pieces may be put side by side.
type flat struct {
	durable.File
	size   int64
	footer []byte // of a VHD
}

func (m *maker) openFlat() (sink, error) {
	size := m.Source.Size()
	var footer []byte
	if m.Format == disk.VHD {
		var err error
		if footer, err = vhd.NewFooter(size, vhd.NewUUID(), time.Now()).MarshalBinary(); err != nil {
			return nil, err
		}
	}
	f, err := m.FS.Create(m.tmp)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(size + int64(len(footer))); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return flat{f, size, footer}, nil
}

func (s flat) put(off int64, p []byte) error { _, err := s.WriteAt(p, off); return err }

func (s flat) finish() error {
	if s.footer != nil {
		if _, err := s.WriteAt(s.footer, s.size); err != nil {
			return err
		}
	}
	return s.Sync()
}

func (s flat) close() error { return s.Close() }

// image is a disk whose own writer finds the places.
type image struct{ disk.Writable }

func (s image) put(off int64, p []byte) error { _, err := s.WriteAt(p, off); return err }
func (s image) finish() error                 { return s.Flush() }
func (s image) close() error                  { return s.Close() }

// clusters is a qcow2, which is written front to back.
type clusters struct {
	*qcow2.Writer
	file durable.File
}

func (m *maker) openQCOW2() (sink, error) {
	if m.Kind == disk.Fixed {
		return nil, fault.New(fault.DiskUnsupported, "a qcow2 disk is dynamic").At(m.Path)
	}
	f, err := m.FS.Create(m.tmp)
	if err != nil {
		return nil, err
	}
	w, err := qcow2.Create(f, m.Source.Size())
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return clusters{w, f}, nil
}

func (s clusters) put(off int64, p []byte) error { return s.Append(off, p) }
func (s clusters) finish() error                 { return s.Finish() }
func (s clusters) close() error                  { return s.file.Close() }
