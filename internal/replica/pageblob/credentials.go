package pageblob

import (
	"errors"
	"io"
	"io/fs"
	"net/url"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"sitrep/internal/fault"
)

// Config says where the store is, and where the secret is by which it is entered. At most one of the six places of a secret is
// given: without one, AccountURL is entered with the Azure credential of this machine (managed identity, environment, az login).
type Config struct {
	AccountURL string // https://ACCOUNT.blob.core.windows.net; not needed with a connection string
	Container  string
	// LogAccountURL is the account for ledger, logs, lock and identity, where that of the pages has no block blobs (premium).
	// It is entered in the same way, so its name and the credential have to allow that.
	LogAccountURL string

	ConnectionStringEnv, KeyEnv, SASEnv    string // names of environment variables
	ConnectionStringFile, KeyFile, SASFile string // paths of files that only their owner can read
	Getenv                                 func(string) string
}

// maxSecret is the bytes of a file with a secret.
const maxSecret = 64 << 10

// Open returns the store of a configuration. It reads the secret and asks nobody.
func Open(cfg Config, opts Options) (*Store, error) {
	s := newStore(opts)
	connect, err := cfg.signIn(s.clientOptions())
	if err != nil {
		return nil, err
	}
	if s.pages, err = connect(cfg.AccountURL); err != nil {
		return nil, unusable(err)
	}
	s.blocks = s.pages
	if cfg.LogAccountURL != "" {
		if s.blocks, err = connect(cfg.LogAccountURL); err != nil {
			return nil, unusable(err)
		}
	}
	return s, nil
}

func newStore(opts Options) *Store {
	opts = opts.complete()
	return &Store{opts: opts, gate: newGate(opts.Concurrency, time.Now)}
}

func (s *Store) clientOptions() *container.ClientOptions {
	return &container.ClientOptions{ClientOptions: s.opts.client(s.gate, &s.clock)}
}

// unusable is what is said of a credential that cannot be one. The SDK's error may repeat it, so it is not shown.
func unusable(err error) error {
	if fault.Find(err) != nil {
		return err
	}
	return fault.New(fault.SiteInvalid, "store.azure: the address, or the secret, of the storage account is not one (not shown)")
}

// signIn returns how the container of an account is reached.
func (c Config) signIn(o *container.ClientOptions) (func(account string) (*container.Client, error), error) {
	kind, secret, err := c.secret()
	if err != nil {
		return nil, err
	}
	switch kind {
	case "connection_string":
		return func(account string) (*container.Client, error) {
			return container.NewClientFromConnectionString(onAccount(secret, account), c.Container, o)
		}, nil
	case "key":
		return func(account string) (*container.Client, error) {
			cred, err := container.NewSharedKeyCredential(accountName(account), secret)
			if err != nil {
				return nil, err
			}
			return container.NewClientWithSharedKeyCredential(c.url(account), cred, o)
		}, nil
	case "sas":
		return func(account string) (*container.Client, error) {
			return container.NewClientWithNoCredential(c.url(account)+"?"+strings.TrimPrefix(secret, "?"), o)
		}, nil
	}
	cred, err := newTokens(o.Retry)
	if err != nil {
		return nil, err
	}
	return func(account string) (*container.Client, error) {
		return container.NewClient(c.url(account), cred, o)
	}, nil
}

func (c Config) url(account string) string {
	return strings.TrimSuffix(account, "/") + "/" + c.Container
}

// onAccount makes a connection string one of another account with the same key or SAS.
func onAccount(text, account string) string {
	if account == "" {
		return text
	}
	var out []string
	for part := range strings.SplitSeq(text, ";") {
		key, _, _ := strings.Cut(part, "=")
		switch strings.ToLower(strings.TrimSpace(key)) {
		case "", "blobendpoint", "endpointsuffix", "defaultendpointsprotocol", "accountname":
			continue
		}
		out = append(out, part)
	}
	return strings.Join(append(out, "BlobEndpoint="+account, "AccountName="+accountName(account)), ";")
}

// accountName is the first part of the host, or of the path where the host is an address (an emulator).
func accountName(account string) string {
	u, err := url.Parse(account)
	if err != nil {
		return ""
	}
	if path := strings.Trim(u.Path, "/"); path != "" {
		return path
	}
	name, _, _ := strings.Cut(u.Hostname(), ".")
	return name
}

// secret reads the one secret that is configured.
func (c Config) secret() (kind, secret string, err error) {
	getenv := c.Getenv
	if getenv == nil {
		getenv = os.Getenv
	}
	for _, p := range []struct{ kind, env, file string }{
		{"connection_string", c.ConnectionStringEnv, c.ConnectionStringFile},
		{"key", c.KeyEnv, c.KeyFile},
		{"sas", c.SASEnv, c.SASFile},
	} {
		switch {
		case p.env != "":
			if secret = strings.TrimSpace(getenv(p.env)); secret == "" {
				err = fault.New(fault.SiteInvalid, "store.azure.%s_env: the environment variable %s is not set", p.kind, p.env)
			}
			return p.kind, secret, err
		case p.file != "":
			secret, err = readSecret(p.file)
			return p.kind, secret, err
		}
	}
	return "", "", nil
}

// readSecret reads a file that only its owner may read.
func readSecret(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a pipe is refused below, and not waited for
	if errors.Is(err, fs.ErrNotExist) {
		return "", fault.New(fault.SiteInvalid, "the file with the secret of the storage account is missing").At(path)
	}
	if err != nil {
		return "", fault.In(err, "", "")
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fault.In(err, "", "")
	}
	// On Windows the mode says nothing: who may read is in the access control list of the folder.
	if mode := info.Mode(); runtime.GOOS != "windows" && mode.Perm()&0o077 != 0 || !mode.IsRegular() {
		return "", fault.New(fault.SiteInvalid, "others than its owner can read the file with the secret of the storage account (mode %04o, want 0600)",
			mode.Perm()).At(path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxSecret))
	if err != nil {
		return "", fault.In(err, "", "")
	}
	secret := strings.TrimSpace(string(data))
	if secret == "" {
		return "", fault.New(fault.SiteInvalid, "the file with the secret of the storage account is empty").At(path)
	}
	return secret, nil
}
