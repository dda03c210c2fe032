package pageblob

import (
	"cmp"
	"errors"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"sitrep/internal/fault"
)

// Config says where the store is, and where the secret is by which it is entered. At most one of the six places of a secret is
// given: without one, AccountURL is entered with the Azure credential of this machine (managed identity, environment, az login).
type Config struct {
	AccountURL string // https://ACCOUNT.blob.core.windows.net; not needed with a connection string
	// AccountName is the name of the account of AccountURL, where its address does not tell it; "" for what the address tells.
	AccountName string
	Container   string
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
	kind, secret, err := cfg.secret()
	if err != nil {
		return nil, err
	}
	for _, address := range []string{cfg.LogAccountURL, cfg.AccountURL, map[string]string{"connection_string": blobEndpoint(secret)}[kind]} {
		s.copy.primary = cmp.Or(s.copy.primary, primaryOf(address))
	}
	connect, err := cfg.signIn(kind, secret, s.clientOptions())
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
	o := s.opts.client(s.gate, &s.clock)
	o.PerCallPolicies = []policy.Policy{&s.copy} // which are not tried again
	return &container.ClientOptions{ClientOptions: o}
}

// unusable is what is said of a credential that cannot be one. The SDK's error may repeat it, so it is not shown.
func unusable(err error) error {
	if fault.Find(err) != nil {
		return err
	}
	return fault.New(fault.SiteInvalid, "store.azure: the address, or the secret, of the storage account is not one (not shown)")
}

// signIn returns how the container of an account is reached.
func (c Config) signIn(kind, secret string, o *container.ClientOptions) (func(account string) (*container.Client, error), error) {
	switch kind {
	case "connection_string":
		return func(account string) (*container.Client, error) {
			if account == "" {
				return container.NewClientFromConnectionString(secret, c.Container, o)
			}
			name, err := c.account(account)
			if err != nil {
				return nil, err
			}
			return container.NewClientFromConnectionString(onAccount(secret, account, name), c.Container, o)
		}, nil
	case "key":
		return func(account string) (*container.Client, error) {
			name, err := c.account(account)
			if err != nil {
				return nil, err
			}
			cred, err := container.NewSharedKeyCredential(name, secret)
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
func onAccount(text, account, name string) string {
	var out []string
	for part := range strings.SplitSeq(text, ";") {
		key, _, _ := strings.Cut(part, "=")
		switch strings.ToLower(strings.TrimSpace(key)) {
		case "", "blobendpoint", "endpointsuffix", "defaultendpointsprotocol", "accountname":
			continue
		}
		out = append(out, part)
	}
	return strings.Join(append(out, "BlobEndpoint="+account, "AccountName="+name), ";")
}

func (c Config) getenv(name string) string {
	if c.Getenv == nil {
		return os.Getenv(name)
	}
	return c.Getenv(name)
}

// secret reads the one secret that is configured.
func (c Config) secret() (kind, secret string, err error) {
	for _, p := range []struct{ kind, env, file string }{
		{"connection_string", c.ConnectionStringEnv, c.ConnectionStringFile},
		{"key", c.KeyEnv, c.KeyFile},
		{"sas", c.SASEnv, c.SASFile},
	} {
		switch {
		case p.env != "":
			if secret = strings.TrimSpace(c.getenv(p.env)); secret == "" {
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
