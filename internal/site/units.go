package site

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// digits reads a whole number of decimal digits without a leading zero (which YAML takes for octal).
func digits(s string) (int64, bool) {
	if s == "" || len(s) > 1 && s[0] == '0' || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}

// sizeUnits are the units of byte sizes, the largest first.
var sizeUnits = []struct {
	name  string
	bytes int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"", 1}}

// parseSize reads 2GiB, or a plain number of bytes.
func parseSize(s string) (int64, bool) {
	for _, u := range sizeUnits {
		num, ok := strings.CutSuffix(s, u.name)
		if !ok {
			continue
		}
		n, ok := digits(num)
		if !ok || n > math.MaxInt64/u.bytes {
			return 0, false
		}
		return n * u.bytes, true
	}
	return 0, false
}

// sizeText words a size that is a whole number of some unit.
func sizeText(n int64) string {
	for _, u := range sizeUnits {
		if n%u.bytes == 0 && n >= u.bytes {
			return fmt.Sprint(n/u.bytes, u.name)
		}
	}
	return fmt.Sprint(n)
}

// Clock is a time of day in minutes since midnight, 0 to 1439, as the clock on the wall shows it.
type Clock int

// String is HH:MM.
func (c Clock) String() string { return fmt.Sprintf("%02d:%02d", int(c)/60, int(c)%60) }

func clockOf(t time.Time) Clock { return Clock(t.Hour()*60 + t.Minute()) }

var clockText = regexp.MustCompile(`^([01][0-9]|2[0-3]):([0-5][0-9])$`)

func parseClock(s string) (Clock, bool) {
	m := clockText.FindStringSubmatch(s)
	if m == nil {
		return 0, false
	}
	hour, _ := strconv.Atoi(m[1]) // two digits each: the pattern has seen to it
	minute, _ := strconv.Atoi(m[2])
	return Clock(hour*60 + minute), true
}

// Window is a time of every day, from From on and before To. When From is later than To it goes over midnight.
type Window struct{ From, To Clock }

// DefaultResyncWindow is the one of Hyper-V Replica (asr: WMI AutoResynchronizeIntervalStart and End).
func DefaultResyncWindow() Window { return Window{From: 18*60 + 30, To: 6 * 60} }

// String is HH:MM-HH:MM.
func (w Window) String() string { return w.From.String() + "-" + w.To.String() }

// Contains says whether t lies in the window, by the clock on the wall of t's location: on the days on which that
// clock is put forward or back, the window is shorter or longer.
func (w Window) Contains(t time.Time) bool {
	c := clockOf(t)
	if w.From <= w.To {
		return w.From <= c && c < w.To
	}
	return w.From <= c || c < w.To
}

// Next is the first moment from t on that lies in the window: t itself, or when the window opens next. On a day on which
// the clock on the wall leaves the whole window out, it does not open.
func (w Window) Next(t time.Time) time.Time {
	if w.Contains(t) {
		return t
	}
	t = t.Add(-time.Duration(t.Second())*time.Second - time.Duration(t.Nanosecond()))
	for range 3 * 24 * 60 { // minute by minute, as Contains does: this cannot come to another result, on any day
		if t = t.Add(time.Minute); w.Contains(t) {
			break
		}
	}
	return t
}

// Bandwidth is a timetable of limits. The zero Bandwidth has no limit.
type Bandwidth struct {
	Steps []BandwidthStep // ascending by From, no two alike
}

// BandwidthStep is a limit that holds from a time of day until the next step's.
type BandwidthStep struct {
	From           Clock
	BytesPerSecond int64 // 0 = no limit
}

// Limit returns the limit in bytes a second at t, by the clock on the wall of t's location; 0 = no limit.
func (b Bandwidth) Limit(t time.Time) int64 {
	if len(b.Steps) == 0 {
		return 0
	}
	limit := b.Steps[len(b.Steps)-1].BytesPerSecond // before the first step the last one of the day before holds
	for _, s := range b.Steps {
		if s.From <= clockOf(t) {
			limit = s.BytesPerSecond
		}
	}
	return limit
}

// Time is the least that n bytes take when sending them begins at t. Of more than a year it is a guess.
func (b Bandwidth) Time(t time.Time, n int64) time.Duration {
	const year = 366 * 24 * 60 // minutes
	left, at := float64(n), t
	for range year {
		rate := float64(b.Limit(at))
		rest := time.Minute - time.Duration(at.Second())*time.Second - time.Duration(at.Nanosecond())
		switch earned := rate * rest.Seconds(); {
		case rate == 0:
			return at.Sub(t)
		case earned >= left:
			return at.Sub(t) + seconds(left/rate)
		default:
			left, at = left-earned, at.Add(rest)
		}
	}
	return seconds(at.Sub(t).Seconds() * float64(n) / (float64(n) - left))
}

func seconds(s float64) time.Duration {
	if s >= math.MaxInt64/1e9 {
		return math.MaxInt64
	}
	return time.Duration(s * 1e9)
}

// rateUnits are the units of rates: bits in powers of ten as networks count, bytes in powers of two as disks do.
var rateUnits = []struct {
	name  string
	bytes int64
}{{"kbit", 125}, {"Mbit", 125e3}, {"Gbit", 125e6}, {"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}}

// maxRate is far above what any line carries, and far below where arithmetic on rates overflows.
const maxRate = 1 << 40

// parseRate reads "20Mbit", "5MiB" (a second, both) or "off".
func parseRate(s string) (int64, bool) {
	if s == "off" {
		return 0, true
	}
	for _, u := range rateUnits {
		if num, ok := strings.CutSuffix(s, u.name); ok {
			n, ok := digits(num)
			return n * u.bytes, ok && n > 0 && n <= maxRate/u.bytes
		}
	}
	return 0, false
}

// ParseBandwidth reads a timetable such as "07:00,20Mbit 19:00,off", or one rate for the whole day. ok is false for
// anything else.
func ParseBandwidth(s string) (b Bandwidth, ok bool) {
	if rate, ok := parseRate(s); ok {
		return Bandwidth{Steps: []BandwidthStep{{BytesPerSecond: rate}}}, true
	}
	last := Clock(-1)
	for _, f := range strings.Fields(s) {
		from, rate, _ := strings.Cut(f, ",")
		c, ok := parseClock(from)
		r, rok := parseRate(rate)
		if !ok || !rok || c <= last {
			return Bandwidth{}, false
		}
		b.Steps = append(b.Steps, BandwidthStep{From: c, BytesPerSecond: r})
		last = c
	}
	return b, len(b.Steps) > 0
}
