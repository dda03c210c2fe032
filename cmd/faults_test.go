package cmd

import (
	"bytes"
	"io"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
)

// trouble is something that an operator can meet.
type trouble struct {
	name string
	harm func(*rig)
	run  []string // what meets it; nil: sitrep delta web01
	code int      // its exit code
	want fault.Code
	// mend mends the cause outside of sitrep; nil when there is none to mend.
	mend   func(*rig)
	before func(*rig) // instead of protect and one delta
}

func troubles() []trouble {
	at := func(name string) func(*rig) []byte {
		return func(m *rig) []byte { return readAll(m.t, m.fs, name) }
	}
	var kept []byte // what harm changed and mend brings back
	replace := func(name string, change func([]byte) []byte) func(*rig) {
		return func(m *rig) {
			kept = at(name)(m)
			writeAll(m.t, m.fs, name, change(bytes.Clone(kept)))
		}
	}
	restore := func(name string) func(*rig) { return func(m *rig) { writeAll(m.t, m.fs, name, kept) } }
	failing := func(under string, changes bool, errno syscall.Errno) func(*rig) {
		return func(m *rig) {
			m.write("os", 0, 4096, 77)
			m.fs.FailOn(func(op crashfs.Op) error {
				if strings.HasPrefix(op.Name, under) && (!changes || op.Kind.Changes()) {
					return errno
				}
				return nil
			})
		}
	}
	healed := func(m *rig) { m.fs.FailOn(nil) }
	away := func(m *rig) {
		m.rename("/store", "/srv/store")
		if err := m.fs.MkdirAll("/store"); err != nil {
			m.t.Fatal(err)
		}
	}
	back := func(m *rig) {
		if err := m.fs.Remove("/store"); err != nil {
			m.t.Fatal(err)
		}
		m.rename("/srv/store", "/store")
	}
	var lock io.Closer
	return []trouble{
		{name: "vanished disk", code: 4, want: fault.DiskMissing,
			harm: func(m *rig) { m.rename("/disks/os.raw", "/srv/os.raw") }, mend: func(m *rig) { m.rename("/srv/os.raw", "/disks/os.raw") }},
		{name: "shrunk disk", code: 4, want: fault.DiskShrunk,
			harm: replace("/disks/data.raw", func(b []byte) []byte { return b[:len(b)/2] }), mend: restore("/disks/data.raw")},
		{name: "store not mounted", code: 1, want: fault.StoreNotMounted, harm: away, mend: back},
		{name: "store without its folder", code: 1, want: fault.StoreNotMounted,
			harm: func(m *rig) { m.rename("/store", "/srv/store") }, mend: func(m *rig) { m.rename("/srv/store", "/store") }},
		{name: "volume of the store full", code: 1, want: fault.NoSpace, harm: failing("/store/", true, syscall.ENOSPC), mend: healed},
		{name: "volume of the disks full", code: 1, want: fault.NoSpace, harm: failing("/disks/web01", true, syscall.ENOSPC), mend: healed},
		{name: "store with bad sectors", code: 1, want: fault.IO, harm: failing("/store/web01/", false, syscall.EIO), mend: healed},
		{name: "store stale", code: 1, want: fault.IO, harm: failing("/store", false, syscall.ESTALE), mend: healed},
		{name: "disk not readable", code: 4, want: fault.Permission, harm: failing("/disks/os.raw", false, syscall.EACCES), mend: healed},
		{name: "store read-only", code: 4, want: fault.Permission, harm: failing("/store/", true, syscall.EROFS), mend: healed},
		{name: "disk with bad sectors", code: 1, want: fault.IO, harm: failing("/disks/os.raw", false, syscall.EIO), mend: healed},
		{name: "gap", code: 5, want: fault.LogGap, harm: func(m *rig) {
			m.write("os", 0, 4096, 1)
			m.must(0, "delta", "--capture-only", "web01")
			m.write("os", 8192, 4096, 2)
			m.must(0, "delta", "--capture-only", "web01")
			names, _ := m.logs("web01.os.")
			if err := m.fs.Remove(names[0]); err != nil {
				m.t.Fatal(err)
			}
		}},
		{name: "corrupt log", code: 5, want: fault.LogCorrupt, harm: func(m *rig) {
			m.write("os", 0, 8192, 3)
			m.must(0, "delta", "--capture-only", "web01")
			names, _ := m.logs("web01.os.")
			replace(names[0], func(b []byte) []byte { b[len(b)/2] ^= 1; return b })(m)
		}},
		{name: "log cut short", code: 5, harm: func(m *rig) {
			m.write("os", 0, 8192, 3)
			m.must(0, "delta", "--capture-only", "web01")
			names, _ := m.logs("web01.os.")
			replace(names[0], func(b []byte) []byte { return b[:len(b)/2] })(m)
		}},
		{name: "position lost", code: 5, want: fault.PositionLost, harm: func(m *rig) {
			m.write("os", 0, 4096, 4)
			m.rename("/.sitrep/track", "/srv/track")
		}},
		{name: "replica changed", code: 5, want: fault.ReplicaChanged,
			harm: replace("/store/web01/os.vhd", func(b []byte) []byte { b[5000] ^= 1; return b })},
		{name: "replica changed, found by verify", code: 7, want: fault.ReplicaCorrupt, run: []string{"verify", "web01"},
			harm: replace("/store/web01/os.vhd", func(b []byte) []byte { b[5000] ^= 1; return b })},
		{name: "ledger corrupt", code: 4, want: fault.LedgerCorrupt,
			harm: replace("/store/web01/ledger.json", func(b []byte) []byte { return b[:len(b)/2] }), mend: restore("/store/web01/ledger.json")},
		{name: "ledger of another VM", code: 4, want: fault.ReplicaForeign,
			harm: replace("/store/web01/ledger.json", func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("web01"), []byte("db01")) }),
			mend: restore("/store/web01/ledger.json")},
		{name: "ledger of a newer version", code: 4, want: fault.LedgerVersion,
			harm: replace("/store/web01/ledger.json", func(b []byte) []byte { return bytes.Replace(b, []byte(`"format": 1`), []byte(`"format": 99`), 1) }),
			mend: restore("/store/web01/ledger.json")},
		{name: "another store", code: 4, want: fault.StoreForeign,
			harm: func(m *rig) { // one that has no replica of this site: another one's
				m.rename("/store/web01", "/srv/web01")
				replace("/store/sitrep-store.json", func([]byte) []byte {
					return []byte(`{"format": 1, "id": "00112233445566778899aabbccddeeff", "created": "2026-01-01T00:00:00Z"}`)
				})(m)
			},
			mend: func(m *rig) {
				restore("/store/sitrep-store.json")(m)
				m.rename("/srv/web01", "/store/web01")
			}},
		{name: "replica missing", code: 4, want: fault.ReplicaMissing,
			harm: func(m *rig) { m.rename("/store/web01", "/srv/web01") }, mend: func(m *rig) { m.rename("/srv/web01", "/store/web01") }},
		{name: "log limit", code: 5, want: fault.LogLimit, mend: back, run: []string{"delta", "--now", "web01"}, harm: func(m *rig) {
			away(m)
			for i := range byte(2) { // a few KiB each, of a disk of 256
				m.write("data", int64(i)*4096, 4096, i+1)
				m.must(1, "delta", "--now", "web01")
			}
			m.write("data", 0, 150<<10, 99)
		}},
		{name: "paused", code: 6, harm: func(m *rig) { m.must(0, "pause", "web01", "--reason", "maintenance") }},
		{name: "locked", code: 11, want: fault.RunLocked,
			harm: func(m *rig) {
				var err error
				if lock, err = m.fs.Lock("/.sitrep/locks/web01.lock"); err != nil {
					m.t.Fatal(err)
				}
			},
			mend: func(m *rig) {
				if err := lock.Close(); err != nil {
					m.t.Fatal(err)
				}
			}},
		{name: "initial copy interrupted", code: 1, want: fault.IO, run: []string{"protect", "web01"}, before: func(*rig) {},
			harm: failing("/store/web01/os.vhd", true, syscall.EIO), mend: healed},
		{name: "initial copy left for later", code: 0, run: []string{"protect", "--later", "web01"}, before: func(*rig) {}, harm: func(*rig) {}},
		{name: "initial copy of a later run interrupted", code: 1, want: fault.IO, run: []string{"replicate", "web01"},
			before: func(m *rig) { m.must(0, "protect", "--later", "web01") },
			harm:   failing("/store/web01/os.vhd", true, syscall.EIO), mend: healed},
		{name: "resynchronization interrupted", code: 1, want: fault.IO, run: []string{"resync", "web01"},
			harm: failing("/store/web01/os.vhd", true, syscall.EIO), mend: healed},
		{name: "disk not in the site file", code: 3, want: fault.PrerequisiteFail,
			harm: replace("/site.yaml", func(b []byte) []byte { return bytes.Replace(b, []byte("{name: data"), []byte("{name: date"), 1) }),
			mend: restore("/site.yaml")},
	}
}

var nextLine = regexp.MustCompile(`(?m)^\s*next:\s+(?:.*[Rr]un: )?sitrep (.*)$`)

// command is the last command that a text tells to run next, "" for none.
func command(text string) []string {
	all := nextLine.FindAllStringSubmatch(text, -1)
	if len(all) == 0 {
		return nil
	}
	return strings.Fields(strings.TrimPrefix(all[len(all)-1][1], "--site /site.yaml "))
}

// TestWhy injects each fault, asks why, mends what has to be mended outside, runs the printed command as it stands, and
// requires the VM to be well again.
func TestWhy(t *testing.T) {
	for _, x := range troubles() {
		t.Run(x.name, func(t *testing.T) {
			m := newRig(t, "auto_resync: false")
			if x.before != nil {
				x.before(m)
			} else {
				m.must(0, "protect", "web01")
				m.write("os", 40960, 5000, 9)
				m.must(0, "delta", "web01")
			}
			m.now = m.now.Add(time.Second)
			x.harm(m)
			run := x.run
			if run == nil {
				run = []string{"delta", "web01"}
			}
			_, stderr := m.must(x.code, run...)
			m.now = m.now.Add(time.Second)
			why, _ := m.must(0, "why", "web01")
			next, printed := command(why), command(stderr)
			if next == nil {
				next = printed
			}
			if x.want != "" && x.code != 11 && !strings.Contains(why, "("+string(x.want)+")") {
				t.Errorf("why does not tell %s:\n%s", x.want, why)
			}
			if x.mend != nil {
				x.mend(m)
			}
			if next == nil {
				t.Fatalf("nothing says what to run:\n%s%s", why, stderr)
			}
			m.must(0, next...)
			m.now = m.now.Add(time.Second)
			if o := m.object("status", "web01"); o["health"] != "Normal" {
				t.Fatalf("after %v: %v, %v\n%s", next, o["health"], o["health_reasons"], why)
			}
			m.must(0, "delta", "web01")
			m.same()
			m.must(0, "verify", "web01")
			if testing.Verbose() {
				t.Logf("%s", why)
			}
		})
	}
}
