package azuritetest

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"
)

// Unaliased is a transport to the emulator that mends what is wrong with its copies: they share their pages with the source, so that
// a write to the copy shows in the recovery point. A snapshot gets pages of its own, so the copy is replaced by one of its own
// snapshot, which goes.
type Unaliased struct {
	next http.RoundTripper
	c    *service.Client
	// Copies is how many copies were made.
	Copies atomic.Int64
}

// Unaliased returns the transport, with next as what really sends.
func (s *Server) Unaliased(t testing.TB, next http.RoundTripper) *Unaliased {
	t.Helper()
	c, err := service.NewClientFromConnectionString(s.ConnectionString(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return &Unaliased{next: next, c: c}
}

// RoundTrip sends a request, and, when it has begun a copy, makes that a real one.
func (u *Unaliased) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := u.next.RoundTrip(r)
	if err != nil || resp.StatusCode != http.StatusAccepted || r.Method != http.MethodPut || !copies(r.Header) {
		return resp, err
	}
	u.Copies.Add(1)
	_, path, _ := strings.Cut(r.URL.Path, "/"+Account+"/")
	container, name, ok := strings.Cut(path, "/")
	if !ok {
		return nil, fmt.Errorf("%s is no blob", r.URL.Path)
	}
	b := u.c.NewContainerClient(container).NewBlobClient(name)
	ctx := r.Context()
	props, err := b.GetProperties(ctx, nil)
	if err != nil {
		return nil, err
	}
	s, err := b.CreateSnapshot(ctx, nil)
	if err != nil {
		return nil, err
	}
	of, err := b.WithSnapshot(*s.Snapshot)
	if err == nil {
		_, err = b.StartCopyFromURL(ctx, of.URL(), &blob.StartCopyFromURLOptions{Metadata: props.Metadata})
	}
	if err == nil {
		_, err = of.Delete(ctx, nil)
	}
	return resp, err
}

// watched calls watch before and after each request.
type watched struct {
	next  http.RoundTripper
	watch func(r *http.Request, answered bool)
}

func (w watched) RoundTrip(r *http.Request) (*http.Response, error) {
	if w.watch == nil {
		return w.next.RoundTrip(r)
	}
	w.watch(r, false)
	resp, err := w.next.RoundTrip(r)
	w.watch(r, true)
	return resp, err
}

func copies(h http.Header) bool {
	for k := range h { // the SDK does not write all names as net/http would
		if strings.EqualFold(k, "x-ms-copy-source") {
			return true
		}
	}
	return false
}

// Proxy is a server in front of the emulator that is Unaliased, for programs that know no transport but a connection string. watch,
// unless it is nil, is called before each request is passed on, and after it was answered.
func (s *Server) Proxy(t testing.TB, watch func(r *http.Request, answered bool)) (connectionString string, copies *atomic.Int64) {
	t.Helper()
	to, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	tr := http.DefaultTransport.(*http.Transport).Clone()
	u := s.Unaliased(t, tr)
	quiet := log.New(io.Discard, "", 0) // of clients that went away
	p := &httputil.ReverseProxy{Transport: watched{u, watch}, ErrorLog: quiet, Rewrite: func(r *httputil.ProxyRequest) {
		r.Out.URL.Scheme, r.Out.URL.Host = to.Scheme, to.Host
		r.Out.Host = r.In.Host // a copy's source has to be of the same host
	}}
	front := httptest.NewServer(p)
	t.Cleanup(func() { front.Close(); tr.CloseIdleConnections() })
	return strings.ReplaceAll(s.ConnectionString(), s.URL, front.URL+"/"+Account), &u.Copies
}
