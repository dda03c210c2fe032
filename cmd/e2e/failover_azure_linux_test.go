package e2e_test

import (
	"context"
	"encoding/json"
	"os"
	"testing"

	"sitrep/internal/host"
	"sitrep/internal/host/guesttest"
	"sitrep/internal/replica/pageblob/azuritetest"
)

// TestSiteLostAzure: the replica is in a storage account. Another machine, with nothing of the old site but its site file, makes
// the VM from what it downloads, of the latest point and of an older one; the old site is refused by the service.
func TestSiteLostAzure(t *testing.T) {
	server := new(azuritetest.Pool).Server(t)
	t.Setenv("SITREP_E2E_AZURE", server.ConnectionString())
	rnd := random(t)
	v := &bootVM{name: "web01", format: "vhdx", files: someFiles(rnd)}
	r := newBootRig(t, "vhdx", v)
	r.store = "{azure: {connection_string_env: SITREP_E2E_AZURE, container: " + azuritetest.Container(t) + "}}"
	r.writeBootSite()
	r.make(v, guesttest.Write)
	ctx := context.Background()
	r.ok("protect", "web01")
	check(t, r.source.Start(ctx, "web01"))
	r.said(r.source, "web01", "@@ DONE")
	check(t, r.source.Stop(ctx, "web01", 0))
	newest := guesttest.Files(r.console(r.source, "web01"))
	guesttest.SetMode(t, v.osPath(r), "vhdx", guesttest.Serve)
	r.ok("delta", "web01", "--now")

	there := r.path("elsewhere")
	r.ok("--state", there, "failover", "unplanned", "web01", "--no-shutdown")
	files := guesttest.Files(r.said(r.recovery, "web01", "@@ UP"))
	for path, sum := range newest {
		if files[path] != sum {
			t.Fatalf("file %s is not what it was", path)
		}
	}
	r.refused(6, "fenced", []string{"web01"}, "delta", "web01", "--now") // the old site
	if long() {
		r.ok("--state", there, "failover", "unplanned", "web01", "--point", r.listed(there, "web01")[0])
		files = guesttest.Files(r.said(r.recovery, "web01", "@@ UP"))
		if _, later := files["new-0"]; later || files["srv/blob"] != guesttest.Sum(v.files["srv/blob"]) {
			t.Fatalf("the older point shows %v", files)
		}
	}
	r.ok("--state", there, "failover", "undo", "web01")
	if p := r.power(r.recovery, "web01"); p != host.Absent {
		t.Errorf("the recovered VM is %s after undo", p)
	}
	if _, err := os.Stat(r.path("recovered", "web01")); !os.IsNotExist(err) {
		t.Errorf("its folder is left: %v", err)
	}
	r.ok("delta", "web01", "--now")
	r.ok("verify", "web01")
}

// listed is the IDs of the recovery points, as another machine lists them.
func (r *bootRig) listed(state, vm string) (ids []string) {
	r.Helper()
	var list []struct{ ID string }
	check(r.T, json.Unmarshal(r.vm("--state", state, "points", vm).Points, &list))
	for _, p := range list {
		ids = append(ids, p.ID)
	}
	return ids
}
