package pageblob

import (
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"sitrep/internal/replica"
)

const (
	// clockRefused is from when on the service refuses requests, for the time that is written in them.
	clockRefused = 15 * time.Minute
	// clockNamed is from when on it is said that the clocks differ: early enough to set this one.
	clockNamed = 5 * time.Minute
	// clockUnsure is by how much an answer's Date may be wrong: it was made when the answer was begun, in whole seconds.
	clockUnsure = 5 * time.Second
)

// clockAhead is how far the clock of whoever answered is ahead of this machine's; ok is false when the answer does not say.
func clockAhead(resp *http.Response, now time.Time) (ahead time.Duration, ok bool) {
	if resp == nil {
		return 0, false
	}
	at, err := http.ParseTime(resp.Header.Get("Date"))
	return at.Sub(now), err == nil
}

// clockRemark says by how much this machine's clock is wrong; "" when it is not, or not by much.
func clockRemark(ahead time.Duration) string {
	word := "behind"
	if ahead < 0 {
		word = "ahead of"
	}
	if ahead.Abs() < clockNamed {
		return ""
	}
	return fmt.Sprintf("this machine's clock is %s %s the service's, which refuses what is more than %s off: set the clock",
		ahead.Abs().Round(time.Minute), word, clockRefused)
}

// clockWatch remembers how far the clocks were apart at the last answer.
type clockWatch struct {
	seen  atomic.Bool
	ahead atomic.Int64 // nanoseconds
}

func (w *clockWatch) Do(req *policy.Request) (*http.Response, error) {
	resp, err := req.Next()
	if ahead, ok := clockAhead(resp, time.Now()); err == nil && ok {
		w.ahead.Store(int64(ahead))
		w.seen.Store(true)
	}
	return resp, err
}

var _ replica.Clocked = (*Store)(nil)

// Clock says how far the service's clock was ahead of this machine's at the last answer; see replica.Clocked.
func (s *Store) Clock() (ahead time.Duration, remark string, ok bool) {
	ahead = time.Duration(s.clock.ahead.Load())
	return ahead, clockRemark(ahead), s.clock.seen.Load()
}
