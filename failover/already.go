package failover

import (
	"fmt"

	"sitrep/internal/replica"
)

// This file is about commands that are run again after all of what they do was done: they were killed before they could say so, or
// somebody is not sure. That is no error.

// Already says that what an event asks for is done, in words, and nothing else was begun since; "" when it is not. It looks at nothing
// but the ledger.
func Already(st replica.State, e Event) string {
	ended := st.Ended != nil && st.Ended.By == string(e)
	switch e {
	case DoCleanup:
		if st.Test == nil && st.LastTest != nil {
			return "the test failover is cleaned up already, since " + stamp(st.LastTest.Cleaned)
		}
	case DoPlanned:
		if rec := st.Failover; st.Phase == replica.FailedOver && rec != nil && rec.Kind == string(Planned) && !rec.Finished.IsZero() {
			return "failed over already, since " + stamp(rec.Finished)
		}
	case DoCommit:
		if st.Phase == replica.Committed {
			return "committed already, since " + stamp(st.PhaseSince)
		}
		if ended && st.Failover == nil {
			return "committed already, since " + stamp(st.Ended.At)
		}
	case DoUndo:
		if ended && (st.Failover == nil || st.Phase == replica.Committed && st.Failover.Failback == nil && st.PhaseSince.Equal(st.Ended.At)) {
			return "undone already, since " + stamp(st.Ended.At)
		}
	case DoFailback:
		if st.Phase == replica.FailedBack {
			return "home again already, since " + stamp(st.PhaseSince)
		}
	}
	return ""
}

// AlreadyAt is Already of an unplanned failover to a recovery point: one that was begun without, or with the point that the VM runs from.
func AlreadyAt(st replica.State, point string) string {
	rec := st.Failover
	if st.Phase != replica.FailedOver || rec == nil || rec.Kind != string(Unplanned) || rec.Finished.IsZero() || point != "" && point != rec.Point {
		return ""
	}
	return fmt.Sprintf("failed over already, since %s, and made of recovery point %s (another one: --point)", stamp(rec.Finished), rec.Point)
}

// end notes that an event was the end of a failover, or of a way home.
func (j *Job) end(st *replica.State, e Event) {
	st.Ended = &replica.Ended{By: string(e), At: j.Now().UTC()}
}
