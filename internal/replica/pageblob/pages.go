package pageblob

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"

	"sitrep/internal/block"
	"sitrep/internal/disk/vhd"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
)

// mib is what the size of a disk is a multiple of, as Azure wants it.
const mib = 1 << 20

// pages is one disk: DISK.vhd and DISK.sums.
//
// The guest's bytes are followed by zeros up to a whole MiB, and these by the footer. How many there are of the guest is in
// the blob's metadata.
type pages struct {
	r         *vmReplica
	disk      string
	blockSize int64
	id        vhd.UUID
	born      replica.State // only its Created is used
	old       int64         // guest bytes that the ledger spoke of at opening
	stamped   string        // the ledger's stamp of the disk at opening

	f       *pageFile
	sums    *pageFile
	table   *sumTable
	flushed atomic.Bool // at least once

	mu   sync.Mutex
	size int64 // guest bytes
}

var _ replica.Pages = (*pages)(nil)

// blobSize is the bytes of a page blob for a disk of so many guest bytes.
func blobSize(size int64) int64 { return paddedSize(size) + vhd.FooterSize }

func paddedSize(size int64) int64 { return block.RoundUp(size, mib) }

// diskID is the UUID of a disk's VHD. It is made from what never changes, so that it stays when the blob is made anew.
func diskID(s *replica.State, disk string) vhd.UUID {
	sum := sha256.Sum256(fmt.Appendf(nil, "sitrep disk %s %s", s.Replica, disk))
	return uuid(sum[:])
}

// uuid makes one of the beginning of a hash.
func uuid(sum []byte) vhd.UUID {
	id := vhd.UUID(sum[:16])
	id[6] = id[6]&0x0f | 0x80 // version 8 of RFC 9562: made by a rule of one's own
	id[8] = id[8]&0x3f | 0x80
	return id
}

// pageBlob is a page blob of the VM, as a writer of this generation sees it.
func (r *vmReplica) pageBlob(name string) *pageBlob {
	c := r.s.pages.NewPageBlobClient(r.vm + "/" + name)
	return &pageBlob{
		source: source{s: r.s, name: r.vm + "/" + name, c: c.BlobClient(), pages: c, pace: r.s.pacer()},
		seq:    int64(r.generation.Load()), fenced: r.fenced,
	}
}

func (s *Store) pacer() *pacer {
	return &pacer{bytes: float64(s.opts.BytesPerSecond), requests: float64(s.opts.RequestsPerSecond)}
}

// Disk opens the pages of a disk; see replica.Replica.
func (r *vmReplica) Disk(ctx context.Context, d replica.Disk) (replica.Pages, error) {
	p, err := r.openDisk(ctx, d)
	if err != nil {
		return nil, in(err, r.vm, d.Name)
	}
	return p, nil
}

func (r *vmReplica) openDisk(ctx context.Context, d replica.Disk) (*pages, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := replica.CheckDisk(d); err != nil {
		return nil, fault.Wrap(fault.LedgerCorrupt, err, "the ledger contradicts itself").At(r.s.whereBlock(r.ledgerBlob()))
	}
	k, err := r.latest(ctx)
	if err != nil {
		return nil, err
	}
	s := k.state
	p := &pages{r: r, disk: d.Name, blockSize: d.BlockSize, id: diskID(&s, d.Name), born: s, size: d.Size, old: d.Size, stamped: d.Stamp,
		f:    newPageFile(ctx, r.pageBlob(d.Name+pagesSuffix)),
		sums: newPageFile(ctx, r.pageBlob(d.Name+sumsSuffix)),
	}
	p.table = newSumTable(p.sums, sumsSize(d.Size, d.BlockSize))
	never := s.NeverWritten(d)
	err = p.open(ctx, s.MayGrow(d))
	switch {
	case err == nil:
	case never && r.write && (fault.Is(err, fault.ReplicaMissing) || fault.Is(err, fault.ReplicaChanged)):
		err = p.create(ctx) // what is there, if anything, was left by a run that did not come to write to it
	case fault.Is(err, fault.ReplicaChanged) && r.write && s.Phase == replica.Resynchronizing:
		err = p.relayout(ctx)
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// open looks at both blobs. A writer raises the sequence number of blobs that an interrupted takeover has not come to.
func (p *pages) open(ctx context.Context, growing bool) error {
	at, err := p.f.look(ctx)
	if err != nil {
		return err
	}
	if at == nil {
		if _, err := p.r.s.identity(ctx); err != nil {
			return err
		}
		return fault.New(fault.ReplicaMissing, "the pages are missing").At(p.f.where())
	}
	if p.r.write && at.seq > p.f.seq {
		return p.f.fenced(ctx)
	}
	table, err := p.sums.look(ctx)
	if err != nil {
		return err
	}
	if err := p.checkSize(at, growing); err != nil {
		return err
	}
	if err := p.checkFooter(ctx, at); err != nil {
		return err
	}
	if table == nil || table.size < sumsSize(p.old, p.blockSize) {
		return fault.New(fault.ReplicaChanged, "the block sums are missing").At(p.sums.where())
	}
	p.table.grow(table.size)
	if !p.r.write || table.seq == p.sums.seq {
		p.table.tag = table.etag // of what is read from here on: what something else writes later is not in it
	}
	if !p.r.write {
		return nil
	}
	return errors.Join(p.f.own(ctx, at), p.sums.own(ctx, table))
}

// own makes sure that the blob takes the writes of this generation and of no older one.
func (b *pageBlob) own(ctx context.Context, p *properties) error {
	for p.seq != b.seq {
		if p.seq > b.seq {
			return b.fenced(ctx)
		}
		changed, err := b.raise(ctx, p.etag)
		if err != nil || !changed {
			return err
		}
		if p, err = b.look(ctx); err != nil {
			return err
		}
		if p == nil {
			return fault.New(fault.ReplicaMissing, "the blob is missing").At(b.where())
		}
	}
	return nil
}

// checkSize finds the size of the disk: what the ledger says, or, when the pages may have grown, what the metadata says.
func (p *pages) checkSize(at *properties, growing bool) error {
	size, err := strconv.ParseInt(at.meta[metaSize], 10, 64)
	wrong := err != nil || size < p.old || size > p.old && !growing
	if wrong || at.size < blobSize(size) || at.size > blobSize(size) && !growing {
		return fault.New(fault.ReplicaChanged, "the blob has %d bytes and is said to hold a disk of %q instead of %d",
			at.size, at.meta[metaSize], p.old).At(p.f.where())
	}
	p.size = size
	return nil
}

// checkFooter looks for the footer of this disk at the end.
func (p *pages) checkFooter(ctx context.Context, at *properties) error {
	if at.size > blobSize(p.size) {
		return nil // growing was interrupted, and is done again
	}
	b := make([]byte, vhd.FooterSize)
	if err := p.f.read(ctx, b, paddedSize(p.size)); err != nil {
		return err
	}
	var f vhd.Footer
	if err := f.UnmarshalBinary(b); err != nil || f.Type != vhd.Fixed || f.ID != p.id || f.CurrentSize != uint64(paddedSize(p.size)) {
		return fault.New(fault.ReplicaChanged, "this is not the footer that was written").AtOff(p.f.where(), paddedSize(p.size))
	}
	return nil
}

// meta is the metadata of the pages of a disk of so many bytes.
func (p *pages) meta(size int64) map[string]string {
	return map[string]string{metaSize: strconv.FormatInt(size, 10), metaDisk: p.born.Replica.String()}
}

// create makes an empty disk and its sums. The footer comes last: without it there is no disk.
func (p *pages) create(ctx context.Context) error {
	p.size = p.old
	if err := p.createSums(ctx); err != nil {
		return err
	}
	if err := p.f.found(ctx, blobSize(p.old), p.meta(p.old)); err != nil {
		return err
	}
	p.f.noteZero(block.Range{Len: paddedSize(p.old)})
	return p.putFooter(ctx, p.old)
}

func (p *pages) createSums(ctx context.Context) error {
	n := sumsSize(p.old, p.blockSize)
	if err := p.sums.found(ctx, n, map[string]string{metaDisk: p.born.Replica.String()}); err != nil {
		return err
	}
	p.sums.noteZero(block.Range{Len: n})
	return nil
}

// putFooter writes the footer of a disk of so many guest bytes.
func (p *pages) putFooter(ctx context.Context, size int64) error {
	b, _ := vhd.NewFooter(paddedSize(size), p.id, p.born.Created).MarshalBinary() // never fails
	return p.f.put(ctx, b, paddedSize(size))
}

// relayout gives a blob that something else has cut, lengthened or written a footer into the shape of the disk again, and makes
// new sums where there are none. What it holds is for the resynchronization to find out.
func (p *pages) relayout(ctx context.Context) error {
	at, err := p.f.look(ctx)
	if err != nil {
		return err
	}
	if err := p.f.own(ctx, at); err != nil {
		return err
	}
	table, err := p.sums.look(ctx)
	if err != nil {
		return err
	}
	if table == nil || table.size < sumsSize(p.old, p.blockSize) {
		err = p.createSums(ctx)
	} else {
		err = p.sums.own(ctx, table)
	}
	if err != nil {
		return err
	}
	p.size = p.old
	if at, err = p.f.look(ctx); err != nil { // its ETag is another one when it was taken over
		return err
	}
	if err := p.f.resize(ctx, blobSize(p.old), at.etag); err != nil {
		return err
	}
	if pad := (block.Range{Off: p.old, Len: paddedSize(p.old) - p.old}); !pad.Empty() {
		if err := p.f.clear(ctx, pad); err != nil {
			return err
		}
	}
	if err := p.putFooter(ctx, p.old); err != nil {
		return err
	}
	return p.setSize(ctx, p.old)
}

func (p *pages) setSize(ctx context.Context, size int64) error {
	at, err := p.f.look(ctx)
	if err != nil {
		return err
	}
	if at == nil {
		return fault.New(fault.ReplicaMissing, "the pages are missing").At(p.f.where())
	}
	return p.f.describe(ctx, p.meta(size), at.etag)
}

// Path tells where the disk is.
func (p *pages) Path() string { return "https://" + p.f.where() }

// Size is the number of guest bytes.
func (p *pages) Size() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.size
}

func (p *pages) fail(err error) error { return in(err, p.r.vm, p.disk) }

// check refuses a range that is not on the disk.
func (p *pages) check(off, n int64) error {
	if size := p.Size(); !(block.Range{Off: off, Len: n}).Within(size) {
		return fault.New(fault.IO, "[%d,+%d) is not on the disk of %d bytes", off, n, size).AtOff(p.f.where(), off)
	}
	return nil
}

// checkWrite refuses what cannot be written.
func (p *pages) checkWrite(ctx context.Context, off, n int64) error {
	if err := p.r.writable(ctx); err != nil {
		return err
	}
	if off%sector != 0 || n%sector != 0 {
		return fault.New(fault.IO, "[%d,+%d) is not made of whole sectors", off, n).AtOff(p.f.where(), off)
	}
	return p.check(off, n)
}

// ReadAt fills b; see replica.Pages. What waits to be sent is sent first.
func (p *pages) ReadAt(ctx context.Context, b []byte, off int64) error {
	err := ctx.Err()
	if err == nil {
		err = p.check(off, int64(len(b)))
	}
	if err == nil && p.r.write {
		err = p.r.buffers.settle(ctx, p.f, block.Range{Off: off, Len: int64(len(b))})
	}
	if err == nil {
		err = p.f.read(ctx, b, off)
	}
	return p.fail(err)
}

// WriteAt takes b over; see replica.Pages. It is durable after Flush. An error may be of an earlier write.
func (p *pages) WriteAt(ctx context.Context, b []byte, off int64) error {
	err := p.checkWrite(ctx, off, int64(len(b)))
	if err == nil {
		err = p.r.buffers.write(ctx, p.f, b, off)
	}
	return p.fail(err)
}

// ZeroAt makes a range zero; see replica.Pages. It is durable after Flush.
func (p *pages) ZeroAt(ctx context.Context, off, n int64) error {
	err := p.checkWrite(ctx, off, n)
	if err == nil {
		err = p.r.buffers.zero(ctx, p.f, block.Range{Off: off, Len: n})
	}
	return p.fail(err)
}

// Extent tells pages from what has none; see replica.Pages.
func (p *pages) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	err := ctx.Err()
	if err == nil {
		err = p.check(off, n)
	}
	if err != nil || n == 0 {
		return block.Extent{Range: block.Range{Off: off}}, p.fail(err)
	}
	e, err := p.f.ranges.extent(ctx, block.Range{Off: off, Len: n})
	return e, p.fail(err)
}

// Grow makes the disk larger; see replica.Pages. The metadata that says so is written last, and until then nothing of the
// guest's lies behind the old end: what was done before an interruption is done again.
func (p *pages) Grow(ctx context.Context, size int64) error {
	err := p.r.writable(ctx)
	if err == nil {
		err = p.grow(ctx, size)
	}
	return p.fail(err)
}

func (p *pages) grow(ctx context.Context, size int64) error {
	before := p.Size()
	switch {
	case size < before:
		return fault.New(fault.DiskShrunk, "the disk cannot become smaller: from %d to %d bytes", before, size).At(p.f.where())
	case size%sector != 0:
		return fault.New(fault.IO, "a disk cannot have %d bytes", size).At(p.f.where())
	case size == before:
		return nil
	}
	if err := p.growSums(ctx, size); err != nil {
		return err
	}
	if paddedSize(size) > paddedSize(before) {
		if err := p.extend(ctx, before, size); err != nil {
			return err
		}
	}
	if err := p.setSize(ctx, size); err != nil {
		return err
	}
	p.mu.Lock()
	p.size = size
	p.mu.Unlock()
	return nil
}

// extend makes the blob larger, writes the footer at the new end and takes the old one away.
func (p *pages) extend(ctx context.Context, before, size int64) error {
	if err := p.r.buffers.settle(ctx, p.f, block.Range{Len: before}); err != nil {
		return err
	}
	at, err := p.f.look(ctx)
	if err != nil {
		return err
	}
	if at == nil {
		return fault.New(fault.ReplicaMissing, "the pages are missing").At(p.f.where())
	}
	if at.size != blobSize(size) {
		if err := p.f.resize(ctx, blobSize(size), at.etag); err != nil {
			return err
		}
	}
	if err := p.putFooter(ctx, size); err != nil {
		return err
	}
	gone := block.Range{Off: paddedSize(before), Len: paddedSize(size) - paddedSize(before)}
	if err := p.f.clear(ctx, gone); err != nil { // an interrupted growth may have written another footer there
		return err
	}
	p.f.noteZero(gone)
	return nil
}

func (p *pages) growSums(ctx context.Context, size int64) error {
	need := sumsSize(size, p.blockSize)
	if need == sumsSize(p.Size(), p.blockSize) {
		return nil
	}
	if err := p.table.flush(ctx); err != nil {
		return err
	}
	at, err := p.sums.look(ctx)
	if err != nil {
		return err
	}
	if at == nil {
		return fault.New(fault.ReplicaChanged, "the block sums are missing").At(p.sums.where())
	}
	if at.size < need {
		err = p.sums.resize(ctx, need, at.etag)
	}
	if err == nil {
		p.table.grow(need)
	}
	return err
}

// checkSums refuses numbers of blocks that cannot be.
func (p *pages) checkSums(first, n int64) error {
	if count := block.Count(p.Size(), p.blockSize); first < 0 || n < 0 || first > count || n > count-first {
		return fault.New(fault.IO, "the disk has no sums of blocks %d to %d", first, first+n).At(p.sums.where())
	}
	return nil
}

// LoadSums reads sums; see replica.Pages.
func (p *pages) LoadSums(ctx context.Context, first int64, out []sums.Sum) error {
	err := ctx.Err()
	if err == nil {
		err = p.checkSums(first, int64(len(out)))
	}
	if err == nil {
		err = p.table.load(ctx, first, out)
	}
	return p.fail(err)
}

// StoreSums writes sums; see replica.Pages.
func (p *pages) StoreSums(ctx context.Context, first int64, in []sums.Sum) error {
	err := p.r.writable(ctx)
	if err == nil {
		err = p.checkSums(first, int64(len(in)))
	}
	if err == nil {
		err = p.table.store(ctx, first, in)
	}
	return p.fail(err)
}

// ClearSums sets sums to zero; see replica.Pages.
func (p *pages) ClearSums(ctx context.Context, first, n int64) error {
	err := p.r.writable(ctx)
	if err == nil {
		err = p.checkSums(first, n)
	}
	if err == nil {
		err = p.table.clear(ctx, first, n)
	}
	return p.fail(err)
}

// NextSums finds sums that may be other than zero; see replica.Pages.
func (p *pages) NextSums(ctx context.Context, first, end int64) (start, n int64, err error) {
	err = ctx.Err()
	if err == nil {
		err = p.checkSums(first, max(end-first, 0))
	}
	if err == nil && first < end {
		start, n, err = p.table.next(ctx, first, end)
	}
	return start, n, p.fail(err)
}

// Flush sends all that waits and returns when the service has acknowledged it; see replica.Pages.
func (p *pages) Flush(ctx context.Context) error {
	err := p.r.writable(ctx)
	if err == nil {
		err = p.r.buffers.settle(ctx, p.f, block.Range{Len: blobSize(p.Size())})
	}
	if err == nil {
		err = p.table.flush(ctx)
	}
	p.flushed.Store(p.flushed.Load() || err == nil)
	return p.fail(err)
}

// Close gives up what was not flushed.
func (p *pages) Close() error {
	if p.r.buffers != nil {
		p.r.buffers.discard(p.f)
	}
	p.f.end()
	p.sums.end()
	return nil
}
