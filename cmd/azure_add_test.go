package cmd_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"
)

// TestAzureAddDisk adds a disk to a VM whose logs another machine applies, and then reads its points from the account's secondary.
func TestAzureAddDisk(t *testing.T) {
	container := azureContainer(t)
	s := newAzureSite(t, container, ", apply: elsewhere")
	disk, more := randomBytes(1, 1<<20), randomBytes(2, 3<<20)
	s.write("os.raw", disk)
	s.run(0, "protect", "web01")
	one := string(s.read("site.yaml"))
	two := strings.Replace(one, "{name: os, path: os.raw}", "{name: os, path: os.raw, os: true}, {name: more, path: more.raw}", 1)
	s.write("site.yaml", []byte(two))
	s.write("more.raw", more)
	change := func(n uint64) {
		copy(disk[256<<10:], randomBytes(n, 64<<10))
		s.write("os.raw", disk)
	}
	change(3)
	s.run(0, "delta", "web01", "--now")
	change(4)
	if out := s.run(0, "protect", "web01"); !strings.Contains(out, "it joins the VM with the delta behind the change logs that wait") {
		t.Errorf("logs wait for another machine, and protect says: %s", out)
	}
	other := newAzureSite(t, container, ", apply: elsewhere")
	other.write("site.yaml", []byte(two))
	other.run(0, "apply", "web01")
	change(5)
	copy(more[1<<20:], randomBytes(6, 64<<10))
	s.write("more.raw", more)
	s.run(0, "delta", "web01", "--now")
	other.run(0, "apply", "web01")
	ids := s.points()
	last := ids[len(ids)-1]
	if !bytes.Equal(s.exported(last, len(disk)), disk) || !bytes.Equal(s.exportedDisk(last, "more", len(more)), more) {
		t.Error("the newest point is not the source")
	}
	s.run(0, "points", "web01", "--export", ids[0], "--to", filepath.Join(s.dir, "first"))
	if _, err := os.Stat(filepath.Join(s.dir, "first", "web01.more.vhd")); err == nil {
		t.Error("the first point has a disk that was added later")
	}
	s.run(0, "verify", "web01")

	account := os.Getenv("SITREP_TEST_AZURE")
	c, err := service.NewClientFromConnectionString(account, nil)
	if err != nil {
		t.Fatal(err)
	}
	address, err := c.GetSASURL(sas.AccountResourceTypes{Service: true, Container: true, Object: true}, sas.AccountPermissions{Read: true, List: true}, time.Now().Add(time.Hour), nil)
	if err != nil {
		t.Fatal(err)
	}
	address, query, _ := strings.Cut(address, "?")
	t.Setenv("SITREP_TEST_SAS", query)
	away := newAzureSite(t, container, "")
	away.write("site.yaml", []byte(strings.Replace(two, "connection_string_env: SITREP_TEST_AZURE",
		`account_url: "`+strings.TrimSuffix(address, "/")+`-secondary", sas_env: SITREP_TEST_SAS`, 1)))
	away.run(0, "status", "web01")
	if !bytes.Equal(away.exportedDisk(last, "more", len(more)), more) {
		t.Error("the secondary has another point")
	}
	if _, out, _ := away.result("check", "web01"); !strings.Contains(out, "read-only copy") || !strings.Contains(out, "devstoreaccount1 in the site file") {
		t.Errorf("check of a secondary says: %s", out)
	}
	if code, _, errs := away.result("failover", "unplanned", "web01"); code == 0 || !strings.Contains(errs, "secondary") {
		t.Errorf("a failover from a secondary: exit code %d, %s", code, errs)
	}
}
