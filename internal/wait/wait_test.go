package wait_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"sitrep/internal/wait"
)

func TestFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		if err := wait.For(t.Context(), time.Hour); err != nil || time.Since(began) != time.Hour {
			t.Errorf("waited %v: %v", time.Since(began), err)
		}
		began = time.Now()
		for _, d := range []time.Duration{0, -time.Hour} {
			if err := wait.For(t.Context(), d); err != nil || time.Since(began) != 0 {
				t.Errorf("%v: waited %v: %v", d, time.Since(began), err)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := wait.For(ctx, time.Hour); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Minute {
			t.Errorf("waited %v: %v", time.Since(began), err)
		}
		for _, d := range []time.Duration{-1, 0, 1} {
			if err := wait.For(ctx, d); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v, after the end: %v", d, err)
			}
		}
	})
}
