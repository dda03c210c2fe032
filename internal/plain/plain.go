// Package plain makes text fit to be printed. Names of files, headers of disk images, ledgers, answers of hosts, hooks and servers come
// from others. Printed as they are, they could move the cursor, retitle the window, hide what follows, or look like lines of this
// program's own: so whatever was not written here goes through this package on its way to a terminal, a log or a record.
//
// What is taken out stays visible: as \x1b, \x07, \u202e, the way Go writes it in a string.
package plain

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Text keeps lines and tabs and makes every other control character visible: C0, DEL, C1, and those that change the direction
// or the lines of Unicode text. Bytes that are no UTF-8 become visible too.
func Text(s string) string { return clean(s, false) }

// Line is Text in one line: line breaks and tabs become a space.
func Line(s string) string { return clean(s, true) }

func clean(s string, line bool) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || unfit(r) || line && isBreak(r) }) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case line && strings.HasPrefix(s, "\r\n"):
			b.WriteByte(' ')
			n = 2
		case line && isBreak(r):
			b.WriteByte(' ')
		case unfit(r):
			b.WriteString(visible(r))
		default:
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return b.String()
}

func isBreak(r rune) bool { return r == '\n' || r == '\t' }

// unfit says whether a character must not reach a terminal.
func unfit(r rune) bool {
	switch {
	case isBreak(r):
		return false
	case r < 0x20, r >= 0x7f && r < 0xa0: // C0, DEL, C1
		return true
	case r == 0x061c, r == 0x200e, r == 0x200f, r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069: // direction
		return true
	}
	return r == 0x2028 || r == 0x2029 || r >= 0xe0000 && r <= 0xe007f // line and paragraph ends, invisible tags
}

func visible(r rune) string {
	switch {
	case r < 0x100:
		return fmt.Sprintf(`\x%02x`, r)
	case r < 0x10000:
		return fmt.Sprintf(`\u%04x`, r)
	}
	return fmt.Sprintf(`\U%08x`, r)
}

// JSON makes the strings of encoded JSON Text, or Line where lines is false. What is no string cannot hold any of it.
func JSON(data []byte, lines bool) []byte {
	var b strings.Builder
	s := string(data)
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == '\\' && len(s) >= 2:
			out, used := escape(s, lines)
			b.WriteString(out)
			n = used
		case r != utf8.RuneError && unfit(r) && r >= 0x20: // C0 stands in no JSON string, and as white space does no harm
			b.WriteString(`\` + visible(r))
		default:
			b.WriteString(s[:n])
		}
		s = s[n:]
	}
	return []byte(b.String())
}

// escape returns what takes the place of the escape sequence that s begins with, and its length.
func escape(s string, lines bool) (out string, used int) {
	r := rune(-1)
	switch s[1] {
	case 'b':
		r = '\b'
	case 'f':
		r = '\f'
	case 'r':
		r = '\r'
	case 'n':
		r = '\n'
	case 't':
		r = '\t'
	case 'u':
		if _, err := fmt.Sscanf(s[2:min(6, len(s))], "%04x", &r); err != nil || len(s) < 6 {
			return s[:2], 2
		}
		used = 6
	}
	used = max(used, 2)
	switch {
	case r >= 0 && isBreak(r) && !lines:
		return " ", used
	case r >= 0 && unfit(r):
		return `\` + visible(r), used
	}
	return s[:used], used
}

// Writer is w for Text.
func Writer(w io.Writer) io.Writer { return writer{w} }

type writer struct{ w io.Writer }

func (w writer) Write(p []byte) (int, error) {
	if _, err := io.WriteString(w.w, Text(string(p))); err != nil {
		return 0, err
	}
	return len(p), nil
}
