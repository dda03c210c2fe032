package cmd

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"sitrep/internal/durable/crashfs"
)

// rig is a site, its store and its clock, all of them the test's.
type rig struct {
	t   *testing.T
	fs  *crashfs.FS
	now time.Time
	// slept is called when the program has waited; nil: nothing is.
	slept func()
}

const machineSite = `vault: test
store: {directory: /store}
policies: [{name: gold, recovery_points: 3, block_size: 4KiB, POLICY}]
networks: [{name: lan}]
vmm:
  clouds:
    - name: c
      policy: gold
      hosts:
        - name: h
          hypervisor: none
          vms:
            - name: web01
              generation: 1
              os: linux
              cpus: 1
              memory: 1GiB
              disks:
                - {name: os, path: /disks/os.raw, os: true, format: raw}
                - {name: data, path: /disks/data.raw, format: raw}
              nics: [{network: lan}]
`

// newRig is a site with one VM that is not protected, at noon in a place with summer time.
func newRig(t *testing.T, policy string) *rig {
	t.Helper()
	where, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip("no time zone database: apt-get install tzdata")
	}
	m := &rig{t: t, fs: crashfs.New(), now: time.Date(2026, 3, 16, 12, 0, 0, 0, where)}
	for _, dir := range []string{"/disks", "/srv"} {
		if err := m.fs.MkdirAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	writeAll(t, m.fs, "/site.yaml", []byte(strings.ReplaceAll(machineSite, "POLICY", policy)))
	writeAll(t, m.fs, "/disks/os.raw", bytes.Repeat([]byte{1, 2, 3, 4}, 64<<10))
	writeAll(t, m.fs, "/disks/data.raw", bytes.Repeat([]byte{5, 0, 0, 0}, 64<<10))
	return m
}

// run runs a command line. The clock stands still meanwhile, but for what the program waits.
func (m *rig) run(args ...string) (code int, stdout, stderr string) {
	return m.runOn(m.fs, args...)
}

func (m *rig) runOn(fsys *crashfs.FS, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	p := &program{fs: fsys, stdin: bytes.NewReader(nil), stdout: &out, stderr: &errs, now: func() time.Time { return m.now },
		pause: func(ctx context.Context, d time.Duration) error {
			m.now = m.now.Add(d)
			if m.slept != nil {
				m.slept()
			}
			return ctx.Err()
		},
		getenv: func(string) string { return "" }}
	code = p.run(context.Background(), append([]string{"sitrep", "--site", "/site.yaml"}, args...))
	return code, out.String(), errs.String()
}

// must runs a command line that has to end with a code.
func (m *rig) must(code int, args ...string) (stdout, stderr string) {
	m.t.Helper()
	got, stdout, stderr := m.run(args...)
	if got != code {
		m.t.Fatalf("at %s: %v: exit code %d, want %d\n%s%s", m.now, args, got, code, stdout, stderr)
	}
	return stdout, stderr
}

// object runs a command with --json and returns the object of the only VM.
func (m *rig) object(args ...string) map[string]any {
	m.t.Helper()
	_, stdout, stderr := m.run(append(args, "--json")...)
	var res struct{ VMs []map[string]any }
	if err := json.Unmarshal([]byte(stdout), &res); err != nil || len(res.VMs) != 1 {
		m.t.Fatalf("%v: %v\n%s%s", args, err, stdout, stderr)
	}
	return res.VMs[0]
}

// write writes to a disk as a guest does: n bytes of one value.
func (m *rig) write(disk string, off int64, n int, value byte) {
	m.t.Helper()
	f, err := m.fs.OpenRW("/disks/" + disk + ".raw")
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(bytes.Repeat([]byte{value}, n), off); err != nil {
		m.t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		m.t.Fatal(err)
	}
}

// same fails unless the replica is the source.
func (m *rig) same() {
	m.t.Helper()
	for _, disk := range []string{"os", "data"} {
		source, replica := readAll(m.t, m.fs, "/disks/"+disk+".raw"), readAll(m.t, m.fs, "/store/web01/"+disk+".vhd")
		if len(replica) < len(source) || !bytes.Equal(source, replica[:len(source)]) {
			m.t.Fatalf("the replica of %s is not its source", disk)
		}
	}
}

func (m *rig) rename(from, to string) {
	m.t.Helper()
	if err := m.fs.Rename(from, to); err != nil {
		m.t.Fatal(err)
	}
}

// logs are the change logs beside the disks.
func (m *rig) logs(prefix string) (names []string, bytes int64) {
	m.t.Helper()
	entries, err := m.fs.ReadDir("/disks")
	if err != nil {
		m.t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name, prefix) && strings.HasSuffix(e.Name, ".hrl") {
			names = append(names, "/disks/"+e.Name)
			st, err := m.fs.Stat("/disks/" + e.Name)
			if err != nil {
				m.t.Fatal(err)
			}
			bytes += st.Size
		}
	}
	return names, bytes
}
