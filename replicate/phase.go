package replicate

import (
	"context"

	"sitrep/internal/replica"
)

// Pause stops replication: deltas are refused until Resume. What lies beside the disks stays.
func (j *Job) Pause(ctx context.Context, reason string) error {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil {
		return err
	}
	if st.Phase == replica.Paused {
		return wrongState(st, "pause")
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
	if st.Phase != replica.Paused {
		return "", wrongState(st, "resume")
	}
	st.Phase, st.PausedFrom, st.PhaseSince = st.PausedFrom, "", j.Now()
	st.Reason, st.PausedReason = st.PausedReason, ""
	_, err = j.Replica.Ledger().Save(ctx, st)
	return st.Phase, err
}
