package cmd_test

import (
	"bytes"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"

	"sitrep/internal/replica/pageblob/azuritetest"
)

// machine is the same site on another machine: with a memory of its own.
func (f *fronted) machine(container string) *azureSite {
	s := newAzureSite(f.t, container, "")
	s.write("site.yaml", f.read("site.yaml"))
	return s
}

// heldBy gives the lock of the replica to a run that nobody knows, and that is gone.
func (f *fronted) heldBy() {
	f.t.Helper()
	l, err := lease.NewBlobClient(f.blobs.NewBlobClient("web01/lock"), nil)
	if err == nil {
		_, err = l.AcquireLease(f.t.Context(), -1, nil)
	}
	if err != nil {
		f.t.Fatal(err)
	}
}

func wantWords(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not in\n%s", w, text)
		}
	}
}

// TestAzureUnlock: a run stops in the middle of a delta, with the replica held, and its machine is made anew. That one is told who writes
// to the replica and what leads on, takes it over, and replicates. The first run goes on after all, and is refused by the store.
func TestAzureUnlock(t *testing.T) {
	f := newFronted(t, "")
	f.run(0, "protect", "web01")
	copy(f.os[2<<20:], randomBytes(3, 64<<10))
	f.disks()
	stopped, goOn, ended := make(chan struct{}), make(chan struct{}), make(chan int)
	var once atomic.Bool
	f.front.Before(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && r.URL.Query().Get("comp") == "page" && strings.HasSuffix(r.URL.Path, "/web01/os.vhd") &&
			once.CompareAndSwap(false, true) {
			close(stopped)
			<-goOn
		}
		return false
	})
	go func() { ended <- f.try("delta", "web01", "--now") }()
	select {
	case <-stopped:
	case code := <-ended:
		t.Fatalf("the delta did not stop, and exited with %d", code)
	}

	second := f.machine(f.blobs.URL()[strings.LastIndex(f.blobs.URL(), "/")+1:])
	second.write("os.raw", f.os)
	second.write("data.raw", f.data)
	code, _, errs := second.result("delta", "web01", "--now")
	if code != 6 {
		t.Errorf("exit code %d", code)
	}
	wantWords(t, errs, "last at 20", "takeover web01", "gone for good", "on host")
	wantWords(t, second.run(0, "store", "unlock", "web01", "--dry-run"), "generation 2")
	if code, _, _ := second.result("delta", "web01", "--now"); code != 6 {
		t.Errorf("after the plan the exit code is %d", code)
	}
	second.run(0, "store", "unlock", "web01")
	f.run(6, "delta", "web01", "--now", "--state", filepath.Join(t.TempDir(), "third"))
	wantWords(t, second.run(0, "jobs", "--vm", "web01"), "Take the replica over", "Succeeded")
	if code, _, errs := second.result("delta", "web01", "--now"); code == 5 { // a machine that never replicated it
		second.run(0, "resync", "web01", "--now")
		second.run(0, "delta", "web01", "--now")
	} else if code != 0 {
		t.Fatalf("exit code %d\n%s", code, errs)
	}
	close(goOn)
	if code := <-ended; code != 6 {
		t.Errorf("the first run exits with %d\n%s", code, f.all)
	}
	f.same("after both")
	second.run(0, "verify", "web01", "--against-source")
	if bytes.Contains(second.all.Bytes(), []byte(azuritetest.Key[:20])) {
		t.Error("the key was written")
	}
}

// TestAzureUnlockFailedBack: the machine of a failback is gone when it is to be committed.
func TestAzureUnlockFailedBack(t *testing.T) {
	f := newFronted(t, "")
	f.run(0, "protect", "web01")
	f.run(0, "failover", "unplanned", "web01")
	f.run(0, "failover", "commit", "web01")
	f.run(0, "failback", "web01")
	f.heldBy()
	if code, _, errs := f.result("failover", "commit", "web01"); code != 11 || !strings.Contains(errs, "store unlock web01") {
		t.Fatalf("exit code %d\n%s", code, errs)
	}
	f.run(0, "store", "unlock", "web01")
	f.run(0, "store", "unlock", "web01") // a second time is no harm
	if state, _ := f.state(); state != "failback-complete" {
		t.Errorf("the state is %s", state)
	}
	f.run(0, "failover", "commit", "web01")
	f.run(0, "delta", "web01", "--now")
	f.run(0, "unprotect", "web01", "--keep-replica")
	f.run(6, "store", "unlock", "web01")
	f.run(2, "store", "unlock")
}
