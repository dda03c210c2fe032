package site

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// doc is a site file while it is read.
type doc struct {
	file, dir string
	errs      []Error
	more      int
	dead      map[*yaml.Node]bool // what an error was reported of already: read no further
}

// read returns the root of the one document in data, or reports why there is none and returns nil.
func (d *doc) read(data []byte) *yaml.Node {
	root, second, err := decode(bytes.NewReader(data))
	switch {
	case err != nil:
		d.syntax(data, err)
		return nil
	case root == nil || len(root.Content) == 0 || isNull(root.Content[0]) && second == nil:
		d.add(1, 1, "", "the site file is empty; \"sitrep init\" writes a starter")
		return nil
	case second != nil:
		d.add(second.Line, second.Column, "", "a site file holds one YAML document, and here a second one begins")
		return nil
	}
	if n := root.Content[0]; !isSiteFile(n) { // it may be anybody's file, with anybody's secrets
		d.add(n.Line, n.Column, "", "this is no site file: it has none of the keys %s (what it has is not shown)", strings.Join(siteKeys, ", "))
		return nil
	}
	d.dead = map[*yaml.Node]bool{}
	d.refuse(root.Content[0], nil)
	return root.Content[0]
}

// isSiteFile says whether a document can be meant as a site file: a list, or a mapping that has at least one of its keys.
func isSiteFile(n *yaml.Node) bool {
	if n.Kind != yaml.MappingNode {
		return n.Kind != yaml.ScalarNode
	}
	for i := 0; i < len(n.Content); i += 2 {
		if contains(siteKeys, n.Content[i].Value) {
			return true
		}
	}
	return false
}

// decode reads the first document, and the second when there is one. The library is known to panic on some malformed
// input; that is a malformed file, not an end of the program.
func decode(r io.Reader) (first, second *yaml.Node, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errMalformed
		}
	}()
	dec := yaml.NewDecoder(r)
	for _, to := range []**yaml.Node{&first, &second} {
		var n yaml.Node
		err = dec.Decode(&n)
		if errors.Is(err, io.EOF) {
			return first, second, nil
		}
		if err != nil {
			return nil, nil, err
		}
		*to = &n
	}
	return first, second, nil
}

var errMalformed = errors.New("malformed")

// inLine is how the library begins the text of an error: the only place where it tells a position.
var inLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

// syntax reports text that is not YAML. The library tells at best the line on which the surrounding construct
// begins, so the place is found anew: it is where the library stopped reading.
func (d *doc) syntax(data []byte, err error) {
	text := err.Error()
	m := inLine.FindStringSubmatch(text)
	if m != nil {
		text = text[len(m[0]):]
	}
	at := &oneByte{data: data, line: 1}
	decode(at)
	if m != nil && m[1] != "" && m[1] != fmt.Sprint(at.line) {
		text += ", in what begins near line " + m[1]
	}
	if looksSecret(text) {
		text = errMalformed.Error()
	}
	d.add(at.line, max(at.column, 1), "", "not readable as YAML: %s", clip(text, 200))
}

// oneByte hands out one byte at a time and counts lines and characters.
type oneByte struct {
	data         []byte
	off          int
	line, column int
	newline      bool
}

func (r *oneByte) Read(p []byte) (int, error) {
	if r.off == len(r.data) {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	b := r.data[r.off]
	r.off++
	if r.newline { // counted late: a line break belongs to the line that it ends
		r.line, r.column, r.newline = r.line+1, 0, false
	}
	if b&0xC0 != 0x80 {
		r.column++
	}
	r.newline = b == '\n'
	p[0] = b
	return 1, nil
}

// crumb is where a walk through the document is.
type crumb struct {
	up  *crumb
	key string // ".name" or "[i]"
}

// maxDepth is how many parts of a path are told; what the site file means is nowhere nested deeper.
const maxDepth = 32

func (c *crumb) path() string {
	var parts []string
	for ; c != nil && len(parts) < maxDepth; c = c.up {
		parts = append(parts, c.key)
	}
	slices.Reverse(parts)
	return strings.TrimPrefix(strings.Join(parts, ""), ".")
}

// refuse reports what no part of a site file may use.
func (d *doc) refuse(n *yaml.Node, at *crumb) {
	report := func(format string, args ...any) {
		d.dead[n] = true
		if d.full() {
			d.more++
			return
		}
		d.add(n.Line, n.Column, at.path(), format, args...)
	}
	switch {
	case n.Kind == yaml.AliasNode:
		report("aliases (*name) are not supported: write the value out")
		return
	case n.Anchor != "":
		report("anchors (&name) are not supported")
	case n.Style&yaml.TaggedStyle != 0:
		report("tags (!name) are not supported")
	case n.Kind == yaml.ScalarNode && n.ShortTag() == "!!merge":
		report("merge keys (<<) are not supported: write the keys out")
	case n.Kind == yaml.ScalarNode && len(n.Value) > maxScalar:
		report("this is longer than %d KiB (value not shown)", maxScalar>>10)
	case n.Kind == yaml.ScalarNode && looksSecret(n.Value):
		report("this looks like a secret (value not shown): " + noSecrets)
	}
	for i, c := range n.Content {
		key := "[" + strconv.Itoa(i) + "]"
		if n.Kind == yaml.MappingNode {
			k := n.Content[i&^1]
			key = "." + clip(k.Value, 60)
			if looksSecret(k.Value) {
				key = ".(not shown)"
			}
		}
		d.refuse(c, &crumb{up: at, key: key})
	}
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// clip shortens text of a file for a message.
func clip(s string, n int) string {
	s = strings.ToValidUTF8(s, "?")
	if r := []rune(s); len(r) > n {
		return string(r[:n]) + "..."
	}
	return s
}
