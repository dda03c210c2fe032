package pageblob

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
)

// TestAccess: what a SAS says of its time and its permissions is told when the service refuses it.
func TestAccess(t *testing.T) {
	for _, c := range []struct{ name, query, code, want, not string }{
		{"ended", "sp=rwdlac&se=2021-03-04T05%3A06%3A07Z&sig=AAAA", "AuthenticationFailed", "the SAS has ended on 2021-03-04T05:06:07Z", "AAAA"},
		{"ended, as the emulator says it", "sp=rwdlac&se=2021-03-04T05%3A06%3A07Z&sig=AAAA", "AuthorizationFailure", "the SAS has ended on 2021-03-04T05:06:07Z", "AAAA"},
		{"ended, by the day", "sp=rwdlac&se=2021-03-04&sig=AAAA", "AuthenticationFailed", "the SAS has ended on 2021-03-04T00:00:00Z", "AAAA"},
		{"not begun", "sp=rwdlac&st=2521-03-04T05:06Z&se=2522-03-04&sig=AAAA", "AuthenticationFailed", "the SAS begins on 2521-03-04T05:06:00Z", "ended on"},
		{"neither", "sp=rwdlac&se=2522-03-04&sig=AAAA", "AuthenticationFailed", "refused the credentials", "ended on"},
		{"lacks", "sp=rl&se=2522-03-04&sig=AAAA", "AuthorizationPermissionMismatch", "lacks permissions that replicas need (cwd of sp=rcwdl)", "AAAA"},
		{"a stored policy", "si=replicas&sig=AAAA", "AuthorizationPermissionMismatch", "lacks a permission", "of sp="},
		{"no SAS", "", "AuthenticationFailed", "refused the credentials", "ended on"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := &http.Request{URL: &url.URL{Path: "/c/b", RawQuery: c.query}}
			err := answered(&azcore.ResponseError{StatusCode: 403, ErrorCode: c.code, RawResponse: &http.Response{Request: r}}, "blob")
			text := err.Msg + " " + err.Cause + " " + err.Mend
			if !strings.Contains(text, c.want) || strings.Contains(text, c.not) {
				t.Errorf("%q", text)
			}
		})
	}
}

// TestStoreAccess: a store that is entered by a SAS says what the SAS says of itself.
func TestStoreAccess(t *testing.T) {
	sas := map[string]string{"SAS": "?sp=racwl&se=2030-01-02T03%3A04%3A05Z&sig=AAAA"}
	s, err := Open(Config{AccountURL: "https://a.blob.core.windows.net", Container: "c", SASEnv: "SAS", Getenv: func(k string) string { return sas[k] }}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	a, ok := s.Access()
	if !ok || a.Missing != "d" || !a.Until.Equal(time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)) {
		t.Errorf("%+v, %v", a, ok)
	}
}
