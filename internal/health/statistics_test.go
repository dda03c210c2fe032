package health_test

import (
	"encoding/json"
	"math/rand/v2"
	"testing"
	"time"

	"sitrep/internal/health"
)

func location(t *testing.T, name string) *time.Location {
	t.Helper()
	l, err := time.LoadLocation(name)
	if err != nil {
		t.Skip("no time zone database: apt-get install tzdata")
	}
	return l
}

func moment(t *testing.T, s string) time.Time {
	t.Helper()
	m, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestInterval(t *testing.T) {
	for _, c := range []struct {
		where         string
		length, start time.Duration
		at, from, to  string
	}{
		{"UTC", 12, 9, "2026-03-04T09:00:00Z", "2026-03-04T09:00:00Z", "2026-03-04T21:00:00Z"},
		{"UTC", 12, 9, "2026-03-04T08:59:59Z", "2026-03-03T21:00:00Z", "2026-03-04T09:00:00Z"},
		{"UTC", 12, 9, "1969-12-31T08:59:59Z", "1969-12-30T21:00:00Z", "1969-12-31T09:00:00Z"},
		{"UTC", 12, 6, "2026-03-04T19:00:00Z", "2026-03-04T18:00:00Z", "2026-03-05T06:00:00Z"},
		{"UTC", 7 * 24, 9, "2026-03-04T12:00:00Z", "2026-02-26T09:00:00Z", "2026-03-05T09:00:00Z"},
		{"Asia/Kolkata", 12, 9, "2026-03-04T03:29:59Z", "2026-03-03T15:30:00Z", "2026-03-04T03:30:00Z"},
		{"Europe/Berlin", 12, 9, "2024-03-31T00:30:00Z", "2024-03-30T20:00:00Z", "2024-03-31T07:00:00Z"}, // 11 hours
		{"Europe/Berlin", 12, 9, "2024-10-27T00:30:00Z", "2024-10-26T19:00:00Z", "2024-10-27T08:00:00Z"}, // 13 hours
		{"Europe/Berlin", 1, 0, "2024-10-27T01:30:00Z", "2024-10-27T01:00:00Z", "2024-10-27T02:00:00Z"},  // 02:30 again
		{"Europe/Berlin", 1, 0, "2024-03-31T00:59:59Z", "2024-03-31T00:00:00Z", "2024-03-31T01:00:00Z"},
		{"Europe/Berlin", 1, 0, "2024-03-31T01:00:00Z", "2024-03-31T01:00:00Z", "2024-03-31T02:00:00Z"}, // 03:00
		{"Pacific/Apia", 24, 9, "2011-12-30T09:00:00Z", "2011-12-29T19:00:00Z", "2011-12-30T10:00:00Z"}, // a day left out
	} {
		m := health.Monitoring{Length: c.length * time.Hour, Start: c.start * time.Hour, Location: location(t, c.where)}
		from, to := m.Interval(moment(t, c.at))
		if from.Format(time.RFC3339) != c.from || to.Format(time.RFC3339) != c.to {
			t.Errorf("%s, %d h from %d h, at %s: %s to %s, want %s to %s", c.where, c.length, c.start, c.at,
				from.Format(time.RFC3339), to.Format(time.RFC3339), c.from, c.to)
		}
	}
}

// TestIntervalsCoverTime: every moment lies in its interval, and the intervals follow each other without gaps.
func TestIntervalsCoverTime(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	zones := []string{"UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Pacific/Apia", "Africa/Cairo"}
	for range 20000 {
		m := health.Monitoring{
			Length:   time.Duration(1+rng.IntN(7*24)) * time.Hour,
			Start:    time.Duration(rng.IntN(24*60)) * minute,
			Location: location(t, zones[rng.IntN(len(zones))]),
		}
		at := time.Unix(1_200_000_000+rng.Int64N(800_000_000), 0)
		if jump, _ := at.In(m.Location).ZoneBounds(); !jump.IsZero() && rng.IntN(2) == 0 {
			at = jump.Add(time.Duration(rng.Int64N(int64(6*time.Hour))) - 3*time.Hour)
			m.Length = time.Duration(1+rng.IntN(3)) * time.Hour
		}
		from, to := m.Interval(at)
		next, _ := m.Interval(to)
		_, before := m.Interval(from.Add(-1))
		longest := m.Length + 25*time.Hour
		if from.After(at) || !to.After(at) || !next.Equal(to) || !before.Equal(from) || to.Sub(from) > longest {
			t.Fatalf("seed %d: %+v at %s: %s to %s, then %s", seed, m, at.UTC(), from, to, next)
		}
	}
}

func fiveMinutes() health.Monitoring { return health.DefaultMonitoring(5*minute, time.UTC) }

// cycle is one that ends at the time of day and took 10 seconds.
func cycle(end time.Time, bytes int64) health.Cycle {
	return health.Cycle{Start: end.Add(-10 * time.Second), End: end, Bytes: bytes}
}

func TestMissedBetweenTwoCycles(t *testing.T) {
	for _, c := range []struct {
		gap    time.Duration
		missed int
	}{
		{0, 0}, {time.Second, 0}, {5*minute - 1, 0}, {5 * minute, 0}, {5*minute + time.Second, 0}, {10*minute - 1, 0},
		{10 * minute, 1}, {15*minute - 1, 1}, {15 * minute, 2}, {2 * time.Hour, 23},
	} {
		m := fiveMinutes()
		s := health.Statistics{}.Begin(m, noon).Record(m, cycle(noon, 1))
		if got := s.At(m, noon.Add(c.gap)).Current.Missed; got != c.missed {
			t.Errorf("%s without a cycle: %d missed, want %d", c.gap, got, c.missed)
		}
		looked := s.At(m, noon.Add(c.gap/2)).At(m, noon.Add(c.gap*3/4)) // looking changes nothing
		for _, s := range []health.Statistics{s, looked} {
			got := s.Record(m, cycle(noon.Add(c.gap), 1)).Current
			if got.Missed != c.missed || got.Successes != 2 || got.Cycles() != 2+c.missed {
				t.Errorf("%s between two cycles: %+v, want %d missed", c.gap, got, c.missed)
			}
		}
	}
}

func TestCounters(t *testing.T) {
	m := fiveMinutes()
	s := health.Statistics{}.Begin(m, noon)
	for _, c := range []health.Cycle{
		{Start: noon, End: after(10 * time.Second), Bytes: 100},
		{Start: after(5 * minute), End: after(5*minute + 30*time.Second), Bytes: 300, AppFailed: true},
		{Start: after(10 * minute), End: after(11 * minute), Bytes: 7, Failed: true},
		{Start: after(13 * minute), End: after(12 * minute), Bytes: 200}, // the clock was set back
	} {
		s = s.Record(m, c)
	}
	want := health.Interval{
		Start: noon, End: after(9 * time.Hour), Successes: 3, Failures: 1, Bytes: 600, MaxBytes: 300,
		Latency: 40 * time.Second, MaxLatency: 30 * time.Second, AppFailures: 1,
	}
	if s.Current != want || s.Last != (health.Interval{}) {
		t.Errorf("%+v\nwant %+v", s, want)
	}
	if s.Current.AverageBytes() != 200 || s.Current.AverageLatency() != 40*time.Second/3 {
		t.Errorf("averages %d, %s", s.Current.AverageBytes(), s.Current.AverageLatency())
	}
	var none health.Interval
	if none.AverageBytes() != 0 || none.AverageLatency() != 0 {
		t.Error("averages of nothing")
	}
}

// TestRollOver is Hyper-V's own example: intervals of 12 hours from 06:00 on, replication enabled at 14:00.
func TestRollOver(t *testing.T) {
	m := fiveMinutes()
	m.Start = 6 * time.Hour
	s := health.Statistics{}.Begin(m, after(2*time.Hour)).Record(m, cycle(after(2*time.Hour+5*minute), 1))
	if s.Current.Start != after(2*time.Hour) || s.Current.End != after(6*time.Hour) {
		t.Fatalf("the first interval is %+v", s.Current)
	}
	s = s.Record(m, cycle(after(5*time.Hour+53*minute), 1)) // missed: 44
	s = s.At(m, after(6*time.Hour))
	if s.Last.Missed != 44 || s.Current.Missed != 0 || s.Last.Successes != 2 || s.Current.Successes != 0 {
		t.Fatalf("at the end of the interval: %+v", s)
	}
	if s.Current.Start != after(6*time.Hour) || s.Current.End != after(18*time.Hour) || s.Last.End != after(6*time.Hour) {
		t.Fatalf("the intervals are %+v", s)
	}
	s = s.Record(m, cycle(after(6*time.Hour+8*minute), 1)) // a cycle was missed at 18:03, in this interval
	if s.Last.Missed != 44 || s.Current.Missed != 2 {
		t.Fatalf("missed over the end of an interval: %+v", s)
	}
}

func TestLongOutage(t *testing.T) {
	m := fiveMinutes()
	s := health.Statistics{}.Begin(m, noon).Record(m, cycle(noon, 1))
	for _, days := range []int{2, 30, 3000} {
		got := s.At(m, noon.AddDate(0, 0, days))
		if got.Last.Missed != 144 || got.Current.Missed != 36 || got.Last.Successes != 0 {
			t.Errorf("after %d days: %+v", days, got)
		}
		if got.Last.End != got.Current.Start || got.Current.Start != noon.AddDate(0, 0, days).Add(-3*time.Hour) {
			t.Errorf("after %d days: %s and %s", days, got.Last.End, got.Current.Start)
		}
	}
	next := s.At(m, after(9*time.Hour)) // the interval that ends is the one that counted
	if next.Last.Successes != 1 || next.Last.Missed != 107 {
		t.Errorf("the first interval: %+v", next.Last)
	}
}

func TestBeginAgain(t *testing.T) {
	m := fiveMinutes()
	s := health.Statistics{}.Begin(m, noon).Record(m, cycle(noon, 1)).Record(m, cycle(after(10*minute), 1))
	s = s.Begin(m, after(8*time.Hour)) // a pause
	s = s.Record(m, cycle(after(8*time.Hour+5*minute), 1))
	if s.Current.Missed != 1 || s.Current.Successes != 3 {
		t.Errorf("a pause counts as missed: %+v", s.Current)
	}
	s = s.Begin(m, after(10*time.Hour)).At(m, after(10*time.Hour+11*minute))
	if s.Last.Missed != 1 || s.Current.Missed != 1 {
		t.Errorf("a pause over the end of an interval counts as missed: %+v", s)
	}
}

// TestMovedClock: the machine gets another time zone, in which an interval is half over when one of the old zone ends.
func TestMovedClock(t *testing.T) {
	m := fiveMinutes()
	s := health.Statistics{}.Begin(m, noon).At(m, after(9*time.Hour-minute))
	missed := s.Current.Missed
	m.Location = location(t, "Asia/Kolkata")
	s = s.At(m, after(9*time.Hour+minute))
	if missed != 106 || s.Last.Missed+s.Current.Missed != 107 || s.Last.Missed < missed {
		t.Errorf("%d cycles missed, then %+v", missed, s)
	}
}

func TestClockSetBack(t *testing.T) {
	m := fiveMinutes()
	s := health.Statistics{}.Begin(m, noon).Record(m, cycle(after(30*minute), 1)) // 5 missed
	back := s.Record(m, cycle(after(10*minute), 1)).Record(m, cycle(after(25*minute), 1))
	if back.Current.Missed != 5+2 || back.Current.Successes != 3 {
		t.Errorf("set back by 20 minutes: %+v", back.Current)
	}
	rolled := s.At(m, after(9*time.Hour))
	second := rolled.At(m, after(9*time.Hour-time.Second)).At(m, after(9*time.Hour+time.Second))
	if second.Last != rolled.Last || second.Current.Missed != 0 || second.Current.Start != rolled.Current.Start {
		t.Errorf("set back over the end of an interval:\n%+v\n%+v", rolled, second)
	}
	future := s.Record(m, cycle(after(30*24*time.Hour), 1))
	home := future.Record(m, cycle(after(35*minute), 1))
	want := health.Interval{Start: after(-3 * time.Hour), End: after(9 * time.Hour), Successes: 1, Bytes: 1, MaxBytes: 1,
		Latency: 10 * time.Second, MaxLatency: 10 * time.Second}
	if home.Current != want || home.Last != (health.Interval{}) {
		t.Errorf("a month in the future and back: %+v", home)
	}
	if got := home.At(m, after(45*minute)).Current.Missed; got != 1 {
		t.Errorf("after that %d cycles are missed in 10 minutes", got)
	}
}

// TestStatisticsHold: whatever the clock does, no counter goes back within an interval or grows beyond what fits in it.
func TestStatisticsHold(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	m := health.DefaultMonitoring(5*minute, location(t, "Europe/Berlin"))
	s, clock := health.Statistics{}.Begin(m, noon), noon
	backs, fit := 0, 13*12 // how often the clock was set back in an interval, and how many cycles fit in one
	for step := range 50000 {
		clock = clock.Add(time.Duration(rng.Int64N(int64(20 * minute))))
		forward := true
		if rng.IntN(200) == 0 {
			next := jumped(rng, clock)
			if forward, clock = !next.Before(clock), next; !forward {
				backs++
			}
		}
		before := s
		switch rng.IntN(3) {
		case 0:
			s = s.At(m, clock)
		case 1:
			s = s.Record(m, cycle(clock, 5))
		case 2:
			s = s.Record(m, health.Cycle{Start: clock, End: clock, Failed: true})
		}
		i := s.Current
		if i.Missed < 0 || s.Last.Missed < 0 || !i.End.After(i.Start) || i.End.Sub(i.Start) > 13*time.Hour {
			t.Fatalf("seed %d, step %d: %+v", seed, step, s)
		}
		if forward && (clock.Before(i.Start) && before.Current.Start.Equal(i.Start) == false || !clock.Before(i.End)) {
			t.Fatalf("seed %d, step %d: at %s the interval is %s to %s", seed, step, clock.UTC(), i.Start, i.End)
		}
		if i.Start.Equal(before.Current.Start) && (i.Missed < before.Current.Missed || i.Successes < before.Current.Successes) {
			t.Fatalf("seed %d, step %d: counters go back: %+v then %+v", seed, step, before.Current, i)
		}
		if i.Missed > fit*(1+2*backs) { // what is lived again is counted again
			t.Fatalf("seed %d, step %d: %d cycles missed in one interval", seed, step, i.Missed)
		}
		if !i.Start.Equal(before.Current.Start) {
			backs = 0
		}
	}
}

// TestMonthOfCron compares the counters with a list of all cycles, of a month without jumps.
func TestMonthOfCron(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	m := health.DefaultMonitoring(5*minute, location(t, "Europe/Berlin"))
	begin := time.Date(2024, 3, 15, 10, 0, 0, 0, m.Location)
	s := health.Statistics{}.Begin(m, begin)
	type tally struct{ ok, missed int }
	want := map[time.Time]*tally{}
	in := func(at time.Time) *tally {
		from, _ := m.Interval(at)
		if want[from] == nil {
			want[from] = &tally{}
		}
		return want[from]
	}
	last := begin
	for clock := begin; clock.Before(begin.AddDate(0, 1, 0)); {
		clock = clock.Add(5*minute + time.Duration(rng.Int64N(int64(time.Second))))
		if rng.IntN(300) == 0 {
			clock = clock.Add(time.Duration(rng.Int64N(int64(10 * time.Hour))))
		}
		for at := last.Add(10 * minute); !at.After(clock); at = at.Add(5 * minute) {
			in(at).missed++
		}
		in(clock).ok++
		last = clock
		s = s.Record(m, cycle(clock, 1))
		from, _ := m.Interval(clock)
		if w := *in(clock); s.Current.Successes != w.ok || s.Current.Missed != w.missed {
			t.Fatalf("seed %d, %s: %+v, want %+v", seed, clock, s.Current, w)
		}
		if w := want[s.Last.Start]; w != nil && (s.Last.Successes != w.ok || s.Last.Missed != w.missed || !s.Last.End.Equal(from)) {
			t.Fatalf("seed %d, %s: the last interval is %+v, want %+v", seed, clock, s.Last, *w)
		}
	}
}

func TestStatisticsAreStored(t *testing.T) {
	m := fiveMinutes()
	s := health.Statistics{}.Begin(m, time.Now()).Record(m, cycle(time.Now(), 3))
	for _, s := range []health.Statistics{{}, s} {
		data, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var got health.Statistics
		if err := json.Unmarshal(data, &got); err != nil || got != s {
			t.Errorf("%s becomes %+v (error %v), was %+v", data, got, err, s)
		}
	}
}
