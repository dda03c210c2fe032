package failover

import (
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/walltime"
)

// The points that have a name.
const (
	// Latest is the newest point after everything that lies on the shelf was applied.
	Latest = "latest"
	// LatestProcessed is the newest point as it is: nothing is applied first.
	LatestProcessed = "latest-processed"
	// LatestAppConsistent is the newest point at which the applications were quiesced.
	LatestAppConsistent = "latest-app-consistent"
)

// Choose finds the recovery point that a word of the command line means: one of the names above, an ID, or a time (RFC
// 3339, or local as "2026-11-25 14:30"): the newest point that is not younger.
func Choose(st replica.State, word string, local *time.Location) (*replica.Point, error) {
	switch word {
	case "", Latest, LatestProcessed:
		if n := len(st.Points); n > 0 {
			return &st.Points[n-1], nil
		}
		return nil, fault.New(fault.PointMissing, "there is no recovery point").Of(st.VM, "")
	case LatestAppConsistent:
		return newest(st, "no recovery point is application-consistent", func(p replica.Point) bool { return p.AppConsistent })
	}
	if p := st.Point(word); p != nil {
		return p, nil
	}
	if st.IsLost(word) {
		return nil, lost(st.VM, word)
	}
	at, ok, err := walltime.Parse(word, local)
	if err != nil {
		return nil, err
	}
	if ok {
		return newest(st, "no recovery point is as old as "+stamp(at), func(p replica.Point) bool { return !p.CutAt.After(at) })
	}
	return nil, fault.New(fault.UsageError, "%q is no recovery point: give %s, %s, %s, an ID of \"sitrep points %s\", or a time such as "+
		"2026-11-25T14:30:00Z", word, Latest, LatestProcessed, LatestAppConsistent, st.VM).Of(st.VM, "")
}

// lost is the refusal of a point that something else removed from the store.
func lost(vm, id string) error {
	return replica.Unseen(fault.New(fault.PointMissing, "recovery point %s is lost: something else removed or replaced what it is seen through in the store", id).Of(vm, ""))
}

func newest(st replica.State, none string, is func(replica.Point) bool) (*replica.Point, error) {
	for i := len(st.Points) - 1; i >= 0; i-- {
		if is(st.Points[i]) {
			return &st.Points[i], nil
		}
	}
	return nil, fault.New(fault.PointMissing, "%s", none).Of(st.VM, "")
}
