package failover_test

import (
	"testing"

	"sitrep/failover"
	"sitrep/internal/fault"
)

// TestHomeIsQCOW2: a failback into a format that is not written to in place is refused before anything is begun, and goes another
// way when the site file names one.
func TestHomeIsQCOW2(t *testing.T) {
	w, _ := edge(t)
	ctx := t.Context()
	must(t, w.job().Run(ctx, failover.Planned, failover.Options{}, ""))
	must(t, w.job().Commit(ctx))
	before := w.state(t)
	j := w.job()
	j.Home.Disks[0].Format = "qcow2"
	wantCode(t, j.Failback(ctx, failover.FailbackOptions{Mode: failover.DuringFailover}, ""), fault.DiskUnsupported)
	_, err := j.Price(ctx)
	wantCode(t, err, fault.DiskUnsupported)
	if e := fault.Find(err); e == nil || e.Mend != "Name the other file in the site file." {
		t.Errorf("converting the image is not what helps: %v", e)
	}
	if st := w.state(t); st.Version != before.Version || st.Failover.Failback != nil {
		t.Error("the failback was begun")
	}
	j.Home.Disks[0].Path, j.Home.Disks[0].Format = "/site/disks/another.vhdx", "vhdx"
	must(t, j.Failback(ctx, failover.FailbackOptions{Mode: failover.DuringFailover}, ""))
	must(t, j.Commit(ctx))
	if d := w.state(t).Disks[0]; d.Format != "vhdx" || d.Source != "/site/disks/another.vhdx" {
		t.Errorf("replicated from now on: %s as %s", d.Source, d.Format)
	}
}
