package e2e_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/progress"
	"sitrep/internal/replica"
	"sitrep/internal/replica/dir"
	"sitrep/replicate"
)

// TestTakeOver stops a run of the old site in the middle of an apply, takes the replica over, as a failover does, finishes the
// apply, and lets the stopped run go on: it changes nothing any more, and says who took over.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	for name, site := range map[string]func(*testing.T) *rig{"copied": newRig, "reflinks": newRigXFS} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const size = 48 * mib
			r := site(t)
			g := newQEMU(t, r.path("web01", "os.raw"), "raw", size)
			m := r.add("web01", map[string]guest{"os": g})
			rnd := random(t)
			fillRaw(t, g.path, rnd, 0, size)
			r.protect(m)
			c, out, errs := r.stopApplying(m, func() { fillRaw(t, g.path, rnd, 0, size-8*mib) })
			r.takeOver(m)
			g.same(t, r.replica(m, "os"))
			m.remember(t)
			r.pointsAre(m)
			left := r.hashes(r.path("store", "web01"))

			check(t, c.Process.Signal(unix.SIGCONT))
			o := r.wait(c, out, errs)
			obj := o.object(t)
			if o.code != 6 || obj.Error == nil || obj.Error.Code != string(fault.Fenced) {
				t.Fatalf("exit code 6 is wanted: %v", o)
			}
			for _, w := range []string{`"dr"`, `"kvm1"`, "2026-03-04T12:00:00Z", "generation 2", "status web01"} {
				if !strings.Contains(strings.Join(strings.Fields(o.stderr), " "), w) {
					t.Errorf("%q is not said: %v", w, o)
				}
			}
			if now := r.hashes(r.path("store", "web01")); !maps.Equal(now, left) {
				t.Errorf("the stale run has changed the replica: %v, it was %v", now, left)
			}
			g.same(t, r.replica(m, "os"))
			r.pointsAre(m)
			logs, err := filepath.Glob(r.path("web01", "*.hrl"))
			if err != nil || len(logs) != 1 {
				t.Errorf("beside the disk lie %q (error %v), not the log that the stale run could not get applied", logs, err)
			}
			r.refused(6, "fenced", []string{"web01", "dr", "kvm1", "failover-in-progress"}, "delta", "web01", "--now")
			if now := r.hashes(r.path("store", "web01")); !maps.Equal(now, left) {
				t.Errorf("a new run of the old site has changed the replica: %v, it was %v", now, left)
			}
		})
	}
}

// stopApplying starts deltas until one is stopped while the ledger says that it is applying.
func (r *rig) stopApplying(m *machine, change func()) (c *exec.Cmd, out, errs *bytes.Buffer) {
	r.Helper()
	for range 20 {
		change()
		out, errs = new(bytes.Buffer), new(bytes.Buffer)
		c = r.command("delta", m.name, "--now", "--json")
		c.Stdout, c.Stderr = out, errs
		check(r.T, c.Start())
		ended := make(chan struct{})
		r.Cleanup(func() { c.Process.Kill() }) // however this ends
		pid := c.Process.Pid
		go func() { // WNOWAIT leaves the end to Wait
			unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
			close(ended)
		}()
		for open(ended) {
			if !r.applying(m) {
				time.Sleep(100 * time.Microsecond)
				continue
			}
			check(r.T, c.Process.Signal(unix.SIGSTOP))
			for open(ended) && !stopped(r.T, pid) {
				time.Sleep(time.Millisecond)
			}
			if r.applying(m) && open(ended) {
				return c, out, errs
			}
			check(r.T, c.Process.Signal(unix.SIGCONT))
		}
		if o := r.wait(c, out, errs); o.code != 0 {
			r.Fatal(o)
		}
		m.remember(r.T)
	}
	r.Fatal("no run could be stopped in the middle of an apply")
	return nil, nil, nil
}

func open(ended <-chan struct{}) bool {
	select {
	case <-ended:
		return false
	default:
		return true
	}
}

// stopped says whether every thread of a process is held still.
func stopped(t *testing.T, pid int) bool {
	t.Helper()
	list, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	check(t, err)
	for _, path := range list {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // a thread that ended
		}
		if state := data[bytes.LastIndexByte(data, ')')+1:]; !bytes.HasPrefix(state, []byte(" T")) {
			return false
		}
	}
	return true
}

func (r *rig) ledger(m *machine) replica.State {
	r.Helper()
	v, err := dir.New(durable.OS(), r.path("store")).View(r.Context(), m.name)
	check(r.T, err)
	defer v.Close()
	st, err := v.Ledger().Load(r.Context())
	check(r.T, err)
	return st
}

// applying says whether the ledger says so, and is not being changed: from a run that stops just then nothing can be taken
// over (that is tested in the package of the store).
func (r *rig) applying(m *machine) bool {
	r.Helper()
	if r.ledger(m).Applying == nil {
		return false
	}
	lock, err := durable.OS().Lock(r.path("store", m.name, "ledger.lock"))
	if errors.Is(err, durable.ErrLocked) {
		return false
	}
	check(r.T, err)
	check(r.T, lock.Close())
	return true
}

// takeOver does what a failover does first.
func (r *rig) takeOver(m *machine) {
	r.Helper()
	ctx := context.Background()
	at := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	rep, err := dir.New(durable.OS(), r.path("store")).Seize(ctx, m.name, func(s replica.State) (replica.State, error) {
		s.Generation++
		s.Owner = replica.Owner{Site: "dr", Host: "kvm1", Since: at}
		s.Phase, s.PhaseSince = replica.FailoverStarted, at
		return s, nil
	})
	check(r.T, err)
	defer func() { check(r.T, rep.Close()) }()
	j := replicate.Job{
		VM: m.name, Replica: rep, FS: durable.OS(), Keep: r.keep, Meter: progress.None(),
		Log: slog.New(slog.DiscardHandler), Now: time.Now,
	}
	n, err := j.Finish(ctx)
	check(r.T, err)
	if n != 1 {
		r.Fatalf("%d cuts were applied by the new owner, one was left half done", n)
	}
}

// hashes is what all files in a folder hold.
func (r *rig) hashes(folder string) map[string]string {
	r.Helper()
	out := map[string]string{}
	list := r.list(folder)
	slices.Sort(list)
	for _, path := range list {
		f, err := os.Open(path)
		check(r.T, err)
		h := sha256.New()
		_, err = io.Copy(h, f)
		check(r.T, err)
		check(r.T, f.Close())
		out[path] = fmt.Sprintf("%x", h.Sum(nil)[:8])
	}
	return out
}
