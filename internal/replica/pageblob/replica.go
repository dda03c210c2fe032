package pageblob

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"

	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
)

// closing is how long giving back the lock may take.
const closing = 30 * time.Second

// vmReplica is one VM's blobs.
type vmReplica struct {
	s  *Store
	vm string

	write      bool
	locked     bool
	generation atomic.Uint64 // of this run
	buffers    *buffers      // of all disks; nil: opened for reading

	mu     sync.Mutex
	last   *known // nil: not known
	opened *known // as opening has read it; nil: it was asked for, or is older than last
	closed bool
}

var _ replica.Replica = (*vmReplica)(nil)

func (s *Store) replica(ctx context.Context, vm string) (*vmReplica, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := replica.CheckName(vm); err != nil {
		return nil, fault.Wrap(fault.UsageError, err, "the VM's name cannot be that of a folder")
	}
	return &vmReplica{s: s, vm: vm}, nil
}

// Create makes a new replica; see replica.Store. The first ledger is written with Format and Version set.
func (s *Store) Create(ctx context.Context, first replica.State) (replica.Replica, error) {
	r, err := s.replica(ctx, first.VM)
	if err == nil {
		_, err = s.identity(ctx)
	}
	if err == nil {
		err = r.takeLock(ctx)
	}
	if err == nil {
		err = r.create(ctx, first)
	}
	if err != nil {
		return nil, fault.In(r.abandon(ctx, err), first.VM, "")
	}
	return r, nil
}

// abandon gives the lock back after an error.
func (r *vmReplica) abandon(ctx context.Context, err error) error {
	if r == nil || !r.locked {
		return err
	}
	return errors.Join(err, r.dropLock(context.WithoutCancel(ctx)))
}

func (r *vmReplica) create(ctx context.Context, first replica.State) error {
	first.Format, first.Version = replica.Format, 1
	if err := replica.CheckNewVM(first.VM); err != nil {
		return fault.Wrap(fault.UsageError, err, "no VM can be protected by this name")
	}
	if err := first.Check(); err != nil {
		return fault.Wrap(fault.LedgerCorrupt, err, "the first ledger contradicts itself")
	}
	data, err := replica.Encode(first)
	if err != nil {
		return err
	}
	present, err := r.present(ctx)
	if err != nil {
		return err
	}
	if present {
		return fault.New(fault.AlreadyProtected, "the store has a replica of this VM").At(r.s.whereBlock(r.ledgerBlob()))
	}
	if _, err := r.leftovers(ctx); err != nil {
		return err
	}
	if err := r.clear(ctx); err != nil { // what a removal that was interrupted has left
		return err
	}
	write := hrl.NewID().String()
	meta := map[string]string{metaGeneration: strconv.FormatUint(first.Generation, 10), metaWrite: write}
	etag, err := r.s.putBlock(ctx, r.ledgerBlob(), data, meta, ifAbsent())
	if hasCode(err, bloberror.BlobAlreadyExists, bloberror.ConditionNotMet) {
		etag, err = r.made(ctx, write)
	}
	if err != nil {
		return classify(err, r.s.whereBlock(r.ledgerBlob()))
	}
	r.begin(&known{etag: etag, state: first})
	return nil
}

// made says whether the ledger that is there was made by the write of this name, whose answer was lost.
func (r *vmReplica) made(ctx context.Context, write string) (etag string, err error) {
	props, err := r.s.blocks.NewBlobClient(r.ledgerBlob()).GetProperties(ctx, nil)
	if err == nil && lower(props.Metadata)[metaWrite] != write {
		err = fault.New(fault.AlreadyProtected, "the store has a replica of this VM").At(r.s.whereBlock(r.ledgerBlob()))
	}
	return etagOf(props.ETag), err
}

// begin makes the replica one that can be written to.
func (r *vmReplica) begin(k *known) {
	r.write, r.last, r.opened = true, k, k
	r.generation.Store(k.state.Generation)
	r.buffers = newBuffers()
}

// Open opens a replica for writing; see replica.Store.
func (s *Store) Open(ctx context.Context, vm string) (replica.Replica, error) {
	r, err := s.replica(ctx, vm)
	if err != nil {
		return nil, fault.In(err, vm, "")
	}
	err = r.takeLockOf(ctx)
	var k *known
	if err == nil {
		k, err = r.loadLedger(ctx)
	}
	if err != nil {
		return nil, fault.In(r.abandon(ctx, err), vm, "")
	}
	r.begin(k)
	return r, nil
}

// takeLockOf takes the lease of the lock of a replica that is there: that of a VM which has none is not made.
func (r *vmReplica) takeLockOf(ctx context.Context) error {
	l, err := r.lease()
	if err != nil {
		return err
	}
	_, err = l.AcquireLease(ctx, -1, nil)
	if err == nil || fault.Is(classify(err, ""), fault.ReplicaHeld) {
		return r.haveLock(ctx, err)
	}
	if _, lerr := r.loadLedger(ctx); lerr != nil {
		return lerr // it tells more: no store, no replica, or what a removal has left
	}
	if isMissing(err) {
		return r.takeLock(ctx)
	}
	return r.haveLock(ctx, err)
}

// View opens a replica for reading; see replica.Store.
func (s *Store) View(ctx context.Context, vm string) (replica.Replica, error) {
	r, err := s.replica(ctx, vm)
	if err == nil {
		_, err = r.loadLedger(ctx)
	}
	if err != nil {
		return nil, fault.In(err, vm, "")
	}
	r.opened = r.last
	return r, nil
}

func (r *vmReplica) lockBlob() string { return r.vm + "/" + lockName }

// leaseID is that of the lease of this holder: always the same.
func (r *vmReplica) leaseID() (string, error) {
	holder, err := r.s.opts.HolderOf()
	if err != nil {
		return "", err
	}
	b := sha256.Sum256(fmt.Appendf(nil, "sitrep holder %s", holder))
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80 // version 8 of RFC 9562: made by a rule of one's own
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16]), nil
}

// leased is the condition of a request of who has the lease, and so has an id for it.
func (r *vmReplica) leased() *blob.AccessConditions {
	id, _ := r.leaseID()
	return &blob.AccessConditions{LeaseAccessConditions: &blob.LeaseAccessConditions{LeaseID: &id}}
}

func (r *vmReplica) lease() (*lease.BlobClient, error) {
	id, err := r.leaseID()
	if err != nil {
		return nil, err
	}
	return lease.NewBlobClient(r.s.blocks.NewBlobClient(r.lockBlob()), &lease.BlobClientOptions{LeaseID: &id})
}

// takeLock takes the lease, making the blob when it is not there.
func (r *vmReplica) takeLock(ctx context.Context) error {
	l, err := r.lease()
	if err != nil {
		return err
	}
	_, err = l.AcquireLease(ctx, -1, nil)
	if isMissing(err) {
		_, err = r.s.putBlock(ctx, r.lockBlob(), nil, nil, ifAbsent())
		if err == nil || hasCode(err, bloberror.BlobAlreadyExists, bloberror.ConditionNotMet, bloberror.LeaseIDMissing) {
			_, err = l.AcquireLease(ctx, -1, nil)
		}
	}
	return r.haveLock(ctx, err)
}

// haveLock is what follows from the answer to the request for the lease.
func (r *vmReplica) haveLock(ctx context.Context, err error) error {
	if err == nil {
		r.locked = true
		return nil
	}
	where := r.s.whereBlock(r.lockBlob())
	if e := fault.Find(classify(err, where)); e.Code == fault.ReplicaHeld {
		return fault.New(fault.ReplicaHeld, "another run has the lease of the lock%s", r.holder(ctx)).At(where)
	}
	return classify(err, where)
}

// holder says what is known of the run that has the lease, from where a lease does not tell: who owns the replica, and when something
// was written to it last. It is for people, and "" when nothing can be said.
func (r *vmReplica) holder(ctx context.Context) string {
	k, err := r.loadLedger(ctx)
	if err != nil {
		return ""
	}
	o := k.state.Owner
	said := fmt.Sprintf("; the replica is that of site %q, on host %q since %s", o.Site, o.Host, o.Since.UTC().Format(time.RFC3339))
	var last time.Time
	for _, c := range []*container.Client{r.s.pages, r.s.blocks} {
		list, err := r.s.list(ctx, c, r.vm, "", container.ListBlobsInclude{})
		if err != nil {
			return said
		}
		for _, e := range list {
			if e.modified.After(last) && !strings.HasPrefix(e.name, promotedFolder) { // machines write there
				last = e.modified
			}
		}
	}
	return said + ", and was last written to at " + last.UTC().Format(time.RFC3339)
}

// notHeld fails with fault.ReplicaHeld when the lease is that of a run that has taken the replica over with this run's generation
// before: what seizes again, after an interruption, does not seize from itself.
func (r *vmReplica) notHeld(ctx context.Context) error {
	where := r.s.whereBlock(r.lockBlob())
	props, err := r.s.blocks.NewBlobClient(r.lockBlob()).GetProperties(ctx, nil)
	if isMissing(err) {
		return nil
	}
	if err != nil {
		return classify(err, where)
	}
	if lower(props.Metadata)[metaGeneration] != strconv.FormatUint(r.generation.Load(), 10) {
		return nil
	}
	return r.takeLock(ctx)
}

// seizeLock takes the lease from whoever has it, and notes for which generation.
func (r *vmReplica) seizeLock(ctx context.Context) error {
	err := r.takeLock(ctx)
	if fault.Is(err, fault.ReplicaHeld) {
		err = r.breakLock(ctx)
	}
	if err != nil {
		return err
	}
	generation := strconv.FormatUint(r.generation.Load(), 10)
	_, err = r.s.blocks.NewBlobClient(r.lockBlob()).SetMetadata(ctx, map[string]*string{metaGeneration: &generation},
		&blob.SetMetadataOptions{AccessConditions: r.leased()})
	return classify(err, r.s.whereBlock(r.lockBlob()))
}

// breakLock takes the lease away from another.
func (r *vmReplica) breakLock(ctx context.Context) error {
	l, err := r.lease()
	if err != nil {
		return err
	}
	now := int32(0)
	_, err = l.BreakLease(ctx, &lease.BlobBreakOptions{BreakPeriod: &now})
	if err != nil && !hasCode(err, bloberror.LeaseNotPresentWithLeaseOperation) {
		return classify(err, r.s.whereBlock(r.lockBlob()))
	}
	return r.takeLock(ctx)
}

// dropLock gives the lease back. That it is another's by now is no error: then the replica was taken over.
func (r *vmReplica) dropLock(ctx context.Context) error {
	r.locked = false
	l, err := r.lease()
	if err != nil {
		return err
	}
	_, err = l.ReleaseLease(ctx, nil)
	if isMissing(err) || hasCode(err, bloberror.LeaseIDMismatchWithLeaseOperation, bloberror.LeaseNotPresentWithLeaseOperation, bloberror.ContainerNotFound) {
		return nil
	}
	return classify(err, r.s.whereBlock(r.lockBlob()))
}

// markRemoved writes on the lock that the replica is being removed.
func (r *vmReplica) markRemoved(ctx context.Context) error {
	yes := "1"
	_, err := r.s.blocks.NewBlobClient(r.lockBlob()).SetMetadata(ctx, map[string]*string{metaRemoving: &yes},
		&blob.SetMetadataOptions{AccessConditions: r.leased()})
	return classify(err, r.s.whereBlock(r.lockBlob()))
}

// Shelf returns the logs that have arrived.
func (r *vmReplica) Shelf() replica.Shelf { return &shelf{r} }

// Ledger returns the record.
func (r *vmReplica) Ledger() replica.Ledger { return &ledger{r} }

// Points returns the earlier positions.
func (r *vmReplica) Points() replica.Points { return &points{r} }

// Close releases the lock. It makes nothing durable.
func (r *vmReplica) Close() error {
	r.mu.Lock()
	closed := r.closed
	r.closed = true
	r.mu.Unlock()
	if closed || !r.locked {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), closing)
	defer cancel()
	if err := r.dropLock(r.s.once(ctx)); err != nil {
		// The next run of this site has the same lease, so it is not locked out.
		r.s.opts.Log.Warn("the lock was not given back", "vm", r.vm, "error", err)
	}
	return nil
}

// writable fails when the replica was opened for reading, or the run is to end.
func (r *vmReplica) writable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.write || r.closed {
		return fault.New(fault.WrongState, "the replica is open for reading only, or not any more").At(r.s.where(r.vm))
	}
	return nil
}
