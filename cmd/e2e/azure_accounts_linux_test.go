package e2e_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"sitrep/internal/replica/pageblob/azuritetest"
)

// TestPremiumAccount: an account for premium page blobs has no block blobs, so ledger, logs and lock are in a second account; check
// wants a policy that its snapshots allow. Both accounts are really used, also by another machine, which recovers the VM with
// nothing but the site file.
func TestPremiumAccount(t *testing.T) {
	r := newTokenRig(t, "premiumpages", "standardlogs")
	r.refused(3, "prerequisite", []string{"takes a recovery point every 5m0s, and a premium account one in 10 minutes"}, "protect", "web01")
	r.change("{name: gold, ", "{name: gold, copy_frequency: 15m, recovery_points: 101, ")
	r.refused(3, "prerequisite", []string{"keeps 101 recovery points, and a premium account at most 100"}, "protect", "web01")
	r.change("recovery_points: 101", "recovery_points: 100")
	r.scripts()
	r.ok("check", "web01")
	r.ok("protect", "web01")
	r.write(2<<20, 100<<10)
	r.ok("delta", "web01", "--now")
	r.ok("verify", "web01", "--against-source")

	pages, logs := r.blobs("premiumpages"), r.blobs("standardlogs")
	if want := "PageBlob web01/os.sums, PageBlob web01/os.vhd"; pages != want {
		t.Errorf("the premium account has %q, want %q", pages, want)
	}
	if want := "BlockBlob sitrep-store.json, BlockBlob web01/ledger.json, BlockBlob web01/lock"; logs != want {
		t.Errorf("the second account has %q, want %q", logs, want)
	}
	latest := bytes.Clone(r.disk)
	r.write(0, 4096) // what is not replicated is lost with the site

	there := &rig{T: t, dir: t.TempDir()}
	for _, name := range []string{"site.yaml", "dr.sh"} {
		data, err := os.ReadFile(r.path(name))
		check(t, err)
		check(t, os.WriteFile(there.path(name), data, 0o700))
	}
	there.ok("failover", "unplanned", "web01", "--no-shutdown")
	got, err := os.ReadFile(there.path("recovered", "web01", "os.vhd"))
	check(t, err)
	if len(got) < len(latest) || !bytes.Equal(got[:len(latest)], latest) {
		t.Error("the recovered disk is not what was replicated last")
	}
	r.refused(6, "fenced", []string{"web01"}, "delta", "web01", "--now")
	r.noSecrets()
}

// change changes the site file.
func (r *tokenRig) change(from, to string) {
	r.Helper()
	data, err := os.ReadFile(r.path("site.yaml"))
	check(r.T, err)
	if !bytes.Contains(data, []byte(from)) {
		r.Fatalf("there is no %q in the site file", from)
	}
	check(r.T, os.WriteFile(r.path("site.yaml"), bytes.Replace(data, []byte(from), []byte(to), 1), 0o600))
}

// scripts gives the site a recovery host that is a script.
func (r *tokenRig) scripts() {
	r.Helper()
	check(r.T, os.WriteFile(r.path("dr.sh"), []byte(`#!/bin/sh
cd "$(dirname "$0")" || exit 1
case "$SITREP_OPERATION" in
state) cat "power.$1" 2>/dev/null || echo absent ;;
create) cat >/dev/null; echo off >"power.$1" ;;
start) echo running >"power.$1" ;;
stop) echo off >"power.$1" ;;
delete) rm -f "power.$1" ;;
esac
`), 0o700))
	r.change("vmm:", `networks: [{name: lan}]
recovery:
  host: dr
  hypervisor: script
  script: {create: ./dr.sh, start: ./dr.sh, stop: ./dr.sh, state: ./dr.sh, delete: ./dr.sh}
  networks: [{name: dr-lan, attach: user, subnets: [{name: lan, cidr: 10.1.0.0/24}]}]
network_mapping: [{from: lan, to: dr-lan}]
vmm:`)
	r.change("memory: 1GiB,", "memory: 1GiB, nics: [{network: lan}],")
}

// blobs lists the container in an account, without snapshots, as types and names.
func (r *tokenRig) blobs(account string) string {
	r.Helper()
	pem, err := os.ReadFile(r.cert)
	check(r.T, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	r.Cleanup(tr.CloseIdleConnections)
	cred, err := container.NewSharedKeyCredential(account, azuritetest.Key)
	check(r.T, err)
	c, err := container.NewClientWithSharedKeyCredential(r.server.AccountURL(account)+"/"+r.container, cred,
		&container.ClientOptions{ClientOptions: azcore.ClientOptions{Transport: &http.Client{Transport: tr}}})
	check(r.T, err)
	var out []string
	pager := c.NewListBlobsFlatPager(nil)
	for pager.More() {
		page, err := pager.NextPage(r.Context())
		check(r.T, err)
		for _, b := range page.Segment.BlobItems {
			kind := blob.BlobType("")
			if b.Properties.BlobType != nil {
				kind = *b.Properties.BlobType
			}
			out = append(out, string(kind)+" "+*b.Name)
		}
	}
	return strings.Join(out, ", ")
}
