// Package home brings the disks of a VM that was failed over back to where it came from: it makes the original disks,
// in place and in their own formats, what the recovered VM's disks are now.
//
// Only what differs is written. Both sides are read once, side by side, except where both are known to be zero; what
// differs goes into a change log of each disk (package hrl), in the folder of the disk. While that goes on the
// original is not touched. When the logs of all disks are sealed, a record beside them says so, and that is the point
// of no return: from there the logs alone are enough, the recovered VM and its disks may be gone. Each log is verified to
// its last byte, then written into its disk, and removed when all disks are durable.
//
//	logs sealed  ->  record "sealed"  ->  verified, targets unchanged  ->  record "applying"  ->  written, flushed
//	             ->  record "idle"  ->  logs removed
//
// So a VM's disks are brought home together or not at all. Killed before the record, the original is byte for byte what
// it was; killed after it, Resume (or the next Bring) completes it. The record lies beside the disk and not in the
// state folder, because it says whether the disk may be used: what a person may delete at any time cannot say that.
//
// For little downtime Bring is called twice: while the recovered VM runs, from a frozen view of its disks, and again when
// it was stopped. The first pass keeps block sums of what it brought (Again): as long as the originals' files are provably
// what it left there, the second one reads the recovered disks only. Sums are a hint, and any doubt means to read the
// originals too.
package home

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"time"

	"sitrep/failover/recovered"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/progress"
	"sitrep/internal/wait"
)

// Disk is one disk on its way home.
type Disk struct {
	Name   string
	Source disk.Image  // the recovered disk, which holds still; Resume and Forget do without
	Target string      // path of the original: a file, or a block device
	Format disk.Format // of the original; Auto is by signature
	LogDir string      // where its change log goes; "" is the folder of Target, and no choice for a block device
	// Parents are where the parents of the original may lie: see disk.Open.
	Parents []string
	// Kind and SectorSize are for CreateTargets: see recovered.Config.
	Kind       disk.Kind
	SectorSize int
}

func (d *Disk) logDir() string {
	if d.LogDir != "" {
		return d.LogDir
	}
	return filepath.Dir(d.Target)
}

// Job is the failback of one VM. Its methods are not for concurrent use, and that no second run works on the VM is the
// caller's to see to. Source VM and disks must not be in use: whoever writes to a target meanwhile is found out where the
// filesystem tells.
type Job struct {
	VM    string
	ID    hrl.ID // of this failback, the same for all its passes and runs
	FS    durable.FS
	Disks []Disk // the same ones, in the same order, for all passes and runs
	// StateDir is a folder for the block sums. It may be emptied at any time.
	StateDir string
	// Again says that another pass will follow, for which sums are kept.
	Again bool
	Meter progress.Meter
	Log   *slog.Logger
	Now   func() time.Time
	// Pause waits until a filesystem's clock has moved on; nil is the real time.
	Pause func(ctx context.Context, d time.Duration) error
	// InUse refuses a disk that something uses, right before it is written to. nil: nobody knows.
	InUse func(path string) error
	Tasks int // pieces compared at once; 0 is 8
}

// DiskPrice is how a recovered disk differs from the original. All numbers are bytes; the differences are exact, in
// pieces of 4096.
type DiskPrice struct {
	Name       string `json:"name"`
	Size       int64  `json:"size"`        // of the recovered disk
	SizeBefore int64  `json:"size_before"` // of the original
	Read       int64  `json:"read"`        // of the recovered disk
	ReadTarget int64  `json:"read_target"` // of the original
	Differs    int64  `json:"differs"`     // what is written, zeros included
	Data       int64  `json:"data"`        // what is written and not zero: the log takes that much
	Allocates  int64  `json:"allocates"`   // how much of Data goes where the original has nothing yet
	// BySums says that the original was not read where the sums of an earlier pass told what it holds.
	BySums bool          `json:"by_sums"`
	Took   time.Duration `json:"took_ns"`
}

// Result is what one pass has done with a disk.
type Result struct {
	DiskPrice
	Applied time.Duration `json:"applied_ns"` // how long it took to write it into the original
}

// Price compares all disks and writes nothing.
func (j *Job) Price(ctx context.Context) ([]DiskPrice, error) {
	rec, err := j.load()
	if err != nil {
		return nil, fault.In(err, j.VM, "")
	}
	var out []DiskPrice
	for i := range j.Disks {
		p, err := j.price(ctx, rec, i)
		if err != nil {
			return nil, fault.In(err, j.VM, j.Disks[i].Name)
		}
		out = append(out, p)
	}
	return out, nil
}

// TargetSizes is the guest bytes of the originals, 0 of one that is not there. What is half written counts with the size that it will have.
func (j *Job) TargetSizes() ([]int64, error) {
	rec, err := j.load()
	if err != nil {
		return nil, fault.In(err, j.VM, "")
	}
	out := make([]int64, len(j.Disks))
	for i := range j.Disks {
		d := &j.Disks[i]
		format := d.Format
		if rec != nil {
			out[i], format = rec.Disks[i].Size, rec.Disks[i].Format
		}
		if rec != nil && rec.Phase != idle {
			continue
		}
		if _, err := j.FS.Stat(d.Target); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		img, err := disk.Open(j.FS, d.Target, format)
		if err != nil {
			return nil, fault.In(err, j.VM, d.Name)
		}
		out[i] = img.Size()
		if err := img.Close(); err != nil {
			return nil, fault.In(err, j.VM, d.Name)
		}
	}
	return out, nil
}

// Check says what stands in the way of Bring, as far as that is known without comparing. It changes nothing.
func (j *Job) Check() error {
	if err := j.refuseOthers(); err != nil {
		return fault.In(err, j.VM, "")
	}
	rec, err := j.load()
	if err != nil || rec != nil && rec.Phase != idle { // what is half written is completed first
		return fault.In(err, j.VM, "")
	}
	for i := range j.Disks {
		p, err := j.begin(rec, i, func([]string) error { return nil })
		if err == nil {
			err = p.close()
		}
		if err != nil {
			return fault.In(err, j.VM, j.Disks[i].Name)
		}
	}
	return nil
}

// Bring makes the originals what the recovered disks are: it completes an earlier run that was cut off, then compares,
// captures and applies. On return everything is durable. Codes: DiskShrunk when a recovered disk is smaller than the
// original, DiskUnsupported when the original has to grow and cannot, NoSpace, DiskModified when somebody writes to an
// original meanwhile, LogForeign when another failback of the VM was not completed.
func (j *Job) Bring(ctx context.Context) ([]Result, error) {
	if err := j.refuseOthers(); err != nil {
		return nil, fault.In(err, j.VM, "")
	}
	if _, err := j.Resume(ctx); err != nil {
		if !renewable(err) {
			return nil, err
		}
		j.Log.Warn("what an earlier run has captured cannot be used and is captured again", "vm", j.VM, "error", err)
	}
	rec, results, err := j.capture(ctx)
	if err != nil {
		return nil, fault.In(err, j.VM, "")
	}
	if err := j.apply(ctx, rec, results); err != nil {
		return nil, fault.In(err, j.VM, "")
	}
	return results, nil
}

// renewable says whether an error of Resume concerns only the logs, which the source can replace.
func renewable(err error) bool {
	return fault.Is(err, fault.LogCorrupt) || fault.Is(err, fault.LogGap) || fault.Is(err, fault.DiskModified)
}

// Resume completes a run that was cut off after its logs were sealed; the recovered disks are not needed. done is false
// when there was nothing to complete: then the originals are whole, as they were or as the last pass left them. A log
// that is damaged is LogCorrupt or LogGap: only Bring, with the recovered disks, helps then.
func (j *Job) Resume(ctx context.Context) (done bool, err error) {
	rec, err := j.load()
	if err != nil || rec == nil || rec.Phase == idle {
		return false, fault.In(err, j.VM, "")
	}
	results := make([]Result, len(rec.Disks))
	if err := j.apply(ctx, rec, results); err != nil {
		return false, fault.In(err, j.VM, "")
	}
	return true, nil
}

// Brought is the bytes of data that the passes of this failback have written into the originals so far, whatever runs they
// were part of.
func (j *Job) Brought() (int64, error) {
	rec, err := j.load()
	if err != nil || rec == nil {
		return 0, fault.In(err, j.VM, "")
	}
	return rec.Brought, nil
}

// CreateTargets makes the originals that are not there (at another place than the VM came from) in their original format,
// with the content of the recovered disks. Each is there, whole, or not at all. Bring then brings what has changed since.
// made is the bytes of data in those that this failback has made, those of an earlier call included.
func (j *Job) CreateTargets(ctx context.Context) (made int64, err error) {
	for i := range j.Disks {
		d := &j.Disks[i]
		n, there, err := recovered.Made(j.FS, d.Target, j.ID)
		if err != nil {
			return made, fault.In(err, j.VM, d.Name)
		}
		if !there {
			var r recovered.Result
			r, err = recovered.Make(ctx, recovered.Config{FS: j.FS, Source: d.Source, Path: d.Target, Format: d.Format, Kind: d.Kind,
				SectorSize: d.SectorSize, ID: j.ID, VM: j.VM, Disk: d.Name, Meter: j.Meter, Tasks: j.Tasks})
			n = r.Written
		}
		if err != nil {
			return made, err
		}
		made += n
	}
	return made, nil
}

// Forget removes everything that this failback has left beside the disks and in the state folder. While an original is
// half written that is refused: WrongState.
func (j *Job) Forget(ctx context.Context) error {
	rec, err := j.load()
	if err == nil && rec != nil && rec.Phase == applying {
		err = fault.New(fault.WrongState, "the disks are being brought home and are neither old nor new: that has to be completed first").At(j.recordPath())
	}
	if err == nil && rec != nil { // the record first: it must not speak of logs that are gone
		err = durable.RemoveIfThere(j.FS, j.recordPath())
	}
	if err == nil && rec != nil {
		err = j.FS.SyncDir(filepath.Dir(j.recordPath()))
	}
	if err == nil {
		err = j.sweep(nil)
	}
	for i := range j.Disks {
		if err == nil {
			err = recovered.RemoveRecord(j.FS, j.Disks[i].Target, recovered.Owner{ID: j.ID, VM: j.VM, Disk: j.Disks[i].Name})
		}
	}
	return fault.In(err, j.VM, "")
}

func (j *Job) pause(ctx context.Context, d time.Duration) error {
	if j.Pause != nil {
		return j.Pause(ctx, d)
	}
	return wait.For(ctx, d)
}
