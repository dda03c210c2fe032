package cmd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sitrep/internal/replica/pageblob/azuritetest"
)

const azureCosts = "testdata/azure-costs.txt"

// TestAzureCosts keeps what each command costs in requests and bytes, of a VM with a disk of 9 MiB, of which 6 are not zero, and one
// of 5 MiB, of which 2 are not: whoever changes it sees it. SITREP_UPDATE=1 writes the table anew.
func TestAzureCosts(t *testing.T) {
	f := newFronted(t, "")
	f.recovery()
	var table strings.Builder
	step := func(what string, args ...string) {
		t.Helper()
		f.disks()
		costs, _ := f.counted(0, args...)
		fmt.Fprintf(&table, "%s: %s\n\t%s\n", args[0], what, strings.ReplaceAll(azuritetest.Table(costs), "\n", "\n\t"))
	}
	delta := func(what string) { t.Helper(); step(what, "delta", "web01", "--now") }
	const block = 64 << 10
	step("8 MiB of data", "protect", "web01")
	delta("nothing has changed")
	for i := range 5 {
		copy(f.os[(20+i*12)*block:], randomBytes(uint64(100+i), block))
	}
	delta("5 blocks of one disk, far from each other")
	copy(f.os[20*block:], randomBytes(110, 32*block))
	delta("32 neighbouring blocks of one disk: 2 MiB")
	for i := range 16 {
		copy(f.os[(24+2*i)*block:], randomBytes(uint64(120+i), block))
		copy(f.data[2*i*block:], randomBytes(uint64(140+i), 4096))
	}
	delta("16 blocks of each disk, each after a block that has not changed")
	clear(f.os[2<<20:][:3<<20])
	clear(f.data)
	delta("3 MiB of one disk and 2 MiB of the other are zeros now")
	copy(f.os[1<<20:], randomBytes(150, block))
	step("by sums, one block differs", "resync", "web01", "--now")
	step("by sums, nothing differs", "resync", "web01", "--now")
	step("by bytes, nothing differs: 3 MiB", "resync", "web01", "--now", "--deep")
	step("a look", "status", "web01")
	step("a look", "points", "web01")
	ids := f.points()
	step("the oldest is read as a whole: 8 MiB", "points", "web01", "--export", ids[0], "--to", t.TempDir())
	step("3 MiB", "verify", "web01")
	step("a budget that is over after the first disk", "verify", "web01", "--budget", "1ns")
	step("the oldest becomes disks", "points", "web01", "--promote", ids[0])
	step("they are removed", "points", "web01", "--demote", ids[0])
	step("test, of the oldest point, which is downloaded: 8 MiB", "failover", "test", "web01", "--point", ids[0])
	step("cleanup", "failover", "cleanup", "web01")
	step("everything goes", "unprotect", "web01")
	if os.Getenv("SITREP_UPDATE") != "" {
		if err := os.WriteFile(azureCosts, []byte(table.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(azureCosts)
	if err != nil || string(want) != table.String() {
		t.Errorf("commands cost something else than %s says (%v):\n%s", azureCosts, err, table.String())
	}
}

// recovery gives the site a recovery host that is scripts, for VMs that nobody starts.
func (f *fronted) recovery() {
	f.t.Helper()
	f.write("dr.sh", []byte(`#!/bin/sh
cd "$(dirname "$0")" || exit 1
case "$SITREP_OPERATION" in
state) cat "power.$1" 2>/dev/null || echo absent ;;
create) cat >/dev/null; echo off >"power.$1" ;;
start) echo running >"power.$1" ;;
stop) echo off >"power.$1" ;;
delete) rm -f "power.$1" ;;
esac
`))
	if err := os.Chmod(filepath.Join(f.dir, "dr.sh"), 0o700); err != nil {
		f.t.Fatal(err)
	}
	site := strings.Replace(string(f.read("site.yaml")), "vmm:", `networks: [{name: lan}]
recovery:
  host: dr
  hypervisor: script
  script: {create: ./dr.sh, start: ./dr.sh, stop: ./dr.sh, state: ./dr.sh, delete: ./dr.sh}
  networks: [{name: dr-lan, attach: user, subnets: [{name: lan, cidr: 10.1.0.0/24}]}]
network_mapping: [{from: lan, to: dr-lan}]
vmm:`, 1)
	f.write("site.yaml", []byte(strings.Replace(site, "memory: 1GiB,", "memory: 1GiB, nics: [{network: lan}],", 1)))
}
