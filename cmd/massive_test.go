package cmd

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"sitrep/internal/replica"
	"sitrep/internal/replica/dir"
)

// massiveRig is a VM that holds 16 MiB, protected, with four small changes behind it.
func massiveRig(t *testing.T, policy string) *rig {
	m := newRig(t, "log_limit_percent: 100"+policy)
	text := []byte(strings.Repeat("the quick brown fox jumps over the lazy dog. ", 16<<20/45+1))
	writeAll(t, m.fs, "/disks/os.raw", text[:16<<20])
	m.must(0, "protect", "web01")
	for i := range 2 {
		m.later()
		m.write("os", int64(i)*8192, 4096, byte(i))
		m.must(0, "delta", "web01")
	}
	m.must(0, "status", "--check")
	return m
}

func (m *rig) later() { m.now = m.now.Add(5 * time.Minute) }

// noise overwrites a part of a disk with random bytes.
func (m *rig) noise(off, n int64) {
	m.t.Helper()
	f, err := m.fs.OpenRW("/disks/os.raw")
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	rng := rand.New(rand.NewPCG(uint64(off), uint64(n)))
	buf := make([]byte, n)
	for i := range buf {
		buf[i] = byte(rng.Uint32())
	}
	if _, err := f.WriteAt(buf, off); err != nil {
		m.t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		m.t.Fatal(err)
	}
}

// ledger changes the ledger by what another version may have written.
func (m *rig) ledger(change func(*replica.State)) {
	m.t.Helper()
	ctx := m.t.Context()
	r, err := dir.New(m.fs, "/store").Open(ctx, "web01")
	if err != nil {
		m.t.Fatal(err)
	}
	defer r.Close()
	st, err := r.Ledger().Load(ctx)
	if err == nil {
		change(&st)
		_, err = r.Ledger().Save(ctx, st)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *rig) pointIDs() (ids, held []string) {
	m.t.Helper()
	for _, p := range m.object("points", "web01")["points"].([]any) {
		p := p.(map[string]any)
		ids = append(ids, p["id"].(string))
		if p["held"] != nil {
			held = append(held, p["id"].(string))
		}
	}
	return ids, held
}

// TestMassiveChange: a delta that changes most of what a disk holds is a warning with figures everywhere, and the point before it
// outlives the retention until somebody acknowledges it.
func TestMassiveChange(t *testing.T) {
	for name, c := range map[string]struct {
		policy string
		do     func(*rig)
		noise  string // in the text
	}{
		"encrypted":        {"", func(m *rig) { m.noise(0, 12<<20) }, "100% of that looks encrypted"},
		"partly encrypted": {"", func(m *rig) { m.noise(0, 5<<20) }, "100% of that looks encrypted"},
		"zeroed":           {"", func(m *rig) { m.write("os", 0, 12<<20, 0) }, " 0% of that looks encrypted"},
		"resynchronized":   {"", func(m *rig) { m.write("os", 0, 12<<20, 1); m.must(0, "resync", "web01") }, " 0% of that"},
		"a lower share":    {", massive_change: 25%", func(m *rig) { m.write("os", 0, 5<<20, 1) }, " 0% of that"},
	} {
		t.Run(name, func(t *testing.T) {
			m := massiveRig(t, c.policy)
			ids, _ := m.pointIDs()
			good := ids[len(ids)-1]
			m.later()
			c.do(m)
			m.must(0, "delta", "web01")
			m.must(1, "status", "--check")
			if out, _ := m.must(0, "status", "web01"); !strings.Contains(out, c.noise) || !strings.Contains(out, good+" of before is held") {
				t.Error(out)
			}
			if out, _ := m.must(0, "status", "--prometheus", "-"); !strings.Contains(out, "sitrep_vm_massive_change_ratio") || strings.Contains(out, "massive_change_ratio{vm=\"web01\"} 0\n") {
				t.Error(out)
			}
			if out, _ := m.must(0, "why", "web01"); !strings.Contains(out, "massive") && !strings.Contains(out, "of the data of disk os") {
				t.Error(out)
			}
			for i := range 5 {
				m.later()
				m.write("os", int64(i)*4096, 4096, 200)
				m.must(0, "delta", "web01")
			}
			ids, held := m.pointIDs()
			if len(ids) != 4 || len(held) != 1 || held[0] != good || ids[0] != good {
				t.Fatalf("the points are %v, held are %v; %s is good", ids, held, good)
			}
			m.must(0, "points", "web01", "--export", good, "--to", "/out")
			m.must(0, "points", "web01", "--release", good, "--dry-run")
			m.must(1, "status", "--check")
			m.must(0, "points", "web01", "--release", good)
			m.must(0, "status", "--check")
			m.later()
			m.write("os", 0, 4096, 201)
			m.must(0, "delta", "web01")
			if ids, held := m.pointIDs(); len(ids) != 3 || len(held) != 0 {
				t.Errorf("after the acknowledgement the points are %v, held are %v", ids, held)
			}
		})
	}
}

// TestNoMassiveChange: what is usual is no alarm.
func TestNoMassiveChange(t *testing.T) {
	for name, c := range map[string]struct {
		policy string
		do     func(*rig)
	}{
		"a third, rewritten":    {"", func(m *rig) { m.write("os", 0, 5<<20, 1) }},
		"little, encrypted":     {"", func(m *rig) { m.noise(0, 1<<20) }},
		"switched off":          {", massive_change: off", func(m *rig) { m.noise(0, 12<<20) }},
		"all of a small disk":   {"", func(m *rig) { m.write("data", 0, 256<<10, 1) }},
		"an archive is written": {"", func(m *rig) { m.noise(16<<20, 12<<20) }}, // where nothing was
	} {
		t.Run(name, func(t *testing.T) {
			m := massiveRig(t, c.policy)
			m.later()
			c.do(m)
			m.must(0, "delta", "web01")
			if out, _ := m.must(0, "status", "--check"); !strings.HasPrefix(out, "OK") {
				t.Error(out)
			}
		})
	}
}

// TestMassiveChangeCommitted: the commit of a failover keeps one point, and with the others goes the warning that names one of them. A
// ledger in which it stayed behind is acknowledged by the command that status names.
func TestMassiveChangeCommitted(t *testing.T) {
	m := massiveRig(t, "")
	m.later()
	m.noise(0, 12<<20)
	m.must(0, "delta", "web01")
	m.must(1, "status", "--check")
	var before *replica.Massive
	m.ledger(func(st *replica.State) { before = st.Massive })
	m.must(0, "failover", "unplanned", "web01")
	m.must(0, "failover", "commit", "web01")
	if out, _ := m.must(0, "status", "web01"); strings.Contains(out, "of the data of disk") {
		t.Errorf("the committed VM is warned of: %s", out)
	}
	m.must(0, "failback", "web01")
	m.must(0, "failover", "commit", "web01")
	m.later()
	m.must(0, "delta", "web01")
	m.must(0, "status", "--check")

	m.ledger(func(st *replica.State) { st.Massive = before }) // as a version that left it there has written it
	out, _ := m.must(0, "status", "web01")
	if !strings.Contains(out, "is there no more") {
		t.Error(out)
	}
	m.must(0, "points", "web01", "--release", before.Point, "--dry-run")
	m.must(0, "points", "web01", "--release", before.Point)
	m.must(0, "status", "--check")
	m.must(2, "points", "web01", "--release", before.Point)
}

// TestMassiveChangeElsewhere: the machine that applies finds it.
func TestMassiveChangeElsewhere(t *testing.T) {
	m := massiveRig(t, "")
	m.must(0, "delta", "web01")
	site := string(readAll(t, m.fs, "/site.yaml"))
	if err := m.fs.Remove("/site.yaml"); err != nil {
		t.Fatal(err)
	}
	writeAll(t, m.fs, "/site.yaml", []byte(strings.Replace(site, "recovery_points: 3", "recovery_points: 3, apply: elsewhere", 1)))
	m.later()
	m.noise(0, 12<<20)
	m.must(0, "delta", "web01")
	m.must(0, "apply", "web01")
	m.must(1, "status", "--check")
}

// TestHoldByHand: a point that is held is kept, is shown as held, and may be released; doing either twice is no error.
func TestHoldByHand(t *testing.T) {
	m := newRig(t, "log_limit_percent: 100")
	m.must(0, "protect", "web01")
	ids, _ := m.pointIDs()
	m.must(2, "points", "web01", "--hold", "nothing")
	m.must(2, "points", "web01", "--hold", "latest", "--release", ids[0])
	m.must(2, "points", "web01", "--hold", "")
	m.must(0, "points", "web01", "--hold", "latest", "--dry-run")
	if _, held := m.pointIDs(); len(held) != 0 {
		t.Fatal("a dry run holds")
	}
	m.must(0, "points", "web01", "--hold", "latest")
	m.must(0, "points", "web01", "--hold", ids[0])
	for i := range 6 {
		m.later()
		m.write("os", 0, 4096, byte(i+1))
		m.must(0, "delta", "web01")
	}
	now, held := m.pointIDs()
	if len(now) != 4 || now[0] != ids[0] || len(held) != 1 {
		t.Fatalf("the points are %v, held are %v", now, held)
	}
	if out, _ := m.must(0, "points", "web01"); !strings.Contains(out, "HELD") || !strings.Contains(out, "by hand") {
		t.Error(out)
	}
	m.must(0, "status", "--check")
	m.must(0, "points", "web01", "--release", ids[0])
	m.must(0, "points", "web01", "--release", ids[0])
	m.later()
	m.write("os", 0, 4096, 99)
	m.must(0, "delta", "web01")
	if now, held := m.pointIDs(); len(now) != 3 || len(held) != 0 {
		t.Errorf("the points are %v, held are %v", now, held)
	}
	m.must(0, "unprotect", "web01")
}
