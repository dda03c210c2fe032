//go:build !windows

package boot_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/hook"
	"sitrep/internal/host/boot"
)

const long = time.Minute // more than the slowest machine takes

func write(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = f.WriteString(text)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

type result struct {
	took time.Duration
	err  error
}

func wait(ctx context.Context, c boot.Check, console string) chan result {
	done := make(chan result, 1)
	go func() {
		took, err := boot.Wait(ctx, c, console)
		done <- result{took, err}
	}()
	return done
}

func TestConsole(t *testing.T) {
	for name, parts := range map[string][]string{
		"at once":           {"booting\nlogin: ready\r\n"},
		"later":             {"", "booting\n", "login: ready\n"},
		"cut in two":        {"booting\nlog", "in: ready"},
		"prompt, no end":    {"login: ready"},
		"after a long line": {strings.Repeat("x", 200<<10), "\nlogin: ready\n"},
	} {
		t.Run(name, func(t *testing.T) {
			console := filepath.Join(t.TempDir(), "console.log")
			done := wait(context.Background(), boot.Check{Console: regexp.MustCompile(`^login: ready$`), Timeout: long}, console)
			for _, p := range parts {
				write(t, console, p)
				time.Sleep(120 * time.Millisecond) // so that most runs see the parts one by one
			}
			if r := <-done; r.err != nil || r.took <= 0 {
				t.Errorf("%+v", r)
			}
		})
	}
}

// A console that begins anew is read from its beginning.
func TestConsoleOfAnotherRun(t *testing.T) {
	console := filepath.Join(t.TempDir(), "console.log")
	write(t, console, "a long console of the run before\n")
	done := wait(context.Background(), boot.Check{Console: regexp.MustCompile("up$"), Timeout: long}, console)
	time.Sleep(200 * time.Millisecond)
	if err := os.Truncate(console, 0); err != nil {
		t.Fatal(err)
	}
	write(t, console, "up\n")
	if r := <-done; r.err != nil {
		t.Error(r.err)
	}
}

func TestConsoleFails(t *testing.T) {
	console := filepath.Join(t.TempDir(), "console.log")
	write(t, console, strings.Repeat("old line\n", 1000)+"\x1b[2JKernel panic - not syncing\r\n")
	c := boot.Check{Console: regexp.MustCompile("login:"), Timeout: 300 * time.Millisecond}
	_, err := boot.Wait(context.Background(), c, console)
	if !fault.Is(err, fault.BootFailed) {
		t.Fatal(err)
	}
	for _, want := range []string{"login:", "300ms", "Kernel panic", console} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %q", want, err)
		}
	}
	if n := strings.Count(err.Error(), "old line"); n != 19 || strings.ContainsAny(err.Error(), "\x1b\r") {
		t.Errorf("the error repeats %d lines: %q", n, err)
	}
	if _, err := boot.Wait(context.Background(), c, ""); !fault.Is(err, fault.BootFailed) {
		t.Errorf("no console: %v", err)
	}
	if _, err := boot.Wait(context.Background(), c, filepath.Join(t.TempDir(), "none")); !fault.Is(err, fault.BootFailed) {
		t.Errorf("a console that never comes: %v", err)
	}
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	c := boot.Check{TCP: addr, Timeout: long}
	if _, err := boot.Wait(context.Background(), c, ""); err != nil {
		t.Error(err)
	}
	l.Close()
	c.Timeout = 2 * time.Second // on a busy machine the first answer takes its time
	_, err = boot.Wait(context.Background(), c, "")
	if !fault.Is(err, fault.BootFailed) || !strings.Contains(err.Error(), addr) || !strings.Contains(err.Error(), "refused") {
		t.Errorf("%v", err)
	}
}

func TestCommand(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "check")
	body := "#!/bin/sh\n[ -e \"$1/second\" ] && exit 0\n[ -e \"$1/first\" ] && touch \"$1/second\"\ntouch \"$1/first\"; echo not yet >&2; exit 1\n"
	if err := os.WriteFile(path, []byte(body), 0o755); err != nil {
		t.Fatal(err)
	}
	command := hook.Program{Path: path, Args: []string{dir}}
	if _, err := boot.Wait(context.Background(), boot.Check{Command: command, Timeout: long}, ""); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "second")); err != nil {
		t.Errorf("the command did not run three times: %v", err)
	}
	command.Args = []string{"/nowhere"}
	_, err := boot.Wait(context.Background(), boot.Check{Command: command, Timeout: 500 * time.Millisecond}, "")
	if !fault.Is(err, fault.BootFailed) || !strings.Contains(err.Error(), "not yet") {
		t.Errorf("%v", err)
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	done := wait(ctx, boot.Check{Console: regexp.MustCompile("x"), Timeout: time.Hour}, filepath.Join(t.TempDir(), "c"))
	cancel()
	if r := <-done; !fault.Is(r.err, fault.Interrupted) {
		t.Errorf("%+v", r)
	}
}

func TestWrongChecks(t *testing.T) {
	for _, c := range []boot.Check{{}, {TCP: "h:1"}, {TCP: "h:1", Console: regexp.MustCompile("x"), Timeout: long}} {
		if _, err := boot.Wait(context.Background(), c, "c"); !fault.Is(err, fault.BootFailed) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
