package pageblob_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sitrep/internal/replica/pageblob/azuritetest"
)

// roundTrip is an http.RoundTripper made of a function.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// over is a transport for the SDK whose errors are those of a real one: with the address of the request in them.
func over(f roundTrip) *http.Client { return &http.Client{Transport: f} }

// wire is what really sends, with connections of its own for each test.
func wire(t testing.TB) http.RoundTripper {
	tr := http.DefaultTransport.(*http.Transport).Clone()
	tr.MaxIdleConnsPerHost = 64
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// answer makes an answer without asking anybody.
func answer(r *http.Request, status int, code, body string) *http.Response {
	if r.Body != nil {
		_, _ = io.Copy(io.Discard, r.Body)
		r.Body.Close()
	}
	h := http.Header{"X-Ms-Request-Id": {"00000000-4e90e57"}}
	if code != "" {
		h.Set("x-ms-error-code", code)
	}
	return &http.Response{Status: http.StatusText(status), StatusCode: status, Header: h, Request: r, ProtoMajor: 1, ProtoMinor: 1,
		Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body))}
}

// header is a header of a request. The SDK does not write all names as net/http would.
func header(r *http.Request, name string) string { return azuritetest.HeaderOf(r, name) }

// counter counts requests, and the bytes of their bodies, by kind.
type counter struct {
	next http.RoundTripper

	mu    sync.Mutex
	costs map[string]azuritetest.Cost
}

func newCounter(t testing.TB) *counter {
	return &counter{next: wire(t), costs: map[string]azuritetest.Cost{}}
}

func (c *counter) RoundTrip(r *http.Request) (*http.Response, error) {
	kind := azuritetest.KindOf(r)
	c.add(kind, azuritetest.Cost{Requests: 1, Sent: max(r.ContentLength, 0)})
	resp, err := c.next.RoundTrip(r)
	if err == nil {
		resp.Body = countedBody{resp.Body, func(n int) { c.add(kind, azuritetest.Cost{Received: int64(n)}) }}
	}
	return resp, err
}

func (c *counter) add(kind string, more azuritetest.Cost) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.costs[kind] = c.costs[kind].Plus(more)
}

type countedBody struct {
	io.ReadCloser
	count func(int)
}

func (b countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.count(n)
	return n, err
}

// take returns what was counted since the last take, as lines.
func (c *counter) take() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	costs := c.costs
	c.costs = map[string]azuritetest.Cost{}
	return azuritetest.Table(costs)
}

// faulty makes a share of the requests fail, in every way that a network knows.
type faulty struct {
	next http.RoundTripper
	rate float64

	mu   sync.Mutex
	rng  *rand.Rand
	seen map[string]int
}

func newFaulty(t testing.TB, seed uint64, rate float64) *faulty {
	return &faulty{next: wire(t), rate: rate, rng: rand.New(rand.NewPCG(seed, 9)), seen: map[string]int{}}
}

func (f *faulty) choose() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rng.Float64() >= f.rate {
		return ""
	}
	faults := []string{"busy", "busy", "reset", "lost answer", "lost answer", "truncated", "timeout", "damaged"}
	what := faults[f.rng.IntN(len(faults))]
	switch f.rng.IntN(200) { // rare: these are not tried again, and a run needs hundreds of requests
	case 0:
		what = "denied"
	case 1:
		what = "clock"
	}
	f.seen[what]++
	return what
}

var errReset = fmt.Errorf("read: %w", syscall.ECONNRESET)

func (f *faulty) RoundTrip(r *http.Request) (*http.Response, error) {
	switch f.choose() {
	case "busy":
		return answer(r, 503, "ServerBusy", ""), nil
	case "timeout":
		return answer(r, 500, "OperationTimedOut", ""), nil
	case "denied":
		return answer(r, 403, "", "<html>a proxy says no</html>"), nil
	case "clock": // as the service answers what was signed at another time than its own
		resp := answer(r, 403, "AuthenticationFailed", "Request date header too old")
		resp.Header.Set("Date", time.Now().Add(20*time.Minute).UTC().Format(http.TimeFormat))
		return resp, nil
	case "reset":
		answer(r, 500, "", "")
		return nil, errReset
	case "damaged":
		if r.URL.Query().Get("comp") == "page" {
			return answer(r, 400, "Crc64Mismatch", ""), nil
		}
	case "lost answer":
		resp, err := f.next.RoundTrip(r)
		if err == nil {
			resp.Body.Close()
		}
		return nil, errReset
	case "truncated":
		resp, err := f.next.RoundTrip(r)
		if err == nil && r.Method == http.MethodGet {
			half, _ := io.ReadAll(io.LimitReader(resp.Body, max(resp.ContentLength, 0)/2))
			resp.Body.Close()
			resp.Body = io.NopCloser(io.MultiReader(bytes.NewReader(half), broken{}))
		}
		return resp, err
	}
	return f.next.RoundTrip(r)
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.Join(io.ErrUnexpectedEOF) }
