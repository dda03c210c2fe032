//go:build !windows

package cmd_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	az "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"

	"sitrep/internal/host"
	"sitrep/internal/replica/pageblob/azuritetest"
)

// hostScript is a host of one program: a file for each VM holds its power, and another what create was told.
const hostScript = `#!/bin/sh
vms="${0%/*}/vms"
mkdir -p "$vms"
case "$SITREP_OPERATION" in
state) cat "$vms/$1" 2>/dev/null || echo absent ;;
create) env | grep ^SITREP_ | grep -v ^SITREP_TEST_AZURE >"$vms/$1.env" && cat >"$vms/$1.json" && echo off >"$vms/$1" ;;
start) echo running >"$vms/$1" ;;
stop) echo off >"$vms/$1" ;;
delete) rm "$vms/$1" ;;
esac
`

// diskSite is an azureSite whose VMs are made by hostScript of disks in the store.
type diskSite struct {
	*azureSite
	blobs *container.Client
}

func newDiskSite(t *testing.T, recovery string) *diskSite {
	var pool azuritetest.Pool // the server ends with this process
	server := pool.Server(t)
	front, copies := server.Proxy(t, nil)
	t.Setenv("SITREP_TEST_AZURE", front)
	name := azuritetest.Container(t)
	c, err := container.NewClientFromConnectionString(server.ConnectionString(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &diskSite{newAzureSite(t, name, ""), c}
	site, err := os.ReadFile(filepath.Join(s.dir, "site.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	s.write("site.yaml", append(site, []byte("recovery: {host: dr, "+recovery+"}\n")...))
	s.write("host.sh", []byte(hostScript))
	if err := os.Chmod(filepath.Join(s.dir, "host.sh"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if copies.Load() == 0 {
			t.Error("the service was not asked for a copy")
		}
	})
	return s
}

// vm is what the host was told of a VM.
func (s *diskSite) vm(name string) host.Definition {
	s.t.Helper()
	var r struct{ Definition host.Definition }
	data, err := os.ReadFile(filepath.Join(s.dir, "vms", name+".json"))
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	env, err := os.ReadFile(filepath.Join(s.dir, "vms", name+".env"))
	if err != nil || !strings.Contains(string(env), "SITREP_DISK_1_PATH="+r.Definition.Disks[0].Path+"\n") {
		s.t.Errorf("its environment, %v, has no path %s:\n%s", err, r.Definition.Disks[0].Path, env)
	}
	s.all.Write(append(env, data...))
	return r.Definition
}

func (s *diskSite) power(vm, want string) {
	s.t.Helper()
	got, err := os.ReadFile(filepath.Join(s.dir, "vms", vm))
	if os.IsNotExist(err) {
		got = []byte("absent")
	}
	if strings.TrimSpace(string(got)) != want {
		s.t.Errorf("VM %s is %s, want %s", vm, got, want)
	}
}

// blobAt is the page blob at an address that a host was told, which holds no more than what names it.
func (s *diskSite) blobAt(where string) *az.Client {
	s.t.Helper()
	name := where[strings.LastIndex(where, "/web01/")+1:]
	if !strings.HasPrefix(where, "http://127.0.0.1:") || strings.ContainsAny(where, "?@") || !strings.HasPrefix(name, "web01/promoted/") {
		s.t.Fatalf("the address is %s", where)
	}
	return s.blobs.NewPageBlobClient(name)
}

// holds says whether a page blob holds these guest bytes.
func (s *diskSite) holds(c *az.Client, want []byte) bool {
	s.t.Helper()
	got := make([]byte, len(want))
	if _, err := c.DownloadBuffer(s.t.Context(), got, &blob.DownloadBufferOptions{Range: blob.HTTPRange{Count: int64(len(want))}}); err != nil {
		s.t.Fatal(err)
	}
	return bytes.Equal(got, want)
}

// guest writes to a disk as a machine that runs from it.
func (s *diskSite) guest(c *az.Client, disk []byte, off int, data []byte) {
	s.t.Helper()
	_, err := c.UploadPages(s.t.Context(), streaming.NopCloser(bytes.NewReader(data)), blob.HTTPRange{Offset: int64(off), Count: int64(len(data))}, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	copy(disk[off:], data)
}

// promoted lists the disks in the store that machines run from.
func (s *diskSite) promoted() (names []string) {
	s.t.Helper()
	prefix := "web01/promoted/"
	for pager := s.blobs.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: &prefix}); pager.More(); {
		page, err := pager.NextPage(s.t.Context())
		if err != nil {
			s.t.Fatal(err)
		}
		for _, b := range page.Segment.BlobItems {
			names = append(names, *b.Name)
		}
	}
	return names
}

// TestAzureDisksInStore: tests and failovers of a VM whose disks are made inside the store, by an operator's own scripts, and
// the way home from there.
func TestAzureDisksInStore(t *testing.T) {
	s := newDiskSite(t, "hypervisor: script, disks: store, script: {create: host.sh, start: host.sh, stop: host.sh, state: host.sh, delete: host.sh}")
	disk := make([]byte, 5<<20+512) // not of whole MiB
	copy(disk[1<<20:], randomBytes(1, 600<<10))
	s.write("os.raw", disk)
	s.run(0, "check")
	s.run(0, "protect", "web01")
	first := bytes.Clone(disk)
	copy(disk[2<<20:], randomBytes(2, 200<<10))
	s.write("os.raw", disk)
	s.run(0, "delta", "web01", "--now")
	points := s.points()

	if out := s.run(0, "failover", "test", "web01", "--dry-run"); !strings.Contains(out, "copy 1 disk of point "+points[1]+" inside the store, and read them") {
		t.Errorf("the plan is\n%s", out)
	}
	last := ""
	for range 2 { // the second one does not get what the first one wrote
		s.run(0, "failover", "test", "web01")
		s.power("web01-test", "running")
		d := s.vm("web01-test").Disks[0]
		c := s.blobAt(d.Path)
		if d.Format != "vhd" || d.Path == last || !s.holds(c, disk) {
			t.Errorf("the test VM has %+v, or other bytes", d)
		}
		if out := s.run(0, "points", "web01"); !strings.Contains(out, "PROMOTED") || !strings.Contains(out, "test-") {
			t.Errorf("the points are\n%s", out)
		}
		s.guest(c, bytes.Clone(disk), 2<<20, randomBytes(3, 64<<10))
		if !bytes.Equal(s.exported(points[1], len(disk)), disk) {
			t.Error("what the test VM wrote is in the recovery point")
		}
		s.run(6, "failover", "planned", "web01")
		s.run(0, "failover", "cleanup", "web01")
		s.power("web01-test", "absent")
		if names := s.promoted(); len(names) > 0 {
			t.Errorf("after the clean-up there is %q", names)
		}
		last = d.Path
	}

	s.run(0, "failover", "unplanned", "web01", "--point", points[0])
	if !s.holds(s.blobAt(s.vm("web01").Disks[0].Path), first) {
		t.Error("the VM has another point")
	}
	s.run(0, "failover", "unplanned", "web01", "--point", points[1])
	if names := s.promoted(); len(names) != 1 {
		t.Errorf("after a change of the point there is %q", names)
	}
	s.run(0, "failover", "undo", "web01")
	s.power("web01", "absent")
	if names := s.promoted(); len(names) > 0 {
		t.Errorf("after the undo there is %q", names)
	}

	s.run(0, "failover", "unplanned", "web01")
	s.power("web01", "running")
	c := s.blobAt(s.vm("web01").Disks[0].Path)
	vm := bytes.Clone(disk)
	s.guest(c, vm, 3<<20, randomBytes(4, 128<<10))
	s.guest(c, vm, 5<<20, randomBytes(5, 512))
	s.run(6, "delta", "web01", "--now")
	s.run(0, "failover", "commit", "web01")
	s.run(6, "unprotect", "web01") // the VM's only disk would go with the replica
	s.run(0, "failback", "web01", "--dry-run")
	s.run(0, "failback", "web01")
	s.power("web01", "off")
	home, err := os.ReadFile(filepath.Join(s.dir, "os.raw"))
	if err != nil || !bytes.Equal(home, vm) {
		t.Errorf("home is a disk of %d bytes, or another one (%v)", len(home), err)
	}
	s.run(0, "failover", "commit", "web01")
	s.power("web01", "absent")
	if names := s.promoted(); len(names) > 0 {
		t.Errorf("after the way home there is %q", names)
	}
	s.run(0, "delta", "web01", "--now")
	s.run(0, "verify", "web01", "--against-source")
	s.run(0, "unprotect", "web01")
	if text := s.all.String(); strings.Contains(text, azuritetest.Key[:20]) || strings.Contains(text, "sig=") {
		t.Error("the account's key, or a signature, was written")
	}
	if _, err := os.Stat(filepath.Join(s.dir, "recovered")); err == nil {
		t.Error("there is a folder of recovered disks")
	}
}

// TestAzureDisksByHand: where people make the VMs, they are told where the disks are. Unverified, nothing of a copy is read.
func TestAzureDisksByHand(t *testing.T) {
	s := newDiskSite(t, "hypervisor: none, disks: store, verify: false")
	disk := randomBytes(7, 2<<20)
	s.write("os.raw", disk)
	s.run(0, "protect", "web01")
	if out := s.run(0, "failover", "test", "web01", "--dry-run"); strings.Contains(out, "to prove them") {
		t.Errorf("the plan is\n%s", out)
	}
	out := s.run(0, "failover", "test", "web01")
	_, where, _ := strings.Cut(out, "its disks are in ")
	where, _, _ = strings.Cut(where, "\n") // nobody starts it: no time is told
	names := s.promoted()
	if len(names) != 1 || !strings.HasPrefix(where, "http://") || !strings.HasSuffix(where, "/web01/promoted") || !s.holds(s.blobs.NewPageBlobClient(names[0]), disk) {
		t.Errorf("%q are in %q, or another disk", names, where)
	}
	s.run(0, "failover", "cleanup", "web01")
	if names := s.promoted(); len(names) > 0 {
		t.Errorf("after the clean-up there is %q", names)
	}
}
