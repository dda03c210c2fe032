package replicatest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
)

// BlockSize of the disks of a History, in bytes.
const BlockSize = 4096

// History is a VM whose replica is led from position to position as the engines do it, and which remembers what every
// position's disks are. It can be cut at any operation and attached again to what a crash has left of its store: Attach
// then checks that every promise of the contract holds there.
type History struct {
	VM string
	// Keep is how many recovery points are kept.
	Keep int
	// NewLog makes the file of a sealed log with the given content, at the protected site.
	NewLog func(name string, data []byte) (durable.File, error)

	rng     *rand.Rand
	rep     replica.Replica
	store   hrl.ID        // zero: the store was not prepared yet
	state   replica.State // what the last Save returned
	tried   replica.State // what the last Save was asked for; it may have been done
	content map[hrl.Pos]map[string][]byte
	changed map[hrl.Pos]map[string]*block.Set // what leads to a position
	shelf   map[string][]byte                 // what lies there for sure
	putting map[string][]byte                 // what may lie there
}

// NewHistory returns a history that has not begun.
func NewHistory(vm string, seed uint64, newLog func(string, []byte) (durable.File, error)) *History {
	return &History{
		VM: vm, Keep: 3, NewLog: newLog, rng: rand.New(rand.NewPCG(seed, 1)),
		content: map[hrl.Pos]map[string][]byte{}, changed: map[hrl.Pos]map[string]*block.Set{},
		shelf: map[string][]byte{}, putting: map[string][]byte{},
	}
}

// Fork returns a history that has come as far as h and goes its own way from here, at another place.
func (h *History) Fork(seed uint64, newLog func(string, []byte) (durable.File, error)) *History {
	c := *h
	c.rng, c.NewLog, c.rep = rand.New(rand.NewPCG(seed, 2)), newLog, nil
	c.content, c.changed = maps.Clone(h.content), maps.Clone(h.changed)
	c.shelf, c.putting = maps.Clone(h.shelf), maps.Clone(h.putting)
	return &c
}

// clock is a moment for each position.
func clock(seq uint64) time.Time {
	return time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(seq) * time.Minute)
}

// FirstState is the first ledger of a VM with two disks, of which one has no whole number of blocks.
func FirstState(vm string) replica.State {
	return replica.State{
		Format: replica.Format, VM: vm, Vault: "vault", Replica: hrl.NewID(), Generation: 1,
		Owner: replica.Owner{Site: "one", Host: "h1", Since: clock(0)}, Created: clock(0),
		Phase: replica.Seeding, PhaseSince: clock(0),
		Disks: []replica.Disk{
			{Name: "os", OS: true, Source: "/d/os.vhdx", Format: "vhdx", Size: 24*BlockSize + 3*512, BlockSize: BlockSize},
			{Name: "data.1", Source: "/d/data.raw", Format: "raw", Size: 16 * BlockSize, BlockSize: BlockSize},
		},
	}
}

// Begin prepares the store, makes the replica, and copies the disks.
func (h *History) Begin(ctx context.Context, store replica.Store) error {
	id, err := store.Prepare(ctx, h.store)
	if err != nil {
		return err
	}
	h.store = id
	h.state = FirstState(h.VM)
	h.tried = h.state
	if h.rep, err = store.Create(ctx, h.state); err != nil {
		return err
	}
	if h.state, err = h.rep.Ledger().Load(ctx); err != nil {
		return err
	}
	return h.seed(ctx)
}

// seed copies the disks, from nothing or from where a crash interrupted it.
func (h *History) seed(ctx context.Context) error {
	to := hrl.Pos{}.Next()
	h.content[to] = map[string][]byte{}
	for _, d := range h.state.Disks {
		h.content[to][d.Name] = h.scribble(make([]byte, d.Size), block.NewSet(block.Range{Len: d.Size}))
	}
	for i := range h.state.Disks {
		d := h.state.Disks[i]
		err := h.withDisk(ctx, d, func(p replica.Pages) error {
			return h.write(ctx, p, block.NewSet(block.Range{Len: d.Size}), h.content[to][d.Name])
		})
		if err != nil {
			return err
		}
		s := h.state
		s.Disks = slices.Clone(s.Disks)
		s.Disks[i].Seeded = d.Size
		if err := h.save(ctx, s); err != nil {
			return err
		}
	}
	s := h.state
	s.Phase, s.Applied, s.Received, s.Consistent, s.AsOf = replica.Replicating, to, to, true, clock(to.Seq)
	h.addPoint(&s)
	return h.save(ctx, s)
}

func (h *History) addPoint(s *replica.State) {
	p := replica.Point{ID: replica.PointID(s.Applied, clock(s.Applied.Seq)), At: s.Applied, CutAt: clock(s.Applied.Seq), Sizes: map[string]int64{}, Seals: map[string]sums.Seal{}}
	for _, d := range s.Disks {
		p.Sizes[d.Name] = d.Size
		p.Seals[d.Name] = sealOf(h.content[s.Applied][d.Name])
	}
	kept, _ := replica.Retain(append(slices.Clone(s.Points), p), h.Keep)
	s.Points = slices.Clone(kept)
}

func (h *History) withDisk(ctx context.Context, d replica.Disk, f func(replica.Pages) error) error {
	p, err := h.rep.Disk(ctx, d)
	if err != nil {
		return err
	}
	return errors.Join(f(p), p.Close())
}

// scribble changes some of the bytes of set: to random ones, to zeros, or not at all.
func (h *History) scribble(p []byte, set *block.Set) []byte {
	for r := range set.Chunks(BlockSize) {
		b := p[r.Off:r.End()]
		switch h.rng.IntN(4) {
		case 0:
			clear(b)
		case 1:
			clear(b)
			b[h.rng.IntN(len(b))] = 1
		default:
			for i := range b {
				b[i] = byte(h.rng.Uint32())
			}
		}
	}
	return p
}

// write brings the blocks of set, with their sums, to what content says, durably.
func (h *History) write(ctx context.Context, p replica.Pages, set *block.Set, content []byte) error {
	for r := range set.Chunks(4 * BlockSize) {
		data := content[r.Off:r.End()]
		var err error
		if block.IsZero(data) {
			err = p.ZeroAt(ctx, r.Off, r.Len)
		} else {
			err = p.WriteAt(ctx, data, r.Off)
		}
		if err == nil {
			err = p.StoreSums(ctx, r.Off/BlockSize, sumsOf(data))
		}
		if err != nil {
			return err
		}
	}
	return p.Flush(ctx)
}

func sealOf(data []byte) (l sums.Seal) {
	for i, s := range sumsOf(data) {
		l.Add(int64(i), s)
	}
	return l
}

func sumsOf(data []byte) []sums.Sum {
	var out []sums.Sum
	for b := range slices.Chunk(data, BlockSize) {
		out = append(out, sums.Of(b))
	}
	return out
}

func (h *History) save(ctx context.Context, s replica.State) error {
	h.tried = s
	h.tried.Version++
	next, err := h.rep.Ledger().Save(ctx, s)
	if err == nil {
		h.state = next
	}
	return err
}

// Step takes a cut of some changed blocks, ships its logs and applies them. With grow, the first disk is larger then.
func (h *History) Step(ctx context.Context, grow bool) error {
	if err := h.receive(ctx, grow); err != nil {
		return err
	}
	return h.apply(ctx, false)
}

// receive lays the logs of a new cut on the shelf and says so in the ledger.
func (h *History) receive(ctx context.Context, grow bool) error {
	from := h.state.Applied
	to := from.Next()
	seg := replica.Segment{Span: replica.Span{From: from, To: to}, CutAt: clock(to.Seq), Sizes: map[string]int64{}}
	h.content[to], h.changed[to] = map[string][]byte{}, map[string]*block.Set{}
	for i, d := range h.state.Disks {
		size := d.Size
		if grow && i == 0 {
			size += 5 * BlockSize
		}
		set := h.pick(d.Size, size)
		now := append(slices.Clone(h.content[from][d.Name]), make([]byte, size-d.Size)...)
		h.content[to][d.Name], h.changed[to][d.Name], seg.Sizes[d.Name] = h.scribble(now, set), set, size
		if err := h.put(ctx, hrl.ShelfName(d.Name, to), now); err != nil {
			return err
		}
	}
	s := h.state
	s.Received, s.Pending = to, []replica.Segment{seg}
	return h.save(ctx, s)
}

// pick chooses blocks of a disk that grows from before to size. A block that was short is one of them, its sum changes.
func (h *History) pick(before, size int64) *block.Set {
	var set block.Set
	untouched := h.rng.IntN(5) == 0
	for i := range block.Count(size, BlockSize) {
		b := block.Nth(i, BlockSize, size)
		longer := b.Off < before && b.End() > before
		if longer || !untouched && h.rng.IntN(4) == 0 {
			set.Add(b)
		}
	}
	return &set
}

func (h *History) put(ctx context.Context, name string, data []byte) error {
	f, err := h.NewLog(name, data)
	if err != nil {
		return err
	}
	h.putting[name] = data
	_, err = h.rep.Shelf().Put(ctx, name, f)
	if err == nil {
		h.shelf[name] = data
		delete(h.putting, name)
	}
	return errors.Join(err, f.Close())
}

// apply leads the pages along the first pending segment, in the order of the contract.
func (h *History) apply(ctx context.Context, redo bool) error {
	span := h.state.Pending[0].Span
	if err := h.rep.Points().Preserve(ctx, h.state, span.To, h.changed[span.To], redo); err != nil {
		return err
	}
	if !redo {
		s := h.state
		s.Applying = &span
		if err := h.save(ctx, s); err != nil {
			return err
		}
	}
	if err := h.overwrite(ctx, span.To, true); err != nil {
		return err
	}
	return h.finish(ctx, span.To)
}

// overwrite moves the pages of all disks to a position; not all of it when whole is false.
func (h *History) overwrite(ctx context.Context, to hrl.Pos, whole bool) error {
	for _, d := range h.state.Disks {
		err := h.withDisk(ctx, d, func(p replica.Pages) error {
			content, set := h.content[to][d.Name], h.changed[to][d.Name]
			if err := p.Grow(ctx, int64(len(content))); err != nil {
				return err
			}
			if !whole {
				half := block.Range{Len: int64(len(content)) / 2 / BlockSize * BlockSize}
				part := block.NewSet(slices.Collect(set.All())...)
				part.Remove(half)
				set = part
			}
			return h.write(ctx, p, set, content)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// finish makes a position the applied one, and drops what is not needed any more.
func (h *History) finish(ctx context.Context, to hrl.Pos) error {
	s := h.state
	s.Applied, s.Applying, s.Pending, s.AsOf = to, nil, nil, clock(to.Seq)
	s.Disks = slices.Clone(s.Disks)
	for i := range s.Disks {
		s.Disks[i].Size = int64(len(h.content[to][s.Disks[i].Name]))
		s.Disks[i].Seeded = s.Disks[i].Size
	}
	h.addPoint(&s)
	if err := h.save(ctx, s); err != nil {
		return err
	}
	if err := h.rep.Points().Sweep(ctx, h.state); err != nil {
		return err
	}
	for name, data := range h.shelf {
		delete(h.shelf, name)
		h.putting[name] = data // it may come back after a crash, as it was
		if err := h.rep.Shelf().Remove(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// Attach opens what a crash has left, and checks that all that was promised is there.
func (h *History) Attach(ctx context.Context, store replica.Store) error {
	h.rep = nil
	id, err := store.Prepare(ctx, h.store)
	if err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	h.store = id
	rep, err := store.Open(ctx, h.VM)
	if fault.Is(err, fault.NotProtected) && h.state.Version == 0 {
		return nil // Create had not come to its end
	}
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	h.rep = rep
	s, err := rep.Ledger().Load(ctx)
	if err != nil {
		return err
	}
	if h.state.Version == 0 {
		h.tried.Version = 1
	}
	if !same(s, h.state) && !same(s, h.tried) {
		return fmt.Errorf("the ledger has version %d, neither the last (%d) nor the one that was being saved (%d)",
			s.Version, h.state.Version, h.tried.Version)
	}
	h.state = s
	return h.Check(ctx)
}

func same(a, b replica.State) bool {
	x, xerr := replica.Encode(a)
	y, yerr := replica.Encode(b)
	return xerr == nil && yerr == nil && bytes.Equal(x, y)
}

// Recover does what an engine does after Attach: it finishes what was interrupted.
func (h *History) Recover(ctx context.Context, store replica.Store) error {
	switch {
	case h.rep == nil:
		return h.Begin(ctx, store)
	case h.state.Applied.IsZero():
		return h.seed(ctx)
	case h.state.Applying != nil:
		return h.apply(ctx, true)
	case len(h.state.Pending) > 0:
		return h.apply(ctx, false)
	}
	return nil
}

// Check compares everything that can be read with what it has to be.
func (h *History) Check(ctx context.Context) error {
	if err := h.checkShelf(ctx); err != nil {
		return err
	}
	if h.state.Applying == nil && !h.state.Applied.IsZero() {
		if err := h.checkPages(ctx); err != nil {
			return fmt.Errorf("pages at %s: %w", h.state.Applied, err)
		}
	}
	for _, p := range h.state.Points {
		if err := h.checkPoint(ctx, p); err != nil {
			return fmt.Errorf("recovery point %s: %w", p.ID, err)
		}
	}
	return nil
}

func (h *History) checkShelf(ctx context.Context) error {
	names, err := h.rep.Shelf().Names(ctx)
	if err != nil {
		return err
	}
	if !slices.IsSorted(names) {
		return fmt.Errorf("the shelf is not sorted: %q", names)
	}
	for _, name := range names {
		want, ok := h.shelf[name]
		if !ok {
			want, ok = h.putting[name]
		}
		if !ok {
			return fmt.Errorf("there is a log on the shelf that nobody put there: %s", name)
		}
		if err := h.checkLog(ctx, name, want); err != nil {
			return err
		}
	}
	for name := range maps.Keys(h.shelf) {
		if !slices.Contains(names, name) {
			return fmt.Errorf("log %s is lost", name)
		}
	}
	_, err = h.rep.Shelf().Open(ctx, "not-there.hrl")
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("opening a log that is not there: %v", err)
	}
	return nil
}

func (h *History) checkLog(ctx context.Context, name string, want []byte) error {
	f, err := h.rep.Shelf().Open(ctx, name)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return err
	}
	got := make([]byte, size)
	if n, err := f.ReadAt(got, 0); n < len(got) {
		return err
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("log %s on the shelf is another one", name)
	}
	return nil
}

func (h *History) checkPages(ctx context.Context) error {
	for _, d := range h.state.Disks {
		want := h.content[h.state.Applied][d.Name]
		err := h.withDisk(ctx, d, func(p replica.Pages) error { return checkDisk(ctx, p, want) })
		if err != nil {
			return fmt.Errorf("disk %s: %w", d.Name, err)
		}
	}
	return nil
}

// checkDisk compares pages and their sums with what they have to be.
func checkDisk(ctx context.Context, p replica.Pages, want []byte) error {
	if p.Size() != int64(len(want)) {
		return fmt.Errorf("%d bytes instead of %d", p.Size(), len(want))
	}
	got := make([]byte, len(want))
	if err := p.ReadAt(ctx, got, 0); err != nil {
		return err
	}
	if err := firstDifference(got, want); err != nil {
		return err
	}
	have := make([]sums.Sum, block.Count(p.Size(), BlockSize))
	if err := p.LoadSums(ctx, 0, have); err != nil {
		return err
	}
	if !slices.Equal(have, sumsOf(want)) {
		return errors.New("the block sums are not those of the blocks")
	}
	return checkExtents(int64(len(want)), want, func(off, n int64) (block.Extent, error) { return p.Extent(ctx, off, n) })
}

func firstDifference(got, want []byte) error {
	for i := range want {
		if got[i] != want[i] {
			return fmt.Errorf("byte %d is %#x instead of %#x", i, got[i], want[i])
		}
	}
	return nil
}

// checkExtents walks the extents of a disk, which must be contiguous, clipped, and zero where they say so.
func checkExtents(size int64, want []byte, extent func(off, n int64) (block.Extent, error)) error {
	for off := int64(0); off < size; {
		e, err := extent(off, size-off)
		if err != nil {
			return err
		}
		if e.Off != off || e.Len <= 0 || e.End() > size {
			return fmt.Errorf("at %d of %d the extent is %v", off, size, e.Range)
		}
		if e.Kind == block.Zero && !block.IsZero(want[e.Off:e.End()]) {
			return fmt.Errorf("%v is said to be zero and is not", e.Range)
		}
		off = e.End()
	}
	return nil
}

func (h *History) checkPoint(ctx context.Context, point replica.Point) (err error) {
	v, err := h.rep.Points().Open(ctx, h.state, point.ID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	for name := range point.Sizes {
		want := h.content[point.At][name]
		d, err := v.Disk(name)
		if err != nil {
			return err
		}
		if err := checkPointDisk(d, want, h.rng); err != nil {
			return fmt.Errorf("disk %s: %w", name, err)
		}
	}
	return nil
}

func checkPointDisk(d replica.PointDisk, want []byte, rng *rand.Rand) error {
	size := int64(len(want))
	if d.Size() != size {
		return fmt.Errorf("%d bytes instead of %d", d.Size(), size)
	}
	got := make([]byte, size+7)
	n, err := d.ReadAt(got, 0)
	if fault.Find(err) != nil { // it is refused
		return err
	}
	if n != len(want) || err == nil {
		return fmt.Errorf("reading over the end gives %d bytes and the error %v", n, err)
	}
	if err := firstDifference(got, want); err != nil {
		return err
	}
	for range 8 {
		off := rng.Int64N(size)
		part := got[:1+rng.Int64N(min(3*BlockSize, size-off))]
		if n, err := d.ReadAt(part, off); n != len(part) {
			return fmt.Errorf("reading %d bytes at %d gives %d and %v", len(part), off, n, err)
		}
		if !bytes.Equal(part, want[off:off+int64(len(part))]) {
			return fmt.Errorf("%d bytes at %d are others", len(part), off)
		}
	}
	return checkExtents(size, want, d.Extent)
}

// CheckPoint compares a point of a replica, as its ledger s has it, with what was there at its position.
func (h *History) CheckPoint(ctx context.Context, r replica.Replica, s replica.State, point replica.Point) error {
	seen := *h
	seen.rep, seen.state = r, s
	return seen.checkPoint(ctx, point)
}

// Close closes the replica.
func (h *History) Close() error {
	if h.rep == nil {
		return nil
	}
	return h.rep.Close()
}
