//go:build !windows

package hook_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/hook"
)

func script(t *testing.T, body string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(name, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestInputAndOutput(t *testing.T) {
	t.Setenv("INHERITED", "yes")
	t.Setenv("WON", "no")
	path := script(t, `printf '%s|' "$@" "$INHERITED" "$WON" "$TEXT"; cat; echo complaint >&2`)
	hostile := "a'; rm -rf $(x) \n\"z"
	out, err := hook.Runner{}.Run(context.Background(), hook.Program{Path: path, Args: []string{"one", hostile},
		Env: map[string]string{"WON": "ours", "TEXT": hostile}, Stdin: map[string]any{"n": 1, "s": hostile}})
	if err != nil {
		t.Fatal(err)
	}
	doc, _ := json.Marshal(map[string]any{"n": 1, "s": hostile})
	if want := fmt.Sprintf("one|%s|yes|ours|%s|%s\n", hostile, hostile, doc); out.Stdout != want {
		t.Errorf("got %q, want %q", out.Stdout, want)
	}
	if out.Stderr != "complaint\n" || out.Took <= 0 {
		t.Errorf("%+v", out)
	}
}

func TestInputIsNotRead(t *testing.T) {
	out, err := hook.Runner{}.Run(context.Background(), hook.Program{Path: script(t, "exec <&-; echo ok"), Stdin: strings.Repeat("x", 1<<20)})
	if err != nil || out.Stdout != "ok\n" {
		t.Errorf("%q, %v", out.Stdout, err)
	}
}

func TestFailures(t *testing.T) {
	ctx := context.Background()
	path := script(t, "echo the disk is full >&2; exit 75")
	_, err := hook.Runner{}.Run(ctx, hook.Program{Path: path})
	var exit *hook.ExitError
	if !fault.Is(err, fault.HookFailed) || !errors.As(err, &exit) || exit.Code != 75 || exit.Timeout != 0 || exit.Signal != "" {
		t.Errorf("%v: %+v", err, exit)
	}
	for _, want := range []string{path, "75", "the disk is full"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %q", want, err)
		}
	}
	_, err = hook.Runner{}.Run(ctx, hook.Program{Path: script(t, "kill -9 $$")})
	if !errors.As(err, &exit) || exit.Signal != "killed" {
		t.Errorf("killed: %v", err)
	}
	_, err = hook.Runner{}.Run(ctx, hook.Program{Path: filepath.Join(t.TempDir(), "none")})
	if !fault.Is(err, fault.HookFailed) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no program: %v", err)
	}
	for name, p := range map[string]hook.Program{
		"environment": {Env: map[string]string{"A=B": ""}}, "zero": {Env: map[string]string{"A": "\x00"}},
		"argument": {Args: []string{"\x00"}}, "document": {Stdin: make(chan int)},
	} {
		p.Path = path
		if _, err := (hook.Runner{}).Run(ctx, p); !fault.Is(err, fault.HookFailed) || strings.Contains(err.Error(), "disk is full") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOutputIsBounded(t *testing.T) {
	path := script(t, `head -c 3000000 /dev/zero | tr '\0' o; head -c 3000000 /dev/zero | tr '\0' e >&2; echo THE END >&2; exit 3`)
	out, err := hook.Runner{}.Run(context.Background(), hook.Program{Path: path})
	if len(out.Stdout) != hook.MaxStdout || len(out.Stderr) != hook.MaxStderr {
		t.Errorf("%d and %d bytes are kept", len(out.Stdout), len(out.Stderr))
	}
	if err == nil || !strings.Contains(err.Error(), "THE END") || len(err.Error()) > hook.MaxTold+1000 {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
}

// gone says that the process is not there, or dead and waited for by nobody.
func gone(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return true
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

func waitGone(t *testing.T, pidFile string) {
	t.Helper()
	b, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	for range 2000 {
		if gone(pid) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("the child %d is still there", pid)
}

// The group dies with the program: what it has started holds no disk after a timeout.
func TestTimeoutKillsTheGroup(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	path := script(t, `sleep 1000 & echo $! >"$1.new"; mv "$1.new" "$1"; echo waiting >&2; wait`)
	_, err := hook.Runner{}.Run(context.Background(), hook.Program{Path: path, Args: []string{pid}, Timeout: 2 * time.Second})
	var exit *hook.ExitError
	if !errors.As(err, &exit) || exit.Timeout != 2*time.Second || !strings.Contains(err.Error(), "time limit of 2s") {
		t.Errorf("%v", err)
	}
	waitGone(t, pid)
}

func TestCancelKillsTheGroup(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	path := script(t, `sleep 1000 & echo $! >"$1.new"; mv "$1.new" "$1"; wait`)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for ctx.Err() == nil {
			if _, err := os.Stat(pid); err == nil {
				cancel()
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	defer cancel()
	_, err := hook.Runner{}.Run(ctx, hook.Program{Path: path, Args: []string{pid}, Timeout: time.Hour})
	if !fault.Is(err, fault.Interrupted) || !fault.Cancelled(err) {
		t.Errorf("%v", err)
	}
	waitGone(t, pid)
}

// A program that leaves something behind, with its output open, has ended all the same.
func TestLeftBehind(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	out, err := hook.Runner{}.Run(context.Background(), hook.Program{Path: script(t, `setsid sleep 1000 & echo $! >"$1"; echo done`), Args: []string{pid}})
	if err != nil || out.Stdout != "done\n" {
		t.Errorf("%q, %v", out.Stdout, err)
	}
	b, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || gone(n) {
		t.Fatalf("%d is gone: %v", n, err)
	}
	if err := syscall.Kill(n, syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}

// What is withheld is gone, and only that: not a variable whose name begins alike, and not one that the program is given.
func TestWithheld(t *testing.T) {
	t.Setenv("SITREP_KEY", "hush")
	t.Setenv("SITREP_KEY_ID", "7")
	t.Setenv("OTHER_KEY", "hush too")
	r := hook.Runner{Withheld: []string{"SITREP_KEY", "OTHER_KEY", "NOT_THERE"}}
	out, err := r.Run(context.Background(), hook.Program{Path: script(t, "env"), Env: map[string]string{"OURS": "yes"}})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out.Stdout, "hush") || strings.Contains(out.Stdout, "SITREP_KEY=") || strings.Contains(out.Stdout, "OTHER_KEY") {
		t.Errorf("the program was given %s", out.Stdout)
	}
	for _, want := range []string{"SITREP_KEY_ID=7\n", "OURS=yes\n", "PATH="} {
		if !strings.Contains(out.Stdout, want) {
			t.Errorf("%q is not in the environment", want)
		}
	}
}
