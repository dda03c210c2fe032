package health_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/health"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
)

func healthy() health.Facts {
	at := hrl.Pos{}.Next()
	return health.Facts{
		VM: "web", Now: noon,
		Ledger: &replica.State{
			Phase: replica.Replicating, PhaseSince: after(-48 * time.Hour), Applied: at, Received: at, Consistent: true,
			AsOf: after(-minute), Disks: []replica.Disk{{Name: "os", Size: 300, Seeded: 300}, {Name: "data", Size: 100, Seeded: 100}},
		},
		Statistics: health.Statistics{Current: health.Interval{Start: after(-3 * time.Hour), Successes: 80, Missed: 20}},
	}
}

func failure(code fault.Code) *health.Failure {
	return &health.Failure{Code: code, Message: "the cable is cut", At: after(-20 * minute)}
}

// changes of healthy facts.
func phase(p replica.Phase) func(*health.Facts) {
	return func(f *health.Facts) { f.Ledger.Phase = p }
}

func pausedFrom(p replica.Phase) func(*health.Facts) {
	return func(f *health.Facts) {
		f.Ledger.Phase, f.Ledger.PausedFrom, f.Ledger.PausedReason = replica.Paused, p, "a gap"
	}
}

func reason(code fault.Code) func(*health.Facts) {
	return func(f *health.Facts) { f.Ledger.Reason, f.Ledger.ReasonCode = "a log is damaged", code }
}

func failed(code fault.Code) func(*health.Facts) {
	return func(f *health.Facts) { f.Failed = failure(code) }
}

func critical(f *health.Facts) { f.Critical = failure(fault.Permission) }

func asOf(d time.Duration) func(*health.Facts) {
	return func(f *health.Facts) { f.Ledger.AsOf = after(d) }
}

func cycles(ok, missed int, latency time.Duration) func(*health.Facts) {
	return func(f *health.Facts) {
		i := &f.Statistics.Current
		i.Successes, i.Missed, i.Latency, i.MaxLatency = ok, missed, latency*time.Duration(ok), 2*latency
	}
}

func running(f *health.Facts) { f.Running = "job 7" }

func retry(attempts int) func(*health.Facts) {
	return func(f *health.Facts) {
		f.Retry = health.Retry{FirstAttempt: after(-40 * minute), Attempts: attempts, NextAt: after(20 * minute)}
	}
}

func applying(f *health.Facts) {
	f.Ledger.Applying = &replica.Span{From: hrl.Pos{Seq: 41}, To: hrl.Pos{Seq: 42}}
}

func seeded(n int64) func(*health.Facts) {
	return func(f *health.Facts) {
		f.Ledger.Phase, f.Ledger.Applied, f.Ledger.Disks[0].Seeded, f.Ledger.Disks[1].Seeded = replica.Seeding, hrl.Pos{}, n, 0
	}
}

func away(p replica.Phase) func(*health.Facts) {
	return func(f *health.Facts) {
		f.Ledger.Phase, f.Ledger.Failover = p, &replica.Failover{Kind: "planned"}
		f.Ledger.Owner = replica.Owner{Site: "dr", Host: "kvm1"}
	}
}

func underTest(f *health.Facts) {
	f.Ledger.Test = &replica.Failover{Kind: "test", Started: after(-8 * time.Hour)}
}

func TestJudge(t *testing.T) {
	type facts = []func(*health.Facts)
	for _, c := range []struct {
		name   string
		change facts
		state  string
		health health.Health
		codes  []health.Code
		words  []string // in the texts
		next   string
	}{
		{"healthy", nil, "replicating", health.Normal, nil, nil, ""},
		{"not protected", facts{func(f *health.Facts) { f.Ledger = nil }}, "not-protected", health.NotApplicable, nil, nil,
			"sitrep protect web"},
		{"not protected, and the run for it failed", facts{func(f *health.Facts) { f.Ledger = nil }, failed(fault.IO)},
			"not-protected", health.NotApplicable, nil, nil, "sitrep protect web"},
		{"failover interrupted", facts{away(replica.FailoverStarted), critical, failed(fault.IO), asOf(-90 * time.Hour), cycles(1, 99, time.Hour)},
			"failover-in-progress", health.Warning, []health.Code{health.FailoverPending},
			[]string{"since 2026-03-02T12:00:00Z", `site "dr"`, "the cable is cut"}, "sitrep failover planned web"},
		{"failover under way", facts{away(replica.FailoverStarted), running}, "failover-in-progress", health.Warning,
			[]health.Code{health.FailoverPending}, []string{"by job 7"}, ""},
		{"failed over", facts{away(replica.FailedOver), asOf(-90 * time.Hour), applying, cycles(1, 99, time.Hour)}, "failed-over", health.Warning,
			[]health.Code{health.FailoverPending}, []string{"not committed", "undone"}, "sitrep failover commit web"},
		{"failed over, and the source's site knows an error", facts{away(replica.FailedOver), critical}, "failed-over", health.Warning,
			[]health.Code{health.FailoverPending}, nil, "sitrep failover commit web"},
		{"committed", facts{away(replica.Committed), asOf(90 * time.Hour)}, "failover-committed", health.Warning,
			[]health.Code{health.FailoverPending}, []string{"not reversed"}, "sitrep failback web"},
		{"failback interrupted", facts{away(replica.FailbackStarted)}, "failback-in-progress", health.Warning,
			[]health.Code{health.FailoverPending}, []string{"not complete"}, "sitrep failback web"},
		{"failed back", facts{away(replica.FailedBack)}, "failback-complete", health.Warning,
			[]health.Code{health.FailoverPending}, []string{"not committed"}, "sitrep failover commit web"},
		{"test failover", facts{underTest}, "replicating", health.Warning, []health.Code{health.TestNotCleaned},
			[]string{"since 2026-03-04T04:00:00Z"}, "sitrep failover cleanup web"},
		{"test failover, and behind", facts{underTest, asOf(-2 * time.Hour)}, "replicating", health.Warning,
			[]health.Code{health.Behind, health.TestNotCleaned}, nil, "sitrep delta web"},
		{"protected no more", facts{phase(replica.Retired), critical, asOf(-9000 * time.Hour)}, "unprotected", health.NotApplicable, nil, nil, ""},

		{"error", facts{critical}, "error", health.Critical, []health.Code{health.Error},
			[]string{"since 2026-03-04T11:40:00Z: the cable is cut"}, "sitrep delta web"},
		{"error without a ledger", facts{critical, func(f *health.Facts) { f.Ledger = nil }}, "error", health.Critical,
			[]health.Code{health.Error}, nil, "sitrep delta web"},
		{"error and more", facts{critical, phase(replica.ResyncRequired), asOf(-2 * time.Hour)}, "error", health.Critical,
			[]health.Code{health.Error, health.ResyncRequired, health.Behind}, nil, "sitrep delta web"},
		{"error that waits for a person", facts{func(f *health.Facts) { f.Critical = failure(fault.DiskShrunk) }}, "error", health.Critical,
			[]health.Code{health.Error}, nil, "sitrep resume web"},

		{"resync required", facts{phase(replica.ResyncRequired), reason(fault.LogCorrupt)}, "resynchronization-required", health.Critical,
			[]health.Code{health.ResyncRequired}, []string{"since 2026-03-02T12:00:00Z: a log is damaged"}, "sitrep resync web --now"},
		{"replica changed", facts{phase(replica.ResyncRequired), reason(fault.ReplicaChanged)}, "resynchronization-required", health.Critical,
			[]health.Code{health.ResyncRequired}, nil, "sitrep resync web --now"},
		{"replica corrupt", facts{phase(replica.ResyncRequired), reason(fault.ReplicaCorrupt)}, "resynchronization-required", health.Critical,
			[]health.Code{health.ResyncRequired}, nil, "sitrep resync web --deep --now"},
		{"resync by itself later", facts{phase(replica.ResyncRequired), func(f *health.Facts) { f.ResyncAt = after(7 * time.Hour) }},
			"resynchronization-required", health.Critical, []health.Code{health.ResyncRequired}, []string{"opens, at 2026-03-04T19:00:00Z"}, "sitrep resync web --now"},
		{"resync by itself now", facts{phase(replica.ResyncRequired), func(f *health.Facts) { f.ResyncAt = noon }},
			"resynchronization-required", health.Critical, []health.Code{health.ResyncRequired}, []string{"window is open"}, "sitrep resync web --now"},
		{"marked, and the error that did it", facts{phase(replica.ResyncRequired), failed(fault.LogGap)}, "resynchronization-required", health.Critical,
			[]health.Code{health.ResyncRequired}, nil, "sitrep resync web --now"},
		{"to be marked", facts{failed(fault.LogGap)}, "replicating", health.Critical,
			[]health.Code{health.ResyncRequired}, []string{"since 2026-03-04T11:40:00Z: the cable is cut"}, "sitrep resync web --now"},
		{"verified and different", facts{failed(fault.Difference)}, "replicating", health.Critical,
			[]health.Code{health.ResyncRequired}, nil, "sitrep resync web --deep --now"},
		{"paused while marked", facts{pausedFrom(replica.ResyncRequired)}, "paused", health.Critical,
			[]health.Code{health.ResyncRequired, health.Paused}, []string{"a gap", "end of the pause"}, "sitrep resume web"},

		{"resync interrupted", facts{phase(replica.Resynchronizing), applying, func(f *health.Facts) {
			f.Ledger.Resync = &replica.Resync{Cursors: map[string]int64{"os": 300, "data": 25}}
		}}, "resynchronizing", health.Critical, []health.Code{health.ResyncInterrupted}, []string{"81% compared"}, "sitrep resync web --now"},
		{"resync under way", facts{phase(replica.Resynchronizing), applying, running}, "resynchronizing", health.Warning,
			[]health.Code{health.Resynchronizing}, []string{"by job 7"}, ""},
		{"resync tried again", facts{phase(replica.Resynchronizing), failed(fault.IO)}, "resynchronizing", health.Critical,
			[]health.Code{health.ResyncInterrupted, health.WaitingForRetry}, nil, "sitrep resync web --now"},
		{"paused in a resync", facts{pausedFrom(replica.Resynchronizing)}, "paused", health.Critical,
			[]health.Code{health.ResyncInterrupted, health.Paused}, nil, "sitrep resume web"},

		{"a disk was added", facts{failed(fault.PrerequisiteFail)}, "replicating", health.Critical,
			[]health.Code{health.NotRecoverable}, []string{"at 2026-03-04T11:40:00Z: the cable is cut"}, "sitrep check web"},

		{"paused", facts{phase(replica.Paused), func(f *health.Facts) { f.Ledger.Reason = "lunch" }}, "paused", health.Warning,
			[]health.Code{health.Paused}, []string{"since 2026-03-02T12:00:00Z: lunch"}, "sitrep resume web"},
		{"paused for long", facts{phase(replica.Paused), asOf(-5 * time.Hour), cycles(1, 99, time.Hour)}, "paused", health.Warning,
			[]health.Code{health.Paused, health.Behind}, []string{"5 h 0 min"}, "sitrep resume web"},

		{"initial replication", facts{seeded(164)}, "initial-replication", health.Warning,
			[]health.Code{health.InitialUnfinished}, []string{"41%"}, "sitrep replicate web"},
		{"initial replication, at work", facts{seeded(164), running}, "initial-replication", health.Warning,
			[]health.Code{health.InitialUnfinished}, []string{"under way (41%), by job 7"}, ""},
		{"initial replication, almost", facts{seeded(300), func(f *health.Facts) { f.Ledger.Disks[1].Seeded = 100 }}, "initial-replication",
			health.Warning, []health.Code{health.InitialUnfinished}, []string{"99%"}, "sitrep replicate web"},
		{"initial replication, copied", facts{phase(replica.Seeding)}, "initial-replication", health.Warning,
			[]health.Code{health.InitialUnfinished}, []string{"not finalized"}, "sitrep replicate web"},
		{"initial replication never begun", facts{seeded(0), asOf(-9000 * time.Hour)}, "initial-replication", health.Warning,
			[]health.Code{health.InitialUnfinished}, []string{"0%"}, "sitrep replicate web"},
		{"paused in it", facts{seeded(0), pausedFrom(replica.Seeding)}, "paused", health.Warning,
			[]health.Code{health.Paused, health.InitialUnfinished}, nil, "sitrep resume web"},

		{"apply interrupted", facts{applying}, "replicating", health.Warning,
			[]health.Code{health.ApplyInterrupted}, []string{"from position 41 to 42"}, "sitrep apply web"},
		{"applying", facts{applying, running}, "replicating", health.Normal, nil, nil, ""},

		{"retry is due", facts{failed(fault.StoreNotMounted)}, "replicating", health.Warning,
			[]health.Code{health.WaitingForRetry}, []string{"the cable is cut", "next run"}, "sitrep delta web"},
		{"waiting for the second attempt", facts{failed(fault.NoSpace), retry(1)}, "replicating", health.Warning,
			[]health.Code{health.WaitingForRetry}, []string{"tried once", "again at 2026-03-04T12:20:00Z"}, "sitrep delta --now web"},
		{"waiting for another attempt", facts{failed(fault.Busy), retry(6)}, "replicating", health.Warning,
			[]health.Code{health.WaitingForRetry}, []string{"6 times since 2026-03-04T11:20:00Z"}, "sitrep delta --now web"},

		{"copied from disks that changed", facts{func(f *health.Facts) { f.Ledger.Consistent = false }}, "replicating", health.Warning,
			[]health.Code{health.NotConsistent}, nil, "sitrep delta web"},

		{"a recovery point is damaged", facts{func(f *health.Facts) {
			f.Ledger.Points = []replica.Point{{ID: "a", CutAt: noon.Add(-time.Hour), Damaged: "block 3"}, {ID: "b", CutAt: noon}}
		}}, "replicating", health.Warning, []health.Code{health.PointsDamaged}, []string{"a recovery point is damaged", "block 3"}, "sitrep points web"},
		{"a recovery point is lost", facts{func(f *health.Facts) { f.Ledger.Lost = []replica.Point{{ID: "a", CutAt: noon.Add(-time.Hour)}} }},
			"replicating", health.Warning, []health.Code{health.PointsLost}, []string{"a recovery point is lost"}, "sitrep points web"},
		{"two are", facts{func(f *health.Facts) {
			f.Ledger.Lost = []replica.Point{{ID: "a"}, {ID: "b", CutAt: noon.Add(-time.Hour)}}
		}},
			"replicating", health.Warning, []health.Code{health.PointsLost}, []string{"2 recovery points are lost"}, "sitrep points web"},

		{"an hour old", facts{asOf(-time.Hour)}, "replicating", health.Normal, nil, nil, ""},
		{"more than an hour old", facts{asOf(-time.Hour - 1)}, "replicating", health.Warning,
			[]health.Code{health.Behind}, []string{"1 h 0 min", "of 2026-03-04T10:59:59Z"}, "sitrep delta web"},
		{"days old", facts{asOf(-75 * time.Hour)}, "replicating", health.Warning, []health.Code{health.Behind}, []string{"3 days 3 h"}, "sitrep delta web"},
		{"of no known time", facts{func(f *health.Facts) { f.Ledger.AsOf = time.Time{} }}, "replicating", health.Warning,
			[]health.Code{health.Behind}, []string{"not known"}, "sitrep delta web"},
		{"of a little later", facts{asOf(5 * minute)}, "replicating", health.Normal, nil, nil, ""},
		{"of the future", facts{asOf(5*minute + time.Second)}, "replicating", health.Warning,
			[]health.Code{health.ClockWrong}, []string{"5 min 1 s"}, "sitrep delta web"},

		{"20 percent missed", facts{cycles(80, 20, time.Second)}, "replicating", health.Normal, nil, nil, ""},
		{"more than 20 percent missed", facts{cycles(79, 20, time.Second)}, "replicating", health.Warning,
			[]health.Code{health.CyclesMissed}, []string{"20 of 99", "(20.2%)", "since 2026-03-04T09:00:00Z"}, "sitrep delta web"},
		{"all missed", facts{cycles(0, 1, 0)}, "replicating", health.Warning, []health.Code{health.CyclesMissed}, []string{"1 of 1"}, "sitrep delta web"},
		{"a new interval", facts{cycles(0, 0, 0)}, "replicating", health.Normal, nil, nil, ""},
		{"missed before it was marked", facts{phase(replica.ResyncRequired), cycles(1, 9, time.Hour)}, "resynchronization-required",
			health.Critical, []health.Code{health.ResyncRequired}, nil, "sitrep resync web --now"},
		{"5 minutes a cycle", facts{cycles(80, 0, 5*minute)}, "replicating", health.Normal, nil, nil, ""},
		{"more than 5 minutes a cycle", facts{cycles(80, 0, 5*minute+time.Second)}, "replicating", health.Warning,
			[]health.Code{health.Slow}, []string{"5 min 1 s on average", "(10 min 2 s at most)"}, "sitrep jobs --vm web"},

		{"a long outage", facts{failed(fault.IO), retry(9), asOf(-26 * time.Hour), cycles(3, 33, time.Second)}, "replicating", health.Warning,
			[]health.Code{health.WaitingForRetry, health.Behind, health.CyclesMissed}, nil, "sitrep delta --now web"},
	} {
		f := healthy()
		for _, change := range c.change {
			change(&f)
		}
		v := health.Judge(f)
		var codes []health.Code
		var text string
		for _, r := range v.Reasons {
			codes = append(codes, r.Code)
			text += r.Text + "\n"
		}
		if v.State != c.state || v.Health != c.health || v.Next != c.next || !slices.Equal(codes, c.codes) {
			t.Errorf("%s: %+v\nwant %s, %s, %s, %s", c.name, v, c.state, c.health, c.codes, c.next)
		}
		for _, w := range c.words {
			if !strings.Contains(text, w) {
				t.Errorf("%s: %q is not in\n%s", c.name, w, text)
			}
		}
	}
}

// TestEveryFaultIsJudged: whatever a run can fail with makes a VM's health other than normal, and says what to run.
func TestEveryFaultIsJudged(t *testing.T) {
	phases := []replica.Phase{replica.Seeding, replica.Replicating, replica.Paused, replica.ResyncRequired, replica.Resynchronizing}
	for _, code := range []fault.Code{fault.IO, fault.NoSpace, fault.Permission, fault.NotFound, fault.Busy, fault.PrerequisiteFail,
		fault.DiskModified, fault.LogCorrupt, fault.LogGap, fault.PositionLost, fault.ReplicaChanged, fault.ReplicaCorrupt,
		fault.LedgerConflict, fault.StoreNotMounted, fault.ChainBroken, fault.Difference, fault.Fenced, "of a newer version"} {
		for _, p := range phases {
			for _, grave := range []bool{false, true} {
				f := healthy()
				f.Ledger.Phase = p
				f.Failed = failure(code)
				if grave {
					f.Failed, f.Critical = nil, failure(code)
				}
				v := health.Judge(f)
				if v.Health == health.Normal || v.Next == "" || len(v.Reasons) == 0 {
					t.Errorf("%s in phase %s: %+v", code, p, v)
				}
				for i, r := range v.Reasons {
					if r.Text == "" || i > 0 && r.Health == health.Critical && v.Reasons[i-1].Health != health.Critical {
						t.Errorf("%s in phase %s: reason %+v", code, p, r)
					}
				}
				if code.Class() == fault.Critical && grave && v.Health != health.Critical {
					t.Errorf("%s in phase %s is not critical", code, p)
				}
			}
		}
	}
}

func TestRPO(t *testing.T) {
	for _, c := range []struct {
		asOf  time.Time
		age   time.Duration
		known bool
	}{
		{after(-7 * minute), 7 * minute, true}, {noon, 0, true}, {after(minute), 0, true}, {after(5 * minute), 0, true},
		{after(6 * minute), 0, false}, {time.Time{}, 1<<63 - 1, false},
	} {
		if age, known := health.RPO(c.asOf, noon); age != c.age || known != c.known {
			t.Errorf("as of %s: %s, %v", c.asOf, age, known)
		}
	}
}
