package cmd_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sitrep/cmd"
	"sitrep/internal/replica/pageblob/azuritetest"
)

// azureSite is a folder with a site file whose store is a container of the emulator, and a disk.
type azureSite struct {
	t   *testing.T
	dir string
	all *bytes.Buffer // everything that was written to stdout or stderr
}

func newAzureSite(t *testing.T, container, policy string) *azureSite {
	s := &azureSite{t: t, dir: t.TempDir(), all: new(bytes.Buffer)}
	s.write("site.yaml", []byte(`vault: test
store: {azure: {connection_string_env: SITREP_TEST_AZURE, container: `+container+`}}
policies: [{name: gold, block_size: 64KiB`+policy+`}]
vmm: {clouds: [{name: c, policy: gold, hosts: [{name: h, hypervisor: none, vms: [{name: web01, generation: 1, os: linux, cpus: 1, memory: 1GiB, disks: [{name: os, path: os.raw}]}]}]}]}
`))
	return s
}

func (s *azureSite) write(name string, data []byte) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), data, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *azureSite) read(name string) []byte {
	s.t.Helper()
	data, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		s.t.Fatal(err)
	}
	return data
}

// run runs a command that must exit with the code, and returns what it wrote to stdout.
func (s *azureSite) run(code int, args ...string) string {
	s.t.Helper()
	got, out, errs := s.result(args...)
	if got != code {
		s.t.Fatalf("%v: exit code %d, want %d\n%s%s", args, got, code, out, errs)
	}
	return out
}

// try runs a command that may exit with any code.
func (s *azureSite) try(args ...string) int {
	code, _, _ := s.result(args...)
	return code
}

func (s *azureSite) result(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	args = append([]string{"sitrep", "--site", filepath.Join(s.dir, "site.yaml"), "--verbose"}, args...)
	code = cmd.Run(s.t.Context(), args, strings.NewReader(""), &out, &errs)
	s.all.Write(out.Bytes())
	s.all.Write(errs.Bytes())
	return code, out.String(), errs.String()
}

// points lists the recovery points, oldest first.
func (s *azureSite) points() []string {
	s.t.Helper()
	var got struct {
		VMs []struct {
			Points []struct{ ID string }
		}
	}
	if err := json.Unmarshal([]byte(s.run(0, "points", "web01", "--json")), &got); err != nil {
		s.t.Fatal(err)
	}
	var ids []string
	for _, p := range got.VMs[0].Points {
		ids = append(ids, p.ID)
	}
	return ids
}

// exported is the guest bytes of the disk os as of a point.
func (s *azureSite) exported(id string, size int) []byte {
	s.t.Helper()
	return s.exportedDisk(id, "os", size)
}

func (s *azureSite) exportedDisk(id, disk string, size int) []byte {
	s.t.Helper()
	to := s.t.TempDir()
	s.run(0, "points", "web01", "--export", id, "--to", to)
	data, err := os.ReadFile(filepath.Join(to, "web01."+disk+".vhd"))
	if err != nil {
		s.t.Fatal(err)
	}
	return data[:size]
}

func azureContainer(t *testing.T) string {
	var pool azuritetest.Pool // the server ends with this process
	t.Setenv("SITREP_TEST_AZURE", pool.Server(t).ConnectionString())
	return azuritetest.Container(t)
}

// TestAzureMainJob leads a VM through everything with a replica in Azure storage.
func TestAzureMainJob(t *testing.T) {
	container := azureContainer(t)
	s := newAzureSite(t, container, "")
	disk := make([]byte, 5<<20)
	copy(disk[1<<20:], randomBytes(1, 600<<10))
	s.write("os.raw", disk)
	first := bytes.Clone(disk)
	s.run(0, "check")
	s.run(6, "delta", "web01")
	s.run(0, "protect", "web01", "--dry-run")
	s.run(0, "protect", "web01")
	copy(disk[2<<20:], randomBytes(2, 200<<10))
	clear(disk[1<<20:][:128<<10])
	s.write("os.raw", disk)
	second := bytes.Clone(disk)
	s.run(0, "delta", "web01", "--now")
	s.run(0, "delta", "web01", "--now")
	copy(disk, randomBytes(3, 64<<10))
	s.write("os.raw", disk)
	s.run(0, "delta", "web01", "--now")
	s.run(0, "status", "web01")
	s.run(0, "verify", "web01")
	s.run(0, "verify", "web01", "--against-source")
	ids := s.points()
	if len(ids) != 3 {
		t.Fatalf("%d recovery points", len(ids))
	}
	for i, want := range [][]byte{first, second, disk} {
		if !bytes.Equal(s.exported(ids[i], len(want)), want) {
			t.Errorf("recovery point %d is another disk", i)
		}
	}
	for range 2 { // what is there already is left as it is
		if out := s.run(0, "points", "web01", "--promote", ids[1]); !strings.Contains(out, "/web01/promoted/"+ids[1]+"-os.vhd") {
			t.Errorf("promoted to %q", out)
		}
	}
	s.run(0, "points", "web01", "--demote", ids[1])
	s.run(2, "points", "web01", "--promote", "x", "--demote", "y")
	copy(disk[3<<20:], randomBytes(4, 100<<10))
	s.write("os.raw", disk)
	s.run(0, "resync", "web01", "--now")
	s.run(0, "resync", "web01", "--now", "--deep")
	s.run(0, "verify", "web01", "--against-source")
	s.run(0, "pause", "web01")
	s.run(0, "resume", "web01")
	s.run(0, "jobs")
	s.run(0, "unprotect", "web01")
	s.run(6, "delta", "web01")
	s.run(0, "protect", "web01")
	if text := s.all.String(); strings.Contains(text, azuritetest.Key[:20]) {
		t.Error("the account's key was written")
	}
}

// TestAzureApplyElsewhere: a site that only ships, and another folder with the same site file that applies.
func TestAzureApplyElsewhere(t *testing.T) {
	container := azureContainer(t)
	s := newAzureSite(t, container, ", apply: elsewhere")
	disk := randomBytes(1, 1<<20)
	s.write("os.raw", disk)
	s.run(0, "protect", "web01")
	copy(disk[512<<10:], randomBytes(2, 64<<10))
	s.write("os.raw", disk)
	s.run(0, "delta", "web01", "--now")
	if ids := s.points(); len(ids) != 1 {
		t.Fatalf("%d recovery points before anything was applied", len(ids))
	}
	other := newAzureSite(t, container, ", apply: elsewhere")
	other.run(0, "apply", "web01")
	ids := other.points()
	if len(ids) != 2 || !bytes.Equal(other.exported(ids[1], len(disk)), disk) {
		t.Errorf("what was applied is another disk; points %q", ids)
	}
	s.run(0, "delta", "web01", "--now")
}

// TestAzureVerifyBudget: verifications with a budget that is over at once walk on from where the last one ended, over both disks
// and over deltas in between, and status says of each disk how old its oldest proof is.
func TestAzureVerifyBudget(t *testing.T) {
	f := newFronted(t, "")
	f.os = randomBytes(1, 70<<20) // more than is verified between two looks at the budget
	f.disks()
	f.run(0, "protect", "web01")
	type diskStatus struct {
		Name string
		At   *time.Time `json:"last_verified_at"`
	}
	verified := func() (at []*time.Time) {
		t.Helper()
		var got struct {
			VMs []struct{ Disks []diskStatus }
		}
		if err := json.Unmarshal([]byte(f.run(0, "status", "web01", "--json")), &got); err != nil {
			t.Fatal(err)
		}
		for _, d := range got.VMs[0].Disks {
			at = append(at, d.At)
		}
		return at
	}
	var first time.Time
	for i, want := range []struct {
		downloaded int64 // MiB: of the disk os, then of both
		os, data   bool  // are proven
		then       string
	}{ // the disk data is a transfer, with holes
		{64, false, false, "the time is over, the next verify goes on here"}, {6, true, false, "the time is over, the next verify goes on with disk data"},
		{4, true, true, "all disks are proven, and the next verify begins again"}, {64, true, true, "the time is over, the next verify goes on here"},
	} {
		costs, out := f.counted(0, "verify", "web01", "--budget", "1ns")
		if n := ofDisks(costs); n != want.downloaded<<20 {
			t.Errorf("run %d has downloaded %d bytes, want %d MiB\n%s", i, n, want.downloaded, azuritetest.Table(costs))
		}
		if !strings.Contains(out, want.then) {
			t.Errorf("run %d: %s", i, out)
		}
		at := verified()
		if (at[0] != nil) != want.os || (at[1] != nil) != want.data {
			t.Errorf("run %d: the disks are proven at %v", i, at)
		}
		if i == 1 && at[0] != nil {
			first = *at[0]
		}
		if i == 3 && at[0] != nil && !at[0].Equal(first) {
			t.Errorf("the proof of a disk that is half done again is of %s, was of %s", at[0], first)
		}
		f.os[i] ^= 1
		f.data[i] ^= 1
		f.disks()
		f.run(0, "delta", "web01", "--now")
	}
	if text := f.run(0, "status", "web01", "--verbose"); strings.Contains(text, "never") {
		t.Errorf("status says %s", text)
	}
}
