// Package state is what this site remembers between runs: which jobs ran and how they ended, which store it replicates
// to, which VMs it has protected, and who works on a VM at this moment.
//
// It is never the truth about a replica: that is the ledger, beside the replica. Everything here may be deleted by the
// operator at any time; what is lost is the history of jobs and the ability to tell a store that is not mounted from one
// that was never used. Therefore nothing of it is needed to read what lies in the store.
//
// The folder (".sitrep" beside the site file, unless told otherwise) holds
//
//	writer.json       the random ID of this folder, by which a replica knows who writes to it
//	store.json        the identity of the store, as of the last successful look at it
//	vms/VM.json       that a VM was protected, as which replica, and what stopped it
//	notes/VM.json     what is to be recorded in a store that cannot be written to (replica.WithNotes)
//	jobs/ID.json      one record for each job
//	jobs/ID.lock      locked by the kernel while the job's process lives
//	locks/VM.lock     locked by the kernel while a run changes the replica, or the VM
//	locks/tests/VM.lock  locked by the kernel while a run makes the VM of a test failover, or removes it
//	asks/ID.json      that a run waits for its turn with a VM, and asks the one that has it to end
//	asks/ID.lock      locked by the kernel while that run waits
//	held/VM.json      that the VM is held still, and how it goes on
//	held/VM.lock      locked by the kernel while a run holds the VM, or lets it go on
//
// Opening a folder does not create it; only what writes does, so that a run that changes nothing leaves no trace.
package state

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/health"
	"sitrep/internal/hrl"
	"sitrep/internal/plain"
	"sitrep/internal/replica"
)

// maxRecord is the longest file of this package in bytes, far above what it writes.
const maxRecord = 1 << 20

// Dir is the folder of a site's memory. Its methods may be called concurrently, by several processes too.
type Dir struct {
	fs   durable.FS
	path string
	now  func() time.Time
}

// Open returns the memory that lies, or will lie, in the folder path. It reads and creates nothing.
func Open(fsys durable.FS, path string, now func() time.Time) *Dir {
	return &Dir{fs: durable.Within(fsys, path), path: path, now: now}
}

// Path returns the path of a file or folder of the memory.
func (d *Dir) Path(elem ...string) string {
	return filepath.Join(append([]string{d.path}, elem...)...)
}

// Store is what is remembered of the store.
type Store struct {
	ID    hrl.ID    `json:"id"`
	Where string    `json:"where"` // as the store describes itself: no secrets
	Seen  time.Time `json:"seen"`
}

// Store returns what is remembered of the store; ok is false when nothing is.
func (d *Dir) Store() (s Store, ok bool, err error) {
	ok, err = d.load(d.Path("store.json"), &s)
	return s, ok, err
}

// RememberStore keeps the store's identity. It is durable on return.
func (d *Dir) RememberStore(id hrl.ID, where string) error {
	old, ok, err := d.Store()
	if err != nil || ok && old.ID == id && old.Where == where {
		return err
	}
	return d.save(d.Path("store.json"), Store{ID: id, Where: where, Seen: d.now().UTC()})
}

// ForgetStore forgets which store this site uses: the next one that is found, or made, is taken for it. It is durable on return.
func (d *Dir) ForgetStore() error {
	err := durable.RemoveIfThere(d.fs, d.Path("store.json"))
	if err == nil {
		err = d.fs.SyncDir(d.Path())
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.FromOS(err)
	}
	return nil
}

// VMsIn returns the names of the VMs that are remembered as protected in a store, sorted.
func (d *Dir) VMsIn(store hrl.ID) (names []string, err error) {
	list, err := d.fs.ReadDir(d.Path("vms"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.FromOS(err)
	}
	for _, e := range list {
		name, isRecord := strings.CutSuffix(e.Name, ".json")
		if !isRecord || durable.IsTemp(e.Name) {
			continue
		}
		vm, ok, err := d.VM(name)
		if err != nil {
			return nil, err
		}
		if ok && vm.Store == store {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Probe is what is remembered of the last probe of a store.
type Probe struct {
	Where string    `json:"where"` // as the store describes itself: no secrets
	At    time.Time `json:"at"`
	Unfit []string  `json:"unfit,omitempty"` // what the product needs and did not find there
}

// Probe returns what is remembered of the last probe; ok is false when nothing is.
func (d *Dir) Probe() (p Probe, ok bool, err error) {
	ok, err = d.load(d.Path("probe.json"), &p)
	return p, ok, err
}

// RememberProbe keeps what a probe found. It is durable on return.
func (d *Dir) RememberProbe(where string, unfit []string) error {
	return d.save(d.Path("probe.json"), Probe{Where: where, At: d.now().UTC(), Unfit: unfit})
}

// VM is what is remembered of a protected VM.
type VM struct {
	VM        string    `json:"vm"`
	Replica   hrl.ID    `json:"replica"`
	Store     hrl.ID    `json:"store"`
	Protected time.Time `json:"protected"`
	// Disks is what change logs can be taken with while the store is out of reach.
	Disks []Disk `json:"disks"`
	// Joined says that one of them has joined the VM and no cut was taken of it: none can be, without the store.
	Joined bool `json:"joined,omitempty"`
	// Critical is the error that an administrator has to mend before the VM is healthy again.
	Critical *Failure `json:"critical,omitempty"`
	// Failed is the last error of another class, cleared by the next success.
	Failed *Failure `json:"failed,omitempty"`
	// Marked says that only resynchronization helps, as long as the ledger could not be told.
	Marked *Mark `json:"marked,omitempty"`
	// Retry is when an attempt may be made after one that failed with a recoverable error.
	Retry health.Retry `json:"retry,omitzero"`
	// Statistics count the cycles of the monitoring interval.
	Statistics health.Statistics `json:"statistics,omitzero"`
	// Phase, AsOf and Applied (the position) are what the ledger said when it was last read, for as long as it is out of reach.
	Phase   replica.Phase `json:"phase,omitempty"`
	AsOf    time.Time     `json:"as_of,omitzero"`
	Applied uint64        `json:"applied,omitempty"`
	// Pause is for how many seconds the VM was held still the last time.
	Pause *float64 `json:"pause_seconds,omitempty"`
	// Sent is how many bytes jobs have moved to the replica.
	Sent int64 `json:"sent_bytes,omitempty"`
	// Rates are the last measured bytes per second, by kind of work.
	Rates map[string]float64 `json:"rates,omitempty"`
	// Runs are the runs that may be the last to have written to the replica, as far as this site knows (see replica.Owner): its own, and
	// the one that it found in the ledger. The newest is the first.
	Runs []hrl.ID `json:"runs,omitempty"`
}

// Mark is why only resynchronization helps, as far as this site knows: what could not be told to the ledger, or what the last run found;
// nil when there is nothing.
func (v VM) Mark() *Mark {
	if v.Marked != nil || v.Failed == nil {
		return v.Marked
	}
	switch v.Failed.Code.Class() {
	case fault.Resync, fault.Differs:
		return &Mark{Code: v.Failed.Code, Reason: v.Failed.Message, Since: v.Failed.At}
	}
	return nil
}

// Mark is a reason for resynchronization that was found while the ledger was out of reach.
type Mark struct {
	Code   fault.Code `json:"code"`
	Reason string     `json:"reason"`
	Since  time.Time  `json:"since"`
}

// Disk is how a disk is read: fixed when protection is enabled.
type Disk struct {
	Name      string `json:"name"`
	Format    string `json:"format"`
	BlockSize int64  `json:"block_size"` // bytes
	// Identity tells the disk from another one at its path, unless it is to be learned Anew; see replica.Disk.
	Identity string `json:"identity,omitempty"`
	Anew     bool   `json:"anew,omitempty"`
}

// Readable is nil when what is remembered of VMs can be read, or nothing is.
func (d *Dir) Readable() error {
	if _, err := d.fs.ReadDir(d.Path("vms")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.FromOS(err)
	}
	return nil
}

// VM returns what is remembered of a VM; ok is false when nothing is.
func (d *Dir) VM(name string) (vm VM, ok bool, err error) {
	ok, err = d.load(d.vmFile(name), &vm)
	if err != nil || !ok || vm.VM != name { // a record that says another name would be saved by that, and this one never again
		return VM{}, false, err
	}
	return vm, true, nil
}

// RememberVM keeps vm. It is durable on return.
func (d *Dir) RememberVM(vm VM) error { return d.save(d.vmFile(vm.VM), vm) }

// ChangeVM changes what is remembered of a VM; when nothing is, or nothing changes, it writes nothing. The caller holds the
// VM's lock. It is durable on return.
func (d *Dir) ChangeVM(name string, change func(*VM)) error {
	old, ok, err := d.VM(name)
	if err != nil || !ok {
		return err
	}
	vm := old
	vm.Rates = maps.Clone(old.Rates)
	change(&vm)
	if reflect.DeepEqual(old, vm) {
		return nil
	}
	return d.RememberVM(vm)
}

// ForgetVM removes what is remembered of a VM.
func (d *Dir) ForgetVM(name string) error {
	err := durable.RemoveIfThere(d.fs, d.vmFile(name))
	if err != nil {
		return fault.FromOS(err)
	}
	return nil
}

// Note is part of replica.Notes. A note that cannot be understood counts as none, as every record here does.
func (d *Dir) Note(vm string) (st replica.State, ok bool, err error) {
	ok, err = d.load(d.noteFile(vm), &st)
	if err != nil || !ok || st.VM != vm {
		return replica.State{}, false, err
	}
	return st, true, nil
}

// KeepNote is part of replica.Notes.
func (d *Dir) KeepNote(st replica.State) error { return d.save(d.noteFile(st.VM), st) }

// DropNote is part of replica.Notes.
func (d *Dir) DropNote(vm string) error {
	if err := durable.RemoveIfThere(d.fs, d.noteFile(vm)); err != nil {
		return fault.FromOS(err)
	}
	return nil
}

func (d *Dir) noteFile(vm string) string { return d.Path("notes", vm+".json") }

// vmFile cannot leave the folder: a site file has no VM names with separators in them.
func (d *Dir) vmFile(name string) string { return d.Path("vms", name+".json") }

// Lock is LockFor what changes the replica, or the VM.
func (d *Dir) Lock(vm string) (io.Closer, error) { return d.LockFor(vm, Changes) }

// load reads a record; ok is false when there is none. A record that cannot be understood counts as none, and leaves nothing in into:
// everything here can be missing, and a damaged memory must not stop the protection of a VM.
func (d *Dir) load(name string, into any) (ok bool, err error) {
	data, err := durable.ReadFile(d.fs, name, maxRecord)
	var large *durable.TooLargeError
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.As(err, &large):
		return false, nil
	case err != nil:
		return false, fault.FromOS(err)
	}
	if json.Unmarshal(data, into) != nil {
		reflect.ValueOf(into).Elem().SetZero()
		return false, nil
	}
	return true, nil
}

// save writes a record in one step. It is durable on return.
func (d *Dir) save(name string, record any) error {
	data, err := json.MarshalIndent(record, "", "  ")
	if err != nil {
		return err
	}
	data = plain.JSON(data, true)
	if err := d.fs.MkdirAll(filepath.Dir(name)); err != nil {
		return fault.FromOS(err)
	}
	if err := durable.WriteFile(d.fs, name, append(data, '\n')); err != nil {
		return fault.FromOS(err)
	}
	return nil
}
