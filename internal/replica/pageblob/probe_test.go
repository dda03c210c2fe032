package pageblob_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"

	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/replica/pageblob"
	"sitrep/internal/replica/pageblob/azuritetest"
)

// proxy is what lies between here and the service: it may change requests and answers.
type proxy struct {
	request func(*http.Request)
	answer  func(*http.Response)
}

func (p proxy) Do(req *http.Request) (*http.Response, error) {
	if p.request != nil {
		p.request(req)
	}
	resp, err := http.DefaultClient.Do(req)
	if err == nil && p.answer != nil {
		p.answer(resp)
	}
	return resp, err
}

// bySAS opens a container by a signature that does not cover the headers of a request, as it is in practice: a proxy that
// changes them is then noticed by nobody.
func bySAS(t *testing.T, name string, via policy.Transporter) *pageblob.Store {
	t.Helper()
	server := azurite.Server(t)
	c, err := container.NewClientFromConnectionString(server.ConnectionString(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	signed, err := c.GetSASURL(sas.ContainerPermissions{Read: true, Add: true, Create: true, Write: true, Delete: true, List: true},
		time.Now().Add(time.Hour), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, query, _ := strings.Cut(signed, "?")
	opts := quick()
	opts.Transport = via
	opts.Retry.MaxRetries = 1
	s, err := pageblob.Open(pageblob.Config{
		AccountURL: server.URL, Container: name, SASEnv: "X", Getenv: func(string) string { return query },
	}, opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// probe probes a store and returns the names of the checks that do not hold: the needed ones and the others.
func probe(t *testing.T, s *pageblob.Store) (unfit, others []string) {
	t.Helper()
	checks, err := s.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range checks {
		t.Logf("%-5v %-5v %8s %-60s %s", c.Holds, c.Needed, c.Took.Round(time.Millisecond), c.Name, c.Detail)
		if !c.Holds && !c.Needed {
			others = append(others, c.Name)
		}
		if strings.Contains(c.Detail, "sig=") || strings.Contains(c.Detail, "http://") {
			t.Errorf("an address is in %q", c.Detail)
		}
	}
	return replica.Unfit(checks), others
}

// left are the blobs of a container.
func left(t *testing.T, name string) (names []string) {
	t.Helper()
	c, err := container.NewClientFromConnectionString(azurite.Server(t).ConnectionString(), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	pager := c.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Include: container.ListBlobsInclude{Snapshots: true, UncommittedBlobs: true}})
	for pager.More() {
		page, err := pager.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range page.Segment.BlobItems {
			names = append(names, *b.Name)
		}
	}
	return names
}

// TestProbeFindsTheEmulator: what the emulator does otherwise than the service is found, and nothing else.
func TestProbeFindsTheEmulator(t *testing.T) {
	name := azuritetest.Container(t)
	s := open(t, name, quick())
	for _, founded := range []bool{false, true} {
		var before []string
		if founded {
			if _, err := s.Prepare(t.Context(), hrl.ID{}); err != nil {
				t.Fatal(err)
			}
			before = left(t, name)
		}
		unfit, others := probe(t, s)
		if len(unfit) > 0 {
			t.Errorf("what is needed and does not hold is %q", unfit)
		}
		if want := []string{"differences between snapshots are told", "a copy changes nothing of what it was made of", "more than 4 MiB at once are refused", "a write beyond the end is refused"}; !slices.Equal(others, want) {
			t.Errorf("what else does not hold is %q, want %q", others, want)
		}
		if after := left(t, name); !slices.Equal(after, before) {
			t.Errorf("the probe left %q of %q", after, before)
		}
	}
}

// TestProbeIsNoReplica: whatever a probe has at any moment, it is no VM.
func TestProbeIsNoReplica(t *testing.T) {
	name := azuritetest.Container(t)
	s := open(t, name, quick())
	if _, err := s.Prepare(t.Context(), hrl.ID{}); err != nil {
		t.Fatal(err)
	}
	looked := 0
	opts := quick()
	opts.Transport = proxy{answer: func(*http.Response) {
		if looked++; looked%10 == 0 {
			for vm, err := range s.List(t.Context()) {
				t.Errorf("the list has %q: %v", vm, err)
			}
		}
	}}
	if _, err := open(t, name, opts).Probe(t.Context()); err != nil || looked < 50 {
		t.Fatal(looked, err)
	}
}

// TestProbeFindsProxies: what a proxy does to requests and answers is found by the checks that are about it.
func TestProbeFindsProxies(t *testing.T) {
	strip := func(headers ...string) func(*http.Request) {
		return func(r *http.Request) {
			for h := range r.Header { // the SDK writes some in lower case
				if slices.Contains(headers, strings.ToLower(h)) {
					delete(r.Header, h)
				}
			}
		}
	}
	for name, x := range map[string]struct {
		proxy proxy
		want  []string
	}{
		"drops If-Match": {proxy{request: strip("if-match")}, []string{
			"a blob is replaced only if it is the one that was read", "a blob is read only if it is the one that was looked at",
			"a blob is removed only if it is the one that was looked at", "a new generation locks out the old one",
			"properties are changed only of the blob that was looked at"}},
		"drops If-None-Match": {proxy{request: strip("if-none-match")}, []string{"a blob that is there is not made again"}},
		"drops what it does not know": {proxy{request: strip("x-ms-if-sequence-number-eq", "x-ms-content-crc64")}, []string{
			"a write of another generation is refused", "a new generation locks out the old one",
			"bytes that are damaged on the way are refused"}},
		"truncates requests": {proxy{request: func(r *http.Request) {
			if r.Body == nil || r.ContentLength < 60<<10 {
				return
			}
			r.ContentLength /= 2
			r.Header.Set("Content-Length", strconv.FormatInt(r.ContentLength, 10))
			r.Body = io.NopCloser(io.LimitReader(r.Body, r.ContentLength))
		}}, []string{"a blob is read as it was written", "pages are read as they were written", "large transfers arrive"}},
		"truncates answers": {proxy{answer: func(r *http.Response) {
			if r.ContentLength < 60<<10 || r.Request.Method != http.MethodGet {
				return
			}
			data, _ := io.ReadAll(r.Body)
			r.Body.Close()
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(data[:len(data)/2])), int64(len(data)/2)
			r.Header.Set("Content-Length", fmt.Sprint(r.ContentLength))
		}}, []string{"a blob is read as it was written", "pages are read as they were written", "large transfers arrive"}},
		"answers from memory": {proxy{answer: stuck()}, []string{"a write of pages changes the ETag"}},
	} {
		t.Run(name, func(t *testing.T) {
			container := azuritetest.Container(t)
			unfit, _ := probe(t, bySAS(t, container, x.proxy))
			for _, want := range x.want {
				if !slices.Contains(unfit, want) {
					t.Errorf("%q was not found", want)
				}
			}
			if after := left(t, container); len(after) > 0 {
				t.Errorf("the probe left %q", after)
			}
		})
	}
}

// stuck gives every look at a blob the first ETag that it had.
func stuck() func(*http.Response) {
	first := map[string]string{}
	return func(r *http.Response) {
		if r.Request.Method != http.MethodHead || r.StatusCode != http.StatusOK {
			return
		}
		if etag, ok := first[r.Request.URL.Path]; ok {
			r.Header.Set("ETag", etag)
		} else {
			first[r.Request.URL.Path] = r.Header.Get("ETag")
		}
	}
}

func TestProbeOfNothing(t *testing.T) {
	opts := quick()
	opts.Retry.MaxRetries = 1
	opts.Transport = proxy{request: func(r *http.Request) { r.URL.Host = "127.0.0.1:1" }}
	if _, err := open(t, azuritetest.Container(t), opts).Probe(t.Context()); !fault.Is(err, fault.StoreUnreachable) {
		t.Errorf("the error is %v", err)
	}
}

func TestProbeCancelled(t *testing.T) {
	name := azuritetest.Container(t)
	ctx, cancel := context.WithCancel(t.Context())
	requests := 0
	opts := quick()
	opts.Transport = proxy{request: func(*http.Request) {
		if requests++; requests == 20 {
			cancel()
		}
	}}
	checks, err := open(t, name, opts).Probe(ctx)
	if !fault.Cancelled(err) || len(replica.Unfit(checks)) > 0 {
		t.Errorf("%v, %v", checks, err)
	}
	if after := left(t, name); len(after) > 0 {
		t.Errorf("the probe left %q", after)
	}
}
