package home

import (
	"errors"

	"sitrep/internal/disk"
	"sitrep/internal/disk/vhd"
	"sitrep/internal/disk/vhdx"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// grow makes an original as large as its record says; what is new is zero. It is called only when the record says
// "applying", and called again after a crash does the rest.
func grow(fsys durable.FS, d *diskRecord) (err error) {
	if d.Format == disk.VHDX {
		return growVHDX(fsys, d)
	}
	f, err := fsys.OpenRW(d.Target)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if d.Format == disk.VHD {
		return growVHD(f, d)
	}
	have, err := f.Size()
	if err != nil || have == d.Size {
		return err
	}
	if err := f.Truncate(d.Size); err != nil {
		return err
	}
	return f.Sync()
}

// growVHDX relies on the log of the VHDX: after a crash the disk has its old size or the new one.
func growVHDX(fsys durable.FS, d *diskRecord) (err error) {
	w, err := disk.OpenRW(fsys, d.Target, d.Format, d.Parents...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	g, ok := w.(*vhdx.Writer)
	if !ok {
		return fault.New(fault.DiskUnsupported, "the disk cannot be made larger").At(d.Target)
	}
	return g.Grow(d.Size)
}

// growVHD moves the footer of a fixed VHD. The old one stays until the new one is durable, and becomes guest bytes then.
func growVHD(f durable.File, d *diskRecord) error {
	var footer vhd.Footer
	newer, older := make([]byte, vhd.FooterSize), make([]byte, vhd.FooterSize)
	if err := durable.ReadFull(f, older, d.SizeBefore); err != nil {
		return err
	}
	whole := durable.ReadFull(f, newer, d.Size) == nil && footer.UnmarshalBinary(newer) == nil && footer.CurrentSize == uint64(d.Size)
	if !whole {
		if err := footer.UnmarshalBinary(older); err != nil {
			return fault.Find(err).AtOff(f.Name(), d.SizeBefore)
		}
		grown := vhd.NewFooter(d.Size, footer.ID, footer.Created())
		grown.OriginalSize = footer.OriginalSize
		p, err := grown.MarshalBinary()
		if err != nil {
			return err
		}
		if _, err := f.WriteAt(p, d.Size); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if !vhd.IsFooter(older) {
		return nil // it is a guest's by now
	}
	if err := f.ZeroAt(d.SizeBefore, vhd.FooterSize); err != nil {
		return err
	}
	return f.Sync()
}
