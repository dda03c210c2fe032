package cmd

import (
	"os"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/urfave/cli/v2"

	"sitrep/internal/fault"
	"sitrep/internal/support"
)

// TestTopicOfSiteFile: every key that the site file can have is told by "sitrep help site-file", as a word of its own.
func TestTopicOfSiteFile(t *testing.T) {
	files, err := filepath.Glob("../internal/site/*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	var text string
	for _, x := range topics() {
		if x.text() == "" {
			t.Errorf("topic %s has no text", x.name)
		}
		for _, line := range strings.Split(x.text(), "\n") {
			if len(line) > 80 {
				t.Errorf("topic %s: a line does not fit on a terminal: %s", x.name, line)
			}
		}
		if x.name == "site-file" {
			text = x.text()
		}
	}
	objects, key := regexp.MustCompile(`\.object\(((?:\s*"[a-z_]+",?)+)`), regexp.MustCompile(`"([a-z_]+)"`)
	keys := 0
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		code, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects.FindAllStringSubmatch(string(code), -1) {
			for _, m := range key.FindAllStringSubmatch(o[1], -1) {
				keys++
				if !regexp.MustCompile(`\b` + m[1] + `\b`).MatchString(text) {
					t.Errorf("%s: the key %q is not in cmd/topics/site-file.md", file, m[1])
				}
			}
		}
	}
	if keys < 80 {
		t.Errorf("only %d keys were found", keys)
	}
}

// TestTopicOfExitCodes: every exit code is told.
func TestTopicOfExitCodes(t *testing.T) {
	for _, x := range topics() {
		if x.name != "exit-codes" {
			continue
		}
		for _, code := range []string{"0", "1", "2", "3", "4", "5", "6", "7", "11", "12", "130"} {
			if !regexp.MustCompile(`(?m)^ +` + code + `  \S`).MatchString(x.text()) {
				t.Errorf("exit code %s is not told", code)
			}
		}
	}
}

func TestFlagError(t *testing.T) {
	flags := []cli.Flag{&cli.BoolFlag{Name: "all"}, &cli.StringFlag{Name: "cloud"}, &cli.IntFlag{Name: "limit"}, &cli.DurationFlag{Name: "budget"}}
	for in, want := range map[string]string{
		"flag provided but not defined: -al":                  "there is no flag --al, did you mean '--all'?",
		"flag needs an argument: -point":                      "the flag --point needs a value",
		`invalid value "10" for flag -budget: parse error`:    `the flag --budget does not take "10": want a duration such as 30s, 10m or 2h`,
		`invalid value "x" for flag -limit: parse error`:      `the flag --limit does not take "x": want a number`,
		`invalid boolean value "maybe" for -all: parse error`: `the flag --all does not take "maybe": it is given without a value`,
		"something else": "something else",
	} {
		if got := flagError(in, flags); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
	}
}

func TestTheme(t *testing.T) {
	for _, c := range []struct {
		locale map[string]string
		want   progressbar.Theme
	}{
		{map[string]string{"LANG": "de_DE.UTF-8"}, progressbar.ThemeDefault},
		{map[string]string{"LANG": "C.utf8"}, progressbar.ThemeDefault},
		{map[string]string{"LANG": "de_DE.UTF-8", "LC_ALL": "C"}, progressbar.ThemeASCII},
		{map[string]string{"LANG": "de_DE@euro"}, progressbar.ThemeASCII},
		{nil, progressbar.ThemeASCII},
	} {
		if got := theme(func(name string) string { return c.locale[name] }); got != c.want {
			t.Errorf("%v: theme %+v", c.locale, got)
		}
	}
}

func TestVerdict(t *testing.T) {
	warning := finding{Rule: "log-space", Severity: support.Warning}
	for _, c := range []struct {
		list []finding
		want string
	}{
		{nil, "ready"},
		{[]finding{warning}, "ready, with 1 warning"},
		{[]finding{warning, {Rule: string(fault.DiskMissing), Severity: support.Warning}}, "not ready yet"},
		{[]finding{warning, {Rule: "size", Severity: support.Error}}, "not ready"},
	} {
		if got := verdict(c.list); got != c.want {
			t.Errorf("%v: %q, want %q", c.list, got, c.want)
		}
	}
}

// TestVersionOfBuild: what a build of a repository stamps is told, and a build that stamped nothing says so.
func TestVersionOfBuild(t *testing.T) {
	info := &debug.BuildInfo{Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "0123456789abcdef0123"}, {Key: "vcs.time", Value: "2026-11-30T10:00:00Z"}}}
	if got := buildIn(info).text(); got != " commit 0123456789ab of 2026-11-30T10:00:00Z" {
		t.Error(got)
	}
	info.Settings = append(info.Settings, debug.BuildSetting{Key: "vcs.modified", Value: "true"})
	if got := buildIn(info).text(); !strings.HasSuffix(got, "Z (modified)") {
		t.Error(got)
	}
	for _, none := range []*debug.BuildInfo{nil, {}} {
		if got := buildIn(none).text(); !strings.Contains(got, "commit unknown") {
			t.Error(got)
		}
	}
}

// TestManual: the page has its date, and all parts.
func TestManual(t *testing.T) {
	p := &program{now: time.Now, getenv: os.Getenv}
	text := manual(p.app())
	if !regexp.MustCompile(`^% SITREP 8 "20\d\d-\d\d-\d\d"`).MatchString(text) {
		t.Error(strings.SplitN(text, "\n", 2)[0])
	}
	for _, part := range []string{"GLOBAL FLAGS", "COMMANDS", "EXIT STATUS", "SITE FILE", "FILES", "ENVIRONMENT", "RECOVERY POINTS", "EXAMPLES"} {
		if !strings.Contains(text, "\n# "+part+"\n") {
			t.Errorf("%s is missing", part)
		}
	}
}
