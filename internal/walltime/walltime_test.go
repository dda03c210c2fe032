package walltime_test

import (
	"strings"
	"testing"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/walltime"
)

func berlin(t *testing.T) *time.Location {
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip("no time zone database: apt-get install tzdata")
	}
	return zone
}

// TestText: what is written is read as the same moment, also on the days on which the clock is put back or forward.
func TestText(t *testing.T) {
	zone := berlin(t)
	begin := time.Date(2026, 10, 24, 12, 0, 0, 0, time.UTC)
	seen := map[string]bool{}
	for at := begin; at.Before(begin.Add(48 * time.Hour)); at = at.Add(10 * time.Minute) {
		text := walltime.Text(at, zone)
		got, ok, err := walltime.Parse(text, time.UTC)
		if err != nil || !ok || !got.Equal(at) || seen[text] {
			t.Fatalf("%v is written %q, and read %v %v %v", at, text, got, ok, err)
		}
		seen[text] = true
	}
	if got := walltime.Text(time.Date(2026, 12, 1, 5, 0, 0, 0, time.UTC), zone); got != "2026-12-01 06:00:00+01:00" {
		t.Error(got)
	}
}

func TestParse(t *testing.T) {
	zone := berlin(t)
	for word, want := range map[string]string{
		"2026-10-25T02:30:00+02:00": "2026-10-25T00:30:00Z", "2026-10-25 02:30:00+01:00": "2026-10-25T01:30:00Z", "2026-10-25 00:30:00Z": "2026-10-25T00:30:00Z",
		"2026-10-25 02:30 +0200": "", "2026-10-25 02:30:00 +0200": "2026-10-25T00:30:00Z", "2026-10-25T00:30Z": "2026-10-25T00:30:00Z",
		"2026-10-25 01:59": "2026-10-24T23:59:00Z", "2026-10-25T03:00:01": "2026-10-25T02:00:01Z", "2026-10-25": "2026-10-24T22:00:00Z",
		"2026-10-25 02:30": "was there twice", "2026-10-25T02:00:00": "was there twice", "2026-03-29 02:30": "does not exist", "yesterday": "", "": "",
	} {
		at, ok, err := walltime.Parse(word, zone)
		switch {
		case want == "":
			if ok || err != nil {
				t.Errorf("%q: %v %v %v", word, at, ok, err)
			}
		case strings.HasSuffix(want, "Z"):
			if err != nil || !ok || at.UTC().Format(time.RFC3339) != want {
				t.Errorf("%q: %v %v %v, want %s", word, at, ok, err, want)
			}
		case !fault.Is(err, fault.UsageError) || !strings.Contains(err.Error(), want):
			t.Errorf("%q: %v %v, want %s", word, at, err, want)
		}
	}
}
