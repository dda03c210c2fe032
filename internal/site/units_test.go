package site

import (
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "4096": 4096, "1KiB": 1 << 10, "64KiB": 64 << 10, "3MiB": 3 << 20, "2GiB": 2 << 30, "5TiB": 5 << 40,
		"9223372036854775807": math.MaxInt64, "8388607TiB": 8388607 << 40,
	} {
		if got, ok := parseSize(text); !ok || got != want {
			t.Errorf("%q: %d %v", text, got, ok)
		}
	}
	for _, text := range []string{"", "KiB", "1kib", "1KB", "1K", "1B", "1.5GiB", "-1", "+1", "1 GiB", " 1", "0x10", "010", "1_000", "8388608TiB", "9223372036854775808", "１"} {
		if got, ok := parseSize(text); ok {
			t.Errorf("%q: %d", text, got)
		}
	}
	for n, want := range map[int64]string{0: "0", 1: "1", 1023: "1023", 4096: "4KiB", 1 << 20: "1MiB", 3 << 40: "3TiB", 1<<30 + 1<<10: "1048577KiB"} {
		if got := sizeText(n); got != want {
			t.Errorf("%d: %s", n, got)
		}
	}
}

func TestParseBandwidth(t *testing.T) {
	for text, want := range map[string][]BandwidthStep{
		"off":                    {{0, 0}},
		"20Mbit":                 {{0, 2_500_000}},
		"1kbit":                  {{0, 125}},
		"1Gbit":                  {{0, 125_000_000}},
		"3MiB":                   {{0, 3 << 20}},
		"07:00,20Mbit 19:00,off": {{7 * 60, 2_500_000}, {19 * 60, 0}},
		"00:00,1KiB  23:59,2GiB": {{0, 1 << 10}, {23*60 + 59, 2 << 30}},
	} {
		if got, ok := ParseBandwidth(text); !ok || !reflect.DeepEqual(got.Steps, want) {
			t.Errorf("%q: %v %v", text, got, ok)
		}
	}
	for _, text := range []string{"", " ", "20", "0Mbit", "-1Mbit", "20mbit", "1.5Mbit", "07:00", "07:00,", ",off", "7:00,off", "24:00,off", "07:60,off",
		"19:00,off 07:00,off", "07:00,off 07:00,off", "07:00,off,off", "off off", "99999999999Gbit", "Mon-07:00,off"} {
		if got, ok := ParseBandwidth(text); ok {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func at(t *testing.T, clock string) time.Time {
	t.Helper()
	when, err := time.ParseInLocation("2006-01-02 15:04:05", "2024-03-05 "+clock, time.Local)
	if err != nil {
		t.Fatal(err)
	}
	return when
}

func TestBandwidthLimit(t *testing.T) {
	b, _ := ParseBandwidth("07:00,8kbit 12:30,16kbit 19:00,off")
	for clock, want := range map[string]int64{
		"00:00:00": 0, "06:59:59": 0, "07:00:00": 1000, "12:29:59": 1000, "12:30:00": 2000, "18:59:59": 2000, "19:00:00": 0, "23:59:59": 0,
	} {
		if got := b.Limit(at(t, clock)); got != want {
			t.Errorf("%s: %d", clock, got)
		}
	}
	if (Bandwidth{}).Limit(at(t, "12:00:00")) != 0 {
		t.Error("no timetable, no limit")
	}
	// before the first step of the day the last one of the day before holds
	b, _ = ParseBandwidth("07:00,off 19:00,8kbit")
	if got := b.Limit(at(t, "03:00:00")); got != 1000 {
		t.Error(got)
	}
}

func TestWindow(t *testing.T) {
	for _, c := range []struct{ from, to, in, out string }{
		{"18:30", "06:00", "18:30:00 23:59:59 00:00:00 05:59:59", "06:00:00 12:00:00 18:29:59"},
		{"01:00", "05:30", "01:00:00 05:29:59", "00:59:59 05:30:00 23:00:00"},
		{"00:00", "23:59", "00:00:00 23:58:59", "23:59:00"},
		{"23:59", "00:00", "23:59:00 23:59:59", "00:00:00 23:58:59"},
	} {
		from, ok := parseClock(c.from)
		to, ok2 := parseClock(c.to)
		w := Window{from, to}
		if !ok || !ok2 || w.String() != c.from+"-"+c.to {
			t.Fatalf("%v", w)
		}
		for _, clock := range strings.Fields(c.in) {
			if !w.Contains(at(t, clock)) {
				t.Errorf("%s is in %s", clock, w)
			}
		}
		for _, clock := range strings.Fields(c.out) {
			if w.Contains(at(t, clock)) {
				t.Errorf("%s is not in %s", clock, w)
			}
		}
	}
}

// On the day on which the clock jumps from 02:00 to 03:00 a window from 02:15 to 02:45 does not come, and one over
// the jump is an hour shorter; the window follows the clock on the wall.
func TestWindowAcrossDST(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip("no time zone database: apt-get install tzdata")
	}
	count := func(w Window, day time.Time) (minutes int) {
		for m := day; m.Day() == day.Day(); m = m.Add(time.Minute) {
			if w.Contains(m) {
				minutes++
			}
		}
		return minutes
	}
	spring := time.Date(2024, 3, 31, 0, 0, 0, 0, berlin)
	autumn := time.Date(2024, 10, 27, 0, 0, 0, 0, berlin)
	gap, over := Window{135, 165}, Window{60, 240}
	for _, c := range []struct {
		w    Window
		day  time.Time
		want int
	}{{gap, spring, 0}, {gap, autumn, 60}, {over, spring, 120}, {over, autumn, 240}} {
		if got := count(c.w, c.day); got != c.want {
			t.Errorf("%s on %s: %d minutes, want %d", c.w, c.day.Format(time.DateOnly), got, c.want)
		}
	}
}

// TestWindowNext: the window is closed until the moment that Next tells, and open then.
func TestWindowNext(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip("no time zone database: apt-get install tzdata")
	}
	for _, c := range []struct{ from, to, now, want string }{
		{"18:30", "06:00", "2024-01-10T18:29:59+01:00", "2024-01-10T18:30:00+01:00"},
		{"18:30", "06:00", "2024-01-10T18:30:00+01:00", "2024-01-10T18:30:00+01:00"},
		{"18:30", "06:00", "2024-01-10T23:59:59+01:00", "2024-01-10T23:59:59+01:00"},
		{"18:30", "06:00", "2024-01-10T05:59:59+01:00", "2024-01-10T05:59:59+01:00"},
		{"18:30", "06:00", "2024-01-10T06:00:00+01:00", "2024-01-10T18:30:00+01:00"},
		{"01:00", "05:30", "2024-01-10T05:30:00+01:00", "2024-01-11T01:00:00+01:00"},
		{"01:00", "05:30", "2024-12-31T12:00:01+01:00", "2025-01-01T01:00:00+01:00"},
		{"02:15", "02:45", "2024-03-30T03:00:00+01:00", "2024-04-01T02:15:00+02:00"}, // it does not come on the 31st
		{"02:15", "04:00", "2024-03-31T01:30:00+01:00", "2024-03-31T03:00:00+02:00"},
		{"18:30", "06:00", "2024-03-31T07:00:00+02:00", "2024-03-31T18:30:00+02:00"},
		{"02:15", "02:45", "2024-10-27T02:50:00+02:00", "2024-10-27T02:15:00+01:00"}, // it comes twice
		{"18:30", "06:00", "2024-10-27T06:00:00+01:00", "2024-10-27T18:30:00+01:00"},
	} {
		from, _ := parseClock(c.from)
		to, _ := parseClock(c.to)
		w := Window{from, to}
		now, err := time.Parse(time.RFC3339, c.now)
		if err != nil {
			t.Fatal(err)
		}
		got := w.Next(now.In(berlin))
		if got.Format(time.RFC3339) != c.want {
			t.Errorf("%s at %s: %s, want %s", w, c.now, got.Format(time.RFC3339), c.want)
		}
		if !w.Contains(got) || got.After(now) && w.Contains(got.Add(-time.Nanosecond)) {
			t.Errorf("%s at %s: %s is not when it opens", w, c.now, got)
		}
	}
}

func TestDidYouMean(t *testing.T) {
	keys := []string{"name", "recovery_points", "copy_frequency", "block_size"}
	for got, want := range map[string]string{
		"recoverypoints": "recovery_points", "RecoveryPoints": "recovery_points", "recovery-points": "recovery_points",
		"recovery_point": "recovery_points", "nmae": "name", "nam": "name", "copy_freqency": "copy_frequency", "blocksize": "block_size",
		"colour": "", "x": "", "": "", "freeze": "",
	} {
		if hint := didYouMean(got, keys); (want == "") != (hint == "") || !strings.Contains(hint, want) {
			t.Errorf("%q: %q", got, hint)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"ab", "ba", 1}, {"kitten", "sitting", 3}, {"abc", "abc", 0}, {"abcd", "acbd", 1}} {
		if got := distance(c.a, c.b, 100); got != c.want {
			t.Errorf("%q %q: %d", c.a, c.b, got)
		}
		if got := distance(c.b, c.a, 100); got != c.want {
			t.Errorf("%q %q: %d", c.b, c.a, got)
		}
	}
	if got := distance("aaaaaaaa", "a", 3); got != 3 {
		t.Error(got)
	}
}

func TestBandwidthTime(t *testing.T) {
	b, _ := ParseBandwidth("07:00,8kbit 12:30,16kbit 19:00,off")
	for _, x := range []struct {
		clock string
		bytes int64
		want  time.Duration
	}{
		{"10:00:00", 0, 0}, {"10:00:00", 500, time.Second / 2}, {"10:00:00", 60_000, time.Minute}, {"10:00:30", 90_000, 90 * time.Second},
		{"12:29:30", 30_000 + 7_000, 33500 * time.Millisecond}, {"18:59:59", 1 << 40, time.Second}, {"20:00:00", 1 << 40, 0},
	} {
		if got := b.Time(at(t, x.clock), x.bytes); got != x.want {
			t.Errorf("%d bytes at %s: %s, want %s", x.bytes, x.clock, got, x.want)
		}
	}
	if got := (Bandwidth{}).Time(at(t, "10:00:00"), 1<<40); got != 0 {
		t.Error(got)
	}
	b, _ = ParseBandwidth("1kbit")
	const years = 10 * 365 * 24 * time.Hour
	if got := b.Time(at(t, "10:00:00"), 125*int64(years.Seconds())); (got - years).Abs() > time.Minute {
		t.Errorf("ten years: %s", got)
	}
	if got := b.Time(at(t, "10:00:00"), math.MaxInt64); got <= years {
		t.Errorf("for ever: %s", got)
	}
}
