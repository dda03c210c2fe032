package state

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// JobState is how a job or a step stands. The words are those of the service that people know.
type JobState string

const (
	NotStarted  JobState = "NotStarted"
	InProgress  JobState = "InProgress"
	Succeeded   JobState = "Succeeded"
	Failed      JobState = "Failed"
	Waiting     JobState = "Waiting"     // for a person: Error says for what, and what to run then; its process has ended
	Cancelled   JobState = "Cancelled"   // by a signal, or to let another run take its turn; what was acknowledged is kept
	Interrupted JobState = "Interrupted" // its process died
)

// Record is one job.
type Record struct {
	ID      string            `json:"id"`      // sorts by time
	Command string            `json:"command"` // the subcommand
	Name    string            `json:"name"`    // for people
	VM      string            `json:"vm,omitempty"`
	State   JobState          `json:"state"`
	Started time.Time         `json:"started"`
	Ended   time.Time         `json:"ended,omitzero"`
	Bytes   int64             `json:"bytes"` // moved to the store
	Steps   []Step            `json:"steps,omitempty"`
	Error   *Failure          `json:"error,omitempty"`
	Options map[string]string `json:"options,omitempty"`
}

// Step is one part of a job.
type Step struct {
	Name    string    `json:"name"`
	State   JobState  `json:"state"`
	Started time.Time `json:"started,omitzero"`
	Ended   time.Time `json:"ended,omitzero"`
	Bytes   int64     `json:"bytes"`
	Note    string    `json:"note,omitempty"`
	// Done and Planned are the bytes of the work of a step that runs, or was killed; Planned is 0 where that is not known.
	Done    int64 `json:"done,omitempty"`
	Planned int64 `json:"planned,omitempty"`
}

// Live is how far a step is: the bytes that have gone to the store, and those of its work, done and planned.
type Live struct{ Moved, Done, Planned int64 }

// Percent is how far the step that runs is, 0 where that is not known, 99 at most.
func (r Record) Percent() int {
	if len(r.Steps) == 0 || r.State != InProgress {
		return 0
	}
	s := r.Steps[len(r.Steps)-1]
	if s.Planned == 0 {
		return 0
	}
	done := max(s.Done, s.Bytes) // what has gone is ahead of what is complete in whole pieces
	return int(min(99, 100*float64(done)/float64(s.Planned)))
}

// Failure is an error as it is remembered. It has no secrets: errors have none.
type Failure struct {
	Code    fault.Code `json:"code"`
	Message string     `json:"message"`
	Cause   string     `json:"cause"`
	Advice  string     `json:"advice"`
	Command string     `json:"next_command,omitempty"` // what leads on, as it stands
	Path    string     `json:"path,omitempty"`         // the file or address
	Disk    string     `json:"disk,omitempty"`
	Job     string     `json:"job,omitempty"` // that failed; "" in the job's own record
	At      time.Time  `json:"at"`
}

// FailureOf describes an error of a VM, in the subcommand verb, for a record.
func FailureOf(err error, vm, verb string, at time.Time) *Failure {
	e := fault.FromOS(err)
	entry := e.Code.Lookup().Of(e)
	if e.Next != "" {
		entry = entry.Leading(e.Next)
	}
	return &Failure{
		Code: e.Code, Message: err.Error(), Cause: entry.Cause, Path: e.Path, Disk: e.Disk,
		Advice: fault.Fill(entry.Advice, vm, verb), Command: fault.Fill(entry.Command, vm, verb), At: at.UTC(),
	}
}

// flushAfter is how long a step runs before the record on disk says so: a step that takes milliseconds is not worth two
// syncs of a disk. Begin and End write always.
const flushAfter = time.Second

// flushEvery is how often the record of a step that runs longer says how far it is: what is known of a job whose process died.
const flushEvery = 3 * time.Second

// Job is a job of this process. Its methods are not concurrent.
type Job struct {
	dir  *Dir
	lock io.Closer
	// Live, if set, says how far the step is that runs. It may be called concurrently with the step.
	Live func() Live

	mu  sync.Mutex // rec is also written by a timer
	rec Record
}

// Begin records that a job runs, and holds its lock until End. The record is durable on return.
func (d *Dir) Begin(command, name, vm string) (*Job, error) {
	if err := d.fs.MkdirAll(d.Path("jobs")); err != nil {
		return nil, fault.FromOS(err)
	}
	now := d.now().UTC()
	j := &Job{dir: d, rec: Record{
		ID: newID(now), Command: command, Name: name, VM: vm, State: InProgress, Started: now,
	}}
	var err error
	if j.lock, err = d.fs.Lock(d.lockFile(j.rec.ID)); err != nil { // before the record: else the job looks dead at first
		return nil, fault.FromOS(err)
	}
	if err := j.flush(); err != nil {
		return nil, errors.Join(err, j.lock.Close())
	}
	return j, nil
}

// newID is the time, to the millisecond, and a random part for jobs of the same one.
func newID(at time.Time) string {
	var b [3]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return strings.Replace(at.Format("20060102T150405.000Z"), ".", "-", 1) + "-" + hex.EncodeToString(b[:])
}

var idShape = regexp.MustCompile(`^\d{8}T\d{6}-\d{3}Z-[0-9a-f]{6}$`)

// idTime returns when a job of this ID began; ok is false when this is no ID.
func idTime(id string) (at time.Time, ok bool) {
	if !idShape.MatchString(id) {
		return time.Time{}, false
	}
	at, err := time.Parse("20060102T150405.000Z", id[:15]+"."+id[16:20])
	return at, err == nil
}

// ID names the job.
func (j *Job) ID() string { return j.rec.ID }

// Bytes is how many the job has moved to the store.
func (j *Job) Bytes() int64 { return j.rec.Bytes }

// State is how the job stands.
func (j *Job) State() JobState { return j.rec.State }

// Step runs f as a step of the job. f returns the bytes that it moved and, for people, a remark.
func (j *Job) Step(name string, f func() (bytes int64, note string, err error)) error {
	j.update(func(r *Record) {
		r.Steps = append(r.Steps, Step{Name: name, State: InProgress, Started: j.dir.now().UTC()})
	})
	w := j.watch()
	n, note, err := f()
	w.end()
	if err != nil {
		n = max(n, w.live().Moved) // what went before it failed
	}
	j.update(func(r *Record) {
		s := &r.Steps[len(r.Steps)-1]
		s.Bytes, s.Note, s.Ended, s.State = n, note, j.dir.now().UTC(), stateOf(err)
		s.Done, s.Planned = 0, 0
		r.Bytes = w.before + n
	})
	return err
}

// watch keeps the record of a step that runs for long up to date.
func (j *Job) watch() *watch {
	w := &watch{job: j, before: j.rec.Bytes, stop: make(chan struct{})}
	if j.Live != nil {
		w.base = j.Live().Moved
	}
	w.done.Go(w.run)
	return w
}

type watch struct {
	job    *Job
	before int64 // bytes of the steps before this one
	base   int64 // what had moved when it began
	stop   chan struct{}
	done   sync.WaitGroup
}

func (w *watch) run() {
	next := time.NewTimer(flushAfter)
	defer next.Stop()
	for {
		select {
		case <-w.stop:
			return
		case <-next.C:
		}
		l := w.live()
		w.job.update(func(r *Record) {
			s := &r.Steps[len(r.Steps)-1]
			s.Bytes, s.Done, s.Planned = l.Moved, l.Done, l.Planned
			r.Bytes = w.before + l.Moved
		})
		_ = w.job.flush() // End writes again, and reports
		next.Reset(flushEvery)
	}
}

func (w *watch) end() {
	close(w.stop)
	w.done.Wait()
}

// live is how far the step is.
func (w *watch) live() Live {
	if w.job.Live == nil {
		return Live{}
	}
	l := w.job.Live()
	l.Moved -= w.base
	return l
}

func (j *Job) update(change func(*Record)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	change(&j.rec)
}

func stateOf(err error) JobState {
	switch {
	case err == nil:
		return Succeeded
	case fault.Cancelled(err), fault.Is(err, fault.GaveWay):
		return Cancelled
	case fault.Is(err, fault.ManualAction):
		return Waiting
	}
	return Failed
}

// End records the outcome, releases the job's lock and returns err, or what went wrong in recording.
func (j *Job) End(err error) error {
	j.update(func(r *Record) {
		r.State, r.Ended = stateOf(err), j.dir.now().UTC()
		if err != nil {
			r.Error = FailureOf(err, r.VM, r.Command, r.Ended)
		}
	})
	rerr := j.flush()
	cerr := errors.Join(j.lock.Close(), durable.RemoveIfThere(j.dir.fs, j.dir.lockFile(j.rec.ID)))
	if err != nil {
		return err // the record is second to what happened
	}
	return errors.Join(rerr, cerr)
}

// Settle ends the waiting of a job with a state and, for people, a remark at the step that waited. A job that does not wait, or is
// not known any more, is left as it is. It is durable on return.
func (d *Dir) Settle(id string, as JobState, note string) error {
	rec, ok, err := d.job(id)
	if err != nil || !ok || rec.State != Waiting {
		return err
	}
	rec.State = as
	if as == Succeeded {
		rec.Error = nil
	}
	for i := range rec.Steps {
		if s := &rec.Steps[i]; s.State == Waiting {
			s.State, s.Note = as, note
		}
	}
	return d.save(d.jobFile(id), rec)
}

// flush writes the record. It is durable on return.
func (j *Job) flush() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.dir.save(j.dir.jobFile(j.rec.ID), j.rec)
}

func (d *Dir) jobFile(id string) string  { return d.Path("jobs", id+".json") }
func (d *Dir) lockFile(id string) string { return d.Path("jobs", id+".lock") }

// Query selects jobs.
type Query struct {
	VM      string    // "" = all
	Command string    // "" = all
	State   JobState  // "" = all
	Since   time.Time // those that began at this time or later; zero = all
	Limit   int       // the newest so many; 0 = all
}

func (q Query) has(r Record) bool {
	return (q.VM == "" || r.VM == q.VM) && (q.Command == "" || r.Command == q.Command) && (q.State == "" || r.State == q.State)
}

// Jobs returns the jobs of the query, the newest first.
func (d *Dir) Jobs(q Query) ([]Record, error) {
	ids, err := d.ids()
	if err != nil {
		return nil, err
	}
	var out []Record
	for i := len(ids) - 1; i >= 0 && (q.Limit == 0 || len(out) < q.Limit); i-- {
		if at, _ := idTime(ids[i]); at.Before(q.Since.Truncate(time.Millisecond)) { // as exact as an ID is
			break
		}
		rec, ok, err := d.job(ids[i])
		if err != nil {
			return nil, err
		}
		if ok && q.has(rec) {
			out = append(out, rec)
		}
	}
	return out, nil
}

// ids lists the jobs, the oldest first.
func (d *Dir) ids() ([]string, error) {
	list, err := d.fs.ReadDir(d.Path("jobs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.FromOS(err)
	}
	var ids []string
	for _, e := range list {
		id, isRecord := strings.CutSuffix(e.Name, ".json")
		if isRecord && idShape.MatchString(id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// Running returns the jobs of this moment, by VM. Of several of a VM it is the newest.
func (d *Dir) Running() (map[string]Record, error) {
	all, err := d.running()
	if err != nil {
		return nil, err
	}
	by := map[string]Record{}
	for _, rec := range all {
		by[rec.VM] = rec
	}
	return by, nil
}

// running returns the jobs of this moment, the oldest first. Only a job that runs, or whose process died, has a lock file, so that not
// many records are looked at.
func (d *Dir) running() (out []Record, err error) {
	list, err := d.fs.ReadDir(d.Path("jobs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.FromOS(err)
	}
	for _, e := range list {
		id, isLock := strings.CutSuffix(e.Name, ".lock")
		if !isLock || !idShape.MatchString(id) {
			continue
		}
		rec, ok, err := d.job(id)
		if err != nil {
			return nil, err
		}
		if ok && rec.State == InProgress {
			out = append(out, rec)
		}
	}
	return out, nil
}

// Job returns the job whose ID is, or begins or ends with, id.
func (d *Dir) Job(id string) (Record, error) {
	ids, err := d.ids()
	if err != nil {
		return Record{}, err
	}
	var found []string
	for _, x := range ids {
		if x == id || strings.HasPrefix(x, id) || strings.HasSuffix(x, id) {
			found = append(found, x)
		}
	}
	if len(found) != 1 {
		return Record{}, fault.New(fault.UsageError, "%s", notOne(id, len(found)))
	}
	rec, ok, err := d.job(found[0])
	if err == nil && !ok {
		err = fault.New(fault.UsageError, "the record of this job cannot be read").At(d.jobFile(found[0]))
	}
	return rec, err
}

func notOne(id string, n int) string {
	if n == 0 {
		return fmt.Sprintf("there is no job %q; \"sitrep jobs\" lists them", id)
	}
	return fmt.Sprintf("%q is the beginning or the end of %d jobs; write more of it", id, n)
}

// job reads a record and, if it says that the job runs, asks the kernel whether that is so.
func (d *Dir) job(id string) (rec Record, ok bool, err error) {
	ok, err = d.load(d.jobFile(id), &rec)
	if err != nil || !ok || rec.ID != id {
		return Record{}, false, err
	}
	if rec.State == InProgress && !d.alive(id) {
		rec.State = Interrupted
		for i := range rec.Steps {
			if rec.Steps[i].State == InProgress {
				rec.Steps[i].State = Interrupted
			}
		}
	}
	return rec, true, nil
}

// alive says whether a job's process holds its lock.
func (d *Dir) alive(id string) bool { return d.locked(d.lockFile(id)) }

// pruneEvery is how often the list of jobs is looked through for old ones.
const pruneEvery = time.Hour

// Prune removes the records of jobs that began longer ago than keep and do not run, and what runs that were killed had
// half written. It looks at most once an hour.
func (d *Dir) Prune(keep time.Duration) error {
	mark := d.Path("jobs", "pruned")
	now := d.now()
	if s, err := d.fs.Stat(mark); err == nil && now.Sub(time.Unix(0, s.ModTime)).Abs() < pruneEvery {
		return nil
	}
	ids, err := d.ids()
	if err != nil || len(ids) == 0 {
		return err
	}
	for _, id := range ids {
		at, ok := idTime(id)
		if !ok || now.Sub(at) <= keep || d.alive(id) {
			continue
		}
		if err := errors.Join(
			durable.RemoveIfThere(d.fs, d.jobFile(id)), durable.RemoveIfThere(d.fs, d.lockFile(id))); err != nil {
			return fault.FromOS(err)
		}
	}
	if err := errors.Join(d.sweep(now), durable.WriteFile(d.fs, mark, nil)); err != nil {
		return fault.FromOS(err)
	}
	return nil
}

// sweep removes half-made files. Another run may be making one at this moment, but none takes an hour for it.
func (d *Dir) sweep(now time.Time) error {
	for _, folder := range []string{d.path, d.Path("jobs"), d.Path("vms")} {
		list, err := d.fs.ReadDir(folder)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range list {
			name := filepath.Join(folder, e.Name)
			if e.Dir || !durable.IsTemp(name) {
				continue
			}
			s, err := d.fs.Stat(name)
			if err == nil && now.Sub(time.Unix(0, s.ModTime)) > pruneEvery {
				err = durable.RemoveIfThere(d.fs, name)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) { // its maker may have renamed it by now
				return err
			}
		}
	}
	return nil
}
