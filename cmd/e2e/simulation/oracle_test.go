//go:build linux

package simulation_test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sitrep/internal/disk"
)

// point is a recovery point as it is listed.
type point struct {
	ID   string
	Time time.Time
	Lost bool
}

// points are those that a VM's list offers.
func (w *world) points(m *machine, vm string) (list []point) {
	w.Helper()
	o := w.run(m, "points", vm)
	if o.code != 0 || len(o.object.VMs) == 0 {
		return nil
	}
	must(w.T, json.Unmarshal(o.object.VMs[0].Points, &list))
	return slices.DeleteFunc(list, func(p point) bool { return p.Lost })
}

// judge exports all recovery points of a VM, and holds what comes out against the model. A refusal is no wrong answer; of a VM
// to whose files nothing was done it is.
func (w *world) judge(vm string) {
	w.Helper()
	m := w.machines[0]
	for _, p := range w.points(m, vm) {
		to := w.path("export")
		must(w.T, os.RemoveAll(to))
		o := w.run(m, "points", vm, "--export", p.ID, "--to", to)
		if o.code != 0 {
			w.counts["points refused"]++
			if !w.damaged[vm] && p.Time.After(w.whole[vm]) {
				w.wrong("point %s of %s, to whose files nothing was done, cannot be had: %v", p.ID, vm, o)
			}
			continue
		}
		w.holds(vm, p, to, func(d string) (string, disk.Format) { return vm + "." + d + ".vhd", disk.VHD })
		w.counts["points"]++
	}
}

// holds compares the disks of a recovery point in a folder with what the VM held at its cut.
func (w *world) holds(vm string, p point, folder string, file func(disk string) (string, disk.Format)) {
	w.Helper()
	got := map[string]content{}
	entries, err := os.ReadDir(folder)
	must(w.T, err)
	wants := w.cut(vm, p.Time)
	if len(wants) == 0 {
		w.wrong("point %s of %s claims to be of %s, when no run has cut anything", p.ID, vm, p.Time.Format(time.RFC3339Nano))
	}
	for d := range wants[0].disks {
		name, format := file(d)
		if !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == name }) {
			continue
		}
		c, err := read(filepath.Join(folder, name), format)
		if err != nil {
			w.wrong("point %s of %s: %v", p.ID, vm, err)
		}
		got[d] = c
	}
	if !slices.ContainsFunc(wants, func(m moment) bool { return m.equal(got) }) {
		w.wrong("point %s of %s in %s holds %v; the disks held %v at its cut, %s%s", p.ID, vm, folder, got, wants[0].disks, p.Time.Format("15:04:05.000"), w.known(vm, got))
	}
}

// known says when the disks held what was found, should they ever have.
func (w *world) known(vm string, got map[string]content) string {
	var b strings.Builder
	for _, m := range w.machines {
		for _, x := range m.places[vm].past {
			if x.equal(got) {
				fmt.Fprintf(&b, "; that is what they held on %s at %s", m.name, x.from.UTC().Format("15:04:05.000"))
			}
		}
	}
	if b.Len() == 0 {
		return "; they have never held that"
	}
	return b.String()
}

// cut is what a VM's disks held when a run cut them at a time: more than one answer where that run itself wrote into them.
func (w *world) cut(vm string, at time.Time) (out []moment) {
	for i := len(w.spans) - 1; i >= 0; i-- {
		s := w.spans[i]
		if at.Before(s.began.Add(-time.Millisecond)) || at.After(s.ended) {
			continue
		}
		if x, ok := s.m.places[vm].at(at); ok {
			out = append(out, x)
		}
		if x, ok := s.m.places[vm].at(s.ended.Add(time.Millisecond)); ok && (s.args[0] == "failback" || slices.Contains(s.args, "commit")) {
			out = append(out, x)
		}
	}
	return out
}

// recovered compares the disks of a VM at the recovery site with what it held at the point's cut.
func (w *world) recovered(vm, name string, p point) {
	w.Helper()
	w.holds(vm, p, w.path("recovered", name), func(d string) (string, disk.Format) { return d + ".raw", disk.Raw })
	w.counts["recovered"]++
}

// surroundings asks what has to hold whenever a run has ended.
func (w *world) surroundings(o outcome) {
	w.Helper()
	w.orphans()
	for path, text := range w.canaries {
		if data, err := os.ReadFile(path); err != nil || string(data) != text {
			w.wrong("%s was touched: %q, %v; %v", path, data, err, o)
		}
	}
	for _, vm := range w.vms {
		w.thawed(vm, o)
		if w.power("src", vm) == "running" && w.power("dr", vm) == "running" {
			w.wrong("%s runs at both sites; %v", vm, o)
		}
	}
}

// orphans waits for the scripts that a run has started and did not live to see the end of: what they do, they do yet.
func (w *world) orphans() {
	w.Helper()
	list, err := filepath.Glob(w.path("hosts", "busy.*"))
	must(w.T, err)
	for _, path := range list {
		pid, err := strconv.Atoi(filepath.Ext(path)[1:])
		must(w.T, err)
		for syscall.Kill(pid, 0) == nil {
			time.Sleep(time.Millisecond)
		}
		must(w.T, os.Remove(path))
	}
}

// grace is how long after the end of a run a guest may stay frozen.
const grace = 10 * time.Second

// thawed waits until a guest is frozen no more.
func (w *world) thawed(vm string, o outcome) {
	w.Helper()
	for began := time.Now(); w.exists("hosts", "src", vm+".frozen"); time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > grace {
			w.wrong("%s is left frozen, %v after the run has ended (%v); %v", vm, grace, o.signal, o)
		}
	}
}

// fingerprints are what the replicas hold that another machine owns, before a run that has no right to write to them.
func (w *world) fingerprints(m *machine, args []string) map[string]string {
	out := map[string]string{}
	if !slices.Contains([]string{"delta", "resync", "protect", "replicate"}, args[0]) {
		return out
	}
	for _, vm := range w.vms {
		if o := w.owner[vm]; o != nil && o != m {
			out[vm] = w.fingerprint(w.path("store", vm))
		}
	}
	return out
}

// fenced fails the simulation when a machine has changed a replica that is another one's.
func (w *world) fenced(m *machine, args []string, before map[string]string) {
	w.Helper()
	for vm, was := range before {
		if now := w.fingerprint(w.path("store", vm)); now != was {
			w.wrong("machine %s has written to the replica of %s, which machine %s owns", m.name, vm, w.owner[vm].name)
		}
	}
}

// fingerprint is a hash of the names, sizes and bytes of a replica's files, but for its locks.
func (w *world) fingerprint(folder string) string {
	files := map[string]string{}
	_ = filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && !strings.HasSuffix(path, "lock") {
			data, _ := os.ReadFile(path)
			files[path] = fmt.Sprintf("%x", sha256.Sum256(data))
		}
		return nil
	})
	h := sha256.New()
	for _, path := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintln(h, path, files[path])
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}
