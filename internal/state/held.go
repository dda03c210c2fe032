package state

import (
	"errors"
	"io"
	"io/fs"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// Side is where a VM is held.
type Side string

// The sides.
const (
	AtSource   Side = "source"
	AtRecovery Side = "recovery"
)

// Held says that a run holds a VM still, and what has to be done for it to go on. It is written before the VM is held and removed
// when it goes on: whoever finds it when nobody has LockHeld lets the VM go on.
type Held struct {
	ID   string `json:"id"` // of this holding
	VM   string `json:"vm"`
	Side Side   `json:"side"`
	Name string `json:"name"` // at the host of that side
	// Host says that the host holds the VM, and Hooks that its freeze hook was run.
	Host    bool      `json:"host,omitempty"`
	Hooks   bool      `json:"hooks,omitempty"`
	Since   time.Time `json:"since"`
	PID     int       `json:"pid"`
	Command string    `json:"command"`
	// Failed is why it could not be let go on.
	Failed string `json:"failed,omitempty"`
}

// Held returns what is remembered of a VM that is held; ok is false when nothing is. A record that is there and cannot be understood still
// says that the VM is held: at the source, by all means that there are.
func (d *Dir) Held(vm string) (h Held, ok bool, err error) {
	ok, err = d.load(d.heldFile(vm), &h)
	if err != nil || ok && h.VM == vm {
		return h, ok, err
	}
	if _, err := d.fs.Stat(d.heldFile(vm)); errors.Is(err, fs.ErrNotExist) {
		return Held{}, false, nil
	}
	return Held{VM: vm, Side: AtSource, Name: vm, Host: true, Hooks: true}, true, nil
}

// RememberHeld keeps it. It is durable on return.
func (d *Dir) RememberHeld(h Held) error { return d.save(d.heldFile(h.VM), h) }

// ForgetHeld says that the VM goes on. It is durable on return.
func (d *Dir) ForgetHeld(vm string) error {
	if err := durable.RemoveIfThere(d.fs, d.heldFile(vm)); err != nil {
		return fault.FromOS(err)
	}
	return nil
}

// LockHeld is for whoever holds the VM or lets it go on: until Close nobody else does. When somebody else has it, it fails with
// fault.RunLocked.
func (d *Dir) LockHeld(vm string) (io.Closer, error) {
	if err := d.fs.MkdirAll(d.Path("held")); err != nil {
		return nil, fault.FromOS(err)
	}
	c, err := d.fs.Lock(d.Path("held", vm+".lock"))
	if errors.Is(err, durable.ErrLocked) {
		return nil, fault.New(fault.RunLocked, "another run holds this VM still").Of(vm, "")
	}
	if err != nil {
		return nil, fault.FromOS(err)
	}
	return c, nil
}

func (d *Dir) heldFile(vm string) string { return d.Path("held", vm+".json") }
