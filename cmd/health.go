package cmd

import (
	"fmt"
	"time"

	"sitrep/internal/replica"
	"sitrep/internal/state"
)

// The words of health.
const (
	healthNormal   = "Normal"
	healthWarning  = "Warning"
	healthCritical = "Critical"
)

// notProtected is the state of a VM without a replica.
const notProtected = "not-protected"

// behindLimit is the age of a replica from which on its health is not normal.
const behindLimit = time.Hour

// verdict is how a VM stands.
type verdict struct {
	state   string
	health  string // "" when the VM is not protected
	reasons []string
	next    string // the command to run, "" for none
}

// judge says how a VM stands, from its ledger and from what this site remembers of it. The gravest reason decides what
// comes next. st is nil when there is no replica.
func judge(vm string, st *replica.State, mem state.VM, now time.Time) verdict {
	if st == nil {
		return verdict{state: notProtected, next: "sitrep protect " + vm}
	}
	v := verdict{state: string(st.Phase), health: healthNormal}
	if f := mem.Critical; f != nil {
		v.add(healthCritical, "replication is in error since "+stamp(f.At)+": "+f.Message, cmpOr(f.Command, f.Advice))
	}
	switch st.Phase {
	case replica.ResyncRequired:
		v.add(healthCritical, "resynchronization is required since "+stamp(st.PhaseSince)+": "+st.Reason, "sitrep resync "+vm)
	case replica.Paused:
		v.add(healthWarning, "replication is paused since "+stamp(st.PhaseSince)+because(st.Reason), "sitrep resume "+vm)
	case replica.Seeding:
		v.add(healthWarning, fmt.Sprintf("the initial replication is not complete (%d%%)", seededPercent(st)), "sitrep replicate "+vm)
	}
	if st.Applying != nil {
		v.add(healthWarning, "change logs are applied, or an apply was interrupted", "sitrep apply "+vm)
	}
	if f := mem.Failed; f != nil {
		v.add(healthWarning, "the last run failed at "+stamp(f.At)+": "+f.Message, cmpOr(f.Command, f.Advice))
	}
	if st.Phase == replica.Replicating && now.Sub(st.AsOf) > behindLimit {
		v.add(healthWarning, "the replica is behind its source by more than an hour", "sitrep delta "+vm)
	}
	return v
}

func (v *verdict) add(health, reason, next string) {
	if v.health == healthNormal || health == healthCritical {
		v.health = health
	}
	if v.next == "" {
		v.next = next
	}
	v.reasons = append(v.reasons, reason)
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// seededPercent is how much of the initial copy is durable: never 100 before it is complete.
func seededPercent(st *replica.State) int {
	if !st.Applied.IsZero() {
		return 99 // only finalize protection is missing
	}
	return percent(
		total(st.Disks, func(d replica.Disk) int64 { return d.Seeded }),
		total(st.Disks, func(d replica.Disk) int64 { return d.Size }))
}
