package cmd

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sitrep/internal/disk"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/replica/dir"
	"sitrep/internal/replica/pageblob"
	"sitrep/internal/site"
	"sitrep/internal/state"
	"sitrep/internal/track"
	"sitrep/internal/track/scan"
	"sitrep/replicate"
)

// world is a site with what surrounds it: where it keeps its memory, and where replicas live.
type world struct {
	*program
	site   *site.Site
	memory *state.Dir
	holds  *state.Dir // memory, of what is held: see program.disk
	store  replica.Store
	// noStore says why store is nil.
	noStore error
	// secondary is the address of the account itself when the store is its read-only copy, else "".
	secondary string
	// accepted are the disks of the VM that are replicated whatever they are.
	accepted []string
	// atOnce says that the command was given --now: what is only estimated keeps it from nothing.
	atOnce bool
	// moved is the bytes that each VM's replica was sent by this run.
	moved *moved
	// yielded is the request (state.Ask) for which the work on a VM, by its name, was ended.
	yielded sync.Map
	// proven is when the store was last found to be the one that this site knows.
	proven atomic.Pointer[time.Time]
	// toldReadOnly is the VM of which it was said last that its store cannot be written to.
	toldReadOnly string
}

// open reads the site file. Nothing is created and no store is looked at.
func (p *program) open() (*world, error) {
	p.res.DryRun = p.opts.dryRun
	s, err := site.Load(p.fs, p.opts.site)
	if err != nil {
		return nil, err
	}
	p.res.Site = s.Path
	if p.disk == nil {
		p.disk = p.fs
	}
	w := &world{program: p, site: s, memory: state.Open(p.fs, p.stateDir(s.Dir), p.now),
		holds: state.Open(p.disk, p.stateDir(s.Dir), p.now), moved: &moved{bytes: map[string]int64{}}}
	var store replica.Store
	if s.Store.Azure == nil {
		store = dir.New(p.fs, s.Store.Directory)
	} else if store, w.noStore = w.azureStore(s); w.noStore != nil {
		return w, nil
	}
	w.store = replica.InHand(replica.WithRetries(w.limited(store), replica.Retries{Sleep: p.sleep, Log: p.log}))
	if p.opts.dryRun {
		w.store = replica.Looking(w.store)
	}
	return w, nil
}

// azureStore is the store in Azure. Nothing is asked yet, but the secret has to be there.
func (w *world) azureStore(s *site.Site) (replica.Store, error) {
	a := s.Store.Azure
	store, err := pageblob.Open(pageblob.Config{
		AccountURL: a.AccountURL, AccountName: a.AccountName, LogAccountURL: a.LogAccountURL, Container: a.Container,
		ConnectionStringEnv: a.ConnectionStringEnv, KeyEnv: a.KeyEnv, SASEnv: a.SASEnv,
		ConnectionStringFile: a.ConnectionStringFile, KeyFile: a.KeyFile, SASFile: a.SASFile,
	}, pageblob.Options{
		HolderOf: w.holder, Log: w.log, Concurrency: a.Concurrency,
		BytesPerSecond: paced(a.BlobRate), RequestsPerSecond: int64(a.BlobRequests),
	})
	if err != nil {
		return nil, err
	}
	w.secondary, _ = store.Secondary()
	if access, ok := store.Access(); ok {
		w.res.Access = accessObjectOf(access, w.now())
	}
	if _, set := os.LookupEnv("GOGC"); !set {
		debug.SetGCPercent(pageblob.GCPercent)
	}
	return store, nil
}

// paced is a rate for pageblob.Options, where 0 is the default and less is none.
func paced(rate int64) int64 {
	if rate == 0 {
		return -1
	}
	return rate
}

// haveStore fails when the store cannot be entered: what needs none works all the same. The error is a new one for each VM, to be
// told of it.
func (w *world) haveStore() error {
	if e := fault.Find(w.noStore); e != nil {
		own := *e
		return &own
	}
	return w.noStore
}

// access says what a replica is opened for.
type access int

const (
	forReading access = iota
	// forWriting is what only the writer of the replica does, as whom this site then stands in the ledger.
	forWriting
	// forUpkeep is what any machine of the vault may do beside the writer: to apply what it has shipped, where the policy says that this
	// is done elsewhere; to prove the replica; to make disks of its points.
	forUpkeep
	// forLooking is forUpkeep that can do without writing, where the store cannot be written to.
	forLooking
)

// looking is the store for work that only looks at replicas.
func (w *world) looking() replica.Store {
	return replica.WithNotes(w.store, w.memory, func(vm, why string) {
		if w.toldReadOnly != vm {
			w.say("%s: the store cannot be written to: %s, and what is to be recorded is kept in %s", vm, why, w.memory.Path())
		}
		w.toldReadOnly = vm
	})
}

// replica opens the replica of a VM. It tells a store that is not mounted, and a replica that has vanished, from a VM
// that was never protected, as far as this site remembers.
func (w *world) replica(ctx context.Context, vm *site.VM, a access) (replica.Replica, replica.State, error) {
	var none replica.State
	if err := w.haveStore(); err != nil {
		return nil, none, err
	}
	if err := w.checkStoreOf(ctx, vm); err != nil {
		return nil, none, err
	}
	open := w.looking().View
	switch a {
	case forWriting, forUpkeep:
		open = w.store.Open
	case forLooking:
		open = w.looking().Open
	}
	r, err := open(ctx, vm.Name)
	if err != nil {
		return nil, none, w.missing(vm, err)
	}
	st, err := r.Ledger().Load(ctx)
	if err == nil && a != forReading {
		err = w.owned(st)
	}
	if err == nil && a == forWriting {
		err = w.mine(vm.Name, st)
	}
	if err == nil && a != forReading {
		err = w.remember(ctx, vm, st)
	}
	out := r
	if err == nil && a == forWriting {
		out, err = w.claim(vm.Name, r, st)
	}
	if err != nil {
		return nil, none, errors.Join(err, r.Close())
	}
	return out, st, nil
}

// owned refuses to write to a replica of another vault: two sites whose VMs have the same name, and that were given the same
// store, would overwrite each other's. Looking is free, from anywhere.
func (w *world) owned(st replica.State) error {
	if st.Vault == w.site.Vault {
		return nil
	}
	return fault.New(fault.Fenced, "the replica belongs to vault %q (site %s on host %s, since %s), and this site file is of vault %q",
		st.Vault, st.Owner.Site, st.Owner.Host, stamp(st.Owner.Since), w.site.Vault).Of(st.VM, "").At(w.store.Describe())
}

// checkStore asks whether the store is the one that this site knows. A store in another place was changed in the site
// file, and is another one by intention.
func (w *world) checkStore(ctx context.Context) error {
	known, ok, err := w.memory.Store()
	if err != nil || !ok || known.Where != w.store.Describe() {
		return err
	}
	if at := w.proven.Load(); at != nil && time.Since(*at) < provenFor {
		return nil
	}
	if _, err = w.store.Prepare(ctx, known.ID); err == nil {
		at := time.Now()
		w.proven.Store(&at)
	}
	return err
}

// provenFor is for how long a store is taken for the one that it was found to be. A volume that is gone from its folder meanwhile is told
// by the replica that is not there.
const provenFor = time.Minute

// checkStoreOf is checkStore for work on a VM. A store whose identity was written anew, and that holds the very replica that this site
// knows, is the one.
func (w *world) checkStoreOf(ctx context.Context, vm *site.VM) error {
	err := w.checkStore(ctx)
	if !fault.Is(err, fault.StoreForeign) {
		return err
	}
	mem, known, merr := w.memory.VM(vm.Name)
	id, perr := w.store.Prepare(ctx, hrl.ID{})
	if merr != nil || !known || mem.Replica.IsZero() || perr != nil {
		return err
	}
	r, verr := w.store.View(ctx, vm.Name)
	if verr != nil {
		return err
	}
	st, verr := r.Ledger().Load(ctx)
	if verr = errors.Join(verr, r.Close()); verr != nil || st.Replica != mem.Replica {
		return err
	}
	w.log.Warn("the store has another id than this site knew, and holds its replica: it is taken for the same", "store", w.store.Describe(), "id", id)
	if w.opts.dryRun {
		return nil
	}
	return w.memory.RememberStore(id, w.store.Describe())
}

// missing says what it means that the store has no replica of the VM, or is no store.
func (w *world) missing(vm *site.VM, err error) error {
	mem, known, merr := w.memory.VM(vm.Name)
	switch {
	case merr != nil:
		return merr
	case known && w.elsewhere() != "":
		return fault.New(fault.StoreElsewhere, "the VM's replica is in the store %s, and the site file now names another one",
			w.elsewhere()).At(w.store.Describe()).Of(vm.Name, "")
	case fault.Is(err, fault.NotProtected) && known && w.inAnother(mem):
		return fault.New(fault.StoreElsewhere, "the VM's replica is in another store, which this site used before (id %s)",
			mem.Store).At(w.store.Describe()).Of(vm.Name, "")
	case fault.Is(err, fault.NotProtected) && known:
		return fault.New(fault.ReplicaMissing, "the VM is protected since %s, but the store has no replica of it",
			mem.Protected.UTC().Format("2006-01-02T15:04:05Z")).At(w.store.Describe()).Of(vm.Name, "")
	case fault.Is(err, fault.StoreNotMounted) && !known && !w.storeExists():
		return fault.New(fault.NotProtected, "there is no store yet at %s", w.store.Describe()).Of(vm.Name, "")
	}
	return err
}

// elsewhere is where the store lay when this site used it last, "" if that is where it should be now, or is not known.
func (w *world) elsewhere() string {
	known, ok, err := w.memory.Store()
	if err != nil || !ok || known.Where == w.store.Describe() {
		return ""
	}
	return known.Where
}

// inAnother says that a VM was protected in another store than the one that this site uses now, or is to use.
func (w *world) inAnother(mem state.VM) bool {
	known, ok, err := w.memory.Store()
	return err == nil && ok && !mem.Store.IsZero() && (known.ID != mem.Store || known.Where != w.store.Describe())
}

// storeExists says whether there is anything where the store should be: a folder that is there and is empty may be the
// place where a volume is not mounted.
func (w *world) storeExists() bool {
	known, ok, err := w.memory.Store()
	if err != nil || ok && known.Where == w.store.Describe() {
		return true
	}
	if w.site.Store.Azure != nil {
		return false // a container that is not there yet is not mistaken for one that is elsewhere
	}
	_, err = w.fs.Stat(w.site.Store.Directory)
	return !errors.Is(err, fs.ErrNotExist)
}

// remember keeps that the VM is protected, and in which store.
func (w *world) remember(ctx context.Context, vm *site.VM, st replica.State) error {
	if w.opts.dryRun {
		return nil
	}
	known, ok, err := w.memory.Store()
	if err != nil {
		return err
	}
	if !ok || known.Where != w.store.Describe() {
		if known.ID, err = w.store.Prepare(ctx, hrl.ID{}); err != nil { // it is there: we have just opened a replica in it
			return err
		}
		if err := w.memory.RememberStore(known.ID, w.store.Describe()); err != nil {
			return err
		}
	}
	mem, _, err := w.memory.VM(vm.Name)
	if err != nil || mem.Replica == st.Replica && mem.Store == known.ID {
		return err
	}
	if mem.Replica != st.Replica {
		mem = state.VM{VM: vm.Name, Replica: st.Replica, Protected: st.Created, Rates: mem.Rates}
	}
	mem.Store, mem.Disks, mem.Phase, mem.AsOf, mem.Joined = known.ID, disksOf(st), st.Phase, st.AsOf, len(st.Joined) > 0
	return w.memory.RememberVM(mem)
}

// engine is what the verbs of package replicate work with. r may be nil where a verb needs no replica.
func (w *world) engine(vm *site.VM, r replica.Replica, id hrl.ID, m *meter) *replicate.Job {
	logs := make(map[string]string, len(vm.Disks))
	for _, d := range vm.Disks {
		logs[d.Name] = w.logDir(vm, d)
	}
	return &replicate.Job{
		VM: vm.Name, ReplicaID: id, Replica: r, FS: w.fs, LogDir: logs, Keep: vm.Policy().RecoveryPoints,
		Massive: vm.Policy().MassiveChange, Reserve: vm.Policy().SourceReserve.Of,
		Meter: m, Log: w.log, Now: w.now, Pace: w.pace(),
	}
}

// pace is what the store is best worked with.
func (w *world) pace() replicate.Pace {
	if w.site.Store.Azure != nil {
		return replicate.Pace{Unit: pageblob.CopyUnit, Tasks: pageblob.CopyTasks, Checkpoint: pageblob.Checkpoint}
	}
	return replicate.Pace{}
}

// logDir is the folder of a disk's change logs: the one of the disk itself, but for devices, whose folder is the
// system's.
func (w *world) logDir(vm *site.VM, d *site.Disk) string {
	if isDevice(d.Path) {
		return w.memory.Path("logs", vm.Name)
	}
	return filepath.Dir(d.Path)
}

// isDevice goes by the name, so that a device that is away is one; a file in /dev (in /dev/shm, say) is none.
func isDevice(path string) bool {
	if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() || strings.HasPrefix(path, "/dev/shm/") {
		return false
	}
	return strings.HasPrefix(filepath.ToSlash(path), "/dev/") || strings.HasPrefix(path, `\\.\`)
}

// makeLogDirs makes the folder of the change logs of a VM's devices.
func (w *world) makeLogDirs(vm *site.VM) error {
	for _, d := range vm.Disks {
		if !w.opts.dryRun && isDevice(d.Path) {
			return w.fs.MkdirAll(w.logDir(vm, d))
		}
	}
	return nil
}

// deltasOf is the tracker of a VM's deltas, for looking only.
func (w *world) deltasOf(vm *site.VM, disks []state.Disk) (*scan.Tracker, error) {
	tracked, err := w.trackedDisks(vm, disks)
	if err != nil {
		return nil, err
	}
	return scan.Look(w.fs, scan.Config{VM: vm.Name, Disks: tracked, Dir: w.trackDir(vm), Now: w.now})
}

// withSource gives an engine the tracker of the VM's disks. where is the folder of the tracker's memory.
func (w *world) withSource(j *replicate.Job, vm *site.VM, disks []state.Disk, where string) (err error) {
	tracked, err := w.trackedDisks(vm, disks)
	if err == nil {
		err = w.makeLogDirs(vm)
	}
	if err != nil {
		return err
	}
	open := scan.Open
	if w.opts.dryRun {
		open = scan.Look
	}
	t, err := open(w.fs, scan.Config{VM: vm.Name, Disks: tracked, Dir: where, Now: w.now})
	if err != nil {
		return err
	}
	j.Tracker = &believed{t, func(ctx context.Context) error { return w.writesHere(ctx, vm) }}
	return nil
}

// disksOf is how the disks of a ledger are read.
func disksOf(st replica.State) []state.Disk {
	var out []state.Disk
	for _, d := range st.Disks {
		out = append(out, state.Disk{Name: d.Name, Format: d.Format, BlockSize: d.BlockSize, Identity: d.Identity, Anew: d.Anew})
	}
	return out
}

func (w *world) trackDir(vm *site.VM) string { return w.memory.Path("track", vm.Name) }

// trackedDisks pairs the disks of the ledger with those of the site file, which may have more: see addDisks. A disk's format is what it was when protection
// was enabled: guessing again could be misled by what the guest writes.
func (w *world) trackedDisks(vm *site.VM, disks []state.Disk) ([]track.Disk, error) {
	var out []track.Disk
	for _, d := range disks {
		s := diskOf(vm, d.Name)
		if s == nil {
			return nil, fault.New(fault.PrerequisiteFail,
				"the site file no longer has this disk, and the replica and its recovery points do; put it back, or unprotect the VM and protect it again").Of(vm.Name, d.Name)
		}
		out = append(out, track.Disk{Name: d.Name, Path: s.Path, Format: disk.Format(d.Format), BlockSize: d.BlockSize, Parents: s.Parents,
			Identity: disk.ParseIdentity(d.Identity), Accept: d.Anew || slices.Contains(w.accepted, d.Name)})
	}
	return out, nil
}

func diskOf(vm *site.VM, name string) *site.Disk {
	for _, d := range vm.Disks {
		if d.Name == name {
			return d
		}
	}
	return nil
}

// openDisk opens a disk of the site file for reading.
func (w *world) openDisk(vm *site.VM, d *site.Disk, format disk.Format) (*disk.Disk, error) {
	img, err := disk.Open(w.fs, d.Path, format, d.Parents...)
	if err != nil {
		return nil, fault.In(err, vm.Name, d.Name)
	}
	return img, nil
}

// formatOf is what a disk is read as: what it was when protection was enabled, else what the site file says.
func formatOf(d *site.Disk, pinned []state.Disk) disk.Format {
	for _, p := range pinned {
		if p.Name == d.Name {
			return disk.Format(p.Format)
		}
	}
	return wantedFormat(d)
}

// wantedFormat is what the site file says of a disk's format.
func wantedFormat(d *site.Disk) disk.Format {
	if d.Format == site.FormatAuto {
		return disk.Auto
	}
	return disk.Format(d.Format)
}

// pinned is how the disks of a protected VM are read: by its ledger st, nil if there is none or it cannot be read, else by what
// this site remembers.
func (w *world) pinned(vm *site.VM, st *replica.State) []state.Disk {
	if st != nil && st.Phase != replica.Retired {
		return disksOf(*st)
	}
	mem, _, err := w.memory.VM(vm.Name)
	if err != nil {
		return nil
	}
	return mem.Disks
}
