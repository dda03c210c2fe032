// Package machine tells this machine from others.
//
// A host name does not: clones of a machine have one name, and one machine can get another. An operating system keeps an identity that
// is made when it is installed, and that stays when it is renamed, moved or updated. It is confidential as it stands, by the word of
// those who made it (machine-id(5)), so what is told of it here is a digest that only this program makes.
package machine

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
)

// ID is the identity of this machine: 32 hexadecimal digits, always the same. It is "" where the system keeps none, as in many
// containers. Whoever copies a machine without making it a new identity has two with the same one.
func ID() string {
	raw := strings.TrimSpace(systemID())
	if raw == "" {
		return ""
	}
	sum := sha256.Sum256([]byte("sitrep machine " + raw))
	return hex.EncodeToString(sum[:16])
}

// Name is the name of this machine, "unknown" when the system does not tell.
func Name() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		return "unknown"
	}
	return host
}

// Real is a path without links in it, absolute: the same for every way in which a folder is named. What does not exist yet is taken as it
// is called.
func Real(path string) (string, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	rest := ""
	for at := abs; ; {
		if real, err := filepath.EvalSymlinks(at); err == nil {
			return filepath.Join(real, rest), nil
		}
		up := filepath.Dir(at)
		if up == at {
			return abs, nil
		}
		rest, at = filepath.Join(filepath.Base(at), rest), up
	}
}
