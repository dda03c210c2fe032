package fault_test

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"sitrep/internal/fault"
)

// codes reads the constants of type Code from the source: one that has no row in the table must not be forgotten.
func codes(t *testing.T) []fault.Code {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "codes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out []fault.Code
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if name, ok := spec.Type.(*ast.Ident); ok && name.Name == "Code" {
			for _, v := range spec.Values {
				s, err := strconv.Unquote(v.(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, fault.Code(s))
			}
		}
		return true
	})
	return out
}

func TestEveryCodeHasARow(t *testing.T) {
	all := codes(t)
	if len(all) < 40 {
		t.Fatalf("only %d codes found in the source", len(all))
	}
	unknown := fault.Code("no such code").Lookup()
	for i, c := range all {
		e := c.Lookup()
		if c != fault.IO && e == unknown {
			t.Errorf("%s has no row in the table", c)
		}
		if !strings.HasSuffix(e.Cause, ".") || e.Advice == "" || e.Class > fault.Waits {
			t.Errorf("%s: %+v", c, e)
		}
		if strings.Trim(string(c), "abcdefghijklmnopqrstuvwxyz-") != "" {
			t.Errorf("%q is not a word of small letters", c)
		}
		if slices.Contains(all[:i], c) {
			t.Errorf("%s is there twice", c)
		}
		if rest := fault.Fill(e.Advice, "web01", ""); strings.ContainsAny(rest, "{}") {
			t.Errorf("%s: advice %q has an unknown placeholder", c, e.Advice)
		}
		if !strings.HasSuffix(e.Advice, e.Command) || e.Command == "" && c != fault.Exists {
			t.Errorf("%s: advice %q does not end with its command %q", c, e.Advice, e.Command)
		}
	}
}

func TestFill(t *testing.T) {
	for _, tt := range []struct{ text, verb, want string }{
		{"Run: {again}", "", "Run: sitrep delta web01 --now"},
		{"Run: {again}", "delta", "Run: sitrep delta web01 --now"},
		{"Run: {again}", "status", "Run: sitrep delta web01 --now"},
		{"Run: {again}", "replicate", "Run: sitrep replicate web01 --now"},
		{"Run: {again}", "apply", "Run: sitrep apply web01 --now"},
		{"Run: {again}", "resync", "Run: sitrep resync web01 --now"},
		{"Run: {again}", "protect", "Run: sitrep protect web01"},
		{"Run: {again}", "verify", "Run: sitrep verify web01"},
		{"{vm}, {vm}", "", "web01, web01"},
	} {
		if got := fault.Fill(tt.text, "web01", tt.verb); got != tt.want {
			t.Errorf("Fill(%q, %q) = %q, want %q", tt.text, tt.verb, got, tt.want)
		}
	}
}

func TestUnknownCodeIsRecoverable(t *testing.T) {
	if c := fault.Code("new").Class(); c != fault.Recoverable {
		t.Error(c)
	}
}

func TestMessage(t *testing.T) {
	cause := errors.New("cause")
	for _, tt := range []struct {
		err  *fault.Error
		want string
	}{
		{&fault.Error{}, ""},
		{fault.New(fault.IO, "a %d", 1), "a 1"},
		{fault.Wrap(fault.IO, cause, "a"), "a: cause"},
		{fault.Wrap(fault.IO, cause, ""), "cause"},
		{fault.New(fault.IO, "a").At("/p"), "/p: a"},
		{fault.New(fault.IO, "a").AtOff("/p", 0), "/p at offset 0: a"},
		{fault.New(fault.IO, "a").AtOff("/p", 4096).Of("vm", "disk"), "VM vm: disk disk: /p at offset 4096: a"},
		{fault.Wrap(fault.IO, cause, "a").At("/p").Of("vm", ""), "VM vm: /p: a: cause"},
	} {
		if got := tt.err.Error(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

func TestFindAndIs(t *testing.T) {
	inner := fault.New(fault.NoSpace, "inner")
	outer := fault.Wrap(fault.LedgerCorrupt, fmt.Errorf("between: %w", inner), "outer")
	wrapped := fmt.Errorf("around: %w", outer)
	joined := errors.Join(io.EOF, fault.New(fault.Busy, "one"), wrapped)
	if fault.Find(wrapped) != outer || fault.Find(nil) != nil || fault.Find(io.EOF) != nil {
		t.Error("Find")
	}
	for _, tt := range []struct {
		err  error
		code fault.Code
		want bool
	}{
		{wrapped, fault.LedgerCorrupt, true}, {wrapped, fault.NoSpace, true}, {wrapped, fault.IO, false},
		{joined, fault.Busy, true}, {joined, fault.LedgerCorrupt, true}, {joined, fault.NoSpace, true},
		{joined, fault.Fenced, false}, {nil, fault.IO, false}, {io.EOF, fault.IO, false},
	} {
		if fault.Is(tt.err, tt.code) != tt.want {
			t.Errorf("Is(%v, %s) = %v", tt.err, tt.code, !tt.want)
		}
	}
	if !errors.Is(fault.Wrap(fault.IO, io.EOF, "x"), io.EOF) || outer.Class() != fault.Critical {
		t.Error("Unwrap, Class")
	}
}

func TestIn(t *testing.T) {
	if fault.In(nil, "vm", "disk") != nil {
		t.Error("an error out of nothing")
	}
	e := fault.New(fault.Busy, "x").Of("", "d0")
	if err := fault.In(fmt.Errorf("around: %w", e), "vm", "d1"); e.VM != "vm" || e.Disk != "d0" || !strings.HasPrefix(err.Error(), "around: ") {
		t.Errorf("%v, %+v", err, e)
	}
	err := fault.In(io.ErrUnexpectedEOF, "vm", "d")
	if f := fault.Find(err); f == nil || f.Code != fault.IO || f.VM != "vm" || f.Disk != "d" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v", err)
	}
}

func TestFromOS(t *testing.T) {
	_, missing := os.Open(filepath.Join(t.TempDir(), "x"))
	classified := fault.New(fault.Fenced, "x")
	for _, tt := range []struct {
		err  error
		want fault.Code
	}{
		{io.EOF, fault.IO}, {missing, fault.NotFound}, {fmt.Errorf("a: %w", fs.ErrPermission), fault.Permission},
		{fmt.Errorf("a: %w", context.Canceled), fault.Interrupted}, {fmt.Errorf("a: %w", classified), fault.Fenced},
		{&os.LinkError{Op: "rename", Old: "a", New: "b", Err: fs.ErrNotExist}, fault.NotFound},
	} {
		got := fault.FromOS(tt.err)
		if got.Code != tt.want || got != classified && !errors.Is(got, tt.err) && tt.err != missing {
			t.Errorf("FromOS(%v) = %s, %v", tt.err, got.Code, got)
		}
	}
	pe := fault.FromOS(missing)
	if pe.Path == "" || pe.Msg != "open" || strings.Count(pe.Error(), pe.Path) != 1 || !errors.Is(pe, fs.ErrNotExist) {
		t.Errorf("%+v", pe)
	}
	around := fault.FromOS(fmt.Errorf("reading the ledger: %w", missing))
	if !strings.Contains(around.Error(), "reading the ledger") || strings.Count(around.Error(), pe.Path) != 1 {
		t.Errorf("%v", around)
	}
}

// TestNothingOfOthersIsALine: what an error repeats cannot act on a terminal, nor look like a line of this program.
func TestNothingOfOthersIsALine(t *testing.T) {
	evil := "x\x1b]0;title\x07\nsitrep: all is well\u202e"
	for _, err := range []error{
		fault.New(fault.IO, "the host said: %s", evil), fault.New(fault.IO, "read").At(evil).Of("", evil),
		fault.Wrap(fault.IO, &os.PathError{Op: "open", Path: evil, Err: syscall.EIO}, "%v", 1).AtOff(evil, 7),
	} {
		text := err.Error()
		if strings.ContainsAny(text, "\x1b\x07\u202e") || strings.Contains(text[:len(text)-len(evil)], "\nsitrep") {
			t.Errorf("%q", text)
		}
	}
	if err := fault.New(fault.HookFailed, "%s", fault.Lines("a\nb\x1b")); err.Error() != "a\nb\\x1b" {
		t.Errorf("%q", err)
	}
}

// TestCancelledWithAFailure: what is joined with a cancellation is a failure all the same.
func TestCancelledWithAFailure(t *testing.T) {
	stopped := fault.Wrap(fault.Interrupted, context.Canceled, "reading")
	failed := fault.New(fault.IO, "read failed")
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false}, {context.Canceled, true}, {stopped, true}, {fmt.Errorf("a: %w", stopped), true}, {failed, false},
		{errors.Join(stopped, context.Canceled), true}, {errors.Join(stopped, failed), false}, {errors.Join(failed, stopped), false},
		{fmt.Errorf("a: %w", errors.Join(stopped, failed)), false}, {fault.Wrap(fault.IO, context.Canceled, "reading"), true},
	} {
		if got := fault.Cancelled(c.err); got != c.want {
			t.Errorf("%v: %v", c.err, got)
		}
	}
}

// TestScheduled: what is tried again by itself is recoverable, or critical and mended outside; everything that asks somebody to decide about
// data is not.
func TestScheduled(t *testing.T) {
	waits := []fault.Code{fault.UnsafeFile, fault.DiskFormat, fault.DiskCorrupt, fault.DiskUnsupported, fault.ParentElsewhere, fault.DiskShrunk,
		fault.StoreElsewhere, fault.ReplicaMissing, fault.ReplicaForeign, fault.LedgerCorrupt, fault.PointMissing, fault.PointDamaged,
		fault.BootFailed, fault.AddressTaken, fault.FailoverFailed}
	for _, c := range codes(t) {
		want := c.Class() == fault.Recoverable || c.Class() == fault.Critical && !slices.Contains(waits, c)
		if c.Scheduled() != want {
			t.Errorf("%s: scheduled is %v", c, !want)
		}
	}
}

// TestResumeIsOfTheSchedule: only what the retry schedule holds back is told to go on by resume; any other command is run again.
func TestResumeIsOfTheSchedule(t *testing.T) {
	for verb, want := range map[string]string{
		"delta": "sitrep resume web01", "": "sitrep resume web01", "resync": "sitrep resume web01",
		"failback": "sitrep failback web01", "failover unplanned": "sitrep failover unplanned web01", "failover test": "sitrep failover test web01",
		"verify": "sitrep verify web01", "check": "sitrep check web01", "protect": "sitrep protect web01",
	} {
		e := fault.DiskUnsupported.Lookup()
		if got := fault.Fill(e.Command, "web01", verb); got != want {
			t.Errorf("%q: %s", verb, got)
		}
		if got := fault.Fill(e.Advice, "web01", verb); !strings.HasSuffix(got, " Then run: "+want) {
			t.Errorf("%q: %s", verb, got)
		}
	}
}
