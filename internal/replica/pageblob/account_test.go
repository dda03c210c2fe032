package pageblob

import (
	"encoding/base64"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"sitrep/internal/fault"
	"sitrep/internal/hrl"
)

func TestAccountOf(t *testing.T) {
	for address, want := range map[string]struct {
		name      string
		secondary bool
	}{
		"https://contosodr.blob.core.windows.net":                {"contosodr", false},
		"https://contosodr-secondary.blob.core.windows.net/":     {"contosodr", true},
		"https://contosodr.z12.blob.storage.azure.net":           {"contosodr", false},
		"https://contosodr-secondary.blob.core.chinacloudapi.cn": {"contosodr", true},
		"https://contosodr.privatelink.blob.core.windows.net":    {"contosodr", false},
		"https://127.0.0.1:10000/devstoreaccount1":               {"devstoreaccount1", false},
		"http://localhost:10000/devstoreaccount1-secondary":      {"devstoreaccount1", true},
		"https://backup.contoso.com":                             {"", false},
		"https://backup-secondary.contoso.com":                   {"", false},
	} {
		if name, secondary := accountOf(address); name != want.name || secondary != want.secondary {
			t.Errorf("%s: %q, %v", address, name, secondary)
		}
	}
}

// wireTap answers that nothing is there, and keeps what was asked.
type wireTap struct{ asked []*http.Request }

func (w *wireTap) Do(r *http.Request) (*http.Response, error) {
	w.asked = append(w.asked, r)
	return &http.Response{StatusCode: http.StatusNotFound, Header: http.Header{"X-Ms-Error-Code": {"ContainerNotFound"}}, Body: io.NopCloser(strings.NewReader("")), Request: r}, nil
}

func tapped(t *testing.T, cfg Config, env map[string]string) (*Store, *wireTap, error) {
	t.Helper()
	env["KEY"] = base64.StdEncoding.EncodeToString([]byte("a key"))
	cfg.Container, cfg.Getenv = "replicas", func(k string) string { return env[k] }
	tap := &wireTap{}
	s, err := Open(cfg, Options{Transport: tap, Holder: "h", Retry: policy.RetryOptions{MaxRetries: -1, TryTimeout: time.Minute}})
	return s, tap, err
}

// TestAccountSigns looks at the name that requests are signed in.
func TestAccountSigns(t *testing.T) {
	for address, c := range map[string]struct {
		named, env, want string
	}{
		"https://contosodr.blob.core.windows.net":           {"", "other", "contosodr"},
		"https://contosodr-secondary.blob.core.windows.net": {"", "", "contosodr"},
		"https://backup.contoso.com":                        {"contosodr", "other", "contosodr"},
		"https://store.contoso.com":                         {"", "contosodr", "contosodr"},
		"https://10.0.0.4/contosodr":                        {"", "", "contosodr"},
	} {
		s, tap, err := tapped(t, Config{AccountURL: address, AccountName: c.named, KeyEnv: "KEY"}, map[string]string{accountEnv: c.env})
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		s.Prepare(t.Context(), hrl.NewID()) // of what is not there
		if len(tap.asked) == 0 || !strings.HasPrefix(tap.asked[0].Header.Get("Authorization"), "SharedKey "+c.want+":") {
			t.Errorf("%s: signed as %q", address, tap.asked[0].Header.Get("Authorization"))
		}
	}
	_, _, err := tapped(t, Config{AccountURL: "https://backup.contoso.com", KeyEnv: "KEY"}, map[string]string{})
	if e := fault.Find(err); e == nil || e.Code != fault.SiteInvalid || !strings.Contains(e.Mend, "account_name") {
		t.Errorf("an address that does not tell the account: %v", err)
	}
	if _, _, err := tapped(t, Config{AccountURL: "https://backup.contoso.com", SASEnv: "KEY"}, map[string]string{}); err != nil {
		t.Errorf("a SAS needs no name: %v", err)
	}
}

// TestSecondary reads from the read-only copy of an account, and sends nothing that writes.
func TestSecondary(t *testing.T) {
	for _, cfg := range []Config{
		{AccountURL: "https://contosodr-secondary.blob.core.windows.net", KeyEnv: "KEY"},
		{ConnectionStringEnv: "C"},
	} {
		s, tap, err := tapped(t, cfg, map[string]string{"C": "AccountName=contosodr;AccountKey=YSBrZXk=;BlobEndpoint=https://contosodr-secondary.blob.core.windows.net"})
		if err != nil {
			t.Fatal(err)
		}
		if primary, ok := s.Secondary(); !ok || primary != "https://contosodr.blob.core.windows.net" {
			t.Errorf("the account itself is at %q", primary)
		}
		_, err = s.Prepare(t.Context(), hrl.ID{}) // makes the store where there is none
		e := fault.Find(err)
		if e == nil || e.Code != fault.Permission || !strings.Contains(e.Msg, "secondary") || !strings.Contains(e.Mend, "https://contosodr.blob.core.windows.net ") {
			t.Errorf("the error is %v", err)
		}
		for _, r := range tap.asked {
			if r.Method != http.MethodGet && r.Method != http.MethodHead {
				t.Errorf("sent: %s %s", r.Method, r.URL)
			}
		}
		if len(tap.asked) == 0 {
			t.Error("nothing was read")
		}
	}
}
