package hrl

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// ID is 16 random bytes that name one thing for ever: a replica, a position, a log.
type ID [16]byte

// NewID returns a new random ID.
func NewID() ID {
	var id ID
	rand.Read(id[:]) // never fails (crypto/rand)
	return id
}

// IsZero says whether this is no ID.
func (id ID) IsZero() bool { return id == ID{} }

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText writes the ID as 32 hexadecimal digits.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (id *ID) UnmarshalText(text []byte) error {
	if len(text) != 32 {
		return fmt.Errorf("an ID has 32 hexadecimal digits, not %q", text)
	}
	_, err := hex.Decode(id[:], text)
	return err
}

// Pos is a position in the history of a VM's disks: the state after cut number Seq of the history that ID names. Two
// positions are the same only when both parts are: a cut that was repeated after a crash, or a second history after a
// failover, has the same number and another ID. The zero Pos is the empty disk, before everything.
type Pos struct {
	Seq uint64
	ID  ID
}

// IsZero says whether this is the position before everything.
func (p Pos) IsZero() bool { return p == Pos{} }

// Next returns a new position after p.
func (p Pos) Next() Pos { return Pos{Seq: p.Seq + 1, ID: NewID()} }

// String is "41-0123456789abcdef0123456789abcdef".
func (p Pos) String() string { return strconv.FormatUint(p.Seq, 10) + "-" + p.ID.String() }

// MarshalText writes what String returns.
func (p Pos) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (p *Pos) UnmarshalText(text []byte) error {
	seq, id, ok := strings.Cut(string(text), "-")
	if !ok {
		return fmt.Errorf("a position is NUMBER-ID, not %q", text)
	}
	n, err := strconv.ParseUint(seq, 10, 64)
	if err != nil {
		return fmt.Errorf("a position is NUMBER-ID, not %q", text)
	}
	p.Seq = n
	return p.ID.UnmarshalText([]byte(id))
}
