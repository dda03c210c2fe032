package failover

import (
	"fmt"
	"slices"
	"strings"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/replicate"
)

// Event is what an operator can ask for.
type Event string

// The events, in the words of the command line.
const (
	DoTest      Event = "failover test"
	DoCleanup   Event = "failover cleanup"
	DoPlanned   Event = "failover planned"
	DoUnplanned Event = "failover unplanned"
	DoUndo      Event = "failover undo"
	DoCommit    Event = "failover commit"
	DoFailback  Event = "failback"
)

// Events returns all events, in the order of the table.
func Events() []Event {
	return []Event{DoTest, DoCleanup, DoPlanned, DoUnplanned, DoUndo, DoCommit, DoFailback}
}

// Phases returns all phases of a replica, in the order of the table.
func Phases() []replica.Phase {
	return []replica.Phase{
		replica.Seeding, replica.Replicating, replica.Paused, replica.ResyncRequired, replica.Resynchronizing,
		replica.FailoverStarted, replica.FailedOver, replica.Committed, replica.FailbackStarted, replica.FailedBack,
		replica.Retired,
	}
}

// back is where undo leads: to the phase that the failover has left.
const back replica.Phase = "as before"

// Next is the table of states: the phase that an event leads to when it is done, "" where it is not allowed. A test failover
// changes no phase. What else has to hold (a recovery point, no test that waits for its clean-up) says Allowed.
func Next(p replica.Phase, e Event) replica.Phase {
	return map[replica.Phase]map[Event]replica.Phase{
		replica.Replicating: {
			DoTest: replica.Replicating, DoCleanup: replica.Replicating,
			DoPlanned: replica.FailedOver, DoUnplanned: replica.FailedOver,
			DoUndo: back, // of a planned failover that has not taken over yet
		},
		replica.Paused: {
			DoTest: replica.Paused, DoCleanup: replica.Paused, DoUnplanned: replica.FailedOver,
		},
		replica.ResyncRequired: {
			DoTest: replica.ResyncRequired, DoCleanup: replica.ResyncRequired, DoUnplanned: replica.FailedOver,
			DoUndo: back,
		},
		replica.Resynchronizing: {
			DoCleanup: replica.Resynchronizing, DoUnplanned: replica.FailedOver,
		},
		replica.FailoverStarted: {
			DoPlanned: replica.FailedOver, DoUnplanned: replica.FailedOver, // goes on
			DoUndo: back, DoCleanup: replica.FailoverStarted,
		},
		replica.FailedOver: {
			DoUnplanned: replica.FailedOver, // from another recovery point
			DoUndo:      back,
			DoCommit:    replica.Committed,
			DoCleanup:   replica.FailedOver,
		},
		replica.Committed: {
			DoFailback: replica.FailedBack,
			DoCleanup:  replica.Committed,
		},
		replica.FailbackStarted: {
			DoFailback: replica.FailedBack, // goes on
			DoUndo:     replica.Committed,
			DoCleanup:  replica.FailbackStarted,
		},
		replica.FailedBack: {
			DoCommit:  replica.Replicating,
			DoCleanup: replica.FailedBack,
		},
	}[p][e]
}

// Table writes the table of states for people.
func Table() string {
	var b strings.Builder
	row := func(first string, cells []string) {
		fmt.Fprintf(&b, "%-28s", first)
		for _, c := range cells {
			fmt.Fprintf(&b, " %-28s", c)
		}
		b.WriteString("\n")
	}
	var heads []string
	for _, e := range Events() {
		heads = append(heads, string(e))
	}
	row("PHASE", heads)
	for _, p := range Phases() {
		var cells []string
		for _, e := range Events() {
			cell := string(Next(p, e))
			if cell == "" {
				cell = "-"
			}
			cells = append(cells, cell)
		}
		row(string(p), cells)
	}
	lines := strings.Split(b.String(), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

// Allowed says whether the state of a VM allows an event; if not, the error names the state and what it allows.
func Allowed(st replica.State, e Event) error {
	switch {
	case st.Phase == replica.Seeding:
		return refused(st, e, "the initial replication is not complete")
	case Next(st.Phase, e) == "":
		return refused(st, e, "")
	case e == DoCleanup && st.Test == nil:
		return fault.New(fault.WrongState, "there is no test failover to clean up").Of(st.VM, "")
	case e == DoTest && st.Failover != nil:
		return refused(st, e, "a failover was begun at "+stamp(st.Failover.Started))
	case e == DoUndo && st.Failover == nil:
		return refused(st, e, "no failover was begun")
	case st.Test != nil && (e == DoPlanned || e == DoUnplanned && !st.Test.Finished.IsZero()): // a test that failed is in nobody's way
		return fault.New(fault.TestRunning, "a test failover is there since %s", stamp(st.Test.Started)).Of(st.VM, "")
	case (e == DoTest || e == DoPlanned || e == DoUnplanned) && len(st.Points) == 0:
		return fault.New(fault.PointMissing, "there is no recovery point that a VM could be made of").Of(st.VM, "")
	}
	return nil
}

// MayEnd says whether protection of a VM may be disabled. While a failover or a test is there, the ledger is the only record of
// what was made at the recovery site. A committed failover may be the end of it: the VM then stays where it runs.
func MayEnd(st replica.State) error {
	const unprotect Event = "unprotect"
	switch {
	case st.Test != nil:
		return fault.New(fault.TestRunning, "a test failover is there since %s", stamp(st.Test.Started)).Of(st.VM, "")
	case st.Phase == replica.Committed || st.Failover == nil:
		return nil
	case !st.Phase.Away():
		return refused(st, unprotect, "a failover was begun at "+stamp(st.Failover.Started))
	}
	return refused(st, unprotect, "the ledger is the only record of the recovered VM")
}

func refused(st replica.State, e Event, why string) error {
	if why == "" {
		why = st.Reason
	}
	if why != "" {
		why = " (" + why + ")"
	}
	return fault.New(fault.WrongState, "%s is not possible: the VM is in state %s since %s%s; possible now: %s",
		e, st.Phase, stamp(st.PhaseSince), why, possible(st)).Of(st.VM, "")
}

// possible lists what the VM's state allows.
func possible(st replica.State) string {
	var list []string
	for _, e := range Events() {
		switch {
		case Next(st.Phase, e) == "", e == DoCleanup && st.Test == nil, e == DoUndo && st.Failover == nil:
		default:
			list = append(list, string(e))
		}
	}
	list = append(list, replicate.Possible(st.Phase)...)
	if len(list) == 0 {
		list = append(list, "status")
	}
	return strings.Join(slices.Compact(list), ", ")
}
