package health

import "time"

// Interval is what happened in one monitoring interval (the counters of Msvm_ReplicationStatistics).
type Interval struct {
	Start time.Time `json:"start"`
	End   time.Time `json:"end"`
	// Successes is how many cycles completed, Failures how many were tried and failed, and Missed how often the copy
	// frequency went by without a cycle that completed.
	Successes int `json:"successes"`
	Failures  int `json:"failures"`
	Missed    int `json:"missed"`
	// Bytes of change logs of the cycles that completed: all, and the largest.
	Bytes    int64 `json:"bytes"`
	MaxBytes int64 `json:"max_bytes"`
	// Latency is how long the cycles took that completed, from the cut to the end: all together, and the longest.
	Latency    time.Duration `json:"latency_ns"`
	MaxLatency time.Duration `json:"max_latency_ns"`
	// AppFailures is how often an application-consistent point was due and could not be had.
	AppFailures int `json:"app_consistent_failures"`
}

// Cycles is how many cycles there should have been.
func (i Interval) Cycles() int { return i.Successes + i.Missed }

// AverageBytes of a cycle that completed; 0 when none did.
func (i Interval) AverageBytes() int64 { return i.Bytes / int64(max(i.Successes, 1)) }

// AverageLatency of a cycle that completed; 0 when none did.
func (i Interval) AverageLatency() time.Duration {
	return i.Latency / time.Duration(max(i.Successes, 1))
}

// Statistics are the counters of the monitoring interval that is running, and of the one before it.
//
// A cycle is missed when the copy frequency goes by without one that completed. Between two that completed at a and b that
// is floor((b-a)/frequency)-1 times, so that cron's jitter counts for nothing; while none completes, it is counted as if
// one did now. A missed cycle belongs to the interval in which it became one.
//
// When the clock is set back, what was counted stays, and missed cycles are counted anew from there; only when it is set
// back by more than an interval the counters are of a time that has not come, and are dropped.
type Statistics struct {
	Current Interval `json:"current"`
	Last    Interval `json:"last"`
	// Since is when the last cycle completed, or counting began.
	Since time.Time `json:"since,omitzero"`
	// Until is up to when missed cycles are counted.
	Until time.Time `json:"until,omitzero"`
	// InTime is how many cycles completed since one was missed.
	InTime int `json:"in_time,omitempty"`
	// Reset is when somebody had everything counted anew; zero when nobody did.
	Reset time.Time `json:"reset,omitzero"`
}

// Cycle is one attempt to bring the replica to the present.
type Cycle struct {
	Start, End time.Time
	// Bytes of the change logs that were shipped.
	Bytes int64
	// Failed says that the cycle did not complete.
	Failed bool
	// AppFailed says that an application-consistent point was due and could not be had.
	AppFailed bool
}

// Begin returns the statistics of a VM whose cycles are expected from now on: when its initial replication is complete,
// and again when replication was paused or resynchronization needed. The counters stay.
func (s Statistics) Begin(m Monitoring, now time.Time) Statistics {
	s.Since = time.Time{}
	return s.At(m, now)
}

// Anew returns the statistics of a VM whose cycles are counted anew from now on; see Reset.
func (s Statistics) Anew(m Monitoring, now time.Time) Statistics {
	fresh := Statistics{Reset: plain(now)}
	if s.Since.IsZero() { // no cycle is expected yet
		return fresh
	}
	return fresh.At(m, now)
}

// Record returns the statistics with one more cycle.
func (s Statistics) Record(m Monitoring, c Cycle) Statistics {
	s = s.At(m, c.End)
	i := &s.Current
	if c.AppFailed {
		i.AppFailures++
	}
	if c.Failed {
		i.Failures++
		return s
	}
	took := max(plain(c.End).Sub(plain(c.Start)), 0) // less than 0: the clock was set back
	i.Successes++
	i.Bytes += c.Bytes
	i.MaxBytes = max(i.MaxBytes, c.Bytes)
	i.Latency += took
	i.MaxLatency = max(i.MaxLatency, took)
	s.Since = plain(c.End)
	s.InTime++
	return s
}

// At returns the statistics as they are at now: with the interval that now lies in as the current one, and the cycles
// counted that were missed until now.
func (s Statistics) At(m Monitoring, now time.Time) Statistics {
	now = plain(now)
	if s.Since.IsZero() || now.Before(s.Until) {
		s.Since, s.Until = now, now
	}
	start, end := m.Interval(now)
	switch {
	case s.Current.End.IsZero(): // the first interval begins when counting does
		s.Current = Interval{Start: now, End: end}
	case !now.Before(s.Current.End):
		s.roll(m, start)
		s.Current = Interval{Start: start, End: end}
	case end.Before(s.Current.Start): // the clock was set back, out of the interval before this one
		s.Current, s.Last = Interval{Start: start, End: end}, Interval{}
	}
	s.count(m, &s.Current, now)
	return s
}

// roll makes the interval that ended at next the last one.
func (s *Statistics) roll(m Monitoring, next time.Time) {
	s.Last = s.Current
	if s.Current.End.Before(next) { // others lie between
		start, end := m.Interval(next.Add(-1))
		s.Last = Interval{Start: start, End: end}
		s.Until = later(s.Until, start)
	}
	s.count(m, &s.Last, next)
}

// count counts the cycles that were missed from Until to now as those of the interval i.
func (s *Statistics) count(m Monitoring, i *Interval, now time.Time) {
	if !now.After(s.Until) {
		return
	}
	if n := s.missed(m, now) - s.missed(m, s.Until); n > 0 {
		i.Missed += n
		s.InTime = 0
	}
	s.Until = now
}

// missed is how many cycles would have been missed since Since if one completed at t.
func (s *Statistics) missed(m Monitoring, t time.Time) int {
	return max(int(t.Sub(s.Since)/max(m.Every, time.Second))-1, 0)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
