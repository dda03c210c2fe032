package pageblob

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	az "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"

	"sitrep/internal/disk/vhd"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/wait"
)

var _ replica.Promoter = (*vmReplica)(nil)

// metaPromoted is on a promoted disk from the beginning: position and disk that it is of. metaCopied is on one that is complete:
// it comes last, after the proof.
const (
	metaPromoted = "sitrep_promoted"
	metaCopied   = "sitrep_copied"
)

// promoteTries is how often a promotion looks again at a blob that was changed between a look and what was concluded from it: by a
// request of its own whose answer was lost, or by another run of the same failover.
const promoteTries = 8

// promotion is one Promote: of a snapshot, to a page blob VM/promoted/NAME.vhd.
//
// # Who may write to it
//
// A run that hangs, and wakes up when another one has completed the same promotion and a machine runs from it, must not touch it.
// So nothing here is unconditional. The blob is made if it is not there, or if it is the half-made one that was looked at; it is
// changed and deleted if its ETag is the one that was looked at, and a machine's first write changes that; what is copied by hand
// is written with the sequence number of this run's generation, as all pages are.
//
// # What a copy of the service is worth
//
// It says that it is complete, and no more. Two things are looked at before a machine may have it.
//
// That it is a copy at all: an emulator gives the copy the pages of its source, and what a machine writes to it would appear in
// the recovery point. The disk gets a footer with an identity of its own, which is right in any case, and the snapshot must not
// show it. One that does gets its footer back, and the disk is made by reading and writing.
//
// That it is what the point held: its sums prove a replica's bytes wherever they are read, and here nobody has read them: neither
// what a stranger may have written to the pages before the snapshot was taken, nor what became of them since. Both would go
// into a machine unseen. That the ledger's stamp was the ETag of the pages would speak for the first only, and only of the newest point.
// So the copy is read once, which costs what a download of its data costs and no upload. An operator whose line is too thin
// for that can leave it out: see replica.Proof.
type promotion struct {
	r         *vmReplica
	from      *source // pages of the point
	table     *source // their sums
	dst       *pageBlob
	of        string // what it is a copy of
	disk      string
	size      int64 // guest bytes
	blockSize int64
	was, own  []byte // footers: of the replica's disk, and of this one
	proof     replica.Proof
	count     func(int64)
	stamp     string // ETag of the disk when it is complete
	found     bool   // it was complete already
}

// Promote copies a disk of a recovery point to VM/promoted/NAME.vhd: by the service, or, where that cannot be done, by reading and
// writing; see replica.Promoter.
func (r *vmReplica) Promote(ctx context.Context, s replica.State, what replica.Promotion) (replica.Promoted, error) {
	p, err := r.promotion(ctx, &s, what)
	if err == nil {
		err = p.run(ctx)
	}
	if err != nil {
		return replica.Promoted{}, in(err, r.vm, what.Disk)
	}
	scheme, _, _ := strings.Cut(p.dst.pages.URL(), "://") // the rest of which may hold a signature
	return replica.Promoted{Where: scheme + "://" + p.dst.where(), Stamp: p.stamp, Found: p.found}, nil
}

func (r *vmReplica) promotion(ctx context.Context, s *replica.State, what replica.Promotion) (*promotion, error) {
	if err := r.writable(ctx); err != nil {
		return nil, err
	}
	if err := checkPromoted(what.Name); err != nil {
		return nil, err
	}
	point := s.Point(what.Point)
	if point == nil {
		return nil, fault.New(fault.PointMissing, "the ledger has no recovery point %q", what.Point)
	}
	size, ok := point.Sizes[what.Disk]
	d := s.Disk(what.Disk)
	if !ok || d == nil {
		return nil, fault.New(fault.PointMissing, "the recovery point has no such disk")
	}
	pts := &points{r}
	if s.Applying == nil && s.Applied == point.At { // the pages may move on while they are copied
		if err := pts.Preserve(ctx, *s, s.Applied.Next(), nil, false); err != nil {
			return nil, err
		}
	}
	all, have, err := pts.find(ctx)
	if err != nil {
		return nil, err
	}
	from, table, _, err := pts.sources(s, point.At, what.Disk, all, have)
	if err != nil {
		return nil, err
	}
	seen, err := pts.disk(ctx, s, point, what.Disk, size, all, have)
	if err == nil {
		err = pts.prove(ctx, s, point, seen)
	}
	if err != nil {
		return nil, err
	}
	p := &promotion{
		r: r, from: from, table: table, dst: r.pageBlob(promotedFolder + what.Name + pagesSuffix), disk: what.Disk,
		of: point.At.String() + " " + strconv.QuoteToASCII(what.Disk), size: size, blockSize: d.BlockSize, proof: what.Proof, count: what.Progress,
	}
	p.was, _ = vhd.NewFooter(paddedSize(size), diskID(s, what.Disk), s.Created).MarshalBinary() // never fails
	p.own, _ = vhd.NewFooter(paddedSize(size), promotedID(s, what.Name), s.Created).MarshalBinary()
	if p.count == nil {
		p.count = func(int64) {}
	}
	return p, nil
}

func checkPromoted(name string) error {
	if err := replica.CheckName(name); err != nil {
		return fault.Wrap(fault.UsageError, err, "the name of a promoted disk")
	}
	return nil
}

// promotedID is the UUID of a promoted disk. It is always the same for a name, so that a run that goes on knows its own footer.
func promotedID(s *replica.State, name string) vhd.UUID {
	sum := sha256.Sum256(fmt.Appendf(nil, "sitrep promoted disk %s %s", s.Replica, name))
	return uuid(sum[:])
}

// errAgain says that a blob was changed since it was looked at.
var errAgain = errors.New("the blob was changed meanwhile")

// run makes the disk from where it stands, and looks again as long as it turns out to stand elsewhere.
func (p *promotion) run(ctx context.Context) error {
	for try := 1; ; try++ {
		err := p.proceed(ctx)
		if ctx.Err() != nil {
			return p.abort(ctx)
		}
		if !errors.Is(err, errAgain) {
			return err
		}
		if try == promoteTries {
			return fault.New(fault.ReplicaChanged, "something else writes to the disk while it is made").At(p.dst.where())
		}
		if err := p.r.current(ctx); err != nil { // it is another owner's run that does
			return err
		}
	}
}

// proceed does what is left of it, or fails with errAgain.
func (p *promotion) proceed(ctx context.Context) error {
	at, err := p.look(ctx)
	switch {
	case err != nil:
		return err
	case at == nil:
		return p.begin(ctx)
	case at.meta[metaPromoted] != p.of:
		return fault.New(fault.Exists, "there is another disk of this name").At(p.dst.where())
	case at.meta[metaCopied] != "":
		p.stamp, p.found = at.etag, true
		return nil
	case at.status == "":
		return p.copy(ctx, ifMatch(at.etag)) // half read and written
	case at.status == blob.CopyStatusTypePending:
		return p.await(ctx)
	case at.status != blob.CopyStatusTypeSuccess:
		return p.failed(ctx, at)
	}
	return p.accept(ctx, at)
}

// copied is the properties of a promoted disk.
type copied struct {
	properties
	id, said string // of the copy that the service makes, and what it says of it
	status   blob.CopyStatusType
}

// look asks for the properties; missing is no error, and gives nil.
func (p *promotion) look(ctx context.Context) (*copied, error) {
	return p.r.lookPromoted(ctx, p.dst.c, p.dst.where())
}

func (r *vmReplica) lookPromoted(ctx context.Context, c *blob.Client, where string) (*copied, error) {
	resp, err := c.GetProperties(ctx, nil)
	if isMissing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, classify(err, where)
	}
	if resp.ETag == nil || resp.ContentLength == nil {
		return nil, notTheService(where)
	}
	at := &copied{properties: properties{etag: etagOf(resp.ETag), meta: lower(resp.Metadata), size: *resp.ContentLength}}
	if resp.BlobSequenceNumber != nil {
		at.seq = *resp.BlobSequenceNumber
	}
	if resp.CopyStatus != nil {
		at.status = *resp.CopyStatus
	}
	if resp.CopyID != nil {
		at.id = *resp.CopyID
	}
	if resp.CopyStatusDescription != nil {
		at.said = address.ReplaceAllString(*resp.CopyStatusDescription, "(address not shown)")
	}
	return at, nil
}

// begin has the service make the copy. It may be done when this returns, or go on for hours.
func (p *promotion) begin(ctx context.Context) error {
	meta, err := metadata(map[string]string{metaPromoted: p.of})
	if err != nil {
		return err
	}
	_, err = p.dst.c.StartCopyFromURL(ctx, p.from.c.URL(), &blob.StartCopyFromURLOptions{Metadata: meta, AccessConditions: ifAbsent()})
	switch {
	case err == nil:
		return p.await(ctx)
	case hasCode(err, bloberror.BlobAlreadyExists, bloberror.PendingCopyOperation, bloberror.ConditionNotMet):
		return errAgain // perhaps by the request itself, whose answer was lost
	case hasCode(err, codeNotImplemented, codeUnverifiableSource):
		return p.copy(ctx, ifAbsent())
	}
	return p.dst.fail(err)
}

// await looks at the copy until it is done.
func (p *promotion) await(ctx context.Context) error {
	for {
		at, err := p.look(ctx)
		switch {
		case err != nil:
			return err
		case at == nil:
			return errAgain
		case at.status == "":
			return fault.New(fault.StoreUnfit, "the service does not say whether the copy is done").At(p.dst.where())
		case at.status != blob.CopyStatusTypePending:
			return p.proceed(ctx)
		}
		if err := wait.For(ctx, p.r.s.opts.CopyPoll); err != nil {
			return err
		}
	}
}

// failed removes what a copy that failed has left, so that the next one begins anew.
func (p *promotion) failed(ctx context.Context, at *copied) error {
	if err := p.remove(ctx, at.etag); err != nil {
		return err
	}
	return fault.New(fault.StoreUnreachable, "the service could not copy the disk (%s): %s", at.status, at.said).At(p.dst.where())
}

// remove deletes the blob that was looked at. One that is another by now is errAgain.
func (p *promotion) remove(ctx context.Context, etag string) error {
	return deletePromoted(ctx, p.dst, etag)
}

func deletePromoted(ctx context.Context, b *pageBlob, etag string) error {
	include := blob.DeleteSnapshotsOptionTypeInclude
	_, err := b.c.Delete(ctx, &blob.DeleteOptions{DeleteSnapshots: &include, AccessConditions: ifMatch(etag)})
	switch {
	case err == nil, isMissing(err):
		return nil
	case hasCode(err, bloberror.ConditionNotMet):
		return errAgain
	}
	return b.fail(err)
}

// abort gives a copy up, and what there is of it, unless another owner goes on with it.
func (p *promotion) abort(ctx context.Context) error {
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), closing)
	defer cancel()
	if err := p.giveUp(last); err != nil && !errors.Is(err, errAgain) {
		return p.dst.fail(fmt.Errorf("%w; %w", ctx.Err(), err))
	}
	return p.dst.fail(ctx.Err())
}

func (p *promotion) giveUp(ctx context.Context) error {
	at, err := p.look(ctx)
	if err == nil {
		err = p.r.current(ctx)
	}
	if err != nil || at == nil || at.meta[metaPromoted] != p.of || at.meta[metaCopied] != "" {
		return err
	}
	if at.status == blob.CopyStatusTypePending {
		_, _ = p.dst.c.AbortCopyFromURL(ctx, at.id, nil) // refused when it has just ended
		if at, err = p.look(ctx); err != nil || at == nil || at.meta[metaCopied] != "" {
			return err
		}
	}
	return p.remove(ctx, at.etag)
}

// accept looks at what the service has made, and says on it that it is complete.
func (p *promotion) accept(ctx context.Context, at *copied) error {
	apart := at.size == blobSize(p.size)
	if apart {
		var err error
		if apart, err = p.identify(ctx, at); err != nil {
			return err
		}
	}
	if !apart {
		return p.copy(ctx, ifMatch(at.etag))
	}
	at, err := p.look(ctx) // after the footer
	if err == nil && at == nil {
		err = errAgain
	}
	if err == nil && p.proof != replica.ProofNone {
		err = p.prove(ctx, at)
	}
	if err != nil {
		return err
	}
	return p.mark(ctx, at)
}

// identify gives the copy its own footer, and says whether it is apart from the snapshot: the copy alone shows it. If it is not,
// the snapshot has its footer again.
func (p *promotion) identify(ctx context.Context, at *copied) (apart bool, err error) {
	etag, err := p.putFooter(ctx, p.own, at.etag)
	if err != nil {
		return false, err
	}
	have := make([]byte, vhd.FooterSize)
	if err := p.from.read(ctx, have, paddedSize(p.size)); err != nil {
		return false, err
	}
	if !bytes.Equal(have, p.own) {
		return true, nil
	}
	if at.etag, err = p.putFooter(ctx, p.was, etag); err == nil {
		p.r.s.opts.Log.Warn("the service's copies share their pages with what they are made of: the disk is read and written instead",
			"vm", p.r.vm, "disk", p.disk)
	}
	return false, err
}

// putFooter writes the end of a blob that is as it was looked at, and returns its ETag. A write whose answer was lost is
// errAgain: it is found by looking.
func (p *promotion) putFooter(ctx context.Context, footer []byte, etag string) (string, error) {
	resp, err := p.dst.pages.UploadPages(ctx, streaming.NopCloser(bytes.NewReader(footer)),
		blob.HTTPRange{Offset: paddedSize(p.size), Count: vhd.FooterSize},
		&az.UploadPagesOptions{TransactionalValidation: checksum(footer), AccessConditions: ifMatch(etag)})
	switch {
	case hasCode(err, bloberror.ConditionNotMet), isMissing(err):
		return "", errAgain
	case err != nil:
		return "", p.dst.fail(err)
	case resp.ETag == nil:
		return "", notTheService(p.dst.where())
	}
	return etagOf(resp.ETag), nil
}

// mark says on the blob that it is complete.
func (p *promotion) mark(ctx context.Context, at *copied) error {
	meta, err := metadata(map[string]string{metaPromoted: p.of, metaCopied: "1"})
	if err != nil {
		return err
	}
	resp, err := p.dst.c.SetMetadata(ctx, meta, &blob.SetMetadataOptions{AccessConditions: ifMatch(at.etag)})
	if hasCode(err, bloberror.ConditionNotMet) || isMissing(err) {
		return errAgain
	}
	p.stamp = etagOf(resp.ETag)
	return p.dst.fail(err)
}
