// Package health says how a protected VM stands: its state, its health with the reasons in words, and what to run next;
// when a failed run is tried again; and how its replication has gone lately. The rules are those of Hyper-V Replica and
// of Azure Site Recovery.
//
// Nothing here reads a file or a clock: the facts and the time are passed in, so that one run of the program judges by
// what the last one left, and a month can be tested in a second.
package health

import (
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

// Health is how urgently somebody should look at a VM.
type Health string

// The healths. NotApplicable is that of a VM that is not expected to replicate.
const (
	NotApplicable Health = ""
	Normal        Health = "Normal"
	Warning       Health = "Warning"
	Critical      Health = "Critical"
)

// States of a VM other than the phases of its replica.
const (
	NotProtected = "not-protected"
	// InError is the state of a VM that is not replicated before an administrator has mended the cause and resumed it.
	InError = "error"
)

// Facts are all that a judgement is made of.
type Facts struct {
	VM  string
	Now time.Time
	// Ledger is the replica's, nil when there is none.
	Ledger *replica.State
	// Added names the disks that the site file has and the ledger does not.
	Added []string
	// Held is set when a run that is gone holds the VM still.
	Held *Held
	// Critical is the error that an administrator has to mend, and Failed the one of the last run when it was another.
	// Either may be nil.
	Critical, Failed *Failure
	// Retry is the schedule that Failed has led to.
	Retry Retry
	// Statistics are as of Now; see Statistics.At.
	Statistics Statistics
	// Running names what works on the VM at this moment; "" when nothing is known to.
	Running string
	// Done is how many percent of what Running does are done, 0 where that is not known.
	Done int
	// ResyncAt is when a VM that is marked for resynchronization gets it unasked; zero when it does not.
	ResyncAt time.Time
}

// Held is a VM that was held still by a run which is gone, and that could not be let go on.
type Held struct {
	Since time.Time // zero when it is not known
	Where string    // source or recovery
	Why   string    // it could not be let go on, "" when that is not known
}

// Text says it.
func (h *Held) Text() string {
	text := "the VM at its " + h.Where + " is held paused by a run that is gone"
	if !h.Since.IsZero() {
		text += ", since " + stamp(h.Since)
	}
	if h.Why != "" {
		text += ", and cannot be let go on: " + h.Why
	}
	return text
}

// Failure is an error as it is remembered.
type Failure struct {
	Code    fault.Code
	Message string
	At      time.Time
}

// Verdict is how a VM stands.
type Verdict struct {
	// State is the replica's phase, NotProtected or InError.
	State  string
	Health Health
	// Reasons for a health other than Normal, the gravest first.
	Reasons []Reason
	// Next is the command to run, "" for none.
	Next string
}

// Reason is one rule that holds.
type Reason struct {
	Code   Code
	Health Health
	Text   string // in words, with times and numbers
	Next   string // the command that helps against this one, "" for none
}

// RPO is how old the replica is: how much would be lost if the source was gone now. It is unknown as long as no copy is
// complete, and when the replica is newer than the clock allows.
func RPO(asOf, now time.Time) (age time.Duration, known bool) {
	age = now.Sub(asOf)
	return max(age, 0), !asOf.IsZero() && age >= -clockTolerance
}

// Judge says how a VM stands.
func Judge(f Facts) Verdict {
	v := Verdict{State: f.state(), Health: Normal}
	switch v.State {
	case NotProtected:
		return Verdict{State: v.State, Next: "sitrep protect " + f.VM}
	case string(replica.Retired):
		return Verdict{State: v.State}
	}
	table := rules()
	if f.phase().Away() {
		table = awayRules()
	}
	for _, grave := range []Health{Critical, Warning} {
		for _, r := range table {
			if r.health == grave && r.holds(&f) {
				v.Reasons = append(v.Reasons, Reason{r.code, r.health, r.text(&f), r.next(&f)})
			}
		}
	}
	if len(v.Reasons) > 0 {
		v.Health, v.Next = v.Reasons[0].Health, v.Reasons[0].Next
	}
	return v
}

func (f *Facts) state() string {
	switch {
	case f.Ledger != nil && f.Ledger.Phase == replica.Retired:
		return string(replica.Retired)
	case f.phase().Away():
		return string(f.Ledger.Phase)
	case f.Critical != nil:
		return InError
	case f.Ledger == nil:
		return NotProtected
	}
	return string(f.Ledger.Phase)
}

// phase is that of the replica, "" when there is none.
func (f *Facts) phase() replica.Phase {
	if f.Ledger == nil {
		return ""
	}
	return f.Ledger.Phase
}

// under is the phase without regard to a pause.
func (f *Facts) under() replica.Phase {
	if p := f.phase(); p != replica.Paused {
		return p
	}
	return f.Ledger.PausedFrom
}
