package pageblob

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc64"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"sitrep/internal/block"
	"sitrep/internal/fault"
)

// TestClassify: each answer of the service, and what stands in its place, has its class.
func TestClassify(t *testing.T) {
	response := func(status int, code string) error {
		h := http.Header{"X-Ms-Request-Id": {"1d-1"}}
		return fmt.Errorf("wrapped: %w", &azcore.ResponseError{StatusCode: status, ErrorCode: code, RawResponse: &http.Response{
			StatusCode: status, Header: h, Request: &http.Request{URL: &url.URL{Host: "x", RawQuery: "sig=hunter2"}}}})
	}
	for _, c := range []struct {
		err  error
		want fault.Code
	}{
		{response(401, "NoAuthenticationInformation"), fault.StoreDenied},
		{response(403, "AuthenticationFailed"), fault.StoreDenied},
		{response(403, "AuthorizationFailure"), fault.StoreDenied},
		{response(403, "AuthorizationPermissionMismatch"), fault.StoreDenied},
		{response(403, "AccountIsDisabled"), fault.StoreDenied},
		{response(403, "AnythingElse"), fault.StoreDenied},
		{response(403, ""), fault.StoreDenied},
		{response(407, ""), fault.StoreDenied},
		{response(409, "PublicAccessNotPermitted"), fault.StoreDenied},
		{fmt.Errorf("wrapped: %w", noToken{tokenAsked{}.failure(errors.New("failed to acquire a token.\nAttempted credentials:\n sig=hunter2"))}), fault.StoreDenied},
		{noToken{tokenAsked{}.failure(&azidentity.AuthenticationFailedError{})}, fault.StoreDenied},
		{noToken{tokenAsked{status: 400}.failure(&azidentity.AuthenticationFailedError{})}, fault.StoreDenied},
		{noToken{tokenAsked{status: 429}.failure(&azidentity.AuthenticationFailedError{})}, fault.StoreUnreachable},
		{noToken{tokenAsked{err: &url.Error{Op: "Get", URL: "https://x?sig=hunter2", Err: errors.New("no such host")}}.
			failure(&azidentity.AuthenticationFailedError{})}, fault.StoreUnreachable},
		{errors.New("authenticated requests are not permitted for non-TLS protected (https) endpoints"), fault.StoreDenied},
		{response(404, "BlobNotFound"), fault.NotFound},
		{response(404, "ContainerNotFound"), fault.StoreNotMounted},
		{response(404, "ResourceNotFound"), fault.StoreNotMounted},
		{response(404, ""), fault.StoreUnreachable},
		{response(409, "ContainerBeingDeleted"), fault.Busy},
		{response(503, "ServerBusy"), fault.StoreThrottled},
		{response(503, ""), fault.StoreThrottled},
		{response(429, ""), fault.StoreThrottled},
		{response(500, "OperationTimedOut"), fault.StoreThrottled},
		{response(500, "InternalError"), fault.StoreUnreachable},
		{response(408, ""), fault.StoreUnreachable},
		{response(502, ""), fault.StoreUnreachable},
		{response(504, ""), fault.StoreUnreachable},
		{response(200, ""), fault.StoreUnreachable},
		{response(412, "LeaseLost"), fault.ReplicaHeld},
		{response(412, "LeaseNotPresentWithBlobOperation"), fault.ReplicaHeld},
		{response(409, "LeaseIdMismatchWithLeaseOperation"), fault.ReplicaHeld},
		{response(409, "LeaseAlreadyPresent"), fault.ReplicaHeld},
		{response(409, "LeaseIsBreakingAndCannotBeAcquired"), fault.ReplicaHeld},
		{response(412, "LeaseIdMissing"), fault.ReplicaHeld},
		{response(412, "ConditionNotMet"), fault.LedgerConflict},
		{response(409, "BlobAlreadyExists"), fault.LedgerConflict},
		{response(412, "SequenceNumberConditionNotMet"), fault.Fenced},
		{response(409, "SnapshotCountExceeded"), fault.StoreLimit},
		{response(409, "SnapshotOperationRateExceeded"), fault.StoreThrottled},
		{response(409, "BlobOverwritten"), fault.StoreLimit},
		{response(409, "PendingCopyOperation"), fault.StoreLimit},
		{response(409, "SnapshotsPresent"), fault.StoreLimit},
		{response(409, "MemoryExtentStoreAtSizeLimit"), fault.StoreLimit},
		{response(413, "RequestBodyTooLarge"), fault.StoreLimit},
		{response(413, ""), fault.StoreLimit},
		{response(400, "Md5Mismatch"), fault.StoreCorrupted},
		{response(400, "Crc64Mismatch"), fault.StoreCorrupted},
		{response(400, "InvalidHeaderValue"), fault.StoreUnfit},
		{response(501, "APINotImplemented"), fault.StoreUnfit},
		{context.Canceled, fault.Interrupted},
		{&url.Error{Op: "Put", URL: "https://x?sig=hunter2", Err: context.Canceled}, fault.Interrupted},
		{&url.Error{Op: "Put", URL: "https://x?sig=hunter2", Err: context.DeadlineExceeded}, fault.StoreUnreachable},
		{&url.Error{Op: "Put", URL: "https://x?sig=hunter2", Err: errors.New("no such host")}, fault.StoreUnreachable},
		{fmt.Errorf("proxy: https://x?a=b&sig=hunter2 is away"), fault.StoreUnreachable},
		{fault.New(fault.Fenced, ""), fault.Fenced},
	} {
		got := classify(c.err, "x/vm/os.vhd")
		e := fault.Find(got)
		if e == nil || e.Code != c.want {
			t.Errorf("%v is %v, want %s", c.err, got, c.want)
			continue
		}
		text := fmt.Sprintf("%v %+v %q", got, got, e.Unwrap())
		if strings.Contains(text, "hunter2") || strings.Contains(text, "http") && strings.Contains(text, "://") {
			t.Errorf("the address is in %s", text)
		}
		var re *azcore.ResponseError
		if errors.As(c.err, &re) && !strings.Contains(text, "1d-1") {
			t.Errorf("the request's id is not in %s", text)
		}
	}
	if classify(nil, "") != nil {
		t.Error("nil is an error")
	}
}

// testBlob is a page blob at an address where nobody answers, so that what reaches the network fails in another way.
func testBlob(t *testing.T) *pageBlob {
	s, err := Open(Config{ConnectionStringEnv: "C", Container: "abc", Getenv: func(string) string {
		return "DefaultEndpointsProtocol=http;AccountName=a;AccountKey=aHVudGVyMg==;BlobEndpoint=http://127.0.0.1:1/a;"
	}}, Options{Holder: "h", Transport: &http.Client{Transport: nobody{}}})
	if err != nil {
		t.Fatal(err)
	}
	return (&vmReplica{s: s, vm: "vm"}).pageBlob("os.vhd")
}

type nobody struct{}

func (nobody) RoundTrip(*http.Request) (*http.Response, error) { return nil, errors.New("sent") }

// TestLimits: what the service refuses, and the emulator takes, is refused before it is sent.
func TestLimits(t *testing.T) {
	b, ctx := testBlob(t), t.Context()
	long := map[string]string{"a": strings.Repeat("x", maxMeta)}
	for what, err := range map[string]error{
		"a put of more than 4 MiB":        b.put(ctx, make([]byte, maxPut+512), 0),
		"a put that is no sector":         b.put(ctx, make([]byte, 100), 0),
		"a put at no sector":              b.put(ctx, make([]byte, 512), 100),
		"a put of nothing":                b.put(ctx, nil, 0),
		"a put beyond 8 TiB":              b.put(ctx, make([]byte, 1024), maxBlob-512),
		"a put before the beginning":      b.put(ctx, make([]byte, 512), -512),
		"a clear of no sectors":           b.clear(ctx, block.Range{Off: 0, Len: 100}),
		"a clear beyond 8 TiB":            b.clear(ctx, block.Range{Off: 512, Len: maxBlob}),
		"a blob of more than 8 TiB":       b.create(ctx, maxBlob+512, nil),
		"a blob of no sectors":            b.create(ctx, 100, nil),
		"a disk of more than 8 TiB":       b.found(ctx, maxBlob+512, map[string]string{}),
		"a resize to more than 8 TiB":     b.resize(ctx, maxBlob+512, "e"),
		"metadata of more than 8 KiB":     b.describe(ctx, long, "e"),
		"metadata with a dash":            b.describe(ctx, map[string]string{"a-b": "x"}, "e"),
		"metadata that begins with digit": b.describe(ctx, map[string]string{"1a": "x"}, "e"),
		"metadata in capitals":            b.describe(ctx, map[string]string{"A": "x"}, "e"),
		"metadata that is not ASCII":      b.describe(ctx, map[string]string{"a": "ü"}, "e"),
		"metadata with a line":            b.describe(ctx, map[string]string{"a": "x\ny"}, "e"),
	} {
		if err == nil || strings.Contains(err.Error(), "sent") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if e := fault.Find(b.create(ctx, maxBlob+512, nil)); e.Code != fault.StoreLimit {
		t.Errorf("too large a blob is %s", e.Code)
	}
}

// TestUnusedOperations: what the emulator does wrong without saying so, and what is done twice after a lost answer, is not used.
func TestUnusedOperations(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) < 10 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") || strings.HasPrefix(name, "probe") { // a probe is there to find out
			continue
		}
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"PageRangesDiff", "SequenceNumberActionTypeIncrement", "StartCopyIncremental", "UploadPagesFromURL",
			".CopyFromURL", "ComputeCRC64", "StructuredMessage", "SetTier", "Undelete", "DownloadBuffer", "DownloadFile"} {
			if bytes.Contains(data, []byte(word)) {
				t.Errorf("%s uses %s", name, word)
			}
		}
	}
}

// TestPlan: what is in a window becomes as few requests as pay, and never anything else than was written.
func TestPlan(t *testing.T) {
	const k = 1 << 10
	r := func(off, n int64) block.Range { return block.Range{Off: off * k, Len: n * k} }
	nothing := func(block.Range) bool { return false }
	all := func(block.Range) bool { return true }
	for _, c := range []struct {
		name       string
		data, zero []block.Range
		isZero     func(block.Range) bool
		want       string
	}{
		{"one", []block.Range{r(0, 64)}, nil, nothing, "[0,+65536)"},
		{"a short gap of zeros", []block.Range{r(0, 4), r(8, 4)}, nil, all, "[0,+12288)"},
		{"a short gap that is to be zero", []block.Range{r(0, 4), r(8, 4)}, []block.Range{r(4, 4)}, nothing, "[0,+12288)"},
		{"a long gap of zeros", []block.Range{r(0, 64), r(128, 64)}, nil, all, "[0,+65536) [131072,+65536)"},
		{"one short gap that is not known", []block.Range{r(0, 4), r(8, 4)}, nil, nothing, "[0,+4096) [8192,+4096)"},
		{"two of them", []block.Range{r(0, 4), r(8, 4), r(16, 4)}, nil, nothing, "[0,+20480) reads 2"},
		{"zeros alone", nil, []block.Range{r(0, 4), r(100, 4)}, nothing, "clear [0,+4096) clear [102400,+4096)"},
		{"zeros that are zeros", nil, []block.Range{r(0, 4)}, all, ""},
		{"zeros beside data", []block.Range{r(0, 4)}, []block.Range{r(4, 60)}, nothing, "[0,+4096) clear [4096,+61440)"},
	} {
		var got []string
		for _, q := range plan(block.NewSet(c.data...), block.NewSet(c.zero...), c.isZero) {
			text := q.Range.String()
			if q.zero {
				text = "clear " + text
			}
			if len(q.gaps) > 0 {
				text += fmt.Sprintf(" reads %d", len(q.gaps))
			}
			got = append(got, text)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestPlanCovers tries plans of random windows: every byte that was written is in one request, as what it is, and a byte that was
// not is in none that does not read it or know it to be zero.
func TestPlanCovers(t *testing.T) {
	const seed = 1
	rng := rand.New(rand.NewPCG(seed, 2))
	for round := range 500 {
		var data, zero, known block.Set
		for range 1 + rng.IntN(30) {
			r := block.Range{Off: rng.Int64N(200) * 4096, Len: (1 + rng.Int64N(12)) * 4096}
			switch rng.IntN(3) {
			case 0:
				zero.Remove(r)
				data.Add(r)
			case 1:
				data.Remove(r)
				zero.Add(r)
			default:
				known.Add(r)
			}
		}
		isZero := func(r block.Range) bool { run, ok := known.Next(r); return ok && run == r }
		var covered block.Set
		for _, q := range plan(&data, &zero, isZero) {
			if run, ok := covered.Next(q.Range); ok {
				t.Fatalf("seed %d, round %d: %v is in two requests", seed, round, run)
			}
			covered.Add(q.Range)
			rest := block.NewSet(q.Range)
			sets := []*block.Set{&zero, &known}
			if !q.zero {
				sets = append(sets, &data, block.NewSet(q.gaps...))
			}
			for _, s := range sets {
				for r := range s.All() {
					rest.Remove(r)
				}
			}
			if rest.Bytes() > 0 {
				t.Fatalf("seed %d, round %d: %v is sent, and is not known", seed, round, slices.Collect(rest.All()))
			}
			for _, g := range q.gaps {
				for _, s := range []*block.Set{&data, &zero} {
					if run, ok := s.Next(g); ok {
						t.Fatalf("seed %d, round %d: %v is read over", seed, round, run)
					}
				}
			}
		}
		for _, s := range []*block.Set{&data, &zero} {
			for r := range s.All() {
				rest := block.NewSet(r)
				for c := range covered.All() {
					rest.Remove(c)
				}
				for p := range rest.All() {
					if s == &data || !isZero(p) {
						t.Fatalf("seed %d, round %d: %v is not sent", seed, round, p)
					}
				}
			}
		}
	}
}

// TestGate: never more at once than allowed, fewer after a refusal, and more again after answers.
func TestGate(t *testing.T) {
	now := time.Unix(0, 0)
	g := newGate(8, func() time.Time { return now })
	ctx := t.Context()
	enter := func(n int) {
		for range n {
			if err := g.enter(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	enter(4)
	short, cancel := context.WithCancel(ctx)
	cancel()
	if err := g.enter(short); err == nil {
		t.Fatal("a fifth was let in at the beginning")
	}
	g.now = func() time.Time { return time.Unix(10, 0) }
	for range 5 { // of requests that were under way together: they count once
		g.answered(503)
	}
	if g.limit != 2 {
		t.Errorf("the limit is %v after a refusal, want 2", g.limit)
	}
	for range 4 {
		g.leave()
	}
	enter(2)
	if err := g.enter(short); err == nil {
		t.Error("a third was let in after a refusal")
	}
	let := make(chan error)
	go func() { let <- g.enter(ctx) }()
	g.leave()
	if err := <-let; err != nil {
		t.Fatal(err)
	}
	for range 2000 {
		g.answered(201)
	}
	if g.limit != 8 {
		t.Errorf("the limit is %v after many answers, want 8", g.limit)
	}
	for i := range 6 {
		g.now = func() time.Time { return time.Unix(int64(100+10*i), 0) }
		g.answered(503)
	}
	if g.limit != 1 {
		t.Errorf("the limit is %v after many refusals, want 1", g.limit)
	}
}

// TestPacer: requests are spread over time, and none are made up for after a long pause.
func TestPacer(t *testing.T) {
	p := &pacer{bytes: 1000, requests: 10}
	ctx := t.Context()
	if err := p.wait(ctx, 500); err != nil { // half a second of the burst
		t.Fatal(err)
	}
	began := p.free
	if err := p.wait(ctx, 0); err != nil {
		t.Fatal(err)
	}
	if d := p.free.Sub(began); d != 100*time.Millisecond {
		t.Errorf("a small request costs %s, want 100 ms", d)
	}
	began = p.free
	if err := p.wait(ctx, 250); err != nil {
		t.Fatal(err)
	}
	if d := p.free.Sub(began); d != 250*time.Millisecond {
		t.Errorf("250 bytes cost %s, want 250 ms", d)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := p.wait(ended, 1<<20); err == nil {
		if err = p.wait(ended, 1); err == nil {
			t.Error("a pacer waits for a run that has ended")
		}
	}
	if err := (&pacer{bytes: -1, requests: -1}).wait(ctx, 1<<40); err != nil {
		t.Error(err)
	}
}

// TestFrames: a table that is damaged anywhere is no table, or one that leads to frames that are refused.
func TestFrames(t *testing.T) {
	enc, err := newEncoder()
	if err != nil {
		t.Fatal(err)
	}
	dec, err := newDecoder()
	if err != nil {
		t.Fatal(err)
	}
	var blob []byte
	var frames []frame
	plain := bytes.Repeat([]byte("some bytes of a log, "), 120000)
	for part := range slices.Chunk(plain, frameSize) {
		at := len(blob)
		blob = enc.EncodeAll(part, blob)
		frames = append(frames, frame{at: int64(at), length: int64(len(blob) - at), plain: int64(len(part))})
	}
	blob = append(blob, tableOf(frames)...)
	read := func(b []byte) ([]byte, error) {
		n, err := tableLength(b)
		if err != nil || n > int64(len(b)) {
			return nil, errTable
		}
		list, size, err := parseTable(b[int64(len(b))-n:], int64(len(b)))
		if err != nil {
			return nil, err
		}
		var out []byte
		for _, f := range list {
			p, err := decode(dec, b[f.at:][:f.length], f.plain)
			if err != nil {
				return nil, err
			}
			out = append(out, p...)
		}
		if int64(len(out)) != size {
			return nil, errTable
		}
		return out, nil
	}
	if got, err := read(blob); err != nil || !bytes.Equal(got, plain) {
		t.Fatal(err)
	}
	whole, err := dec.DecodeAll(blob, nil) // as zstd -d does
	if err != nil || !bytes.Equal(whole, plain) {
		t.Fatalf("a decoder that knows nothing of the table: %v", err)
	}
	for i := 0; i < len(blob); i += 3 {
		for _, bit := range []byte{1, 0x80} {
			b := bytes.Clone(blob)
			b[i] ^= bit
			if got, err := read(b); err == nil && !bytes.Equal(got, plain) {
				t.Fatalf("byte %d: damage was not noticed", i)
			}
		}
	}
	for n := range blob {
		if _, err := read(blob[:n]); err == nil {
			t.Fatalf("the first %d bytes are taken for a log", n)
		}
	}
}

// TestChecksum: the checksum is that of the service's polynomial, as the standard library computes it.
func TestChecksum(t *testing.T) {
	table := crc64.MakeTable(0x9A6C9329AC4BC9B5)
	rng := rand.New(rand.NewPCG(5, 5))
	p := make([]byte, 70000)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	for _, n := range []int{0, 1, 7, 63, 64, 511, 512, 1023, 4096, 65536, len(p)} {
		if got, want := checksum(p[:n]), crc64.Checksum(p[:n], table); uint64(got) != want {
			t.Errorf("of %d bytes it is %#x, want %#x", n, uint64(got), want)
		}
	}
}
