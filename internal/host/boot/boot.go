// Package boot tells when a VM that was started is up: by a line of its serial console, a TCP port that accepts
// connections, or the operator's own command.
package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/hook"
)

// Check is how it is told that a VM is up. Exactly one of Console, TCP and Command is set.
type Check struct {
	Console *regexp.Regexp // a line of the serial console matches it; a line counts before it has ended, too
	TCP     string         // address:port that accepts a connection
	// Command ends with 0 when the VM is up. It is run again and again, each time with what is left of Timeout as its limit (or
	// its own, when that is shorter).
	Command  hook.Program
	Programs hook.Runner   // runs Command
	Timeout  time.Duration // for all of it; more than 0
}

// The pauses between two looks. A command is dearer than the others.
const (
	step        = 100 * time.Millisecond
	commandStep = time.Second
	dialLimit   = 2 * time.Second
)

// told is how many of a console's last lines, and of its last bytes, an error repeats; longest is the longest beginning of
// a line, in bytes, that is looked at.
const (
	toldLines = 20
	toldBytes = 4 << 10
	longest   = 64 << 10
)

// Wait returns when the VM is up, with how long that took. consolePath is the file with the console's output of this run (it
// may not be there yet, and may grow); "" means that the host keeps none, and then a Check by Console fails at once. The
// error is fault.BootFailed, with the last attempt's cause and the last lines of the console, or fault.Interrupted when
// ctx was cancelled.
func Wait(ctx context.Context, c Check, consolePath string) (took time.Duration, err error) {
	start := time.Now()
	try, pause, err := c.attempt(consolePath)
	if err != nil {
		return 0, err
	}
	limited, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	var cause error
	for {
		up, err := try(limited)
		if up {
			return time.Since(start), nil
		}
		if limited.Err() == nil || cause == nil { // what the end of the time did to the last attempt says nothing
			cause = err
		}
		select {
		case <-limited.Done():
			return time.Since(start), c.failed(ctx, cause, consolePath)
		case <-time.After(pause):
		}
	}
}

// attempt is one look at whether the VM is up, and the pause until the next one.
func (c Check) attempt(consolePath string) (try func(context.Context) (bool, error), pause time.Duration, err error) {
	set := 0
	for _, is := range []bool{c.Console != nil, c.TCP != "", c.Command.Path != ""} {
		if is {
			set++
		}
	}
	switch {
	case set != 1 || c.Timeout <= 0:
		return nil, 0, fault.New(fault.BootFailed, "a boot check needs a time limit and exactly one of console, tcp and command")
	case c.TCP != "":
		return c.connect, step, nil
	case c.Command.Path != "":
		return c.run, commandStep, nil
	case consolePath == "":
		return nil, 0, fault.New(fault.BootFailed, "the boot check waits for a line of the serial console, which this host does not keep")
	}
	w := &watch{path: consolePath, want: c.Console}
	return w.look, step, nil
}

func (c Check) connect(ctx context.Context) (bool, error) {
	d := net.Dialer{Timeout: dialLimit}
	conn, err := d.DialContext(ctx, "tcp", c.TCP)
	if err != nil {
		return false, err
	}
	conn.Close()
	return true, nil
}

func (c Check) run(ctx context.Context) (bool, error) {
	_, err := c.Programs.Run(ctx, c.Command)
	return err == nil, err
}

func (c Check) failed(ctx context.Context, cause error, consolePath string) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return fault.Wrap(fault.Interrupted, ctx.Err(), "the boot check was interrupted")
	}
	waited := "its command to end with 0"
	switch {
	case c.Console != nil:
		waited = fmt.Sprintf("a line of the console that matches %q", c.Console)
	case c.TCP != "":
		waited = "a connection to " + c.TCP
	}
	msg := fmt.Sprintf("waited %v for %s", c.Timeout, waited)
	if end := lastLines(consolePath); end != "" {
		msg += "; the console ended with:\n" + end
	}
	return fault.Wrap(fault.BootFailed, cause, "%s", fault.Lines(msg)).At(consolePath)
}

// watch reads a growing console from where it was left.
type watch struct {
	path string
	want *regexp.Regexp
	file os.FileInfo // that was read so far
	off  int64       // in it
	line []byte      // the beginning of the line that has not ended
}

// look reads what is new, and says whether a line matches.
func (w *watch) look(context.Context) (bool, error) {
	f, err := os.OpenFile(w.path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	if w.file == nil || !os.SameFile(w.file, info) || info.Size() < w.off { // another run of the VM
		w.file, w.off, w.line = info, 0, nil
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := f.ReadAt(buf, w.off)
		w.off += int64(n)
		if w.feed(buf[:n]) {
			return true, nil
		}
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
}

func (w *watch) feed(p []byte) bool {
	for _, b := range p {
		if b != '\n' {
			if len(w.line) < longest {
				w.line = append(w.line, b)
			}
			continue
		}
		if w.matches() {
			return true
		}
		w.line = w.line[:0]
	}
	return w.matches()
}

func (w *watch) matches() bool {
	return len(w.line) > 0 && w.want.MatchString(strings.TrimRight(string(w.line), "\r"))
}

// lastLines is the end of a console for people: without control characters.
func lastLines(path string) string {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	b := make([]byte, min(info.Size(), toldBytes))
	n, err := f.ReadAt(b, info.Size()-int64(len(b)))
	if err != nil && err != io.EOF {
		return ""
	}
	text := strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f {
			return -1
		}
		return r
	}, strings.ToValidUTF8(string(b[:n]), ""))
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-toldLines):], "\n")
}
