package state

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// Exclusive is what one run at a time does with a VM.
type Exclusive string

const (
	// Changes is whatever changes the replica, or the VM.
	Changes Exclusive = "changes"
	// Tests is to make the VM of a test failover, or to remove it. Whoever copies and boots has this one only, so that replication goes
	// on; it takes Changes too for the moments at which it writes to the ledger. Who needs both takes this one first.
	Tests Exclusive = "tests"
	// Looks is what a run does that has Changes but only looks, for as long as that takes: whoever wants Changes asks it for Looks, and it
	// steps aside (see Looked).
	Looks Exclusive = "looks"
)

func (d *Dir) turnFile(vm string, x Exclusive) string {
	if x == Changes {
		return d.Path("locks", vm+".lock")
	}
	return d.Path("locks", string(x), vm+".lock")
}

// LockFor says that this run does x with the VM until Close. When another run does, it fails with fault.RunLocked.
func (d *Dir) LockFor(vm string, x Exclusive) (io.Closer, error) {
	path := d.turnFile(vm, x)
	c, err := d.fs.Lock(path)
	if errors.Is(err, fs.ErrNotExist) { // the first run
		if err := d.fs.MkdirAll(filepath.Dir(path)); err != nil {
			return nil, fault.FromOS(err)
		}
		c, err = d.fs.Lock(path)
	}
	if errors.Is(err, durable.ErrLocked) {
		return nil, fault.New(fault.RunLocked, "another run works on this VM%s", d.runner(vm, x)).Of(vm, "")
	}
	if err != nil {
		return nil, fault.FromOS(err)
	}
	return c, nil
}

// Looked says that a run has LockFor Looks, and so steps aside for an Ask of Looks.
func (d *Dir) Looked(vm string) bool { return d.locked(d.turnFile(vm, Looks)) }

// runner names the job that does x with the VM, when one does. Commands whose work is mostly beside the replication are looked at last
// for Changes, and first for Tests.
func (d *Dir) runner(vm string, x Exclusive) string {
	all, err := d.running()
	if err != nil {
		return ""
	}
	beside := func(r *Record) bool { return r.Command == "failover test" || r.Command == "verify" }
	var found *Record
	for i := range slices.Backward(all) {
		r := &all[i]
		if r.VM != vm {
			continue
		}
		if found == nil {
			found = r
		}
		if beside(r) == (x == Tests) {
			found = r
			break
		}
	}
	if found == nil {
		return ""
	}
	return fmt.Sprintf(" (job %s, %s, since %s)", found.ID, found.Command, found.Started.UTC().Format(time.RFC3339))
}

// Ask is the request of a run that waits for its turn: whoever does Exclusive with the VM, and loses nothing by it, ends at its next
// step. It is there as long as the run waits; that of a run that is gone counts for nothing.
type Ask struct {
	VM        string    `json:"vm"`
	Exclusive Exclusive `json:"exclusive"`
	Command   string    `json:"command"`
	Job       string    `json:"job,omitempty"`
	PID       int       `json:"pid"`
	Since     time.Time `json:"since"`
}

// Who names the run that asks.
func (a Ask) Who() string {
	if a.Job != "" {
		return a.Command + " (job " + a.Job + ")"
	}
	return fmt.Sprintf("%s (process %d)", a.Command, a.PID)
}

// Asking is an Ask that stands.
type Asking struct {
	dir  *Dir
	id   string
	lock io.Closer
}

func (d *Dir) askFile(id, suffix string) string { return d.Path("asks", id+suffix) }

// Ask posts a request. The kernel's lock on it says that its run lives, and is taken before the request is there.
func (d *Dir) Ask(a Ask) (*Asking, error) {
	if err := d.fs.MkdirAll(d.Path("asks")); err != nil {
		return nil, fault.FromOS(err)
	}
	d.sweepAsks()
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	id := hex.EncodeToString(b[:])
	lock, err := d.fs.Lock(d.askFile(id, ".lock"))
	if err != nil {
		return nil, fault.FromOS(err)
	}
	out := &Asking{d, id, lock}
	if err := d.save(d.askFile(id, ".json"), a); err != nil {
		return nil, errors.Join(err, out.Close())
	}
	return out, nil
}

// Close takes the request back.
func (a *Asking) Close() error {
	err := durable.RemoveIfThere(a.dir.fs, a.dir.askFile(a.id, ".json"))
	err = errors.Join(err, a.lock.Close(), durable.RemoveIfThere(a.dir.fs, a.dir.askFile(a.id, ".lock")))
	if err != nil {
		return fault.FromOS(err)
	}
	return nil
}

// Asked returns a request of a run that lives to let it do x with the VM; ok is false when there is none. Requests are no reason for
// anything to fail: what cannot be read is none.
func (d *Dir) Asked(vm string, x Exclusive) (a Ask, ok bool) {
	for _, id := range d.askIDs() {
		var a Ask
		there, err := d.load(d.askFile(id, ".json"), &a)
		if err == nil && there && a.VM == vm && a.Exclusive == x && d.locked(d.askFile(id, ".lock")) {
			return a, true
		}
	}
	return Ask{}, false
}

func (d *Dir) askIDs() (ids []string) {
	list, err := d.fs.ReadDir(d.Path("asks"))
	if err != nil {
		return nil
	}
	for _, e := range list {
		if id, is := strings.CutSuffix(e.Name, ".json"); is && !durable.IsTemp(e.Name) {
			ids = append(ids, id)
		}
	}
	return ids
}

// sweepAsks removes the requests of runs that are gone.
func (d *Dir) sweepAsks() {
	for _, id := range d.askIDs() {
		if d.locked(d.askFile(id, ".lock")) {
			continue
		}
		_ = durable.RemoveIfThere(d.fs, d.askFile(id, ".json")) // it counts for nothing either way
		_ = durable.RemoveIfThere(d.fs, d.askFile(id, ".lock"))
	}
}

// locked says whether a process has a lock. Looking does not create it.
func (d *Dir) locked(path string) bool {
	if _, err := d.fs.Stat(path); err != nil {
		return false
	}
	c, err := d.fs.Lock(path)
	if err != nil {
		return errors.Is(err, durable.ErrLocked)
	}
	c.Close()
	return false
}
