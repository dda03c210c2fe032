package replicate

import (
	"context"
	"errors"
	"slices"
	"sync"

	"sitrep/internal/block"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
	"sitrep/internal/track"
)

// Remembered is what the tracker of the deltas knows, for looking only.
type Remembered interface {
	track.Tracker
	// Sums calls f for every block sum of a disk at the tracker's position that is not zero, in ascending order.
	Sums(ctx context.Context, disk string, f func(i int64, s sums.Sum) error) error
}

// CompareSource reads the source once, as of one moment, and compares it with the block sums of the replica. It needs a Tracker
// that nothing else uses, what that knew before is forgotten, and what the deltas go by, which is left alone.
//
// A block that differs is no difference of source and replica when the replica has what the source had at the position of the deltas: it
// was written since, and the next delta brings it (Verified.Newer). The same holds for what waits in change logs. Everything
// else is an error with the code Difference, which marks the VM: the replica has something that the source never had there, or
// the source was changed in a way that deltas do not notice. Together with Verify it proves that the replica is the source as of
// that moment, but for what is Newer.
func (j *Job) CompareSource(ctx context.Context, deltas Remembered) (found []Verified, err error) {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil {
		return nil, err
	}
	if st.Applied.IsZero() || st.Applying != nil || st.Phase.Away() {
		return nil, wrongState(st, "verify --against-source")
	}
	if err := joinsNext(st, "verify --against-source"); err != nil {
		return nil, err
	}
	if err := j.rebase(ctx, st); err != nil {
		return nil, err
	}
	c := &comparison{Job: j, state: st, deltas: deltas, differs: map[string]*block.Set{}}
	if err := c.read(ctx); err != nil {
		return c.found, err
	}
	if err := c.judge(ctx); err != nil {
		return c.found, fault.In(err, j.VM, "")
	}
	v := &verification{job: j, state: st, found: c.found}
	e := v.difference()
	if e == nil {
		return c.found, nil
	}
	e.Msg = "source and replica differ: " + e.Msg
	if err := j.Mark(context.WithoutCancel(ctx), e.Code, e.Error(), j.Now().UTC()); err != nil {
		return c.found, errors.Join(e, err)
	}
	return c.found, e
}

// comparison is one run of CompareSource.
type comparison struct {
	*Job
	state   replica.State
	deltas  Remembered
	differs map[string]*block.Set // of the source as it was read, from the replica
	found   []Verified
}

// read compares the source with the replica, in one cut.
func (c *comparison) read(ctx context.Context) (err error) {
	cut, err := c.Tracker.Cut(ctx, c.state.Applied)
	if err != nil {
		return fault.In(err, c.VM, "")
	}
	defer func() { err = errors.Join(err, cut.Close()) }()
	for _, d := range cut.Disks() {
		v, err := c.disk(ctx, d)
		if err != nil {
			return fault.In(err, c.VM, d.Name())
		}
		c.found = append(c.found, v)
	}
	return fault.In(cut.Check(ctx), c.VM, "")
}

func (c *comparison) disk(ctx context.Context, d track.CutDisk) (Verified, error) {
	task := "compare " + d.Name()
	c.Meter.Begin(task, d.Size(), 0)
	defer c.Meter.End(task)
	var mu sync.Mutex
	differs := new(block.Set)
	stats, err := d.Scan(ctx, c.scanOptions(task), func(_ context.Context, ch track.Change) error {
		mu.Lock()
		defer mu.Unlock()
		differs.Add(ch.Range)
		return nil
	})
	c.differs[d.Name()] = differs
	return Verified{Name: d.Name(), Read: stats.Scanned, Cursor: d.Size(), Complete: err == nil}, err
}

// judge tells what differs because the VM has written it from what differs for another reason.
func (c *comparison) judge(ctx context.Context) error {
	if !c.any() {
		return nil
	}
	at := c.deltas.Position()
	if at.IsZero() {
		return fault.New(fault.PositionLost, "source and replica differ, and this site does not know what the VM has written since the last delta")
	}
	waiting, err := c.waiting(ctx, at)
	if err != nil {
		return err
	}
	unseen, err := c.unseen(ctx, at)
	if err != nil {
		return err
	}
	for i := range c.found {
		v := &c.found[i]
		d, newer := *c.state.Disk(v.Name), c.differs[v.Name]
		wrong := block.NewSet(slices.Collect(newer.All())...)
		if !unseen[v.Name] {
			if wrong, err = c.wrong(ctx, d, newer); err != nil {
				return fault.In(err, "", v.Name)
			}
		}
		if set := waiting[v.Name]; set != nil {
			remove(wrong, set)
		}
		remove(newer, wrong)
		v.Differs, v.Newer = runs(wrong), runs(newer)
	}
	return nil
}

func remove(from, what *block.Set) {
	for r := range what.All() {
		from.Remove(r)
	}
}

func runs(s *block.Set) (list []Different) {
	for r := range s.All() {
		list = append(list, Different{Off: r.Off, Len: r.Len})
	}
	return list
}

func (c *comparison) any() bool {
	for _, s := range c.differs {
		if _, some := s.Next(block.Range{Len: maxOffset}); some {
			return true
		}
	}
	return false
}

const maxOffset = 1 << 62

// waiting is what the change logs change that lead from what the replica has applied to the position of the deltas.
func (c *comparison) waiting(ctx context.Context, at hrl.Pos) (map[string]*block.Set, error) {
	out := map[string]*block.Set{}
	steps, err := c.steps(c.state, c.state.Applied, at)
	for _, s := range steps {
		for disk, l := range s.logs {
			if out[disk] == nil {
				out[disk] = new(block.Set)
			}
			if err := c.ranges(ctx, l, out[disk]); err != nil {
				return nil, fault.In(err, "", disk)
			}
		}
	}
	return out, err
}

func (c *comparison) ranges(ctx context.Context, l localLog, into *block.Set) error {
	f, err := c.FS.Open(l.path)
	if err != nil {
		return err
	}
	defer f.Close()
	log, err := hrl.Open(f)
	if err != nil {
		return err
	}
	for rec, err := range log.Records(ctx) {
		if err != nil {
			return err
		}
		into.Add(rec.Range)
	}
	return nil
}

// unseen is the disks that a delta would not read, because nothing tells that they were written to since the last one. It is asked when
// the source was read: the VM may go on writing.
func (c *comparison) unseen(ctx context.Context, at hrl.Pos) (map[string]bool, error) {
	cut, err := c.deltas.Cut(ctx, at)
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, d := range cut.Disks() {
		out[d.Name()] = d.Untouched()
	}
	return out, cut.Close()
}

// wrong is the blocks of a set in which the replica has not what the source had at the position of the deltas.
func (c *comparison) wrong(ctx context.Context, d replica.Disk, differs *block.Set) (*block.Set, error) {
	pages, err := c.Replica.Disk(ctx, d)
	if err != nil {
		return nil, err
	}
	defer pages.Close()
	w := &walker{of: d, pages: pages, wrong: new(block.Set)}
	for r := range differs.All() {
		if r = r.Intersect(block.Range{Len: d.Size}); !r.Empty() { // what the disk has grown by is new
			w.left = append(w.left, block.Range{Off: r.Off / d.BlockSize, Len: block.Count(r.Len, d.BlockSize)})
		}
	}
	err = c.deltas.Sums(ctx, d.Name, func(i int64, s sums.Sum) error { return w.until(ctx, i, s) })
	if err == nil {
		err = w.until(ctx, maxOffset, sums.Sum{})
	}
	return w.wrong, err
}

// walker goes over blocks in ascending order, and compares their sums with those of the replica.
type walker struct {
	of    replica.Disk
	pages replica.Pages
	left  []block.Range // block numbers
	wrong *block.Set    // guest bytes

	window []sums.Sum // of the replica, from first on
	first  int64
}

// windowSums is how many sums of the replica are loaded at once.
const windowSums = 4096

// until compares the blocks before i, whose sums are zero, and block i.
func (w *walker) until(ctx context.Context, i int64, s sums.Sum) error {
	for len(w.left) > 0 && w.left[0].Off <= i {
		at := w.left[0].Off
		if w.left[0].Off, w.left[0].Len = at+1, w.left[0].Len-1; w.left[0].Len == 0 {
			w.left = w.left[1:]
		}
		var want sums.Sum
		if at == i {
			want = s
		}
		has, err := w.sum(ctx, at)
		if err != nil {
			return err
		}
		if has != want {
			w.wrong.Add(block.Nth(at, w.of.BlockSize, w.of.Size))
		}
	}
	return nil
}

func (w *walker) sum(ctx context.Context, i int64) (sums.Sum, error) {
	if k := i - w.first; k >= 0 && k < int64(len(w.window)) {
		return w.window[k], nil
	}
	w.first = i
	w.window = make([]sums.Sum, min(windowSums, block.Count(w.of.Size, w.of.BlockSize)-i))
	err := w.pages.LoadSums(ctx, i, w.window)
	return w.window[0], err
}
