package pageblob

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	az "github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"

	"sitrep/internal/block"
	"sitrep/internal/disk/vhd"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

// This file is the bytes of promoted disks: how they are copied and proven, and how they are read and deleted later.

// promoteTasks is how many pieces of 4 MiB are read at once.
const promoteTasks = 4

// view is the disk of the point, with its pages read from anywhere, and its sums from where the point has them.
func (p *promotion) view(ctx context.Context, pages *source) *pointDisk {
	return &pointDisk{ctx: ctx, vm: p.r.vm, name: p.disk, size: p.size, blockSize: p.blockSize, pages: pages,
		ranges: &rangeMap{from: pages}, table: &rangeMap{from: p.table}}
}

// each calls do with the whole blocks of a disk that are not known to be zero, in pieces of up to 4 MiB and several at once. Each
// one is proven.
func (p *promotion) each(ctx context.Context, pages *source, do func(ctx context.Context, data []byte, off int64) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(promoteTasks)
	d := p.view(ctx, pages)
	free := make(chan []byte, promoteTasks)
	for range promoteTasks {
		free <- nil // made at first use
	}
	walk := func() error {
		for off := int64(0); off < p.size; {
			e, err := d.Extent(off, min(p.size-off, maxPut-off%maxPut))
			if err != nil {
				return err
			}
			end := e.End()
			if e.Kind == block.Data {
				r := e.Range.Outward(p.blockSize).Intersect(block.Range{Len: p.size})
				end = r.End()
				g.Go(func() error {
					buf := <-free
					if buf == nil {
						buf = make([]byte, maxPut)
					}
					defer func() { free <- buf }()
					if err := d.proven().ReadAt(buf[:r.Len], r.Off); err != nil {
						return err
					}
					return do(ctx, buf[:r.Len], r.Off)
				})
			}
			p.count(end - off)
			off = end
		}
		return nil
	}
	err := walk()
	if gerr := g.Wait(); gerr != nil { // the walk ended because of it
		return gerr
	}
	return err
}

// copy reads the snapshot and writes it to the blob, which is made anew under a condition: what is not zero, each block proven. The
// mark that it is complete comes last. A replica that is corrupt leaves nothing.
func (p *promotion) copy(ctx context.Context, cond *blob.AccessConditions) error {
	if err := p.create(ctx, cond); err != nil {
		return err
	}
	err := p.each(ctx, p.from, func(ctx context.Context, data []byte, off int64) error {
		if block.IsZero(data) {
			return nil
		}
		return p.dst.put(ctx, data, off)
	})
	if err == nil {
		err = p.dst.put(ctx, p.own, paddedSize(p.size))
	}
	at, lerr := p.look(ctx)
	switch {
	case err != nil && fault.Is(err, fault.ReplicaCorrupt) && lerr == nil && at != nil:
		return p.discard(ctx, at, err)
	case err != nil:
		return err
	case lerr != nil:
		return lerr
	case at == nil || at.meta[metaPromoted] != p.of || at.seq != p.dst.seq || at.size != blobSize(p.size):
		return errAgain
	}
	return p.mark(ctx, at)
}

// create makes the blob, empty, with the sequence number of this run.
func (p *promotion) create(ctx context.Context, cond *blob.AccessConditions) error {
	size := blobSize(p.size)
	if err := checkSize(size, p.dst.where()); err != nil {
		return err
	}
	meta, err := metadata(map[string]string{metaPromoted: p.of})
	if err != nil {
		return err
	}
	_, err = p.dst.pages.Create(ctx, size, &az.CreateOptions{SequenceNumber: &p.dst.seq, Metadata: meta, AccessConditions: cond})
	if hasCode(err, bloberror.BlobAlreadyExists, bloberror.ConditionNotMet) {
		return errAgain
	}
	return p.dst.fail(err)
}

// prove reads what the service has made. A block that is not what its sum says is the replica's fault, or, when the
// snapshot still has it right, that of the copy.
func (p *promotion) prove(ctx context.Context, at *copied) error {
	made := p.dst.source
	made.pin = at.etag
	err := p.each(ctx, &made, func(context.Context, []byte, int64) error { return nil })
	switch e := fault.Find(err); {
	case err == nil:
		return nil
	case e == nil:
		return err
	case e.Code == fault.ReplicaChanged: // it is not as it was looked at
		return errAgain
	case e.Code != fault.ReplicaCorrupt:
		return err
	default:
		blk := block.Nth(e.Off/p.blockSize, p.blockSize, p.size)
		if p.view(ctx, p.from).proven().ReadAt(make([]byte, blk.Len), blk.Off) == nil {
			err = fault.New(fault.StoreCorrupted, "the service's copy is not what it was made of").AtOff(p.dst.where(), blk.Off)
		}
		return p.discard(ctx, at, err)
	}
}

// discard deletes what must not be taken for a disk of the point, and returns why.
func (p *promotion) discard(ctx context.Context, at *copied, why error) error {
	if err := p.remove(ctx, at.etag); err != nil {
		return err
	}
	return why
}

// promotedDisk is a promoted disk as it is now.
type promotedDisk struct {
	ctx      context.Context // of the call that opened it: its methods have none
	vm, name string
	size     int64
	etag     string
	ranges   *rangeMap
}

// OpenPromoted opens a promoted disk for reading; see replica.Promoter.
func (r *vmReplica) OpenPromoted(ctx context.Context, name string, size int64) (replica.PromotedDisk, error) {
	d, err := r.openPromoted(ctx, name, size)
	if err != nil {
		return nil, in(err, r.vm, "")
	}
	return d, nil
}

func (r *vmReplica) openPromoted(ctx context.Context, name string, size int64) (*promotedDisk, error) {
	if err := checkPromoted(name); err != nil {
		return nil, err
	}
	b := r.pageBlob(promotedFolder + name + pagesSuffix).source
	at, err := r.lookPromoted(ctx, b.c, b.where())
	switch {
	case err != nil:
		return nil, err
	case at == nil:
		return nil, fault.New(fault.NotFound, "the promoted disk is not there").At(b.where())
	case at.status != "" && at.status != blob.CopyStatusTypeSuccess: // by us, or by whoever brings back here what a machine wrote elsewhere
		return nil, fault.New(fault.Busy, "the disk is not whole: a copy to it is %s", at.status).At(b.where())
	}
	d := &promotedDisk{ctx: ctx, vm: r.vm, name: name, etag: at.etag, ranges: &rangeMap{from: &b}}
	if d.size, err = footerSize(ctx, &b, at.size); err != nil {
		return nil, err
	}
	if size > d.size {
		return nil, fault.New(fault.DiskCorrupt, "the disk has %d bytes, and was made with %d", d.size, size).At(b.where())
	}
	if paddedSize(size) == d.size { // whole MiB are the store's wish, and no part of the disk as long as nothing is in them
		end := make([]byte, d.size-size)
		if err := d.fill(end, size); err != nil {
			return nil, err
		}
		if block.IsZero(end) {
			d.size = size
		}
	}
	return d, nil
}

// footerSize is how many guest bytes the footer of a fixed VHD tells.
func footerSize(ctx context.Context, b *source, size int64) (int64, error) {
	end := size - vhd.FooterSize
	if end < 0 || size%sector != 0 {
		return 0, fault.New(fault.DiskCorrupt, "%d bytes are no fixed VHD", size).At(b.where())
	}
	raw := make([]byte, vhd.FooterSize)
	if err := b.read(ctx, raw, end); err != nil {
		return 0, err
	}
	var f vhd.Footer
	if err := f.UnmarshalBinary(raw); err != nil {
		return 0, fault.Wrap(fault.DiskCorrupt, err, "the footer of the VHD").AtOff(b.where(), end)
	}
	if f.Type != vhd.Fixed || f.CurrentSize != uint64(end) {
		return 0, fault.New(fault.DiskCorrupt, "the footer is that of a %s VHD of %d bytes, and it lies behind %d", f.Type, f.CurrentSize, end).
			AtOff(b.where(), end)
	}
	return end, nil
}

// Size is the number of guest bytes.
func (d *promotedDisk) Size() int64 { return d.size }

// Stamp is the ETag of the blob when it was opened.
func (d *promotedDisk) Stamp() string { return d.etag }

// ReadAt reads guest bytes; see io.ReaderAt.
func (d *promotedDisk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fault.New(fault.IO, "offset %d", off).Of(d.vm, "").At(d.ranges.from.where())
	}
	n := min(int64(len(p)), max(d.size-off, 0))
	if err := d.fill(p[:n], off); err != nil {
		return 0, in(err, d.vm, "")
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

func (d *promotedDisk) fill(p []byte, off int64) error { return d.ranges.fill(d.ctx, p, off) }

// Extent tells pages from what has none.
func (d *promotedDisk) Extent(off, n int64) (block.Extent, error) {
	r := block.Range{Off: off, Len: n}
	if !r.Within(d.size) {
		return block.Extent{}, fault.New(fault.IO, "[%d,+%d) is not on the disk of %d bytes", off, n, d.size).Of(d.vm, "")
	}
	if n == 0 {
		return block.Extent{Range: r}, nil
	}
	e, err := d.ranges.extent(d.ctx, r)
	return e, in(err, d.vm, "")
}

// Close ends it. There is nothing to give back.
func (d *promotedDisk) Close() error { return nil }

// Promoted lists the promoted disks; see replica.Promoter.
func (r *vmReplica) Promoted(ctx context.Context) ([]string, error) {
	list, err := r.s.list(ctx, r.s.pages, r.vm, promotedFolder, container.ListBlobsInclude{})
	if err != nil {
		return nil, in(err, r.vm, "")
	}
	var names []string
	for _, e := range list {
		if name, ok := strings.CutSuffix(strings.TrimPrefix(e.name, promotedFolder), pagesSuffix); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Strangers lists the page blobs among the promoted disks that bear no mark; see replica.Promoter.
func (r *vmReplica) Strangers(ctx context.Context) ([]string, error) {
	list, err := r.s.list(ctx, r.s.pages, r.vm, promotedFolder, container.ListBlobsInclude{Metadata: true})
	if err != nil {
		return nil, in(err, r.vm, "")
	}
	var where []string
	for _, e := range list {
		if e.meta[metaPromoted] == "" {
			where = append(where, r.s.where(r.vm+"/"+e.name))
		}
	}
	slices.Sort(where)
	return where, nil
}

// RemovePromoted deletes a promoted disk, aborting its copy; see replica.Promoter.
func (r *vmReplica) RemovePromoted(ctx context.Context, name string) error {
	return r.deleted(ctx, name, byName)
}

// Demote deletes a promoted disk that bears the mark; see replica.Promoter.
func (r *vmReplica) Demote(ctx context.Context, name string) error {
	return r.deleted(ctx, name, byMark)
}

// claim is what makes a blob one that may be deleted.
type claim int

const (
	byName claim = iota // a ledger has the name
	byMark
)

func (r *vmReplica) deleted(ctx context.Context, name string, c claim) error {
	err := r.writable(ctx)
	if err == nil {
		err = checkPromoted(name)
	}
	if err == nil {
		err = r.removePromoted(ctx, name, c)
	}
	return in(err, r.vm, "")
}

// removePromoted deletes the blob if nothing has written to it since it was looked at, and the ledger was still ours after that: a
// run that was left behind does not delete what another one's machine runs from.
func (r *vmReplica) removePromoted(ctx context.Context, name string, c claim) error {
	b := r.pageBlob(promotedFolder + name + pagesSuffix)
	for try := 1; ; try++ {
		at, err := r.lookPromoted(ctx, b.c, b.where())
		if err == nil && at != nil {
			err = r.current(ctx)
		}
		if err != nil || at == nil {
			return err
		}
		if c == byMark && at.meta[metaPromoted] == "" {
			return fault.New(fault.Exists, "the page blob bears no mark of \"points --promote\": it is somebody else's, and is left as it is").At(b.where())
		}
		if at.status == blob.CopyStatusTypePending {
			_, err := b.c.AbortCopyFromURL(ctx, at.id, nil)
			if err != nil && !hasCode(err, bloberror.NoPendingCopyOperation) {
				return b.fail(err)
			}
			if at, err = r.lookPromoted(ctx, b.c, b.where()); err != nil || at == nil {
				return err
			}
		}
		if err = deletePromoted(ctx, b, at.etag); !errors.Is(err, errAgain) {
			return err
		}
		if try == promoteTries {
			return fault.New(fault.Busy, "something writes to the promoted disk; it is deleted when nothing runs from it").At(b.where())
		}
	}
}
