// Command skips reads what "go test -json" writes, shows what "go test" would have shown, and at the end which tests were skipped and
// why: "go test" itself says so of no test unless it is asked to tell of all of them. testdata/test.sh runs it.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
)

func main() {
	if err := summary(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "skips:", err)
		os.Exit(1)
	}
}

// event is a line of "go test -json" (go doc test2json).
type event struct {
	Action, Package, Test, Output, ImportPath string
}

// report is what is kept of a run: the output of tests that have not ended, and why tests were skipped.
type report struct {
	w       io.Writer
	pending map[string]map[string][]string // package, test, lines
	reasons map[string]int
}

// summary shows a run. It fails when its input or its output does.
func summary(r io.Reader, w io.Writer) error {
	out := bufio.NewWriter(w)
	rep := report{w: out, pending: map[string]map[string][]string{}, reasons: map[string]int{}}
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil && err != io.EOF {
			return err
		}
		var e event
		if len(line) > 0 && json.Unmarshal(line, &e) == nil {
			rep.take(e)
		} else {
			out.Write(line) // not of a test
		}
		if ferr := out.Flush(); ferr != nil {
			return ferr
		}
		if err == io.EOF {
			break
		}
	}
	rep.skipped()
	return out.Flush()
}

// take takes an event.
func (r *report) take(e event) {
	switch {
	case e.Action == "build-output":
		fmt.Fprint(r.w, e.Output)
	case e.Action == "output" && e.Test == "":
		r.ofPackage(e)
	case e.Action == "output":
		if r.pending[e.Package] == nil {
			r.pending[e.Package] = map[string][]string{}
		}
		r.pending[e.Package][e.Test] = append(r.pending[e.Package][e.Test], e.Output)
	case e.Action == "pass" && e.Test != "":
		delete(r.pending[e.Package], e.Test)
	case e.Action == "skip" && e.Test != "":
		r.reasons[reason(r.pending[e.Package][e.Test])]++
		delete(r.pending[e.Package], e.Test)
	case e.Action == "fail":
		r.failed(e)
	}
}

// ofPackage shows what is said of a package as a whole; that nothing failed is the line "ok" alone.
func (r *report) ofPackage(e event) {
	if e.Output != "PASS\n" && !strings.Contains(e.Output, "[no test files]") && !strings.HasPrefix(e.Output, "testing: warning: no tests") {
		fmt.Fprint(r.w, e.Output)
	}
}

// failed shows what a test that failed has said; of a package that failed, also what tests have said that never ended.
func (r *report) failed(e event) {
	for _, test := range slices.Sorted(maps.Keys(r.pending[e.Package])) {
		if e.Test != "" && test != e.Test {
			continue
		}
		for _, line := range r.pending[e.Package][test] {
			fmt.Fprint(r.w, line)
		}
		delete(r.pending[e.Package], test)
	}
}

var place = regexp.MustCompile(`^\s*\S+\.go:\d+: `)

// reason is what a skipped test has said last.
func reason(lines []string) string {
	var said []string
	for _, line := range lines {
		switch trimmed := strings.TrimSpace(line); {
		case strings.HasPrefix(trimmed, "=== "), strings.HasPrefix(trimmed, "--- "):
		case place.MatchString(line):
			said = []string{strings.TrimSpace(place.ReplaceAllString(line, ""))}
		default:
			said = append(said, trimmed)
		}
	}
	return cmp.Or(strings.Join(said, " "), "no reason is given")
}

// skipped tells how many tests were skipped, and why: what is missing most first.
func (r *report) skipped() {
	n := 0
	for _, k := range r.reasons {
		n += k
	}
	if n == 0 {
		fmt.Fprintln(r.w, "\nno test was skipped")
		return
	}
	fmt.Fprintf(r.w, "\nskipped tests: %d\n", n)
	for _, why := range slices.SortedFunc(maps.Keys(r.reasons), func(a, b string) int {
		return cmp.Or(r.reasons[b]-r.reasons[a], strings.Compare(a, b))
	}) {
		fmt.Fprintf(r.w, "%6d  %s\n", r.reasons[why], why)
	}
}
