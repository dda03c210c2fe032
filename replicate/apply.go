package replicate

import (
	"context"
	"errors"
	"io/fs"
	"math"

	"golang.org/x/sync/errgroup"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
)

// Apply brings the pages from the applied position to the received one, cut after cut, from the shelf alone. It returns
// how many cuts were applied. A VM that is paused or marked for resynchronization may have logs on the shelf that still
// lead on: they are applied. An error of class Resync marks the VM before it is returned.
func (j *Job) Apply(ctx context.Context) (int, error) {
	n, err := j.apply(ctx)
	return n, j.mark(ctx, err)
}

// Finish is Apply in the name of a failover that has taken over: what the run that it took over from has half done, and
// what has arrived since, is brought into the pages. It is refused in every other phase than FailoverStarted.
func (j *Job) Finish(ctx context.Context) (int, error) {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil {
		return 0, err
	}
	if st.Phase != replica.FailoverStarted {
		return 0, wrongState(st, "finishing the apply for a failover")
	}
	return j.applyAll(ctx, st)
}

func (j *Job) apply(ctx context.Context) (int, error) {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil {
		return 0, err
	}
	if st.Phase == replica.Retired || st.Phase == replica.Resynchronizing || st.Phase.Away() {
		return 0, replicating(st, "apply")
	}
	return j.applyAll(ctx, st)
}

func (j *Job) applyAll(ctx context.Context, st replica.State) (_ int, err error) {
	if st.Applied.IsZero() {
		return 0, fault.New(fault.WrongState, "the initial replication is not complete").Of(j.VM, "")
	}
	n := 0
	for asked := false; len(st.Pending) > 0; n++ {
		next, err := j.applyOne(ctx, st, st.Pending[0])
		if fault.Is(err, fault.ReplicaChanged) && st.Applying == nil && next.Applying == nil && !asked {
			asked = true
			if st, err = j.known(ctx, st); err == nil {
				next, err = j.applyOne(ctx, st, st.Pending[0])
			}
		}
		if st = next; err != nil {
			return n, fault.In(err, j.VM, "")
		}
	}
	return n, fault.In(j.tidy(ctx, st), j.VM, "")
}

// tidy removes from the store what nothing needs any more.
func (j *Job) tidy(ctx context.Context, st replica.State) error {
	names, err := j.Replica.Shelf().Names(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, seq, ok := hrl.ParseShelfName(name); ok && seq <= st.Applied.Seq {
			if err := j.Replica.Shelf().Remove(ctx, name); err != nil {
				return err
			}
		}
	}
	err = j.Replica.Points().Sweep(ctx, st)
	if fault.Is(err, fault.PointMissing) { // that is no reason to take no new points
		j.Log.Warn("a recovery point is lost", "vm", j.VM, "error", err)
		_, _, err = j.dropLost(ctx, st)
	}
	return err
}

// dropLost takes the recovery points out of the ledger that something else removed from the store, where the store can tell. It
// returns the ledger as it is then, and those that it found; see replica.DropLost.
func (j *Job) dropLost(ctx context.Context, st replica.State) (replica.State, []replica.Point, error) {
	st, lost, err := replica.DropLost(ctx, j.Replica, st)
	return st, lost, j.sayLost(lost, err)
}

// DropUnproven takes the recovery points out of the ledger that are missing or cannot be proved; see replica.DropUnproven.
func (j *Job) DropUnproven(ctx context.Context) (replica.State, []replica.Point, error) {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil {
		return st, nil, err
	}
	st, lost, err := replica.DropUnproven(ctx, j.Replica, st)
	return st, lost, j.sayLost(lost, err)
}

func (j *Job) sayLost(lost []replica.Point, err error) error {
	for _, p := range lost {
		j.Log.Warn("a recovery point is lost: something else removed or replaced what it is seen through in the store", "vm", j.VM, "point", p.ID)
	}
	return fault.In(err, j.VM, "")
}

// diskStep is one disk of a cut that is being applied.
type diskStep struct {
	disk  *replica.Disk
	pages replica.Pages
	log   *shelfLog
	size  int64 // guest bytes at the end of the step
	seal  sums.Seal
	stamp string
}

func (s *diskStep) close() error {
	var err error
	if s.log != nil {
		err = s.log.file.Close()
	}
	if s.pages != nil {
		err = errors.Join(err, s.pages.Close())
	}
	return err
}

// applyOne moves the pages of all disks over one cut. See the package comment for the order.
func (j *Job) applyOne(ctx context.Context, st replica.State, seg replica.Segment) (_ replica.State, err error) {
	redo := st.Applying != nil
	steps := make([]*diskStep, len(st.Disks))
	defer func() {
		for _, s := range steps {
			if s != nil {
				err = errors.Join(err, s.close())
			}
		}
	}()
	for i := range st.Disks {
		if steps[i], err = j.openStep(ctx, st, seg, &st.Disks[i], redo); err != nil {
			return st, fault.In(err, j.VM, st.Disks[i].Name)
		}
	}
	if err := j.makeSure(ctx, st, seg, steps); err != nil {
		return st, err
	}
	if !redo {
		found, err := j.assess(ctx, st, seg, steps)
		if err != nil {
			return st, err
		}
		if found != nil {
			j.Log.Warn("a massive change: the recovery point before it is held", "vm", j.VM, "disk", found.Disk, "changed_bytes", found.Changed,
				"of", found.Data, "noise_percent", found.Noise)
			st.HoldBefore(*found)
		}
		st.Applying = &replica.Span{From: seg.From, To: seg.To}
		if st, err = j.Replica.Ledger().Save(ctx, st); err != nil {
			return st, err
		}
	}
	for i := range steps {
		steps[i].disk = &st.Disks[i] // Save returned a new state
		if err := j.applyDisk(ctx, steps[i], redo); err != nil {
			return st, fault.In(err, j.VM, steps[i].disk.Name)
		}
	}
	if err := flushSteps(ctx, steps); err != nil {
		return st, err
	}
	return j.applied(ctx, st, seg, steps)
}

// makeSure verifies the logs to their last byte and, because both are mostly waiting for disks, at the same time preserves
// what they will overwrite. No page is touched.
func (j *Job) makeSure(ctx context.Context, st replica.State, seg replica.Segment, steps []*diskStep) error {
	overwritten := make(map[string]*block.Set, len(steps))
	for _, s := range steps {
		set, err := overwrites(ctx, s)
		if err != nil {
			return fault.In(err, j.VM, s.disk.Name)
		}
		overwritten[s.disk.Name] = set
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return verifySteps(gctx, steps) })
	g.Go(func() error { return j.Replica.Points().Preserve(gctx, st, seg.To, overwritten, st.Applying != nil) })
	return g.Wait()
}

// openStep opens the pages and the log of a disk, and makes sure that nothing else wrote to the pages.
func (j *Job) openStep(ctx context.Context, st replica.State, seg replica.Segment, d *replica.Disk, redo bool) (*diskStep, error) {
	s := &diskStep{disk: d, size: seg.Sizes[d.Name]}
	var err error
	if s.pages, err = j.Replica.Disk(ctx, *d); err != nil {
		return nil, err
	}
	if !redo {
		err = unchangedPages(ctx, s.pages, *d)
	}
	if err == nil {
		s.log, err = openShelf(ctx, j.Replica, st, d.Name, seg.Span)
	}
	if err == nil && (s.log.Info().Identity.Size != s.size || s.size < d.Size) {
		err = fault.New(fault.LogForeign, "the log is for a disk of %d bytes, the ledger expects %d and the replica has %d",
			s.log.Info().Identity.Size, s.size, d.Size).At(s.log.path)
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// unchangedPages says whether the pages are as the ledger left them.
func unchangedPages(ctx context.Context, pages replica.Pages, d replica.Disk) error {
	if d.Stamp == "" {
		return nil
	}
	stamp, err := pages.Stamp(ctx)
	if err != nil {
		return err
	}
	if stamp != d.Stamp {
		return fault.New(fault.ReplicaChanged, "the replica was written to by something other than sitrep").At(pages.Path())
	}
	return nil
}

// verifySteps verifies the logs of all disks to their last byte, before any page is touched.
func verifySteps(ctx context.Context, steps []*diskStep) error {
	for _, s := range steps {
		if err := s.log.Verify(ctx); err != nil {
			return fault.In(err, "", s.disk.Name)
		}
	}
	return nil
}

// overwrites is the ranges of the disk, in whole blocks, that the log writes to and that exist before it.
func overwrites(ctx context.Context, s *diskStep) (*block.Set, error) {
	set := new(block.Set)
	whole := block.Range{Len: s.disk.Size}
	for rec, err := range s.log.Records(ctx) {
		if err != nil {
			return nil, err
		}
		set.Add(rec.Range.Outward(s.disk.BlockSize).Intersect(whole))
	}
	return set, nil
}

// applyDisk writes the log of one disk into its pages and sums. Nothing is durable before the flush that follows.
func (j *Job) applyDisk(ctx context.Context, s *diskStep, redo bool) error {
	task := "apply " + s.disk.Name
	info := s.log.Info()
	j.Meter.Begin(task, info.DataBytes, 0)
	defer j.Meter.End(task)
	if s.size > s.disk.Size {
		if err := s.pages.Grow(ctx, s.size); err != nil {
			return err
		}
	}
	if s.disk.Seal != nil {
		s.seal = *s.disk.Seal
	}
	copier := newCopier(ctx, j.pace(), s.log.file, s.pages, func(n int64) { j.Meter.Add(task, n) })
	for rec, err := range s.log.Records(ctx) {
		if err == nil {
			err = j.applyRecord(ctx, s, rec, copier)
		}
		if err != nil {
			if werr := copier.wait(); werr != nil {
				return werr // the cause; err is what it led to
			}
			return err
		}
	}
	if err := copier.wait(); err != nil {
		return err
	}
	if redo || s.disk.Seal == nil { // the sums before the step are not known any more
		var err error
		d := *s.disk
		d.Size = s.size
		s.seal, err = replica.DiskSums{Pages: s.pages, Of: d}.Seal(ctx)
		return err
	}
	return nil
}

func (j *Job) applyRecord(ctx context.Context, s *diskStep, rec hrl.Record, c *copier) error {
	bs := s.disk.BlockSize
	first, n := rec.Off/bs, block.Count(rec.End(), bs)-rec.Off/bs
	if rec.Off%bs != 0 || (rec.End()%bs != 0 && rec.End() != s.size) || (!rec.Zero && int64(len(rec.Sums)) != n) {
		return fault.New(fault.LogForeign, "the record %v does not consist of whole blocks of %d bytes", rec.Range, bs).
			AtOff(s.log.path, rec.At)
	}
	if err := unseal(ctx, s, first, n); err != nil {
		return err
	}
	if rec.Zero {
		if err := s.pages.ZeroAt(ctx, rec.Off, rec.Len); err != nil {
			return err
		}
		return s.pages.ClearSums(ctx, first, n)
	}
	for i, sum := range rec.Sums {
		s.seal.Add(first+int64(i), sum)
	}
	if err := s.pages.StoreSums(ctx, first, rec.Sums); err != nil {
		return err
	}
	return c.copy(rec.At, rec.Range)
}

// unseal takes the sums that are about to be replaced out of the seal.
func unseal(ctx context.Context, s *diskStep, first, n int64) error {
	return replica.DiskSums{Pages: s.pages, Of: *s.disk}.In(ctx, first, first+n, func(i int64, sum sums.Sum) error {
		s.seal.Remove(i, sum)
		return nil
	})
}

func flushSteps(ctx context.Context, steps []*diskStep) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, s := range steps {
		g.Go(func() (err error) {
			if err = s.pages.Flush(ctx); err == nil {
				s.stamp, err = s.pages.Stamp(ctx)
			}
			return fault.In(err, "", s.disk.Name)
		})
	}
	return g.Wait()
}

// applied records the new position and its recovery point, in one step.
func (j *Job) applied(ctx context.Context, st replica.State, seg replica.Segment, steps []*diskStep) (replica.State, error) {
	for i, s := range steps {
		d := &st.Disks[i]
		d.Size, d.Seeded, d.Stamp, d.Seal = s.size, s.size, s.stamp, &s.seal
	}
	st.Applied, st.Applying, st.Pending = seg.To, nil, st.Pending[1:]
	st.Consistent, st.AsOf = true, seg.CutAt
	st.AddPoint(st.PointAt(seg.CutAt, seg.AppConsistent), j.Keep)
	return j.Replica.Ledger().Save(ctx, st)
}

// copier copies ranges of a log into pages, several transfers at once. The data of neighbouring records lies together in a
// log, so it is read in large pieces whatever the size of the records.
type copier struct {
	ctx   context.Context
	g     *errgroup.Group
	bufs  chan []byte
	unit  int64
	log   durable.File
	pages replica.Pages
	count func(int64)

	at   int64         // where in the log the ranges that were not begun yet begin
	have int64         // their bytes
	todo []block.Range // and where they belong
}

func newCopier(ctx context.Context, p Pace, log durable.File, pages replica.Pages, count func(int64)) *copier {
	g, gctx := errgroup.WithContext(ctx)
	c := &copier{ctx: gctx, g: g, bufs: make(chan []byte, p.Tasks), unit: p.Unit, log: log, pages: pages, count: count}
	for range p.Tasks {
		c.bufs <- nil // made at first use: a small delta needs few
	}
	return c
}

// copy begins to copy a range of the pages from an offset of the log; errors turn up in a later call or in wait.
func (c *copier) copy(at int64, r block.Range) error {
	for r.Len > 0 {
		if at != c.at+c.have || c.have == c.unit {
			if err := c.begin(); err != nil {
				return err
			}
			c.at = at
		}
		n := min(r.Len, c.unit-c.have)
		c.todo = append(c.todo, block.Range{Off: r.Off, Len: n})
		c.have += n
		at, r = at+n, block.Range{Off: r.Off + n, Len: r.Len - n}
	}
	return nil
}

// begin starts the transfer of what copy has collected.
func (c *copier) begin() error {
	if c.have == 0 {
		return nil
	}
	at, n, todo := c.at, c.have, c.todo
	c.have, c.todo = 0, nil
	select {
	case buf := <-c.bufs:
		c.g.Go(func() error {
			if buf == nil {
				buf = durable.AlignedBuffer(int(c.unit))
			}
			defer func() { c.bufs <- buf }()
			return c.transfer(buf[:n], at, todo)
		})
		return nil
	case <-c.ctx.Done():
		if err := c.g.Wait(); err != nil {
			return err
		}
		return c.ctx.Err()
	}
}

func (c *copier) transfer(buf []byte, at int64, todo []block.Range) error {
	if err := durable.ReadFull(c.log, buf, at); err != nil {
		return err
	}
	for _, r := range todo {
		if err := c.pages.WriteAt(c.ctx, buf[:r.Len], r.Off); err != nil {
			return err
		}
		buf = buf[r.Len:]
		c.count(r.Len)
	}
	return nil
}

// wait ends the copy. It has to be called, whatever went wrong before.
func (c *copier) wait() error {
	if err := c.begin(); err != nil {
		return err
	}
	return c.g.Wait()
}

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// pace fills in what the caller left to us. Measured: transfers of 1 MiB, four at once, keep a disk busy that serves them
// around the page cache.
func (j *Job) pace() Pace {
	p := j.Pace
	if p.Unit == 0 {
		p.Unit = 1 << 20
	}
	if p.Tasks == 0 {
		p.Tasks = 8
	}
	if p.Checkpoint == 0 {
		p.Checkpoint = math.MaxInt64
	}
	return p
}
