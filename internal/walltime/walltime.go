// Package walltime reads and writes moments of time as people do at a command line.
//
// A time without its zone means two moments in the hour that is there twice when the clock is put back, and another moment on each
// machine. So what is written has the offset of its zone, as "date --rfc-3339=seconds" writes it, and can be given back as it stands. What
// is read may leave the zone out, as long as it means one moment.
package walltime

import (
	"time"

	"sitrep/internal/fault"
)

const layout = "2006-01-02 15:04:05-07:00"

// Text writes a moment by the clock on the wall of a zone, to the second: "2026-11-23 06:33:49+01:00".
func Text(t time.Time, zone *time.Location) string { return t.In(zone).Format(layout) }

// zoned are the forms that say their zone, local those that do not.
var (
	zoned = [...]string{time.RFC3339, layout, "2006-01-02 15:04:05Z07:00", "2006-01-02 15:04:05 -0700", "2006-01-02 15:04:05 Z07:00", "2006-01-02 15:04Z07:00", "2006-01-02T15:04Z07:00"}
	local = [...]string{"2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"}
)

// Parse reads a moment. Without a zone it is one of the zone given; a day is its midnight. What is no time is not ok; a local time that was
// there twice, or never, because the clock was put back or forward, is fault.UsageError: what it means would be a guess.
func Parse(word string, zone *time.Location) (at time.Time, ok bool, err error) {
	for _, form := range zoned {
		if t, err := time.Parse(form, word); err == nil {
			return t, true, nil
		}
	}
	for _, form := range local {
		if t, err := time.ParseInLocation(form, word, zone); err == nil {
			return t, true, unique(t, word, form)
		}
	}
	return time.Time{}, false, nil
}

func unique(t time.Time, word, form string) error {
	if t.Format(form) != word {
		return fault.New(fault.UsageError, "the local time %q does not exist: the clock was put forward then; give it with its zone, such as %s", word, t.Format(time.RFC3339))
	}
	for shift := -3 * time.Hour; shift <= 3*time.Hour; shift += 15 * time.Minute {
		if other := t.Add(shift); shift != 0 && form != time.DateOnly && other.Format(form) == word {
			return fault.New(fault.UsageError, "the local time %q was there twice: the clock was put back then; give it with its zone, %s or %s", word,
				t.Format(time.RFC3339), other.Format(time.RFC3339))
		}
	}
	return nil
}
