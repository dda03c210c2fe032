package pageblob

import (
	"context"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

// stampChanged is the stamp, in the ledger, of a disk that something wrote to before it was taken over. It is no ETag.
const stampChanged = "changed"

// Seize takes the replica over; see replica.Store. The order is: the ledger; the sequence number of every page blob, from when
// on the service refuses the older writer's pages and sums; the logs on the shelf; the lock. Interrupted, it is done again.
//
// Raising the number changes the ETag of the pages, by which the ledger knows them. It is raised on the condition that they
// still are what the ledger says, and the new ETag is noted afterwards; pages that are not get a stamp, before, that fits none.
// So pages whose number is raised and whose stamp is another one were taken over by a Seize that was interrupted, and nobody
// has written to them since.
func (s *Store) Seize(ctx context.Context, vm string, take func(replica.State) (replica.State, error)) (replica.Replica, error) {
	r, err := s.replica(ctx, vm)
	if err == nil {
		err = r.seize(ctx, take)
	}
	if err != nil {
		return nil, in(r.abandon(ctx, err), vm, "")
	}
	return r, nil
}

func (r *vmReplica) seize(ctx context.Context, take func(replica.State) (replica.State, error)) error {
	k, err := r.loadLedger(ctx)
	if err != nil {
		return err
	}
	r.begin(k)
	next, err := take(k.state)
	if err == nil {
		err = replica.CheckTake(k.state, next, r.s.whereBlock(r.ledgerBlob()))
	}
	if err == nil && next.Generation == k.state.Generation {
		err = r.notHeld(ctx)
	}
	if err != nil {
		return err
	}
	if _, err := r.saveLedger(ctx, next); err != nil {
		return err
	}
	if k, err = r.latest(ctx); err != nil {
		return err
	}
	st := k.state
	st.Disks = append([]replica.Disk(nil), st.Disks...)
	noted := false
	for i := range st.Disks {
		was := st.Disks[i].Stamp
		if err := r.fence(ctx, &st, i); err != nil {
			return fault.In(err, r.vm, st.Disks[i].Name)
		}
		noted = noted || st.Disks[i].Stamp != was
	}
	if noted {
		if _, err := r.saveLedger(ctx, st); err != nil {
			return err
		}
	}
	if err := (&shelf{r}).adopt(ctx); err != nil {
		return err
	}
	return r.seizeLock(ctx)
}

// fence raises the sequence number of the blobs of one disk.
func (r *vmReplica) fence(ctx context.Context, st *replica.State, i int) error {
	d := &st.Disks[i]
	b := r.pageBlob(d.Name + pagesSuffix)
	at, err := b.look(ctx)
	for try := 0; err == nil && at != nil && at.seq != b.seq; try++ {
		if at.seq > b.seq {
			return b.fenced(ctx)
		}
		if d.Stamp != "" && d.Stamp != stampChanged && d.Stamp != at.etag && st.Applying == nil {
			d.Stamp = stampChanged
			saved, err := r.saveLedger(ctx, *st)
			if err != nil {
				return err
			}
			*st = saved
			d = &st.Disks[i]
		}
		if _, err = b.raise(ctx, at.etag); err == nil { // refused, it was written to meanwhile: look again
			at, err = b.look(ctx)
		}
	}
	if err != nil {
		return err
	}
	if at != nil && d.Stamp != "" && d.Stamp != stampChanged && st.Applying == nil {
		d.Stamp = at.etag
	}
	table := r.pageBlob(d.Name + sumsSuffix)
	if at, err = table.look(ctx); err == nil && at != nil {
		err = table.own(ctx, at)
	}
	return err
}
