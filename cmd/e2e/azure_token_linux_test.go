package e2e_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"sitrep/internal/replica/pageblob/azuritetest"
)

// tokenRig is a site whose store is a storage account that is entered with nothing but a managed identity, which the
// environment leads to, as on a machine in Azure.
type tokenRig struct {
	*rig
	server    *azuritetest.Server
	cert      string // of the server, a PEM file
	container string
	identity  *azuritetest.Identity
	said      strings.Builder // all that was written to stdout or stderr
	disk      []byte
	tokens    []string
}

func newTokenRig(t *testing.T, accounts ...string) *tokenRig {
	cert, key := azuritetest.Certificate(t)
	server := azuritetest.Start(t, azuritetest.Setup{Cert: cert, Key: key, Accounts: accounts})
	r := &tokenRig{server: server, cert: cert, container: azuritetest.Container(t), rig: &rig{T: t, dir: t.TempDir()}, identity: azuritetest.NewIdentity(t), disk: make([]byte, 3<<20)}
	for _, v := range append(r.identity.Env(), "SSL_CERT_FILE="+cert) {
		name, value, _ := strings.Cut(v, "=")
		t.Setenv(name, value)
	}
	store := fmt.Sprintf(`account_url: "%s", container: %s`, server.URL, r.container)
	if len(accounts) > 1 {
		store += fmt.Sprintf(`, log_account_url: "%s"`, server.AccountURL(accounts[1]))
	}
	check(t, os.WriteFile(r.path("site.yaml"), fmt.Appendf(nil, `vault: tokens
store: {azure: {%s}}
policies: [{name: gold, block_size: 64KiB}]
vmm: {clouds: [{name: c, policy: gold, hosts: [{name: h, hypervisor: none, vms: [{name: web01, generation: 1, os: linux, cpus: 1, memory: 1GiB, disks: [{name: os, path: os.raw}]}]}]}]}
`, store), 0o600))
	r.write(1<<20, 300<<10)
	r.give(azuritetest.Token(azuritetest.Audience, time.Now(), time.Hour), 200)
	return r
}

// write writes n bytes to the disk.
func (r *tokenRig) write(off, n int) {
	r.Helper()
	rng := rand.New(rand.NewPCG(uint64(off), uint64(n)))
	for i := range n {
		r.disk[off+i] = byte(rng.Uint32())
	}
	check(r.T, os.WriteFile(r.path("os.raw"), r.disk, 0o600))
}

func (r *tokenRig) give(token string, status int) {
	r.identity.Give(token, status, time.Hour)
	r.tokens = append(r.tokens, token)
}

func (r *tokenRig) ok(args ...string) {
	r.Helper()
	o := r.rig.ok(append([]string{"--verbose"}, args...)...)
	r.said.WriteString(o.stdout + o.stderr)
}

func (r *tokenRig) refused(exit int, code string, words []string, args ...string) {
	r.Helper()
	o := r.rig.refused(exit, code, words, append([]string{"--verbose"}, args...)...)
	r.said.WriteString(o.stdout + o.stderr)
}

// TestManagedIdentity: the binary as it is, with nothing but its environment, replicates into a storage account with tokens of
// DefaultAzureCredential. A token that is refused needs an administrator and is not tried again; a credential's endpoint that
// does not answer is tried again; and no token is in anything that was written anywhere.
func TestManagedIdentity(t *testing.T) {
	r := newTokenRig(t)
	r.ok("check", "web01")
	r.ok("store", "probe")
	r.ok("protect", "web01")
	r.write(2<<20, 100<<10)
	r.ok("delta", "web01", "--now")
	r.ok("status", "web01")
	r.ok("points", "web01")
	r.ok("verify", "web01", "--against-source")
	var points []struct{ ID string }
	check(t, json.Unmarshal(r.vm("points", "web01").Points, &points))
	if len(points) != 2 {
		t.Errorf("%d recovery points", len(points))
	}
	good := r.tokens[0]
	now := time.Now()
	for _, c := range []struct {
		what, token string
		status      int
		words       []string
	}{
		{"expired", azuritetest.Token(azuritetest.Audience, now.Add(-2*time.Hour), time.Hour), 200, []string{"HTTP 403, AuthenticationFailed", "request id", "whether the key was rotated"}},
		{"of another audience", azuritetest.Token("https://vault.azure.net", now, time.Hour), 200, []string{"HTTP 403, AuthenticationFailed", "whether the key was rotated"}},
		{"refused", "eyJhunter2", 400, []string{"HTTP 400, AADSTS70002", "Correct the credential, its rights or its expiry"}},
	} {
		r.write(0, 64<<10)
		r.give(c.token, c.status)
		r.identity.Asked()
		r.refused(4, "store-denied", append(c.words, "refused the credentials", "retry: yes, at"), "delta", "web01", "--now")
		if n := r.identity.Asked(); n == 0 || n > 2 { // twice, by two requests; a network is tried six times for each
			t.Errorf("a token that is %s was asked for %d times", c.what, n)
		}
		r.refused(4, "store-denied", []string{"retry: yes, at"}, "delta", "web01") // not yet: the schedule waits
		if n := r.identity.Asked(); n != 0 {
			t.Errorf("after a token that is %s, it was asked for %d times", c.what, n)
		}
		o := r.run("status", "web01")
		if r.said.WriteString(o.stdout + o.stderr); !strings.Contains(o.stdout+o.stderr, "delta web01 --now") {
			t.Errorf("a token that is %s: %v", c.what, o)
		}
		r.give(good, 200)
		r.ok("resume", "web01")
		r.ok("delta", "web01", "--now")
	}
	if long() { // the SDK tries it for half a minute
		t.Setenv("IDENTITY_ENDPOINT", "http://127.0.0.1:1/token")
		r.write(4096, 4096)
		r.refused(1, "store-unreachable", []string{"what gives out the Azure tokens of this machine did not answer", "connection refused", "retry: yes"},
			"delta", "web01", "--now")
		t.Setenv("IDENTITY_ENDPOINT", r.identity.URL())
	}
	r.ok("delta", "web01", "--now")
	r.ok("jobs")
	r.ok("verify", "web01", "--against-source")
	r.noSecrets()
}

// noSecrets looks for tokens in everything that the binary has left, and has said.
func (r *tokenRig) noSecrets() {
	r.Helper()
	secrets := []string{azuritetest.Header, "eyJ", "hunter2"}
	for _, token := range r.tokens {
		secrets = append(secrets, strings.Split(token, ".")[0])
	}
	files := r.list(r.dir)
	if len(files) < 8 {
		r.Errorf("the site has only the files %q", files)
	}
	for _, path := range files {
		data, err := os.ReadFile(path)
		check(r.T, err)
		for _, s := range secrets {
			if strings.Contains(string(data), s) && path != r.path("os.raw") {
				r.Errorf("%s has %q in it", path, s)
			}
		}
	}
	for _, s := range secrets {
		if strings.Contains(r.said.String(), s) {
			r.Errorf("%q was written to stdout or stderr", s)
		}
	}
}
