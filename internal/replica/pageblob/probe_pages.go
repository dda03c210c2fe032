package pageblob

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	az "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"

	"sitrep/internal/block"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

// tryPages tries what disks rely on.
func (p *probe) tryPages() {
	b := p.pages("pages")
	if !p.try("pages are read as they were written", replica.Needed, func() (string, error) {
		err := b.make()
		if err == nil {
			err = b.write(bytesOf(1), probeAt, 5, 0)
		}
		if err == nil {
			err = b.want(probeAt-1, append([]byte{0}, bytesOf(1)[:100]...)) // reads need not be of whole pages
		}
		return "", cmp.Or(err, b.want(probeAt, bytesOf(1)))
	}) {
		return
	}
	p.try("a write of another generation is refused", replica.Needed, func() (string, error) {
		err := refused(b.write(bytesOf(2), probeAt, 4, 0), bloberror.SequenceNumberConditionNotMet)
		if err == nil {
			err = refused(b.clear(probeAt, probePart, 4), bloberror.SequenceNumberConditionNotMet)
		}
		if err != nil {
			return "", err
		}
		return "", b.want(probeAt, bytesOf(1))
	})
	p.try("a new generation locks out the old one", replica.Needed, func() (string, error) { return "", p.raised() })
	p.try("bytes that are damaged on the way are refused", replica.Needed, func() (string, error) {
		if err := refused(b.write(bytesOf(3), probeAt, 5, 1), codeCRC64Mismatch); err != nil {
			return "", err
		}
		return "", b.want(probeAt, bytesOf(1))
	})
	p.try("a write of pages changes the ETag", replica.Needed, func() (string, error) {
		before, err := b.etag()
		if err == nil {
			err = b.write(bytesOf(1), probeAt, 5, 0)
		}
		after, gerr := b.etag()
		if err = cmp.Or(err, gerr); err == nil && before == after {
			err = plain("it is the same: a write by something else would not be noticed")
		}
		return "", err
	})
	p.try("properties are changed only of the blob that was looked at", replica.Needed, func() (string, error) { return "", p.described() })
	p.try("data is not taken for a hole", replica.Needed, func() (string, error) {
		runs, err := b.ranges()
		if err == nil && !covered(runs, block.Range{Off: probeAt, Len: probePart}) {
			err = plain("pages that were written are not in the list of pages")
		}
		return "", err
	})
	p.try("cleared pages read as zero", replica.Needed, func() (string, error) {
		err := b.clear(probeAt+512, 1024, 5)
		if err != nil {
			return "", err
		}
		want := bytesOf(1)
		clear(want[512 : 512+1024])
		return "", b.want(probeAt, want)
	})
	p.try("cleared pages take no room", replica.ForInformation, func() (string, error) {
		runs, err := b.ranges()
		if err == nil && touched(runs, block.Range{Off: probeAt + 512, Len: 1024}) {
			err = plain("they are in the list of pages")
		}
		return "", err
	})
	p.try("a blob can be made longer", replica.Needed, func() (string, error) {
		_, err := b.c.Resize(p.ctx, 2*probeSize, nil)
		if err == nil {
			err = b.want(probeAt+probePart/2, bytesOf(1)[probePart/2:])
		}
		if err != nil {
			return "", err
		}
		return "", b.want(probeSize-probePart, make([]byte, 2*probePart))
	})
}

// ranges are the pages that the service says it has.
func (b probed) ranges() (*block.Set, error) {
	var runs block.Set
	pager := b.c.NewGetPageRangesPager(nil)
	for pager.More() {
		page, err := pager.NextPage(b.p.ctx)
		if err != nil {
			return nil, err
		}
		addRuns(&runs, page.PageRange)
	}
	return &runs, nil
}

func addRuns(runs *block.Set, list []*az.PageRange) {
	for _, r := range list {
		if r.Start != nil && r.End != nil && *r.End >= *r.Start {
			runs.Add(block.Range{Off: *r.Start, Len: *r.End - *r.Start + 1})
		}
	}
}

// covered says whether runs has all of r, touched whether it has some of it.
func covered(runs *block.Set, r block.Range) bool {
	run, ok := runs.Next(r)
	return ok && run == r
}

func touched(runs *block.Set, r block.Range) bool {
	_, ok := runs.Next(r)
	return ok
}

// raised raises the sequence number, as a takeover does.
func (p *probe) raised() error {
	b := p.pages("raised")
	if err := b.make(); err != nil {
		return err
	}
	before, err := b.etag()
	if err != nil {
		return err
	}
	update, next := az.SequenceNumberActionTypeUpdate, int64(6)
	set := func(etag string) error {
		_, err := b.c.UpdateSequenceNumber(p.ctx, &az.UpdateSequenceNumberOptions{
			ActionType: &update, SequenceNumber: &next, AccessConditions: ifMatch(etag)})
		return err
	}
	if err := set(before); err != nil {
		return err
	}
	next = 7
	if err := refused(set(before), bloberror.ConditionNotMet); err != nil {
		return fmt.Errorf("by who had looked before it was raised: %w", err)
	}
	if err := refused(b.write(bytesOf(1), probeAt, 5, 0), bloberror.SequenceNumberConditionNotMet); err != nil {
		return err
	}
	if err := b.write(bytesOf(2), probeAt, 6, 0); err != nil {
		return err
	}
	return b.want(probeAt, bytesOf(2))
}

// described sets metadata of a page blob, and again by who has not seen that.
func (p *probe) described() error {
	b := p.pages("described")
	if err := b.make(); err != nil {
		return err
	}
	stale, err := b.etag()
	if err != nil {
		return err
	}
	set := func(value string) error {
		_, err := b.c.SetMetadata(p.ctx, map[string]*string{"probe": &value}, &blob.SetMetadataOptions{AccessConditions: ifMatch(stale)})
		return err
	}
	if err := set("first"); err != nil {
		return err
	}
	if err := refused(set("second"), bloberror.ConditionNotMet); err != nil {
		return err
	}
	props, err := b.c.GetProperties(p.ctx, nil)
	if err == nil && lower(props.Metadata)["probe"] != "first" {
		err = plain("the metadata is not what was written")
	}
	return err
}

// trySnapshots tries what recovery points rely on.
func (p *probe) trySnapshots() {
	b := p.pages("points")
	var at string // of the snapshot
	if !p.try("a snapshot stays as it was", replica.Needed, func() (string, error) {
		err := b.make()
		if err == nil {
			err = b.write(bytesOf(1), probeAt, 5, 0)
		}
		if err != nil {
			return "", err
		}
		snap, err := b.c.CreateSnapshot(p.s.once(p.ctx), nil)
		if err != nil {
			return "", err
		}
		if snap.Snapshot == nil {
			return "", plain("the service does not say which one it is")
		}
		at = *snap.Snapshot
		if err = b.write(bytesOf(2), probeAt, 5, 0); err == nil {
			err = b.clear(probeAt+probePart/2, probePart/2, 5)
		}
		return "", cmp.Or(err, p.wantSnapshot(b, at, bytesOf(1)))
	}) {
		return
	}
	p.try("differences between snapshots are told", replica.ForInformation, func() (string, error) { return "", p.differences(b) })
	c := p.pages("copy")
	if p.try("the service copies snapshots", replica.ForInformation, func() (string, error) { return "", p.copied(b, at, c) }) {
		// For promoted disks, which are read and written where it does not hold: see promotion.
		p.try("a copy changes nothing of what it was made of", replica.ForInformation, func() (string, error) {
			_, err := c.c.UploadPages(p.ctx, body(bytesOf(9)), blob.HTTPRange{Offset: probeAt, Count: probePart}, nil)
			if err == nil {
				err = p.wantSnapshot(b, at, bytesOf(1))
			}
			if fault.Is(err, fault.StoreUnfit) {
				err = plain("what is written to a copy is in the recovery point that it was made of as well")
			}
			return "", err
		})
	}
}

func (p *probe) wantSnapshot(b probed, at string, data []byte) error {
	c, err := b.c.WithSnapshot(at)
	if err != nil {
		return err
	}
	return p.want(c.BlobClient(), probeAt, data)
}

// copied has the service copy a snapshot.
func (p *probe) copied(b probed, at string, c probed) error {
	from, err := b.c.WithSnapshot(at)
	if err != nil {
		return err
	}
	if _, err := c.c.StartCopyFromURL(p.ctx, from.URL(), nil); err != nil {
		return err
	}
	for began := time.Now(); ; {
		props, err := c.c.GetProperties(p.ctx, nil)
		switch {
		case err != nil:
			return err
		case props.CopyStatus == nil || *props.CopyStatus == blob.CopyStatusTypeSuccess:
			return c.want(probeAt, bytesOf(1))
		case *props.CopyStatus != blob.CopyStatusTypePending:
			return plain("the copy ended as %s", *props.CopyStatus)
		case time.Since(began) > probeCopy:
			return plain("a copy of some MiB is not done after %s", probeCopy)
		}
		if err := p.s.pause(p.ctx, 1); err != nil {
			return err
		}
	}
}

// differences asks what was changed since a snapshot. Nothing is built on it, because the emulator answers with every page.
func (p *probe) differences(b probed) error {
	snap, err := b.c.CreateSnapshot(p.s.once(p.ctx), nil)
	if err == nil {
		err = b.write(bytesOf(3), 4*probeAt, 5, 0)
	}
	if err != nil {
		return err
	}
	var runs block.Set
	pager := b.c.NewGetPageRangesDiffPager(&az.GetPageRangesDiffOptions{PrevSnapshot: snap.Snapshot})
	for pager.More() {
		page, err := pager.NextPage(p.ctx)
		if err != nil {
			return err
		}
		addRuns(&runs, page.PageRange)
	}
	switch {
	case !covered(&runs, block.Range{Off: 4 * probeAt, Len: probePart}):
		return plain("pages that were written are not among them")
	case touched(&runs, block.Range{Off: probeAt, Len: probePart}):
		return plain("pages that were not written are among them")
	}
	return nil
}

// tryLimits tries what the service should refuse; none of it is ever asked for.
func (p *probe) tryLimits() {
	b := p.pages("limits")
	limit := func(name string, off, n int64) {
		p.try(name, replica.ForInformation, func() (string, error) {
			_, err := b.c.UploadPages(p.ctx, body(make([]byte, n)), blob.HTTPRange{Offset: off, Count: n}, nil)
			var answer *azcore.ResponseError
			if errors.As(err, &answer) && slices.Contains([]int{http.StatusBadRequest, http.StatusRequestEntityTooLarge,
				http.StatusRequestedRangeNotSatisfiable}, answer.StatusCode) {
				return "", nil
			}
			return "", refused(err)
		})
	}
	if err := b.make(); err != nil {
		return // said by the others
	}
	limit("more than 4 MiB at once are refused", 0, maxPut+512)
	limit("pages that are not whole are refused", 100, 512)
	limit("a write beyond the end is refused", probeSize-512, 1024)
}

// tryTransfers tries the largest requests, and measures them.
func (p *probe) tryTransfers() {
	p.try("large transfers arrive", replica.Needed, p.speed)
	p.try("its clock is the one of this machine", replica.ForInformation, func() (string, error) {
		detail := fmt.Sprintf("%+d s", int64(p.ahead.Round(time.Second)/time.Second)) // never "-0"
		if remark := clockRemark(p.ahead); remark != "" {
			return "", plain("%s: %s", detail, remark)
		}
		return detail, nil
	})
}

func (p *probe) speed() (string, error) {
	b := p.pages("speed")
	seq := int64(5)
	if _, err := b.c.Create(p.ctx, probeSpeed*maxPut, &az.CreateOptions{SequenceNumber: &seq}); err != nil {
		return "", err
	}
	buf := make([]byte, maxPut)
	rand.Read(buf) // never fails (crypto/rand)
	began := time.Now()
	for i := range int64(probeSpeed) {
		buf[0] = byte(i)
		if err := b.write(buf, i*maxPut, 5, 0); err != nil {
			return "", err
		}
	}
	written := time.Since(began)
	began = time.Now()
	for i := range int64(probeSpeed) {
		got, err := p.get(b.c.BlobClient(), i*maxPut, maxPut, nil)
		if err != nil {
			return "", err
		}
		if buf[0] = byte(i); !bytes.Equal(got, buf) {
			return "", plain("what is read at %d is not what was written", i*maxPut)
		}
	}
	rate := func(d time.Duration) float64 { return probeSpeed * maxPut / 1e6 / max(d, time.Microsecond).Seconds() }
	return fmt.Sprintf("one request after the other: written at %.1f MB/s, read at %.1f MB/s", rate(written), rate(time.Since(began))), nil
}
