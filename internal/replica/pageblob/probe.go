package pageblob

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	az "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

// probePrefix begins the names of what probes make. There is no ledger among it, so no List shows it.
const probePrefix = "sitrep-probe-"

const (
	probeSize  = 8 << 20  // bytes of a page blob that is probed
	probePart  = 64 << 10 // bytes of one write
	probeAt    = 1 << 20  // where it is written to
	probeSpeed = 4        // transfers of 4 MiB that are measured
	// probeCopy is how long a copy of some MiB may take.
	probeCopy = 2 * time.Minute
	// probeClosing is how long it may take to remove everything.
	probeClosing = time.Minute
)

var _ replica.Prober = (*Store)(nil)

// Probe tries the container; see replica.Prober. A container that is not there is made, and stays: the service would not let
// its name be used again for some time. That the store cannot be reached, or refuses the credentials, is an error. Only what the
// service itself answers counts, so requests carry what a Store adds to them, and none of its safeguards.
func (s *Store) Probe(ctx context.Context) (checks []replica.Check, err error) {
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	p := &probe{s: s, ctx: ctx, t: replica.NewTrial(ctx), folder: probePrefix + hex.EncodeToString(b[:]) + "/"}
	if err := s.makeContainers(ctx); err != nil {
		return nil, err
	}
	if _, err := p.put("first", []byte("first"), nil); err != nil {
		return nil, classify(err, s.whereBlock(p.folder+"first"))
	}
	p.tryBlobs()
	p.tryPages()
	p.trySnapshots()
	p.tryLimits()
	p.tryTransfers()
	checks, err = p.t.End()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeClosing)
	defer cancel()
	t := replica.NewTrial(last)
	t.Try("what was made can be removed", replica.Needed, func() (string, error) { return "", p.end(last) })
	more, _ := t.End() // that its context ends is what the check says
	return append(checks, more...), err
}

// probe is one trial of a container.
type probe struct {
	s      *Store
	ctx    context.Context
	t      *replica.Trial
	folder string // in which everything happens, with the slash
	ahead  time.Duration
}

// end deletes what was made, and what the leases of the probe are on.
func (p *probe) end(ctx context.Context) error {
	var err error
	for _, c := range []*container.Client{p.s.pages, p.s.blocks} {
		pager := c.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: &p.folder})
		for pager.More() {
			page, perr := pager.NextPage(ctx)
			if perr != nil {
				return errors.Join(err, classify(perr, whereIn(c, p.folder)))
			}
			for _, item := range page.Segment.BlobItems {
				if item.Name != nil {
					err = errors.Join(err, p.s.deleteBlob(ctx, c, *item.Name, nil))
				}
			}
		}
	}
	return err
}

func (p *probe) try(name string, need replica.Need, f func() (string, error)) bool {
	return p.t.Try(name, need, func() (string, error) {
		detail, err := f()
		return detail, classify(err, p.folder)
	})
}

// refused is nil for an answer with one of the codes; that something was done which must not be is an error.
func refused(err error, codes ...bloberror.Code) error {
	if err == nil {
		return plain("it was done all the same")
	}
	if hasCode(err, codes...) {
		return nil
	}
	return err
}

// plain is an error that says no more than its text; what has no answer of the service is not taken for a broken connection.
func plain(format string, args ...any) error {
	return fault.New(fault.StoreUnfit, format, args...)
}

func (p *probe) put(name string, data []byte, cond *blob.AccessConditions) (etag string, err error) {
	return p.s.putBlock(p.ctx, p.folder+name, data, map[string]string{"probe": name}, cond)
}

// get reads n bytes of a blob.
func (p *probe) get(c *blob.Client, off, n int64, cond *blob.AccessConditions) ([]byte, error) {
	resp, err := c.DownloadStream(p.ctx, &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: off, Count: n}, AccessConditions: cond})
	if err != nil {
		return nil, err
	}
	if resp.Date != nil {
		p.ahead = time.Until(*resp.Date)
	}
	body := resp.NewRetryReader(p.ctx, &blob.RetryReaderOptions{MaxRetries: bodyTries})
	defer body.Close()
	data, err := readAll(body, resp.ContentLength)
	if err == nil && int64(len(data)) != n {
		err = plain("%d bytes were asked for, and %d came", n, len(data))
	}
	return data, err
}

// want fails unless a blob has these bytes at off.
func (p *probe) want(c *blob.Client, off int64, data []byte) error {
	got, err := p.get(c, off, int64(len(data)), nil)
	if err == nil && !bytes.Equal(got, data) {
		err = plain("the blob has other content than it has to have")
	}
	return err
}

func (p *probe) block(name string) *blob.Client { return p.s.blocks.NewBlobClient(p.folder + name) }

// probed is a page blob of the probe.
type probed struct {
	p *probe
	c *az.Client
}

func (p *probe) pages(name string) probed {
	return probed{p, p.s.pages.NewPageBlobClient(p.folder + name)}
}

// make makes the blob, of probeSize bytes, with the sequence number 5.
func (b probed) make() error {
	seq := int64(5)
	_, err := b.c.Create(b.p.ctx, probeSize, &az.CreateOptions{SequenceNumber: &seq})
	return err
}

func ifSequence(n int64) *az.SequenceNumberAccessConditions {
	return &az.SequenceNumberAccessConditions{IfSequenceNumberEqualTo: &n}
}

// write writes as the generation seq, with a checksum that is right or, when flaw is not zero, is not.
func (b probed) write(data []byte, off, seq int64, flaw uint64) error {
	_, err := b.c.UploadPages(b.p.ctx, body(data), blob.HTTPRange{Offset: off, Count: int64(len(data))},
		&az.UploadPagesOptions{
			TransactionalValidation:        checksum(data) ^ blob.TransferValidationTypeCRC64(flaw),
			SequenceNumberAccessConditions: ifSequence(seq),
		})
	return err
}

func (b probed) clear(off, n, seq int64) error {
	_, err := b.c.ClearPages(b.p.ctx, blob.HTTPRange{Offset: off, Count: n}, &az.ClearPagesOptions{SequenceNumberAccessConditions: ifSequence(seq)})
	return err
}

func (b probed) want(off int64, data []byte) error { return b.p.want(b.c.BlobClient(), off, data) }

// etag is the blob's, as it is now.
func (b probed) etag() (string, error) {
	props, err := b.c.GetProperties(b.p.ctx, nil)
	return etagOf(props.ETag), err
}

func body(data []byte) io.ReadSeekCloser { return streaming.NopCloser(bytes.NewReader(data)) }

// bytesOf is a part of a disk, of one value.
func bytesOf(value byte) []byte { return bytes.Repeat([]byte{value}, probePart) }
