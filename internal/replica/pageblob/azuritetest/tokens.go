package azuritetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Certificate makes a certificate for 127.0.0.1, which signs itself, and returns the PEM files of it and of its key.
func Certificate(t testing.TB) (cert, key string) {
	t.Helper()
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "azurite of a test"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &secret.PublicKey, secret)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: data}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	return write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", pkcs8)
}

// Identity is the endpoint of a managed identity, as machines in Azure have one: it gives out tokens to whoever has its header.
type Identity struct {
	server *httptest.Server

	mu     sync.Mutex
	token  string
	status int
	keep   time.Duration
	asked  int
}

// Audience is what tokens for storage accounts are made for.
const Audience = "https://storage.azure.com"

// Header is the secret by which a machine asks for tokens.
const Header = "identity-header-7f3a"

// NewIdentity starts an endpoint that gives out a token that is good for an hour.
func NewIdentity(t testing.TB) *Identity {
	i := &Identity{token: Token(Audience, time.Now(), time.Hour), status: http.StatusOK, keep: time.Hour}
	i.server = httptest.NewServer(http.HandlerFunc(i.serve))
	t.Cleanup(i.server.Close)
	return i
}

// URL is where it is asked.
func (i *Identity) URL() string { return i.server.URL }

// Env is the environment in which a program takes its tokens from here.
func (i *Identity) Env() []string {
	return []string{"IDENTITY_ENDPOINT=" + i.server.URL, "IDENTITY_HEADER=" + Header, "AZURE_TOKEN_CREDENTIALS=ManagedIdentityCredential"}
}

// Give has this token given out from now on, with this status of HTTP, and said to be good for so long: what is good for less
// than some minutes is not kept by the SDK, which otherwise keeps tokens for the whole process.
func (i *Identity) Give(token string, status int, keep time.Duration) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.token, i.status, i.keep = token, status, keep
}

// Asked is how often the endpoint was asked since the last call.
func (i *Identity) Asked() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	n := i.asked
	i.asked = 0
	return n
}

// Stop ends the endpoint: nobody listens at its address then.
func (i *Identity) Stop() { i.server.Close() }

func (i *Identity) serve(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked++
	w.Header().Set("Content-Type", "application/json")
	if r.Header.Get("X-Identity-Header") != Header || i.status != http.StatusOK {
		w.WriteHeader(max(i.status, http.StatusBadRequest))
		fmt.Fprintf(w, `{"error":"invalid_request","error_description":"AADSTS70002: there is no token, and %s is not one","token":%q}`, i.token, i.token)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]string{ // who asks may have gone
		"access_token": i.token, "expires_on": fmt.Sprint(time.Now().Add(i.keep).Unix()), "resource": Audience, "token_type": "Bearer"})
}

// Token is a token that nobody has signed, for an audience, good from a time on and for some time.
func Token(audience string, from time.Time, good time.Duration) string {
	part := func(v any) string {
		b, _ := json.Marshal(v) // of maps of strings and numbers: never fails
		return base64.RawURLEncoding.EncodeToString(b)
	}
	return part(map[string]string{"alg": "none", "typ": "JWT"}) + "." + part(map[string]any{
		"aud": audience, "iss": "https://sts.windows.net/00000000-0000-0000-0000-000000000000/",
		"iat": from.Unix(), "nbf": from.Unix(), "exp": from.Add(good).Unix(), "oid": "11111111-1111-1111-1111-111111111111",
	}) + "." + base64.RawURLEncoding.EncodeToString([]byte("signature"))
}
