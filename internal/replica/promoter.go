package replica

import "context"

// Promoter is a replica whose recovery points can be copied, inside the store, to disks that machines run from. Where a store
// cannot do that, they are read through Points.Open.
type Promoter interface {
	// Promote copies a disk of the recovery point with the ID point of s to a disk of its own, called name in the store, and
	// returns where that is. It waits until the copy is complete, and gives it up when ctx ends. A name that is there already,
	// complete and of the same disk and point, is left as it is: a machine may have written to it; one that is half made is made
	// anew; one of something else is fault.Exists.
	Promote(ctx context.Context, s State, point, disk, name string) (where string, err error)
	// RemovePromoted deletes what Promote has made under this name; that there is nothing is no error.
	RemovePromoted(ctx context.Context, name string) error
}

// PromoterOf returns r as a Promoter, if its store is one, whatever it is wrapped in. Nothing is tried again around it: a store
// that can do this tries by itself, and what was interrupted goes on when it is called again.
func PromoterOf(r Replica) (Promoter, bool) {
	if w, ok := r.(*retryReplica); ok {
		r = w.in
	}
	p, ok := r.(Promoter)
	return p, ok
}
