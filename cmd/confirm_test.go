package cmd

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"
)

// TestQuestions: at a terminal a person is asked before points are destroyed; any other answer than yes changes nothing.
func TestQuestions(t *testing.T) {
	m := newRig(t, "copy_frequency: 5m")
	m.must(0, "protect", "web01")
	answer := func(text string, args ...string) (int, string) {
		var out, errs bytes.Buffer
		p := &program{fs: m.fs, stdin: strings.NewReader(text), stdout: &out, stderr: &errs, now: func() time.Time { return m.now }, getenv: func(string) string { return "" },
			askable: func() bool { return true }}
		code := p.run(context.Background(), append([]string{"sitrep", "--site", "/site.yaml"}, args...))
		return code, out.String() + errs.String()
	}
	for _, no := range []string{"", "\n", "n\n", "yep\n"} {
		if code, text := answer(no, "unprotect", "web01"); code != exitRefused || !strings.Contains(text, "all of their recovery points: web01") {
			t.Errorf("%q: exit code %d\n%s", no, code, text)
		}
		m.must(0, "delta", "web01")
	}
	if code, text := answer("y\n", "unprotect", "web01"); code != 0 {
		t.Errorf("exit code %d\n%s", code, text)
	}
	m.must(0, "protect", "web01")
	if code, text := answer("", "unprotect", "--all", "--yes"); code != 0 || strings.Contains(text, "[y/N]") {
		t.Errorf("exit code %d\n%s", code, text)
	}
}
