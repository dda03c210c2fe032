// Package wait waits, and lets a signal end that.
package wait

import (
	"context"
	"time"
)

// For waits d, nothing when that is not more than 0, or until ctx ends: then it returns the error of ctx at once. A context that has ended
// before is an error whatever d is.
func For(ctx context.Context, d time.Duration) error {
	if ctx.Err() != nil || d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
