package pageblob

import (
	"context"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

// Seize takes the replica over; see replica.Store. The order is: the ledger; the sequence number of every page blob, from when
// on the service refuses the older writer's pages and sums; the logs on the shelf; the lock. Interrupted, it is done again.
//
// Raising the number changes the ETag of a blob, by which the ledger knows it. It is raised on the condition that the blob
// still is what the ledger says, and the new ETag is noted afterwards; a disk of which one is not gets a stamp, before, that fits
// none. So a blob whose number is raised and whose stamp is another one was taken over by a Seize that was interrupted, and nobody
// has written to it since.
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
	st.OwnDisks()
	noted := false
	for i, d := range st.EveryDisk() {
		name, was := d.Name, d.Stamp
		if err := r.fence(ctx, &st, i); err != nil {
			return fault.In(err, r.vm, name)
		}
		noted = noted || st.EveryDisk()[i].Stamp != was
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

// fence raises the sequence number of the blobs of a disk, that of this number in EveryDisk, and notes in st what they are known by from then on.
func (r *vmReplica) fence(ctx context.Context, st *replica.State, i int) error {
	pages, err := r.fenceBlob(ctx, st, i, pagesSuffix, func(s stamp) string { return s.pages })
	if err != nil {
		return err
	}
	table, err := r.fenceBlob(ctx, st, i, sumsSuffix, func(s stamp) string { return s.sums })
	if err != nil {
		return err
	}
	if known := parseStamp(st.EveryDisk()[i].Stamp); known.tells() && settled(st, i) && pages != "" {
		if known.sums == "" { // an older version's stamp: nothing is known of the sums
			table = ""
		}
		st.EveryDisk()[i].Stamp = stamp{pages, table}.String()
	}
	return nil
}

// fenceBlob raises the sequence number of one blob and returns its ETag, "" when there is no such blob. One that is not raised yet
// and not what the ledger knows makes the ledger say first that the disk was changed.
func (r *vmReplica) fenceBlob(ctx context.Context, st *replica.State, i int, suffix string, tag func(stamp) string) (etag string, err error) {
	b := r.pageBlob(st.EveryDisk()[i].Name + suffix)
	at, err := b.look(ctx)
	for err == nil && at != nil && at.seq != b.seq {
		if at.seq > b.seq {
			return "", b.fenced(ctx)
		}
		known := parseStamp(st.EveryDisk()[i].Stamp)
		if want := tag(known); known.tells() && want != "" && want != at.etag && settled(st, i) {
			st.EveryDisk()[i].Stamp = stampChanged
			if *st, err = r.saveLedger(ctx, *st); err != nil {
				return "", err
			}
		}
		if _, err = b.raise(ctx, at.etag); err == nil { // refused, it was written to meanwhile: look again
			at, err = b.look(ctx)
		}
	}
	if err != nil || at == nil {
		return "", err
	}
	return at.etag, nil
}

// settled says that the stamp of a disk tells something: not while logs are being applied to it.
func settled(st *replica.State, i int) bool { return st.Applying == nil || i >= len(st.Disks) }
