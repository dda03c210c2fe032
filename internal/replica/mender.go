package replica

import (
	"context"
	"iter"

	"sitrep/internal/hrl"
)

// Mender is a store whose identity can be written back when it alone is gone. Without it nothing tells the store from an empty folder in
// the place of a volume that is not mounted, so nobody works with it (fault.StoreUnnamed where replicas are there all the same).
type Mender interface {
	// Ledgers yields the ledgers that lie in the store, by the names of their VMs, sorted, whether or not it has an identity. An error with a
	// name is of that replica alone.
	Ledgers(ctx context.Context) iter.Seq2[State, error]
	// Identify writes the identity id where replicas are and no identity is, or one that cannot be read. It fails with fault.Exists when
	// there is one, and with fault.StoreNotMounted where no replica is. It is durable on return.
	Identify(ctx context.Context, id hrl.ID) error
}

// MenderOf returns the store that can be given its identity back inside the wrappers of s; ok is false when there is none.
func MenderOf(s Store) (m Mender, ok bool) { return inside[Mender](s) }
