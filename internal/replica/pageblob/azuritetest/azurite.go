// Package azuritetest runs the storage emulator Azurite for tests: one server for a test binary, a container for each test.
//
// Azurite is real enough for everything that the store relies on, but for a few things, which a test must not trip over: a
// copy made by the server shares its pages with the source (Unaliased mends that), a read of a snapshot with the SAS of a
// container is refused, and limits are not kept.
package azuritetest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"crypto/rand"
	"encoding/hex"
)

// Account and Key are those of the emulator, known to everybody.
const (
	Account = "devstoreaccount1"
	Key     = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)

// Server is a running Azurite.
type Server struct {
	// URL is the address of the first account, http://127.0.0.1:PORT/devstoreaccount1.
	URL string

	root    string // the address without an account
	account string // the first one
	cmd     *exec.Cmd
}

// Setup is in what a server differs from that of a Pool.
type Setup struct {
	// Cert and Key are PEM files of a certificate for 127.0.0.1. With them the server speaks https, and takes tokens beside keys:
	// of a token it looks at issuer, audience and times, and not at the signature.
	Cert, Key string
	// Accounts are names of accounts that all have the key Key; none: Account alone.
	Accounts []string
}

// Start runs a server of its own for one test, which is skipped where Azurite is not installed; see Pool.Server.
func Start(t testing.TB, setup Setup) *Server {
	t.Helper()
	s, err := start(installed(t), setup)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.stop)
	return s
}

// AccountURL is the address of an account.
func (s *Server) AccountURL(account string) string { return s.root + "/" + account }

// install is what brings Azurite.
const install = "npm ci --prefix testdata/azurite"

// Main runs the tests of a package with a server, which is started by the first test that wants one. Use it in TestMain.
func Main(m *testing.M, p *Pool) int {
	code := m.Run()
	p.stop()
	return code
}

// Pool is the one server of a test binary. The zero Pool has not started it.
type Pool struct {
	mu     sync.Mutex
	server *Server
	failed error
}

// Server returns the server, and skips the test where Azurite is not installed; under CI=true it fails then.
func (p *Pool) Server(t testing.TB) *Server {
	t.Helper()
	script := installed(t)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server == nil && p.failed == nil {
		p.server, p.failed = start(script, Setup{})
	}
	if p.failed != nil {
		t.Fatal(p.failed)
	}
	return p.server
}

func (p *Pool) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server != nil {
		p.server.stop()
	}
}

// installed is where Azurite is.
func installed(t testing.TB) string {
	t.Helper()
	script, err := script()
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return script
}

// script finds Azurite in the folder testdata/azurite of this module.
func script() (string, error) {
	_, here, _, ok := runtime.Caller(0)
	root := filepath.Join(filepath.Dir(here), "..", "..", "..", "..")
	path := filepath.Join(root, "testdata", "azurite", "node_modules", "azurite", "dist", "src", "blob", "main.js")
	if _, err := os.Stat(path); !ok || err != nil {
		return "", fmt.Errorf("azurite is not installed: %s", install)
	}
	if _, err := exec.LookPath("node"); err != nil {
		return "", fmt.Errorf("node is not installed: apt-get install nodejs npm && %s", install)
	}
	return path, nil
}

// listening is the line by which the server says that it is ready.
var listening = regexp.MustCompile(`successfully listens on (\S+)`)

func start(script string, setup Setup) (*Server, error) {
	args := []string{"--max-old-space-size=1024", script, "--silent", "--disableTelemetry", "--skipApiVersionCheck",
		"--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence", "--extentMemoryLimit", "1024"}
	if setup.Cert != "" {
		args = append(args, "--oauth", "basic", "--cert", setup.Cert, "--key", setup.Key)
	}
	cmd := exec.Command("node", args...)
	account := Account
	if len(setup.Accounts) > 0 {
		account = setup.Accounts[0]
		cmd.Env = append(os.Environ(), "AZURITE_ACCOUNTS="+strings.Join(setup.Accounts, ":"+Key+";")+":"+Key)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr = cmd.Stdout
	ready := make(chan error, 1)
	s := &Server{cmd: cmd, account: account}
	go func() {
		runtime.LockOSThread() // the server dies with the thread that started it
		dieWithUs(cmd)
		if err := cmd.Start(); err != nil {
			ready <- err
			return
		}
		ready <- s.await(out)
		_, _ = io.Copy(io.Discard, out) // a full pipe would stop the server
		_ = cmd.Wait()
	}()
	select {
	case err := <-ready:
		return s, err
	case <-time.After(time.Minute):
		return s, fmt.Errorf("azurite did not start within a minute")
	}
}

// await reads the server's address.
func (s *Server) await(out io.Reader) error {
	var said strings.Builder
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if m := listening.FindStringSubmatch(lines.Text()); m != nil {
			s.root = m[1]
			s.URL = s.AccountURL(s.account)
			return nil
		}
		said.WriteString(lines.Text() + "\n")
	}
	return fmt.Errorf("azurite ended: %s", said.String())
}

func (s *Server) stop() {
	if s.cmd.Process != nil {
		_ = s.cmd.Process.Kill()
	}
}

// ConnectionString is that of the first account.
func (s *Server) ConnectionString() string {
	protocol, _, _ := strings.Cut(s.root, ":")
	return fmt.Sprintf("DefaultEndpointsProtocol=%s;AccountName=%s;AccountKey=%s;BlobEndpoint=%s;", protocol, s.account, Key, s.URL)
}

// Container returns a new name of a container. Nobody has made it yet.
func Container(t testing.TB) string {
	t.Helper()
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		t.Fatal(err)
	}
	return "t-" + hex.EncodeToString(b[:])
}
