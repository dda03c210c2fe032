//go:build linux

package simulation_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// outcome is what became of a run.
type outcome struct {
	args         []string
	code         int // exit code; -1 when a signal ended it
	signal       os.Signal
	stdout, text string
	object       object
}

// object is what a run writes with --json, as far as the simulation reads it.
type object struct {
	Error *errorObject `json:"error"`
	VMs   []struct {
		VM, State, Health string
		Next              string       `json:"next_action"`
		Error             *errorObject `json:"error"`
		Points            json.RawMessage
		Failover          *struct {
			Kind  string
			Point string
		}
		Test  *struct{ Kind, Point string } `json:"test_failover"`
		Point string
	} `json:"vms"`
	Plans []struct {
		Plan, Waiting string
		Next          string `json:"next_action"`
	} `json:"plans"`
}

type errorObject struct {
	Code, Message string
	Next          string `json:"next_command"`
}

func (o outcome) String() string {
	return fmt.Sprintf("sitrep %s: exit code %d\n%s%s", strings.Join(o.args, " "), o.code, o.text, o.stdout)
}

// err is the error of a run, as an object; never nil.
func (o outcome) err() errorObject {
	for _, vm := range o.object.VMs {
		if vm.Error != nil {
			return *vm.Error
		}
	}
	if o.object.Error != nil {
		return *o.object.Error
	}
	return errorObject{}
}

// limit is how long a run may take before it is said to hang.
const limit = 90 * time.Second

// command is a run that is not started. On a second machine it has a host name and a machine ID of its own.
func (m *machine) command(w *world, args ...string) *exec.Cmd {
	argv := append([]string{binary, "--site", filepath.Join(m.dir, "site.yaml"), "--json"}, args...)
	if m.identity != "" {
		inside := fmt.Sprintf("hostname %[1]s && mount --bind %[2]s /etc/machine-id && exec \"$@\"", m.identity, w.machineID(m))
		argv = append([]string{"unshare", "--uts", "--mount", "sh", "-c", inside, "sh"}, argv...)
	}
	c := exec.Command(argv[0], argv[1:]...)
	c.Dir = m.dir
	return c
}

// machineID is a file that stands for /etc/machine-id on a machine.
func (w *world) machineID(m *machine) string {
	path := w.path("machine-id-" + m.name)
	must(w.T, os.WriteFile(path, []byte(strings.Repeat("0b", 16)+"\n"), 0o644))
	return path
}

// canClone says whether this user can make machines.
func (w *world) canClone() bool {
	return os.Geteuid() == 0 && exec.Command("unshare", "--uts", "--mount", "true").Run() == nil && w.hasMachineID()
}

func (w *world) hasMachineID() bool {
	_, err := os.Stat("/etc/machine-id")
	return err == nil
}

// signals are those that can end a run.
var signals = []syscall.Signal{syscall.SIGKILL, syscall.SIGKILL, syscall.SIGKILL, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE, syscall.SIGQUIT}

// run lets a run come to its end.
func (w *world) run(m *machine, args ...string) outcome {
	w.Helper()
	return w.start(m, args, func(context.Context, *os.Process) os.Signal { return nil })
}

// hit runs a command, and sends it a signal at a random moment.
func (w *world) hit(m *machine, args ...string) outcome {
	w.Helper()
	most := max(w.took[verb(args)], 100*time.Millisecond)
	after, sig := time.Duration(w.rnd.Int64N(int64(most))), signals[w.rnd.IntN(len(signals))]
	return w.start(m, args, func(ctx context.Context, p *os.Process) os.Signal {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(after):
			_ = p.Signal(sig) // it may have ended just now
			return sig
		}
	})
}

// verb is the words of a command that tell how long it takes.
func verb(args []string) string { return strings.Join(args[:min(2, len(args))], " ") }

// hitFrozen runs a command, and sends it a signal while it holds a guest frozen.
func (w *world) hitFrozen(m *machine, vm string, sig syscall.Signal, args ...string) outcome {
	w.Helper()
	return w.start(m, args, func(ctx context.Context, p *os.Process) os.Signal {
		for ctx.Err() == nil {
			if w.exists("hosts", "src", vm+".frozen") {
				_ = p.Signal(sig)
				return sig
			}
			time.Sleep(time.Millisecond)
		}
		return nil
	})
}

// start runs a command; meddle may end it, and says by which signal.
func (w *world) start(m *machine, args []string, meddle func(context.Context, *os.Process) os.Signal) outcome {
	w.Helper()
	var out, errs bytes.Buffer
	c := m.command(w, args...)
	c.Stdout, c.Stderr = &out, &errs
	c.WaitDelay = 5 * time.Second // what it has started may hold its output
	before := w.fingerprints(m, args)
	began := time.Now()
	must(w.T, c.Start())
	ctx, cancel := context.WithCancel(context.Background())
	meddled := make(chan os.Signal, 1)
	go func() { meddled <- meddle(ctx, c.Process) }()
	hangs := time.AfterFunc(limit, func() { _ = c.Process.Signal(syscall.SIGQUIT) })
	err := c.Wait()
	late := !hangs.Stop()
	cancel()
	o := outcome{args: args, code: c.ProcessState.ExitCode(), stdout: out.String(), text: errs.String(), signal: <-meddled}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		w.Fatal(err)
	}
	_ = json.Unmarshal(out.Bytes(), &o.object) // of a run that was killed nothing may be left
	w.spans = append(w.spans, span{m, args, began, time.Now()})
	how := ""
	if o.signal != nil {
		how = " (" + o.signal.String() + ")"
	}
	w.note("%s$ sitrep %s%s: %d %s", m.name, strings.Join(args, " "), how, o.code, firstLine(o.text))
	w.counts["runs"]++
	if o.signal == nil && o.code == 0 {
		w.took[verb(args)] = time.Since(began)
	}
	if late {
		w.wrong("a run hangs: %v", o)
	}
	if strings.Contains(o.text, "panic:") || strings.Contains(o.text, "DATA RACE") {
		w.wrong("a panic: %v", o)
	}
	w.fenced(m, args, before)
	w.surroundings(o)
	return o
}

func firstLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	return s
}
