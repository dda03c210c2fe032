package replica

import "context"

// Renamer is a store in which a replica can get the name of another VM for next to nothing.
type Renamer interface {
	// Rename makes the replica of the VM from that of the VM to, with everything in it. It fails with fault.Exists when there is something of
	// that name. Interrupted, the replica has one of the two names, and can be used by it; called again, it is completed.
	Rename(ctx context.Context, from, to string) error
}

// RenamerOf returns the store that can rename inside the wrappers of s; ok is false when there is none.
func RenamerOf(s Store) (r Renamer, ok bool) { return inside[Renamer](s) }
