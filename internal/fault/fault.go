// Package fault is the one type of an error that an operator gets to see, and the one table that says what each kind of
// error means: whether it is tried again, which exit code it makes, and what to run next.
//
// An error is classified where it is born, by its Code. Layers above wrap it with fmt.Errorf("...: %w") or fill in the
// VM and the disk with In; they never change its class. The command line asks Find once and makes the exit code.
package fault

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"sitrep/internal/plain"
)

// Class says what happens after an error of a Code.
type Class uint8

const (
	// Recoverable errors are tried again on the retry schedule (exit code 1).
	Recoverable Class = iota
	// Critical errors need an administrator (exit code 4). Some are tried again all the same: see Code.Scheduled.
	Critical
	// Resync errors are mended by resynchronization only (exit code 5).
	Resync
	// Refused means that the operation is not allowed in this state, or that another site owns the VM (exit code 6).
	Refused
	// Differs means that a verification found a difference (exit code 7).
	Differs
	// Prerequisite means that a prerequisite is not met (exit code 3).
	Prerequisite
	// Usage means a wrong command line or site file (exit code 2).
	Usage
	// Locked means that another run holds the lock (exit code 11).
	Locked
	// Waits means that a recovery plan waits for a person (exit code 12).
	Waits
)

// Error is an error for the operator. Only Code is required.
type Error struct {
	Code Code
	VM   string // name of the VM, "" when it concerns none
	Disk string // name of the disk, "" when it concerns none
	Path string // file or address, "" when none
	Off  int64  // byte offset in Path; used only when HasOff
	// HasOff says that Off is known: offset 0 is a place like any other.
	HasOff bool
	Msg    string // what happened, in words
	// Next is the exact command that leads on, where the table cannot know it; "" = the table's.
	Next string
	// Cause and Mend say why, and what has to be done outside, where the error knows better than the table; "" = the table's.
	Cause, Mend string
	Err         error // the cause, may be nil
}

// New returns an error of the given code. Strings among args are put in one line, as names and answers of others could
// otherwise look like lines of this program; see Lines.
func New(code Code, format string, args ...any) *Error {
	oneLine(args)
	return &Error{Code: code, Msg: fmt.Sprintf(format, args...)}
}

// Wrap returns an error of the given code caused by err. See New for args.
func Wrap(code Code, err error, format string, args ...any) *Error {
	oneLine(args)
	return &Error{Code: code, Msg: fmt.Sprintf(format, args...), Err: err}
}

// Lines is an argument of New and Wrap that keeps its lines: the end of what a program wrote.
type Lines string

// oneLine puts the strings among args in one line. (It changes args, not a copy of it: only so can go vet check formats.)
func oneLine(args []any) {
	for i, a := range args {
		if s, ok := a.(string); ok {
			args[i] = plain.Line(s)
		}
	}
}

// At names the file. It changes and returns e, for use where the error is made.
func (e *Error) At(path string) *Error { e.Path = path; return e }

// AtOff names the file and the byte offset. It changes and returns e, for use where the error is made.
func (e *Error) AtOff(path string, off int64) *Error {
	e.Path, e.Off, e.HasOff = path, off, true
	return e
}

// Of names the VM and the disk. It changes and returns e, for use where the error is made.
func (e *Error) Of(vm, disk string) *Error { e.VM, e.Disk = vm, disk; return e }

// Then names the exact command that leads on. It changes and returns e, for use where the error is made.
func (e *Error) Then(command string) *Error { e.Next = command; return e }

// Error tells the place first, then what happened, then the cause.
func (e *Error) Error() string {
	var b strings.Builder
	part := func(s string) {
		if s == "" {
			return
		}
		if b.Len() > 0 {
			b.WriteString(": ")
		}
		b.WriteString(plain.Text(s)) // much of it is what others have said
	}
	if e.VM != "" {
		part("VM " + plain.Line(e.VM))
	}
	if e.Disk != "" {
		part("disk " + plain.Line(e.Disk))
	}
	if e.Path != "" && e.HasOff {
		part(fmt.Sprintf("%s at offset %d", plain.Line(e.Path), e.Off))
	} else {
		part(plain.Line(e.Path))
	}
	part(e.Msg)
	if e.Err != nil {
		part(causeText(e.Err))
	}
	return b.String()
}

// causeText is the text of a cause; an error of the operating system is one line, whatever the file is called.
func causeText(err error) string {
	switch err.(type) {
	case *os.PathError, *os.LinkError, *os.SyscallError:
		return plain.Line(err.Error())
	}
	return err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Class is the class of the error's code.
func (e *Error) Class() Class { return e.Code.Class() }

// Find returns the outermost Error in err's chain, or nil.
func Find(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return nil
}

// Is says whether err carries the given code anywhere in its chain, in any branch of joined errors.
func Is(err error, code Code) bool {
	if e, ok := err.(*Error); ok && e.Code == code {
		return true
	}
	switch u := err.(type) {
	case interface{ Unwrap() error }:
		return Is(u.Unwrap(), code)
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(u.Unwrap(), func(err error) bool { return Is(err, code) })
	}
	return false
}

// In fills in the VM and the disk of the Error in err's chain, where they are not named yet, and returns err.
// An error that carries no Error becomes one: see FromOS for its code.
func In(err error, vm, disk string) error {
	if err == nil {
		return nil
	}
	e := Find(err)
	if e == nil {
		e = FromOS(err)
		err = e
	}
	if e.VM == "" {
		e.VM = vm
	}
	if e.Disk == "" {
		e.Disk = disk
	}
	return err
}

// Cancelled says whether err comes from a run that was told to end: whatever else it is called, it is no failure. Of several errors none
// may be a failure of another code: a worker that fails stops the others, and what they then say is no reason to take its failure for the
// operator's wish.
func Cancelled(err error) bool {
	if err == nil || !errors.Is(err, context.Canceled) && !Is(err, Interrupted) {
		return false
	}
	return !failed(err)
}

// failed says whether some part of an error is a failure that was classified, and comes from no cancellation.
func failed(err error) bool {
	if e, ok := err.(*Error); ok {
		return e.Code != Interrupted && !errors.Is(e, context.Canceled)
	}
	switch u := err.(type) {
	case interface{ Unwrap() error }:
		return failed(u.Unwrap())
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(u.Unwrap(), failed)
	}
	return false
}
