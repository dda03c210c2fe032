// Package failover wakes a VM at the recovery site, and brings it home again.
//
// What may happen when is one table (states.go): phases of the replica against what an operator can ask for. What
// happens is a plan: a list of steps that is made first, printed and checked, and then executed (plan.go, run.go). Every step
// can be done again, and each one that is finished is written into the ledger, beside the replica. A failover that was
// killed is continued by the same command, on the same machine or on another one that has the site file and the store.
//
// The order is the one that keeps two things true whatever happens: nobody writes to the replica but its owner, and nothing
// that could still be needed is given up.
//
//	begin          ledger: a failover was begun, by whom, from which phase
//	stop source    (planned: it has to; unplanned: it is tried)
//	last changes   of the stopped source, into the store: nothing is lost
//	take over      ledger: a higher generation; from here the site that replicated is refused by the store
//	finish         what lies on the shelf is applied, so that the newest point is as new as can be
//	disks          a copy of the recovery point, in the format of the recovery host, every block proved: in a folder, or
//	               inside the store (disks.go, promoted.go)
//	create, start, boot check, hook
//	complete       ledger: the VM runs at the recovery site
//
// The VM runs on copies. The replica's pages and its recovery points stay what they are, so that until Commit another
// point can be chosen (it is read first, before what runs is given up for it), and Undo gives everything back. A test failover is the same from "disks" on, beside a replication
// that goes on.
//
// Failback (failback.go) compares the disks of the recovered VM with those at home and writes the blocks that differ in
// place, through sealed change logs. Then Commit removes the recovered VM, and replication goes on in its old direction:
// the next delta finds by the block sums what the VM has written meanwhile.
package failover

import (
	"context"
	"log/slog"
	"time"

	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/progress"
	"sitrep/internal/replica"
)

// Place is a host with what has to be known of one VM on it.
type Place struct {
	// Host is nil where sitrep has no hand on VMs: they are started and stopped by people, and only disks are made.
	Host host.Host
	// ID tells the host from others that could be in its place, as the site file and this machine say.
	ID string
	// Key is the same for a machine that has another name by now; "" where that cannot be told.
	Key string
	// Name is the VM's name there.
	Name string
	// Grace is how long its guest may take to shut down.
	Grace time.Duration
	// Foreign says that something else starts the VM there: sitrep can stop it, and no more.
	Foreign bool
	// Booted waits until the VM is up; nil: it is when its host says that it runs. It is given what was made.
	Booted func(ctx context.Context, d host.Definition) error
}

// Describe names the place for people and records.
func (p Place) Describe() string {
	if p.Host == nil {
		return "no host"
	}
	return p.Host.Describe()
}

// Job is one VM with everything that failover, failback and what lies between need. A Job is used by one goroutine, which
// holds the VM's lock at this site; but see Turn.
type Job struct {
	VM    string
	Store replica.Store
	FS    durable.FS
	By    replica.Owner // this site, on this machine
	Keep  int           // recovery points that stay while replicating

	Source   Place // where the protected VM runs
	Recovery Place // where it comes up; Name is that of the real failover, a test's has "-test" behind it
	// DisksIn says where the disks are made of a failover that has none yet. Those that were made are where the ledger says.
	DisksIn DisksIn
	// Folder is where the disks of this VM lie when it is recovered, and TestFolder when it is tested, for InFolder.
	Folder, TestFolder string
	Format             disk.Format // of the files there
	// Proof is how disks that the service of the store has copied are proven, for InStore.
	Proof replica.Proof
	// Machine is the VM to be made, as the ledger's definition and the site file say: without disks and NICs.
	Machine host.Definition

	// HostLost says that the host at which the VM was recovered, which is another one than Recovery, is lost for good: what was made
	// there is left, and nothing there is asked for.
	HostLost bool

	// NICs makes the table of networks; its error means that nothing may be started.
	NICs func(ctx context.Context, k Kind) ([]host.NIC, []string, error)
	// LastChanges brings what the source wrote last into the store. It is called when the source is off, before the replica
	// is taken over, and opens the replica by itself. nil: there is no source here.
	LastChanges func(ctx context.Context) error
	// NotMine says why it cannot be called here: another one replicates the VM. nil: nothing is in its way.
	NotMine error
	// Unreplicated names the source's disks that no recovery point has. A planned failover, which loses nothing, is refused then.
	Unreplicated []string
	// Hook runs the operator's program after the VM was started, and CleanedUp the one after a test was cleaned up. nil: none.
	Hook, CleanedUp func(ctx context.Context, k Kind, d host.Definition) error

	// Hold holds a VM at the recovery host still until the function that it returns is called, whatever becomes of this run. nil: the
	// host does that, and a run that is killed leaves the VM held.
	Hold func(ctx context.Context, name string) (letGo func() error, err error)

	// InUse refuses a disk that something uses. nil: nobody knows.
	InUse func(path string) error
	// NotSaved refuses a VM at home whose memory was saved with its disks as they were. nil: nobody knows.
	NotSaved func(vm string) error
	// Written refuses disks (paths by name) to which the VM called name at a host does not write, because it writes to files on top of
	// them. nil: nobody knows.
	Written func(ctx context.Context, h host.Host, name string, paths map[string]string) error

	// Home is what failback needs.
	Home Home

	// Turn does f while no other run changes the replica, for a test whose caller does not hold the VM's lock: replication goes on while
	// disks are copied and the VM boots. f may be done more than once. nil: the lock is held.
	Turn func(ctx context.Context, f func(context.Context) error) error

	// Step runs f as a step of the job that is recorded.
	Step  func(name string, f func() (bytes int64, note string, err error)) error
	Meter progress.Meter
	Log   *slog.Logger
	Now   func() time.Time
	// Pause waits; nil is the real time.
	Pause func(ctx context.Context, d time.Duration) error
}

// Kind is what kind of failover it is.
type Kind string

// The kinds. They are the words of the command line and of records.
const (
	Test      Kind = "test"
	Planned   Kind = "planned"
	Unplanned Kind = "unplanned"
)

// Options are what an operator chooses.
type Options struct {
	// Point is a recovery point: see Choose. "" is the latest.
	Point string
	// NoShutdown says that an unplanned failover does not try to stop the source.
	NoShutdown bool
}

// in names the VM in an error.
func (j *Job) in(err error) error {
	if e := fault.Find(err); e != nil && e.VM == j.nameAt(Test) { // the host's name of it; commands are about the protected VM
		e.VM = j.VM
	}
	return fault.In(err, j.VM, "")
}

// load reads the ledger without a lock.
func (j *Job) load(ctx context.Context) (st replica.State, err error) {
	r, err := j.Store.View(ctx, j.VM)
	if err != nil {
		return st, err
	}
	st, err = r.Ledger().Load(ctx)
	if cerr := r.Close(); err == nil {
		err = cerr
	}
	return st, err
}

// change changes the ledger, under the replica's lock.
func (j *Job) change(ctx context.Context, f func(*replica.State) error) error {
	_, err := j.changed(ctx, f)
	return err
}

// changed is change, and returns what the ledger is then.
func (j *Job) changed(ctx context.Context, f func(*replica.State) error) (saved replica.State, err error) {
	err = j.with(ctx, func(r replica.Replica, st replica.State) (err error) {
		if err := f(&st); err != nil {
			return err
		}
		saved, err = r.Ledger().Save(ctx, st)
		return err
	})
	return saved, err
}

// with does f with the replica opened for writing.
func (j *Job) with(ctx context.Context, f func(replica.Replica, replica.State) error) error {
	if j.Turn == nil {
		return j.opened(ctx, j.Store.Open, f)
	}
	return j.Turn(ctx, func(ctx context.Context) error { return j.opened(ctx, j.Store.Open, f) })
}

// beside does f with the replica opened for reading, while others may apply to it. Disks inside the store are made by whoever writes.
func (j *Job) beside(ctx context.Context, in DisksIn, f func(replica.Replica, replica.State) error) error {
	if in == InStore {
		return j.with(ctx, f)
	}
	return j.opened(ctx, j.Store.View, f)
}

func (j *Job) opened(ctx context.Context, open func(context.Context, string) (replica.Replica, error), f func(replica.Replica, replica.State) error) (err error) {
	r, err := open(ctx, j.VM)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := r.Close(); err == nil {
			err = cerr
		}
	}()
	st, err := r.Ledger().Load(ctx)
	if err != nil {
		return err
	}
	return f(r, st)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
