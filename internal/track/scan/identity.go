package scan

import (
	"context"

	"sitrep/internal/disk"
	"sitrep/internal/fault"
	"sitrep/internal/track"
)

// Identity is that of the disk when the view was taken.
func (d *cutDisk) Identity() disk.Identity { return d.identity }

// identify compares the disk's identity with the one that it should have. When it is another, a scan may still find that it
// holds the same; without sums to compare with nothing can.
func (d *cutDisk) identify() (err error) {
	if d.identity, err = d.identityNow(); err != nil || d.d.Accept {
		return err
	}
	if d.another = d.d.Identity.Another(d.identity); d.another != "" && d.prev == nil {
		return d.replaced(d.another)
	}
	return nil
}

// identityNow is that of the disk itself, of which a clone has the content and not the file.
func (d *cutDisk) identityNow() (disk.Identity, error) {
	now, err := d.view.Identity()
	if d.temp != "" && len(d.chain.stamps) == 1 {
		now.File = d.chain.stamps[0].Inode
	}
	return now, err
}

func (d *cutDisk) replaced(why string) error {
	return fault.New(fault.DiskReplaced, "%s", why).At(d.d.Path).Of(d.cut.t.c.VM, d.d.Name)
}

// refuseAnother is the emit of the scan of a disk that is another one: it may differ in nothing.
func (d *cutDisk) refuseAnother(context.Context, track.Change) error { return d.replaced(d.another) }

// refuseMassive refuses a change of nearly all data.
func (d *cutDisk) refuseMassive(s track.Stats) error {
	if d.d.Accept || !track.Replaced(d.d.Identity, d.identity, s.Had, s.Lost) {
		return nil
	}
	return d.replaced(fault.New(fault.DiskReplaced, "of %d bytes of data %d have changed since the last capture", s.Had, s.Lost).Msg)
}
