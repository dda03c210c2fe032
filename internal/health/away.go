package health

import (
	"fmt"

	"sitrep/internal/replica"
)

// awayRules is the table for a VM that belongs to the recovery site. Nothing is replicated then, so nothing is late, missed or
// in error; what is not as it should be is that the way is not gone to its end.
func awayRules() []rule {
	return []rule{
		{Warning, FailoverPending, always, awayText, nextAway},
		{Warning, TestNotCleaned, testNotCleaned, testText, run("failover cleanup")},
	}
}

func always(*Facts) bool { return true }

func awayText(f *Facts) string {
	since := stamp(f.Ledger.PhaseSince)
	switch f.phase() {
	case replica.FailoverStarted:
		what := "a failover"
		if f.Ledger.Failover.Undone() {
			what = "the undo of a failover"
		}
		return fmt.Sprintf("%s is under way since %s%s%s%s", what, since, f.by(), f.ofPoint(), f.stopped())
	case replica.FailedOver:
		return fmt.Sprintf("failed over since %s%s and not committed; it can still be undone", since, f.by())
	case replica.Committed:
		return fmt.Sprintf("failed over%s committed since %s and not reversed: nothing protects the VM where it runs now", f.by(), since)
	case replica.FailbackStarted:
		return fmt.Sprintf("a failback is under way since %s%s", since, f.stopped())
	}
	return fmt.Sprintf("failed back since %s and not committed", since)
}

// by says where the VM is.
func (f *Facts) by() string {
	return fmt.Sprintf(", by site %q on host %q,", f.Ledger.Owner.Site, f.Ledger.Owner.Host)
}

// stopped says what a step on the way waits for.
func (f *Facts) stopped() string {
	switch {
	case f.Running != "":
		return " by " + f.Running
	case f.Critical != nil:
		return " and stopped: " + f.Critical.Message
	case f.Failed != nil:
		return " and stopped: " + f.Failed.Message
	}
	if s := f.stoppedAt(); s != nil {
		return fmt.Sprintf(" and stopped at %s, %q: %s", stamp(s.At), s.Step, s.Message)
	}
	return " and is not complete; the same command goes on with it"
}

// stoppedAt is what the failover stopped at, as the ledger says.
func (f *Facts) stoppedAt() *replica.Stopped {
	if f.Ledger.Failover == nil || f.phase() != replica.FailoverStarted {
		return nil
	}
	return f.Ledger.Failover.Stopped
}

// ofPoint says which recovery point the VM is made of.
func (f *Facts) ofPoint() string {
	if rec := f.Ledger.Failover; rec != nil && rec.Point != "" {
		return " of recovery point " + rec.Point
	}
	return ""
}

// nextAway is the next step, and the same one again when it was interrupted.
func nextAway(f *Facts) string {
	switch f.phase() {
	case replica.FailoverStarted:
		if f.Running != "" {
			return ""
		}
		if rec := f.Ledger.Failover; rec != nil && rec.Point != "" && f.kind() == "unplanned" {
			return run("failover unplanned")(f) + " --point " + rec.Point
		}
		return run("failover " + f.kind())(f)
	case replica.FailbackStarted:
		if f.Running != "" {
			return ""
		}
		return run("failback")(f)
	case replica.Committed:
		return run("failback")(f)
	}
	return run("failover commit")(f)
}

// kind is the failover that was begun.
func (f *Facts) kind() string {
	if f.Ledger.Failover.Undone() {
		return "undo"
	}
	if f.Ledger.Failover == nil || f.Ledger.Failover.Kind == "" {
		return "unplanned"
	}
	return f.Ledger.Failover.Kind
}

func testNotCleaned(f *Facts) bool { return f.Ledger != nil && f.Ledger.Test != nil }

func testText(f *Facts) string {
	what := "a test failover runs since %s and is not cleaned up"
	if f.Ledger.Test.Finished.IsZero() {
		what = "a test failover is there since %s, is not complete, and is not cleaned up"
	}
	return fmt.Sprintf(what, stamp(f.Ledger.Test.Started))
}
