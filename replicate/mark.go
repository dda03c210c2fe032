package replicate

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
)

// Mark records in the ledger that only resynchronization helps, found out at since while the ledger was out of reach. A VM
// that is marked already, or that is being resynchronized, or has no deltas to lose, stays as it is.
func (j *Job) Mark(ctx context.Context, code fault.Code, reason string, since time.Time) error {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil {
		return err
	}
	if !marks(&st, code, reason, since) {
		return nil
	}
	_, err = j.Replica.Ledger().Save(ctx, st)
	return err
}

// marks writes into a ledger that only resynchronization helps, and says whether that had to be written. Of a VM that is paused, which is
// an administrator's word, it is for when that is taken back; a phase before or after replication stays what it is.
func marks(st *replica.State, code fault.Code, reason string, since time.Time) bool {
	switch {
	case st.Phase == replica.Replicating:
		st.Phase, st.PhaseSince, st.Reason, st.ReasonCode = replica.ResyncRequired, since, reason, code
	case st.Phase == replica.Paused && st.PausedFrom == replica.Replicating:
		st.PausedFrom, st.PausedReason, st.ReasonCode = replica.ResyncRequired, reason, code
	default:
		return false
	}
	return true
}

// DropLogs removes the change logs beside the disks that belong to this relationship, and those that are so damaged that
// they belong to nothing: for a VM that is resynchronized, which brings what they say. It returns the bytes that it freed.
func (j *Job) DropLogs() (freed int64, err error) {
	for disk, dir := range j.LogDir {
		if err := j.dropTemps(disk); err != nil {
			return freed, fault.In(err, j.VM, disk)
		}
		entries, err := j.logFolder(disk)
		if err != nil {
			return freed, fault.In(err, j.VM, disk)
		}
		for _, e := range entries {
			if e.Dir || !isLogOf(e.Name, j.VM, disk) {
				continue
			}
			n, err := j.dropLog(filepath.Join(dir, e.Name), disk)
			if err != nil {
				return freed, fault.In(err, j.VM, disk)
			}
			freed += n
		}
	}
	return freed, nil
}

// SetLogsAside moves the change logs beside the disks that belong to this relationship into a folder of that name there, for a
// replica that is out of reach for good, as far as anybody knows: moved back they lead on from it. It returns the folders of that name
// that are there, sorted, and the bytes moved. Nothing in them is replaced. It is durable on return; cut off, it goes on when it is
// called again.
func (j *Job) SetLogsAside(name string) (folders []string, moved int64, err error) {
	for disk, dir := range j.LogDir {
		logs, err := j.localLogs(disk)
		if err != nil {
			return folders, moved, fault.In(err, j.VM, disk)
		}
		if len(logs) == 0 {
			if _, err := j.FS.Stat(filepath.Join(dir, name)); err == nil { // by a call that was cut off
				folders = append(folders, filepath.Join(dir, name))
			}
			continue
		}
		n, err := j.setAside(logs, dir, filepath.Join(dir, name))
		moved += n
		if err != nil {
			return folders, moved, fault.In(err, j.VM, disk)
		}
		folders = append(folders, filepath.Join(dir, name))
	}
	slices.Sort(folders)
	return slices.Compact(folders), moved, nil
}

func (j *Job) setAside(logs []localLog, from, to string) (moved int64, err error) {
	if err := j.FS.MkdirAll(to); err != nil {
		return 0, err
	}
	for _, l := range logs {
		if err := j.FS.Rename(l.path, j.free(filepath.Join(to, filepath.Base(l.path)))); err != nil {
			return moved, err
		}
		moved += l.size
	}
	return moved, errors.Join(j.FS.SyncDir(to), j.FS.SyncDir(from))
}

// free is a name that nothing has, made of one that something may have.
func (j *Job) free(name string) string {
	try := name
	for n := 2; ; n++ {
		if _, err := j.FS.Stat(try); err != nil { // rename says what else is wrong
			return try
		}
		try = fmt.Sprintf("%s.%d", name, n)
	}
}

// dropLog removes one log, unless it is somebody else's, or one that only a newer version can judge.
func (j *Job) dropLog(path, disk string) (int64, error) {
	l, ours, err := j.readLocal(path, disk)
	if err != nil {
		return 0, err
	}
	if !ours {
		damaged, err := j.damaged(path)
		if err != nil || !damaged {
			return 0, err
		}
	}
	return l.size, durable.RemoveIfThere(j.FS, path)
}

func (j *Job) damaged(path string) (bool, error) {
	f, err := j.FS.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	_, err = hrl.Open(f)
	return fault.Is(err, fault.LogCorrupt) || fault.Is(err, fault.LogTorn), nil
}

// Log is one change log that waits beside a disk.
type Log struct {
	Path     string
	From, To hrl.Pos
	CutAt    time.Time
	Bytes    int64
}

// Waiting lists the change logs of this relationship that lie beside a disk, in order of their positions.
func (j *Job) Waiting(disk string) ([]Log, error) {
	logs, err := j.localLogs(disk)
	if err != nil {
		return nil, fault.In(err, j.VM, disk)
	}
	out := make([]Log, len(logs))
	for i, l := range logs {
		out[i] = Log{l.path, l.id.From, l.id.To, l.id.CutAt, l.size}
	}
	return out, nil
}
