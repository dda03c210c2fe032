package azuritetest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Front stands between programs and a server, so that what they ask for can be counted, refused and held up from outside.
type Front struct {
	// URL is the address of the server's first account by way of the front.
	URL string

	server *Server
	proxy  *httputil.ReverseProxy
	before atomic.Pointer[func(http.ResponseWriter, *http.Request) bool]

	mu    sync.Mutex
	costs map[string]Cost
}

// Cost is what requests of one kind have cost.
type Cost struct {
	Requests       int
	Sent, Received int64 // bytes of bodies
}

// Plus is both together.
func (c Cost) Plus(more Cost) Cost {
	return Cost{c.Requests + more.Requests, c.Sent + more.Sent, c.Received + more.Received}
}

// NewFront starts a front of a server that speaks http.
func NewFront(t testing.TB, s *Server) *Front {
	t.Helper()
	to, err := url.Parse(s.root)
	if err != nil {
		t.Fatal(err)
	}
	f := &Front{server: s, costs: map[string]Cost{}, proxy: &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }, // what is signed does not have the host in it
	}}
	front := httptest.NewServer(http.HandlerFunc(f.serve))
	t.Cleanup(front.Close)
	f.URL = front.URL + "/" + s.account
	return f
}

// ConnectionString is that of the server's first account by way of the front.
func (f *Front) ConnectionString() string {
	return strings.ReplaceAll(f.server.ConnectionString(), f.server.URL, f.URL)
}

// Before has every request shown to a function first, which may wait, or answer it and return true; nil: none.
func (f *Front) Before(do func(http.ResponseWriter, *http.Request) (answered bool)) {
	if do == nil {
		f.before.Store(nil)
		return
	}
	f.before.Store(&do)
}

func (f *Front) serve(w http.ResponseWriter, r *http.Request) {
	if do := f.before.Load(); do != nil && (*do)(w, r) {
		return
	}
	kind := KindOf(r)
	f.add(kind, Cost{1, max(r.ContentLength, 0), 0})
	f.proxy.ServeHTTP(metered{w, func(n int) { f.add(kind, Cost{0, 0, int64(n)}) }}, r)
}

// add counts. It comes before the bytes go on: whoever has an answer finds it counted.
func (f *Front) add(kind string, more Cost) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.costs[kind] = f.costs[kind].Plus(more)
}

// metered is an answer whose body is counted.
type metered struct {
	http.ResponseWriter
	count func(int)
}

func (m metered) Write(p []byte) (int, error) {
	m.count(len(p))
	return m.ResponseWriter.Write(p)
}

func (m metered) Unwrap() http.ResponseWriter { return m.ResponseWriter }

// blobOf is the blob of a request without account, container and VM, with a space before it; "" of a container. Shelves are as
// good as one blob.
func blobOf(r *http.Request) string {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/") // ACCOUNT/CONTAINER/VM/...
	if len(parts) < 3 {
		return ""
	}
	name := strings.Join(parts[min(3, len(parts)-1):], "/")
	if dir, file := path.Split(name); dir != "" {
		return " " + dir + "*" + path.Ext(file)
	}
	return " " + name
}

// Take returns what was asked for since the last call, by what KindOf says.
func (f *Front) Take() map[string]Cost {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := f.costs
	f.costs = map[string]Cost{}
	return out
}

// Kind is what a request is, in the words of the service.
func Kind(r *http.Request) string {
	q := r.URL.Query()
	parts := []string{r.Method}
	for _, k := range []string{"comp", "restype"} {
		if v := q.Get(k); v != "" {
			parts = append(parts, v)
		}
	}
	for _, h := range []string{"x-ms-page-write", "x-ms-lease-action", "x-ms-blob-type"} {
		if v := HeaderOf(r, h); v != "" {
			parts = append(parts, v)
		}
	}
	if HeaderOf(r, "x-ms-copy-source") != "" {
		parts = append(parts, "copy")
	}
	if q.Get("snapshot") != "" {
		parts = append(parts, "of a snapshot")
	}
	return strings.Join(parts, " ")
}

// KindOf is Kind with the blob: "PUT page update os.vhd".
func KindOf(r *http.Request) string { return Kind(r) + blobOf(r) }

// HeaderOf is a header of a request. The SDK does not write all names as net/http would.
func HeaderOf(r *http.Request, name string) string {
	for k, v := range r.Header {
		if strings.EqualFold(k, name) {
			return strings.Join(v, ",")
		}
	}
	return ""
}

// Table writes costs as lines that are the same on every machine and every day: the bytes of pages and sums are exact, those of
// logs, which are compressed, are rounded up to 4, 16, 64, ... KiB, and those of ledgers and lists, in which names and times are, are
// left out: some KiB for each request. In how many pieces sums, and the page lists of their
// snapshots, are read depends on which of several tasks comes first, so of these there are bytes only.
func Table(costs map[string]Cost) string {
	var lines []string
	for kind, c := range costs {
		line := fmt.Sprintf("%d x %s", c.Requests, kind)
		if strings.HasPrefix(kind, "GET ") && strings.HasSuffix(kind, ".sums") &&
			(!strings.Contains(kind, "list") || strings.Contains(kind, "of a snapshot")) {
			line = kind
		}
		for _, b := range []struct {
			what string
			n    int64
		}{{"sent", c.Sent}, {"received", c.Received}} {
			if text := size(kind, b.n); text != "" {
				line += ", " + text + " " + b.what
			}
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func size(kind string, n int64) string {
	switch {
	case n == 0, strings.Contains(kind, "list"):
		return ""
	case strings.HasSuffix(kind, ".vhd"), strings.HasSuffix(kind, ".sums"):
		return fmt.Sprint(n)
	case !strings.HasSuffix(kind, ".hrl"):
		return ""
	}
	most := int64(4)
	for n > most<<10 {
		most *= 4
	}
	return fmt.Sprintf("at most %d KiB", most)
}
