package cmd

import (
	"math"
	"testing"
	"time"
)

func TestSize(t *testing.T) {
	tests := map[int64]string{
		0: "0 B", 1: "1 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 102400: "100 KiB", 1<<20 - 1: "1.0 MiB",
		1 << 20: "1.0 MiB", 5 << 30: "5.0 GiB", math.MaxInt64: "8.0 EiB", -2048: "-2.0 KiB",
	}
	for n, want := range tests {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestSpan(t *testing.T) {
	tests := map[time.Duration]string{
		0: "0 ms", 999 * time.Millisecond: "999 ms", time.Second: "1.0 s", 90 * time.Second: "1 min 30 s",
		-90 * time.Second: "1 min 30 s", 26 * time.Hour: "26 h 0 min", 72 * time.Hour: "3 days",
	}
	for d, want := range tests {
		if got := span(d); got != want {
			t.Errorf("span(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestTable(t *testing.T) {
	got := table([][]string{{"VM", "STATE", ""}, {"web01", "ok", ""}})
	if want := "VM     STATE\nweb01  ok\n"; got != want {
		t.Errorf("table is %q, want %q", got, want)
	}
}

func TestShellQuote(t *testing.T) {
	tests := map[string]string{
		"site.yaml": "site.yaml", "my site.yaml": "'my site.yaml'", "it's": `'it'\''s'`, "$HOME": "'$HOME'", "": "''",
	}
	for in, want := range tests {
		if got := shellQuote(in); got != want {
			t.Errorf("shellQuote(%q) = %q, want %q", in, got, want)
		}
	}
}

// TestCommands: what is printed to be run next can be run as it stands.
func TestCommands(t *testing.T) {
	p := &program{opts: options{site: "a $1 b.yaml", siteGiven: true, state: "mem"}}
	got := p.commands("Run: sitrep protect web01; Update sitrep, then run: sitrep resume web01")
	want := "Run: sitrep --site 'a $1 b.yaml' --state mem protect web01; Update sitrep, then run: sitrep --site 'a $1 b.yaml' --state mem resume web01"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := (&program{}).commands("Run: sitrep help"); got != "Run: sitrep help" {
		t.Errorf("changed without need: %s", got)
	}
}
