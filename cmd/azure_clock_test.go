package cmd_test

import (
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sitrep/internal/replica/pageblob/azuritetest"
)

// TestAzureClock: check warns when this machine's clock goes wrong, and when the service refuses requests for it, the error says
// by how much it is off and what to do; the next run tries again.
func TestAzureClock(t *testing.T) {
	var pool azuritetest.Pool // the server ends with this process
	server := pool.Server(t)
	to, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	var ahead atomic.Int64 // of the service's clock
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", to.Host },
		ModifyResponse: func(r *http.Response) error {
			r.Header.Set("Date", time.Now().Add(time.Duration(ahead.Load())).UTC().Format(http.TimeFormat))
			return nil
		},
	}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		at := time.Now().Add(time.Duration(ahead.Load())).UTC()
		if signed, err := http.ParseTime(r.Header.Get("x-ms-date")); err != nil || at.Sub(signed).Abs() > 15*time.Minute { // as the service does
			w.Header().Set("Date", at.Format(http.TimeFormat))
			w.Header().Set("x-ms-error-code", "AuthenticationFailed")
			w.Header().Set("x-ms-request-id", "0f-7e-5e")
			w.WriteHeader(http.StatusForbidden)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	t.Setenv("SITREP_TEST_AZURE", strings.ReplaceAll(server.ConnectionString(), to.Host, front.Listener.Addr().String()))
	s := newAzureSite(t, azuritetest.Container(t), "")
	disk := randomBytes(1, 1<<20)
	s.write("os.raw", disk)
	s.run(0, "protect", "web01")
	if out := s.run(0, "check", "web01"); strings.Contains(out, "clock") {
		t.Errorf("the clocks agree: %s", out)
	}
	for off, want := range map[time.Duration]string{8 * time.Minute: "clock is 8m0s behind", -8 * time.Minute: "clock is 8m0s ahead of"} {
		ahead.Store(int64(off))
		if out := s.run(0, "check", "web01"); !strings.Contains(out, want) || !strings.Contains(out, "Set the clock") {
			t.Errorf("the clocks are %s apart: %s", off, out)
		}
		if out := s.run(0, "store", "probe"); !strings.Contains(out, want) {
			t.Errorf("the clocks are %s apart, a probe: %s", off, out)
		}
	}
	disk[0]++
	s.write("os.raw", disk)
	ahead.Store(int64(20 * time.Minute))
	s.all.Reset()
	s.run(1, "delta", "web01", "--now")
	for _, want := range []string{"clock is 20m0s behind the service's", "request id 0f-7e-5e", "retry: yes, at", "Set the clock"} {
		if !strings.Contains(s.all.String(), want) {
			t.Errorf("%q is not in %s", want, s.all.String())
		}
	}
	if out := s.run(3, "check", "web01"); !strings.Contains(out, "clock is 20m0s behind the service's") {
		t.Errorf("a check: %s", out)
	}
	ahead.Store(0)
	s.run(0, "delta", "web01", "--now")
	s.run(0, "verify", "web01", "--against-source")
}
