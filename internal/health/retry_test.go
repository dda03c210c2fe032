package health_test

import (
	"encoding/json"
	"math/rand/v2"
	"testing"
	"time"

	"sitrep/internal/health"
)

var noon = time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)

func after(d time.Duration) time.Time { return noon.Add(d) }

const minute = time.Minute

func TestScheduleFromTheFirstStart(t *testing.T) {
	var r health.Retry
	if !r.Due(noon) || r.Wait(noon) != 0 {
		t.Fatal("an attempt that did not fail is waited for")
	}
	start := noon
	for i, want := range []time.Duration{1, 2, 4, 8, 10, 40, 70, 100, 130} {
		r = r.Failed(start, start.Add(5*time.Second))
		at := after(want * minute)
		if !r.NextAt.Equal(at) || r.Attempts != i+1 || !r.FirstAttempt.Equal(noon) {
			t.Fatalf("after attempt %d: %+v, want the next one at %s", i+1, r, at)
		}
		if r.Due(at.Add(-1)) || !r.Due(at) || r.Wait(at.Add(-time.Second)) != time.Second {
			t.Fatalf("attempt %d is not due at %s and from then on", i+1, at)
		}
		start = at
	}
}

func TestScheduleTimes(t *testing.T) {
	failed := func(first, attempts int, next time.Duration) health.Retry {
		return health.Retry{FirstAttempt: after(time.Duration(first) * minute), Attempts: attempts, NextAt: after(next)}
	}
	for _, c := range []struct {
		name       string
		r          health.Retry
		start, now time.Duration
		want       health.Retry
	}{
		{"the first fails at once", health.Retry{}, 0, 0, failed(0, 1, minute)},
		{"the first takes longer than steps", health.Retry{}, 0, 3 * minute, failed(0, 1, 4*minute)},
		{"the first ends with a step", health.Retry{}, 0, 4 * minute, failed(0, 1, 8*minute)},
		{"the first takes longer than all steps", health.Retry{}, 0, 100 * minute, failed(0, 1, 130*minute)},
		{"cron comes late", failed(0, 1, minute), 5 * minute, 5*minute + 1, failed(0, 2, 8*minute)},
		{"cron comes late for the last step", failed(0, 2, 8*minute), 10 * minute, 10*minute + 1, failed(0, 3, 40*minute)},
		{"by hand before the time", failed(0, 5, 40*minute), 12 * minute, 13 * minute, failed(0, 6, 40*minute)},
		{"a machine that slept", failed(0, 5, 40*minute), 600*minute + 1, 601 * minute, failed(0, 6, 610*minute)},
		{"set back between attempts", failed(0, 5, 40*minute), -minute, 0, failed(-1, 1, minute)},
		{"set back during the first", health.Retry{}, 60 * minute, 0, failed(0, 1, minute)},
		{"set back during another", failed(0, 5, 40*minute), 40 * minute, 20 * minute, failed(0, 6, 40*minute)},
		{"set back during another, far", failed(0, 5, 40*minute), 40 * minute, -20 * minute, failed(-20, 1, -19*minute)},
		{"a record by hand", health.Retry{Attempts: 7, NextAt: after(9000 * time.Hour)}, 0, 0, failed(0, 1, minute)},
	} {
		if got := c.r.Failed(after(c.start), after(c.now)); got != c.want {
			t.Errorf("%s: %+v\nwant %+v", c.name, got, c.want)
		}
	}
}

func TestScheduleOfOtherClocks(t *testing.T) {
	r := health.Retry{}.Failed(noon, noon).Failed(after(10*minute), after(10*minute))
	for _, c := range []struct {
		now  time.Duration
		wait time.Duration
	}{
		{10 * minute, 30 * minute}, {9 * minute, 0 /* set back: longer than any wait */}, {-minute, 0}, {-9000 * time.Hour, 0},
		{40*minute - 1, 1}, {40 * minute, 0}, {9000 * time.Hour, 0},
	} {
		if got := r.Wait(after(c.now)); got != c.wait || r.Due(after(c.now)) != (c.wait == 0) {
			t.Errorf("at %s: wait %s, want %s", c.now, got, c.wait)
		}
	}
	if first := (health.Retry{}).Failed(noon, noon); !first.Due(after(-1)) || first.Due(noon) {
		t.Error("before the first attempt the next one is waited for")
	}
	far := time.Date(2700, 1, 1, 0, 0, 0, 0, time.UTC) // longer than a Duration holds
	if got := r.Failed(far, far); got.NextAt.Sub(far) != 30*minute {
		t.Errorf("in 2700 the next attempt is at %s", got.NextAt)
	}
}

func TestRetryIsStored(t *testing.T) {
	for _, r := range []health.Retry{{}, health.Retry{}.Failed(time.Now(), time.Now().Add(time.Second))} {
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var got health.Retry
		if err := json.Unmarshal(data, &got); err != nil || got != r {
			t.Errorf("%s becomes %+v (error %v), was %+v", data, got, err, r)
		}
	}
}

// TestNeverBlockedNeverStorms polls as cron does, with a clock that jumps, on a store that is gone for ever. Between two
// jumps there is an attempt in every 30 minutes, and never more than the schedule allows.
func TestNeverBlockedNeverStorms(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	var r health.Retry
	clock := noon
	for jump := range 2000 {
		length := time.Duration(rng.Int64N(int64(6 * time.Hour)))
		poll := time.Duration(1 + rng.Int64N(int64(10*minute)))
		waited, attempts := time.Duration(0), 0
		for passed := time.Duration(0); passed < length; passed += poll {
			if r.Due(clock) {
				took := time.Duration(rng.Int64N(int64(poll)))
				r = r.Failed(clock, clock.Add(took))
				waited, attempts = 0, attempts+1
				if wait := r.NextAt.Sub(clock.Add(took)); wait <= 0 || wait > 30*minute {
					t.Fatalf("seed %d, jump %d: the next attempt is %s away", seed, jump, wait)
				}
			} else if waited += poll; waited >= 30*minute+poll {
				t.Fatalf("seed %d, jump %d: no attempt for %s: %+v at %s", seed, jump, waited, r, clock)
			}
			clock = clock.Add(poll)
		}
		// Three: the one that is due when the clock jumps, and where the period begins and ends within two steps.
		if most := 5 + 3 + int(length/(30*minute)); attempts > most {
			t.Fatalf("seed %d, jump %d: %d attempts in %s, at most %d are right", seed, jump, attempts, length, most)
		}
		clock = jumped(rng, clock)
	}
}

// jumped sets a clock: by seconds, hours, or centuries, and not too far from the present.
func jumped(rng *rand.Rand, clock time.Time) time.Time {
	by := time.Duration(rng.Int64N(int64([]time.Duration{minute, time.Hour, 100 * 24 * time.Hour, 100 * 365 * 24 * time.Hour}[rng.IntN(4)])))
	if rng.IntN(2) == 0 {
		by = -by
	}
	clock = clock.Add(by)
	if clock.Year() < 1970 || clock.Year() > 3000 {
		return noon
	}
	return clock
}
