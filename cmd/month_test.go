package cmd

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
)

// day is a time of the simulated month: day, hour, minute by the clock on the wall.
type day struct{ d, h, m int }

// event is what happens to the site at a time, and what must be seen from then on.
type event struct {
	at   day
	name string
	do   func(*month)
	// what status shows at the next cron run after it and at the last one before the next event
	first, last seen
}

// seen is what a cron run and the status after it show.
type seen struct {
	code          int // of the cron run
	state, health string
}

// month is a machine on which cron runs every so many minutes.
type month struct {
	*rig
	every time.Duration
	quiet bool // nobody writes to the disks
	idle  bool // cron does not run
	full  bool // the filesystem is
	round int
	peak  int64 // bytes of logs beside the disks since the last event
	runs  int
}

func (m *month) away() {
	m.rename("/store", "/srv/store")
	if err := m.fs.MkdirAll("/store"); err != nil {
		m.t.Fatal(err)
	}
}

func (m *month) back() {
	if err := m.fs.Remove("/store"); err != nil {
		m.t.Fatal(err)
	}
	m.rename("/srv/store", "/store")
}

const (
	stUnknown = "unknown"
	stNormal  = "replicating"
	stMarked  = "resynchronization-required"
	stError   = "error"
)

// plainMonth is the table: March 2026 in Berlin, whose clocks are put forward on the 29th.
func plainMonth() []event {
	good := seen{0, stNormal, healthNormal}
	return []event{
		{day{2, 9, 0}, "cron begins", func(m *month) {}, good, good},
		{day{3, 10, 1}, "the store is gone for half an hour", (*month).away,
			seen{1, stUnknown, healthCritical}, seen{1, stUnknown, healthCritical}},
		{day{3, 10, 31}, "and comes back", (*month).back, seen{0, stNormal, healthWarning}, good},
		{day{5, 8, 1}, "the store is gone, and the guest writes on", (*month).away,
			seen{1, stUnknown, healthCritical}, seen{5, stUnknown, healthCritical}}, // marked: the log limit is reached
		{day{5, 16, 1}, "the store comes back before the window opens", (*month).back,
			seen{5, stMarked, healthCritical}, seen{5, stMarked, healthCritical}},
		{day{5, 18, 30}, "the window opens: the next run resynchronizes", func(m *month) {}, seen{0, stNormal, healthWarning}, good},
		{day{7, 12, 1}, "a disk is taken away", func(m *month) { m.rename("/disks/os.raw", "/srv/os.raw") },
			seen{4, stError, healthCritical}, seen{4, stError, healthCritical}},
		{day{7, 14, 1}, "and brought back: replication goes on by itself", func(m *month) { m.rename("/srv/os.raw", "/disks/os.raw") },
			seen{0, stNormal, healthWarning}, good},
		{day{9, 9, 1}, "cron does not run for three hours", func(m *month) { m.idle = true }, seen{-1, stNormal, healthNormal}, seen{-1, stNormal, healthWarning}},
		{day{9, 12, 1}, "and runs again: cycles were missed", func(m *month) { m.idle = false }, seen{0, stNormal, healthWarning}, good},
		{day{11, 12, 1}, "the administrator pauses", func(m *month) { m.must(0, "pause", "web01", "--reason", "move") },
			seen{6, "paused", healthWarning}, seen{6, "paused", healthWarning}},
		{day{11, 20, 1}, "and resumes", func(m *month) { m.must(0, "resume", "web01") }, good, good},
		{day{13, 2, 1}, "a log is lost inside the window: marked by this run, mended by the next", (*month).loseLog,
			seen{5, stMarked, healthCritical}, good},
		{day{15, 12, 1}, "the site forgets its position", func(m *month) { m.rename("/.sitrep/track", "/srv/track") },
			seen{5, stMarked, healthCritical}, seen{5, stMarked, healthCritical}},
		{day{15, 18, 30}, "the window opens", func(m *month) {}, seen{0, stNormal, healthNormal}, good},
		{day{17, 12, 1}, "the clock jumps two hours ahead", func(m *month) { m.now = m.now.Add(2 * time.Hour) },
			seen{0, stNormal, healthWarning}, good},
		{day{19, 12, 1}, "the clock is set back half an hour", func(m *month) { m.now = m.now.Add(-30 * time.Minute) }, good, good},
		{day{21, 12, 1}, "the store's volume is full", func(m *month) { m.full = true; m.fs.SetCapacity(m.fs.Allocated() + 1) },
			seen{1, stNormal, healthAny}, seen{1, stNormal, healthAny}},
		{day{21, 15, 1}, "and has space again", func(m *month) { m.full = false; m.fs.SetCapacity(0) }, seen{0, stNormal, healthWarning}, good},
		{day{28, 23, 0}, "the night in which the clocks are put forward", func(m *month) {}, good, good},
		{day{30, 12, 0}, "another run holds the lock", (*month).hold, good, good},
		{day{31, 23, 0}, "the end", func(m *month) {}, good, good},
	}
}

// healthAny stands for a health that depends on what could be written to a full volume.
const healthAny = "any"

// loseLog captures a change, and removes the log of one disk.
func (m *month) loseLog() {
	m.write("os", 0, 4096, 200)
	m.must(0, "delta", "--capture-only", "web01")
	names, _ := m.logs("web01.os.")
	if err := m.fs.Remove(names[len(names)-1]); err != nil {
		m.t.Fatal(err)
	}
}

// hold lets one cron run meet another one.
func (m *month) hold() {
	lock, err := m.fs.Lock("/.sitrep/locks/web01.lock")
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { lock.Close() })
	m.must(11, "delta", "web01")
	if err := lock.Close(); err != nil {
		m.t.Fatal(err)
	}
}

// cron is one run, as cron starts it, and what is to be seen after it, if anybody looks.
func (m *month) cron(look bool) seen {
	m.runs++
	if m.runs%8 == 0 && !m.full {
		m.fs = m.fs.AfterCrash(crashfs.KeepAll, 0) // whose past is not recorded any more: it only gets longer
	}
	if !m.quiet {
		m.round++
		m.write("data", int64(m.round%7)*4096, 4096, byte(m.round))
	}
	s := seen{code: -1}
	if !m.idle {
		before := readAll(m.t, m.fs, m.diskPath())
		s.code, _, _ = m.run("delta", "web01")
		if string(before) != string(readAll(m.t, m.fs, m.diskPath())) {
			m.t.Fatal("the source was changed")
		}
	}
	if !look {
		return s
	}
	o := m.object("status", "web01")
	s.state, s.health = fmt.Sprint(o["state"]), fmt.Sprint(o["health"])
	_, bytes := m.logs("web01.")
	m.peak = max(m.peak, bytes)
	return s
}

func (m *month) diskPath() string { return "/disks/data.raw" }

func (s seen) is(want seen) bool {
	return s.code == want.code && s.state == want.state && (s.health == want.health || want.health == healthAny)
}

// allows says whether a run may be seen between the first and the last one of an event: it is like one of the two, or was
// not due after an error.
func (e event) allows(got seen) bool {
	like := func(want seen) bool {
		return got.code == want.code && (got.state == "" || got.state == want.state)
	}
	notDue := seen{code: 0, state: e.first.state}
	return like(e.first) || like(e.last) || e.first.code == exitFailed && like(notDue)
}

// TestMonth runs cron for a month, by a clock that jumps and is put forward, through outages and accidents, and compares
// every change of state with the table above. SITREP_LONG runs it every five minutes instead of every fifteen.
func TestMonth(t *testing.T) {
	t.Parallel()
	m := &month{rig: newRig(t, "copy_frequency: 15m, job_retention: 24h"), every: 15 * time.Minute}
	if os.Getenv("SITREP_LONG") != "" {
		m.rig = newRig(t, "copy_frequency: 5m, job_retention: 24h")
		m.every = 5 * time.Minute
	}
	where := m.now.Location()
	at := func(d day) time.Time { return time.Date(2026, 3, d.d, d.h, d.m, 0, 0, where) }
	table := plainMonth()
	m.now = at(table[0].at)
	m.must(0, "protect", "web01")
	for i, e := range table[:len(table)-1] {
		m.peak = 0
		e.do(m)
		next := at(table[i+1].at)
		var got seen
		for n := 0; ; n++ {
			m.now = m.now.Truncate(m.every).Add(m.every)
			if !m.now.Before(next) {
				break
			}
			last := !m.now.Add(m.every).Before(next)
			got = m.cron(n < 3 || last || n%8 == 0)
			if !e.allows(got) {
				t.Fatalf("%s: the run at %s: %+v is neither %+v nor %+v%s", e.name, m.now, got, e.first, e.last, m.status())
			}
			if n == 0 && !got.is(e.first) {
				t.Fatalf("%s: the first run, at %s: %+v, want %+v%s", e.name, m.now, got, e.first, m.status())
			}
		}
		// With runs every five minutes the last one of an outage may be one that is not due.
		notDue := seen{code: 0, state: e.last.state, health: e.last.health}
		if !got.is(e.last) && !(e.last.code == exitFailed && got.is(notDue)) {
			t.Fatalf("%s: the last run, before %s: %+v, want %+v%s", e.name, next, got, e.last, m.status())
		}
		if limit := int64(256<<10+256<<10)/2 + 128<<10; m.peak > limit {
			t.Errorf("%s: %d bytes of change logs", e.name, m.peak)
		}
		if e.last.state == stNormal && !m.idle && e.last.code == 0 {
			m.same()
			m.must(0, "verify", "web01")
		}
		m.now = next
	}
	t.Logf("%d runs", m.runs)
	if jobs, _ := m.must(0, "jobs", "--state", "succeeded", "--since", "2026-03-30", "--limit", "0"); jobs == "" {
		t.Error("no jobs")
	}
}

func (m *month) status() string {
	_, out, errs := m.run("why", "web01")
	return "\n" + out + errs
}

// TestDSTWindow: a window across the night in which the clocks change opens and closes by the clock on the wall.
func TestDSTWindow(t *testing.T) {
	m := newRig(t, `resync_window: {from: "23:00", to: "04:00"}`)
	m.now = time.Date(2026, 3, 28, 12, 0, 0, 0, m.now.Location())
	m.must(0, "protect", "web01")
	m.rename("/.sitrep/track", "/srv/track")
	m.must(exitResync, "delta", "web01")
	for _, tt := range []struct {
		at   time.Time
		open bool
	}{
		{time.Date(2026, 3, 28, 22, 59, 0, 0, m.now.Location()), false},
		{time.Date(2026, 3, 28, 23, 0, 0, 0, m.now.Location()), true},
		{time.Date(2026, 3, 29, 1, 59, 0, 0, m.now.Location()), true},
		{time.Date(2026, 3, 29, 1, 59, 0, 0, m.now.Location()).Add(time.Minute), true}, // 03:00
		{time.Date(2026, 3, 29, 4, 0, 0, 0, m.now.Location()), false},
		{time.Date(2026, 10, 25, 3, 59, 0, 0, m.now.Location()), true},
		{time.Date(2026, 10, 25, 4, 0, 0, 0, m.now.Location()), false},
	} {
		m.now = tt.at
		o := m.object("resync", "--due", "--dry-run", "web01")
		if o["due"] != tt.open {
			t.Errorf("%s: due is %v", tt.at, o["due"])
		}
		if code, _, _ := m.run("delta", "--dry-run", "web01"); code != exitResync {
			t.Errorf("%s: exit code %d of a plan", tt.at, code)
		}
	}
}

// TestLogLimit: in an outage the logs grow to the limit, mark the VM, and take no more space, however long it lasts.
func TestLogLimit(t *testing.T) {
	m := &month{rig: newRig(t, "log_limit_percent: 40, auto_resync: false")}
	m.must(0, "protect", "web01")
	m.away()
	marked := false
	var after int64
	for i := range 60 {
		m.now = m.now.Add(30 * time.Minute)
		m.write("os", int64(i%60)*4096, 4096, byte(i+1))
		code, _, stderr := m.run("delta", "web01")
		_, bytes := m.logs("web01.os.")
		switch {
		case code == exitResync && !marked:
			marked, after = true, bytes
		case code == exitResync && bytes != after:
			t.Fatalf("run %d: the logs of a marked VM went from %d to %d bytes", i, after, bytes)
		case !marked && code != exitFailed:
			t.Fatalf("run %d: exit code %d\n%s", i, code, stderr)
		case bytes > 256<<10*2/5+64<<10: // what one cut adds, and the heads of the logs
			t.Fatalf("run %d: %d bytes of logs", i, bytes)
		}
		if code, _, _ := m.run("delta", "--capture-only", "web01"); marked && code != exitResync {
			t.Fatalf("run %d: exit code %d of a capture", i, code)
		}
	}
	if !marked {
		t.Fatal("the VM was never marked")
	}
	o := m.object("status", "web01")
	if mark, ok := o["marked"].(map[string]any); !ok || mark["code"] != string(fault.LogLimit) {
		t.Errorf("status: %v", o)
	}
	m.back()
	m.must(exitResync, "delta", "web01")
	if o := m.object("status", "web01"); o["state"] != stMarked || o["marked"] != nil {
		t.Errorf("the ledger was not told: %v", o)
	}
	m.must(0, "resync", "web01")
	m.same()
	if names, bytes := m.logs("web01."); len(names) > 0 {
		t.Errorf("%d bytes of logs stay: %v", bytes, names)
	}
	m.must(0, "verify", "web01")
}

// TestWait: --wait stays, follows the schedule of 1, 2, 4, 8, 10 and then every 30 minutes from the first attempt, and ends
// with the success.
func TestWait(t *testing.T) {
	m := &month{rig: newRig(t, "auto_resync: false")}
	m.must(0, "protect", "web01")
	m.away()
	began := m.now
	var tried []time.Duration
	m.slept = func() {
		tried = append(tried, m.now.Sub(began))
		if len(tried) == 7 {
			m.back()
		}
	}
	m.write("os", 0, 4096, 9)
	_, stderr := m.must(0, "delta", "--wait", "web01")
	want := []time.Duration{1, 2, 4, 8, 10, 40, 70}
	for i := range want {
		want[i] *= time.Minute
	}
	if !slices.Equal(tried, want) {
		t.Errorf("tried after %v, want %v", tried, want)
	}
	if n := strings.Count(stderr, "retry: yes, at "); n != 7 {
		t.Errorf("%d failures were told:\n%s", n, stderr)
	}
	m.slept = nil
	m.same()
	if o := m.object("status", "web01"); o["retry_at"] != nil {
		t.Errorf("the schedule was not cleared: %v", o)
	}
}

// TestFullWhileCapturing: a full volume while a change log is written harms neither the source nor the replica, wherever it fills up.
func TestFullWhileCapturing(t *testing.T) {
	m := newRig(t, "auto_resync: false, source_reserve: off")
	m.must(0, "protect", "web01")
	m.write("os", 0, 40<<10, 9)
	m.write("data", 4096, 8192, 9)
	source := readAll(t, m.fs, "/disks/os.raw")
	replica := readAll(t, m.fs, "/store/web01/os.vhd")
	for space := int64(0); ; space += 4096 {
		m.fs.SetCapacity(m.fs.Allocated() + space)
		code, _, stderr := m.run("delta", "--capture-only", "web01")
		if string(source) != string(readAll(t, m.fs, "/disks/os.raw")) || string(replica) != string(readAll(t, m.fs, "/store/web01/os.vhd")) {
			t.Fatalf("with %d bytes: source or replica was changed", space)
		}
		if code == 0 {
			break
		}
		if code != exitFailed || !strings.Contains(stderr, "The volume is full") {
			t.Fatalf("with %d bytes: exit code %d\n%s", space, code, stderr)
		}
	}
	m.fs.SetCapacity(0)
	m.must(0, "delta", "--now", "web01")
	m.same()
	m.must(0, "verify", "web01")
}
