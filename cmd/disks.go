package cmd

import (
	"context"
	"os"
	"strings"

	"sitrep/internal/disk"
	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/hrl"
	"sitrep/internal/inuse"
	"sitrep/internal/site"
	"sitrep/internal/track"
	"sitrep/internal/track/scan"
)

// This file is what is asked of the world around a disk: who uses it, and whether its VM writes to it at all.

// notInUse refuses a disk that something else uses.
func notInUse(path string) error {
	user, err := inuse.Find(path)
	switch {
	case err != nil:
		return fault.Wrap(fault.DiskInUse, err, "it cannot be told whether something uses the disk").At(path)
	case user != nil:
		return fault.New(fault.DiskInUse, "the disk is in use: %s", user).At(path)
	}
	return nil
}

// notSaved refuses a VM whose memory was saved: when it is started it goes on with what it remembers of its disks, and what was written to
// them meanwhile would be damage.
func notSaved(vm string) error {
	if path := inuse.Saved(vm); path != "" {
		return fault.New(fault.DiskInUse, "libvirt has saved the VM's memory, which knows its disks as they were: start it there and shut it down, or give that up "+
			"(virsh managedsave-remove %s)", vm).At(path).Of(vm, "")
	}
	return nil
}

// written refuses disks that the VM called name at a host does not write to: because it writes to a checkpoint's or a snapshot's file
// on top of them. h may be nil. paths are those of the disks, by name.
func (w *world) written(ctx context.Context, h host.Host, name string, paths map[string]string) error {
	if files, known, err := writes(ctx, h, name); err != nil || known {
		if err != nil {
			return err
		}
		return elsewhere(h, files, paths)
	}
	for disk, path := range paths {
		if err := w.childless(disk, path); err != nil {
			return err
		}
	}
	return nil
}

// writes asks the host what the VM writes to. What it cannot be asked is not known: the files tell then.
func writes(ctx context.Context, h host.Host, name string) (files []string, known bool, err error) {
	t, ok := h.(host.Writer)
	if !ok {
		return nil, false, nil
	}
	files, known, err = t.Writes(ctx, name)
	if err != nil && ctx.Err() == nil {
		return nil, false, nil // who relies on the host's answer asks for its state, and is told why there is none
	}
	return files, known, err
}

// elsewhere refuses disks that are not among the files that the VM writes to.
func elsewhere(h host.Host, files []string, paths map[string]string) error {
	var others []string
	for _, f := range files {
		ours := false
		for _, path := range paths {
			ours = ours || sameDisk(f, path)
		}
		if !ours {
			others = append(others, f)
		}
	}
	for disk, path := range paths {
		found := false
		for _, f := range files {
			found = found || sameDisk(f, path)
		}
		if !found {
			what := strings.Join(others, ", ")
			return fault.New(fault.DiskElsewhere, "the VM does not write to this disk; %s says that it writes to %s", h.Describe(), cmpOr(what, "none")).At(path).Of("", disk)
		}
	}
	return nil
}

// sameDisk says whether a host's path and ours are one disk. A path of another machine is compared by its last name.
func sameDisk(theirs, ours string) bool {
	a, errA := os.Stat(theirs)
	b, errB := os.Stat(ours)
	if errA == nil && errB == nil {
		return os.SameFile(a, b)
	}
	return strings.EqualFold(lastName(theirs), lastName(ours))
}

func lastName(path string) string { return path[strings.LastIndexAny(path, `/\`)+1:] }

// childless refuses a disk with a checkpoint's or a snapshot's file beside it.
func (w *world) childless(name, path string) error {
	if isDevice(path) {
		return nil
	}
	child, err := disk.Child(w.fs, path)
	switch {
	case err != nil:
		return fault.In(err, "", name)
	case child != "":
		return fault.New(fault.DiskElsewhere, "the VM does not write to this disk: the file on top of it, which has it as its parent, is %s", child).At(path).Of("", name)
	}
	return nil
}

// writesHere refuses a source that does not write to its disks.
func (w *world) writesHere(ctx context.Context, vm *site.VM) error {
	h, err := w.sourceHost(vm.Host, vm)
	if err != nil {
		return err
	}
	paths := map[string]string{}
	for _, d := range vm.Disks {
		paths[d.Name] = d.Path
	}
	return fault.In(w.written(ctx, h, vm.Name, paths), vm.Name, "")
}

// believed is a tracker whose cuts are taken of disks that their VM writes to, and of no others.
type believed struct {
	*scan.Tracker
	writesHere func(ctx context.Context) error
}

func (t *believed) Cut(ctx context.Context, since hrl.Pos) (track.Cut, error) {
	if err := t.writesHere(ctx); err != nil {
		return nil, err
	}
	return t.Tracker.Cut(ctx, since)
}
