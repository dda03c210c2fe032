package cmd

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"
)

// TestWords: what is logged for people is a plain line.
func TestWords(t *testing.T) {
	var b bytes.Buffer
	l := slog.New(newWordsHandler(&b))
	l.Info("nobody asked for this")
	l.With("vm", "web01").Warn("a massive change: the recovery point before it is held", "disk", "os", "noise_percent", 98)
	l.Error("the VM could not be let go on", "vm", "web01", "error", errors.New("one\ntwo"))
	l.Warn("left as it is", "vm", "web01", "error", errors.New("VM web01: gone"), "next", "")
	want := "warning: VM web01: a massive change: the recovery point before it is held (disk os, noise percent 98)\n" +
		"error: VM web01: the VM could not be let go on: one\n    two\n" +
		"warning: left as it is: VM web01: gone\n"
	if got := b.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
