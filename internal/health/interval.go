package health

import "time"

// Monitoring is how the cycles of a VM are counted.
type Monitoring struct {
	// Every is the copy frequency of the policy: in this time a cycle is expected to complete.
	Every time.Duration
	// Length of an interval by the clock on the wall, and Start, the time of day, since midnight, that intervals are aligned
	// to. Hyper-V allows lengths of 1 h to 7 days (Msvm_ReplicationServiceSettingData); both are at least a second here.
	Length, Start time.Duration
	// Location is where the clock on the wall hangs.
	Location *time.Location
}

// DefaultMonitoring is the one of Hyper-V Replica: intervals of 12 hours, aligned to 09:00.
func DefaultMonitoring(copyFrequency time.Duration, where *time.Location) Monitoring {
	return Monitoring{Every: copyFrequency, Length: 12 * time.Hour, Start: 9 * time.Hour, Location: where}
}

// Interval returns the interval that t lies in: start <= t < end. By the clock on the wall intervals have one length; on the
// days on which that clock is put forward or back one is shorter or longer.
func (m Monitoring) Interval(t time.Time) (start, end time.Time) {
	k := (onWall(t.In(m.Location)) - int64(m.Start/time.Second)) / m.length()
	for m.bound(k).After(t) {
		k--
	}
	for !m.bound(k + 1).After(t) {
		k++
	}
	return m.bound(k), m.bound(k + 1)
}

// bound is the moment at which interval number k begins, in UTC. A time of day that the clock on the wall leaves out is
// when it jumps.
func (m Monitoring) bound(k int64) time.Time {
	want := k*m.length() + int64(m.Start/time.Second)
	wall := time.Unix(want, 0).UTC()
	t := time.Date(wall.Year(), wall.Month(), wall.Day(), wall.Hour(), wall.Minute(), wall.Second(), 0, m.Location)
	got := onWall(t)
	from, to := t.ZoneBounds()
	switch { // time.Date goes over a gap in one direction or the other
	case got > want:
		t = from
	case got < want:
		t = to
	}
	return t.UTC()
}

// onWall is what the clock on the wall of t's location shows at t, as the seconds since it showed the beginning of 1970.
func onWall(t time.Time) int64 {
	_, offset := t.Zone()
	return t.Unix() + int64(offset)
}

// length of an interval in seconds.
func (m Monitoring) length() int64 { return max(int64(m.Length/time.Second), 1) }
