package pageblob_test

import (
	"errors"
	"slices"
	"testing"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/replica/pageblob/azuritetest"
	"sitrep/internal/replica/replicatest"
)

// TestOlderLedgerOfBlobs reads the points of a ledger that is older than the blobs, as one that was brought back from a backup is: what its
// newest point was has no snapshot any more, and what the blobs hold now is not shown as that.
func TestOlderLedgerOfBlobs(t *testing.T) {
	ctx := t.Context()
	name := azuritetest.Container(t)
	h := replicatest.NewHistory("vm", 12, replicatest.OSLogs(t))
	h.Keep = 1
	if err := errors.Join(h.Begin(ctx, open(t, name, quick())), h.Step(ctx, false), h.Close()); err != nil {
		t.Fatal(err)
	}
	load := func() (replica.Replica, replica.State) {
		r, err := open(t, name, quick()).View(ctx, "vm")
		if err != nil {
			t.Fatal(err)
		}
		st, err := r.Ledger().Load(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return r, st
	}
	offered := func(st replica.State) (lost bool, opened error) {
		r, _ := load()
		id := st.Points[len(st.Points)-1].ID
		v, err := r.Points().Open(ctx, st, id)
		if err == nil {
			err = v.Close()
		}
		ids, merr := replica.UnprovenPoints(ctx, r, st)
		if merr != nil {
			t.Fatal(merr)
		}
		return slices.Contains(ids, id), err
	}
	_, old := load()
	if lost, err := offered(old); lost || err != nil {
		t.Fatalf("before: lost %v, %v", lost, err)
	}
	if err := h.Attach(ctx, open(t, name, quick())); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(h.Step(ctx, true), h.Step(ctx, false), h.Close()); err != nil {
		t.Fatal(err)
	}
	lost, err := offered(old)
	if !lost {
		t.Error("the point is not said to be lost")
	}
	wantCode(t, "a point that is seen through blobs of another time", err, fault.PointDamaged)
	_, now := load()
	if lost, err := offered(now); lost || err != nil {
		t.Errorf("the newest point: lost %v, %v", lost, err)
	}
}
