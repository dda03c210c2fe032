package replicate_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

// TestAway has every verb refused in every phase in which the VM belongs to the recovery site, and nothing changed by it.
func TestAway(t *testing.T) {
	ctx := context.Background()
	for _, phase := range []replica.Phase{
		replica.FailoverStarted, replica.FailedOver, replica.Committed, replica.FailbackStarted, replica.FailedBack,
	} {
		r, g := protectedRig(t)
		g["os"][5] ^= 1
		must(t, r.Write(g))
		must(t, r.Capture(ctx)) // a log waits
		j, done, err := r.Job(ctx, false)
		must(t, err)
		st, err := j.Replica.Ledger().Load(ctx)
		must(t, err)
		st.Phase, st.Generation = phase, st.Generation+1
		st.Owner = replica.Owner{Site: "dr", Host: "kvm1", Since: time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)}
		st, err = j.Replica.Ledger().Save(ctx, st)
		must(t, err)
		verbs := map[string]func() error{
			"delta":    func() error { _, err := j.Delta(ctx); return err },
			"seed":     func() error { _, err := j.Seed(ctx); return err },
			"finalize": func() error { _, err := j.Finalize(ctx, nil); return err },
			"apply":    func() error { _, err := j.Apply(ctx); return err },
			"pause":    func() error { return j.Pause(ctx, "lunch") },
			"resume":   func() error { _, err := j.Resume(ctx); return err },
			"retire":   func() error { return j.Retire(ctx, "enough") },
			"compare":  func() error { _, err := j.CompareSource(ctx, nil); return err },
			"ship":     func() error { _, err := j.Ship(ctx); return err },
			"finish":   func() error { _, err := j.Finish(ctx); return err },
		}
		for name, verb := range verbs {
			err := verb()
			if name == "finish" && phase == replica.FailoverStarted {
				must(t, err)
				continue
			}
			if !fault.Is(err, fault.Fenced) {
				t.Errorf("%s in phase %s: %v", name, phase, err)
				continue
			}
			for _, word := range []string{`"dr"`, `"kvm1"`, "2026-03-04T12:00:00Z", "generation 2", string(phase)} {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%s in phase %s does not say %q: %v", name, phase, word, err)
				}
			}
		}
		must(t, j.Mark(ctx, fault.LogLimit, "too much", r.Now))
		if now, err := j.Replica.Ledger().Load(ctx); err != nil || now.Version != st.Version {
			t.Errorf("phase %s: the ledger was changed: %s (error %v)", phase, fmt.Sprint(now.Phase), err)
		}
		_, err = j.Verify(ctx, 0) // a proof changes nothing that matters
		must(t, errors.Join(err, done()))
	}
}
