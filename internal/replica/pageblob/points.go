package pageblob

import (
	"context"
	"slices"
	"strconv"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"sitrep/internal/block"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
)

// points keeps earlier positions as snapshots: of the pages and of the sums of every disk, made before the pages leave the
// position, and named by it in their metadata. Which of them are recovery points says the ledger: a point is there when the ledger
// names a position of which every disk has its snapshots. What it does not name is swept.
type points struct{ r *vmReplica }

var _ replica.PointKeeper = (*vmReplica)(nil)

// snapshots are those of one VM, by position and blob.
type snapshots map[string]map[string]entry

// snapshotTries is how often a snapshot is asked for whose answer did not come, and which then was not there.
const snapshotTries = 4

func isPoint(s *replica.State, at hrl.Pos) bool {
	return slices.ContainsFunc(s.Points, func(p replica.Point) bool { return p.At == at })
}

// find lists the snapshots, and the blobs themselves. Of two snapshots of one position, which a lost answer may have led to,
// the older one counts; they are of the same content.
func (p *points) find(ctx context.Context) (all []entry, by snapshots, err error) {
	all, err = p.r.s.list(ctx, p.r.s.pages, p.r.vm, "", container.ListBlobsInclude{Snapshots: true, Metadata: true})
	if err != nil {
		return nil, nil, err
	}
	by = snapshots{}
	for _, e := range all {
		at := e.meta[metaPoint]
		if e.snapshot == "" || at == "" {
			continue
		}
		if by[at] == nil {
			by[at] = map[string]entry{}
		}
		if _, ok := by[at][e.name]; !ok {
			by[at][e.name] = e
		}
	}
	return all, by, nil
}

// whole says whether a position has the snapshots of a disk.
func (s snapshots) whole(at hrl.Pos, disk string) bool {
	of := s[at.String()]
	return of[disk+pagesSuffix].snapshot != "" && of[disk+sumsSuffix].snapshot != ""
}

// Preserve makes the snapshots of the position that the pages are about to leave, if it is a recovery point; see
// replica.Points. Older points have theirs.
func (p *points) Preserve(ctx context.Context, s replica.State, to hrl.Pos, overwritten map[string]*block.Set, redo bool) error {
	err := p.r.writable(ctx)
	if err == nil && isPoint(&s, s.Applied) {
		err = p.preserve(ctx, &s, redo)
	}
	return in(err, p.r.vm, "")
}

// PreservesWhole says that a snapshot is of a whole disk; see replica.PreservesWhole.
func (r *vmReplica) PreservesWhole() bool { return true }

func (p *points) preserve(ctx context.Context, s *replica.State, redo bool) error {
	all, have, err := p.find(ctx)
	if err != nil {
		return err
	}
	for i := range s.Disks {
		d := &s.Disks[i]
		switch {
		case have.whole(s.Applied, d.Name):
			continue
		case redo:
			return fault.New(fault.ReplicaCorrupt, "pages were overwritten that no recovery point has any more").Of(p.r.vm, d.Name)
		}
		if err := p.preserveDisk(ctx, s, d, all, have); err != nil {
			return fault.In(err, p.r.vm, d.Name)
		}
	}
	return nil
}

func (p *points) preserveDisk(ctx context.Context, s *replica.State, d *replica.Disk, all []entry, have snapshots) error {
	known, err := p.isAt(ctx, s, d, all)
	if err != nil {
		return err
	}
	if !known {
		p.r.s.opts.Log.Warn("a recovery point is lost: the replica no longer is what the ledger says", "vm", p.r.vm, "disk", d.Name,
			"position", s.Applied.String())
		return nil
	}
	for _, suffix := range []string{sumsSuffix, pagesSuffix} {
		if _, ok := have[s.Applied.String()][d.Name+suffix]; ok {
			continue
		}
		i := slices.IndexFunc(all, func(e entry) bool { return e.name == d.Name+suffix && e.snapshot == "" })
		if i < 0 {
			return fault.New(fault.ReplicaMissing, "the blob is missing").At(p.r.s.where(p.r.vm + "/" + d.Name + suffix))
		}
		if err := p.snapshot(ctx, all[i], s.Applied); err != nil {
			return err
		}
	}
	return nil
}

// isAt says whether the disk's blobs are at the applied position as far as can be known. Pages that something else wrote to
// are, as long as the sums are those of the position: they prove what is read. A ledger that was brought back from a backup,
// whose pages have moved on, has another seal; so have sums that something else wrote to, which would prove nothing.
func (p *points) isAt(ctx context.Context, s *replica.State, d *replica.Disk, all []entry) (bool, error) {
	is := func(suffix, etag string) bool {
		return etag != "" && slices.ContainsFunc(all, func(e entry) bool {
			return e.name == d.Name+suffix && e.snapshot == "" && e.etag == etag
		})
	}
	known := parseStamp(d.Stamp)
	want := sealAt(s, s.Applied, d)
	if want == nil || is(pagesSuffix, known.pages) && is(sumsSuffix, known.sums) {
		return true, nil
	}
	f := newPageFile(ctx, p.r.pageBlob(d.Name+sumsSuffix))
	defer f.end()
	pages := &pages{r: p.r, disk: d.Name, size: d.Size, blockSize: d.BlockSize, sums: f, table: newSumTable(f, sumsSize(d.Size, d.BlockSize))}
	seal, err := replica.DiskSums{Pages: pages, Of: *d}.Seal(ctx)
	return err == nil && seal == *want, err
}

// sealAt is the seal of a disk's sums at a position, nil when it is not known: of a point of an older version the ledger has it as long as
// the pages are there.
func sealAt(s *replica.State, at hrl.Pos, d *replica.Disk) *sums.Seal {
	for _, point := range s.Points {
		if seal, ok := point.Seals[d.Name]; ok && point.At == at && point.Sizes[d.Name] == d.Size {
			return &seal
		}
	}
	if at == s.Applied && d.Stamp != "" {
		return d.Seal
	}
	return nil
}

// snapshot makes one snapshot of a blob that is as it was listed. It is asked for one time, because a second time makes a second
// one; when the answer does not come it is looked for.
func (p *points) snapshot(ctx context.Context, of entry, at hrl.Pos) error {
	where := p.r.s.where(p.r.vm + "/" + of.name)
	meta := map[string]string{}
	for k, v := range of.meta {
		meta[k] = v
	}
	meta[metaPoint], meta[metaGeneration] = at.String(), strconv.FormatUint(p.r.generation.Load(), 10)
	m, err := metadata(meta)
	if err != nil {
		return err
	}
	c := p.r.s.pages.NewBlobClient(p.r.vm + "/" + of.name)
	for try := 1; ; try++ {
		_, err := c.CreateSnapshot(p.r.s.once(ctx), &blob.CreateSnapshotOptions{Metadata: m, AccessConditions: ifMatch(of.etag)})
		if err == nil || ctx.Err() != nil {
			return classify(err, where)
		}
		if hasCode(err, bloberror.ConditionNotMet) {
			return fault.New(fault.ReplicaChanged, "the replica was written to by something else").At(where)
		}
		if !unanswered(err) {
			return classify(err, where)
		}
		_, have, lerr := p.find(ctx)
		if lerr != nil {
			return lerr
		}
		if _, ok := have[at.String()][of.name]; ok {
			return nil
		}
		if try == snapshotTries {
			return classify(err, where)
		}
		if err := p.r.s.pause(ctx, try); err != nil {
			return classify(err, where)
		}
	}
}

// Preserved says that everything is preserved: a snapshot is of the whole disk; see replica.Points.
func (p *points) Preserved(ctx context.Context, s replica.State, to hrl.Pos) (map[string]*block.Set, bool, error) {
	if err := ctx.Err(); err != nil {
		return nil, false, in(err, p.r.vm, "")
	}
	return nil, true, nil
}

// Reached is the position of the ledger: the points of other positions have snapshots of their own, so nothing depends on which
// way the pages took; see replica.Points.
func (p *points) Reached(ctx context.Context, s replica.State) (hrl.Pos, error) {
	return s.Applied, in(ctx.Err(), p.r.vm, "")
}

// Sweep removes the snapshots of positions that are no points; see replica.Points. Those of another owner, or of somebody else
// altogether, are left alone. Points that have none any more are fault.PointMissing, when all is swept.
func (p *points) Sweep(ctx context.Context, s replica.State) error {
	err := p.r.writable(ctx)
	if err == nil {
		err = p.sweep(ctx, &s)
	}
	return in(err, p.r.vm, "")
}

func (p *points) sweep(ctx context.Context, s *replica.State) error {
	all, have, err := p.find(ctx)
	if err != nil {
		return err
	}
	needed := map[string]bool{}
	for _, point := range s.Points {
		needed[point.At.String()] = true
	}
	var out []entry
	for _, e := range all {
		at, ours := e.meta[metaPoint]
		g, err := strconv.ParseUint(e.meta[metaGeneration], 10, 64)
		if e.snapshot == "" || !ours || err != nil || g > p.r.generation.Load() {
			continue
		}
		if !needed[at] || have[at][e.name].snapshot != e.snapshot {
			out = append(out, e)
		}
	}
	if len(out) > 0 {
		if err := p.r.current(ctx); err != nil { // what is no point of an old ledger may be one of the new owner's
			return err
		}
	}
	for _, e := range out {
		if err := p.remove(ctx, e); err != nil {
			return err
		}
	}
	if lost := p.missing(s, all, have); len(lost) > 0 {
		return fault.New(fault.PointMissing, "something else removed snapshots: of %d recovery points %d cannot be read any more", len(s.Points), len(lost))
	}
	return nil
}

// MissingPoints names the points that have no snapshots any more, by one list; see replica.PointKeeper.
func (r *vmReplica) MissingPoints(ctx context.Context, s replica.State) ([]string, error) {
	p := &points{r}
	all, have, err := p.find(ctx)
	if err != nil {
		return nil, in(err, r.vm, "")
	}
	gone := p.missing(&s, all, have)
	var ids []string
	for i := range s.Points {
		point := &s.Points[i]
		lost := slices.Contains(gone, point.ID)
		if !lost {
			err := p.proveAll(ctx, &s, point, all, have)
			lost = fault.Is(err, fault.PointDamaged) || fault.Is(err, fault.ReplicaCorrupt)
			if err != nil && !lost {
				return nil, in(err, r.vm, "")
			}
		}
		if lost {
			ids = append(ids, point.ID)
		}
	}
	return ids, nil
}

// proveAll proves the disks of a point as far as they are read from the blobs themselves.
func (p *points) proveAll(ctx context.Context, s *replica.State, point *replica.Point, all []entry, have snapshots) error {
	for name, size := range point.Sizes {
		d, err := p.disk(ctx, s, point, name, size, all, have)
		if err == nil {
			err = p.prove(ctx, s, point, d)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// prove says whether a disk of a point is what it was. A snapshot is, it was made when that was known. A blob is when it is the one that
// the ledger knows, or when the block sums in it have the seal of the point: a ledger, or a blob, that was brought back from an older copy
// tells nothing by its name.
func (p *points) prove(ctx context.Context, s *replica.State, point *replica.Point, d *pointDisk) error {
	of := s.Disk(d.name)
	known := parseStamp(of.Stamp)
	if d.pages.pin == "" && d.table.from.pin == "" || known.sums != "" && d.pages.pin == known.pages && d.table.from.pin == known.sums {
		return nil
	}
	want := sealAt(s, point.At, of)
	if seal, ok := point.Seals[d.name]; ok {
		want = &seal
	}
	if want == nil && (s.Resync == nil || !s.Resync.Deep || s.Resync.Sealed[d.name]) {
		return nil
	}
	if want != nil {
		have, err := d.seal(ctx)
		if err != nil || have == *want {
			return err
		}
	}
	return fault.New(fault.PointDamaged, "the block sums that the recovery point is seen by are not those that it had: blobs of the replica "+
		"were replaced, or are of another time").At(d.table.from.where()).Of(p.r.vm, d.name)
}

func (p *points) missing(s *replica.State, all []entry, have snapshots) (ids []string) {
	for _, point := range s.Points {
		for disk := range point.Sizes {
			if s.Disk(disk) == nil || !p.has(s, point.At, disk, all, have) {
				ids = append(ids, point.ID)
				break
			}
		}
	}
	return ids
}

// has says whether a disk's pages and sums at a position are there: as snapshots, or as the blobs themselves.
func (p *points) has(s *replica.State, at hrl.Pos, disk string, all []entry, have snapshots) bool {
	for _, suffix := range []string{pagesSuffix, sumsSuffix} {
		if _, ok := p.at(s, at, disk+suffix, all, have); !ok {
			return false
		}
	}
	return true
}

// at finds what has the content of a blob at a position.
func (p *points) at(s *replica.State, at hrl.Pos, name string, all []entry, have snapshots) (entry, bool) {
	if e, ok := have[at.String()][name]; ok {
		return e, true
	}
	i := slices.IndexFunc(all, func(e entry) bool { return e.name == name && e.snapshot == "" })
	if i < 0 || s.Applying != nil || s.Applied != at {
		return entry{}, false
	}
	return all[i], true
}

func (p *points) remove(ctx context.Context, e entry) error {
	c, err := p.r.s.pages.NewBlobClient(p.r.vm + "/" + e.name).WithSnapshot(e.snapshot)
	if err != nil {
		return err
	}
	_, err = c.Delete(ctx, nil)
	if isMissing(err) {
		return nil
	}
	return classify(err, p.r.s.where(p.r.vm+"/"+e.name))
}

// Open opens a recovery point: its snapshots, or, when the pages are still there, the blobs themselves, as they are now; see
// replica.Points.
func (p *points) Open(ctx context.Context, s replica.State, id string) (replica.PointView, error) {
	v, err := p.open(ctx, &s, id)
	if err != nil {
		return nil, in(err, p.r.vm, "")
	}
	return v, nil
}

func (p *points) open(ctx context.Context, s *replica.State, id string) (*pointView, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	point := s.Point(id)
	if point == nil {
		return nil, fault.New(fault.PointMissing, "the ledger has no recovery point %q", id)
	}
	all, have, err := p.find(ctx)
	if err != nil {
		return nil, err
	}
	v := &pointView{vm: p.r.vm, disks: map[string]*pointDisk{}}
	for name, size := range point.Sizes {
		d, err := p.disk(ctx, s, point, name, size, all, have)
		if err == nil {
			err = p.prove(ctx, s, point, d)
		}
		if err != nil {
			return nil, fault.In(err, p.r.vm, name)
		}
		v.disks[name] = d
	}
	return v, nil
}

// disk is a disk of a point, of which nothing was read yet.
func (p *points) disk(ctx context.Context, s *replica.State, point *replica.Point, name string, size int64, all []entry, have snapshots) (*pointDisk, error) {
	d := s.Disk(name)
	if d == nil || replica.CheckName(name) != nil {
		return nil, fault.New(fault.PointMissing, "the ledger has no disk %q", name)
	}
	pages, sums, end, err := p.sources(s, point.At, name, all, have)
	if err != nil {
		return nil, err
	}
	return &pointDisk{ctx: ctx, vm: p.r.vm, name: name, size: size, end: max(size, end), blockSize: d.BlockSize, pages: pages,
		ranges: &rangeMap{from: pages}, table: &rangeMap{from: sums}}, nil
}

// sources is where the pages and the sums of a disk at a position are read, and the guest bytes that the pages have: more than the point
// when the disk was made larger before it was preserved.
func (p *points) sources(s *replica.State, at hrl.Pos, disk string, all []entry, have snapshots) (pages, sums *source, end int64, err error) {
	var out []*source
	for _, name := range []string{disk + pagesSuffix, disk + sumsSuffix} {
		e, ok := p.at(s, at, name, all, have)
		if !ok {
			return nil, nil, 0, replica.Unseen(fault.New(fault.PointMissing, "the recovery point has no snapshot").At(p.r.s.where(p.r.vm + "/" + name)))
		}
		src, err := p.r.source(e)
		if err != nil {
			return nil, nil, 0, err
		}
		if n, err := strconv.ParseInt(e.meta[metaSize], 10, 64); err == nil && len(out) == 0 {
			end = n
		}
		out = append(out, src)
	}
	return out[0], out[1], end, nil
}

// source is a listed blob, or snapshot, for reading. A blob is read only as long as it is what was listed.
func (r *vmReplica) source(e entry) (*source, error) {
	c := r.s.pages.NewPageBlobClient(r.vm + "/" + e.name)
	src := &source{s: r.s, name: r.vm + "/" + e.name, pace: r.s.pacer()}
	if e.snapshot == "" {
		src.pin = e.etag
	} else {
		var err error
		if c, err = c.WithSnapshot(e.snapshot); err != nil {
			return nil, err
		}
	}
	src.c, src.pages = c.BlobClient(), c
	return src, nil
}
