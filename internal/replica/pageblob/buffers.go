package pageblob

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"sitrep/internal/block"
)

// The engines write in blocks and in pieces of a MiB, from several goroutines; a request costs the same whatever it carries,
// up to 4 MiB, and an account allows 500 of them a second for a blob, which with 60 MiB a second is one for every 120 KiB. So
// writes are collected by windows of 4 MiB of a blob, and a window is sent when all of it was written, when too many wait, or
// by Flush.
//
// What is in a window when it is sent becomes requests by the rule of plan.
const (
	window     = maxPut
	maxWindows = 8 // that hold memory: 32 MiB for all disks of a replica
	maxIdle    = 4 // that wait for more to be written
	// gapMost is the longest gap between two ranges that is sent with them. It is less than the usual block of 64 KiB, so
	// nothing is sent for a block of zeros; and at a request's worth of 120 KiB it pays.
	gapMost = 32 << 10
	// readPays is how many gaps of unknown content make it cheaper to read them (one request) and to send one range than to
	// send each range alone.
	readPays = 2
)

// CopyUnit is how much of a disk an initial copy should write at once: a window, which is sent from where it lies. CopyTasks is how
// many do so: they are under way for as long as a request takes, so that five send 60 MiB a second to a service that needs a third of
// a second for each; and their buffers, used in turn, fit into a processor's cache.
const (
	CopyUnit  = window
	CopyTasks = 5
)

// GCPercent is what suits a process that copies to this store, for debug.SetGCPercent: nearly all of its memory is a few large
// buffers that live as long as it does, which are not looked into and would let as much again become garbage.
const GCPercent = 25

// Checkpoint is after how many bytes of a large copy it is worth to Flush and to note how far it has come: that costs three requests
// beside the four that send so much. Twice as much is sent again at the most after an interruption, and is under way at the most:
// half a second of what the service takes of one blob.
const Checkpoint = 16 << 20

// buffers collects what is written to the disks of one replica.
type buffers struct {
	mu      sync.Mutex
	changed sync.Cond // a window was sent
	windows map[windowKey]*windowBuf
	free    [][]byte
	tick    uint64
	made    uint64       // windows until now
	queue   []*windowKey // who waits for a new window, in the order of coming
}

type windowKey struct {
	f *pageFile
	n int64
}

// windowBuf is a part of a blob of which some is to be written.
type windowBuf struct {
	key     windowKey
	buf     []byte    // nil while only zeros are to be written
	data    block.Set // offsets of the blob; disjoint from zero
	zero    block.Set
	tick    uint64
	number  uint64 // of all that were made
	sending bool
}

func (w *windowBuf) off() int64 { return w.key.n * window }

func newBuffers() *buffers {
	b := &buffers{windows: map[windowKey]*windowBuf{}}
	b.changed.L = &b.mu
	return b
}

// each calls f for the parts of a range in each window.
func each(r block.Range, f func(n int64, part block.Range) error) error {
	for !r.Empty() {
		n := r.Off / window
		part := r.Intersect(block.Range{Off: n * window, Len: window})
		if err := f(n, part); err != nil {
			return err
		}
		r = block.Range{Off: part.End(), Len: r.Len - part.Len}
	}
	return nil
}

// write takes p over. Nothing can be gained by keeping what fills a window: it is sent from where it lies, and the caller waits.
func (b *buffers) write(ctx context.Context, f *pageFile, p []byte, off int64) error {
	return each(block.Range{Off: off, Len: int64(len(p))}, func(n int64, part block.Range) error {
		data := p[part.Off-off:][:part.Len]
		if part.Len == window {
			return b.writeWhole(ctx, f, data, part)
		}
		return b.writePart(ctx, windowKey{f, n}, data, part)
	})
}

// writeWhole sends what fills a window. It is in place of whatever was to be written there. That it failed is known to the
// caller, who has been promised nothing.
func (b *buffers) writeWhole(ctx context.Context, f *pageFile, p []byte, at block.Range) error {
	if err := b.drop(ctx, f, at); err != nil {
		return err
	}
	f.noteData(at)
	return f.put(ctx, p, at.Off)
}

// writePart takes over a part of a window.
func (b *buffers) writePart(ctx context.Context, key windowKey, p []byte, part block.Range) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	w, err := b.window(ctx, key)
	if err != nil {
		return err
	}
	if w.buf == nil {
		w.buf = b.memory()
	}
	copy(w.buf[part.Off-w.off():], p)
	w.zero.Remove(part)
	w.data.Add(part)
	key.f.noteData(part)
	b.written(w)
	return nil
}

// zero takes over that a range is to read as zero. Whole windows are cleared at once: one request does for any number of them.
func (b *buffers) zero(ctx context.Context, f *pageFile, r block.Range) error {
	whole := block.Range{Off: block.RoundUp(r.Off, window)}
	whole.Len = r.End()/window*window - whole.Off
	if whole.Len <= 0 {
		return b.zeroParts(ctx, f, r)
	}
	if err := b.zeroParts(ctx, f, block.Range{Off: r.Off, Len: whole.Off - r.Off}); err != nil {
		return err
	}
	if err := b.drop(ctx, f, whole); err != nil {
		return err
	}
	if !f.isZero(whole) {
		if err := f.clear(ctx, whole); err != nil {
			return err
		}
		f.noteZero(whole)
	}
	return b.zeroParts(ctx, f, block.Range{Off: whole.End(), Len: r.End() - whole.End()})
}

func (b *buffers) zeroParts(ctx context.Context, f *pageFile, r block.Range) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return each(r, func(n int64, part block.Range) error {
		key := windowKey{f, n}
		if b.windows[key] == nil && f.isZero(part) {
			return f.failed()
		}
		w, err := b.window(ctx, key)
		if err != nil {
			return err
		}
		w.data.Remove(part)
		w.zero.Add(part)
		b.written(w)
		return nil
	})
}

// window returns a window that is not being sent. b.mu is held, and given up while it has to wait. New windows are given in the
// order in which they were asked for: else a copy goes far ahead of a piece whose writer is never the first to wake up, and has
// to do all of that again when it is interrupted.
func (b *buffers) window(ctx context.Context, key windowKey) (*windowBuf, error) {
	queued := false
	defer func() {
		if queued {
			b.queue = slices.DeleteFunc(b.queue, func(k *windowKey) bool { return k == &key })
			b.changed.Broadcast() // who is the next may go on
		}
	}()
	for {
		if err := key.f.failed(); err != nil {
			return nil, err
		}
		w := b.windows[key]
		switch {
		case w == nil && b.room(key.f) && (len(b.queue) == 0 || b.queue[0] == &key):
			b.made++
			w = &windowBuf{key: key, number: b.made}
			b.windows[key] = w
			return w, nil
		case w != nil && !w.sending:
			return w, nil
		case w == nil && !b.room(key.f) && !b.sendingAny(): // else there is a place as soon as one was sent, and what waits may yet become full
			b.sendFirst()
		}
		if w == nil && !queued {
			b.queue, queued = append(b.queue, &key), true
		}
		if err := b.wait(ctx); err != nil {
			return nil, err
		}
	}
}

// room says whether there may be one more window: a few more than requests can be under way, and not far ahead of the oldest one
// that was not sent yet. What was sent after that one is sent again when a copy is interrupted.
func (b *buffers) room(f *pageFile) bool {
	most := min(maxWindows, f.s.gate.places()+2)
	first := b.first()
	return first == nil || len(b.windows) < most && b.made-first.number+1 < uint64(most)
}

// first is the window that was made first of those that there are; nil: there are none.
func (b *buffers) first() (first *windowBuf) {
	for _, w := range b.windows {
		if first == nil || w.number < first.number {
			first = w
		}
	}
	return first
}

// sendFirst sends the window that all others wait for.
func (b *buffers) sendFirst() {
	if w := b.first(); w != nil && !w.sending {
		b.send(w)
	}
}

// wait waits until a window was sent.
func (b *buffers) wait(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.changed.Broadcast()
	})
	defer stop()
	b.changed.Wait()
	return ctx.Err()
}

func (b *buffers) memory() []byte {
	if n := len(b.free); n > 0 {
		buf := b.free[n-1]
		b.free = b.free[:n-1]
		return buf
	}
	return make([]byte, window)
}

// written sends the window when it is full, and the oldest when too many wait.
func (b *buffers) written(w *windowBuf) {
	b.tick++
	w.tick = b.tick
	if w.data.Bytes()+w.zero.Bytes() == window {
		b.send(w)
	}
	idle := 0
	for _, o := range b.windows {
		if !o.sending {
			idle++
		}
	}
	if idle > maxIdle {
		b.sendOldest()
	}
}

func (b *buffers) sendingAny() bool {
	for _, w := range b.windows {
		if w.sending {
			return true
		}
	}
	return false
}

func (b *buffers) sendOldest() {
	var oldest *windowBuf
	for _, w := range b.windows {
		if !w.sending && (oldest == nil || w.tick < oldest.tick) {
			oldest = w
		}
	}
	if oldest != nil {
		b.send(oldest)
	}
}

func (b *buffers) send(w *windowBuf) {
	w.sending = true
	go func() {
		err := w.sendAll(w.key.f.life)
		b.mu.Lock()
		defer b.mu.Unlock()
		w.key.f.fails(err)
		b.remove(w)
	}()
}

func (b *buffers) remove(w *windowBuf) {
	delete(b.windows, w.key)
	if w.buf != nil {
		b.free = append(b.free, w.buf)
		w.buf = nil
	}
	b.changed.Broadcast()
}

// settle returns when everything that was written in a range was sent.
func (b *buffers) settle(ctx context.Context, f *pageFile, r block.Range) error {
	return b.until(ctx, f, r, func(w *windowBuf) { b.send(w) })
}

// drop forgets what is to be written in a range, which consists of whole windows.
func (b *buffers) drop(ctx context.Context, f *pageFile, r block.Range) error {
	return b.until(ctx, f, r, b.remove)
}

// until does something to all windows in a range that are not being sent, and returns when none of those that there are now is
// left. What is written meanwhile is not waited for: it may never end.
func (b *buffers) until(ctx context.Context, f *pageFile, r block.Range, do func(*windowBuf)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var here []*windowBuf
	for _, w := range b.windows {
		if w.key.f == f && !r.Intersect(block.Range{Off: w.off(), Len: window}).Empty() {
			here = append(here, w)
		}
	}
	for _, w := range here {
		if !w.sending {
			do(w)
		}
	}
	for _, w := range here {
		for b.windows[w.key] == w {
			if err := b.wait(ctx); err != nil {
				return err
			}
		}
	}
	return f.failed()
}

// discard gives up what is to be written to a blob, and returns when nothing is under way any more.
func (b *buffers) discard(f *pageFile) {
	f.end()
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		found := false
		for _, w := range b.windows {
			if w.key.f != f {
				continue
			}
			if w.sending {
				found = true
			} else {
				b.remove(w)
			}
		}
		if !found {
			return
		}
		b.changed.Wait()
	}
}

// request is one of those that a window becomes.
type request struct {
	block.Range
	zero bool
	gaps []block.Range // that have to be read before
}

// plan makes requests of what is to be written: ranges of data whose gap is at most gapMost become one, when the gap is
// known to be zero, or when it takes part in at least readPays such gaps in a row, which are read then. Zeros that are not
// sent with data are cleared. isZero says of what it is known that it is zero.
func plan(data, zero *block.Set, isZero func(block.Range) bool) []request {
	var out []request
	for _, g := range joined(data, zero, isZero) {
		out = append(out, g...)
	}
	covered := new(block.Set)
	for _, q := range out {
		covered.Add(q.Range)
	}
	rest := block.NewSet()
	for r := range zero.All() {
		rest.Add(r)
	}
	for r := range covered.All() {
		rest.Remove(r)
	}
	for r := range rest.All() {
		if !isZero(r) {
			out = append(out, request{Range: r, zero: true})
		}
	}
	return out
}

// joined makes groups of the ranges whose gaps are short, and of each the cheaper requests.
func joined(data, zero *block.Set, isZero func(block.Range) bool) [][]request {
	var out [][]request
	var group []block.Range
	end := func() {
		if len(group) > 0 {
			out = append(out, cheapest(group, zero, isZero))
		}
		group = nil
	}
	for r := range data.All() {
		if n := len(group); n > 0 && r.Off-group[n-1].End() > gapMost {
			end()
		}
		group = append(group, r)
	}
	end()
	return out
}

// cheapest is the requests for ranges with short gaps.
func cheapest(group []block.Range, zero *block.Set, isZero func(block.Range) bool) []request {
	var unread []block.Range
	split := []request{{Range: group[0]}}
	for _, r := range group[1:] {
		last := &split[len(split)-1]
		gap := unknown(block.Range{Off: last.End(), Len: r.Off - last.End()}, zero, isZero)
		if len(gap) == 0 {
			last.Len = r.End() - last.Off
			continue
		}
		unread = append(unread, gap...)
		split = append(split, request{Range: r})
	}
	if len(split)-1 < readPays {
		return split
	}
	return []request{{Range: block.Range{Off: group[0].Off, Len: group[len(group)-1].End() - group[0].Off}, gaps: unread}}
}

// unknown is what of a range is neither zero nor to be zero.
func unknown(r block.Range, zero *block.Set, isZero func(block.Range) bool) []block.Range {
	rest := block.NewSet(r)
	for z := range zero.All() {
		rest.Remove(z)
	}
	var out []block.Range
	for p := range rest.All() {
		if !isZero(p) {
			out = append(out, p)
		}
	}
	return out
}

// sendAll sends a window.
func (w *windowBuf) sendAll(ctx context.Context) error {
	f := w.key.f
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, q := range plan(&w.data, &w.zero, f.isZero) {
		if q.zero {
			g.Go(func() error { return errors.Join(f.clear(ctx, q.Range)) })
			continue
		}
		w.fill(q)
		g.Go(func() error {
			if err := w.readGaps(ctx, q); err != nil {
				return err
			}
			return f.put(ctx, w.buf[q.Off-w.off():][:q.Len], q.Off)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for r := range w.zero.All() {
		f.noteZero(r)
	}
	for r := range w.data.All() {
		f.noteData(r)
	}
	return nil
}

// fill makes zeros of all of a request that is not data.
func (w *windowBuf) fill(q request) {
	rest := block.NewSet(q.Range)
	for r := range w.data.All() {
		rest.Remove(r)
	}
	for r := range rest.All() {
		clear(w.buf[r.Off-w.off():][:r.Len])
	}
}

// readGaps reads the gaps of a request, with what lies between them, in one.
func (w *windowBuf) readGaps(ctx context.Context, q request) error {
	if len(q.gaps) == 0 {
		return nil
	}
	first, last := q.gaps[0].Off, q.gaps[len(q.gaps)-1].End()
	return w.key.f.readSome(ctx, last-first, first, func(r io.Reader) error {
		at := first
		for _, g := range q.gaps {
			if _, err := io.CopyN(io.Discard, r, g.Off-at); err != nil {
				return err
			}
			if _, err := io.ReadFull(r, w.buf[g.Off-w.off():][:g.Len]); err != nil {
				return err
			}
			at = g.End()
		}
		return nil
	})
}
