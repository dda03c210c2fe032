package cmd_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"sitrep/internal/replica/pageblob/azuritetest"
)

// loseSnapshots deletes snapshots of a blob, the oldest first, as a rule of the account would. It returns how many there were.
func (f *fronted) loseSnapshots(name string, most int) (found int) {
	f.t.Helper()
	prefix := "web01/" + name
	pager := f.blobs.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: &prefix, Include: container.ListBlobsInclude{Snapshots: true}})
	for pager.More() {
		page, err := pager.NextPage(f.t.Context())
		if err != nil {
			f.t.Fatal(err)
		}
		for _, b := range page.Segment.BlobItems {
			if b.Snapshot == nil || found == most {
				continue
			}
			s, err := f.blobs.NewBlobClient(*b.Name).WithSnapshot(*b.Snapshot)
			if err != nil {
				f.t.Fatal(err)
			}
			if _, err := s.Delete(f.t.Context(), nil); err != nil {
				f.t.Fatal(err)
			}
			found++
		}
	}
	return found
}

// lost is the IDs of the points that a command says are lost.
func (f *fronted) lost() (ids []string) {
	f.t.Helper()
	var got struct {
		VMs []struct {
			Points []struct {
				ID   string
				Lost bool
			}
		}
	}
	if err := json.Unmarshal([]byte(f.run(0, "points", "web01", "--json")), &got); err != nil {
		f.t.Fatal(err)
	}
	for _, p := range got.VMs[0].Points {
		if p.Lost {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

// TestAzureLostPoints deletes snapshots behind the program's back: the list, verify and status say which points are lost, a delta
// takes them out of the ledger, and no failover begins with one.
func TestAzureLostPoints(t *testing.T) {
	f := newFronted(t, ", recovery_points: 4")
	f.recovery()
	f.run(0, "protect", "web01")
	was := map[string][]byte{}
	change := func(seed uint64) {
		copy(f.os[2<<20:], randomBytes(seed, 8192))
		f.disks()
		f.run(0, "delta", "web01", "--now")
		ids := f.points()
		was[ids[len(ids)-1]] = bytes.Clone(f.os)
	}
	for i := range 3 {
		change(uint64(20 + i))
	}
	ids := f.points()
	if got := f.lost(); len(got) != 0 {
		t.Fatalf("lost before anything was deleted: %v", got)
	}
	if f.loseSnapshots("os.vhd", 1) != 1 {
		t.Fatal("there was no snapshot to delete")
	}
	costs, out := f.counted(0, "points", "web01")
	if !strings.Contains(out, "LOST") || strings.Count(out, " lost") != 1 || !slices.Equal(f.lost(), ids[:1]) {
		t.Errorf("points does not say which one is lost:\n%s", out)
	}
	if n := cost(costs, "list").Requests; n > 2 {
		t.Errorf("the list costs %d lists:\n%s", n, azuritetest.Table(costs))
	}
	f.run(4, "failover", "test", "web01", "--point", ids[0])
	f.run(4, "failover", "unplanned", "web01", "--point", ids[0], "--no-shutdown")
	if state, _ := f.state(); state != "replicating" {
		t.Errorf("a failover that was refused leaves the VM %s", state)
	}
	f.run(0, "delta", "web01", "--now") // of nothing
	if out := f.run(0, "verify", "web01", "--json"); !strings.Contains(out, ids[0]) || strings.Contains(out, ids[1]) {
		t.Errorf("verify does not say which one is lost: %s", out)
	}
	if state, reasons := f.state(); state != "replicating" || !strings.Contains(reasons, "a recovery point is lost") || f.health() != "Warning" {
		t.Errorf("the VM is %s, %s: %s", state, f.health(), reasons)
	}
	f.run(4, "failover", "test", "web01", "--point", ids[0])
	f.run(4, "points", "web01", "--export", ids[0], "--to", t.TempDir())
	for _, id := range f.points()[1:] {
		if got := f.exported(id, len(f.os)); !bytes.Equal(got, was[id]) && was[id] != nil {
			t.Errorf("point %s is not what it was", id)
		}
	}

	// All that a rule can find, and a delta that is the first to see it.
	if f.loseSnapshots("os.sums", 100) < 2 {
		t.Fatal("there were no snapshots to delete")
	}
	change(30)
	got := f.lost()
	if !slices.Equal(got, ids[:len(ids)-1]) {
		t.Errorf("lost are %v of %v", got, ids)
	}
	if f.health() != "Warning" {
		t.Errorf("after the delta the health is %s", f.health())
	}
	for i := range 4 { // the retention would have dropped them by now
		change(uint64(31 + i))
	}
	if got := f.lost(); len(got) != 0 || f.health() != "Normal" {
		t.Errorf("lost are still %v, the health is %s", got, f.health())
	}
}

func (f *fronted) health() string {
	f.t.Helper()
	var got struct{ VMs []struct{ Health string } }
	if err := json.Unmarshal([]byte(f.run(0, "status", "web01", "--json")), &got); err != nil {
		f.t.Fatal(err)
	}
	return got.VMs[0].Health
}
