package pageblob

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"sitrep/internal/fault"
)

// accountEnv is the environment variable that Azure's own tools take the name of a storage account from.
const accountEnv = "AZURE_STORAGE_ACCOUNT"

const secondarySuffix = "-secondary"

// accountOf is the name of the account of an address: the first label of a host of the blob service (ACCOUNT.blob.core.windows.net, and
// those of other clouds, of DNS zones and of private links), else the first part of the path, as of an emulator. It is "" where neither
// is one, as of a domain of the customer's own. secondary says that the address is the one of the account's read-only copy.
func accountOf(address string) (name string, secondary bool) {
	u, err := url.Parse(address)
	if err != nil {
		return "", false
	}
	labels := strings.Split(strings.ToLower(u.Hostname()), ".")
	if slices.Contains(labels[1:], "blob") {
		name = labels[0]
	} else {
		name, _, _ = strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	}
	return strings.CutSuffix(name, secondarySuffix)
}

// account is the name of an account for the signature of its key: what the site file says, or its address, or the environment.
func (c Config) account(address string) (string, error) {
	name, _ := accountOf(address)
	if address == c.AccountURL && c.AccountName != "" {
		name = c.AccountName
	}
	if name == "" {
		name = strings.TrimSpace(c.getenv(accountEnv))
	}
	if name == "" {
		e := fault.New(fault.SiteInvalid, "store.azure: the address does not tell the name of the storage account, by which requests with its key are signed")
		e.Mend = "Set account_name in the site file, or " + accountEnv + " in the environment."
		return "", e
	}
	return name, nil
}

// readOnly is the pipeline of the read-only copy of an account: what writes is refused before it is sent, and says where to.
type readOnly struct{ primary string }

// Do lets reads pass.
func (r *readOnly) Do(req *policy.Request) (*http.Response, error) {
	if r != nil && r.primary != "" && req.Raw().Method != http.MethodGet && req.Raw().Method != http.MethodHead {
		e := fault.New(fault.Permission, "the address is that of the account's secondary, which is a read-only copy")
		e.Cause = "Azure replicates the account to a second region, whose copy can only be read."
		e.Mend = "Name " + r.primary + " in the site file. If that is lost, fail the account over first (az storage account failover); until then points can be read from here, exported and tested."
		return nil, e
	}
	return req.Next()
}

// Secondary says that the store is the read-only copy of an account in its second region, and what the address of the account itself is.
func (s *Store) Secondary() (primary string, ok bool) { return s.copy.primary, s.copy.primary != "" }

// primaryOf is the address of the account itself of an address of its secondary; "" when it is none.
func primaryOf(address string) string {
	if name, secondary := accountOf(address); secondary {
		return strings.Replace(address, name+secondarySuffix, name, 1)
	}
	return ""
}

// blobEndpoint is the address that a connection string names, "" when it follows from its other parts.
func blobEndpoint(text string) string {
	for part := range strings.SplitSeq(text, ";") {
		if key, value, _ := strings.Cut(part, "="); strings.EqualFold(strings.TrimSpace(key), "BlobEndpoint") {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
