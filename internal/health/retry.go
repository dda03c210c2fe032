package health

import "time"

// firstSteps are the times of the next attempts after an attempt that failed with a recoverable error, from the start of
// that first attempt on; afterRetry is the time between two attempts from the last of them on (Azure Site Recovery,
// "Hyper-V to Azure replication architecture": "increases the retry interval from the start of the first attempt by 1, 2,
// 4, 8, and 10 minutes. If an error persists, retry every 30 minutes").
func firstSteps() []time.Duration {
	return []time.Duration{1 * time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 10 * time.Minute}
}

const afterRetry = 30 * time.Minute

// Retry is where a VM stands on the schedule of retries, between runs of the program. The zero Retry is that of a VM whose
// last attempt did not fail: success clears the schedule by putting it there.
//
// The schedule believes the clock only as far as it cannot do harm. No attempt is ever more than 30 minutes away, as long
// as the clock runs; a clock that was set back to before the first attempt makes the schedule begin anew.
type Retry struct {
	// FirstAttempt is when the attempt began that failed first.
	FirstAttempt time.Time `json:"first_attempt,omitzero"`
	// Attempts is how many have failed since, the first included.
	Attempts int `json:"attempts"`
	// NextAt is when the next attempt is due.
	NextAt time.Time `json:"next_at,omitzero"`
}

// Failed returns the schedule after an attempt that began at started and failed, with a recoverable error, at now. The next
// attempt is at the first time of the schedule after now: times that passed while the attempt ran, or while nobody looked,
// are not made up for.
func (r Retry) Failed(started, now time.Time) Retry {
	started, now = plain(started), plain(now)
	if now.Before(started) {
		started = now // the clock was set back meanwhile
	}
	if r.FirstAttempt.IsZero() || started.Before(r.FirstAttempt) {
		r = Retry{FirstAttempt: started}
	}
	r.Attempts++
	r.NextAt = r.next(now)
	return r
}

// next is the first time of the schedule after now, which is not before FirstAttempt.
func (r Retry) next(now time.Time) time.Time {
	since := now.Sub(r.FirstAttempt)
	var last time.Duration
	for _, last = range firstSteps() {
		if last > since {
			return r.FirstAttempt.Add(last)
		}
	}
	at := r.FirstAttempt.Add(last + ((since-last)/afterRetry+1)*afterRetry)
	if !at.After(now) || at.Sub(now) > afterRetry { // more time has passed than a Duration holds
		return now.Add(afterRetry)
	}
	return at
}

// Due says whether an attempt may be made at now.
func (r Retry) Due(now time.Time) bool { return r.Wait(now) == 0 }

// Wait is how long the next attempt is away at now: 0 when it is due, never more than 30 minutes.
func (r Retry) Wait(now time.Time) time.Duration {
	now = plain(now)
	wait := r.NextAt.Sub(now)
	if wait <= 0 || wait > afterRetry || now.Before(r.FirstAttempt) {
		return 0 // the last two: the clock was set back
	}
	return wait
}

// plain is a moment as it is stored: by the clock on the wall, which may jump, without the monotonic reading.
func plain(t time.Time) time.Time { return t.UTC() }
