package failover

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/wait"
)

// This file is what is asked about disks before they are written to, given up, or believed to be what a VM has: who uses them, and
// whether their VM writes to them.

// homeUnused refuses disks at home that something uses. One that is not there is used by nobody.
func (j *Job) homeUnused() error {
	if j.InUse == nil {
		return nil
	}
	for _, d := range j.Home.Disks {
		if err := j.InUse(d.Path); err != nil {
			return fault.In(err, j.VM, d.Name)
		}
	}
	return nil
}

// endLimit is how long what ran a VM may take to close its disks when the VM is off.
const endLimit = 10 * time.Second

// letGo waits until the disks of a source that was stopped are used by nobody: as long as they are, the VM may run still, and a second one
// is not started beside it.
func (j *Job) letGo(ctx context.Context) error {
	for began := time.Now(); ; {
		err := j.homeUnused()
		if err == nil || time.Since(began) > endLimit {
			return err
		}
		if err := wait.For(ctx, 200*time.Millisecond); err != nil {
			return fault.FromOS(err)
		}
	}
}

// homeWritten refuses disks at home that the VM there does not write to.
func (j *Job) homeWritten(ctx context.Context, p Place) error {
	if j.Written == nil {
		return nil
	}
	paths := map[string]string{}
	for _, d := range j.Home.Disks {
		if _, err := j.FS.Stat(d.Path); !errors.Is(err, fs.ErrNotExist) {
			paths[d.Name] = d.Path
		}
	}
	return j.Written(ctx, p.Host, p.Name, paths)
}

// recoveredWritten refuses to bring home, or to accept, a recovered VM that does not write to the disks that were made for it.
func (j *Job) recoveredWritten(ctx context.Context, d host.Definition) error {
	if j.Written == nil || j.DisksIn == InStore {
		return nil
	}
	paths := map[string]string{}
	for _, x := range d.Disks {
		paths[x.Name] = x.Path
	}
	return j.Written(ctx, j.Recovery.Host, d.Name, paths)
}
