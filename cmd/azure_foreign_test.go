package cmd_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"sitrep/internal/replica"
	"sitrep/internal/replica/pageblob/azuritetest"
)

// fronted is an azureSite of a VM with two disks whose requests are counted.
type fronted struct {
	*azureSite
	front *azuritetest.Front
	blobs *container.Client // behind the program's back
	os    []byte
	data  []byte
}

func newFronted(t *testing.T, policy string) *fronted {
	var pool azuritetest.Pool // the server ends with this process
	server := pool.Server(t)
	front, name := azuritetest.NewFront(t, server), azuritetest.Container(t)
	t.Setenv("SITREP_TEST_AZURE", front.ConnectionString())
	blobs, err := container.NewClientFromConnectionString(server.ConnectionString(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	f := &fronted{azureSite: newAzureSite(t, name, policy), front: front, blobs: blobs, os: make([]byte, 9<<20), data: make([]byte, 5<<20)}
	f.write("site.yaml", bytes.ReplaceAll(f.read("site.yaml"), []byte("{name: os, path: os.raw}"),
		[]byte("{name: os, path: os.raw, os: true}, {name: data, path: data.raw}")))
	copy(f.os[1<<20:], randomBytes(1, 6<<20))
	copy(f.data, randomBytes(2, 2<<20))
	f.disks()
	return f
}

// disks writes both disks as a guest has left them.
func (f *fronted) disks() {
	f.t.Helper()
	f.write("os.raw", f.os)
	f.write("data.raw", f.data)
}

// forge writes to a blob as something else than the program.
func (f *fronted) forge(name string, off int64, data []byte) {
	f.t.Helper()
	_, err := f.blobs.NewPageBlobClient("web01/"+name).UploadPages(f.t.Context(), streaming.NopCloser(bytes.NewReader(data)),
		blob.HTTPRange{Offset: off, Count: int64(len(data))}, nil)
	if err != nil {
		f.t.Fatal(err)
	}
}

// cost is what all requests together have cost whose kind has every word in it.
func cost(costs map[string]azuritetest.Cost, words ...string) (sum azuritetest.Cost) {
kinds:
	for kind, c := range costs {
		for _, w := range words {
			if !strings.Contains(kind, w) {
				continue kinds
			}
		}
		sum.Requests, sum.Sent, sum.Received = sum.Requests+c.Requests, sum.Sent+c.Sent, sum.Received+c.Received
	}
	return sum
}

// state is the VM's state and the reason for it.
func (f *fronted) state() (state, reasons string) {
	f.t.Helper()
	var got struct {
		VMs []struct {
			State   string
			Reasons []string `json:"health_reasons"`
		}
	}
	if err := json.Unmarshal([]byte(f.run(0, "status", "web01", "--json")), &got); err != nil {
		f.t.Fatal(err)
	}
	return got.VMs[0].State, strings.Join(got.VMs[0].Reasons, "; ")
}

// blobsNow is the ETags of the VM's page blobs: any write to one changes its.
func (f *fronted) blobsNow() (etags [4]string) {
	f.t.Helper()
	for i, name := range []string{"os.vhd", "os.sums", "data.vhd", "data.sums"} {
		props, err := f.blobs.NewBlobClient("web01/"+name).GetProperties(f.t.Context(), nil)
		if err != nil {
			f.t.Fatal(err)
		}
		etags[i] = string(*props.ETag)
	}
	return etags
}

// same fails unless the replica is the source, behind the program's back.
func (f *fronted) same(what string) {
	f.t.Helper()
	for name, want := range map[string][]byte{"os.vhd": f.os, "data.vhd": f.data} {
		got := make([]byte, len(want))
		if _, err := f.blobs.NewBlobClient("web01/"+name).DownloadBuffer(f.t.Context(), got, &blob.DownloadBufferOptions{
			Range: blob.HTTPRange{Count: int64(len(want))}}); err != nil {
			f.t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			f.t.Errorf("%s: %s is not its source", what, name)
		}
	}
}

// counted runs a command and returns what it has cost.
func (f *fronted) counted(code int, args ...string) (costs map[string]azuritetest.Cost, out string) {
	f.t.Helper()
	f.front.Take()
	out = f.run(code, args...)
	return f.front.Take(), out
}

// ofDisks is the bytes of guests that were downloaded: of the footer that is looked at when a disk is opened, there are none.
func ofDisks(costs map[string]azuritetest.Cost) int64 {
	got := cost(costs, "GET ", ".vhd").Received - cost(costs, "GET pagelist", ".vhd").Received
	return got - got%(64<<10)
}

// TestAzureForeignWrite: what something else writes to a replica is noticed by the ETags of the disk, in one more request, before anything
// is applied. The resynchronization that follows reads the replica, by itself, and finds every foreign byte; one of a replica that
// nobody touched reads the source only.
func TestAzureForeignWrite(t *testing.T) {
	f := newFronted(t, "")
	f.run(0, "protect", "web01")
	was := bytes.Clone(f.data)
	copy(f.data[1<<20:], randomBytes(3, 64<<10))
	f.disks()
	f.run(0, "delta", "web01", "--now")

	// Both where the replica has data, which a snapshot of the last point shares, and where it has none.
	f.forge("data.vhd", 1<<20+4096, randomBytes(9, 4096))
	f.forge("data.vhd", 3<<20, randomBytes(10, 64<<10))
	copy(f.os[2<<20:], randomBytes(4, 64<<10))
	f.disks()
	before := f.blobsNow()
	var mu sync.Mutex
	var asked []string // of the disk that was written to
	f.front.Before(func(_ http.ResponseWriter, r *http.Request) bool {
		if name, ok := strings.CutPrefix(r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:], "data."); ok {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, azuritetest.Kind(r)+" "+name)
		}
		return false
	})
	costs, _ := f.counted(5, "delta", "web01", "--now")
	f.front.Before(nil)
	// The disk is opened by three requests, and its ETag is asked for by one: that of its sums is known.
	if got := strings.Join(asked, ", "); got != "HEAD vhd, HEAD sums, GET vhd, HEAD vhd" {
		t.Errorf("the disk was asked for: %s", got)
	}
	if f.blobsNow() != before {
		t.Error("the delta has written to the replica")
	}
	for _, words := range [][]string{{"PUT page"}, {"snapshot"}, {"DELETE"}} {
		if c := cost(costs, words...); c.Requests != 0 {
			t.Errorf("the delta made requests:\n%s", azuritetest.Table(costs))
		}
	}
	state, reasons := f.state()
	if state != "resynchronization-required" || !strings.Contains(reasons, "disk data") ||
		!strings.Contains(reasons, "written to by something other than sitrep") {
		t.Errorf("the VM is %s: %s", state, reasons)
	}

	costs, out := f.counted(0, "resync", "web01", "--now")
	if n := ofDisks(costs); n < 8<<20 || !strings.Contains(out, "by the replica's bytes") {
		t.Errorf("a resynchronization after a foreign write: %d bytes were downloaded; %s", n, out)
	}
	// One block of os that the source has changed, and of data the one that has data and those of 64 KiB that were zeros.
	blocks := 2 + 64<<10/f.blockSize("data")
	if want := fmt.Sprintf("%d blocks different (%d had been written by something else)", 64<<10/f.blockSize("os")-1+blocks, blocks-1); !strings.Contains(out, want) {
		t.Errorf("what was mended is not in the counts, want %q: %s", want, out)
	}
	f.same("after a foreign write")
	f.run(0, "verify", "web01")
	ids := f.points()
	for i, want := range [][]byte{was, f.data} {
		if got := f.exportedDisk(ids[i], "data", len(want)); !bytes.Equal(got, want) {
			t.Errorf("recovery point %d of %d has the foreign bytes", i, len(ids))
		}
	}
	f.trusted()
	f.unnoticed()
}

// trusted: without a doubt about the replica, the source is read and nothing is downloaded, however much has changed.
func (f *fronted) trusted() {
	t := f.t
	copy(f.os[4<<20:], randomBytes(5, 128<<10))
	clear(f.data[64<<10:][:64<<10])
	f.disks()
	costs, out := f.counted(0, "resync", "web01", "--now")
	if n := ofDisks(costs); n != 0 || !strings.Contains(out, "by the replica's sums") {
		t.Errorf("a resynchronization by sums: %d bytes were downloaded; %s", n, out)
	}
	if c := cost(costs, "PUT page update os.vhd"); c.Sent != 128<<10 {
		t.Errorf("a resynchronization by sums: %d bytes were sent", c.Sent)
	}
	f.same("by sums")
	costs, out = f.counted(0, "resync", "web01", "--now", "--deep")
	if n := ofDisks(costs); n < 7<<20 || n > 9<<20 || !strings.Contains(out, "by the replica's bytes") { // of 8 MiB that are not zero
		t.Errorf("a deep resynchronization: %d bytes were downloaded; %s", n, out)
	}
	if c := cost(costs, "PUT page"); c.Requests != 0 {
		t.Errorf("a deep resynchronization of what is alike: %d pages were written", c.Requests)
	}
}

// TestAzureForeignWriteInterrupted has the service refuse everything from some request of the resynchronization on, and goes on after
// that: the foreign bytes are gone all the same, from the replica and from the recovery point that shared them, also where the
// source has changed the same blocks since.
func TestAzureForeignWriteInterrupted(t *testing.T) {
	step := int64(27)
	if os.Getenv("SITREP_LONG") != "" {
		step = 1
	}
	f := newFronted(t, "")
	f.run(0, "protect", "web01")
	for last, stop := false, int64(4); !last; stop += step {
		copy(f.data[stop<<12:], randomBytes(uint64(stop), 8192))
		f.disks()
		f.run(0, "delta", "web01", "--now")
		point := f.points()
		was := bytes.Clone(f.data)
		f.forge("data.vhd", 4<<20, randomBytes(50, 4096))
		f.forge("data.vhd", stop<<12, randomBytes(51, 4096))
		f.forge("data.vhd", 0, randomBytes(52, 4096))
		lost := stop%2 == 0
		if lost { // the source does not have any more what was there
			copy(f.data, randomBytes(uint64(stop+1000), 512))
		}
		copy(f.os[3<<20:], randomBytes(uint64(stop+2000), 8192))
		f.disks()
		var n atomic.Int64
		f.front.Before(func(w http.ResponseWriter, r *http.Request) bool {
			if n.Add(1) <= stop {
				return false
			}
			w.WriteHeader(http.StatusForbidden)
			return true
		})
		last = f.try("resync", "web01", "--now") == 0
		f.front.Before(nil)
		if !last {
			f.try("resume", "web01")
			f.run(0, "resync", "web01", "--now")
		}
		f.same(fmt.Sprintf("refused after %d requests", stop))
		f.run(0, "verify", "web01")
		if lost { // then the point says so, block by block
			continue
		}
		if got := f.exportedDisk(point[len(point)-1], "data", len(was)); !bytes.Equal(got, was) {
			t.Errorf("refused after %d requests: the newest recovery point has foreign bytes", stop)
		}
	}
}

// TestAzureForeignSums: a foreign write to the block sums is noticed by the next delta, before a snapshot is made of them or anything
// is applied. The resynchronization gives them back what they were, also where the source has changed or something else wrote to
// the disk too, so that every recovery point, those that share them too, is what it was.
func TestAzureForeignSums(t *testing.T) {
	t.Run("sums", func(t *testing.T) { foreignSums(t, func(*fronted) {}) })
	t.Run("pages and sums", func(t *testing.T) {
		foreignSums(t, func(f *fronted) { f.forge("data.vhd", 4<<20, randomBytes(80, 4096)) }) // zeros, and they have no sum
	})
}

func foreignSums(t *testing.T, more func(*fronted)) {
	f := newFronted(t, "")
	f.run(0, "protect", "web01")
	was := [][]byte{bytes.Clone(f.data)}
	copy(f.data[1<<20:], randomBytes(3, 64<<10))
	f.disks()
	f.run(0, "delta", "web01", "--now")
	was = append(was, bytes.Clone(f.data))
	f.run(0, "verify", "web01")

	f.forge("data.sums", 0, randomBytes(9, 512))
	more(f)
	copy(f.data[3*4096:], randomBytes(4, 4096)) // a block of these sums, and others
	copy(f.data[3<<20:], randomBytes(5, 64<<10))
	f.disks()
	before := f.blobsNow()
	costs, _ := f.counted(5, "delta", "web01", "--now")
	if f.blobsNow() != before {
		t.Error("the delta has written to the replica")
	}
	if c := cost(costs, "snapshot"); c.Requests != 0 {
		t.Errorf("the delta made a snapshot:\n%s", azuritetest.Table(costs))
	}
	if state, reasons := f.state(); state != "resynchronization-required" || !strings.Contains(reasons, "written to by something other than sitrep") {
		t.Errorf("the VM is %s: %s", state, reasons)
	}
	out := f.run(0, "resync", "web01", "--now")
	if !strings.Contains(out, "block sums mended") {
		t.Errorf("a resynchronization after a foreign write to sums: %s", out)
	}
	was = append(was, bytes.Clone(f.data))
	copy(f.data[2<<20:], randomBytes(6, 8192))
	f.disks()
	f.run(0, "delta", "web01", "--now")
	was = append(was, bytes.Clone(f.data))
	f.same("after a foreign write to sums")
	f.run(0, "verify", "web01")
	ids := f.points()
	if len(ids) != len(was) {
		t.Fatalf("%d recovery points instead of %d", len(ids), len(was))
	}
	for i, want := range was {
		if got := f.exportedDisk(ids[i], "data", len(want)); !bytes.Equal(got, want) {
			t.Errorf("recovery point %d of %d is not what it was", i, len(ids))
		}
	}
}

// blockSize is the bytes of a block of a disk's sums.
func (f *fronted) blockSize(disk string) int {
	f.t.Helper()
	data, err := f.blobs.NewBlobClient("web01/ledger.json").DownloadStream(f.t.Context(), nil)
	if err != nil {
		f.t.Fatal(err)
	}
	defer data.Body.Close()
	var ledger replica.State
	if err := json.NewDecoder(data.Body).Decode(&ledger); err != nil {
		f.t.Fatal(err)
	}
	return int(ledger.Disk(disk).BlockSize)
}

// unnoticed: nobody has noticed the foreign write yet, to pages or to sums, and a resynchronization by sums is asked for. The sums
// speak of what the program wrote, so they cannot find it: the ETag, or the seal, says that they must not be trusted.
func (f *fronted) unnoticed() {
	for _, name := range []string{"os.vhd", "os.sums"} {
		f.forge(name, 0, randomBytes(11, 512))
		if _, out := f.counted(0, "resync", "web01", "--now"); !strings.Contains(out, "by the replica's bytes") {
			f.t.Errorf("a foreign write to %s that nobody noticed: %s", name, out)
		}
		f.same("a foreign write to " + name)
		f.run(0, "verify", "web01")
		f.run(0, "delta", "web01", "--now")
	}
}
