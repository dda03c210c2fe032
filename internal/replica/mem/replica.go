package mem

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync/atomic"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
)

// disk is the pages of one disk.
type disk struct {
	content *sparse
	sums    map[int64]sums.Sum
	changes int // for the Stamp
}

// memReplica is a VM that was opened.
type memReplica struct {
	vm     *vm
	write  bool
	gen    uint64 // in whose name it writes; vm.mu guards it
	closed atomic.Bool
}

var _ replica.Replica = (*memReplica)(nil)

// begin locks the VM's content for one call; the caller unlocks it when there is no error.
func (r *memReplica) begin(ctx context.Context, write bool) error {
	if err := ctx.Err(); err != nil {
		return fault.In(err, r.vm.name, "")
	}
	r.vm.mu.Lock()
	var err error
	switch {
	case r.vm.gone:
		err = notProtected(r.vm.name)
	case write && (!r.write || r.closed.Load()):
		err = fault.New(fault.WrongState, "the replica is not open for writing").Of(r.vm.name, "")
	case write && r.vm.holder != r:
		err = r.takenOver()
	}
	if err != nil {
		r.vm.mu.Unlock()
	}
	return err
}

// takenOver is the refusal of a run that does not hold the lock any more.
func (r *memReplica) takenOver() error {
	st, err := r.load()
	if err != nil {
		return err
	}
	return fault.In(replica.CheckOwner(st, st.Replica, r.gen, r.path("ledger.json")), r.vm.name, "")
}

func (r *memReplica) load() (replica.State, error) {
	return replica.Decode(r.vm.ledger, r.path("ledger.json"), r.vm.name)
}

func (r *memReplica) path(name string) string { return "memory/" + r.vm.name + "/" + name }

// Close releases the lock.
func (r *memReplica) Close() error {
	if r.write && r.closed.CompareAndSwap(false, true) {
		r.vm.unlock(r)
	}
	return nil
}

// Shelf returns the logs that have arrived.
func (r *memReplica) Shelf() replica.Shelf { return &shelf{r} }

// Ledger returns the record.
func (r *memReplica) Ledger() replica.Ledger { return &ledger{r} }

// Points returns the earlier positions.
func (r *memReplica) Points() replica.Points { return &points{r} }

// Disk opens the pages of a disk; see replica.Replica.
func (r *memReplica) Disk(ctx context.Context, d replica.Disk) (replica.Pages, error) {
	if err := r.begin(ctx, false); err != nil {
		return nil, err
	}
	defer r.vm.mu.Unlock()
	s, err := r.load()
	if err != nil {
		return nil, err
	}
	if err := replica.CheckDisk(d); err != nil {
		return nil, fault.Wrap(fault.LedgerCorrupt, err, "the ledger contradicts itself").Of(r.vm.name, "")
	}
	have := r.vm.disks[d.Name]
	writes := r.write && r.vm.holder == r && s.NeverWritten(d)
	if have == nil || writes && have.content.size != d.Size && !s.MayGrow(d) {
		if !writes {
			return nil, fault.New(fault.ReplicaMissing, "the pages are missing").Of(r.vm.name, d.Name)
		}
		have = &disk{content: newSparse(d.Size), sums: map[int64]sums.Sum{}}
		r.vm.disks[d.Name] = have
	}
	return &pages{r: r, name: d.Name, d: have}, nil
}

// pages is one open disk.
type pages struct {
	r    *memReplica
	name string
	d    *disk
}

var _ replica.Pages = (*pages)(nil)

// begin is memReplica.begin for a range of the disk.
func (p *pages) begin(ctx context.Context, write bool, off, n int64) error {
	if err := p.r.begin(ctx, write); err != nil {
		return err
	}
	var err error
	switch {
	case !(block.Range{Off: off, Len: n}).Within(p.d.content.size):
		err = fault.New(fault.IO, "[%d,+%d) is not on the disk of %d bytes", off, n, p.d.content.size)
	case write && (off%512 != 0 || n%512 != 0):
		err = fault.New(fault.IO, "[%d,+%d) is not made of whole sectors", off, n)
	}
	if err != nil {
		p.r.vm.mu.Unlock()
		return fault.In(err, p.r.vm.name, p.name)
	}
	if write {
		p.d.changes++
	}
	return nil
}

// ReadAt fills b; see replica.Pages.
func (p *pages) ReadAt(ctx context.Context, b []byte, off int64) error {
	if err := p.begin(ctx, false, off, int64(len(b))); err != nil {
		return err
	}
	defer p.r.vm.mu.Unlock()
	p.d.content.read(b, off)
	return nil
}

// WriteAt writes b; see replica.Pages.
func (p *pages) WriteAt(ctx context.Context, b []byte, off int64) error {
	if err := p.begin(ctx, true, off, int64(len(b))); err != nil {
		return err
	}
	defer p.r.vm.mu.Unlock()
	p.d.content.write(b, off)
	return nil
}

// ZeroAt makes a range zero; see replica.Pages.
func (p *pages) ZeroAt(ctx context.Context, off, n int64) error {
	if err := p.begin(ctx, true, off, n); err != nil {
		return err
	}
	defer p.r.vm.mu.Unlock()
	p.d.content.zero(off, n)
	return nil
}

// Extent tells data from zeros; see replica.Pages.
func (p *pages) Extent(ctx context.Context, off, n int64) (block.Extent, error) {
	if err := p.begin(ctx, false, off, n); err != nil {
		return block.Extent{}, err
	}
	defer p.r.vm.mu.Unlock()
	if n == 0 {
		return block.Extent{Range: block.Range{Off: off}}, nil
	}
	return p.d.content.extent(off, n), nil
}

// Size is the number of guest bytes.
func (p *pages) Size() int64 {
	p.r.vm.mu.Lock()
	defer p.r.vm.mu.Unlock()
	return p.d.content.size
}

// Grow makes the disk larger; see replica.Pages.
func (p *pages) Grow(ctx context.Context, size int64) error {
	if err := p.begin(ctx, true, 0, 0); err != nil {
		return err
	}
	defer p.r.vm.mu.Unlock()
	if size < p.d.content.size {
		return fault.New(fault.DiskShrunk, "the disk cannot become smaller: from %d to %d bytes", p.d.content.size, size).
			Of(p.r.vm.name, p.name)
	}
	if size%512 != 0 {
		return fault.New(fault.IO, "a disk cannot have %d bytes", size).Of(p.r.vm.name, p.name)
	}
	p.d.content.size = size
	return nil
}

// LoadSums reads sums; see replica.Pages.
func (p *pages) LoadSums(ctx context.Context, first int64, out []sums.Sum) error {
	if err := p.beginSums(ctx, false, first, int64(len(out))); err != nil {
		return err
	}
	defer p.r.vm.mu.Unlock()
	for i := range out {
		out[i] = p.d.sums[first+int64(i)]
	}
	return nil
}

// beginSums is begin for blocks, of 512 bytes at least.
func (p *pages) beginSums(ctx context.Context, write bool, first, n int64) error {
	if err := p.begin(ctx, write, 0, 0); err != nil {
		return err
	}
	if limit := p.d.content.size/512 + 1; first < 0 || n < 0 || first > limit || n > limit-first {
		p.r.vm.mu.Unlock()
		return fault.New(fault.IO, "the disk has no sums of blocks %d to %d", first, first+n).Of(p.r.vm.name, p.name)
	}
	return nil
}

// StoreSums writes sums; see replica.Pages.
func (p *pages) StoreSums(ctx context.Context, first int64, in []sums.Sum) error {
	if err := p.beginSums(ctx, true, first, int64(len(in))); err != nil {
		return err
	}
	defer p.r.vm.mu.Unlock()
	for i, s := range in {
		p.setSum(first+int64(i), s)
	}
	return nil
}

func (p *pages) setSum(i int64, s sums.Sum) {
	if s.IsZero() {
		delete(p.d.sums, i)
	} else {
		p.d.sums[i] = s
	}
}

// ClearSums sets sums to zero; see replica.Pages.
func (p *pages) ClearSums(ctx context.Context, first, n int64) error {
	if err := p.beginSums(ctx, true, first, n); err != nil {
		return err
	}
	defer p.r.vm.mu.Unlock()
	maps.DeleteFunc(p.d.sums, func(i int64, _ sums.Sum) bool { return i >= first && i < first+n })
	return nil
}

// NextSums finds sums other than zero; see replica.Pages.
func (p *pages) NextSums(ctx context.Context, first, end int64) (start, n int64, err error) {
	if err := p.beginSums(ctx, false, first, max(end-first, 0)); err != nil {
		return 0, 0, err
	}
	defer p.r.vm.mu.Unlock()
	start = end
	for i := range p.d.sums {
		if i >= first && i < start {
			start = i
		}
	}
	for start+n < end && !p.d.sums[start+n].IsZero() {
		n++
	}
	return start, n, nil
}

// Flush does nothing: there is nothing that could be more durable.
func (p *pages) Flush(ctx context.Context) error {
	if err := p.r.begin(ctx, true); err != nil {
		return err
	}
	p.r.vm.mu.Unlock()
	return nil
}

// Stamp counts the changes.
func (p *pages) Stamp(ctx context.Context) (string, error) {
	if err := p.r.begin(ctx, false); err != nil {
		return "", err
	}
	defer p.r.vm.mu.Unlock()
	return fmt.Sprintf("%d:%d", p.d.content.size, p.d.changes), nil
}

// Path names the disk for people.
func (p *pages) Path() string { return p.r.path(p.name + ".vhd") }

// Close has nothing to do.
func (p *pages) Close() error { return nil }

// ledger is the record.
type ledger struct{ r *memReplica }

// Load reads the record; see replica.Ledger.
func (l *ledger) Load(ctx context.Context) (replica.State, error) {
	if err := l.r.begin(ctx, false); err != nil {
		return replica.State{}, err
	}
	defer l.r.vm.mu.Unlock()
	return l.r.load()
}

// Save replaces the record; see replica.Ledger.
func (l *ledger) Save(ctx context.Context, s replica.State) (replica.State, error) {
	if err := l.r.begin(ctx, true); err != nil {
		return s, err
	}
	defer l.r.vm.mu.Unlock()
	stored, err := l.r.load()
	if err != nil {
		return s, err
	}
	if err := replica.CheckSave(stored, s, l.r.path("ledger.json")); err != nil {
		return s, fault.In(err, l.r.vm.name, "")
	}
	return l.r.store(s)
}

// store replaces the ledger; mu is held.
func (r *memReplica) store(s replica.State) (replica.State, error) {
	next := s
	next.Format = replica.Format
	next.Version++
	if err := next.Check(); err != nil {
		return s, fault.Wrap(fault.LedgerCorrupt, err, "the new ledger contradicts itself and was not written").Of(r.vm.name, "")
	}
	data, err := replica.Encode(next)
	if err != nil {
		return s, fault.In(err, r.vm.name, "")
	}
	r.vm.ledger, r.gen = data, next.Generation
	return next, nil
}

// shelf is the logs that have arrived.
type shelf struct{ r *memReplica }

// Path names a log for people.
func (s *shelf) Path(name string) string { return s.r.path("shelf/" + name) }

// Put copies a log; see replica.Shelf.
func (s *shelf) Put(ctx context.Context, name string, f durable.File) (sent int64, err error) {
	if err := replica.CheckName(name); err != nil {
		return 0, fault.Wrap(fault.UsageError, err, "the name of a log").Of(s.r.vm.name, "")
	}
	size, err := f.Size()
	if err != nil {
		return 0, fault.In(err, s.r.vm.name, "")
	}
	log := newSparse(size)
	for off := int64(0); off < size; {
		e, err := f.Extent(off, min(size-off, 1<<20))
		if err != nil {
			return 0, fault.In(err, s.r.vm.name, "")
		}
		if e.Kind == block.Data {
			buf := make([]byte, e.Len)
			if n, err := f.ReadAt(buf, off); n < len(buf) {
				return 0, fault.In(err, s.r.vm.name, "")
			}
			log.write(buf, off)
			sent += e.Len
		}
		off = e.End()
	}
	if err := s.r.begin(ctx, true); err != nil {
		return 0, err
	}
	defer s.r.vm.mu.Unlock()
	s.r.vm.shelf[name] = log
	return sent, nil
}

// Open opens a log; see replica.Shelf.
func (s *shelf) Open(ctx context.Context, name string) (durable.File, error) {
	if err := s.r.begin(ctx, false); err != nil {
		return nil, err
	}
	defer s.r.vm.mu.Unlock()
	log := s.r.vm.shelf[name]
	if log == nil {
		return nil, fault.In(&fs.PathError{Op: "open", Path: s.Path(name), Err: fs.ErrNotExist}, s.r.vm.name, "")
	}
	return &logFile{name: s.Path(name), s: log}, nil
}

// Names lists the shelf; see replica.Shelf.
func (s *shelf) Names(ctx context.Context) ([]string, error) {
	if err := s.r.begin(ctx, false); err != nil {
		return nil, err
	}
	defer s.r.vm.mu.Unlock()
	return slices.Sorted(maps.Keys(s.r.vm.shelf)), nil
}

// Remove removes a log; see replica.Shelf.
func (s *shelf) Remove(ctx context.Context, name string) error {
	if err := s.r.begin(ctx, true); err != nil {
		return err
	}
	defer s.r.vm.mu.Unlock()
	delete(s.r.vm.shelf, name)
	return nil
}
