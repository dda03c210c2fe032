package health_test

import (
	"strings"
	"testing"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/health"
	"sitrep/internal/replica"
)

// TestFailoverStopped: a failover that stopped says at what, of which point, and leads on with that point.
func TestFailoverStopped(t *testing.T) {
	st := &replica.State{VM: "web01", Phase: replica.FailoverStarted, Failover: &replica.Failover{Kind: "unplanned", Point: "20261201T000000Z-00112233",
		Stopped: &replica.Stopped{Step: "Wait until the virtual machine is up", Code: fault.BootFailed, Message: "the boot check did not pass", At: time.Unix(1e9, 0)}}}
	v := health.Judge(health.Facts{VM: "web01", Ledger: st, Now: time.Unix(1e9, 0)})
	text := v.Reasons[0].Text
	for _, want := range []string{"the boot check did not pass", "Wait until the virtual machine is up", "20261201T000000Z-00112233"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q does not say %q", text, want)
		}
	}
	if next := v.Next; next != "sitrep failover unplanned web01 --point 20261201T000000Z-00112233" {
		t.Errorf("next: %s", next)
	}
}
