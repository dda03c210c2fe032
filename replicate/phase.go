package replicate

import (
	"context"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

// Pause stops replication: deltas are refused until Resume. What lies beside the disks stays.
func (j *Job) Pause(ctx context.Context, reason string) error {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil {
		return err
	}
	if err := MayPause(st); err != nil {
		return err
	}
	st.PausedFrom, st.Phase, st.PhaseSince = st.Phase, replica.Paused, j.Now()
	st.PausedReason, st.Reason = st.Reason, reason
	_, err = j.Replica.Ledger().Save(ctx, st)
	return err
}

// Resume goes back to the phase that Pause left.
func (j *Job) Resume(ctx context.Context) (replica.Phase, error) {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil {
		return "", err
	}
	if err := MayResume(st); err != nil {
		return "", err
	}
	st.Phase, st.PausedFrom, st.PhaseSince = st.PausedFrom, "", j.Now()
	st.Reason, st.PausedReason = st.PausedReason, ""
	_, err = j.Replica.Ledger().Save(ctx, st)
	return st.Phase, err
}

// MayPause is the refusal of Pause in the phases that have nothing to pause.
func MayPause(st replica.State) error {
	if st.Phase == replica.Paused || st.Phase == replica.Retired || st.Phase.Away() {
		return wrongState(st, "pause")
	}
	return nil
}

// MayResume is the refusal of Resume for a VM that is not paused.
func MayResume(st replica.State) error {
	if st.Phase != replica.Paused {
		return wrongState(st, "resume")
	}
	return nil
}

// Retire ends the protection and keeps the replica: pages and recovery points stay readable, every verb that would
// change them is refused from then on.
func (j *Job) Retire(ctx context.Context, reason string) error {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil {
		return err
	}
	if st.Phase == replica.Retired {
		return nil
	}
	if err := st.CheckHome("unprotect"); err != nil {
		return err
	}
	st.Phase, st.PhaseSince, st.Reason, st.ReasonCode = replica.Retired, j.Now(), reason, ""
	_, err = j.Replica.Ledger().Save(ctx, st)
	return err
}

// Forget removes what this site keeps for the relationship: the change logs beside the disks, damaged ones too, and the
// tracker's memory. The replica is not touched, and need not be there.
func (j *Job) Forget() error {
	if _, err := j.DropLogs(); err != nil {
		return err
	}
	return fault.In(j.Tracker.Forget(), j.VM, "")
}
