package site

import (
	"fmt"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

// nameText is the alphabet of every name that can become a file or a folder, or stand in a command line: it has no
// separator, cannot begin with a dot or a dash, and cannot end with a dot (Windows would drop it).
var nameText = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_-])?$`)

// device matches the names that Windows takes for devices, in any folder and with any extension
// (Microsoft, "Naming Files, Paths, and Namespaces").
var device = regexp.MustCompile(`(?i)^(con|prn|aux|nul|com[0-9]|lpt[0-9])(\.|$)`)

// ofTheStore are names that the layout of a store uses itself, at one level or another.
var ofTheStore = regexp.MustCompile(`(?i)^(ledger|shelf|points|lock)(\.json)?$`)

// besideVMs are the names of what lies beside the VMs in a store, and those that are kept for more of it.
var besideVMs = regexp.MustCompile(`(?i)^sitrep-`)

// vmName reads the name of a VM, which is that of its replica too.
func (v value) vmName() string {
	s := v.name(maxName)
	if besideVMs.MatchString(s) {
		v.fail("%s: %s is a name that the store uses itself", v.label(), quote(s))
	}
	return s
}

// maxName is the longest name of a file or folder of ours, and maxHost that of a host (RFC 1035).
const (
	maxName = 63
	maxHost = 253
)

// name reads a name that is safe as a file, up to limit characters.
func (v value) name(limit int) string {
	s, ok := v.text()
	switch {
	case !ok:
	case len(s) > limit:
		v.fail("%s: %s has %d characters, more than %d", v.label(), quote(s), len(s), limit)
	case !nameText.MatchString(s):
		v.fail("%s: %s may have letters, digits, '.', '_' and '-' only, and begins with a letter or digit and does not end with a dot", v.label(), quote(s))
	case device.MatchString(s):
		v.fail("%s: %s is the name of a device on Windows", v.label(), quote(s))
	case ofTheStore.MatchString(s):
		v.fail("%s: %s is a name that the store uses itself", v.label(), quote(s))
	}
	return s
}

// maxLabel is the longest name that only people and other programs read, such as a network's.
const maxLabel = 128

// title reads a name that never becomes a file.
func (v value) title() string {
	s, ok := v.text()
	if ok && len(s) > maxLabel {
		v.fail("%s: %s has %d bytes, more than %d", v.label(), quote(s), len(s), maxLabel)
	}
	return s
}

// names are the names of things of one kind, for telling duplicates and finding what a reference means. The case of
// letters does not tell two names apart, as it does not on Windows.
type names[T any] struct {
	kind  string // "policy"
	lines map[string]int
	byKey map[string]T
	list  []string
}

func newNames[T any](kind string) *names[T] {
	return &names[T]{kind: kind, lines: map[string]int{}, byKey: map[string]T{}}
}

// declare notes that v names thing, or reports that another one has the name.
func (t *names[T]) declare(v value, name string, thing T) {
	if v.n == nil || name == "" {
		return
	}
	fold := strings.ToLower(name)
	if line, twice := t.lines[fold]; twice {
		v.fail("%s: another %s is called %s, on line %d", v.label(), t.kind, quote(name), line)
		return
	}
	t.lines[fold] = v.n.Line
	t.byKey[name] = thing
	t.list = append(t.list, name)
}

// refer reads a reference, or reports that nothing has this name. Where there is nothing at all to refer to and that
// was reported, it keeps quiet.
func (t *names[T]) refer(v value) (thing T, ok bool) {
	name, isText := v.text()
	if !isText {
		return thing, false
	}
	if thing, ok = t.byKey[name]; ok {
		return thing, true
	}
	if v.d.full() {
		v.d.more++
		return thing, false
	}
	v.fail("%s: no %s is called %s%s", v.label(), t.kind, quote(name), t.hint(name))
	return thing, false
}

// hint words what else could be meant.
func (t *names[T]) hint(name string) string {
	if s := didYouMean(name, t.list); s != "" {
		return s
	}
	if len(t.list) == 0 {
		return "; there is none"
	}
	const few = 5
	s := "; there is '" + strings.Join(t.list[:min(len(t.list), few)], "', '") + "'"
	if len(t.list) > few {
		s += fmt.Sprintf(" and %d more", len(t.list)-few)
	}
	return s
}

// file reads a path and makes it absolute.
func (v value) file() string {
	s, ok := v.text()
	switch {
	case !ok:
		return ""
	case strings.HasPrefix(s, "~"):
		v.fail("%s: ~ is not expanded: write the path out, or relative to the site file", v.label())
		return ""
	case filepath.IsAbs(s):
		return filepath.Clean(s)
	}
	return filepath.Join(v.d.dir, s)
}

// sameFile is what two paths to one file have in common, as far as names can tell.
func sameFile(path string) string {
	if runtime.GOOS == "windows" {
		return strings.ToLower(path)
	}
	return path
}

// within says whether path is dir or lies in it.
func within(dir, path string) bool {
	rel, err := filepath.Rel(sameFile(dir), sameFile(path))
	return err == nil && rel != ".." && !strings.HasPrefix(rel, ".."+string(filepath.Separator))
}

// maxSuggest bounds how many names are compared for a suggestion.
const maxSuggest = 200

// DidYouMean words a suggestion for a misspelt name, such as ", did you mean 'web01'?", or returns "".
func DidYouMean(got string, known []string) string { return didYouMean(got, known) }

// didYouMean words a suggestion for a misspelt name, or returns "".
func didYouMean(got string, known []string) string {
	best, least := "", 1+max(1, len(got)/3)
	for _, k := range known[:min(len(known), maxSuggest)] {
		d := 0
		if bare(got) != bare(k) {
			d = distance(got, k, least)
		}
		if d < least {
			best, least = k, d
		}
	}
	if best == "" {
		return ""
	}
	return ", did you mean '" + best + "'?"
}

// listed writes the first few names of a site.
func listed(names []string) string {
	const most = 20
	var quoted []string
	for _, n := range names[:min(len(names), most)] {
		quoted = append(quoted, quote(n))
	}
	if more := len(names) - most; more > 0 {
		quoted = append(quoted, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(quoted, ", ")
}

// bare drops what people vary when they write a name from memory.
func bare(s string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "", " ", "").Replace(s))
}

// distance is the number of letters to insert, remove, replace or swap to make b of a; limit or more when it is
// not less than limit.
func distance(a, b string, limit int) int {
	if len(a)-len(b) >= limit || len(b)-len(a) >= limit || len(a) > maxHost {
		return limit
	}
	var before, row []int
	next := make([]int, len(b)+1)
	for j := range next {
		next[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, row, next = row, next, make([]int, len(b)+1)
		next[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			next[j] = min(row[j]+1, next[j-1]+1, row[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				next[j] = min(next[j], before[j-2]+1)
			}
		}
	}
	return next[len(b)]
}
