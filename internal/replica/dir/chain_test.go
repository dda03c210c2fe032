package dir_test

import (
	"errors"
	"path/filepath"
	"testing"

	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/replica/dir"
	"sitrep/internal/replica/replicatest"
)

// counting counts how often undo logs are opened.
type counting struct {
	durable.FS
	opened int
	broken error // what opening one gives, if not nil
}

func (c *counting) Open(name string) (durable.File, error) {
	if filepath.Ext(name) == ".hrl" {
		if c.opened++; c.broken != nil {
			return nil, c.broken
		}
	}
	return c.FS.Open(name)
}

// long is a replica with 50 points.
func long(t *testing.T) (*crashfs.FS, *replicatest.History) {
	t.Helper()
	fs := crashfs.New()
	h := replicatest.NewHistory("vm", 5, logsOn(fs))
	h.Keep = 50
	check(t, h.Begin(t.Context(), dir.New(fs, root)))
	for range 52 {
		check(t, h.Step(t.Context(), false))
	}
	return fs, h
}

// TestLongChain reads points that are seen through more undo logs than are kept open.
func TestLongChain(t *testing.T) {
	_, h := long(t)
	check(t, errors.Join(h.Check(t.Context()), h.Close()))
}

// TestSweepOpensNothing: what a sweep costs does not grow with the number of points, and an error of the machine is no missing point.
func TestSweepOpensNothing(t *testing.T) {
	fs, h := long(t)
	check(t, h.Close())
	c := &counting{FS: fs}
	r, err := dir.New(c, root).Open(t.Context(), h.VM)
	check(t, err)
	defer r.Close()
	s, err := r.Ledger().Load(t.Context())
	check(t, err)
	check(t, r.Points().Sweep(t.Context(), s))
	if c.opened > 0 {
		t.Errorf("%d undo logs were opened", c.opened)
	}
	c.broken = errors.New("too many open files")
	_, err = r.Points().Open(t.Context(), s, s.Points[0].ID)
	_, merr := replica.MissingPoints(t.Context(), r, s)
	for _, err := range []error{err, merr} {
		if err == nil || fault.Is(err, fault.PointMissing) || fault.Is(err, fault.PointDamaged) {
			t.Errorf("%v", err)
		}
	}
}
