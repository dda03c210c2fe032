//go:build linux

package simulation_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// past is a moment that nothing is older than which is to be forgotten.
func (w *world) past() time.Time { return time.Now().Add(-time.Hour) }

// backup copies the store and what the primary site remembers. The four newest backups are kept.
func (w *world) backup(string) {
	w.Helper()
	to := w.path("backups", fmt.Sprint(w.counts["backups"]))
	w.counts["backups"]++
	w.copyTree(w.path("store"), filepath.Join(to, "store"))
	if w.exists("a", ".sitrep") {
		w.copyTree(w.path("a", ".sitrep"), filepath.Join(to, "memory"))
	}
	w.backups = append(w.backups, to)
	if len(w.backups) > 4 {
		must(w.T, os.RemoveAll(w.backups[0]))
		w.backups = w.backups[1:]
	}
	w.note("backup %s", filepath.Base(to))
}

// older is a backup that has a file or folder.
func (w *world) older(parts ...string) (string, bool) {
	list := slices.Clone(w.backups)
	w.rnd.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	for _, b := range list {
		path := filepath.Join(append([]string{b}, parts...)...)
		if _, err := os.Lstat(path); err == nil {
			return path, true
		}
	}
	return "", false
}

// restore brings a file or folder of the store back from a backup.
func (w *world) restore(parts ...string) {
	w.Helper()
	from, ok := w.older(append([]string{"store"}, parts...)...)
	if !ok {
		return
	}
	w.copyTree(from, w.path(append([]string{"store"}, parts...)...))
	w.note("restored %s from backup %s", filepath.Join(parts...), strings.TrimPrefix(from, w.path("backups")+"/"))
	w.counts["restored"]++
}

// damageReplica brings some of a VM's replica back from older copies, or rots it, and lets an operator go on.
func (w *world) damageReplica(vm string) {
	w.Helper()
	if w.owner[vm] == nil || len(w.backups) == 0 {
		return
	}
	w.damaged[vm] = true
	d := w.home(vm).disks[0].name
	if w.chance(50) {
		d = w.home(vm).disks[len(w.home(vm).disks)-1].name
	}
	switch w.rnd.IntN(9) {
	case 0:
		w.rot("store", vm, "ledger.json")
		w.run(w.machines[0], "delta", vm, "--now")
		w.restore(vm, "ledger.json") // as it is told
	case 1:
		w.restore(vm, "ledger.json")
	case 2:
		w.restore(vm, d+".vhd")
	case 3:
		w.restore(vm, d+".sums")
	case 4:
		w.restore(vm, d+".vhd")
		w.restore(vm, d+".sums")
	case 5:
		w.restore(vm, "points")
	case 6:
		w.restore(vm, "ledger.json")
		w.restore(vm, "points")
	case 7:
		w.restore(vm)
	case 8:
		if files := w.files(w.path("store", vm)); len(files) > 0 {
			w.rot(files[w.rnd.IntN(len(files))])
		}
	}
	if w.chance(60) {
		w.judge(vm)
	}
	if w.chance(60) {
		w.guest(vm)
	}
	w.run(w.machines[0], "delta", vm, "--now")
	if w.chance(60) {
		w.judge(vm)
	}
	w.heal(vm)
	if o := w.run(w.machines[0], "verify", vm); o.code != 0 { // which finds what a delta has no reason to look at
		w.damaged[vm] = true
		w.heal(vm)
		if o := w.run(w.machines[0], "verify", vm); o.code != 0 {
			w.wrong("after all that was advised the replica of %s is not proved: %v", vm, o)
		}
	}
	w.judge(vm)
}

// files are the files below a folder, but for locks.
func (w *world) files(folder string) (out []string) {
	w.Helper()
	must(w.T, filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && !strings.HasSuffix(path, "lock") {
			rel, rerr := filepath.Rel(w.dir, path)
			out, err = append(out, rel), rerr
		}
		return err
	}))
	return out
}

// rot changes some bytes of a file.
func (w *world) rot(parts ...string) {
	w.Helper()
	path := w.path(parts...)
	data, err := os.ReadFile(path)
	if err != nil || len(data) == 0 {
		return
	}
	at := w.rnd.IntN(len(data))
	for i := at; i < min(at+8, len(data)); i++ {
		data[i] ^= 0x5A
	}
	must(w.T, os.WriteFile(path, data, 0o600))
	w.note("%s rots at %d", filepath.Join(parts...), at)
	w.counts["rotten"]++
}

// damageMemory deletes, restores or rots what the primary site remembers.
func (w *world) damageMemory(string) {
	w.Helper()
	if !w.exists("a", ".sitrep") {
		return
	}
	for _, vm := range w.vms {
		w.damaged[vm] = true
	}
	switch w.rnd.IntN(3) {
	case 0:
		must(w.T, os.RemoveAll(w.path("a", ".sitrep")))
		w.note("the site's memory is deleted")
	case 1:
		if from, ok := w.older("memory"); ok {
			w.copyTree(from, w.path("a", ".sitrep"))
			w.note("the site's memory is that of a backup")
		}
	case 2:
		if files := w.files(w.path("a", ".sitrep")); len(files) > 0 {
			w.rot(files[w.rnd.IntN(len(files))])
			for _, vm := range w.vms {
				w.latent[vm] = true
			}
		}
	}
	w.counts["memory damaged"]++
	w.healAll()
}

// moveStore makes a copy of the store take its place: all bytes are the same, and no inode is.
func (w *world) moveStore(string) {
	w.Helper()
	w.copyTree(w.path("store"), w.path("moved"))
	must(w.T, os.RemoveAll(w.path("store")))
	must(w.T, os.Rename(w.path("moved"), w.path("store")))
	w.note("the store was moved")
	w.counts["store moved"]++
	w.healAll()
}

// identity takes the store's own file away, puts an older one in its place, or all of an older store.
func (w *world) identity(string) {
	w.Helper()
	for _, vm := range w.vms {
		if w.owner[vm] == nil {
			return
		}
		w.damaged[vm] = true
	}
	switch w.rnd.IntN(3) {
	case 0:
		must(w.T, os.Remove(w.path("store", "sitrep-store.json")))
		w.note("the store's own file is gone")
	case 1:
		w.restore("sitrep-store.json")
	case 2:
		for _, vm := range w.vms {
			w.restore(vm)
		}
		w.restore("sitrep-store.json")
	}
	w.healAll()
}

func (w *world) healAll() {
	w.Helper()
	for _, vm := range w.vms {
		w.heal(vm)
		w.judge(vm)
	}
}
