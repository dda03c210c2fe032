package failover

import (
	"context"
	"errors"
	"io"

	"sitrep/failover/home"
	"sitrep/failover/recovered"
	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/replica"
)

// This file is about disks at home that are larger than what comes home to them: they grew after the last changes that were replicated, or
// after the recovery point that the VM was made of. A disk is never made smaller. What comes home is the recovered disk with zeros behind
// it, as if it had been made larger there, up to the size of the disk at home, or of its replica: replication goes on from that one.

// longer is a disk with zeros behind it.
type longer struct {
	disk.Image
	size int64
}

// atLeast is a disk that has no less than size bytes.
func atLeast(img disk.Image, size int64) disk.Image {
	if size <= img.Size() {
		return img
	}
	return longer{img, size}
}

func (l longer) Size() int64 { return l.size }

func (l longer) ReadAt(p []byte, off int64) (n int, err error) {
	var end error
	if off >= 0 && int64(len(p)) > l.size-off {
		p, end = p[:max(0, l.size-off)], io.EOF
	}
	inside := p[:max(0, min(int64(len(p)), l.Image.Size()-off))]
	if len(inside) > 0 {
		if n, err = l.Image.ReadAt(inside, off); n < len(inside) {
			return n, err
		}
	}
	clear(p[len(inside):])
	return len(p), end
}

func (l longer) Extent(off, n int64) (block.Extent, error) {
	have := l.Image.Size()
	if off >= have {
		return block.Extent{Range: block.Range{Off: off, Len: n}, Kind: block.Zero}, nil
	}
	return l.Image.Extent(off, min(n, have-off))
}

// lengthen gives the recovered disks the size that they have at home.
func lengthen(h *home.Job, st replica.State) error {
	sizes, err := h.TargetSizes()
	if err != nil {
		return err
	}
	for i := range h.Disks {
		d := &h.Disks[i]
		size := sizes[i]
		if s := st.Disk(d.Name); s != nil {
			size = max(size, s.Size)
		}
		d.Source = atLeast(d.Source, size)
	}
	return nil
}

// sizesFit refuses, before anything is begun, disks at home that cannot become what comes home.
func (f *homeward) sizesFit(ctx context.Context, st replica.State, d host.Definition) (err error) {
	there, _, err := f.disksThere()
	if err != nil || len(there) != len(f.Home.Disks) { // those that are not there are made, and then looked at
		return err
	}
	thaw, err := f.freezeIf(ctx, d.Name, f.Format == disk.QCOW2 || f.Format == disk.VHDX)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, thaw()) }()
	h, shut, err := f.homeJob(ctx, st, d, there, false)
	if err != nil {
		return err
	}
	return errors.Join(h.Check(), shut())
}

// homeIsOurs refuses to bring a VM home into disks that are something else by now: a recovered disk of this VM or of another one, by
// whatever name it is reached, or one disk for two.
func (f *homeward) homeIsOurs(st replica.State, d host.Definition) error {
	taken := map[string]string{}
	for _, x := range d.Disks {
		if id, err := durable.FileID(f.FS, x.Path); err == nil {
			taken[id] = "the recovered disk " + x.Path
		}
	}
	there, _, err := f.disksThere()
	if err != nil {
		return err
	}
	for _, h := range there {
		at, err := durable.FileID(f.FS, h.Path)
		if err != nil {
			return fault.In(err, f.VM, h.Name)
		}
		if what := taken[at]; what != "" {
			return fault.New(fault.PrerequisiteFail, "the disk at home is %s: correct its path in the site file", what).At(h.Path).Of(f.VM, h.Name)
		}
		taken[at] = "the disk " + h.Name
		made, err := recovered.Marked(f.FS, h.Path)
		if err != nil {
			return fault.In(err, f.VM, h.Name)
		}
		if made.VM != "" && !f.madeByFailback(st, made) {
			return fault.New(fault.PrerequisiteFail, "the disk at home was made for a failover of VM %s, and may be in use: correct its path in the site file", made.VM).
				At(h.Path).Of(f.VM, h.Name)
		}
	}
	return nil
}

// madeByFailback says that a disk at home was made by this failback.
func (f *homeward) madeByFailback(st replica.State, made recovered.Owner) bool {
	fb := st.Failover.Failback
	return fb != nil && made.ID == fb.ID && made.VM == f.VM
}
