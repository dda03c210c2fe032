package home

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/sums"
)

// phase says what the originals are.
type phase string

const (
	idle     phase = "idle"     // whole; nothing is to be done
	sealed   phase = "sealed"   // whole and old; the logs are complete
	applying phase = "applying" // anything between old and new
)

const (
	recordVersion = 1
	maxRecord     = 4 << 20 // bytes
)

// record is the only truth about a failback. It lies beside the first disk.
type record struct {
	Version int       `json:"version"`
	VM      string    `json:"vm"`
	ID      hrl.ID    `json:"id"`
	Phase   phase     `json:"phase"`
	At      hrl.Pos   `json:"at"` // of the originals, when idle
	To      hrl.Pos   `json:"to"` // of the logs
	CutAt   time.Time `json:"cut_at"`
	// Brought is the bytes of data that finished passes have written into the originals.
	Brought int64        `json:"brought,omitempty"`
	Disks   []diskRecord `json:"disks"`
}

// diskRecord is what is known of one disk.
type diskRecord struct {
	Name       string          `json:"name"`
	Target     string          `json:"target"`
	Format     disk.Format     `json:"format"`
	Parents    []string        `json:"parents,omitempty"` // where its parents may lie
	Kind       disk.Kind       `json:"kind"`
	Log        string          `json:"log,omitempty"` // path; "" when nothing differs
	SizeBefore int64           `json:"size_before"`
	Size       int64           `json:"size"`
	Stamps     []durable.Stamp `json:"stamps,omitempty"` // of the original before; none of a block device
	Next       *base           `json:"next,omitempty"`   // what holds when the log was applied
	Base       *base           `json:"base,omitempty"`   // what holds now, when idle
}

// base is what is known of the content of an original.
type base struct {
	Sums   string          `json:"sums"` // path of the table, of blocks of sumBlock bytes
	Seal   sums.Seal       `json:"seal"`
	Size   int64           `json:"size"`
	Stamps []durable.Stamp `json:"stamps,omitempty"` // of the files when it was so
}

// recordPath is where the record lies.
func (j *Job) recordPath() string {
	return filepath.Join(j.Disks[0].logDir(), fmt.Sprintf("%s.home-%s.json", j.VM, j.ID))
}

// logPath is where the change log of a disk goes.
func (j *Job) logPath(d *Disk, to hrl.Pos) string {
	return filepath.Join(d.logDir(), fmt.Sprintf("%s%d.hrl", j.prefix(d), to.Seq))
}

func (j *Job) sumsPath(d *Disk, to hrl.Pos) string {
	return filepath.Join(j.StateDir, fmt.Sprintf("%s%d.sums", j.prefix(d), to.Seq))
}

// prefix is what the names of all files of a disk begin with. No change log of replication has such a name.
func (j *Job) prefix(d *Disk) string { return fmt.Sprintf("%s.%s.home-%s-", j.VM, d.Name, j.ID) }

// load reads the record; nil when there is none.
func (j *Job) load() (*record, error) {
	if len(j.Disks) == 0 {
		return nil, fault.New(fault.DiskMissing, "the VM has no disks")
	}
	data, err := durable.ReadFile(j.FS, j.recordPath(), maxRecord)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	rec := new(record)
	if err := json.Unmarshal(data, rec); err != nil {
		return nil, fault.Wrap(fault.LogCorrupt, err, "the record of the failback cannot be read").At(j.recordPath())
	}
	return rec, j.check(rec)
}

// check refuses a record that speaks of something else than this job does.
func (j *Job) check(rec *record) error {
	if rec.Version != recordVersion {
		return fault.New(fault.LogVersion, "the record of the failback has version %d", rec.Version).At(j.recordPath())
	}
	if rec.VM != j.VM || rec.ID != j.ID || len(rec.Disks) != len(j.Disks) {
		return fault.New(fault.LogForeign, "the record is of another failback").At(j.recordPath())
	}
	for i, d := range rec.Disks {
		if have := j.Disks[i]; d.Name != have.Name || d.Target != have.Target {
			return fault.New(fault.LogForeign, "the failback was begun for the disk %s at %s, not for %s at %s",
				d.Name, d.Target, have.Name, have.Target).At(j.recordPath())
		}
	}
	return nil
}

func (j *Job) save(rec *record) error {
	data, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(j.FS, j.recordPath(), append(data, '\n'))
}

// holdRecord makes durable the record that was read: an earlier run may have been killed right after it gave the record its
// name, and a power cut must not bring back an older one after this run has acted on what the newer one says.
func (j *Job) holdRecord() error { return j.FS.SyncDir(filepath.Dir(j.recordPath())) }

// refuseOthers refuses to begin while another failback of the VM is not completed: it would overwrite what this one does.
func (j *Job) refuseOthers() error {
	if len(j.Disks) == 0 {
		return fault.New(fault.DiskMissing, "the VM has no disks")
	}
	dir := filepath.Dir(j.recordPath())
	names, err := j.FS.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range names {
		rest, ok := strings.CutPrefix(e.Name, j.VM+".home-")
		if !ok || e.Name == filepath.Base(j.recordPath()) {
			continue
		}
		var id hrl.ID
		if digits, ok := strings.CutSuffix(rest, ".json"); !ok || id.UnmarshalText([]byte(digits)) != nil {
			continue
		}
		path := filepath.Join(dir, e.Name)
		data, err := durable.ReadFile(j.FS, path, maxRecord)
		if err != nil {
			return err
		}
		var other record
		if err := json.Unmarshal(data, &other); err != nil || other.Phase != idle {
			return fault.New(fault.LogForeign, "another failback of the VM was not completed").At(path)
		}
	}
	return nil
}

// sweep removes the files of this failback that rec does not speak of; nil: all of them, the record excepted.
func (j *Job) sweep(rec *record) error {
	keep := map[string]bool{}
	if rec != nil {
		for _, d := range rec.Disks {
			keep[d.Log] = rec.Phase != idle
			for _, b := range []*base{d.Base, d.Next} {
				if b != nil {
					keep[b.Sums] = true
				}
			}
		}
	}
	for i := range j.Disks {
		d := &j.Disks[i]
		for _, dir := range []string{d.logDir(), j.StateDir} {
			if err := j.sweepFolder(dir, j.prefix(d), keep); err != nil {
				return err
			}
		}
	}
	return nil
}

func (j *Job) sweepFolder(dir, prefix string, keep map[string]bool) error {
	names, err := j.FS.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	removed := false
	for _, e := range names {
		base, temp := durable.TempBase(e.Name)
		ours := strings.HasPrefix(e.Name, prefix) || temp && (strings.HasPrefix(base, prefix) || base == filepath.Base(j.recordPath()))
		path := filepath.Join(dir, e.Name)
		if !ours || keep[path] {
			continue
		}
		if err := durable.RemoveIfThere(j.FS, path); err != nil {
			return err
		}
		removed = true
	}
	if removed {
		return j.FS.SyncDir(dir)
	}
	return nil
}
