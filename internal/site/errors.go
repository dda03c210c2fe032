package site

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"sitrep/internal/fault"
	"sitrep/internal/plain"
)

// Error is one thing that is wrong in a site file.
type Error struct {
	Line   int    `json:"line"`   // from 1
	Column int    `json:"column"` // from 1, in characters
	Path   string `json:"path"`   // such as vmm.clouds[0].hosts[0].vms[1].disks[0].path; "" = the file as a whole
	Msg    string `json:"message"`
}

// Errors is everything that is wrong in a site file, in the order of the file. It wraps a fault.Error of code
// SiteInvalid.
type Errors struct {
	File string // as the caller of Load named it
	List []Error
	More int // how many errors beyond maxErrors were found and not kept
}

// maxErrors is how many errors of one file are kept: more than anyone reads, and few enough that a hostile file
// cannot turn its megabytes into gigabytes of messages.
const maxErrors = 200

// Error has a line per error: file:line:column: message.
func (e *Errors) Error() string {
	var b strings.Builder
	for i, x := range e.List {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s:%d:%d: %s", plain.Line(e.File), x.Line, x.Column, plain.Line(x.Msg))
	}
	if e.More > 0 {
		fmt.Fprintf(&b, "\n%s: and %d more errors", plain.Line(e.File), e.More)
	}
	return b.String()
}

// Unwrap returns the classified error that sums up the list.
func (e *Errors) Unwrap() error {
	n := len(e.List) + e.More
	if n == 1 {
		return fault.New(fault.SiteInvalid, "%s", e.List[0].Msg).At(fmt.Sprintf("%s:%d:%d", e.File, e.List[0].Line, e.List[0].Column))
	}
	return fault.New(fault.SiteInvalid, "the site file has %d errors", n).At(e.File)
}

// add keeps an error.
func (d *doc) add(line, column int, path, format string, args ...any) {
	if len(d.errs) >= maxErrors {
		d.more++
		return
	}
	d.errs = append(d.errs, Error{Line: line, Column: column, Path: path, Msg: fmt.Sprintf(format, args...)})
}

// full says that no more errors are kept, so that the work of wording one can be saved.
func (d *doc) full() bool { return len(d.errs) >= maxErrors }

// err returns what was added as *Errors, or nil.
func (d *doc) err() error {
	if len(d.errs) == 0 {
		return nil
	}
	slices.SortStableFunc(d.errs, func(a, b Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return &Errors{File: d.file, List: d.errs, More: d.more}
}
