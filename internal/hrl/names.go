package hrl

import (
	"fmt"
	"strconv"
	"strings"
)

const (
	extension = ".hrl"
	seqDigits = 16
	idDigits  = 8
)

// FileName is the name of the log that leads to a position, in the folder of its disk. The names of one disk's logs sort
// as their positions do. The beginning of the position's ID is part of the name: two histories, as before and after a
// failover, have the same numbers and may never take each other's place.
func FileName(vm, disk string, to Pos) string { return vm + "." + ShelfName(disk, to) }

// ParseFileName tells the position's number from a name made by FileName for this VM and disk; ok is false for any other
// name.
func ParseFileName(name, vm, disk string) (seq uint64, ok bool) {
	stem, seq, ok := cutName(name)
	return seq, ok && stem == vm+"."+disk
}

// ShelfName is the name of the log that leads to a position, on the shelf of a replica.
func ShelfName(disk string, to Pos) string {
	return fmt.Sprintf("%s.%0*x-%s%s", disk, seqDigits, to.Seq, to.ID.String()[:idDigits], extension)
}

// ParseShelfName tells disk and position number from a name made by ShelfName; ok is false for any other name.
func ParseShelfName(name string) (disk string, seq uint64, ok bool) { return cutName(name) }

// cutName takes the fixed-width end off a name, so that names with dots in them are no problem.
func cutName(name string) (stem string, seq uint64, ok bool) {
	rest, ok := strings.CutSuffix(name, extension)
	dot := len(rest) - seqDigits - idDigits - 2
	if !ok || dot < 1 || rest[dot] != '.' {
		return "", 0, false
	}
	digits, id, ok := strings.Cut(rest[dot+1:], "-")
	if !ok || len(digits) != seqDigits || strings.Trim(digits+id, "0123456789abcdef") != "" {
		return "", 0, false
	}
	seq, err := strconv.ParseUint(digits, 16, 64)
	return rest[:dot], seq, err == nil
}
