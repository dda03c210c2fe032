package cmd

import (
	"slices"
	"strings"
	"testing"
	"time"

	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/state"
)

func TestJudge(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := hrl.Pos{}.Next()
	fresh := func(change func(*replica.State)) *replica.State {
		st := &replica.State{Phase: replica.Replicating, Applied: at, Received: at, AsOf: now.Add(-time.Minute),
			Disks: []replica.Disk{{Size: 100, Seeded: 100}}}
		if change != nil {
			change(st)
		}
		return st
	}
	broken := &state.Failure{Message: "gone", Advice: "mend it", At: now}
	tests := []struct {
		name   string
		st     *replica.State
		mem    state.VM
		state  string
		health string
		reason string // part of one
		next   string
	}{
		{"no replica", nil, state.VM{}, notProtected, "", "", "sitrep protect vm"},
		{"fine", fresh(nil), state.VM{}, "replicating", healthNormal, "", ""},
		{"just an hour old", fresh(func(s *replica.State) { s.AsOf = now.Add(-time.Hour) }), state.VM{}, "replicating", healthNormal, "", ""},
		{"more than an hour old", fresh(func(s *replica.State) { s.AsOf = now.Add(-time.Hour - 1) }), state.VM{},
			"replicating", healthWarning, "more than an hour", "sitrep delta vm"},
		{"seeding", fresh(func(s *replica.State) { s.Phase, s.Applied, s.Disks[0].Seeded = replica.Seeding, hrl.Pos{}, 41 }), state.VM{},
			"initial-replication", healthWarning, "41%", "sitrep replicate vm"},
		{"seeded, not finalized", fresh(func(s *replica.State) { s.Phase = replica.Seeding }), state.VM{},
			"initial-replication", healthWarning, "99%", "sitrep replicate vm"},
		{"paused", fresh(func(s *replica.State) { s.Phase, s.Reason = replica.Paused, "lunch" }), state.VM{},
			"paused", healthWarning, "lunch", "sitrep resume vm"},
		{"resync", fresh(func(s *replica.State) { s.Phase, s.Reason = replica.ResyncRequired, "a gap" }), state.VM{},
			"resynchronization-required", healthCritical, "a gap", "sitrep resync vm"},
		{"between two positions", fresh(func(s *replica.State) { s.Applying = &replica.Span{From: at, To: at.Next()} }), state.VM{},
			"replicating", healthWarning, "interrupted", "sitrep apply vm"},
		{"last run failed", fresh(nil), state.VM{Failed: broken}, "replicating", healthWarning, "gone", "mend it"},
		{"critical", fresh(nil), state.VM{Critical: broken}, "replicating", healthCritical, "gone", "mend it"},
		{"critical and behind", fresh(func(s *replica.State) { s.AsOf = now.Add(-48 * time.Hour) }), state.VM{Critical: broken},
			"replicating", healthCritical, "more than an hour", "mend it"},
	}
	for _, tt := range tests {
		v := judge("vm", tt.st, tt.mem, now)
		if v.state != tt.state || v.health != tt.health || v.next != tt.next {
			t.Errorf("%s: %+v", tt.name, v)
		}
		found := slices.ContainsFunc(v.reasons, func(r string) bool { return strings.Contains(r, tt.reason) })
		if tt.reason == "" && len(v.reasons) > 0 || tt.reason != "" && !found {
			t.Errorf("%s: reasons %q, want %q", tt.name, v.reasons, tt.reason)
		}
	}
}
