package pageblob

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
)

// TestNothingOfTheServerIsRepeated: a server, or a proxy, may put our own request, with the signature, into its answer.
func TestNothingOfTheServerIsRepeated(t *testing.T) {
	const secret = "Xz9SIGNATUREq4f81b2"
	for _, code := range []string{secret, "sig=" + secret, "https://a/?sig=" + secret, "Bad\r\nsig " + secret, strings.Repeat("A", 500), "\x1b[2J"} {
		resp := &http.Response{Header: http.Header{"X-Ms-Request-Id": {secret}, "X-Ms-Error-Code": {code}}}
		err := classify(&azcore.ResponseError{StatusCode: 403, ErrorCode: code, RawResponse: resp}, "blob")
		if text := err.Error(); strings.Contains(text, secret) || strings.Contains(text, "AAAA") || strings.ContainsAny(text, "\x1b\r\n") {
			t.Errorf("%q", text)
		}
	}
	codes := []bloberror.Code{codeNotImplemented, bloberror.AuthenticationFailed, bloberror.AuthorizationResourceTypeMismatch, bloberror.InvalidXMLDocument}
	for _, r := range rules() {
		codes = append(codes, r.of...)
	}
	for _, code := range codes {
		if text := answer(&azcore.ResponseError{StatusCode: 400, ErrorCode: string(code)}); !strings.HasSuffix(text, string(code)) {
			t.Errorf("%s is not named: %q", code, text)
		}
	}
	for _, text := range []string{"Get https://a/?SIG=" + secret, "x SIG=" + secret, "AccountKey=" + secret + ";", "Authorization: Bearer " + secret} {
		if got := strip(errors.New(text)).Error(); strings.Contains(got, secret) {
			t.Errorf("%q", got)
		}
	}
}

// TestRefusalsDiffer: each kind of refusal has a meaning of its own.
func TestRefusalsDiffer(t *testing.T) {
	seen := map[string]bloberror.Code{}
	for _, code := range []bloberror.Code{bloberror.AuthenticationFailed, bloberror.AuthorizationPermissionMismatch, bloberror.AuthorizationResourceTypeMismatch,
		bloberror.AuthorizationSourceIPMismatch, bloberror.AuthorizationFailure, codeKeyRefused, bloberror.AccountIsDisabled} {
		err := answered(&azcore.ResponseError{StatusCode: 403, ErrorCode: string(code)}, "blob")
		_, why, ok := strings.Cut(err.Msg, "; ")
		if !ok || why == "" || seen[why] != "" {
			t.Errorf("%s: %q, as %s", code, err.Msg, seen[why])
		}
		seen[why] = code
	}
}
