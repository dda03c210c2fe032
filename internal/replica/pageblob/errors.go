package pageblob

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"sitrep/internal/fault"
)

// address matches what must not be printed: the address of a request has the signature of a SAS in it.
var address = regexp.MustCompile(`(?i)https?://[^\s"]+|sig=[^\s"&]+|(account|shared)key=[^\s";]+|bearer [A-Za-z0-9._~+/=-]+`)

// hidden is the cause of a failed request without its address. It still is what it was to errors.Is.
type hidden struct{ err error }

func (h hidden) Error() string { return address.ReplaceAllString(h.err.Error(), "(address not shown)") }

func (h hidden) Is(target error) bool { return errors.Is(h.err, target) }

// strip takes the address off the error of a transport.
func strip(err error) error {
	var u *url.Error
	for errors.As(err, &u) {
		err = u.Err
	}
	return hidden{err}
}

// hasCode says whether the service answered with one of the codes.
func hasCode(err error, codes ...bloberror.Code) bool { return bloberror.HasCode(err, codes...) }

// isMissing says whether the service, and not something in between, says that there is no such blob.
func isMissing(err error) bool { return hasCode(err, bloberror.BlobNotFound) }

// isOutside says whether the service answered that a range is not in the blob. It has several codes for that.
func isOutside(err error) bool {
	re, ok := errors.AsType[*azcore.ResponseError](err)
	return ok && re.StatusCode == http.StatusRequestedRangeNotSatisfiable
}

// unanswered says whether it is not known if the service has done what it was asked to do.
func unanswered(err error) bool {
	var re *azcore.ResponseError
	if !errors.As(err, &re) {
		return true
	}
	return re.StatusCode >= 500 || re.StatusCode == http.StatusRequestTimeout
}

// Codes that package bloberror does not name.
const (
	codeContainerDeleting  bloberror.Code = "ContainerBeingDeleted"
	codeSnapshotRate       bloberror.Code = "SnapshotOperationRateExceeded"
	codeSnapshotCount      bloberror.Code = "SnapshotCountExceeded"
	codeBlobOverwritten    bloberror.Code = "BlobOverwritten"
	codeMemoryLimit        bloberror.Code = "MemoryExtentStoreAtSizeLimit" // Azurite's
	codeCRC64Mismatch      bloberror.Code = "Crc64Mismatch"
	codeNotImplemented     bloberror.Code = "APINotImplemented"
	codeKeyRefused         bloberror.Code = "KeyBasedAuthenticationNotPermitted"
	codePublicAccess       bloberror.Code = "PublicAccessNotPermitted"
	codeUnverifiableSource bloberror.Code = "CannotVerifyCopySource"
)

// rules are the classes of the service's answers that have a code of their own; statuses are told apart afterwards.
func rules() []struct {
	code fault.Code
	of   []bloberror.Code
} {
	return []struct {
		code fault.Code
		of   []bloberror.Code
	}{
		{fault.StoreNotMounted, []bloberror.Code{bloberror.ContainerNotFound, bloberror.ResourceNotFound, bloberror.ContainerDisabled}},
		{fault.NotFound, []bloberror.Code{bloberror.BlobNotFound}},
		{fault.StoreArchived, []bloberror.Code{bloberror.BlobArchived, bloberror.BlobBeingRehydrated}},
		{fault.StoreCorrupted, []bloberror.Code{bloberror.MD5Mismatch, codeCRC64Mismatch}},
		{fault.StoreLimit, []bloberror.Code{codeSnapshotCount, codeBlobOverwritten, bloberror.SnapshotsPresent,
			bloberror.PendingCopyOperation, bloberror.RequestBodyTooLarge, bloberror.MetadataTooLarge, bloberror.BlockCountExceedsLimit, codeMemoryLimit}},
		{fault.ReplicaHeld, []bloberror.Code{bloberror.LeaseAlreadyPresent, bloberror.LeaseIsBreakingAndCannotBeAcquired,
			bloberror.LeaseIDMissing, bloberror.LeaseIDMismatchWithBlobOperation, bloberror.LeaseIDMismatchWithLeaseOperation,
			bloberror.LeaseLost, bloberror.LeaseNotPresentWithBlobOperation, bloberror.LeaseNotPresentWithLeaseOperation,
			bloberror.LeaseIsBrokenAndCannotBeRenewed}},
		{fault.Fenced, []bloberror.Code{bloberror.SequenceNumberConditionNotMet}},
		{fault.Busy, []bloberror.Code{codeContainerDeleting}},
		{fault.LedgerConflict, []bloberror.Code{bloberror.ConditionNotMet, bloberror.BlobAlreadyExists}},
		{fault.StoreDenied, []bloberror.Code{codePublicAccess}},
		// A premium account makes a snapshot of a blob every ten minutes, and no sooner.
		{fault.StoreThrottled, []bloberror.Code{bloberror.ServerBusy, bloberror.OperationTimedOut, codeSnapshotRate}},
	}
}

// classify makes the error of a request one for the operator: what the service answered, by its code, or by the status where
// a proxy answered in its place; the request's id; and never its address. where is the blob, without secrets.
func classify(err error, where string) error {
	if err == nil {
		return nil
	}
	if n, ok := errors.AsType[noToken](err); ok {
		e := *n.why // which several requests may have met
		return e.At(where)
	}
	if e := fault.Find(err); e != nil {
		return err
	}
	if errors.Is(err, context.Canceled) {
		return fault.Wrap(fault.Interrupted, context.Canceled, "").At(where)
	}
	var re *azcore.ResponseError
	if errors.As(err, &re) {
		return answered(re, where)
	}
	if strings.Contains(err.Error(), "not permitted for non-TLS") {
		return fault.New(fault.StoreDenied, "a token is sent over https only").At(where)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fault.New(fault.StoreUnreachable, "there was no answer in time").At(where)
	}
	return fault.Wrap(fault.StoreUnreachable, strip(err), "").At(where)
}

// answered is classify for what came over HTTP.
func answered(re *azcore.ResponseError, where string) *fault.Error {
	e := fault.New(codeOf(re), "%s", answer(re)).At(where)
	if e.Code == fault.StoreDenied {
		clockOff(e, re.RawResponse)
	}
	if e.Code == fault.StoreDenied {
		if why := cmp.Or(refusedAccess(re, time.Now()), refusal(bloberror.Code(re.ErrorCode))); why != "" {
			e.Msg += "; " + why
			cause, mend, _ := strings.Cut(why, ": ")
			e.Cause, e.Mend = sentence(cause), sentence(mend)
		}
	}
	if e.Code == fault.NotFound {
		e.Err = fs.ErrNotExist
	}
	return e
}

func sentence(s string) string { return strings.ToUpper(s[:min(1, len(s))]) + s[min(1, len(s)):] + "." }

// refusedAccess says what the SAS of the request that was refused tells of that; "" for nothing.
func refusedAccess(re *azcore.ResponseError, now time.Time) string {
	if re.RawResponse == nil || re.RawResponse.Request == nil {
		return ""
	}
	a, ok := accessOf(re.RawResponse.Request.URL.Query())
	if !ok {
		return ""
	}
	switch bloberror.Code(re.ErrorCode) {
	case bloberror.AuthenticationFailed, bloberror.InvalidAuthenticationInfo, bloberror.AuthorizationFailure: // the emulator's for one that has ended
		return a.refused(now)
	case bloberror.AuthorizationPermissionMismatch, bloberror.InsufficientAccountPermissions:
		return a.lacks()
	}
	return ""
}

// refusal says what a refusal of each code means, and the way out; "" when the code says no more than that.
func refusal(code bloberror.Code) string {
	switch code {
	case bloberror.AuthenticationFailed, bloberror.InvalidAuthenticationInfo:
		return "the service refused the credentials (a wrong key, signature or token, or a SAS that has ended or not begun): look at the st and se of a SAS, and whether the key was rotated"
	case bloberror.AuthorizationPermissionMismatch, bloberror.InsufficientAccountPermissions:
		return "the credential is right and lacks a permission: a SAS needs sp=racwdl, an identity the role Storage Blob Data Contributor"
	case bloberror.AuthorizationResourceTypeMismatch, bloberror.AuthorizationServiceMismatch:
		return "the SAS is for other things than blobs: an account SAS needs ss=b and srt=sco"
	case bloberror.AuthorizationSourceIPMismatch, bloberror.AuthorizationProtocolMismatch:
		return "the SAS allows other addresses or protocols than this request has: look at its sip and spr"
	case bloberror.AuthorizationFailure:
		return "the account's network rules refuse this machine, or it has no role there: look at the account's firewall"
	case codeKeyRefused:
		return "the account takes no keys (allowSharedKeyAccess is false): sign in with the machine's Azure credential"
	case bloberror.AccountIsDisabled:
		return "the account is disabled: look at its subscription"
	}
	return ""
}

// clockOff makes a refusal one for this machine's clock, where that is the reason; when it may be, it is said.
func clockOff(e *fault.Error, resp *http.Response) {
	ahead, ok := clockAhead(resp, time.Now())
	if !ok || ahead.Abs() < clockNamed {
		return
	}
	e.Msg += "; " + clockRemark(ahead)
	if ahead.Abs() > clockRefused-clockUnsure {
		e.Code = fault.StoreClock
	}
}

func codeOf(re *azcore.ResponseError) fault.Code {
	for _, r := range rules() {
		if slices.Contains(r.of, bloberror.Code(re.ErrorCode)) {
			return r.code
		}
	}
	switch s := re.StatusCode; {
	case s == http.StatusUnauthorized, s == http.StatusForbidden, s == http.StatusProxyAuthRequired:
		return fault.StoreDenied
	case s == http.StatusTooManyRequests, s == http.StatusServiceUnavailable:
		return fault.StoreThrottled
	case s == http.StatusRequestEntityTooLarge:
		return fault.StoreLimit
	case s == http.StatusNotImplemented:
		return fault.StoreUnfit
	case s >= 500, s == http.StatusRequestTimeout, re.ErrorCode == "":
		return fault.StoreUnreachable
	}
	return fault.StoreUnfit
}

var (
	// codeText is words of which each has a capital and small letters, as all codes of the service are made. Part of a signature
	// is hardly ever so.
	codeText = regexp.MustCompile(`^(API)?([A-Z][a-z]+[0-9]{0,2}){1,10}$`)
	idText   = regexp.MustCompile(`^[0-9A-Fa-f-]{1,64}$`)
)

// answer is the service's answer in a few words: what was asked for, and under which name its operator finds it.
func answer(re *azcore.ResponseError) string {
	code := re.ErrorCode
	if !codeText.MatchString(code) { // nothing else that a server sends is repeated: it may have our request in it
		code = "no error code: the answer is not the storage service's, perhaps a proxy's"
	}
	text := fmt.Sprintf("HTTP %d, %s", re.StatusCode, code)
	if re.RawResponse == nil {
		return text
	}
	if id := re.RawResponse.Header.Get("x-ms-request-id"); idText.MatchString(id) {
		text += ", request id " + id
	}
	return text
}

// notTheService is the error of an answer that says that all is well and lacks what the service always gives.
func notTheService(where string) error {
	return fault.New(fault.StoreUnreachable, "the answer is not the storage service's, perhaps a proxy's").At(where)
}
