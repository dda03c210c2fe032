package pageblob

// What the emulator does otherwise than the service, what both do otherwise than one would think, and what keeps us from it.
//
//	the emulator takes, the service refuses:
//	  more than 4 MiB, 8 TiB, metadata of 8 KiB, half sectors     TestLimits; TestProbeFindsTheEmulator
//	  writes across the end of a blob                             TestOutside: refused here, before the service is asked
//	  a synchronous copy of pages; copies over what is there      TestUnusedOperations; TestPromote (If-None-Match)
//	copies share their pages with the source                      the copy shim of the tests (Transport of promote_test.go)
//	differences between snapshots: everything, without an error   TestUnusedOperations; only a probe asks (TestProbeFindsTheEmulator)
//	a client of a snapshot writes to the blob                     source has no method that writes; TestSnapshotsAreForReading
//	adjacent ranges are not merged; lists of ranges are one page  block.Set; TestPageRanges (10,000 a page, NextMarker)
//	lists of ranges of fragmented blobs time out                  TestPageRanges (asked for in smaller parts)
//	reads past the end: an empty body, or 416                     TestOutside
//	an ETag changes with every write                              guards looks and snapshots; pages by the sequence number (TestTwoSites)
//	Create has no condition on the sequence number                found; TestStaleCreate, TestLostAnswersOfCreates
//	snapshot ids have 1 ms                                        snapshots are made one by one and known by position (TestSnapshotWithLostAnswers)
//	metadata: case, dashes, what is not ASCII                     lower, metadata; TestLimits
//	a container that is being deleted, or is none                 TestClassify
//	leases: codes, expiry, breaking                               endless leases of one id (TestSameHolder); TestClassify
//	a container's SAS does not read snapshots (emulator)          TestWaysToSignIn has one of the account
//	tokens: refused, silent, over http, of a wrong clock          TestTokens, TestManagedIdentity, TestClassify, TestClockOfRefusal
//	errors of a transport have the SAS in them                    strip; TestSecretsAreNotWritten
//	8-line errors, a proxy's 403, a bare 404                      answer; TestClassify, TestFaultyNetwork
//	retries after a lost answer: two snapshots, false 409 and 412 once, changed; TestSnapshotWithLostAnswers, TestLostAnswersOf...
//	incremented sequence numbers                                  "update" only; TestUnusedOperations
//	no timeout of a try                                           Options.Retry; TestHangs
//	Retry-After longer than one would wait                        TestRetryAfter: an error at once, for the schedule of retries
//	Expect: 100-continue after a 503                              TestExpect
//	a body is wound back while it is still sent, after an answer that comes early: what arrives is refused by its CRC64
//	a body that breaks off is not resumed by the SDK              NewRetryReader; TestFaultyNetwork ("truncated")
//	DownloadBuffer pins an ETag                                   not used (TestUnusedOperations)
//	damaged bytes are not tried again by the SDK                  put; TestFaultyNetwork ("damaged")
//	idle connections are closed after 5 s (keep-alive)            TestIdleConnections
//	500 requests and 60 MiB a second for each blob                TestPacer, TestGate, TestPlan
//	premium: 100 snapshots, one in 10 minutes, no block blobs     support: azure-premium-policy; TestPremiumAccount
//	disks of n MiB and 512 bytes with a footer                    replicatest; TestPromote

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"sitrep/internal/block"
	"sitrep/internal/fault"
)

// blobAt is a page blob whose requests are answered by a function.
func blobAt(t *testing.T, f func(http.ResponseWriter, *http.Request)) *pageBlob {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(f))
	t.Cleanup(server.Close)
	s, err := Open(Config{ConnectionStringEnv: "C", Container: "abc", Getenv: func(string) string {
		return "DefaultEndpointsProtocol=http;AccountName=a;AccountKey=aHVudGVyMg==;BlobEndpoint=" + server.URL + "/a;"
	}}, Options{Holder: "h", BytesPerSecond: -1, RequestsPerSecond: -1,
		Retry: policy.RetryOptions{MaxRetries: 2, TryTimeout: time.Minute, RetryDelay: time.Millisecond, MaxRetryDelay: 20 * time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	return (&vmReplica{s: s, vm: "vm"}).pageBlob("os.vhd")
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("x-ms-error-code", code)
	w.WriteHeader(status)
}

// TestPageRanges: a list of ranges comes in pages of 10,000, which the emulator never does, and of parts that are small enough for
// the service to be done in time.
func TestPageRanges(t *testing.T) {
	const n, page = 25_000, 10_000 // every other MiB has a sector
	var asked, late atomic.Int64
	b := blobAt(t, func(w http.ResponseWriter, r *http.Request) {
		var from, to int64
		for k, v := range r.Header {
			if strings.EqualFold(k, "x-ms-range") {
				fmt.Sscanf(v[0], "bytes=%d-%d", &from, &to)
			}
		}
		if to-from >= 8<<30 {
			late.Add(1)
			refuse(w, http.StatusInternalServerError, "OperationTimedOut")
			return
		}
		asked.Add(1)
		start := (from + 2<<20 - 1) / (2 << 20)
		if m := r.URL.Query().Get("marker"); m != "" {
			fmt.Sscan(m, &start)
		}
		fmt.Fprint(w, "<PageList>")
		i := start
		for ; i < n && i*2<<20 <= to && i < start+page; i++ {
			fmt.Fprintf(w, "<PageRange><Start>%d</Start><End>%d</End></PageRange>", i*2<<20, i*2<<20+511)
		}
		if i < n && i*2<<20 <= to {
			fmt.Fprintf(w, "<NextMarker>%d</NextMarker>", i)
		}
		fmt.Fprint(w, "</PageList>")
	})
	var found block.Set
	if err := b.ranges(t.Context(), block.Range{Len: 4 << 30}, found.Add); err != nil || found.Runs() != 2048 {
		t.Errorf("4 GiB have %d ranges, want 2048: %v", found.Runs(), err)
	}
	m := &rangeMap{from: &b.source}
	whole := block.Range{Len: n * 2 << 20}
	runs := 0
	for at := whole; !at.Empty(); {
		e, err := m.extent(t.Context(), at)
		if err != nil {
			t.Fatal(err)
		}
		if e.Kind == block.Data {
			if runs++; e.Len != 512 || e.Off%(2<<20) != 0 {
				t.Fatalf("there is data at %v", e.Range)
			}
		}
		at = block.Range{Off: e.End(), Len: at.End() - e.End()}
	}
	if runs != n {
		t.Errorf("%d ranges were found, want %d", runs, n)
	}
	if late.Load() == 0 || asked.Load() > 20 {
		t.Errorf("%d lists, %d were too long", asked.Load(), late.Load())
	}
	asked.Store(0)
	found = block.Set{}
	if err := b.ranges(t.Context(), block.Range{Len: 8<<30 - 512}, found.Add); err != nil || found.Runs() != 4096 || asked.Load() != 1 {
		t.Errorf("just below: %d ranges in %d requests: %v", found.Runs(), asked.Load(), err)
	}
}

// TestPageMarkers: one list that is longer than a page.
func TestPageMarkers(t *testing.T) {
	var asked atomic.Int64
	b := blobAt(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		start := 0
		fmt.Sscan(r.URL.Query().Get("marker"), &start) // none is 0
		fmt.Fprint(w, "<PageList>")
		for i := start; i < min(start+10_000, 25_000); i++ {
			fmt.Fprintf(w, "<PageRange><Start>%d</Start><End>%d</End></PageRange>", i*1024, i*1024+511)
		}
		if start+10_000 < 25_000 {
			fmt.Fprintf(w, "<NextMarker>%d</NextMarker>", start+10_000)
		}
		fmt.Fprint(w, "</PageList>")
	})
	var found block.Set
	if err := b.ranges(t.Context(), block.Range{Len: 1 << 30}, found.Add); err != nil || found.Runs() != 25_000 || asked.Load() != 3 {
		t.Errorf("%d ranges in %d requests: %v", found.Runs(), asked.Load(), err)
	}
}

// TestOutside: what is beyond the end of a disk is refused before it is sent; and a blob that something else has cut is one that
// was changed, in the words of the service (416) and in those of the emulator (an empty body).
func TestOutside(t *testing.T) {
	ctx := t.Context()
	var sent atomic.Int64
	var status atomic.Int64
	status.Store(http.StatusRequestedRangeNotSatisfiable)
	b := blobAt(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if sent.Add(1); status.Load() != http.StatusOK {
			refuse(w, int(status.Load()), map[string]string{"GET": "InvalidRange", "PUT": "InvalidPageRange"}[r.Method])
		}
	})
	r := &vmReplica{s: b.s, vm: "vm", write: true, buffers: newBuffers()}
	p := &pages{r: r, disk: "os", size: 1 << 20, blockSize: 4096, f: newPageFile(ctx, b)}
	for _, c := range []struct{ off, n int64 }{{1<<20 - 512, 1024}, {1 << 20, 512}, {-512, 512}, {1 << 62, 512}} {
		for what, err := range map[string]error{"written": p.WriteAt(ctx, make([]byte, c.n), c.off), "zeroed": p.ZeroAt(ctx, c.off, c.n),
			"read": p.ReadAt(ctx, make([]byte, c.n), c.off)} {
			if !fault.Is(err, fault.IO) || sent.Load() > 0 {
				t.Errorf("[%d,+%d) is %s, %d requests were sent: %v", c.off, c.n, what, sent.Load(), err)
			}
		}
	}
	for _, err := range []error{b.read(ctx, make([]byte, 512), 0), b.put(ctx, make([]byte, 512), 0), b.clear(ctx, block.Range{Len: 512})} {
		if !fault.Is(err, fault.ReplicaChanged) {
			t.Errorf("a range that is not in the blob any more: %v", err)
		}
	}
	status.Store(http.StatusOK) // with an empty body
	if err := b.read(ctx, make([]byte, 512), 0); !fault.Is(err, fault.ReplicaChanged) {
		t.Errorf("an empty body: %v", err)
	}
}

// TestSnapshotsAreForReading: clients of snapshots are made in two places, for reading one and for removing one.
func TestSnapshotsAreForReading(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "probe") {
			continue
		}
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(data, []byte("WithSnapshot(")); name == "points.go" && n != 2 || name != "points.go" && n != 0 {
			t.Errorf("%s makes %d clients of snapshots", name, n)
		}
	}
}

// TestRetryAfter: a service that wants to be left alone for longer than a run waits ends the run at once, to be tried again later.
func TestRetryAfter(t *testing.T) {
	var sent atomic.Int64
	b := blobAt(t, func(w http.ResponseWriter, r *http.Request) {
		sent.Add(1)
		w.Header().Set("Retry-After", "3600")
		refuse(w, http.StatusServiceUnavailable, "ServerBusy")
	})
	_, err := b.look(t.Context())
	if e := fault.Find(err); e == nil || e.Code != fault.StoreThrottled || e.Class() != fault.Recoverable || sent.Load() != 1 {
		t.Errorf("%d requests were sent: %v", sent.Load(), err)
	}
}

// TestExpect: after a 503 the SDK asks before it sends a body. A server that does not want it gets none, one that knows nothing
// of the question gets it all the same.
func TestExpect(t *testing.T) {
	var sent, asked, got atomic.Int64
	b := blobAt(t, func(w http.ResponseWriter, r *http.Request) {
		n := sent.Add(1)
		if r.Header.Get("Expect") == "100-continue" {
			asked.Add(1)
		} else { // answered early, it would be read by the connection while the SDK winds it back
			_, _ = io.Copy(io.Discard, r.Body)
		}
		if n <= 2 { // the second time without a look at the body
			refuse(w, http.StatusServiceUnavailable, "ServerBusy")
			return
		}
		data, err := io.ReadAll(r.Body)
		if err == nil {
			got.Store(int64(len(data)))
		}
		w.WriteHeader(http.StatusCreated)
	})
	if err := b.put(t.Context(), make([]byte, 1<<20), 0); err != nil {
		t.Fatal(err)
	}
	if sent.Load() != 3 || asked.Load() != 2 || got.Load() != 1<<20 {
		t.Errorf("%d requests, %d with a question, %d bytes arrived", sent.Load(), asked.Load(), got.Load())
	}
}

// TestIdleConnections: a server closes connections that are idle, just when they are used again. What can be sent again is.
func TestIdleConnections(t *testing.T) {
	var sent atomic.Int64
	b := blobAt(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if sent.Add(1)%2 == 0 { // the second request of each connection finds it closed
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				conn.Close()
			}
			return
		}
		w.WriteHeader(http.StatusCreated)
	})
	var err error
	for i := range int64(8) {
		err = errors.Join(err, b.put(t.Context(), make([]byte, 512), i*512))
	}
	if err != nil || sent.Load() < 12 {
		t.Errorf("%d requests: %v", sent.Load(), err)
	}
}
