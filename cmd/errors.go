package cmd

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/plain"
	"sitrep/internal/site"
)

// errorObject is an error in --json.
type errorObject struct {
	Code    string       `json:"code"`
	Message string       `json:"message"`
	Cause   string       `json:"cause,omitempty"`
	Hint    string       `json:"hint,omitempty"`
	Command string       `json:"next_command,omitempty"`
	VM      string       `json:"vm,omitempty"`
	Disk    string       `json:"disk,omitempty"`
	Path    string       `json:"path,omitempty"`
	RetryAt *time.Time   `json:"retry_at,omitempty"`
	Lines   []site.Error `json:"lines,omitempty"` // of the site file
}

// object describes an error for --json; nil for none.
func (p *program) object(err error, vm string) *errorObject {
	if err == nil {
		return nil
	}
	e := fault.FromOS(err)
	o := &errorObject{
		Code: string(code(err, e)), Message: message(err), Cause: code(err, e).Lookup().Of(e).Cause,
		Hint: p.adviceOf(code(err, e), e, vm), Command: p.nextOf(code(err, e), e, vm),
		VM: cmpOr(e.VM, vm), Disk: e.Disk, Path: e.Path, RetryAt: retryAt(err),
	}
	var lines *site.Errors
	if errors.As(err, &lines) {
		o.Lines = lines.List
	}
	return o
}

// code is the error's code; whatever a cancelled run stumbled over, it was interrupted.
func code(err error, e *fault.Error) fault.Code {
	if fault.Cancelled(err) {
		return fault.Interrupted
	}
	return e.Code
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// message is what happened, without the noise of Go's own errors.
func message(err error) string {
	var lines *site.Errors
	switch {
	case fault.Cancelled(err):
		return "interrupted; what was acknowledged is kept"
	case errors.As(err, &lines):
		return lines.Unwrap().Error()
	}
	return err.Error()
}

// shown is an error that sums up what stdout has in full: for people a line of it is enough.
type shown struct{ error }

func (s *shown) Unwrap() error { return s.error }

// printError tells an operator what happened, whether it is tried again, and what to run next.
func (p *program) printError(w io.Writer, err error, vm string) {
	w = plain.Writer(w)
	var lines *site.Errors
	if errors.As(err, &lines) && len(lines.List)+lines.More > 1 { // a single one is the message
		fmt.Fprintln(w, lines.Error()) // each line has its place: file:line:column
	}
	e := fault.FromOS(err)
	c := code(err, e)
	vm = cmpOr(e.VM, vm)
	text := message(err)
	if vm != "" && e.VM == "" {
		text = "VM " + vm + ": " + text
	}
	fmt.Fprintf(w, "sitrep: %s\n", strings.ReplaceAll(text, "\n", "\n    ")) // deeper than the lines below: no text can be taken for them
	if s := (*shown)(nil); errors.As(err, &s) {
		return
	}
	entry := c.Lookup().Of(e)
	if c != fault.UsageError && c != fault.SiteInvalid && c != fault.VMUnknown {
		fmt.Fprintf(w, "  cause: %s\n", entry.Cause)
		fmt.Fprintf(w, "  retry: %s\n", p.retryText(entry.Class, retryAt(err)))
	}
	if a := p.adviceOf(c, e, vm); a != "" {
		fmt.Fprintf(w, "  next:  %s\n", a)
	}
}

// retryText says whether an error of this class is tried again, and when, if that is known.
func (p *program) retryText(c fault.Class, at *time.Time) string {
	switch {
	case at != nil && p.toCome(*at):
		return "yes, at " + p.clockTime(*at)
	case c == fault.Recoverable:
		return "yes, by the next run"
	case c == fault.Locked:
		return "not while the other run works"
	}
	return "not before something was done about it"
}

// wrongArgument is the error of a file or folder that was named on the command line: when it is not there, the command
// line is wrong, and no VM or site file has anything to do with it.
func wrongArgument(err error, name string) error {
	switch e := fault.FromOS(err); e.Code {
	case fault.UnsafeFile:
		return fault.New(fault.UsageError, "%s: name another file on the command line", e.Msg).At(name)
	case fault.NotFound:
	default:
		return e
	}
	return fault.New(fault.UsageError, "there is no such file or folder: the path on the command line is wrong").At(name)
}

// advice is the table's advice, with the VM's name in it and with commands that run as they stand.
func (p *program) advice(c fault.Code, vm string) string { return p.adviceIn(c.Lookup(), vm) }

// adviceIn is the advice of an entry. Without a VM nothing can be run for it, and what was found in a file that somebody
// only looks at has no consequence.
func (p *program) adviceIn(entry fault.Entry, vm string) string {
	switch {
	case vm != "" || !aboutVM(entry.Command):
		return p.fill(entry.Advice, vm)
	case p.res.Command == hrlInspect:
		return ""
	}
	mend, _, _ := strings.Cut(entry.Advice, "Then run: ")
	if strings.HasPrefix(mend, "Run: ") {
		return ""
	}
	return p.fill(strings.TrimSpace(mend), vm)
}

// adviceOf is the table's advice, with what the error itself knows better: what to mend, and which command leads on.
func (p *program) adviceOf(c fault.Code, e *fault.Error, vm string) string {
	if c == fault.UsageError {
		return "Run: " + p.helpOf(e)
	}
	entry := c.Lookup()
	if c == e.Code {
		entry = entry.Of(e)
		if e.Next != "" {
			entry = entry.Leading(e.Next)
		}
	}
	return p.adviceIn(entry, cmpOr(e.VM, vm))
}

// helpOf is the command that tells how a command that was misspelt is written.
func (p *program) helpOf(e *fault.Error) string {
	switch {
	case e.Next != "":
		return p.commands(e.Next)
	case p.res.Command != "":
		return "sitrep " + p.res.Command + " --help"
	}
	return "sitrep help"
}

// nextOf is the command that leads on.
func (p *program) nextOf(c fault.Code, e *fault.Error, vm string) string {
	if c == fault.UsageError {
		return p.helpOf(e)
	}
	if e.Next != "" && c == e.Code {
		return p.commands(e.Next)
	}
	return p.nextCommand(c, cmpOr(e.VM, vm))
}

// nextCommand is the table's command, "" when it is for a VM and none is concerned.
func (p *program) nextCommand(c fault.Code, vm string) string {
	command := c.Lookup().Command
	if vm == "" && aboutVM(command) {
		return ""
	}
	return p.fill(command, vm)
}

func aboutVM(command string) bool {
	return strings.Contains(command, "{vm}") || strings.Contains(command, "{again}")
}

// fill makes a text of the table one for this VM and this command line.
func (p *program) fill(text, vm string) string {
	return p.commands(fault.Fill(text, cmpOr(vm, "VM"), p.res.Command))
}

// commandWords matches "sitrep COMMAND" in a text.
var commandWords = regexp.MustCompile(`\bsitrep (apply|check|delta|failback|failover|help|hrl|init|jobs|pause|points|protect|` +
	`replicate|resume|resync|status|store|takeover|unprotect|verify|why)\b`)

// commands puts the global flags that say where the site is into the commands of a text.
func (p *program) commands(text string) string {
	flags := p.opts.where()
	if flags == "" {
		return text
	}
	return commandWords.ReplaceAllString(text, "sitrep"+strings.ReplaceAll(flags, "$", "$$")+" $1")
}

// where is the flags that were given to say where the site is, as a shell understands them.
func (o *options) where() string {
	var b strings.Builder
	if o.siteGiven {
		b.WriteString(" --site " + shellQuote(o.site))
	}
	if o.state != "" {
		b.WriteString(" --state " + shellQuote(o.state))
	}
	return b.String()
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:@%+,=-]+$`)

// shellQuote writes a word so that a POSIX shell reads it as one.
func shellQuote(s string) string {
	if plainWord.MatchString(s) {
		return s
	}
	if plain.Line(s) != s { // what would not be printed as it is: the way bash, zsh and ksh write it
		return "$'" + plain.Text(strings.NewReplacer(`\`, `\\`, "'", `\'`, "\n", `\n`, "\t", `\t`).Replace(s)) + "'"
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
