package cmd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/internal/state"
)

// A store that is lost for good is told from one that is not mounted by nobody but the operator: --store-lost says so. Nothing of
// the store is touched, and neither the change logs nor the tracker's memory are removed: should it come back after all, they lead on
// from what it has, when they are moved back.

// mayBeLost says that an error is of those that a store gives which is lost.
func mayBeLost(err error) bool {
	switch fault.FromOS(err).Code {
	case fault.StoreNotMounted, fault.StoreForeign, fault.StoreElsewhere, fault.StoreUnreachable, fault.StoreDenied, fault.ReplicaMissing, fault.NotFound, fault.IO:
		return true
	}
	return false
}

// orLost adds to the error of a store what is to be done when it is lost.
func (w *world) orLost(err error, vm *site.VM) error {
	if e := fault.Find(err); e != nil && mayBeLost(err) {
		e.Msg += "; should the store be lost for good: \"" + w.commands("sitrep unprotect "+vm.Name+" --store-lost") + "\""
	}
	return err
}

// unprotectLost ends the relationship of a VM whose store is lost.
func (w *world) unprotectLost(ctx context.Context, vm *site.VM, h *vmHead) error {
	if w.opts.dryRun {
		mem, err := w.lost(ctx, vm)
		if err == nil {
			w.planned(vm, "disable protection without the store; set the change logs beside the disks aside, into folders %s", w.asideName(vm, mem))
		}
		return err
	}
	return w.locked(ctx, vm, func(ctx context.Context) error {
		return w.job(vm, "Disable protection: the store is lost", h, func(j *state.Job) error { return w.giveUpStore(ctx, vm, j, h) })
	})
}

func (w *world) giveUpStore(ctx context.Context, vm *site.VM, j *state.Job, h *vmHead) (err error) {
	var mem state.VM
	err = j.Step("Make sure that the replica is out of reach", func() (int64, string, error) {
		mem, err = w.lost(ctx, vm)
		return 0, "", err
	})
	if err != nil {
		return err
	}
	name := w.asideName(vm, mem)
	var folders []string
	var moved int64
	err = j.Step("Set the change logs aside", func() (int64, string, error) {
		folders, moved, err = w.engine(vm, nil, mem.Replica, w.meter(vm.Name)).SetLogsAside(name)
		if fault.Is(err, fault.NotFound) { // the source is gone, and its logs with it
			err = nil
		}
		return 0, strings.Join(folders, ", "), err
	})
	if err != nil {
		return err
	}
	err = j.Step("Remove what this site keeps", func() (int64, string, error) { return 0, "", w.forgetLost(vm, mem, name) })
	if err != nil {
		return err
	}
	h.State = notProtected
	w.sayLost(vm, mem, name, folders, moved)
	return nil
}

// asideName is the folder, beside the disks, of the change logs of a replica that is lost, and that of the tracker's memory. A replica
// that came back, and is lost again, gets another one each time; a call that was cut off goes on with its own.
func (w *world) asideName(vm *site.VM, mem state.VM) string {
	name := vm.Name + ".lost-" + mem.Replica.String()[:8]
	there := func(path string) bool {
		_, err := w.fs.Stat(path)
		return err == nil
	}
	last, next := "", name
	for n := 2; there(w.memory.Path("lost", next)); n++ {
		last, next = next, fmt.Sprintf("%s.%d", name, n)
	}
	if last != "" && !there(w.trackDir(vm)) { // it was moved, and no more
		return last
	}
	return next
}

// lost returns what is remembered of a VM whose replica is out of reach, and refuses one that is not.
func (w *world) lost(ctx context.Context, vm *site.VM) (state.VM, error) {
	mem, known, err := w.memory.VM(vm.Name)
	if err != nil {
		return mem, err
	}
	r, st, err := w.replica(ctx, vm, forReading)
	switch {
	case err == nil:
		return mem, errors.Join(fault.New(fault.WrongState, "the replica is in the store %s, in state %s: the store is not lost",
			w.store.Describe(), st.Phase).Of(vm.Name, "").Then("sitrep unprotect "+vm.Name), r.Close())
	case !known:
		return mem, fault.New(fault.NotProtected, "this site remembers no protection of the VM").Of(vm.Name, "")
	case !mayBeLost(err):
		return mem, err
	}
	return mem, nil
}

// forgetLost removes what this site remembers of the relationship, and of the store when no other VM is remembered in it.
func (w *world) forgetLost(vm *site.VM, mem state.VM, name string) error {
	if err := w.setTrackAside(vm, name); err != nil {
		return err
	}
	if err := w.memory.ForgetVM(vm.Name); err != nil {
		return err
	}
	known, ok, err := w.memory.Store()
	if err != nil || !ok || known.ID != mem.Store {
		return err
	}
	others, err := w.memory.VMsIn(mem.Store)
	if err != nil || len(others) > 0 {
		return err
	}
	return w.memory.ForgetStore()
}

// setTrackAside moves the tracker's memory to where it troubles nobody.
func (w *world) setTrackAside(vm *site.VM, name string) error {
	from, to := w.trackDir(vm), w.memory.Path("lost", name)
	if _, err := w.fs.Stat(from); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	err := w.fs.MkdirAll(w.memory.Path("lost"))
	if err == nil {
		err = w.fs.Rename(from, to)
	}
	if err == nil {
		err = errors.Join(w.fs.SyncDir(w.memory.Path("lost")), w.fs.SyncDir(filepath.Dir(from)))
	}
	if err != nil {
		return fault.FromOS(err)
	}
	return nil
}

func (w *world) sayLost(vm *site.VM, mem state.VM, name string, folders []string, moved int64) {
	w.say("%s: protection is disabled; the replica in the lost store was not touched", vm.Name)
	if len(folders) > 0 {
		w.say("%s: its change logs (%s moved now) are kept in %s, and where they begin in %s; remove both when the store is certain not to come back",
			vm.Name, size(moved), strings.Join(folders, ", "), w.memory.Path("lost", name))
	}
	if mem.Phase.Away() || mem.Phase == replica.Retired {
		w.say("%s: the VM was in state %s: see where it runs, and which disks are the newest, before it is protected again", vm.Name, mem.Phase)
	}
	others, err := w.memory.VMsIn(mem.Store)
	switch {
	case err != nil:
		w.log.Warn("which other VMs were in the store is not known", "error", err)
	case len(others) > 0:
		w.say("%s: the store is remembered as long as it is not given up for: %s", vm.Name, strings.Join(others, ", "))
	default:
		w.say("%s: the store is forgotten; next, with the new store in its place or in the site file: %s", vm.Name, w.commands("sitrep protect "+vm.Name))
	}
}
