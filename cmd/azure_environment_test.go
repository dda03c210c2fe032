//go:build !windows

package cmd_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sitrep/internal/replica/pageblob/azuritetest"
)

// watchful is a host, a hook, a boot check and an action of a plan at once: it keeps all of its environment.
const watchful = `#!/bin/sh
what="${SITREP_OPERATION:-${SITREP_TYPE:-boot}}"
[ -z "$SITREP_PLAN" ] || what="plan $SITREP_PLAN"
{ echo "== $what"; env; } >>"${0%/*}/seen.log"
vms="${0%/*}/vms"
mkdir -p "$vms"
case "$SITREP_OPERATION" in
state) cat "$vms/$1" 2>/dev/null || echo absent ;;
create) echo off >"$vms/$1" ;;
start) echo running >"$vms/$1" ;;
stop) echo off >"$vms/$1" ;;
delete) rm "$vms/$1" ;;
esac
`

// TestAzureSecretIsNotForPrograms: no program that sitrep starts finds the store's secret in its environment, and each finds
// what else was there.
func TestAzureSecretIsNotForPrograms(t *testing.T) {
	var pool azuritetest.Pool // the server ends with this process
	server := pool.Server(t)
	t.Setenv("SITREP_TEST_AZURE", server.ConnectionString())
	t.Setenv("AZURE_CLIENT_ID", "the-scripts-own")
	s := newAzureSite(t, azuritetest.Container(t), ", app_consistent_every: 1h")
	host := "hypervisor: script, script: {create: it.sh, start: it.sh, stop: it.sh, state: it.sh, delete: it.sh, freeze: it.sh, thaw: it.sh}"
	site := strings.Replace(string(s.read("site.yaml")), "hypervisor: none", host, 1)
	site = strings.Replace(site, "{name: web01,", "{name: web01, boot_check: {command: it.sh}, "+
		"hooks: {freeze: it.sh, thaw: it.sh, failover: it.sh, cleanup: it.sh},", 1)
	s.write("site.yaml", []byte(site+"recovery: {host: dr, "+host+"}\nrecovery_plans: [{name: shop, groups: [{vms: [web01], post: [{script: it.sh}]}]}]\n"))
	s.write("it.sh", []byte(watchful))
	if err := os.Chmod(filepath.Join(s.dir, "it.sh"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(s.dir, "vms"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.write("vms/web01", []byte("running\n"))
	s.write("os.raw", randomBytes(1, 1<<20))
	s.run(0, "protect", "web01")
	s.run(0, "delta", "web01", "--now")
	s.run(0, "failover", "test", "--plan", "shop")
	s.run(0, "failover", "cleanup", "web01")

	seen := string(s.read("seen.log"))
	for _, want := range []string{"create", "start", "stop", "state", "delete", "freeze", "thaw", "plan shop", "boot", "test"} {
		if !strings.Contains(seen, "== "+want+"\n") {
			t.Errorf("nothing was run for %s", want)
		}
	}
	if n, own := strings.Count(seen, "== "), strings.Count(seen, "AZURE_CLIENT_ID=the-scripts-own\n"); own != n {
		t.Errorf("%d of %d programs have found a variable of their own", own, n)
	}
	if strings.Contains(seen, "SITREP_TEST_AZURE") || strings.Contains(seen, azuritetest.Key[:20]) {
		t.Error("a program was given the store's secret")
	}
	if strings.Contains(s.all.String(), azuritetest.Key[:20]) {
		t.Error("the account's key was written")
	}
	err := filepath.WalkDir(s.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if strings.Contains(string(data), azuritetest.Key[:20]) {
			t.Errorf("the account's key is in %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
