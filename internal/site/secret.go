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

// secretText matches Azure connection strings, shared access signatures, 64-byte account keys in base64, and PEM keys.
var secretText = regexp.MustCompile(`(?i)(AccountKey|SharedAccessKey|SharedAccessSignature|Password)\s*=` +
	`|DefaultEndpointsProtocol\s*=` +
	`|\bsig=[A-Za-z0-9%+/]{16}` +
	`|[A-Za-z0-9+/]{86}==` +
	`|-----BEGIN [A-Z ]*PRIVATE KEY`)

func looksSecret(s string) bool { return secretText.MatchString(s) }

// secretKeys are the keys under which people look for the place of a secret.
var secretKeys = []string{"connection_string", "account_key", "access_key", "shared_key", "key", "sas", "sas_token",
	"sas_url", "secret", "client_secret", "password", "token"}

const noSecrets = "secrets do not belong in the site file; put it in an environment variable and name that with connection_string_env"
