package site

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// value is a place in the site file. With n == nil it is absent, or an error was reported of it: reading it then gives
// the default and says nothing more.
type value struct {
	d    *doc
	n    *yaml.Node
	path string
}

func (v value) fail(format string, args ...any) {
	if v.n != nil && !v.d.dead[v.n] {
		v.d.add(v.n.Line, v.n.Column, v.path, format, args...)
	}
}

// want reports that the value is not of the wanted kind.
func (v value) want(what string) { v.fail("%s: want %s, got %s", v.label(), what, show(v.n)) }

// label is the last part of the path.
func (v value) label() string {
	if v.path == "" {
		return "the site file"
	}
	return v.path[strings.LastIndexByte(v.path, '.')+1:]
}

// show words a value for a message, without giving a secret away.
func show(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.AliasNode:
		return "an alias"
	case isNull(n):
		return "nothing"
	case n.ShortTag() != "!!str" && !looksSecret(n.Value):
		return clip(n.Value, 60) // a number and the like
	}
	return quote(n.Value)
}

// quote words text of a file for a message, without giving a secret away.
func quote(s string) string {
	if looksSecret(s) {
		return "(not shown)"
	}
	q := strconv.Quote(clip(s, 60))
	return "'" + q[1:len(q)-1] + "'"
}

// object is a mapping whose keys are known.
type object struct {
	v      value
	fields map[string]value
}

// object reads a mapping with these keys, and reports every other key and every key that is there twice.
func (v value) object(keys ...string) object {
	o := object{v: v, fields: map[string]value{}}
	if v.n == nil {
		return o
	}
	if v.n.Kind != yaml.MappingNode {
		v.want("a mapping with the keys " + strings.Join(keys, ", "))
		o.v.n = nil
		return o
	}
	lines := map[string]int{}
	for i := 0; i+1 < len(v.n.Content); i += 2 {
		o.field(v.n.Content[i], v.n.Content[i+1], keys, lines)
	}
	return o
}

func (o object) field(k, val *yaml.Node, keys []string, lines map[string]int) {
	key := value{d: o.v.d, n: k, path: join(o.v.path, clip(k.Value, 60))}
	if looksSecret(k.Value) {
		key.path = o.v.path
	}
	if k.Kind != yaml.ScalarNode {
		key.fail("want a key, got %s", show(k))
		return
	}
	if line, twice := lines[k.Value]; twice {
		key.fail("duplicate key %s, the first one is on line %d", quote(k.Value), line)
		return
	}
	lines[k.Value] = k.Line
	if !contains(keys, k.Value) {
		key.unknown(keys)
		return
	}
	f := value{d: o.v.d, n: val, path: key.path}
	if isNull(val) {
		f.fail("%s has no value: give it one or remove the key", f.label())
	}
	if isNull(val) || o.v.d.dead[val] && val.Kind != yaml.MappingNode && val.Kind != yaml.SequenceNode {
		f.n = nil
	}
	o.fields[k.Value] = f
}

// keyText is what keys look like.
var keyText = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9 _-]*$`)

// unknown reports a key that has no meaning here.
func (v value) unknown(keys []string) {
	if v.d.full() {
		v.d.more++
		return
	}
	hint := didYouMean(v.n.Value, keys)
	if contains(secretKeys, v.n.Value) {
		hint = ": " + noSecrets
	} else if hint == "" {
		hint = "; known here: " + strings.Join(keys, ", ")
	}
	shown := "(not shown)"
	if keyText.MatchString(v.n.Value) { // anything else may be a line of another file
		shown = quote(v.n.Value)
	}
	v.fail("unknown key %s%s", shown, hint)
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// has says whether the key is there, with whatever value.
func (o object) has(key string) bool { _, ok := o.fields[key]; return ok }

// get returns the value of an optional key.
func (o object) get(key string) value {
	if f, ok := o.fields[key]; ok {
		return f
	}
	return value{d: o.v.d, path: join(o.v.path, key)}
}

// need returns the value of a required key, and reports when it is missing.
func (o object) need(key string) value {
	if !o.has(key) && o.v.n != nil {
		o.v.d.add(o.v.n.Line, o.v.n.Column, join(o.v.path, key), "missing key '%s'", key)
	}
	return o.get(key)
}

// emptyList says that the value is written as [].
func (v value) emptyList() bool {
	return v.n != nil && v.n.Kind == yaml.SequenceNode && len(v.n.Content) == 0
}

// list reads a list; when it is there it has at least one element.
func (v value) list() []value {
	if v.n == nil {
		return nil
	}
	if v.n.Kind != yaml.SequenceNode {
		v.want("a list")
		return nil
	}
	if len(v.n.Content) == 0 {
		v.fail("%s is empty: it needs at least one entry", v.label())
	}
	out := make([]value, 0, len(v.n.Content))
	for i, c := range v.n.Content {
		e := value{d: v.d, n: c, path: fmt.Sprintf("%s[%d]", v.path, i)}
		switch {
		case isNull(c):
			e.fail("%s has no value: give it one or remove it", e.label())
		case c.Kind != yaml.AliasNode:
			out = append(out, e)
		}
	}
	return out
}

// scalar returns the text of a plain value of one of the given YAML types.
func (v value) scalar(what string, tags ...string) (string, bool) {
	if v.n == nil {
		return "", false
	}
	if v.n.Kind != yaml.ScalarNode || !contains(tags, v.n.ShortTag()) {
		v.want(what)
		return "", false
	}
	return v.n.Value, !v.d.dead[v.n]
}

// text reads text that is not empty, has no control characters and no blanks at its ends.
func (v value) text() (string, bool) {
	what := "text"
	if v.n != nil && v.n.Kind == yaml.ScalarNode {
		what = "text (put it in quotes)"
	}
	s, ok := v.scalar(what, "!!str")
	if !ok {
		return "", false
	}
	if !isText(s) {
		v.want("text without blanks at its ends and without control characters")
		return "", false
	}
	return s, true
}

func isText(s string) bool {
	return s != "" && s == strings.TrimSpace(s) && !strings.ContainsFunc(s, isControl)
}

func isControl(r rune) bool {
	return r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 || r == 0xfffd
}

// boolean reads true or false.
func (v value) boolean(def bool) bool {
	s, ok := v.scalar("true or false", "!!bool")
	if !ok {
		return def
	}
	return strings.EqualFold(s, "true")
}

// integer reads a whole number in decimal digits, from lo to hi.
func (v value) integer(def, lo, hi int) int {
	what := fmt.Sprintf("a whole number from %d to %d", lo, hi)
	s, ok := v.scalar(what, "!!int")
	if !ok {
		return def
	}
	n, ok := digits(s)
	if !ok || n < int64(lo) || n > int64(hi) {
		v.want(what)
		return def
	}
	return int(n)
}

// size reads a number of bytes, from lo to hi.
func (v value) size(def, lo, hi int64) int64 {
	what := fmt.Sprintf("a size from %s to %s, in KiB, MiB, GiB or TiB", sizeText(lo), sizeText(hi))
	s, ok := v.scalar(what, "!!str", "!!int")
	if !ok {
		return def
	}
	n, ok := parseSize(s)
	if !ok || n < lo || n > hi {
		v.want(what)
		return def
	}
	return n
}

// duration reads a duration in Go's form; what words the kind of duration and check says whether it is right.
func (v value) duration(def time.Duration, what string, check func(time.Duration) bool) time.Duration {
	s, ok := v.scalar(what, "!!str", "!!int")
	if !ok {
		return def
	}
	t, err := time.ParseDuration(s) // "0" needs no unit
	if err != nil || !check(t) {
		v.want(what)
		return def
	}
	return t
}

// choice reads one of a few words.
func choice[T ~string](v value, def T, options ...T) T {
	words := make([]string, len(options))
	for i, o := range options {
		words[i] = string(o)
	}
	what := strings.Join(words, ", ")
	s, ok := v.scalar("one of "+what, "!!str")
	if !ok {
		return def
	}
	if !contains(words, s) {
		v.fail("%s: want one of %s, got %s%s", v.label(), what, quote(s), didYouMean(s, words))
		return def
	}
	return T(s)
}
