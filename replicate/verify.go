package replicate

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
)

// verifyWindow is how many transfers of each task are verified between two looks at the budget, verifyMost how many bytes at the
// most: with large transfers over a slow line, a budget would be over long before.
const (
	verifyWindow = 16
	verifyMost   = 64 << 20
)

// Verified is what Verify found on one disk.
type Verified struct {
	Name    string      `json:"name"`
	Read    int64       `json:"bytes_read"`
	Differs []Different `json:"differs,omitempty"`
	// Newer is of a comparison with the source: what the VM has written since the last delta.
	Newer []Different `json:"not_replicated,omitempty"`
	// Cursor is the guest offset up to which the disk is proved; the whole disk when Complete.
	Cursor   int64 `json:"cursor"`
	Complete bool  `json:"complete"`

	path string // where the disk is, for people
}

// Different is a run of blocks that are not what their sums say.
type Different struct {
	Off int64 `json:"off"`
	Len int64 `json:"len"`
}

// Verify proves the pages against their block sums, and the sums against the seal in the ledger. It begins where the last
// one ended, and ends when all is proved or, with a budget, when that much time is over. Blocks that differ are an error
// with the code Difference, and mark the VM.
func (j *Job) Verify(ctx context.Context, budget time.Duration) ([]Verified, error) {
	return j.VerifyOn(ctx, budget, nil)
}

// VerifyOn is Verify for a run that was ended by its context and goes on: so far is what it returned then. Disks that were complete are not
// read again.
func (j *Job) VerifyOn(ctx context.Context, budget time.Duration, soFar []Verified) ([]Verified, error) {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil {
		return nil, err
	}
	if st.Applied.IsZero() {
		return nil, wrongState(st, "verify")
	}
	if st.Applying != nil {
		return nil, fault.New(fault.WrongState, "an apply was interrupted, the pages are between two positions; run apply first").
			Of(j.VM, "")
	}
	v := &verification{job: j, state: st, before: soFar}
	if budget > 0 {
		v.deadline = j.Now().Add(budget)
	}
	for _, i := range v.order() {
		if err := v.disk(ctx, i); err != nil {
			return v.all(), errors.Join(fault.In(err, j.VM, v.state.Disks[i].Name), v.save(ctx))
		}
	}
	slices.SortFunc(v.found, func(a, b Verified) int { return v.index(a.Name) - v.index(b.Name) })
	if err := v.save(ctx); err != nil {
		return v.found, err
	}
	return v.found, v.verdict()
}

// verification is one run of Verify.
type verification struct {
	job      *Job
	state    replica.State
	deadline time.Time
	began    bool // something was read: a run with the smallest budget gets on
	found    []Verified
	before   []Verified // by the same run, before it stepped aside
}

// all is what was found, with what was found before of disks that this call has not come to.
func (v *verification) all() []Verified {
	out := slices.Clone(v.found)
	for _, b := range v.before {
		if !slices.ContainsFunc(out, func(f Verified) bool { return f.Name == b.Name }) {
			out = append(out, b)
		}
	}
	return out
}

// already is what this run found on a disk before it stepped aside.
func (v *verification) already(disk string) (out Verified) {
	for _, f := range v.before {
		if f.Name == disk {
			out = f
		}
	}
	return out
}

// order is the disks as they are verified: the one that an earlier run has begun comes first, and then the one whose proof is the
// oldest. With budgets that are over before all are done, none waits for ever.
func (v *verification) order() []int {
	begun := func(d *replica.Disk) int {
		if d.VerifyCursor > 0 {
			return 0
		}
		return 1
	}
	var out []int
	for i := range v.state.Disks {
		out = append(out, i)
	}
	slices.SortStableFunc(out, func(a, b int) int {
		x, y := &v.state.Disks[a], &v.state.Disks[b]
		return cmp.Or(begun(x)-begun(y), x.VerifiedAt.Compare(y.VerifiedAt))
	})
	return out
}

func (v *verification) index(disk string) int {
	return slices.IndexFunc(v.state.Disks, func(d replica.Disk) bool { return d.Name == disk })
}

func (v *verification) over() bool {
	return v.began && !v.deadline.IsZero() && !v.job.Now().Before(v.deadline)
}

func (v *verification) disk(ctx context.Context, i int) error {
	d := &v.state.Disks[i]
	before := v.already(d.Name)
	if before.Complete {
		v.found = append(v.found, before)
		return nil
	}
	if v.over() {
		v.found = append(v.found, Verified{Name: d.Name, Cursor: d.VerifyCursor})
		return nil
	}
	pages, err := v.job.Replica.Disk(ctx, *d)
	if err != nil {
		return err
	}
	defer pages.Close()
	stamp, err := pages.Stamp(ctx) // before the first read: a write during the verification must not be sealed in
	if err != nil {
		return err
	}
	// What was proven stays so while nobody but sitrep writes: a VM that changes all the time would never be verified otherwise.
	if d.VerifyCursor == 0 || stamp != d.VerifyStamp && stamp != d.Stamp {
		d.VerifyCursor, d.VerifyStarted = 0, v.job.Now()
		if err := sealHolds(ctx, pages, *d); err != nil {
			return err
		}
	}
	d.VerifyStamp = stamp
	task := "verify " + d.Name
	v.job.Meter.Begin(task, d.Size, d.VerifyCursor)
	defer v.job.Meter.End(task)
	out := Verified{Name: d.Name, path: pages.Path()}
	check := &checker{pages: pages, sums: replica.DiskSums{Pages: pages, Of: *d}, pace: v.job.pace()}
	at := d.VerifyCursor
	for at < d.Size && !v.over() && err == nil {
		var w block.Range
		v.began = true
		if w, err = check.window(ctx, at); err == nil {
			v.job.Meter.Add(task, w.Len)
			at = w.End()
		}
	}
	out.Read, out.Cursor, out.Complete = before.Read+check.read, at, at >= d.Size
	for r := range check.differs.All() {
		out.Differs = append(out.Differs, Different{Off: r.Off, Len: r.Len})
	}
	v.found = append(v.found, out)
	switch {
	case len(out.Differs) > 0:
		d.VerifyCursor = out.Differs[0].Off // the next run begins with it: what lies behind it proves nothing
	case out.Complete:
		d.VerifyCursor, d.VerifiedAt, d.Stamp = 0, d.VerifyStarted, stamp
	default:
		d.VerifyCursor = at
	}
	return err
}

// sealHolds proves the table of sums itself.
func sealHolds(ctx context.Context, pages replica.Pages, d replica.Disk) error {
	if d.Seal == nil {
		return nil
	}
	seal, err := replica.DiskSums{Pages: pages, Of: d}.Seal(ctx)
	if err != nil {
		return err
	}
	if seal != *d.Seal {
		return fault.New(fault.ReplicaCorrupt, "the block sums are not those that the ledger sealed").At(pages.Path())
	}
	return nil
}

// save records cursors and proofs, and a replica whose bytes were found right after somebody else had touched its files
// is trusted again.
func (v *verification) save(ctx context.Context) error {
	st := v.state
	proved := len(v.found) == len(st.Disks)
	for _, f := range v.found {
		proved = proved && f.Complete && len(f.Differs) == 0
	}
	for _, d := range st.Disks {
		proved = proved && d.Seal != nil // or nothing says that the sums are those of this position
	}
	if proved && st.Phase == replica.ResyncRequired && st.ReasonCode == fault.ReplicaChanged {
		st.Phase, st.PhaseSince, st.Reason, st.ReasonCode = replica.Replicating, v.job.Now(), "", ""
	}
	if e := v.difference(); e != nil {
		marks(&st, fault.ReplicaCorrupt, e.Error(), v.job.Now())
	}
	_, err := v.job.Replica.Ledger().Save(context.WithoutCancel(ctx), st)
	return err
}

func (v *verification) verdict() error {
	if e := v.difference(); e != nil {
		return e
	}
	return nil
}

// difference is the first difference found, with how many there are.
func (v *verification) difference() *fault.Error {
	for _, f := range v.found {
		if len(f.Differs) == 0 {
			continue
		}
		var n int64
		for _, d := range f.Differs {
			n += d.Len
		}
		d := v.state.Disk(f.Name)
		return fault.New(fault.Difference, "%d bytes in %d runs of blocks are not what their sums say, the first run has %d bytes",
			n, len(f.Differs), f.Differs[0].Len).Of(v.job.VM, d.Name).AtOff(cmp.Or(f.path, d.Name), f.Differs[0].Off)
	}
	return nil
}

// checker compares pages with their sums.
type checker struct {
	pages replica.Pages
	sums  replica.DiskSums
	pace  Pace

	mu      sync.Mutex
	read    int64
	differs block.Set
}

// window checks about as much as is checked between two looks at the budget, from an offset on, and returns the range that it
// covered; what is known to be zero and has no sums costs nothing and does not count.
func (c *checker) window(ctx context.Context, from int64) (block.Range, error) {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(c.pace.Tasks)
	most := min(verifyWindow*c.pace.Unit*int64(c.pace.Tasks), verifyMost)
	at, sum := from, int64(0)
	var err error
	for at < c.sums.Size() && sum < most && gctx.Err() == nil {
		var r block.Range
		if r, err = c.sums.Next(gctx, at, c.pace.Unit); err != nil || r.Empty() {
			if err == nil {
				at = c.sums.Size()
			}
			break
		}
		g.Go(func() error { return c.check(gctx, r) })
		at, sum = r.End(), sum+r.Len
	}
	if werr := g.Wait(); werr != nil {
		err = werr
	}
	if err == nil {
		err = ctx.Err()
	}
	return block.Range{Off: from, Len: at - from}, err
}

// check reads a range and compares every block with its sum.
func (c *checker) check(ctx context.Context, r block.Range) error {
	buf := durable.AlignedBuffer(int(r.Len))
	if err := c.pages.ReadAt(ctx, buf, r.Off); err != nil {
		return err
	}
	bs := c.sums.Of.BlockSize
	want := make([]sums.Sum, block.Count(r.Len, bs))
	if err := c.pages.LoadSums(ctx, r.Off/bs, want); err != nil {
		return err
	}
	var bad []block.Range
	for i := range want {
		b := block.Nth(int64(i), bs, r.Len)
		if sums.Of(buf[b.Off:b.End()]) != want[i] {
			bad = append(bad, block.Range{Off: r.Off + b.Off, Len: b.Len})
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.read += r.Len
	for _, b := range bad {
		c.differs.Add(b)
	}
	return nil
}
