package health

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

// Code names a rule. Codes are part of the contract of --json: they are only added.
type Code string

// The codes of the rules.
const (
	HeldPaused        Code = "held-paused"
	Error             Code = "error"
	ResyncRequired    Code = "resync-required"
	ResyncInterrupted Code = "resync-interrupted"
	NotRecoverable    Code = "not-recoverable"
	Resynchronizing   Code = "resynchronizing"
	Paused            Code = "paused"
	InitialUnfinished Code = "initial-replication-unfinished"
	NotConsistent     Code = "not-consistent"
	ApplyInterrupted  Code = "apply-interrupted"
	WaitingForRetry   Code = "waiting-for-retry"
	Behind            Code = "behind"
	CyclesMissed      Code = "cycles-missed"
	Slow              Code = "slow"
	ClockWrong        Code = "clock-wrong"
	FailoverPending   Code = "failover-pending"
	TestNotCleaned    Code = "test-failover-not-cleaned-up"
	PointsLost        Code = "recovery-points-lost"
	PointsDamaged     Code = "recovery-points-damaged"
	MassiveChange     Code = "massive-change"
	OtherVault        Code = "other-vault" // of no rule: the ledger is that of somebody else's VM
	DiskNotReplicated Code = "disk-not-replicated"
)

// The limits of the rules (Hyper-V team blog, "Interpreting Replication Health", parts 1 and 2).
const (
	missedPercent  = 20 // more missed cycles than this share of an interval's are not normal
	enoughInTime   = 4  // cycles in a row of which none was missed: the share of the last five is as it should be
	behindLimit    = BehindLimit
	latencyLimit   = 5 * time.Minute // a longer average latency is not normal
	clockTolerance = 5 * time.Minute // what clocks of two sites may differ by
)

// BehindLimit is the age from which on a replica is not normal.
const BehindLimit = time.Hour

// rule is one line of the table of health.
type rule struct {
	health Health
	code   Code
	holds  func(*Facts) bool
	text   func(*Facts) string
	next   func(*Facts) string
}

// rules is the whole table. Of the rules of one health the first that holds says what to run next.
//
// Critical is what does not replicate and does not come back by itself; Warning is what may, or what an administrator
// has chosen.
func rules() []rule {
	return []rule{
		{Critical, HeldPaused, heldPaused, func(f *Facts) string { return f.Held.Text() }, run("check")},
		{Critical, Error, inError, errorText, nextInError},
		{Critical, ResyncRequired, resyncRequired, resyncText, nextResync},
		{Critical, ResyncInterrupted, resyncInterrupted, resyncInterruptedText, nextResync},
		{Critical, NotRecoverable, notRecoverable, failedText, run("check")},
		{Warning, Paused, paused, pausedText, run("resume")},
		{Warning, Resynchronizing, resynchronizing, resynchronizingText, nothing},
		{Warning, InitialUnfinished, seeding, seedingText, nextSeed},
		{Warning, ApplyInterrupted, applyInterrupted, applyText, run("apply")},
		{Warning, WaitingForRetry, waitingForRetry, retryText, nextDelta},
		{Warning, NotConsistent, notConsistent, notConsistentText, run("delta")},
		{Warning, Behind, behind, behindText, run("delta")},
		{Warning, CyclesMissed, cyclesMissed, missedText, nextMissed},
		{Warning, Slow, slow, slowText, run("jobs --vm")},
		{Warning, ClockWrong, clockWrong, clockText, run("delta")},
		{Warning, DiskNotReplicated, notReplicated, notReplicatedText, nextAdd},
		{Warning, MassiveChange, massiveChange, massiveText, nextMassive},
		{Warning, PointsLost, pointsLost, lostText, run("points")},
		{Warning, PointsDamaged, pointsDamaged, damagedText, run("points")},
		{Warning, TestNotCleaned, testNotCleaned, testText, run("failover cleanup")},
	}
}

// notReplicated: the site file has disks that no recovery point has.
func notReplicated(f *Facts) bool {
	return f.under() == replica.Replicating && (len(f.Added) > 0 || len(f.Ledger.Joined) > 0)
}

func notReplicatedText(f *Facts) string {
	var list []string
	for _, name := range f.Added {
		if d := f.Ledger.Joins(name); d != nil {
			list = append(list, fmt.Sprintf("disk %s is being added (%d%% copied)", name, min(99, 100*(d.Seeded>>9)/max(1, d.Size>>9))))
		} else {
			list = append(list, fmt.Sprintf("disk %s was added to the site file and is not replicated", name))
		}
	}
	for _, name := range f.Ledger.Joined {
		list = append(list, fmt.Sprintf("disk %s is copied and joins the VM with the next delta", name))
	}
	return strings.Join(list, "; ") + ": the other disks are replicated, and a failover makes the VM without it"
}

// nextAdd leaves the work to the job that does it.
func nextAdd(f *Facts) string {
	switch {
	case f.Running != "":
		return ""
	case len(f.Added) == 0:
		return run("delta")(f)
	}
	return run("protect")(f)
}

func massiveChange(f *Facts) bool { return f.Ledger != nil && f.Ledger.Massive != nil }

// massiveText has the figures that tell an attack from a defragmentation.
func massiveText(f *Facts) string {
	m := f.Ledger.Massive
	more := ""
	if m.More > 0 {
		more = fmt.Sprintf(", and %d more such deltas since", m.More)
	}
	kept := "is held until this is acknowledged"
	if f.Ledger.Point(m.Point) == nil {
		kept = "is there no more; this is told until it is acknowledged"
	}
	return fmt.Sprintf("one delta, of %s, changed %d%% of the data of disk %s (%s of %s MiB), and %d%% of that looks encrypted or compressed now and did not before%s; "+
		"recovery point %s of before %s", stamp(m.CutAt), m.Percent(), m.Disk, mib(m.Changed), mib(m.Data), m.Noise, more, m.Point, kept)
}

// mib has one decimal below 10 MiB, where whole ones would not agree with the percentage.
func mib(bytes int64) string {
	decimals := 0
	if bytes < 10<<20 {
		decimals = 1
	}
	return strconv.FormatFloat(float64(bytes)/(1<<20), 'f', decimals, 64)
}

func nextMassive(f *Facts) string {
	return "sitrep points " + f.VM + " --release " + f.Ledger.Massive.Point
}

func pointsLost(f *Facts) bool { return f.Ledger != nil && len(f.Ledger.Lost) > 0 }

func lostText(f *Facts) string {
	n := len(f.Ledger.Lost)
	what := fmt.Sprintf("%d recovery points are lost, the newest of", n)
	if n == 1 {
		what = "a recovery point is lost, that of"
	}
	return fmt.Sprintf("%s %s: something else removed or replaced what the store kept of it", what, stamp(f.Ledger.Lost[n-1].CutAt))
}

func pointsDamaged(f *Facts) bool { return f.Ledger != nil && len(f.Ledger.DamagedPoints()) > 0 }

func damagedText(f *Facts) string {
	list := f.Ledger.DamagedPoints()
	newest := list[len(list)-1]
	what := fmt.Sprintf("%d recovery points are damaged, the newest of", len(list))
	if len(list) == 1 {
		what = "a recovery point is damaged, that of"
	}
	return fmt.Sprintf("%s %s: %s", what, stamp(newest.CutAt), newest.Damaged)
}

func run(command string) func(*Facts) string {
	return func(f *Facts) string { return "sitrep " + command + " " + f.VM }
}

func nothing(*Facts) string { return "" }

func heldPaused(f *Facts) bool { return f.Held != nil }

func inError(f *Facts) bool { return f.Critical != nil }

func errorText(f *Facts) string {
	text := fmt.Sprintf("replication is in error since %s: %s", stamp(f.Critical.At), f.Critical.Message)
	switch {
	case !f.Critical.Code.Scheduled():
		return text
	case f.Retry.Due(f.Now):
		return text + "; the next run tries again"
	}
	return text + "; tried again at " + stamp(f.Retry.NextAt)
}

// failedWith says whether the last run failed with an error of one of these classes.
func (f *Facts) failedWith(classes ...fault.Class) bool {
	return f.Failed != nil && slices.Contains(classes, f.Failed.Code.Class())
}

// resyncRequired: the replica was marked, before a pause perhaps, or the error that marks it is all that is known.
func resyncRequired(f *Facts) bool {
	switch f.under() {
	case replica.ResyncRequired:
		return true
	case replica.Resynchronizing:
		return false
	}
	return f.failedWith(fault.Resync, fault.Differs)
}

func resyncText(f *Facts) string {
	const what = "resynchronization is required"
	switch {
	case f.under() != replica.ResyncRequired:
		return fmt.Sprintf("%s since %s: %s", what, stamp(f.Failed.At), f.Failed.Message)
	case f.phase() == replica.Paused:
		return what + because(f.Ledger.PausedReason) + "; it has to wait for the end of the pause"
	}
	return fmt.Sprintf("%s since %s%s%s", what, stamp(f.Ledger.PhaseSince), because(f.Ledger.Reason), f.byItself())
}

// nextInError tries again at once what is tried again by itself; what is not has to be told to go on.
func nextInError(f *Facts) string {
	if f.Critical.Code.Scheduled() {
		return nextDelta(f)
	}
	return run("resume")(f)
}

// byItself says when a resynchronization begins unasked.
func (f *Facts) byItself() string {
	switch {
	case f.ResyncAt.IsZero():
		return ""
	case f.ResyncAt.After(f.Now):
		return "; it begins by itself when its window opens, at " + stamp(f.ResyncAt)
	}
	return "; the next run begins it, its window is open"
}

// nextResync reads the replica's bytes when it is these, and not the logs, that are in doubt. It is the command of the table of faults.
func nextResync(f *Facts) string {
	if f.phase() == replica.Paused {
		return run("resume")(f)
	}
	doubts := []fault.Code{fault.ReplicaCorrupt, fault.Difference}
	deep := f.Failed != nil && slices.Contains(doubts, f.Failed.Code)
	if f.phase() == replica.ResyncRequired {
		deep = slices.Contains(doubts, f.Ledger.ReasonCode)
	}
	if deep {
		return run("resync")(f) + " --deep --now"
	}
	return run("resync")(f) + " --now"
}

func resyncInterrupted(f *Facts) bool {
	return f.under() == replica.Resynchronizing && f.Running == ""
}

func resyncInterruptedText(f *Facts) string {
	if f.phase() == replica.Paused {
		return "a resynchronization is not complete" + f.compared() + "; it has to wait for the end of the pause"
	}
	return fmt.Sprintf("the resynchronization that began at %s was interrupted%s", stamp(f.Ledger.PhaseSince), f.compared())
}

func resynchronizing(f *Facts) bool {
	return f.phase() == replica.Resynchronizing && f.Running != ""
}

func resynchronizingText(f *Facts) string {
	return fmt.Sprintf("a resynchronization is under way since %s%s, by %s", stamp(f.Ledger.PhaseSince), f.compared(), f.Running)
}

// compared says how far a resynchronization is.
func (f *Facts) compared() string {
	if f.Ledger.Resync == nil {
		return ""
	}
	return fmt.Sprintf(" (%d%% compared)", f.percent(func(d replica.Disk) int64 { return f.Ledger.Resync.Cursors[d.Name] }))
}

// percent is how much of all disks is done.
func (f *Facts) percent(done func(replica.Disk) int64) int {
	var n, size float64
	for _, d := range f.Ledger.Disks {
		n += float64(min(done(d), d.Size))
		size += float64(d.Size)
	}
	return int(100 * n / max(size, 1))
}

// notRecoverable: the last run failed with something that is not tried again.
func notRecoverable(f *Facts) bool {
	return f.Failed != nil && !f.failedWith(fault.Recoverable, fault.Resync, fault.Differs)
}

func failedText(f *Facts) string {
	return fmt.Sprintf("the last run failed at %s: %s", stamp(f.Failed.At), f.Failed.Message)
}

func paused(f *Facts) bool { return f.phase() == replica.Paused }

func pausedText(f *Facts) string {
	return fmt.Sprintf("replication is paused since %s%s", stamp(f.Ledger.PhaseSince), because(f.Ledger.Reason))
}

func seeding(f *Facts) bool { return f.under() == replica.Seeding }

func seedingText(f *Facts) string {
	if !f.Ledger.Applied.IsZero() {
		return "the initial replication is copied, but not finalized"
	}
	done := f.percent(func(d replica.Disk) int64 { return d.Seeded })
	if f.Running != "" {
		return fmt.Sprintf("the initial replication is under way (%d%%), by %s", min(max(done, f.Done), 99), f.Running)
	}
	return fmt.Sprintf("the initial replication is not complete (%d%%)", min(done, 99))
}

// nextSeed leaves the work to the job that does it.
func nextSeed(f *Facts) string {
	if f.Running != "" {
		return ""
	}
	return run("replicate")(f)
}

// applyInterrupted: a resynchronization applies too, and has rules of its own.
func applyInterrupted(f *Facts) bool {
	return f.under() == replica.Replicating && f.Ledger.Applying != nil && f.Running == ""
}

func applyText(f *Facts) string {
	return fmt.Sprintf("change logs were being applied, from position %d to %d, when that was interrupted; the recovery points are whole",
		f.Ledger.Applying.From.Seq, f.Ledger.Applying.To.Seq)
}

func waitingForRetry(f *Facts) bool { return f.failedWith(fault.Recoverable) }

func retryText(f *Facts) string {
	if f.Retry.Due(f.Now) {
		return failedText(f) + "; the next run tries again"
	}
	tried := "once"
	if f.Retry.Attempts > 1 {
		tried = fmt.Sprintf("%d times since %s", f.Retry.Attempts, stamp(f.Retry.FirstAttempt))
	}
	return fmt.Sprintf("%s; tried %s, tried again at %s", failedText(f), tried, stamp(f.Retry.NextAt))
}

func nextDelta(f *Facts) string {
	if f.Retry.Due(f.Now) {
		return run("delta")(f)
	}
	return run("delta --now")(f)
}

func notConsistent(f *Facts) bool {
	return f.phase() == replica.Replicating && !f.Ledger.Consistent
}

func notConsistentText(*Facts) string {
	return "the disks went on changing while they were copied: the replica is of one moment only after the next delta"
}

// behind does not concern a replica whose first copy is not complete.
func behind(f *Facts) bool {
	return f.phase() != "" && f.under() != replica.Seeding && f.Now.Sub(f.Ledger.AsOf) > behindLimit
}

func behindText(f *Facts) string {
	age, known := RPO(f.Ledger.AsOf, f.Now)
	if !known {
		return "it is not known of when the replica is"
	}
	return fmt.Sprintf("the replica is behind its source by %s, more than an hour: it is of %s", words(age), stamp(f.Ledger.AsOf))
}

func cyclesMissed(f *Facts) bool {
	i := f.Statistics.Current
	return f.phase() == replica.Replicating && 100*i.Missed > missedPercent*i.Cycles() && f.Statistics.InTime < enoughInTime
}

func missedText(f *Facts) string {
	i := f.Statistics.Current
	text := fmt.Sprintf("%d of %d cycles were missed since %s (%.1f%%), more than %d%%",
		i.Missed, i.Cycles(), stamp(i.Start), 100*float64(i.Missed)/float64(i.Cycles()), missedPercent)
	if f.Statistics.InTime == 0 {
		return text + ": no delta runs as often as copy_frequency says"
	}
	return fmt.Sprintf("%s; %d in a row are in time now, and with %d this is over", text, f.Statistics.InTime, enoughInTime)
}

// nextMissed is the next cycle while none is held, and then what does not wait for more of them.
func nextMissed(f *Facts) string {
	if f.Statistics.InTime == 0 {
		return run("delta")(f)
	}
	return run("status --reset-statistics")(f)
}

func slow(f *Facts) bool {
	return f.phase() == replica.Replicating && f.Statistics.Current.AverageLatency() > latencyLimit
}

func slowText(f *Facts) string {
	i := f.Statistics.Current
	return fmt.Sprintf("a cycle took %s on average since %s (%s at most), more than %s",
		words(i.AverageLatency()), stamp(i.Start), words(i.MaxLatency), words(latencyLimit))
}

// clockWrong: the age of such a replica is not known, and the rule that it is not behind cannot be held against it.
func clockWrong(f *Facts) bool {
	return f.phase() != "" && f.Ledger.AsOf.Sub(f.Now) > clockTolerance
}

func clockText(f *Facts) string {
	return fmt.Sprintf("the replica is of %s, %s after the time of this machine: one of the clocks is wrong",
		stamp(f.Ledger.AsOf), words(f.Ledger.AsOf.Sub(f.Now)))
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// words writes a duration for people.
func words(d time.Duration) string {
	n := int64(d / time.Second)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", n)
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", n/60, n%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", n/3600, n/60%60)
	}
	return fmt.Sprintf("%d days %d h", n/86400, n/3600%24)
}
