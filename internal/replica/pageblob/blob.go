package pageblob

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	az "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"
	"github.com/minio/crc64nvme"

	"sitrep/internal/block"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
)

// The limits of the service for page blobs, which an emulator may not keep: what goes beyond them is refused here.
const (
	sector    = 512     // unit of pages, bytes
	maxPut    = 4 << 20 // bytes of one Put Page
	maxBlob   = 8 << 40 // bytes of a page blob
	maxMeta   = 8 << 10 // bytes of a blob's metadata, names included
	bodyTries = 5       // of a download whose body breaks off
	// foundTries is how often a blob is made that something else changes between a look and the next try.
	foundTries = 5
	crcTries   = 3 // of a write whose bytes arrived damaged: the SDK does not try these again
)

// checksum is the CRC64 that the storage service checks a body with. It is that of NVMe, for which there is a way of computing it
// many times as fast as hash/crc64, which took as much time as everything else that is done to a byte on its way.
func checksum(p []byte) blob.TransferValidationTypeCRC64 {
	return blob.TransferValidationTypeCRC64(crc64nvme.Checksum(p))
}

// once makes the requests of a context be sent one time only: for what may not be done twice, or is found out by looking. What
// is not said here is not inherited from the client, so the time that one may take is said again.
func (s *Store) once(ctx context.Context) context.Context {
	return policy.WithRetryOptions(ctx, policy.RetryOptions{MaxRetries: -1, TryTimeout: s.opts.Retry.TryTimeout})
}

// source is what can be read of pages: of a page blob or of a snapshot of one. Nothing can be written through it: a client of
// a snapshot would write to the blob that the snapshot is of.
type source struct {
	s     *Store
	name  string // of the blob in the container
	c     *blob.Client
	pages *az.Client
	pin   string // ETag that the content must still have; "" when nothing can change it, or it is ours to change
	pace  *pacer
}

func (b *source) where() string { return b.s.where(b.name) }

func (b *source) fail(err error) error { return classify(err, b.where()) }

func (b *source) conditions() *blob.AccessConditions {
	if b.pin == "" {
		return nil
	}
	return ifMatch(b.pin)
}

// enter waits for the turn of a request of n bytes; the caller leaves the gate.
func (b *source) enter(ctx context.Context, n int64) error {
	if err := b.pace.wait(ctx, n); err != nil {
		return b.fail(err)
	}
	return b.fail(b.s.gate.enter(ctx))
}

// read fills p, in requests of up to 4 MiB.
func (b *source) read(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		n := min(len(p), maxPut)
		if err := b.readSome(ctx, int64(n), off, func(r io.Reader) error {
			_, err := io.ReadFull(r, p[:n])
			return err
		}); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// readSome calls f with the n bytes at off. A body that breaks off is asked for again from there.
func (b *source) readSome(ctx context.Context, n, off int64, f func(io.Reader) error) error {
	if err := b.enter(ctx, n); err != nil {
		return err
	}
	defer b.s.gate.leave()
	resp, err := b.c.DownloadStream(ctx, &blob.DownloadStreamOptions{
		Range: blob.HTTPRange{Offset: off, Count: n}, AccessConditions: b.conditions(),
	})
	if hasCode(err, bloberror.ConditionNotMet) {
		return fault.New(fault.ReplicaChanged, "the pages were written to while they were read").AtOff(b.where(), off)
	}
	if isOutside(err) {
		return b.shorter(off)
	}
	if err != nil {
		return b.fail(err)
	}
	body := resp.NewRetryReader(ctx, &blob.RetryReaderOptions{MaxRetries: bodyTries})
	if err := errors.Join(f(body), body.Close()); err != nil {
		if errors.Is(err, io.EOF) { // the service has less than was asked for
			return b.shorter(off)
		}
		return b.fail(err)
	}
	return nil
}

// shorter is the error of a range that was in the blob when it was opened: something else has cut it.
func (b *source) shorter(off int64) error {
	return fault.New(fault.ReplicaChanged, "the blob has become shorter").AtOff(b.where(), off)
}

// ranges calls f with the runs of r that the service has pages for.
func (b *source) ranges(ctx context.Context, r block.Range, f func(block.Range)) error {
	pager := b.pages.NewGetPageRangesPager(&az.GetPageRangesOptions{
		Range: blob.HTTPRange{Offset: r.Off, Count: r.Len}, AccessConditions: b.conditions(),
	})
	for pager.More() {
		if err := b.enter(ctx, 0); err != nil {
			return err
		}
		page, err := pager.NextPage(ctx)
		b.s.gate.leave()
		if hasCode(err, bloberror.ConditionNotMet) {
			return fault.New(fault.ReplicaChanged, "the pages were written to while they were read").At(b.where())
		}
		if err != nil {
			return b.fail(err)
		}
		for _, run := range page.PageRange {
			if run.Start != nil && run.End != nil && *run.End >= *run.Start {
				f(block.Range{Off: *run.Start, Len: *run.End - *run.Start + 1}.Intersect(r))
			}
		}
	}
	return nil
}

// pageBlob is a page blob that can be written to.
type pageBlob struct {
	source
	seq int64 // that the blob must have: the generation of the writer

	fenced func(context.Context) error // explains a sequence number that is another one
}

// properties of a page blob.
type properties struct {
	etag string
	seq  int64
	size int64 // bytes, the footer included
	meta map[string]string
}

// look asks for the properties; missing is no error, and gives nil.
func (b *pageBlob) look(ctx context.Context) (*properties, error) {
	resp, err := b.c.GetProperties(ctx, nil)
	if isMissing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, b.fail(err)
	}
	if resp.ETag == nil {
		return nil, notTheService(b.where())
	}
	p := &properties{etag: etagOf(resp.ETag), meta: lower(resp.Metadata)}
	if resp.BlobType == nil || *resp.BlobType != blob.BlobTypePageBlob {
		return nil, fault.New(fault.ReplicaChanged, "this is not a page blob").At(b.where())
	}
	if resp.BlobSequenceNumber != nil {
		p.seq = *resp.BlobSequenceNumber
	}
	if resp.ContentLength != nil {
		p.size = *resp.ContentLength
	}
	return p, nil
}

// found makes the blob, empty. One that is there is replaced, if it still is the one that was looked at then, and belongs to no
// later generation and to no other replica: Put Blob knows no condition on the sequence number, so that a run that stood still
// while it was taken over would wipe what the new owner has written. Everything that a new owner does to a blob, raising its
// number first, gives it another ETag. A create whose answer was lost is known again by its name.
func (b *pageBlob) found(ctx context.Context, size int64, meta map[string]string) error {
	named := maps.Clone(meta)
	named[metaWrite] = hrl.NewID().String()
	cond := ifAbsent()
	for range foundTries {
		err := b.createIf(ctx, size, named, cond)
		if !hasCode(err, bloberror.BlobAlreadyExists, bloberror.ConditionNotMet) {
			return b.fail(err)
		}
		at, err := b.look(ctx)
		switch {
		case err != nil:
			return err
		case at == nil: // it was removed meanwhile
			cond = ifAbsent()
			continue
		case at.meta[metaWrite] == named[metaWrite]:
			return nil
		case at.seq > b.seq:
			return b.fenced(ctx)
		case at.meta[metaDisk] != "" && at.meta[metaDisk] != meta[metaDisk]:
			return fault.New(fault.Fenced, "the blob is of another replica, %s", at.meta[metaDisk]).At(b.where())
		}
		cond = ifMatch(at.etag)
	}
	return fault.New(fault.ReplicaChanged, "something else writes to the blob").At(b.where())
}

// create makes the blob anew, empty, whatever was there: for what belongs to one run.
func (b *pageBlob) create(ctx context.Context, size int64, meta map[string]string) error {
	return b.fail(b.createIf(ctx, size, meta, nil))
}

func (b *pageBlob) createIf(ctx context.Context, size int64, meta map[string]string, cond *blob.AccessConditions) error {
	if err := checkSize(size, b.where()); err != nil {
		return err
	}
	m, err := metadata(meta)
	if err != nil {
		return fault.In(err, "", "")
	}
	_, err = b.pages.Create(ctx, size, &az.CreateOptions{SequenceNumber: &b.seq, Metadata: m, AccessConditions: cond})
	return err
}

func checkSize(size int64, where string) error {
	if size < 0 || size%sector != 0 {
		return fault.New(fault.IO, "a page blob cannot have %d bytes", size).At(where)
	}
	if size > maxBlob {
		return fault.New(fault.StoreLimit, "%d bytes are more than a page blob can have (8 TiB)", size).At(where)
	}
	return nil
}

// checkRange refuses what the service refuses, and what would be wrong on one that does not.
func (b *pageBlob) checkRange(r block.Range, most int64) error {
	if r.Off < 0 || r.Len <= 0 || r.Off%sector != 0 || r.Len%sector != 0 || r.Len > most || r.End() > maxBlob {
		return fault.New(fault.IO, "%v cannot be written to a page blob in one request", r).At(b.where())
	}
	return nil
}

// put writes p, of at most 4 MiB.
func (b *pageBlob) put(ctx context.Context, p []byte, off int64) error {
	if err := b.checkRange(block.Range{Off: off, Len: int64(len(p))}, maxPut); err != nil {
		return err
	}
	sum := checksum(p)
	for try := 1; ; try++ {
		err := b.gated(ctx, int64(len(p)), func() error {
			_, err := b.pages.UploadPages(withPayload(ctx, p), streaming.NopCloser(bytes.NewReader(p)),
				blob.HTTPRange{Offset: off, Count: int64(len(p))},
				&az.UploadPagesOptions{TransactionalValidation: sum, SequenceNumberAccessConditions: b.ifSequence()})
			return err
		})
		if err == nil || try == crcTries || !fault.Is(err, fault.StoreCorrupted) {
			return err
		}
	}
}

// clear makes a range of any length read as zero.
func (b *pageBlob) clear(ctx context.Context, r block.Range) error {
	if err := b.checkRange(r, maxBlob); err != nil {
		return err
	}
	return b.gated(ctx, 0, func() error {
		_, err := b.pages.ClearPages(ctx, blob.HTTPRange{Offset: r.Off, Count: r.Len},
			&az.ClearPagesOptions{SequenceNumberAccessConditions: b.ifSequence()})
		return err
	})
}

func (b *pageBlob) ifSequence() *az.SequenceNumberAccessConditions {
	return &az.SequenceNumberAccessConditions{IfSequenceNumberEqualTo: &b.seq}
}

// gated makes a request when its turn has come.
func (b *pageBlob) gated(ctx context.Context, n int64, f func() error) error {
	if err := b.enter(ctx, n); err != nil {
		return err
	}
	defer b.s.gate.leave()
	return b.refused(ctx, f())
}

// refused says why the service does not take a write.
func (b *pageBlob) refused(ctx context.Context, err error) error {
	switch {
	case hasCode(err, bloberror.SequenceNumberConditionNotMet):
		return b.fenced(ctx)
	case isMissing(err):
		return fault.New(fault.ReplicaMissing, "the blob is missing").At(b.where())
	case isOutside(err):
		return fault.New(fault.ReplicaChanged, "the blob has become shorter").At(b.where())
	}
	return b.fail(err)
}

// resize sets the size, if the blob is still the one that was looked at.
func (b *pageBlob) resize(ctx context.Context, size int64, etag string) error {
	if err := checkSize(size, b.where()); err != nil {
		return err
	}
	_, err := b.pages.Resize(ctx, size, &az.ResizeOptions{AccessConditions: ifMatch(etag)})
	return b.changed(ctx, err, func(p *properties) bool { return p.size == size })
}

// describe sets the metadata, if the blob is still the one that was looked at.
func (b *pageBlob) describe(ctx context.Context, meta map[string]string, etag string) error {
	m, err := metadata(meta)
	if err != nil {
		return err
	}
	_, err = b.c.SetMetadata(ctx, m, &blob.SetMetadataOptions{AccessConditions: ifMatch(etag)})
	return b.changed(ctx, err, func(p *properties) bool {
		for k, v := range meta {
			if p.meta[k] != v {
				return false
			}
		}
		return true
	})
}

// changed looks whether a conditional change that was refused had been made before, by a request whose answer was lost.
func (b *pageBlob) changed(ctx context.Context, err error, done func(*properties) bool) error {
	if !hasCode(err, bloberror.ConditionNotMet) {
		return b.refused(ctx, err)
	}
	p, lerr := b.look(ctx)
	switch {
	case lerr != nil:
		return lerr
	case p == nil:
		return fault.New(fault.ReplicaMissing, "the blob is missing").At(b.where())
	case p.seq != b.seq:
		return b.fenced(ctx)
	case done(p):
		return nil
	}
	return fault.New(fault.ReplicaChanged, "the blob was written to by something else").At(b.where())
}

// raise sets the sequence number, by update and never by increment, if the blob is still the one that was looked at. changed
// says that it was not.
func (b *pageBlob) raise(ctx context.Context, etag string) (changed bool, err error) {
	update := az.SequenceNumberActionTypeUpdate
	_, err = b.pages.UpdateSequenceNumber(ctx, &az.UpdateSequenceNumberOptions{
		ActionType: &update, SequenceNumber: &b.seq, AccessConditions: ifMatch(etag),
	})
	if hasCode(err, bloberror.ConditionNotMet) {
		return true, nil
	}
	return false, b.refused(ctx, err)
}

func ifMatch(etag string) *blob.AccessConditions {
	e := azcore.ETag(`"` + etag + `"`)
	return &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfMatch: &e}}
}

func ifAbsent() *blob.AccessConditions {
	e := azcore.ETagAny
	return &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfNoneMatch: &e}}
}

// etagOf is an ETag without its quotes: answers have them and lists do not.
func etagOf(e *azcore.ETag) string {
	if e == nil {
		return ""
	}
	return strings.Trim(string(*e), `"`)
}

// metadata checks what the service would refuse, or sign in another way: names, characters, and the length of all.
func metadata(in map[string]string) (map[string]*string, error) {
	out, n := map[string]*string{}, 0
	for k, v := range in {
		n += len(k) + len(v)
		if !isName(k) || !isASCII(v) {
			return nil, fault.New(fault.IO, "%q cannot be metadata of a blob", k)
		}
		out[k] = &v
	}
	if n > maxMeta {
		return nil, fault.New(fault.StoreLimit, "%d bytes are too many for the metadata of a blob", n)
	}
	return out, nil
}

func isName(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_") == "" && (s[0] < '0' || s[0] > '9')
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return strings.TrimSpace(s) == s
}

// lower is metadata as it was given: the names come back in the case that the way there left them in.
func lower(in map[string]*string) map[string]string {
	out := map[string]string{}
	for k, v := range in {
		if v != nil {
			out[strings.ToLower(k)] = *v
		}
	}
	return out
}
