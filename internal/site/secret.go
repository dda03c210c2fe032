package site

import (
	"fmt"
	"io"
	"log/slog"
	"regexp"
)

// Secret holds text that must not be shown. However it is printed, logged or marshalled, it says "(secret)"; only
// Reveal gives it away.
type Secret struct{ text string }

const hidden = "(secret)"

// NewSecret hides text.
func NewSecret(text string) Secret { return Secret{text} }

// Reveal returns the text, for the one call that needs it.
func (s Secret) Reveal() string { return s.text }

// String, Format, GoString, MarshalText and LogValue are what fmt, encoding and slog use.
func (s Secret) String() string               { return hidden }
func (s Secret) GoString() string             { return hidden }
func (s Secret) Format(f fmt.State, _ rune)   { io.WriteString(f, hidden) }
func (s Secret) MarshalText() ([]byte, error) { return []byte(hidden), nil }
func (s Secret) LogValue() slog.Value         { return slog.StringValue(hidden) }

// secretText matches Azure connection strings, shared access signatures and PEM keys.
var secretText = regexp.MustCompile(`(?i)(AccountKey|SharedAccessKey|SharedAccessSignature|Password|DefaultEndpointsProtocol)\s*=` +
	`|\bsig=[A-Z0-9%+/]{16}|-----BEGIN [A-Z ]*PRIVATE KEY`)

// maxScalar is how long a key or a value may be: longer than any path, short enough to be looked through many times.
const maxScalar = 8 << 10

// looksSecret says whether text of a file must not be repeated in a message.
func looksSecret(s string) bool {
	return len(s) > maxScalar || secretText.MatchString(s) || hasAccountKey(s)
}

// hasAccountKey finds 64 bytes in base64, which is what a key of a storage account is: 86 characters and "==".
func hasAccountKey(s string) bool {
	run := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '+' || c == '/':
			run++
		case run >= 86 && c == '=' && i+1 < len(s) && s[i+1] == '=':
			return true
		default:
			run = 0
		}
	}
	return false
}

// secretKeys are the keys under which people look for the place of a secret.
var secretKeys = []string{"connection_string", "account_key", "access_key", "shared_key", "key", "sas", "sas_token",
	"sas_url", "secret", "client_secret", "password", "token"}

const noSecrets = "secrets do not belong in the site file; put it in an environment variable and name that with connection_string_env"
