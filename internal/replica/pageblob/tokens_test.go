package pageblob_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica/pageblob"
	"sitrep/internal/replica/pageblob/azuritetest"
	"sitrep/internal/replica/replicatest"
)

// TestTokens: the credential of this machine leads to a replica, and when it does not, the error says whether it was refused,
// which waiting does not mend, or whether nobody answered. No token is in any of it.
func TestTokens(t *testing.T) {
	cert, key := azuritetest.Certificate(t)
	server := azuritetest.Start(t, azuritetest.Setup{Cert: cert, Key: key})
	identity := azuritetest.NewIdentity(t)
	setenv(t, identity.Env())
	pem, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	tr := http.DefaultTransport.(*http.Transport).Clone()
	tr.TLSClientConfig = &tls.Config{RootCAs: roots}
	t.Cleanup(tr.CloseIdleConnections)
	var sent atomic.Int64
	name := azuritetest.Container(t)
	enter := func(cfg pageblob.Config) *pageblob.Store {
		opts := quick()
		opts.Transport = over(func(r *http.Request) (*http.Response, error) { sent.Add(1); return tr.RoundTrip(r) })
		cfg.Container = name
		s, err := pageblob.Open(cfg, opts)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	entered := func() *pageblob.Store { return enter(pageblob.Config{AccountURL: server.URL}) } // as by a new run
	byKey := enter(pageblob.Config{ConnectionStringEnv: "C", Getenv: func(string) string { return server.ConnectionString() }})
	ctx := t.Context()
	h := replicatest.NewHistory("vm", 21, replicatest.OSLogs(t))
	if err := errors.Join(h.Begin(ctx, byKey), h.Close()); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for _, c := range []struct {
		what   string
		token  string
		status int
		want   fault.Code
		asked  int   // requests for a token: of a refusal one, of what may pass by itself as many as are tried
		sent   int64 // requests to the service
		say    string
	}{
		{"expired", azuritetest.Token(azuritetest.Audience, now.Add(-2*time.Hour), time.Hour), 200, fault.StoreDenied, 1, 1, "HTTP 403, AuthenticationFailed"},
		{"not good yet", azuritetest.Token(azuritetest.Audience, now.Add(time.Hour), time.Hour), 200, fault.StoreDenied, 1, 1, "HTTP 403"},
		{"of another audience", azuritetest.Token("https://vault.azure.net", now, time.Hour), 200, fault.StoreDenied, 1, 1, "HTTP 403"},
		{"refused", "token-hunter2", 400, fault.StoreDenied, 1, 0, "HTTP 400, AADSTS70002"},
		{"refused as well", "token-hunter2", 403, fault.StoreDenied, 1, 0, "HTTP 403"},
		{"busy", "token-hunter2", 503, fault.StoreUnreachable, 6, 0, "answered HTTP 503"},
		{"good again", azuritetest.Token(azuritetest.Audience, now, time.Hour), 200, "", 1, 2, ""},
	} {
		identity.Give(c.token, c.status, time.Minute)
		identity.Asked()
		sent.Store(0)
		s := entered()
		_, err := s.Prepare(ctx, hrl.ID{})
		if err == nil {
			_, err = s.View(ctx, "vm")
		}
		if e := fault.Find(err); (e == nil) != (c.want == "") || e != nil && e.Code != c.want {
			t.Errorf("a token that is %s: %v", c.what, err)
		}
		if n := identity.Asked(); n != c.asked || sent.Load() != c.sent {
			t.Errorf("a token that is %s: asked for %d times, want %d; %d requests to the service, want %d", c.what, n, c.asked, sent.Load(), c.sent)
		}
		text := fmt.Sprintf("%v %+v", err, err)
		if err != nil && (!strings.Contains(text, c.say) || !strings.Contains(text, name)) {
			t.Errorf("a token that is %s: %s", c.what, text)
		}
		for _, secret := range []string{c.token, "hunter2", azuritetest.Header, "eyJ", "://"} {
			if strings.Contains(text, secret) {
				t.Errorf("a token that is %s: %q is in %s", c.what, secret, text)
			}
		}
	}
	identity.Stop()
	_, err = entered().View(ctx, "vm")
	wantCode(t, "nobody gives out tokens", err, fault.StoreUnreachable)
	if err == nil || !strings.Contains(err.Error(), "connection refused") || strings.Contains(err.Error(), "://") {
		t.Errorf("nobody gives out tokens: %v", err)
	}
	t.Setenv("IDENTITY_ENDPOINT", "")
	t.Setenv("IDENTITY_HEADER", "")
	t.Setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
	store, err := pageblob.Open(pageblob.Config{AccountURL: server.URL, Container: name}, quick())
	if err == nil {
		_, err = store.View(ctx, "vm")
	}
	wantCode(t, "no credential at all", err, fault.StoreDenied)

	identity = azuritetest.NewIdentity(t)
	setenv(t, identity.Env())
	if err := errors.Join(h.Attach(ctx, entered()), h.Step(ctx, false), h.Check(ctx), h.Close()); err != nil {
		t.Fatal(err)
	}
	if n := identity.Asked(); n != 1 {
		t.Errorf("for a history the token was asked for %d times", n)
	}
}

func setenv(t *testing.T, list []string) {
	t.Helper()
	for _, v := range list {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
}
