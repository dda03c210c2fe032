package pageblob

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"

	"sitrep/internal/fault"
)

// TestClockOfRefusal: a refusal that comes from this machine's clock says so, and by how much; another one does not blame it.
func TestClockOfRefusal(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		ahead  time.Duration // the service's clock
		want   fault.Code
		say    string
	}{
		{403, "AuthenticationFailed", 20 * time.Minute, fault.StoreClock, "clock is 20m0s behind the service's"},
		{403, "AuthenticationFailed", -20 * time.Minute, fault.StoreClock, "clock is 20m0s ahead of the service's"},
		{403, "RequestTimeTooSkewed", 24 * time.Hour, fault.StoreClock, "clock is 24h0m0s behind"},
		{401, "InvalidAuthenticationInfo", 16 * time.Minute, fault.StoreClock, "set the clock"},
		{403, "", 15*time.Minute + time.Second, fault.StoreClock, "15m0s behind"},
		{403, "AuthenticationFailed", 8 * time.Minute, fault.StoreDenied, "clock is 8m0s behind"}, // not what it was refused for
		{403, "AuthenticationFailed", time.Minute, fault.StoreDenied, ""},
		{403, "AuthenticationFailed", 0, fault.StoreDenied, ""},
		{404, "BlobNotFound", 20 * time.Minute, fault.NotFound, ""},
		{503, "ServerBusy", 20 * time.Minute, fault.StoreThrottled, ""},
	} {
		h := http.Header{"Date": {time.Now().Add(c.ahead).UTC().Format(http.TimeFormat)}}
		err := classify(&azcore.ResponseError{StatusCode: c.status, ErrorCode: c.code,
			RawResponse: &http.Response{StatusCode: c.status, Header: h}}, "x/vm/os.vhd")
		if !fault.Is(err, c.want) {
			t.Errorf("%d %s, %s apart: %v, want %s", c.status, c.code, c.ahead, err, c.want)
		}
		if said := strings.Contains(err.Error(), "clock"); said != (c.say != "") || !strings.Contains(err.Error(), c.say) {
			t.Errorf("%d %s, %s apart: %v", c.status, c.code, c.ahead, err)
		}
	}
	for _, date := range []string{"", "yesterday"} {
		err := classify(&azcore.ResponseError{StatusCode: 403, RawResponse: &http.Response{StatusCode: 403,
			Header: http.Header{"Date": {date}}}}, "x")
		if !fault.Is(err, fault.StoreDenied) || strings.Contains(err.Error(), "clock") {
			t.Errorf("a refusal at %q: %v", date, err)
		}
	}
	e := fault.StoreClock.Lookup()
	if e.Class != fault.Recoverable || !strings.Contains(e.Advice, "Set the clock") {
		t.Errorf("the advice is %+v", e)
	}
}
