package plain_test

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"sitrep/internal/plain"
)

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"plain äöü 日本 \U0001f5a5 \ufffd": "plain äöü 日本 \U0001f5a5 \ufffd",
		"a\x1b]0;title\x07b":             `a\x1b]0;title\x07b`,
		"\x1b[2J\x9b31m\u009b31m":        `\x1b[2J\x9b31m\x9b31m`,
		"\u202eexe.txt\u2066":            `\u202eexe.txt\u2066`,
		"a\r\nb\rc\td\x7f":               "a\\x0d\nb\\x0dc\td\\x7f",
		"\u2028\U000e0041":               `\u2028\U000e0041`,
	} {
		if got := plain.Text(in); got != want {
			t.Errorf("Text(%q) = %q, want %q", in, got, want)
		}
	}
	if got := plain.Line("a\r\nb\n\tc\rd"); got != `a b  c\x0dd` {
		t.Errorf("%q", got)
	}
}

// harmless fails when a text could do anything to a terminal.
func harmless(t *testing.T, s string, allowed string) {
	t.Helper()
	if !utf8.ValidString(s) {
		t.Errorf("no UTF-8: %q", s)
	}
	for _, r := range s {
		if !strings.ContainsRune(allowed, r) && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
			t.Errorf("%q has %U", s, r)
		}
	}
}

func FuzzPlain(f *testing.F) {
	for _, s := range []string{"", "\x1b[2J", "a\\u001b\n", `\`, `\u`, "\xe2\x80", "\u202e\r\n\t\b\f\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		harmless(t, plain.Text(s), "\n\t")
		harmless(t, plain.Line(s), "")
		if again := plain.Text(plain.Text(s)); again != plain.Text(s) {
			t.Errorf("%q is not stable", s)
		}
		for _, lines := range []bool{true, false} {
			data, err := json.Marshal(map[string]any{s: []string{s}})
			if err != nil {
				t.Fatal(err)
			}
			var got map[string][]string
			out := plain.JSON(data, lines)
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatalf("%q became %q: %v", data, out, err)
			}
			for k, v := range got {
				allowed := ""
				if lines {
					allowed = "\n\t"
				}
				harmless(t, k+v[0], allowed)
				if want := plain.Text(s); lines && utf8.ValidString(s) && v[0] != want {
					t.Errorf("%q became %q, want %q", s, v[0], want)
				}
			}
		}
		plain.JSON([]byte(s), true) // whatever it is
	})
}
