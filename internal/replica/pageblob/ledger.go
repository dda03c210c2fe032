package pageblob

import (
	"bytes"
	"context"
	"io"
	"strconv"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"

	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
)

// Names of metadata.
const (
	metaGeneration = "sitrep_generation" // of the writer
	metaWrite      = "sitrep_write"      // names one write: it is known again when its answer was lost
	metaRemoving   = "sitrep_removing"   // on the lock: a removal was begun
	metaSize       = "sitrep_size"       // guest bytes of a disk
	metaDisk       = "sitrep_replica"    // the replica that a page blob belongs to
	metaPoint      = "sitrep_position"   // on a snapshot: the position of the pages
	metaPlain      = "sitrep_plain_size" // of a log, bytes
	metaSum        = "sitrep_plain_xxh3" // of a log: the xxh3-128 of its plain bytes
)

// putBlock writes a block blob as a whole, in one request.
func (s *Store) putBlock(ctx context.Context, name string, data []byte, meta map[string]string, cond *blob.AccessConditions) (etag string, err error) {
	m, err := metadata(meta)
	if err != nil {
		return "", err
	}
	resp, err := s.blocks.NewBlockBlobClient(name).Upload(ctx, streaming.NopCloser(bytes.NewReader(data)), &blockblob.UploadOptions{
		Metadata: m, AccessConditions: cond,
		TransactionalValidation: checksum(data),
	})
	return etagOf(resp.ETag), err
}

// readAll reads a body that has to have the announced length.
func readAll(r io.Reader, n *int64) ([]byte, error) {
	data, err := io.ReadAll(r)
	if err == nil && n != nil && int64(len(data)) != *n {
		err = errShort
	}
	return data, err
}

// ledger is VM/ledger.json.
type ledger struct{ r *vmReplica }

// known is the ledger as this run has read or written it last.
type known struct {
	etag  string
	state replica.State
}

func (r *vmReplica) ledgerBlob() string { return r.vm + "/" + ledgerName }

// Load reads the record; see replica.Ledger.
func (l *ledger) Load(ctx context.Context) (replica.State, error) {
	if k := l.r.unread(); k != nil && ctx.Err() == nil {
		return k.state, nil
	}
	k, err := l.r.loadLedger(ctx)
	if err != nil {
		return replica.State{}, fault.In(err, l.r.vm, "")
	}
	return k.state, nil
}

// unread is the ledger as opening has read it, once.
func (r *vmReplica) unread() *known {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := r.opened
	r.opened = nil
	return k
}

func (r *vmReplica) loadLedger(ctx context.Context) (*known, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	data, props, err := r.s.getBlock(ctx, r.ledgerBlob(), replica.MaxLedger)
	if fault.Is(err, fault.NotFound) {
		return nil, r.missing(ctx)
	}
	if err != nil {
		return nil, err
	}
	s, err := replica.Decode(data, r.s.whereBlock(r.ledgerBlob()), r.vm)
	if err != nil {
		return nil, err
	}
	k := &known{etag: props.etag, state: s}
	r.know(k)
	return k, nil
}

// latest is the ledger as this run knows it; read when it was not.
func (r *vmReplica) latest(ctx context.Context) (*known, error) {
	r.mu.Lock()
	k := r.last
	r.mu.Unlock()
	if k != nil {
		return k, nil
	}
	return r.loadLedger(ctx)
}

// missing explains why there is no ledger.
func (r *vmReplica) missing(ctx context.Context) error {
	if _, err := r.s.identity(ctx); err != nil {
		return err
	}
	if _, err := r.leftovers(ctx); err != nil {
		return err
	}
	return fault.New(fault.NotProtected, "the store has no replica of this VM").At(r.s.whereBlock(r.vm))
}

// present says whether there is a ledger.
func (r *vmReplica) present(ctx context.Context) (bool, error) {
	_, err := r.s.blocks.NewBlobClient(r.ledgerBlob()).GetProperties(ctx, nil)
	if isMissing(err) {
		return false, nil
	}
	return err == nil, classify(err, r.s.whereBlock(r.ledgerBlob()))
}

// Save replaces the record; see replica.Ledger.
func (l *ledger) Save(ctx context.Context, s replica.State) (replica.State, error) {
	next, err := l.r.saveLedger(ctx, s)
	return next, fault.In(err, l.r.vm, "")
}

func (r *vmReplica) saveLedger(ctx context.Context, s replica.State) (replica.State, error) {
	if err := r.writable(ctx); err != nil {
		return s, err
	}
	k, err := r.latest(ctx)
	if err == nil && r.checkSave(k.state, s) != nil {
		k, err = r.loadLedger(ctx) // what this run knows may be old
	}
	if err == nil {
		err = r.checkSave(k.state, s)
	}
	if err != nil {
		return s, err
	}
	return r.replaceLedger(ctx, k, s)
}

// checkSave says whether s may replace what is stored: also a run that was taken over from, and now gives itself a higher
// generation, may not.
func (r *vmReplica) checkSave(stored, s replica.State) error {
	where := r.s.whereBlock(r.ledgerBlob())
	if err := replica.CheckOwner(stored, s.Replica, r.generation.Load(), where); err != nil {
		return err
	}
	return replica.CheckSave(stored, s, where)
}

// replaceLedger writes s in the place of k, with its next version.
func (r *vmReplica) replaceLedger(ctx context.Context, k *known, s replica.State) (replica.State, error) {
	where := r.s.whereBlock(r.ledgerBlob())
	next := s
	next.Format = replica.Format
	next.Version++
	if err := next.Check(); err != nil {
		return s, fault.Wrap(fault.LedgerCorrupt, err, "the new ledger contradicts itself and was not written").At(where)
	}
	data, err := replica.Encode(next)
	if err != nil {
		return s, err
	}
	if len(data) > replica.MaxLedger {
		return s, fault.New(fault.LedgerCorrupt, "the new ledger has %d bytes and was not written", len(data)).At(where)
	}
	if err := r.swapLedger(ctx, k, s, next, data); err != nil {
		return s, err
	}
	return next, nil
}

// swapLedger writes the ledger if it still is the one of k. When the service says that it is not, an earlier try may have
// written it whose answer was lost.
func (r *vmReplica) swapLedger(ctx context.Context, k *known, s, next replica.State, data []byte) error {
	where := r.s.whereBlock(r.ledgerBlob())
	write := hrl.NewID().String()
	meta := map[string]string{metaGeneration: strconv.FormatUint(next.Generation, 10), metaWrite: write}
	etag, err := r.s.putBlock(ctx, r.ledgerBlob(), data, meta, ifMatch(k.etag))
	if err != nil {
		r.forget() // it is not known what the ledger is now
	}
	if hasCode(err, bloberror.ConditionNotMet) || isMissing(err) {
		props, lerr := r.s.blocks.NewBlobClient(r.ledgerBlob()).GetProperties(ctx, nil)
		switch {
		case isMissing(lerr):
			return r.missing(ctx)
		case lerr != nil:
			return classify(lerr, where)
		case lower(props.Metadata)[metaWrite] != write:
			return r.conflict(ctx, s)
		}
		etag, err = etagOf(props.ETag), nil
	}
	if err != nil {
		return classify(err, where)
	}
	r.know(&known{etag: etag, state: next})
	r.generation.Store(next.Generation)
	return nil
}

func (r *vmReplica) know(k *known) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last, r.opened = k, nil
}

func (r *vmReplica) forget() { r.know(nil) }

// conflict says who has changed the ledger.
func (r *vmReplica) conflict(ctx context.Context, s replica.State) error {
	where := r.s.whereBlock(r.ledgerBlob())
	k, err := r.loadLedger(ctx)
	if err != nil {
		return err
	}
	if err := r.checkSave(k.state, s); err != nil {
		return err
	}
	return fault.New(fault.LedgerConflict, "the ledger was changed while it was written").At(where)
}

// fenced says who has taken the replica over, when the service does not take this run's writes.
func (r *vmReplica) fenced(ctx context.Context) error {
	where := r.s.whereBlock(r.ledgerBlob())
	k, err := r.loadLedger(context.WithoutCancel(ctx))
	if err != nil {
		return fault.Wrap(fault.Fenced, err, "the service refuses this run's writes: its generation %d is not that of the pages", r.generation.Load()).At(where)
	}
	mine := k.state
	mine.Generation = r.generation.Load()
	if err := replica.CheckSave(k.state, mine, where); err != nil {
		return err
	}
	return fault.New(fault.Fenced, "the pages have another generation than the ledger's %d", r.generation.Load()).At(where)
}

// current fails when another owner has taken over, in one small request: for what the service cannot refuse by itself.
func (r *vmReplica) current(ctx context.Context) error {
	props, err := r.s.blocks.NewBlobClient(r.ledgerBlob()).GetProperties(ctx, nil)
	if isMissing(err) {
		return r.missing(ctx)
	}
	if err != nil {
		return classify(err, r.s.whereBlock(r.ledgerBlob()))
	}
	if g, err := strconv.ParseUint(lower(props.Metadata)[metaGeneration], 10, 64); err != nil || g > r.generation.Load() {
		return r.takenOver(ctx)
	}
	return nil
}

// takenOver is current by the ledger itself, when its metadata is not that of this run's generation.
func (r *vmReplica) takenOver(ctx context.Context) error {
	k, err := r.loadLedger(ctx)
	if err != nil {
		return err
	}
	if k.state.Generation > r.generation.Load() {
		return r.fenced(ctx)
	}
	return nil
}
