package pageblob

import (
	"context"
	"errors"
	"io"
	"net/http"
	"regexp"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"sitrep/internal/fault"
)

// tokens is the Azure credential of this machine. It says what kind of failure it is when there is no token: that nobody answers
// passes by itself, and that a token is refused does not. The SDK has only a text for both, which may have secrets in it.
type tokens struct{ from azcore.TokenCredential }

// newTokens asks nobody.
func newTokens(retry policy.RetryOptions) (*tokens, error) {
	cred, err := azidentity.NewDefaultAzureCredential(&azidentity.DefaultAzureCredentialOptions{
		ClientOptions: azcore.ClientOptions{Retry: retry, PerRetryPolicies: []policy.Policy{tokenWatch{}}},
	})
	if err != nil {
		return nil, fault.New(fault.StoreDenied, "this machine has no usable Azure credential")
	}
	return &tokens{cred}, nil
}

// tokenAsked is what became of the last request that was made for one token.
type tokenAsked struct {
	status int   // 0: no answer
	err    error // why there was none
}

type tokenAskedKey struct{}

// tokenWatch notes, for the token that is asked for, how the last request ended.
type tokenWatch struct{}

func (tokenWatch) Do(req *policy.Request) (*http.Response, error) {
	resp, err := req.Next()
	if a, ok := req.Raw().Context().Value(tokenAskedKey{}).(*tokenAsked); ok {
		*a = tokenAsked{err: err}
		if err == nil {
			a.status = resp.StatusCode
		}
	}
	return resp, err
}

// GetToken returns a token. The error is a noToken, or that of the context.
func (t *tokens) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	var last tokenAsked
	token, err := t.from.GetToken(context.WithValue(ctx, tokenAskedKey{}, &last), o)
	if err == nil {
		return token, nil
	}
	if cerr := ctx.Err(); cerr != nil {
		return token, cerr
	}
	return token, noToken{last.failure(err)}
}

// failure is the error for the operator when there is no token because of err.
func (a tokenAsked) failure(err error) *fault.Error {
	var auth *azidentity.AuthenticationFailedError
	switch {
	case !errors.As(err, &auth):
		return fault.New(fault.StoreDenied, "no Azure credential of this machine works (managed identity, environment, az login)")
	case a.err != nil:
		return fault.Wrap(fault.StoreUnreachable, strip(a.err), "what gives out the Azure tokens of this machine did not answer")
	case a.status >= 500, a.status == http.StatusTooManyRequests, a.status == http.StatusRequestTimeout:
		return fault.New(fault.StoreUnreachable, "what gives out the Azure tokens of this machine answered HTTP %d", a.status)
	case a.status == 0, a.status < 300: // a program like az, or an answer that is none
		return fault.New(fault.StoreDenied, "the Azure credential of this machine gives no token")
	}
	return fault.New(fault.StoreDenied, "this machine is refused an Azure token: HTTP %d%s", a.status, reason(auth.RawResponse))
}

// reasonCode is how Microsoft Entra names why it refuses a token. The rest of its answer is not shown.
var reasonCode = regexp.MustCompile(`AADSTS[0-9]{3,9}`)

// maxReason is the bytes of an answer in which the reason is looked for.
const maxReason = 64 << 10

func reason(resp *http.Response) string {
	if resp == nil || resp.Body == nil {
		return ""
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReason))
	if code := reasonCode.Find(body); err == nil && code != nil {
		return ", " + string(code)
	}
	return ""
}

// noToken is an error that the SDK does not try again: asking for a token has been tried often enough.
type noToken struct{ why *fault.Error }

func (n noToken) Error() string { return n.why.Error() }
func (n noToken) Unwrap() error { return n.why }

// NonRetriable is what the SDK looks for.
func (noToken) NonRetriable() {}
