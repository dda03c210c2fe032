package cmd_test

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
)

// TestAzureIdentityGone: a rule of the account deletes, or archives, the blob that names the store. It is told from a container that is
// not there, and written back; a machine that knows nothing can fail over then.
func TestAzureIdentityGone(t *testing.T) {
	f := newFronted(t, "")
	f.recovery()
	f.run(0, "protect", "web01")
	identity := f.blobs.NewBlobClient("sitrep-store.json")
	for _, lose := range []func() error{
		func() error { _, err := identity.Delete(t.Context(), nil); return err },
		func() error { _, err := identity.SetTier(t.Context(), blob.AccessTierArchive, nil); return err },
	} {
		if err := lose(); err != nil {
			t.Fatal(err)
		}
		code, _, errs := f.result("delta", "web01", "--now")
		if code != 1 {
			t.Fatalf("exit code %d\n%s", code, errs)
		}
		wantWords(t, errs, "holds replicas (web01)", "store repair")
		f.run(0, "store", "repair")
		f.run(0, "delta", "web01", "--now")
	}
	if _, err := identity.Delete(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	second := f.machine(f.blobs.URL()[strings.LastIndex(f.blobs.URL(), "/")+1:])
	second.write("site.yaml", bytes.ReplaceAll(f.read("site.yaml"), []byte("./dr.sh"), []byte(filepath.Join(f.dir, "dr.sh"))))
	if code, _, errs := second.result("failover", "unplanned", "web01"); code != 1 || !strings.Contains(errs, "store repair") {
		t.Fatalf("exit code %d\n%s", code, errs)
	}
	wantWords(t, second.run(0, "store", "repair"), "1 of 1 ledger")
	second.run(0, "failover", "unplanned", "web01")
}
