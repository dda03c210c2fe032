package cmd

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"sitrep/internal/disk"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/site"
)

// acceptFlag is how an operator says that a disk is to be replicated although it is another than before.
func acceptFlag() cli.Flag {
	return &cli.StringSliceFlag{Name: "accept-disk", Usage: "replicate the disk `NAME` although it is another one than before, or nearly all of it has changed"}
}

// accepts takes the disks of --accept-disk, which are those of one VM.
func (w *world) accepts(c *cli.Context, vm *site.VM) error {
	names := c.StringSlice("accept-disk")
	if len(names) > 0 && c.NArg() != 1 {
		return fault.New(fault.UsageError, "--accept-disk is for one VM: name it")
	}
	for _, name := range names {
		if diskOf(vm, name) == nil {
			var has []string
			for _, d := range vm.Disks {
				has = append(has, d.Name)
			}
			return fault.New(fault.UsageError, "--accept-disk: the VM has no disk %s; it has %s%s", name, strings.Join(has, ", "), site.DidYouMean(name, has)).
				Of(vm.Name, "")
		}
	}
	w.accepted = names
	return nil
}

// forgetAccepted takes the identity of the accepted disks out of the ledger: the next capture learns it, whatever becomes of
// this run.
func (s *session) forgetAccepted(ctx context.Context) error {
	changed := false
	for i := range s.state.Disks {
		if d := &s.state.Disks[i]; slices.Contains(s.accepted, d.Name) && d.Identity != "" {
			d.Identity, changed = "", true
		}
	}
	if !changed {
		return nil
	}
	st, err := s.engine.Replica.Ledger().Save(ctx, s.state)
	if err == nil {
		s.state = st
	}
	return err
}

// sameDisks refuses a VM of which another disk stands at its path, before anything is changed.
func (s *session) sameDisks() error {
	for _, d := range s.state.Disks {
		file := diskOf(s.vm, d.Name)
		if file == nil || d.Anew || slices.Contains(s.accepted, d.Name) {
			continue // told by whoever opens it
		}
		if err := s.sameDisk(file, d); err != nil {
			return fault.In(err, s.vm.Name, d.Name)
		}
	}
	return nil
}

func (s *session) sameDisk(file *site.Disk, d replica.Disk) (err error) {
	img, err := s.openDisk(s.vm, file, disk.Format(d.Format))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, img.Close()) }()
	now, err := img.Identity()
	if err != nil {
		return err
	}
	if why := disk.ParseIdentity(d.Identity).Another(now); why != "" {
		return fault.New(fault.DiskReplaced, "%s", why).At(file.Path)
	}
	return nil
}

// sayAccept adds to the error of a disk that is another one the command that accepts it.
func (w *world) sayAccept(vm *site.VM, err error) error {
	if e := fault.Find(err); e != nil && e.Code == fault.DiskReplaced && e.Disk != "" && !strings.Contains(e.Msg, "--accept-disk") {
		verb := "delta"
		if w.res.Command == "resync" {
			verb = "resync"
		}
		e.Msg += "; to replicate it from now on: " + w.commands("sitrep "+verb+" "+vm.Name+" --accept-disk "+e.Disk+" --now")
	}
	return err
}
