package dir

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
)

const undoSuffix = ".undo.hrl"

// points keeps, in a folder for each position that the pages have left, the step that leads back to it: an undo log for
// each disk, whose identity says from which position it leads, or a clone of the pages. A point is seen through the steps
// from its position on, up to the first clone or to the pages of today; so steps of positions that are no points
// themselves stay as long as an older point needs them.
type points struct{ r *vmReplica }

func (p *points) stepPath(at hrl.Pos) string { return filepath.Join(p.r.pointsPath(), at.String()) }

func (p *points) undoPath(at hrl.Pos, disk string) string {
	return filepath.Join(p.stepPath(at), disk+undoSuffix)
}

func (p *points) clonePath(at hrl.Pos, disk string) string {
	return filepath.Join(p.stepPath(at), disk+pagesSuffix)
}

// cloneSumsPath is the block sums of a clone, frozen with it.
func (p *points) cloneSumsPath(at hrl.Pos, disk string) string {
	return filepath.Join(p.stepPath(at), disk+sumsSuffix)
}

// head is the position that the chain of steps ends at, or that it goes on behind when the ledger is an older one (see
// Reached). While pages are being changed that is the one they are led to:
// the step back from there holds whatever is overwritten on the way.
func head(s *replica.State) hrl.Pos {
	if s.Applying != nil {
		return s.Applying.To
	}
	return s.Applied
}

// Preserve keeps what is about to be overwritten; see replica.Points.
func (p *points) Preserve(ctx context.Context, s replica.State, to hrl.Pos, overwritten map[string]*block.Set, redo bool) error {
	err := p.r.writable(ctx)
	if err == nil && len(s.Points) > 0 {
		err = p.preserve(ctx, &step{points: p, s: &s, to: to, overwritten: overwritten}, redo)
	}
	return fault.In(p.r.cause(err), p.r.vm, "")
}

func (p *points) preserve(ctx context.Context, t *step, redo bool) error {
	path := p.stepPath(t.s.Applied)
	err := t.check(ctx)
	if err == nil {
		return p.r.fs.SyncDir(p.r.pointsPath()) // made before a crash, which may have come before this
	}
	if redo {
		if fault.Is(err, fault.PointMissing) {
			return fault.Wrap(fault.ReplicaCorrupt, err, "pages were overwritten that no recovery point has any more").At(path)
		}
		return err
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	// The pages are at this position, so a step back to it, left by a run that then did not go on, serves nothing.
	if err := p.r.asOwner(ctx, func() error { return p.drop(path) }); err != nil {
		return err
	}
	tmp := durable.TempName(path)
	if err := t.build(ctx, tmp); err != nil {
		return errors.Join(err, p.drop(tmp))
	}
	if err := p.r.asOwner(ctx, func() error { return p.r.fs.Rename(tmp, path) }); err != nil {
		return errors.Join(err, p.drop(tmp))
	}
	return p.r.fs.SyncDir(p.r.pointsPath())
}

// Reached follows the steps that lead on from s.Applied; see replica.Points. There are some when a run did not go on after
// it had preserved, and then they hold what the pages hold; or when the ledger was brought back from a backup.
func (p *points) Reached(ctx context.Context, s replica.State) (hrl.Pos, error) {
	for at := head(&s); ; {
		next, err := p.next(ctx, &s, at)
		switch {
		case fault.Is(err, fault.PointMissing): // none, or one that was removed in part
			return at, nil
		case err != nil:
			return at, fault.In(err, p.r.vm, "")
		case next.IsZero(): // clones, which do not say where from
			return at.Next(), nil
		}
		at = next
	}
}

// drop removes a step. One that is removed in part is no step any more, for check and for Open.
func (p *points) drop(path string) error {
	if _, err := p.r.fs.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return p.r.removeTree(path, true)
}

// step is what leads back from a position to s.Applied.
type step struct {
	*points
	s           *replica.State
	to          hrl.Pos
	overwritten map[string]*block.Set
}

// check fails with fault.PointMissing when the step is not there, or is not this one.
func (t *step) check(ctx context.Context) error {
	for i := range t.s.Disks {
		if err := t.checkDisk(ctx, &t.s.Disks[i]); err != nil {
			return err
		}
	}
	return nil
}

func (t *step) checkDisk(ctx context.Context, d *replica.Disk) error {
	at := t.s.Applied
	if _, err := t.r.fs.Stat(t.clonePath(at, d.Name)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := t.openUndo(ctx, t.s, at, d.Name)
	if err != nil {
		return err
	}
	defer l.file.Close()
	id := l.Info().Identity
	if id.From != t.to || id.Size != d.Size {
		return replica.Unseen(fault.New(fault.PointMissing, "the undo log leads back from %s, not from %s", id.From, t.to).At(l.file.Name()))
	}
	var held block.Set
	for rec, err := range l.Records(ctx) {
		if err != nil {
			return damaged(err)
		}
		held.Add(rec.Range)
	}
	for r := range t.blocks(d).All() {
		if run, ok := held.Next(r); !ok || run != r {
			return replica.Unseen(fault.New(fault.PointMissing, "the undo log does not hold all of %v", r).At(l.file.Name()))
		}
	}
	return nil
}

// blocks is what of a disk will be overwritten, as whole blocks of the disk as it is.
func (t *step) blocks(d *replica.Disk) *block.Set {
	var out block.Set
	if set := t.overwritten[d.Name]; set != nil {
		for r := range set.All() {
			out.Add(r.Outward(d.BlockSize).Intersect(block.Range{Len: d.Size}))
		}
	}
	return &out
}

// build makes the step in a new folder, durably. A point's own pages are cloned where the filesystem can: that takes no
// time, and no later point has to be read through it.
func (t *step) build(ctx context.Context, folder string) error {
	if err := t.r.fs.MkdirAll(folder); err != nil {
		return err
	}
	done, err := t.clone(folder)
	for i := 0; err == nil && !done && i < len(t.s.Disks); i++ {
		err = fault.In(t.saveOld(ctx, &t.s.Disks[i], folder), t.r.vm, t.s.Disks[i].Name)
	}
	if err != nil {
		return err
	}
	return t.r.fs.SyncDir(folder)
}

// clone clones the pages of all disks; done is false when that cannot be done, or the position is no point. It is also
// when the pages are in doubt: what a deep resynchronization has not come to may hold what was never on the disk.
func (t *step) clone(folder string) (done bool, err error) {
	if t.s.Resync != nil && t.s.Resync.Deep {
		return false, nil
	}
	if !slices.ContainsFunc(t.s.Points, func(p replica.Point) bool { return p.At == t.s.Applied }) {
		return false, nil
	}
	for i := range t.s.Disks {
		name := t.s.Disks[i].Name
		err := t.cloneFile(t.r.sumsPath(name), filepath.Join(folder, name+sumsSuffix))
		if err == nil { // the pages last: they are what makes it a clone
			err = t.cloneFile(t.r.pagesPath(name), filepath.Join(folder, name+pagesSuffix))
		}
		if errors.Is(err, errors.ErrUnsupported) {
			return false, t.unclone(folder, i+1)
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

func (t *step) cloneFile(from, to string) error {
	if err := t.r.fs.Clone(from, to); err != nil {
		return err
	}
	return syncFile(t.r.fs, to)
}

// unclone removes the clones of the first n disks.
func (t *step) unclone(folder string, n int) error {
	for _, d := range t.s.Disks[:n] {
		for _, suffix := range []string{pagesSuffix, sumsSuffix} {
			if err := durable.RemoveIfThere(t.r.fs, filepath.Join(folder, d.Name+suffix)); err != nil {
				return err
			}
		}
	}
	return nil
}

func syncFile(fsys durable.FS, path string) error {
	f, err := fsys.OpenRW(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// Sweep removes the steps that no point needs; see replica.Points. Which these are tell the names of the folders and, where points were
// taken out of the middle, whether the one before is a clone: so the cost of a delta does not grow with the number of points.
func (p *points) Sweep(ctx context.Context, s replica.State) error {
	err := p.r.writable(ctx)
	if err == nil {
		err = p.sweep(ctx, &s)
	}
	return fault.In(err, p.r.vm, "")
}

func (p *points) sweep(ctx context.Context, s *replica.State) error {
	entries, err := p.r.fs.ReadDir(p.r.pointsPath())
	if err != nil {
		return err
	}
	g := newGuard(p, s)
	var failed error // one that cannot be removed holds up no other
	there := map[hrl.Pos]bool{}
	for _, e := range entries {
		var at hrl.Pos
		if !e.Dir || at.UnmarshalText([]byte(e.Name)) != nil {
			continue
		}
		there[at] = true
		if err := ctx.Err(); err != nil {
			return err
		}
		needed, err := g.needs(at)
		if err == nil && !needed {
			err = p.r.asOwner(ctx, func() error { return p.drop(filepath.Join(p.r.pointsPath(), e.Name)) })
		}
		failed = errors.Join(failed, err)
	}
	if failed != nil {
		return failed
	}
	return p.look(s, there)
}

// lookAt is how many points are looked at closely after a sweep: in the course of some deltas all of them are.
const lookAt = 16

// look fails with fault.PointMissing when the step of a point is gone, or, of some points, a file of it.
func (p *points) look(s *replica.State, there map[hrl.Pos]bool) error {
	missing := func(point *replica.Point) error {
		return replica.Unseen(fault.New(fault.PointMissing, "what the recovery point %s is seen through is missing", point.ID).At(p.stepPath(point.At)))
	}
	for i := range s.Points {
		if point := &s.Points[i]; point.At != head(s) && !there[point.At] {
			return missing(point)
		}
	}
	n := len(s.Points)
	for i := range min(n, lookAt) {
		point := &s.Points[(int(s.Applied.Seq%(1<<30))*lookAt+i)%n]
		if whole, err := p.stepIsWhole(s, point); err != nil || !whole {
			return errors.Join(err, missing(point))
		}
	}
	return nil
}

// stepIsWhole says, by the names in its folder, whether the step of a point is there: for each disk an undo log, or a clone with its sums.
func (p *points) stepIsWhole(s *replica.State, point *replica.Point) (bool, error) {
	if point.At == head(s) {
		return true, nil
	}
	entries, err := p.r.fs.ReadDir(p.stepPath(point.At))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return false, err
	}
	have := map[string]bool{}
	for _, e := range entries {
		have[e.Name] = true
	}
	for name := range point.Sizes {
		if !have[name+undoSuffix] && !(have[name+pagesSuffix] && have[name+sumsSuffix]) {
			return false, nil
		}
	}
	return true, nil
}

// GlancePoints names the points of which files are missing, by the names in the store alone; see replica.PointGlancer.
func (r *vmReplica) GlancePoints(ctx context.Context, s replica.State) (ids []string, err error) {
	p := &points{r}
	for i := range s.Points {
		whole, err := p.stepIsWhole(&s, &s.Points[i])
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return ids, fault.In(err, r.vm, "")
		}
		if !whole {
			ids = append(ids, s.Points[i].ID)
		}
	}
	return ids, nil
}

// guard knows which steps are needed.
type guard struct {
	*points
	s      *replica.State
	sorted []hrl.Pos // of the points
	alone  map[hrl.Pos]bool
}

func newGuard(p *points, s *replica.State) *guard {
	g := &guard{points: p, s: s, alone: map[hrl.Pos]bool{}}
	for _, point := range s.Points {
		g.sorted = append(g.sorted, point.At)
	}
	slices.SortFunc(g.sorted, func(a, b hrl.Pos) int { return cmp.Compare(a.Seq, b.Seq) })
	return g
}

// needs says whether a step may be needed: it is that of a point, or of the position of the pages, or lies behind a point that is seen
// through undo logs. It errs by keeping steps of a history that was given up, as long as there are points from before it.
func (g *guard) needs(at hrl.Pos) (bool, error) {
	if at == g.s.Applied || slices.Contains(g.sorted, at) {
		return true, nil
	}
	var before *hrl.Pos
	for i := range g.sorted {
		if g.sorted[i].Seq <= at.Seq {
			before = &g.sorted[i]
		}
	}
	if before == nil {
		return false, nil
	}
	alone, known := g.alone[*before]
	if !known {
		alone = true
		for _, name := range g.disksAt(*before) {
			_, err := g.r.fs.Stat(g.clonePath(*before, name))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return false, err
			}
			alone = alone && err == nil
		}
		g.alone[*before] = alone
	}
	return !alone, nil
}

// disksAt names the disks of the points of a position.
func (g *guard) disksAt(at hrl.Pos) (names []string) {
	for _, point := range g.s.Points {
		if point.At == at {
			names = slices.AppendSeq(names, maps.Keys(point.Sizes))
		}
	}
	return names
}

// next returns the position that the step back to at begins at; zero when no disk needs another step.
func (p *points) next(ctx context.Context, s *replica.State, at hrl.Pos) (hrl.Pos, error) {
	for _, d := range s.Disks {
		if _, err := p.r.fs.Stat(p.clonePath(at, d.Name)); err == nil {
			continue
		}
		l, err := p.openUndo(ctx, s, at, d.Name)
		if err != nil {
			return hrl.Pos{}, err
		}
		return l.Info().Identity.From, l.file.Close()
	}
	return hrl.Pos{}, nil
}

// undoLog is an opened undo log.
type undoLog struct {
	*hrl.Log
	file durable.File
}

// openUndo opens the undo log that leads back to at, and checks whose it is. Its content is not verified.
func (p *points) openUndo(ctx context.Context, s *replica.State, at hrl.Pos, disk string) (*undoLog, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	path := p.undoPath(at, disk)
	f, err := p.r.fs.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, replica.Unseen(fault.Wrap(fault.PointMissing, err, "the undo log is missing").At(path))
	}
	if err != nil {
		return nil, err
	}
	l, err := hrl.Open(f)
	if err == nil {
		err = checkUndo(l, s, at, disk)
	}
	if err != nil {
		return nil, errors.Join(damaged(err), f.Close())
	}
	return &undoLog{Log: l, file: f}, nil
}

func checkUndo(l *hrl.Log, s *replica.State, at hrl.Pos, disk string) error {
	i := l.Info()
	id := i.Identity
	if id == nil || id.Kind != hrl.Undo || id.Replica != s.Replica || id.Disk != disk || id.To != at {
		return fault.New(fault.LogForeign, "this is not the undo log of disk %q of VM %q at %s", disk, s.VM, at)
	}
	if !i.Sealed {
		return fault.New(fault.LogTorn, "the undo log was not closed")
	}
	return nil
}

// damaged says of a log that cannot be used that its recovery point is lost. (The codes of logs advise to resynchronize,
// which would not bring it back.)
func damaged(err error) error {
	for _, code := range []fault.Code{fault.LogCorrupt, fault.LogTorn, fault.LogForeign} {
		if fault.Is(err, code) {
			return replica.Unseen(fault.Wrap(fault.PointMissing, err, "the recovery point cannot be read"))
		}
	}
	return err
}
