package replica

import (
	"encoding/json"
	"slices"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/sums"
)

// Format is the version of State that this program writes; a newer one is refused, not guessed at.
const Format = 1

// Phase is what the replica is for at the moment.
type Phase string

// The phases. The command line shows them as the VM's state.
const (
	Seeding         Phase = "initial-replication"        // the initial copy is not complete
	Replicating     Phase = "replicating"                // deltas are taken and applied
	Paused          Phase = "paused"                     // by the administrator
	ResyncRequired  Phase = "resynchronization-required" // change logs no longer lead on
	Resynchronizing Phase = "resynchronizing"            // source and replica are being compared
	Retired         Phase = "unprotected"                // protection was disabled and the replica kept: for reading only

	FailoverStarted Phase = "failover-in-progress" // the recovery site has taken over and makes the VM
	FailedOver      Phase = "failed-over"          // the VM runs at the recovery site; can still be undone
	Committed       Phase = "failover-committed"   // the VM runs at the recovery site, for good until failback
	FailbackStarted Phase = "failback-in-progress" // what the VM wrote there is brought home
	FailedBack      Phase = "failback-complete"    // the VM runs at home again; to be committed
)

// Away says that the VM belongs to the recovery site, or is on its way from there: nothing is replicated then, and the
// site that used to is refused.
func (p Phase) Away() bool {
	switch p {
	case FailoverStarted, FailedOver, Committed, FailbackStarted, FailedBack:
		return true
	}
	return false
}

// State is the ledger: all that is true of a replica, in one record. The zero value of every field means "never".
type State struct {
	Format  int    `json:"format"`
	Version uint64 `json:"version"` // goes up with every Save
	VM      string `json:"vm"`
	// RenameTo is the name that the replica is being given, from before it has it until its ledger says so.
	RenameTo string `json:"rename_to,omitempty"`
	Vault    string `json:"vault"`
	Replica  hrl.ID `json:"replica"` // names this relationship for ever: a new protection makes a new one
	// Store is the identity of the store that the replica was last written in, zero in ledgers of before it was kept.
	Store hrl.ID `json:"store,omitzero"`
	// Generation goes up at every failover and failback; a writer with an old one is refused.
	Generation uint64 `json:"generation"`
	Owner      Owner  `json:"owner"`
	// Unlocking is set, with a higher Generation, by whoever takes the replica over from a run that is gone, until all of the
	// store knows of it.
	Unlocking bool      `json:"unlocking,omitempty"`
	Created   time.Time `json:"created"`

	Phase      Phase     `json:"phase"`
	PhaseSince time.Time `json:"phase_since"`
	// Reason says why, in words, and ReasonCode (a fault.Code) for a program, for Paused and ResyncRequired.
	Reason     string     `json:"reason,omitempty"`
	ReasonCode fault.Code `json:"reason_code,omitempty"`
	// PausedFrom is the phase that resume goes back to, and PausedReason the reason that this phase had.
	PausedFrom   Phase  `json:"paused_from,omitempty"`
	PausedReason string `json:"paused_reason,omitempty"`

	Disks []Disk `json:"disks"`
	// Joining is the disks that were added to the VM while it was protected, as long as their initial copy is not complete; Joined names
	// those whose copy is, and that no cut has been received of yet. See EveryDisk.
	Joining []Disk   `json:"joining_disks,omitempty"`
	Joined  []string `json:"joined_disks,omitempty"`

	// Received is the position to which the shelf leads: all logs from Applied to Received lie there, listed in Pending.
	Received hrl.Pos `json:"received"`
	// Applying is set while pages are between Applied and its To: they are no disk of any moment then.
	Applying *Span `json:"applying,omitempty"`
	// Applied is the position of the pages, when Applying is nil.
	Applied hrl.Pos `json:"applied"`
	// Pending is what lies on the shelf and is not applied, in order.
	Pending []Segment `json:"pending,omitempty"`
	// Consistent says that Applied is a state that the VM's disks had at one moment. After an initial copy taken from disks
	// that went on changing it is not, until the first delta.
	Consistent bool `json:"consistent"`
	// AsOf is the last moment of which it is known that the pages at Applied are the source's disks.
	AsOf time.Time `json:"as_of"`

	Points []Point `json:"points,omitempty"` // oldest first
	// Lost is the points that something else removed from the store, or that cannot be proved any more, oldest first, until the retention would have dropped them.
	Lost []Point `json:"lost_points,omitempty"`

	// Massive is a massive change that nobody has acknowledged.
	Massive *Massive `json:"massive_change,omitempty"`

	// Resync is set while Phase is Resynchronizing.
	Resync *Resync `json:"resync,omitempty"`

	// Definition is what is needed to make the VM at the recovery site, as recorded by finalize protection.
	Definition json.RawMessage `json:"definition,omitempty"`

	// Failover is set from the beginning of a failover until the VM is home again, or the failover is undone.
	Failover *Failover `json:"failover,omitempty"`
	// Test is the test failover that has not been cleaned up. It does not touch Phase: replication goes on.
	Test *Failover `json:"test_failover,omitempty"`
	// LastTest is the last test failover that was cleaned up.
	LastTest *TestResult `json:"last_test_failover,omitempty"`
	// GoodTest is the last one that was complete, when LastTest is another one; see LastGoodTest.
	GoodTest *TestResult `json:"last_good_test_failover,omitempty"`

	// Ended says which command ended the last failover, or the way home of one that goes on, so that the command is done when it is
	// run again. It says nothing about a failover that was begun since.
	Ended *Ended `json:"last_failover,omitempty"`

	// Promoted is the Stamp of each disk that "points --promote" has made, by its name, when it was made.
	Promoted map[string]string `json:"promoted,omitempty"`
}

// Failover is what a failover has made, and how far it is. Done makes it go on where a killed one stopped.
type Failover struct {
	// ID is that of the disks that are made: a new one for each recovery point that the VM is made from.
	ID      hrl.ID    `json:"id"`
	Kind    string    `json:"kind"`    // test, planned, unplanned
	Started time.Time `json:"started"` // with the point, or the kind, that it has now
	// Begun is when the source was given up: the VM is down since then, also when another point is chosen later. Zero in ledgers of
	// before it was kept: Started.
	Begun time.Time `json:"begun,omitzero"`
	// Brought is the position that holds all that the source wrote before it was stopped, and Whole the point of that position.
	Brought hrl.Pos `json:"brought,omitzero"`
	Whole   string  `json:"whole_point,omitempty"`
	By      Owner   `json:"by"`
	// From is the phase that undo goes back to, and Source who owned the replica before.
	From   Phase  `json:"from,omitempty"`
	Source Owner  `json:"source,omitzero"`
	Point  string `json:"point,omitempty"` // ID of the recovery point that the VM runs from
	// CutAt is the moment of that point: what the VM lost is what it wrote after it.
	CutAt time.Time `json:"cut_at,omitzero"`
	// Unchanged is the last moment at which the source was known to be as that point still, where that is later; see State.KnownAt.
	Unchanged time.Time `json:"unchanged_until,omitzero"`
	// Fenced says that no writer of an older generation can change the replica any more.
	Fenced bool `json:"fenced,omitempty"`
	// Done names the finished steps, in order.
	Done []string `json:"done,omitempty"`
	// SourceStopped says that the source VM was stopped by it, and so is started by undo.
	SourceStopped bool   `json:"source_stopped,omitempty"`
	Host          string `json:"host,omitempty"` // that runs the VM, as it describes itself
	// HostID tells that host from others; "" in ledgers of before it was kept.
	HostID string `json:"host_id,omitempty"`
	// HostKey tells it also when its machine was renamed since.
	HostKey string `json:"host_key,omitempty"`
	// DisksIn is where its disks are made: "" in a folder, "store" beside the replica (see Promoter).
	DisksIn string `json:"disks_in,omitempty"`
	// DiskStamps are what Promoted.Stamp was of disks that were made beside the replica, by name.
	DiskStamps map[string]string `json:"disk_stamps,omitempty"`
	// VM is the host.Definition of what was made there.
	VM json.RawMessage `json:"vm,omitempty"`
	// Creating says that the host may have that VM: it is set before it is created there, when the host had none of its name. Ledgers of
	// before it was kept have only the finished step.
	Creating bool      `json:"creating,omitempty"`
	Finished time.Time `json:"finished,omitzero"` // the VM was up, its boot check passed
	// ByHand says that no host was given: people start the VM, and when it is up is not known.
	ByHand   bool      `json:"by_hand,omitempty"`
	Failback *Failback `json:"failback,omitempty"`
	// Stopped is what the failover stopped at, until a step gets done again.
	Stopped *Stopped `json:"stopped_at,omitempty"`
}

// BeingUndone is in Failover.Done when an undo, or the clean-up of a test, has begun to remove what was made.
const BeingUndone = "undo"

// Undone says so. Nothing of what was made may be relied upon then.
func (f *Failover) Undone() bool { return f != nil && slices.Contains(f.Done, BeingUndone) }

// Failback is the way home of a VM that was failed over.
type Failback struct {
	ID      hrl.ID    `json:"id"`   // of the logs that bring the disks home
	Mode    string    `json:"mode"` // minimal-downtime, during-failover
	Started time.Time `json:"started"`
	To      string    `json:"to,omitempty"` // host of an alternate location
	// Disks are the paths of the disks at home, by name: the source's own, or those of the alternate location.
	Disks map[string]string `json:"disks"`
	Done  []string          `json:"done,omitempty"`
	// Sent is what was brought home so far, in bytes, by all runs; Made is the part of it in disks that were made anew.
	Sent int64 `json:"bytes_sent,omitempty"`
	Made int64 `json:"bytes_made,omitempty"`
	// ByHand says that people stop the recovered VM, or start the one at home: how long it was down is not known.
	ByHand bool `json:"by_hand,omitempty"`
	// Stopped is when the recovered VM was stopped: the downtime begins.
	Stopped  time.Time `json:"stopped,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
}

// Stopped is a step of a failover that failed.
type Stopped struct {
	Step    string     `json:"step"` // as people read it
	Code    fault.Code `json:"code"`
	Message string     `json:"message"`
	At      time.Time  `json:"at"`
}

// Ended is how a failover came to its end.
type Ended struct {
	By string    `json:"by"` // failover undo, failover commit
	At time.Time `json:"at"`
}

// LastGoodTest is the last test failover that was complete, nil when none was.
func (s *State) LastGoodTest() *TestResult {
	if s.LastTest != nil && s.LastTest.OK {
		return s.LastTest
	}
	return s.GoodTest
}

// TestResult is how a test failover ended.
type TestResult struct {
	Started time.Time `json:"started"`
	Cleaned time.Time `json:"cleaned"`
	OK      bool      `json:"ok"` // the VM came up
	Point   string    `json:"point"`
	Notes   string    `json:"notes,omitempty"`
	By      Owner     `json:"by"`
}

// Owner is who writes to the replica.
type Owner struct {
	Site  string    `json:"site"` // vault and VMM server
	Host  string    `json:"host"` // machine that runs sitrep
	Since time.Time `json:"since"`
	// Writer is the random ID of the state folder that it writes from, State that folder's path, without links, and Machine tells its
	// machine from others (see package machine). They are not there in ledgers of before they were kept; Machine is "" where the system
	// does not tell.
	Writer  hrl.ID `json:"writer,omitzero"`
	State   string `json:"state_folder,omitempty"`
	Machine string `json:"machine,omitempty"`
	// Run is the last run that wrote as the owner, and Wrote when. Its state folder has known of it since before it wrote.
	Run   hrl.ID    `json:"run,omitzero"`
	Wrote time.Time `json:"last_write,omitzero"`
}

// Span leads from one position to another.
type Span struct {
	From hrl.Pos `json:"from"`
	To   hrl.Pos `json:"to"`
}

// Disk is one disk of the replica.
type Disk struct {
	Name   string `json:"name"`
	OS     bool   `json:"os,omitempty"`
	Source string `json:"source"`        // path at the protected site
	Format string `json:"source_format"` // raw, vhd, vhdx: what failback creates
	Size   int64  `json:"size"`          // guest bytes at Applied
	// Identity tells the source disk from another one that comes to stand at its path: a disk.Identity; "" is not known.
	Identity string `json:"source_identity,omitempty"`
	// Anew says that the source disk was written, or chosen, on purpose since Identity was learned: a failback has brought the VM home to it, or
	// another machine has taken the replica over. The next capture takes it whatever it is, and learns what it is.
	Anew bool `json:"source_anew,omitempty"`
	// SectorSize is the bytes of a logical sector as the guest sees the disk; 0 is 512.
	SectorSize int   `json:"sector_size,omitempty"`
	BlockSize  int64 `json:"block_size"` // bytes of a block of the sums; fixed when protection is enabled
	// Seeded is how far the initial copy is known to be durable, in guest bytes; Size when it is complete.
	Seeded int64 `json:"seeded"`
	// Stamp describes the pages as they were left at Applied; something else wrote to them if it differs.
	Stamp string `json:"stamp,omitempty"`
	// Seal proves the block sums as of Applied.
	Seal *sums.Seal `json:"sums_seal,omitempty"`
	// VerifiedAt is when every block was last proved against its sum.
	VerifiedAt time.Time `json:"verified_at,omitzero"`
	// VerifyCursor is where the verification in progress goes on, in guest bytes.
	VerifyCursor int64 `json:"verify_cursor,omitempty"`
	// VerifyStarted is when the verification in progress began.
	VerifyStarted time.Time `json:"verify_started,omitzero"`
	// VerifyStamp is the pages' stamp that the verification in progress is about; it begins anew when something else changes them.
	VerifyStamp string `json:"verify_stamp,omitempty"`
}

// Resync is a resynchronization in progress. It goes through the disks in slices; each finished one is a position of
// its own, at which the disks are of no one moment.
type Resync struct {
	Started time.Time `json:"started"`
	// Deep says that the replica's bytes are read, because its block sums are not proven.
	Deep bool `json:"deep"`
	// Sealed names the disks whose block sums were those of Applied when it began: what is not as they say was written by
	// something else.
	Sealed map[string]bool `json:"sums_sealed,omitempty"`
	// Cursors is how far each disk is compared and repaired, in guest bytes.
	Cursors map[string]int64 `json:"cursors"`
	// Healed is how far each disk was proven and healed before anything was repaired, in guest bytes, where the store preserves
	// disks as a whole; Lost is the blocks that were not healed, because the source has changed them since; and Proven says that
	// there are none, so the block sums are trusted again.
	Healed map[string]int64 `json:"healed,omitempty"`
	Lost   int64            `json:"lost_blocks,omitempty"`
	Proven bool             `json:"proven,omitempty"`
	// Fresh says that the replica was not what the ledger says when it began: whatever the comparison finds, it ends at a new position, so
	// that nothing of the old ones can be mixed up with it.
	Fresh bool `json:"new_history,omitempty"`
	// Began is the position of the pages when it began.
	Began hrl.Pos `json:"began_at,omitzero"`
	// Slice is what is being repaired while the ledger says Applying.
	Slice *Slice `json:"slice,omitempty"`
	// Sent is the bytes that were sent so far.
	Sent int64 `json:"bytes_sent"`
	// Data is how many bytes of data each disk held, as far as it is compared, and Overwritten how many of these were changed.
	Data        map[string]int64 `json:"bytes_data,omitempty"`
	Overwritten map[string]int64 `json:"bytes_overwritten,omitempty"`
}

// Slice is a part of one disk, in guest bytes.
type Slice struct {
	Disk string `json:"disk"`
	Off  int64  `json:"off"`
	Len  int64  `json:"len"`
}

// Segment is one cut on the shelf: a log for each disk.
type Segment struct {
	Span
	CutAt         time.Time        `json:"cut_at"`
	AppConsistent bool             `json:"app_consistent,omitempty"`
	Sizes         map[string]int64 `json:"sizes"` // guest bytes of each disk at To
	Bytes         map[string]int64 `json:"bytes"` // bytes of each disk's log
}

// Point is a recovery point: the whole VM at one position.
type Point struct {
	ID            string           `json:"id"` // sorts by time
	At            hrl.Pos          `json:"position"`
	CutAt         time.Time        `json:"cut_at"`
	AppConsistent bool             `json:"app_consistent,omitempty"`
	Sizes         map[string]int64 `json:"sizes"` // guest bytes of each disk
	// Held says why no retention drops the point, "" when it may.
	Held string `json:"held,omitempty"`
	// Seals are the seals of the block sums of each disk at the point: whatever the files of a replica have become, what is shown as the
	// point is proved by them. Points of older versions have none.
	Seals map[string]sums.Seal `json:"sums_seals,omitempty"`
	// Damaged is what was found when the point was read last and was not what it had been, "" when nothing was. It stays in the list: what is
	// wrong may be mended, and other disks of it may be whole.
	Damaged string `json:"damaged,omitempty"`
}

// DisksAnew has the next capture take all source disks whatever they are; see Disk.Anew.
func (s *State) DisksAnew() {
	s.Disks = slices.Clone(s.Disks)
	for i := range s.Disks {
		s.Disks[i].Anew = true
	}
}

// Disk returns the entry of a disk, or nil.
func (s *State) Disk(name string) *Disk {
	for i := range s.Disks {
		if s.Disks[i].Name == name {
			return &s.Disks[i]
		}
	}
	return nil
}

// KnownAt is the last moment at which the source is known to have been as a point: its own, or AsOf when the pages still are that point and
// deltas since have found that nothing had changed.
func (s *State) KnownAt(p Point) time.Time {
	if p.At == s.Applied && s.Applying == nil && s.Consistent && s.AsOf.After(p.CutAt) {
		return s.AsOf
	}
	return p.CutAt
}

// Point returns a recovery point, or nil.
func (s *State) Point(id string) *Point {
	for i := range s.Points {
		if s.Points[i].ID == id {
			return &s.Points[i]
		}
	}
	return nil
}

// Sizes is the guest bytes of the disks at the applied position, by name.
func (s *State) Sizes() map[string]int64 {
	out := make(map[string]int64, len(s.Disks))
	for _, d := range s.Disks {
		out[d.Name] = d.Size
	}
	return out
}

// PointAt is the recovery point of the applied position, as of the moment of its cut.
func (s *State) PointAt(cut time.Time, app bool) Point {
	p := Point{
		ID: PointID(s.Applied, cut), At: s.Applied, CutAt: cut, AppConsistent: app, Sizes: s.Sizes(),
		Seals: make(map[string]sums.Seal, len(s.Disks)),
	}
	for _, d := range s.Disks {
		if d.Seal != nil {
			p.Seals[d.Name] = *d.Seal
		}
	}
	return p
}

// PointID is the name of the recovery point of a cut: the time in UTC, so that names sort, and the position's number.
func PointID(at hrl.Pos, cut time.Time) string {
	return cut.UTC().Format("20060102T150405Z") + "-" + at.ID.String()[:8]
}
