package replicate

import (
	"context"
	"errors"
	"math"
	"sync"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
	"sitrep/internal/track"
)

// checkpoint is how often the initial copy makes durable what it has done and says so in the ledger: so much is copied
// again, at most, after an interruption. Pace.Checkpoint may make it more often.
const checkpoint = 5 * time.Second

// Seed makes the initial copy, one disk after the other, and goes on where the ledger says that an earlier one stopped.
// Disks may change meanwhile: what the replica holds is known block by block from its own sums, and the first delta
// brings what differs. When it returns, Applied is set; Finalize completes the protection.
func (j *Job) Seed(ctx context.Context) (results []DiskResult, err error) {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil {
		return nil, err
	}
	if st.Phase != replica.Seeding {
		return nil, wrongState(st, "initial replication")
	}
	if !st.Applied.IsZero() {
		return nil, nil // complete; only Finalize is missing
	}
	cut, err := j.Tracker.Cut(ctx, hrl.Pos{})
	if err != nil {
		return nil, fault.In(err, j.VM, "")
	}
	defer func() { err = errors.Join(err, cut.Close()) }()
	fresh := true
	for i := range st.Disks {
		fresh = fresh && st.Disks[i].Seeded == 0
		s := &seeding{job: j, name: st.Disks[i].Name, state: &st}
		err := s.run(ctx, cut)
		results = append(results, s.result) // also what an interrupted copy has sent
		if err != nil {
			return results, fault.In(err, j.VM, st.Disks[i].Name)
		}
	}
	return results, j.seeded(ctx, st, cut, fresh)
}

// seeded records that the initial copy is complete. It is the VM's disks as of one moment if all of it was read from one
// cut that held still.
func (j *Job) seeded(ctx context.Context, st replica.State, cut track.Cut, fresh bool) error {
	at := hrl.Pos{}.Next()
	still := fresh && cut.Check(ctx) == nil
	st.Applied, st.Received, st.Consistent = at, at, still
	if still {
		st.AsOf = cut.At()
	}
	st, err := j.Replica.Ledger().Save(ctx, st)
	if err != nil {
		return err
	}
	if err := j.adopt(ctx, st); err != nil {
		return fault.In(err, j.VM, "")
	}
	if still {
		return fault.In(cut.Confirm(ctx), j.VM, "")
	}
	return nil
}

// seeding is the initial copy of one disk.
type seeding struct {
	job   *Job
	cut   track.CutDisk
	name  string
	state *replica.State

	pages  replica.Pages
	front  frontier
	result DiskResult

	enough chan struct{} // told, without waiting, when a checkpoint is due
	lead   *lead

	mu      sync.Mutex // guards result and unsaved, and serializes checkpoints
	unsaved int64      // bytes written since a checkpoint was last due for their number
}

// disk is the entry of the disk, which is one of the VM or is to join it.
func (s *seeding) disk() *replica.Disk {
	if d := s.state.Joins(s.name); d != nil {
		return d
	}
	return s.state.Disk(s.name)
}

func (s *seeding) run(ctx context.Context, cut track.Cut) (err error) {
	began := time.Now()
	d := s.disk()
	if s.cut = diskOf(cut, d.Name); s.cut == nil {
		return fault.New(fault.DiskMissing, "the site file has no disk of this name any more").At(d.Source)
	}
	if s.cut.Size() < d.Size {
		return fault.New(fault.DiskShrunk, "the disk has %d bytes, it had %d when protection was enabled",
			s.cut.Size(), d.Size).At(d.Source)
	}
	if s.pages, err = s.job.Replica.Disk(ctx, *d); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.pages.Close()) }()
	s.result.Name = d.Name
	if err := s.prepare(ctx); err != nil {
		return err
	}
	if d.Seeded == d.Size && d.Seal != nil {
		return nil
	}
	if err := s.copy(ctx); err != nil {
		return err
	}
	s.result.Took = time.Since(began)
	return s.finish(ctx)
}

func diskOf(cut track.Cut, name string) track.CutDisk {
	for _, d := range cut.Disks() {
		if d.Name() == name {
			return d
		}
	}
	return nil
}

// prepare grows the pages to the size of the source, and clears what an interrupted copy left behind its checkpoint: the
// source may be zero there by now, and zeros are not sent.
func (s *seeding) prepare(ctx context.Context) error {
	d := s.disk()
	if s.cut.Size() > d.Size {
		// The last block may have been short, and its sum is of the short one: it is copied again.
		d.Seeded = min(d.Seeded, d.Size-d.Size%d.BlockSize)
		if err := s.pages.Grow(ctx, s.cut.Size()); err != nil {
			return err
		}
		d.Size, d.Seal = s.cut.Size(), nil
		st, err := s.job.Replica.Ledger().Save(ctx, *s.state)
		if err != nil {
			return err
		}
		*s.state = st
		d = s.disk()
	}
	if d.Seeded == d.Size {
		return nil
	}
	if err := s.pages.ZeroAt(ctx, d.Seeded, d.Size-d.Seeded); err != nil {
		return err
	}
	first := d.Seeded / d.BlockSize
	return s.pages.ClearSums(ctx, first, block.Count(d.Size, d.BlockSize)-first)
}

func (s *seeding) copy(ctx context.Context) error {
	d := s.disk()
	task := "copy " + d.Name
	s.front = frontier{at: d.Seeded}
	s.job.Meter.Begin(task, d.Size, d.Seeded)
	defer s.job.Meter.End(task)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	s.enough = make(chan struct{}, 1)
	s.lead = newLead(s.job.pace().lead(), s.due)
	var saver sync.WaitGroup
	saver.Go(func() { s.saveNowAndThen(ctx, stop, cancel) })

	o := s.job.scanOptions(task)
	o.From, o.Unit = d.Seeded, max(o.Unit, seedUnit)
	count := o.Done
	o.Done = func(r block.Range) {
		s.front.done(r)
		s.lead.advanced()
		count(r)
	}
	stats, err := s.cut.Scan(ctx, o, s.put)
	close(stop)
	saver.Wait()
	if cause := context.Cause(ctx); cause != nil && err != nil {
		err = cause // of a checkpoint that failed, or of the interruption
	}
	s.result.Scanned, s.result.Changed = stats.Scanned, stats.Changed
	if err == nil {
		return nil
	}
	// Keep what is done. The error that stopped the copy is the one to report.
	if serr := s.save(context.WithoutCancel(ctx)); serr != nil && !errors.Is(err, serr) {
		s.job.Log.Debug("the last checkpoint failed too", "vm", s.job.VM, "disk", d.Name, "error", serr)
	}
	return err
}

// put writes one run of blocks into the new replica. Zeros are there already.
func (s *seeding) put(ctx context.Context, ch track.Change) error {
	if ch.Zero {
		return nil
	}
	if err := s.lead.enter(ctx, ch.Range); err != nil {
		return err
	}
	if err := s.pages.WriteAt(ctx, ch.Data, ch.Off); err != nil {
		return err
	}
	if err := s.pages.StoreSums(ctx, ch.Off/s.cut.BlockSize(), ch.Sums); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.result.Sent += ch.Len
	s.result.Blocks += int64(len(ch.Sums))
	if s.unsaved += ch.Len; s.unsaved >= s.job.pace().Checkpoint {
		s.unsaved = 0
		s.due()
	}
	return nil
}

// due asks for a checkpoint.
func (s *seeding) due() {
	select {
	case s.enough <- struct{}{}:
	default: // one is due already
	}
}

func (s *seeding) saveNowAndThen(ctx context.Context, stop <-chan struct{}, fail context.CancelCauseFunc) {
	tick := time.NewTicker(checkpoint)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.enough:
		}
		if err := s.save(ctx); err != nil {
			fail(err)
			return
		}
	}
}

// save is a checkpoint: everything before the frontier is made durable, then the ledger says so.
func (s *seeding) save(ctx context.Context) error {
	at := s.front.reached()
	if at <= s.disk().Seeded {
		return nil
	}
	if err := s.pages.Flush(ctx); err != nil {
		return err
	}
	if err := s.record(ctx, at, nil, ""); err != nil {
		return err
	}
	s.lead.recorded(at)
	return nil
}

func (s *seeding) finish(ctx context.Context) error {
	if err := s.pages.Flush(ctx); err != nil {
		return err
	}
	seal, err := replica.DiskSums{Pages: s.pages, Of: *s.disk()}.Seal(ctx)
	if err != nil {
		return err
	}
	stamp, err := s.pages.Stamp(ctx)
	if err != nil {
		return err
	}
	return s.record(ctx, s.disk().Size, &seal, stamp)
}

func (s *seeding) record(ctx context.Context, seeded int64, seal *sums.Seal, stamp string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.disk()
	d.Seeded, d.Seal, d.Stamp = seeded, seal, stamp
	st, err := s.job.Replica.Ledger().Save(ctx, *s.state)
	if err != nil {
		return err
	}
	*s.state = st
	return nil
}

// seedUnit is the transfer size of an initial copy in bytes: on a new file larger ones than a delta's pay.
const seedUnit = 2 << 20

// scanOptions is how a disk is read, reporting to a task of the meter.
func (j *Job) scanOptions(task string) track.Options {
	p := j.pace()
	return track.Options{Unit: p.Unit, Tasks: p.Tasks, Done: func(r block.Range) { j.Meter.Add(task, r.Len) }}
}

// frontier is how far a copy is done without a gap, when its pieces end in any order.
type frontier struct {
	mu    sync.Mutex
	at    int64
	ahead block.Set
}

func (f *frontier) done(r block.Range) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ahead.Add(r)
	if run, ok := f.ahead.Next(block.Range{Off: f.at, Len: math.MaxInt64 - f.at}); ok && run.Off == f.at {
		f.at = run.End()
		f.ahead.Remove(block.Range{Len: f.at})
	}
}

func (f *frontier) reached() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.at
}
