package pageblob

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	az "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"

	"sitrep/internal/block"
	"sitrep/internal/disk/vhd"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

var _ replica.Promoter = (*vmReplica)(nil)

// metaCopied is on a promoted disk that was copied by us and is complete. The service's own copies say so themselves.
const (
	metaCopied   = "sitrep_copied"
	metaPromoted = "sitrep_promoted" // position and disk that a promoted disk is of
)

// promotion is one Promote.
type promotion struct {
	r      *vmReplica
	from   *source
	to     *az.Client
	name   string // of the new blob
	where  string
	of     string // what it is a copy of
	size   int64  // bytes of the blob
	ranges *rangeMap
}

// Promote copies a disk of a recovery point to VM/promoted/NAME.vhd: by the service, or, where that cannot be done, by reading and
// writing; see replica.Promoter.
func (r *vmReplica) Promote(ctx context.Context, s replica.State, point, disk, name string) (string, error) {
	p, err := r.promotion(ctx, &s, point, disk, name)
	if err == nil {
		err = p.run(ctx)
	}
	if err != nil {
		return "", in(err, r.vm, disk)
	}
	scheme, _, _ := strings.Cut(p.to.URL(), "://") // the rest of which may hold a signature
	return scheme + "://" + p.where, nil
}

func (r *vmReplica) promotedBlob(name string) string {
	return r.vm + "/" + promotedFolder + name + pagesSuffix
}

func (r *vmReplica) promotion(ctx context.Context, s *replica.State, id, disk, name string) (*promotion, error) {
	if err := r.writable(ctx); err != nil {
		return nil, err
	}
	if err := replica.CheckName(name); err != nil {
		return nil, fault.Wrap(fault.UsageError, err, "the name of a promoted disk")
	}
	point := s.Point(id)
	if point == nil {
		return nil, fault.New(fault.PointMissing, "the ledger has no recovery point %q", id)
	}
	size, ok := point.Sizes[disk]
	if !ok {
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
	from, _, err := pts.sources(s, point.At, disk, all, have)
	if err != nil {
		return nil, err
	}
	return &promotion{
		r: r, from: from, to: r.s.pages.NewPageBlobClient(r.promotedBlob(name)), name: r.promotedBlob(name), where: r.s.where(r.promotedBlob(name)),
		of: point.At.String() + " " + strconv.QuoteToASCII(disk), size: blobSize(size), ranges: &rangeMap{from: from},
	}, nil
}

func (p *promotion) fail(err error) error { return classify(err, p.where) }

func (p *promotion) run(ctx context.Context) error {
	at, err := p.to.GetProperties(ctx, nil)
	switch {
	case isMissing(err):
		return p.begin(ctx)
	case err != nil:
		return p.fail(err)
	case lower(at.Metadata)[metaPromoted] != p.of:
		return fault.New(fault.Exists, "there is another disk of this name").At(p.where)
	case lower(at.Metadata)[metaCopied] != "":
		return nil
	case at.CopyStatus == nil:
		return p.copy(ctx) // half read and written
	}
	return p.await(ctx, at.CopyID)
}

// begin has the service make the copy. It may be done when this returns, or go on for hours.
func (p *promotion) begin(ctx context.Context) error {
	meta, err := metadata(map[string]string{metaPromoted: p.of})
	if err != nil {
		return err
	}
	resp, err := p.to.StartCopyFromURL(ctx, p.from.c.URL(), &blob.StartCopyFromURLOptions{Metadata: meta, AccessConditions: ifAbsent()})
	switch {
	case err == nil, hasCode(err, bloberror.BlobAlreadyExists, bloberror.PendingCopyOperation, bloberror.ConditionNotMet):
		return p.await(ctx, resp.CopyID)
	case hasCode(err, codeNotImplemented, codeUnverifiableSource):
		return p.copy(ctx)
	case ctx.Err() != nil:
		return p.abort(ctx, nil) // it may have begun
	}
	return p.fail(err)
}

// await looks at the copy until it is done. When the run ends it is aborted.
func (p *promotion) await(ctx context.Context, id *string) error {
	for {
		at, err := p.to.GetProperties(ctx, nil)
		if err == nil {
			id = at.CopyID
		}
		switch {
		case ctx.Err() != nil:
			return p.abort(ctx, id)
		case err != nil:
			return p.fail(err)
		case at.CopyStatus == nil:
			return fault.New(fault.StoreUnfit, "the service does not say whether the copy is done").At(p.where)
		case *at.CopyStatus == blob.CopyStatusTypeSuccess:
			return nil
		case *at.CopyStatus != blob.CopyStatusTypePending:
			return p.failed(ctx, at)
		}
		if err := p.sleep(ctx); err != nil {
			return p.abort(ctx, id)
		}
	}
}

func (p *promotion) sleep(ctx context.Context) error {
	t := time.NewTimer(p.r.s.opts.CopyPoll)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// failed removes what a copy that failed has left, so that the next one begins anew.
func (p *promotion) failed(ctx context.Context, at blob.GetPropertiesResponse) error {
	text := ""
	if at.CopyStatusDescription != nil {
		text = address.ReplaceAllString(*at.CopyStatusDescription, "(address not shown)")
	}
	_, err := p.to.Delete(ctx, nil)
	if err != nil && !isMissing(err) {
		return p.fail(err)
	}
	return fault.New(fault.StoreUnreachable, "the service could not copy the disk (%s): %s", *at.CopyStatus, text).At(p.where)
}

// abort gives a copy up, and what there is of it.
func (p *promotion) abort(ctx context.Context, id *string) error {
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), closing)
	defer cancel()
	if id != nil {
		_, _ = p.to.AbortCopyFromURL(last, *id, nil) // refused when it has just ended
	}
	_, err := p.to.Delete(last, nil)
	if err != nil && !isMissing(err) {
		return p.fail(fmt.Errorf("%w; %w", ctx.Err(), err))
	}
	return p.fail(ctx.Err())
}

// copy reads the snapshot and writes it to the new blob: what has pages only. The mark that it is complete comes last.
func (p *promotion) copy(ctx context.Context) error {
	dst := &pageBlob{source: source{s: p.r.s, name: p.name, c: p.to.BlobClient(), pages: p.to, pace: p.r.s.pacer()}, fenced: p.r.fenced}
	if err := dst.create(ctx, p.size, map[string]string{metaPromoted: p.of}); err != nil {
		return err
	}
	buf := make([]byte, maxPut)
	for off := int64(0); off < p.size; {
		e, err := p.ranges.extent(ctx, block.Range{Off: off, Len: min(p.size-off, maxPut)})
		if err != nil {
			return err
		}
		if e.Kind == block.Data {
			if err := p.from.read(ctx, buf[:e.Len], e.Off); err != nil {
				return err
			}
			if err := dst.put(ctx, buf[:e.Len], e.Off); err != nil {
				return err
			}
		}
		off = e.End()
	}
	at, err := dst.look(ctx)
	if err != nil {
		return err
	}
	if at == nil || at.size != p.size || p.size < vhd.FooterSize {
		return fault.New(fault.ReplicaChanged, "the copy was changed while it was made").At(p.where)
	}
	return dst.describe(ctx, map[string]string{metaPromoted: p.of, metaCopied: "1"}, at.etag)
}

// RemovePromoted deletes a promoted disk, aborting its copy; see replica.Promoter.
func (r *vmReplica) RemovePromoted(ctx context.Context, name string) error {
	err := r.writable(ctx)
	if cerr := replica.CheckName(name); err == nil && cerr != nil {
		err = fault.Wrap(fault.UsageError, cerr, "the name of a promoted disk")
	}
	if err == nil {
		err = r.removePromoted(ctx, r.promotedBlob(name))
	}
	return in(err, r.vm, "")
}

func (r *vmReplica) removePromoted(ctx context.Context, name string) error {
	c := r.s.pages.NewBlobClient(name)
	at, err := c.GetProperties(ctx, nil)
	if isMissing(err) {
		return nil
	}
	if err != nil {
		return classify(err, r.s.where(name))
	}
	if at.CopyStatus != nil && *at.CopyStatus == blob.CopyStatusTypePending && at.CopyID != nil {
		_, err := c.AbortCopyFromURL(ctx, *at.CopyID, nil)
		if err != nil && !hasCode(err, bloberror.NoPendingCopyOperation) {
			return classify(err, r.s.where(name))
		}
	}
	return r.s.deleteBlob(ctx, r.s.pages, name, nil)
}
