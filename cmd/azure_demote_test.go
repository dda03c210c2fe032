//go:build !windows

package cmd_test

import (
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
)

// scripted is a recovery host of hostScript that makes its VMs of disks in the store.
const scripted = "hypervisor: script, disks: store, script: {create: host.sh, start: host.sh, stop: host.sh, state: host.sh, delete: host.sh}"

// stranger puts a page blob of somebody else into the container.
func (s *diskSite) stranger(name string) {
	s.t.Helper()
	c := s.blobs.NewPageBlobClient("web01/" + name)
	if _, err := c.Create(s.t.Context(), 1<<20, nil); err != nil {
		s.t.Fatal(err)
	}
	_, err := c.UploadPages(s.t.Context(), streaming.NopCloser(strings.NewReader(strings.Repeat("x", 512))), blob.HTTPRange{Count: 512}, nil)
	if err != nil {
		s.t.Fatal(err)
	}
}

// refused runs a command that must exit with the code, and say each of the words on stderr.
func (s *diskSite) refused(code int, words []string, args ...string) {
	s.t.Helper()
	got, _, errs := s.result(args...)
	if got != code {
		s.t.Errorf("%v: exit code %d, want %d\n%s", args, got, code, errs)
	}
	for _, w := range words {
		if !strings.Contains(errs, w) {
			s.t.Errorf("%v does not say %q:\n%s", args, w, errs)
		}
	}
}

// TestAzureDemote: --demote deletes what --promote has made, and neither what a VM runs from nor what somebody else has put there.
func TestAzureDemote(t *testing.T) {
	s := newDiskSite(t, scripted)
	disk := randomBytes(1, 1<<20)
	s.write("os.raw", disk)
	s.run(0, "protect", "web01")
	point := s.points()[0]

	kept := func(n int, next string) {
		t.Helper()
		names := s.promoted()
		if len(names) != n {
			t.Fatalf("there is %q", names)
		}
		id, _ := strings.CutSuffix(names[0], "-os.vhd")
		id = strings.TrimPrefix(id, "web01/promoted/")
		s.refused(6, []string{id, next}, "points", "web01", "--demote", id)
		s.refused(6, []string{next}, "points", "web01", "--demote", id, "--dry-run")
		if got := s.promoted(); len(got) != n {
			t.Fatalf("after %s: %q", id, got)
		}
	}
	s.run(0, "failover", "test", "web01")
	kept(1, "sitrep failover cleanup web01")
	s.run(0, "failover", "cleanup", "web01")
	s.run(0, "failover", "unplanned", "web01")
	kept(1, "failover undo")
	s.run(0, "failover", "commit", "web01")
	kept(1, "failback")
	s.guest(s.blobAt(s.vm("web01").Disks[0].Path), disk, 0, randomBytes(2, 512))
	s.run(0, "failback", "web01")
	kept(1, "failover commit")
	s.run(0, "failover", "commit", "web01")

	for range 2 { // it is what the point holds, also when it was there already
		if out := s.run(0, "points", "web01", "--promote", point); strings.Contains(out, "there already") {
			t.Errorf("nothing was written, and it says\n%s", out)
		}
	}
	promoted := s.blobs.NewPageBlobClient("web01/promoted/" + point + "-os.vhd")
	s.guest(promoted, disk, 4096, randomBytes(3, 512))
	wantWords(t, s.run(0, "points", "web01", "--promote", point), "there already", "has written to it")
	wantWords(t, s.run(0, "points", "web01", "--promote", point, "--json"), `"written_to": "yes"`)
	s.run(0, "points", "web01", "--demote", point)
	if out := s.run(0, "points", "web01", "--promote", point); strings.Contains(out, "there already") || s.holds(promoted, disk) {
		t.Errorf("made anew it is what a machine has written, or says\n%s", out)
	}

	s.stranger("promoted/own-os.vhd")
	s.refused(6, []string{"web01/promoted/own-os.vhd", "somebody else's"}, "points", "web01", "--demote", "own")
	s.stranger("promoted/sub/own.vhd")
	s.stranger("promoted/notes")
	s.run(0, "points", "web01", "--promote", point)
	s.refused(6, []string{"by hand", "web01/promoted/own-os.vhd", "web01/promoted/sub/own.vhd", "web01/promoted/notes"}, "unprotect", "web01")
	for _, name := range []string{"own-os.vhd", "sub/own.vhd", "notes"} {
		if _, err := s.blobs.NewBlobClient("web01/promoted/"+name).Delete(t.Context(), nil); err != nil { // which had to be there
			t.Fatal(err)
		}
	}
	s.refused(6, []string{"--demote ID"}, "unprotect", "web01")
	s.run(0, "points", "web01", "--demote", point)
	s.run(0, "unprotect", "web01")
}
