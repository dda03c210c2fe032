package failover

import (
	"context"
	"errors"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/track"
)

// This file is about the disks at home being those that the VM was replicated from. While it was away a device may have got another's name,
// or paths in the site file may have been mixed up: a failback would write the VM over somebody else's disk. An empty disk loses nothing,
// and a disk that is not there is made.

// sameHome refuses, before a failback is begun, disks at home that are others than those that were replicated.
func (f *homeward) sameHome(ctx context.Context, st replica.State) error {
	if f.Home.To != "" || st.Failover.Failback != nil {
		return nil
	}
	there, _, err := f.disksThere()
	if err != nil {
		return err
	}
	for _, h := range there {
		if d := st.Disk(h.Name); d != nil && d.Identity != "" {
			if err := f.sameHomeDisk(ctx, h, *d); err != nil {
				return fault.In(err, f.VM, h.Name)
			}
		}
	}
	return nil
}

func (f *homeward) sameHomeDisk(ctx context.Context, h HomeDisk, d replica.Disk) (err error) {
	img, err := disk.Open(f.FS, h.Path, disk.Format(d.Format), h.Parents...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	now, err := img.Identity()
	if err != nil {
		return err
	}
	known := disk.ParseIdentity(d.Identity)
	why := known.Another(now)
	if why == "" && known.File != 0 && now.File != 0 && known.File != now.File {
		why, err = f.otherContent(ctx, d, img, known, now)
	}
	if why == "" || err != nil {
		return err
	}
	if empty, err := isEmpty(ctx, img); empty || err != nil {
		return err
	}
	return fault.New(fault.DiskReplaced, "the disk at home, which a failback would overwrite, is %s: correct its path, or move it away: a disk that is not there is made", why).
		At(h.Path)
}

// otherContent compares the disk at home, whose file is another one, with the replica, which nothing has written to since the failover.
func (f *homeward) otherContent(ctx context.Context, d replica.Disk, img *disk.Disk, known, now disk.Identity) (why string, err error) {
	r, err := f.Store.View(ctx, f.VM)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	pages, err := r.Disk(ctx, d)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, pages.Close()) }()
	looked, differ, had, err := replica.DiskSums{Pages: pages, Of: d}.Sample(ctx, img)
	if err != nil || looked == 0 || !track.Replaced(known, now, had, had/looked*differ) {
		return "", err
	}
	return "another file than before, with other data", nil
}

// emptyLooked is how many bytes are read to find out whether a disk is empty, at the most: one that may hold data behind is not.
const emptyLooked = 64 << 20

// isEmpty says whether a disk is known to hold nothing but zeros.
func isEmpty(ctx context.Context, img *disk.Disk) (bool, error) {
	const unit = 1 << 20
	buf, left := durable.AlignedBuffer(unit), int64(emptyLooked)
	for off := int64(0); off < img.Size(); {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		e, err := img.Extent(off, min(unit, img.Size()-off))
		if err != nil {
			return false, err
		}
		if e.Kind == block.Data {
			if left -= e.Len; left < 0 {
				return false, nil
			}
			if err := durable.ReadFull(img, buf[:e.Len], off); err != nil {
				return false, err
			}
			for _, b := range buf[:e.Len] {
				if b != 0 {
					return false, nil
				}
			}
		}
		off = e.End()
	}
	return true, nil
}
