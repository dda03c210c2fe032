package dir

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"sync"

	"sitrep/internal/block"
	"sitrep/internal/disk/vhd"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
)

// sector is the unit of writes to pages, in bytes.
const sector = 512

// pages is one disk: DISK.vhd and DISK.sums.
type pages struct {
	r    *vmReplica
	disk string
	id   vhd.UUID
	born replica.State // the ledger as it was when the pages were opened: only its Created is used afterwards
	size int64         // guest bytes: where the footer lies, or, when growing was interrupted, lay
	old  int64         // guest bytes that the ledger spoke of at opening

	f     durable.File
	sf    durable.File
	table *sums.Table
	mu    sync.Mutex // a durable.File's calls other than ReadAt and WriteAt are not concurrent
}

var _ replica.Pages = (*pages)(nil)

func (r *vmReplica) pagesPath(disk string) string { return filepath.Join(r.folder, disk+pagesSuffix) }
func (r *vmReplica) sumsPath(disk string) string  { return filepath.Join(r.folder, disk+sumsSuffix) }

// diskID is the UUID of a disk's VHD. It is made from what never changes, so that it stays when the file is made anew.
func diskID(s *replica.State, disk string) vhd.UUID {
	sum := sha256.Sum256(fmt.Appendf(nil, "sitrep disk %s %s", s.Replica, disk))
	id := vhd.UUID(sum[:16])
	id[6] = id[6]&0x0f | 0x80 // version 8 of RFC 9562: made by a rule of one's own
	id[8] = id[8]&0x3f | 0x80
	return id
}

// Disk opens the pages of a disk; see replica.Replica.
func (r *vmReplica) Disk(ctx context.Context, d replica.Disk) (replica.Pages, error) {
	p, err := r.openDisk(ctx, d)
	if err != nil {
		return nil, fault.In(err, r.vm, d.Name)
	}
	return p, nil
}

func (r *vmReplica) openDisk(ctx context.Context, d replica.Disk) (*pages, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s, err := r.loadLedger()
	if err != nil {
		return nil, err
	}
	if err := replica.CheckDisk(d); err != nil {
		return nil, fault.Wrap(fault.LedgerCorrupt, err, "the ledger contradicts itself").At(r.ledgerPath())
	}
	p := &pages{r: r, disk: d.Name, id: diskID(&s, d.Name), born: s, size: d.Size, old: d.Size}
	never := s.NeverWritten(d)
	err = p.openOwn(s.MayGrow(d))
	if err != nil && never && r.lock != nil && (fault.Is(err, fault.ReplicaMissing) || fault.Is(err, fault.ReplicaChanged)) {
		// What is there, if anything, was left by a run that did not come to write to it.
		err = errors.Join(p.Close(), r.asOwner(ctx, p.create))
		if err == nil {
			err = p.openOwn(false)
		}
	}
	if fault.Is(err, fault.ReplicaChanged) && r.lock != nil && s.Phase == replica.Resynchronizing {
		err = p.relayout(ctx, s.MayGrow(d))
	}
	if err != nil {
		return nil, errors.Join(r.cause(err), p.Close())
	}
	return p, nil
}

// openOwn opens the files and then makes sure that nobody has taken over: whoever does so gives the disk other files after the
// ledger says it, so what is open now is what may be written to, or what nobody reads any more.
func (p *pages) openOwn(growing bool) error {
	err := p.open(growing)
	if p.r.lock == nil || err != nil && !fault.Is(err, fault.ReplicaChanged) {
		return err
	}
	if oerr := p.r.stillOwner(); oerr != nil {
		return oerr
	}
	return err
}

// relayout gives a file that something else has cut, lengthened or written a footer into the shape of the disk again, and
// makes new sums where there are none. What it holds is for the resynchronization to find out.
func (p *pages) relayout(ctx context.Context, growing bool) error {
	if p.sf == nil {
		err := p.r.asOwner(ctx, func() error { return durable.WriteFile(p.r.fs, p.r.sumsPath(p.disk), nil) })
		if err == nil {
			err = p.openSums()
		}
		if err == nil {
			err = p.r.stillOwner()
		}
		if err == nil {
			err = p.checkLayout(growing)
		}
		if !fault.Is(err, fault.ReplicaChanged) {
			return err
		}
	}
	p.size = p.old
	if err := p.f.Truncate(p.old + vhd.FooterSize); err != nil {
		return err
	}
	if _, err := p.f.WriteAt(p.footer(p.old), p.old); err != nil {
		return err
	}
	return p.f.Sync()
}

// create makes an empty disk and its sums, each in one step. The pages come last: sums alone are no disk.
func (p *pages) create() error {
	if err := durable.WriteFile(p.r.fs, p.r.sumsPath(p.disk), nil); err != nil {
		return err
	}
	return durable.Replace(p.r.fs, p.Path(), func(f durable.File) error {
		if err := f.Truncate(p.old + vhd.FooterSize); err != nil {
			return err
		}
		_, err := f.WriteAt(p.footer(p.old), p.old)
		return err
	})
}

// footer returns the footer of the disk when it has size bytes.
func (p *pages) footer(size int64) []byte {
	b, _ := vhd.NewFooter(size, p.id, p.born.Created).MarshalBinary() // never fails
	return b
}

func (p *pages) open(growing bool) (err error) {
	if p.f, err = p.openFile(p.Path()); err != nil {
		return err
	}
	if err = p.openSums(); err != nil {
		return err
	}
	return p.checkLayout(growing)
}

// openSums opens the table of sums. It can be made anew from the pages, so a missing one is no missing replica.
func (p *pages) openSums() (err error) {
	p.sf, err = p.openFile(p.r.sumsPath(p.disk))
	if fault.Is(err, fault.ReplicaMissing) {
		return fault.New(fault.ReplicaChanged, "the block sums are missing").At(p.r.sumsPath(p.disk))
	}
	p.table = sums.NewTable(p.sf)
	return err
}

func (p *pages) openFile(path string) (durable.File, error) {
	open := p.r.fs.OpenRW
	if p.r.lock == nil {
		open = p.r.fs.Open
	}
	f, err := open(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := p.r.store.identity(); err != nil {
			return nil, err
		}
		return nil, fault.New(fault.ReplicaMissing, "the file is missing").At(path)
	}
	return f, err
}

// checkLayout finds the size of the disk: what the ledger says, or, when the pages may have grown, what the footer says.
func (p *pages) checkLayout(growing bool) error {
	length, err := p.f.Size()
	if err != nil {
		return err
	}
	end := length - vhd.FooterSize
	if end != p.old && !(growing && end > p.old) {
		return fault.New(fault.ReplicaChanged, "the file has %d bytes instead of %d", length, p.old+vhd.FooterSize).At(p.Path())
	}
	for _, size := range []int64{end, p.old} {
		ok, err := p.hasFooter(size)
		if err != nil {
			return err
		}
		if ok {
			p.size = size
			return nil
		}
	}
	return fault.New(fault.ReplicaChanged, "this is not the footer that was written").AtOff(p.Path(), end)
}

// hasFooter says whether the footer of this disk, with this size, lies where it has to.
func (p *pages) hasFooter(size int64) (bool, error) {
	b := make([]byte, vhd.FooterSize)
	if err := durable.ReadFull(p.f, b, size); err != nil {
		return false, err
	}
	var f vhd.Footer
	if err := f.UnmarshalBinary(b); err != nil {
		return false, nil
	}
	return f.Type == vhd.Fixed && f.ID == p.id && f.CurrentSize == uint64(size), nil
}

// Path tells where the disk is.
func (p *pages) Path() string { return p.r.pagesPath(p.disk) }

// Size is the number of guest bytes.
func (p *pages) Size() int64 { return p.size }

// fail fills in whose error it is.
func (p *pages) fail(err error) error { return fault.In(err, p.r.vm, p.disk) }

// check refuses a range that is not on the disk.
func (p *pages) check(off, n int64) error {
	if !(block.Range{Off: off, Len: n}).Within(p.size) {
		return fault.New(fault.IO, "[%d,+%d) is not on the disk of %d bytes", off, n, p.size).AtOff(p.Path(), off)
	}
	return nil
}

// checkWrite refuses what cannot be written.
func (p *pages) checkWrite(ctx context.Context, off, n int64) error {
	if err := p.r.writable(ctx); err != nil {
		return err
	}
	if off%sector != 0 || n%sector != 0 {
		return fault.New(fault.IO, "[%d,+%d) is not made of whole sectors", off, n).AtOff(p.Path(), off)
	}
	return p.check(off, n)
}

// ReadAt fills b; see replica.Pages.
func (p *pages) ReadAt(ctx context.Context, b []byte, off int64) error {
	err := ctx.Err()
	if err == nil {
		err = p.check(off, int64(len(b)))
	}
	if err == nil {
		err = readPages(p.f, b, off)
	}
	return p.fail(err)
}

// readPages fills b from a file that is known to be longer: one that ends was changed behind our back.
func readPages(f durable.File, b []byte, off int64) error {
	err := durable.ReadFull(f, b, off)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fault.Wrap(fault.ReplicaChanged, err, "the file has become shorter").AtOff(f.Name(), off)
	}
	return err
}

// WriteAt writes b; see replica.Pages. Large writes from aligned memory go around the page cache (package durable).
func (p *pages) WriteAt(ctx context.Context, b []byte, off int64) error {
	err := p.checkWrite(ctx, off, int64(len(b)))
	if err == nil {
		_, err = p.f.WriteAt(b, off)
	}
	return p.fail(err)
}

// ZeroAt makes a range zero by making a hole; see replica.Pages.
func (p *pages) ZeroAt(ctx context.Context, off, n int64) error {
	err := p.checkWrite(ctx, off, n)
	if err == nil && n > 0 {
		p.mu.Lock()
		err = p.f.ZeroAt(off, n)
		p.mu.Unlock()
	}
	return p.fail(err)
}

// Extent tells data from holes; see replica.Pages.
func (p *pages) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	err := ctx.Err()
	if err == nil {
		err = p.check(off, n)
	}
	if err != nil || n == 0 {
		return block.Extent{Range: block.Range{Off: off}}, p.fail(err)
	}
	p.mu.Lock()
	e, err := p.f.Extent(off, n)
	p.mu.Unlock()
	return e, p.fail(err)
}

// Grow makes the disk larger; see replica.Pages. The new footer is durable before the old one goes, so there is a valid
// one at every moment; until the ledger knows the new size, opening finds it by the footer.
func (p *pages) Grow(ctx context.Context, size int64) error {
	err := p.r.writable(ctx)
	if err == nil {
		p.mu.Lock()
		err = p.grow(size)
		p.mu.Unlock()
	}
	return p.fail(err)
}

func (p *pages) grow(size int64) error {
	if size < p.size {
		return fault.New(fault.DiskShrunk, "the disk cannot become smaller: from %d to %d bytes", p.size, size).At(p.Path())
	}
	if size%sector != 0 {
		return fault.New(fault.IO, "a disk cannot have %d bytes", size).At(p.Path())
	}
	before := p.size
	if size > p.size {
		if err := p.extend(size); err != nil {
			return err
		}
	}
	for _, at := range []int64{before, p.old} { // p.old is another one after an interrupted Grow
		if err := p.dropFooter(at); err != nil {
			return err
		}
	}
	return nil
}

// extend makes the file longer and writes the footer at its new end.
func (p *pages) extend(size int64) error {
	if err := p.f.Truncate(size + vhd.FooterSize); err != nil {
		return err
	}
	if _, err := p.f.WriteAt(p.footer(size), size); err != nil {
		return err
	}
	p.size = size
	return nil
}

// dropFooter clears the place of the footer that the disk had at size bytes, which is the guest's now. A redo may find
// the guest's own bytes there, and leaves them.
func (p *pages) dropFooter(size int64) error {
	if size >= p.size {
		return nil
	}
	there, err := p.hasFooter(size)
	if err != nil || !there {
		return err
	}
	// The new one may have been written by a run that was killed before it was durable.
	if err := p.f.Sync(); err != nil {
		return err
	}
	return p.f.ZeroAt(size, vhd.FooterSize)
}

// checkSums refuses numbers of blocks that cannot be.
func (p *pages) checkSums(first, n int64) error {
	if first < 0 || n < 0 || first > p.size/sector+1 || n > p.size/sector+1-first {
		return fault.New(fault.IO, "the disk of %d bytes has no sums of blocks %d to %d", p.size, first, first+n).At(p.r.sumsPath(p.disk))
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
		err = p.table.Load(first, out)
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
		p.mu.Lock() // a long run of zero sums is a hole
		err = p.table.Store(first, in)
		p.mu.Unlock()
	}
	return p.fail(err)
}

// ClearSums sets sums to zero; see replica.Pages.
func (p *pages) ClearSums(ctx context.Context, first, n int64) error {
	err := p.r.writable(ctx)
	if err == nil {
		err = p.checkSums(first, n)
	}
	if err == nil && n > 0 {
		p.mu.Lock()
		err = p.table.Clear(first, n)
		p.mu.Unlock()
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
		p.mu.Lock()
		start, n, err = p.table.Next(first, end)
		p.mu.Unlock()
	}
	return start, n, p.fail(err)
}

// Flush makes pages and sums durable; see replica.Pages.
func (p *pages) Flush(ctx context.Context) error {
	if err := p.r.writable(ctx); err != nil {
		return p.fail(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var serr error
	var sumsDone sync.WaitGroup
	sumsDone.Go(func() { serr = p.sf.Sync() })
	err := p.f.Sync()
	sumsDone.Wait()
	return p.fail(errors.Join(err, serr))
}

// Stamp is made of size, time of modification and inode of both files: a copy of them, and one that was written to, has
// another Stamp.
func (p *pages) Stamp(ctx context.Context) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", p.fail(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	a, err := p.f.Stamp()
	if err != nil {
		return "", p.fail(err)
	}
	b, err := p.sf.Stamp()
	if err != nil {
		return "", p.fail(err)
	}
	return fileStamp(a) + " " + fileStamp(b), nil
}

// Close closes both files. It makes nothing durable.
func (p *pages) Close() error {
	var err error
	for _, f := range []*durable.File{&p.f, &p.sf} {
		if *f != nil {
			err = errors.Join(err, (*f).Close())
			*f = nil
		}
	}
	return err
}
