// Package hook runs the operator's programs: hooks of VMs, actions of recovery plans, boot checks, hosts by script.
//
// A program is never run through a shell. What it is about it gets three ways, and may use the one that it likes best:
// arguments, environment variables (those of sitrep but for its own secrets, see Runner, and ours), and one JSON document on
// standard input. What it says on standard error is kept, because it is what the operator needs when it fails.
//
// A program has a time limit, and is not asked to end: when the time is over, or the run is interrupted, it and
// every process of its process group are killed. One that leaves something running behind it (a VM, say) starts that in
// a session of its own (setsid).
package hook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"sitrep/internal/fault"
)

// MaxStdout and MaxStderr are how many bytes of a program's output are kept: the first ones of standard output, the last
// ones of standard error. MaxTold is how many of the latter an error repeats.
const (
	MaxStdout = 1 << 20
	MaxStderr = 64 << 10
	MaxTold   = 4 << 10
)

// lingering is how long the output of a program that has ended is still read, when something that it left behind holds it open.
const lingering = time.Second

// Program is a program to run.
type Program struct {
	Path string            // of the program, absolute; or a name to look up in PATH
	Args []string          // without the program's name
	Env  map[string]string // added to the environment of sitrep; wins over it
	Dir  string            // the folder that it runs in; "" is that of sitrep
	// Stdin is written to standard input as one JSON document and a newline; nil writes nothing. A program need not read it.
	Stdin any
	// Input is written to standard input as it is, when Stdin is nil.
	Input []byte
	// Timeout is after which time the program is killed; 0 means only when the context ends.
	Timeout time.Duration
}

// Output is what a program has said.
type Output struct {
	Stdout string // at most the first MaxStdout bytes
	Stderr string // at most the last MaxStderr bytes
	Took   time.Duration
}

// ExitError is the cause of an error of Run: the program was started and did not end with 0 in time.
type ExitError struct {
	Path    string
	Code    int           // exit code; -1 when it was killed
	Timeout time.Duration // after which it was killed; 0 when it was not
	Signal  string        // that ended it, unless it was our time limit; "" when none did
}

// Error says how the program ended.
func (e *ExitError) Error() string {
	switch {
	case e.Timeout > 0:
		return fmt.Sprintf("was killed after its time limit of %v", e.Timeout)
	case e.Signal != "":
		return "was ended by the signal " + e.Signal
	}
	return fmt.Sprintf("ended with exit code %d", e.Code)
}

// Runner starts programs. It is the one place that says what of sitrep's environment they get.
type Runner struct {
	// Withheld are the names of the variables that no program gets: those in which sitrep finds the secrets of its store, which
	// are nobody else's. Programs have credentials of their own.
	Withheld []string
	// Inherit is a file that programs get as descriptor 3, where the system has such; nil gives none. It tells who the program, and all that
	// it has started, is as long as that runs: by a lock of the file, or because it is open.
	Inherit *os.File
}

// Run runs the program and waits for its end. Output is what it has said, in case of an error too. The error is a
// fault.HookFailed with the end of its standard error, which wraps an *ExitError when the program could be started;
// or fault.Interrupted when ctx was cancelled. It may be called concurrently.
func (r Runner) Run(ctx context.Context, p Program) (Output, error) {
	stdin, env, err := p.encode(r.environment())
	if err != nil {
		return Output{}, fault.Wrap(fault.HookFailed, err, "the program cannot be run").At(p.Path)
	}
	runCtx, cancel := ctx, context.CancelFunc(func() {})
	if p.Timeout > 0 {
		runCtx, cancel = context.WithTimeout(ctx, p.Timeout)
	}
	defer cancel()

	cmd := exec.CommandContext(runCtx, p.Path, p.Args...)
	stdout, stderr := &head{max: MaxStdout}, &tail{max: MaxStderr}
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = stdin, stdout, stderr, env
	cmd.Dir, cmd.WaitDelay = p.Dir, lingering
	ownGroup(cmd)
	if r.Inherit != nil {
		inherit(cmd, r.Inherit)
	}
	start := time.Now()
	err = cmd.Run()
	out := Output{Stdout: stdout.String(), Stderr: stderr.String(), Took: time.Since(start)}
	return out, p.judge(ctx, runCtx, cmd, err, out)
}

// environment is that of sitrep without what is withheld.
func (r Runner) environment() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.ContainsFunc(r.Withheld, func(w string) bool { return sameVariable(w, name) })
	})
}

// encode makes standard input and the environment, which is env and ours.
func (p Program) encode(env []string) (*bytes.Reader, []string, error) {
	doc := p.Input
	if p.Stdin != nil {
		b, err := json.Marshal(p.Stdin)
		if err != nil {
			return nil, nil, err
		}
		doc = append(b, '\n')
	}
	for k, v := range p.Env {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(v, 0) {
			return nil, nil, fmt.Errorf("the environment variable %q cannot be set", k)
		}
		env = append(env, k+"="+v) // the last one of a name counts
	}
	for _, a := range p.Args {
		if strings.ContainsRune(a, 0) {
			return nil, nil, fmt.Errorf("the argument %q cannot be given", a)
		}
	}
	slices.Sort(env[len(env)-len(p.Env):])
	return bytes.NewReader(doc), env, nil
}

// judge turns the end of a program into an error. The exit code counts before anything else that went wrong: a program
// that does not read its input breaks our pipe, and one that leaves something behind holds its output open.
func (p Program) judge(ctx, runCtx context.Context, cmd *exec.Cmd, err error, out Output) error {
	state := cmd.ProcessState
	if state != nil && state.Success() {
		return nil
	}
	if ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled) {
		return fault.Wrap(fault.Interrupted, ctx.Err(), "the program was killed").At(p.Path)
	}
	if state == nil {
		return fault.Wrap(fault.HookFailed, err, "the program could not be started").At(p.Path)
	}
	exit := &ExitError{Path: p.Path, Code: state.ExitCode(), Signal: signalOf(state)}
	switch {
	case exit.Code >= 0 && exit.Signal == "":
	case errors.Is(runCtx.Err(), context.DeadlineExceeded):
		exit.Timeout, exit.Signal = max(out.Took.Round(time.Millisecond), time.Millisecond), ""
		if ctx.Err() == nil {
			exit.Timeout = p.Timeout
		}
	}
	return fault.Wrap(fault.HookFailed, exit, "%s", fault.Lines(said(out.Stderr))).At(p.Path)
}

// said is the end of a program's standard error, for people.
func said(stderr string) string {
	s := strings.TrimSpace(strings.ToValidUTF8(stderr, "\uFFFD"))
	switch {
	case s == "":
		return "the program failed without a word"
	case len(s) > MaxTold:
		return "the program said: ..." + strings.ToValidUTF8(s[len(s)-MaxTold:], "")
	}
	return "the program said: " + s
}

// head keeps the first max bytes that are written to it. It has no method that io.Copy would use to go around Write.
type head struct {
	b   []byte
	max int
}

func (h *head) Write(p []byte) (int, error) {
	h.b = append(h.b, p[:min(h.max-len(h.b), len(p))]...)
	return len(p), nil
}

func (h *head) String() string { return string(h.b) }

// tail keeps the last max bytes that are written to it.
type tail struct {
	b   []byte
	max int
}

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > 2*t.max { // seldom, so that a byte is moved once on the average
		t.b = append(t.b[:0], t.b[len(t.b)-t.max:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.b[max(0, len(t.b)-t.max):]) }
