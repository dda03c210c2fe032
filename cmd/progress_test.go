package cmd

import (
	"bytes"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"sitrep/internal/durable"
)

// TestBarCaps: 100 % is shown when the task has ended, and not a byte earlier.
func TestBarCaps(t *testing.T) {
	var out bytes.Buffer
	now := time.Now()
	m := (&program{fs: durable.OS(), stderr: &out, getenv: os.Getenv, now: func() time.Time { return now }, opts: options{progress: "bar"}}).meter("web01")
	m.plan(3000)
	m.Begin("copy os", 1000, 0)
	for range 1000 {
		m.Add("copy os", 1)
	}
	m.Add("copy os", 5) // more than was announced
	if strings.Contains(out.String(), "100%") {
		t.Fatalf("100%% before the end: %q", out.String())
	}
	m.End("copy os")
	if !strings.Contains(out.String(), "100%") || !strings.Contains(out.String(), "web01 copy os") {
		t.Fatalf("no 100%% at the end: %q", out.String())
	}
	if !strings.HasSuffix(out.String(), "\n") {
		t.Fatalf("the bar's line is not ended: %q", out.String())
	}
	if strings.Contains(out.String(), "\x1b[3") {
		t.Fatalf("colours: %q", out.String())
	}

	out.Reset()
	m.Begin("copy data", 2000, 500)
	m.Add("copy data", 1)
	m.stop() // an error
	if s := out.String(); strings.Contains(s, "100%") || !strings.Contains(s, "continued at 500 B") || !strings.HasSuffix(s, "\n") {
		t.Fatalf("after an error: %q", s)
	}
}

func TestLines(t *testing.T) {
	var out bytes.Buffer
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	m := (&program{stderr: &out, getenv: os.Getenv, now: func() time.Time { return now }, opts: options{progress: "lines"}}).meter("web01")
	m.Begin("copy os", 1<<30, 0)
	m.Add("copy os", 1<<20)
	if out.Len() != 0 {
		t.Fatalf("a line at once: %q", out.String())
	}
	now = now.Add(10 * time.Second)
	m.Add("copy os", 99<<20)
	if want := "web01 copy os: 100 MiB of 1.0 GiB (9%), 10.0 MiB/s, 1 min 32 s left\n"; out.String() != want {
		t.Fatalf("line %q, want %q", out.String(), want)
	}
	m.Add("copy os", 1<<20)
	if strings.Count(out.String(), "\n") != 1 {
		t.Fatalf("too many lines: %q", out.String())
	}
	out.Reset()
	m.End("copy os")
	if want := "web01 copy os: ended at 101 MiB of 1.0 GiB in 10.0 s\n"; out.String() != want {
		t.Fatalf("end %q, want %q", out.String(), want)
	}
	m.End("copy os")
	m.Add("copy os", 1)
	m.Begin("nothing", 0, 0)
	m.End("nothing")
	if strings.Count(out.String(), "\n") != 1 {
		t.Fatalf("something was said of nothing: %q", out.String())
	}
}

// TestSilent: where nobody looks, nothing is written; a meter may be used from several goroutines.
func TestSilent(t *testing.T) {
	var out bytes.Buffer
	for _, style := range []string{"auto", "none"} {
		m := (&program{stderr: &out, getenv: os.Getenv, now: time.Now, opts: options{progress: style}}).meter("web01")
		var wg sync.WaitGroup
		m.Begin("copy", 1000, 0)
		for range 4 {
			wg.Go(func() {
				for range 100 {
					m.Add("copy", 2)
				}
			})
		}
		wg.Wait()
		if m.tasks["copy"].done != 800 {
			t.Errorf("%d bytes were counted, want 800", m.tasks["copy"].done)
		}
		m.End("copy")
	}
	if out.Len() > 0 {
		t.Errorf("not silent: %q", out.String())
	}
}
