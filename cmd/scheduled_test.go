package cmd

import (
	"strings"
	"testing"
	"time"

	"sitrep/internal/fault"
)

// TestGoesOnByItself: what an administrator mends outside of sitrep is looked at again on the schedule of retries, and nobody has to say that
// it was mended; what is a decision about data waits for resume. In the meantime the health is Critical and says which of the two it is.
func TestGoesOnByItself(t *testing.T) {
	for _, x := range troubles() {
		if x.code != 4 || x.run != nil {
			continue
		}
		t.Run(x.name, func(t *testing.T) {
			m := newRig(t, "auto_resync: false, copy_frequency: 5m")
			m.must(0, "protect", "web01")
			m.write("os", 40960, 5000, 9)
			x.harm(m)
			_, stderr := m.must(4, "delta", "--all")
			again := x.want.Scheduled()
			if strings.Contains(stderr, "retry: yes, at") != again {
				t.Errorf("tried again: %v: %s", again, stderr)
			}
			m.now = m.now.Add(2 * time.Second)
			if o := m.object("status", "web01"); o["health"] != healthCritical || (o["retry_at"] != nil) != again {
				t.Errorf("%v, retried at %v: %v", o["health"], o["retry_at"], o["health_reasons"])
			}
			_, stderr = m.must(4, "delta", "--all") // before the schedule says so
			if waits := strings.Contains(stderr, "until \"sitrep resume\" says"); !waits || strings.Contains(stderr, "or before 2026-03-16T11:01:00Z") != again {
				t.Errorf("tried again: %v: %s", again, stderr)
			}
			m.must(4, "delta", "web01", "--wait")

			m.now = m.now.Add(time.Minute)
			m.must(4, "delta", "--all") // it is still there
			x.mend(m)
			if x.want == fault.DiskMissing {
				m.must(0, "delta", "--all")
			}
			m.now = m.now.Add(31 * time.Minute)
			if !again {
				m.must(4, "delta", "--all")
				m.must(0, "resume", "web01")
			}
			m.must(0, "delta", "--all")
			m.same()
			if o := m.object("status", "web01"); o["health"] == healthCritical || o["retry_at"] != nil {
				t.Errorf("%v: %v", o["health"], o["health_reasons"])
			}
		})
	}
}

// TestResumeTriesAtOnce: whoever says that the cause was mended does not wait for the schedule.
func TestResumeTriesAtOnce(t *testing.T) {
	m := newRig(t, "copy_frequency: 5m")
	m.must(0, "protect", "web01")
	m.rename("/disks/os.raw", "/srv/os.raw")
	m.must(4, "delta", "web01")
	m.rename("/srv/os.raw", "/disks/os.raw")
	m.must(0, "resume", "web01")
	out, _ := m.must(0, "delta", "web01")
	if strings.Contains(out, "not tried") {
		t.Error(out)
	}
}

// TestLaterErrorTakesItsPlace: an attempt that is stopped by something else says that the earlier cause is gone.
func TestLaterErrorTakesItsPlace(t *testing.T) {
	m := newRig(t, "copy_frequency: 5m")
	m.must(0, "protect", "web01")
	m.rename("/disks/os.raw", "/srv/os.raw")
	m.must(4, "delta", "web01")
	m.rename("/srv/os.raw", "/disks/os.raw")
	m.rename("/store", "/srv/store")
	m.now = m.now.Add(time.Minute)
	m.must(1, "delta", "web01")
	m.rename("/srv/store", "/store")
	if o := m.object("status", "web01"); o["health"] != healthWarning || o["state"] != "replicating" {
		t.Errorf("%v, %v: %v", o["state"], o["health"], o["health_reasons"])
	}
}
