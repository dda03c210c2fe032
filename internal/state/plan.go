package state

import (
	"errors"
	"io"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// LockPlan says that this run works on the recovery plan until Close. When another run does, it fails with fault.RunLocked.
// What is known of the plan is read behind it.
func (d *Dir) LockPlan(plan string) (io.Closer, error) {
	if err := d.fs.MkdirAll(d.Path("locks")); err != nil {
		return nil, fault.FromOS(err)
	}
	c, err := d.fs.Lock(d.Path("locks", "plan "+plan+".lock"))
	if errors.Is(err, durable.ErrLocked) {
		return nil, fault.New(fault.RunLocked, "another run works on recovery plan %s", plan).Then("sitrep jobs --state InProgress")
	}
	if err != nil {
		return nil, fault.FromOS(err)
	}
	return c, nil
}
