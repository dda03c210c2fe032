package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"sitrep/internal/replica/pageblob/azuritetest"
)

// storeHost is a host of one program: a file for each VM holds its power, and another the address of its disk.
const storeHost = `#!/bin/sh
vms="${0%/*}/vms"
mkdir -p "$vms"
case "$SITREP_OPERATION" in
state) cat "$vms/$1" 2>/dev/null || echo absent ;;
create) echo "$SITREP_DISK_OS" >"$vms/$1.disk" && echo off >"$vms/$1" ;;
start) echo running >"$vms/$1" ;;
stop) echo off >"$vms/$1" ;;
delete) rm "$vms/$1" ;;
esac
`

// sniper kills a process at one of the requests that it makes of the store, before it is passed on or after it was done.
type sniper struct {
	mu       sync.Mutex
	victim   *exec.Cmd
	left     int
	answered bool
}

func (s *sniper) watch(_ *http.Request, answered bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.victim == nil || answered != s.answered {
		return
	}
	if s.left--; s.left == 0 {
		_ = s.victim.Process.Kill() // it may have ended
	}
}

func (s *sniper) aim(c *exec.Cmd, left int, answered bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.victim, s.left, s.answered = c, left, answered
}

// storeRig is a site whose VMs are made of disks inside a storage account.
type storeRig struct {
	*rig
	sniper *sniper
	rnd    *rand.Rand
	blobs  *container.Client
	kills  int
}

func newStoreRig(t *testing.T) *storeRig {
	server := new(azuritetest.Pool).Server(t)
	r := &storeRig{rig: &rig{T: t, dir: t.TempDir()}, sniper: &sniper{}, rnd: random(t)}
	front, _ := server.Proxy(t, r.sniper.watch)
	t.Setenv("SITREP_E2E_AZURE", front)
	name := azuritetest.Container(t)
	var err error
	r.blobs, err = container.NewClientFromConnectionString(server.ConnectionString(), name, nil)
	check(t, err)
	script := "{create: host.sh, start: host.sh, stop: host.sh, state: host.sh, delete: host.sh}"
	check(t, os.WriteFile(r.path("host.sh"), []byte(storeHost), 0o700))
	check(t, os.WriteFile(r.path("site.yaml"), []byte(`vault: e2e
store: {azure: {connection_string_env: SITREP_E2E_AZURE, container: `+name+`}}
policies: [{name: gold}]
recovery: {host: dr, hypervisor: script, disks: store, script: `+script+`}
vmm: {clouds: [{name: c, policy: gold, hosts: [{name: h, hypervisor: none, vms: [{name: web01, generation: 1, os: linux, cpus: 1, memory: 1GiB, disks: [{name: os, path: os.raw}]}]}]}]}
`), 0o600))
	return r
}

// insist runs a command until it comes to its end, and kills it before (SITREP_LONG: a few times). done says whether a run that was killed had
// done everything: then the next one may be refused.
func (r *storeRig) insist(done func() bool, args ...string) {
	r.Helper()
	for range times(1, 12, 1) {
		n, answered := 1+r.rnd.IntN(50), r.rnd.IntN(2) == 0
		var out, errs bytes.Buffer
		c := r.command(args...)
		c.Stdout, c.Stderr = &out, &errs
		check(r.T, c.Start())
		r.sniper.aim(c, n, answered)
		o := r.wait(c, &out, &errs)
		r.sniper.aim(nil, 0, false)
		switch {
		case o.code >= 0 && done():
			return
		case o.code >= 0:
			r.Fatalf("it was not killed, and not done (%+v): %v", r.status(), o)
		}
		r.kills++
		if done() {
			return
		}
	}
	if o := r.run(args...); o.code != 0 || !done() {
		r.Fatalf("done: %v: %v", done(), o)
	}
}

// vmStatus is what the tests want to know of a VM.
type vmStatus struct {
	State          string
	Failover, Test *failoverStatus
}

type failoverStatus struct {
	Point    string
	Finished string
}

func (r *storeRig) status() (s vmStatus) {
	r.Helper()
	var o struct {
		VMs []struct {
			State    string
			Failover *failoverStatus
			Test     *failoverStatus `json:"test_failover"`
		}
	}
	check(r.T, json.Unmarshal([]byte(r.ok("status", "web01", "--json").stdout), &o))
	return vmStatus(o.VMs[0])
}

func (r *storeRig) state(want string) func() bool {
	return func() bool { r.Helper(); return r.status().State == want }
}

// from says whether the VM runs from a point.
func (r *storeRig) from(point string) func() bool {
	return func() bool {
		r.Helper()
		f := r.status().Failover
		return f != nil && f.Finished != "" && f.Point == point
	}
}

// testing says whether there is a complete test, or none at all.
func (r *storeRig) testing(want bool) func() bool {
	return func() bool {
		r.Helper()
		t := r.status().Test
		return want == (t != nil) && (t == nil || t.Finished != "")
	}
}

// points lists the IDs of the recovery points.
func (r *storeRig) points() (ids []string) {
	r.Helper()
	var list []struct{ ID string }
	check(r.T, json.Unmarshal(r.vm("points", "web01").Points, &list))
	for _, p := range list {
		ids = append(ids, p.ID)
	}
	return ids
}

func (r *storeRig) power(vm string) string {
	r.Helper()
	data, err := os.ReadFile(r.path("vms", vm))
	if os.IsNotExist(err) {
		return "absent"
	}
	check(r.T, err)
	return strings.TrimSpace(string(data))
}

// disk is the blob that a VM was made of, and what it holds.
func (r *storeRig) disk(vm string, size int) (name string, data []byte) {
	r.Helper()
	where, err := os.ReadFile(r.path("vms", vm+".disk"))
	check(r.T, err)
	_, name, _ = strings.Cut(strings.TrimSpace(string(where)), "/web01/")
	name = "web01/" + name
	data = make([]byte, size)
	_, err = r.blobs.NewBlobClient(name).DownloadBuffer(context.Background(), data, &blob.DownloadBufferOptions{Range: blob.HTTPRange{Count: int64(size)}})
	check(r.T, err)
	return name, data
}

// promoted says how many disks of VMs there are in the store.
func (r *storeRig) promoted() (n int) {
	r.Helper()
	prefix := "web01/promoted/"
	for pager := r.blobs.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: &prefix}); pager.More(); {
		page, err := pager.NextPage(context.Background())
		check(r.T, err)
		n += len(page.Segment.BlobItems)
	}
	return n
}

// made proves that a VM runs from its own disk, of these bytes, and that there is no other disk.
func (r *storeRig) made(vm string, want []byte) {
	r.Helper()
	name, data := r.disk(vm, len(want))
	if p, n := r.power(vm), r.promoted(); p != "running" || n != 1 || !bytes.Equal(data, want) {
		r.Fatalf("VM %s is %s; of %d disks in the store it has %s, which is as it should be: %v", vm, p, n, name, bytes.Equal(data, want))
	}
}

func (r *storeRig) nothing(vm string) {
	r.Helper()
	if p, n := r.power(vm), r.promoted(); p != "absent" || n != 0 {
		r.Fatalf("VM %s is %s, and there are %d disks in the store", vm, p, n)
	}
}

// TestKillDisksInStore kills the program at requests that it makes of the store, in each command of the life of a failover whose disks
// never leave the account, and does what an operator does: the same again.
func TestKillDisksInStore(t *testing.T) {
	r := newStoreRig(t)
	disk := noise(r.rnd, 3<<20+512)
	clear(disk[1<<20 : 2<<20])
	save := func() { check(t, os.WriteFile(r.path("os.raw"), disk, 0o600)) }
	save()
	r.ok("protect", "web01")
	first := bytes.Clone(disk)
	copy(disk[300<<10:], noise(r.rnd, 200<<10))
	save()
	r.ok("delta", "web01", "--now")

	points := r.points()
	r.insist(r.testing(true), "failover", "test", "web01")
	r.made("web01-test", disk)
	r.insist(r.testing(false), "failover", "cleanup", "web01")
	r.nothing("web01-test")
	r.insist(r.from(points[0]), "failover", "unplanned", "web01", "--point", points[0])
	r.made("web01", first)
	r.insist(r.from(points[1]), "failover", "unplanned", "web01", "--point", points[1])
	r.made("web01", disk)
	r.insist(r.state("replicating"), "failover", "undo", "web01")
	r.nothing("web01")
	r.insist(r.from(points[1]), "failover", "unplanned", "web01", "--no-shutdown")
	r.made("web01", disk)

	name, _ := r.disk("web01", len(disk)) // what the VM writes
	copy(disk[1<<20:], noise(r.rnd, 100<<10))
	_, err := r.blobs.NewPageBlobClient(name).UploadPages(context.Background(), streaming.NopCloser(bytes.NewReader(disk[1<<20:][:100<<10])),
		blob.HTTPRange{Offset: 1 << 20, Count: 100 << 10}, nil)
	check(t, err)
	r.insist(r.state("failover-committed"), "failover", "commit", "web01")
	r.insist(r.state("failback-complete"), "failback", "web01")
	home, err := os.ReadFile(r.path("os.raw"))
	check(t, err)
	if !bytes.Equal(home, disk) {
		t.Fatal("what came home is another disk")
	}
	r.insist(r.state("replicating"), "failover", "commit", "web01")
	r.nothing("web01")
	r.ok("delta", "web01", "--now")
	r.ok("verify", "web01", "--against-source")
	t.Logf("%d kills", r.kills)
	if r.kills == 0 {
		t.Error("nothing was killed: the test has tested nothing")
	}
}
