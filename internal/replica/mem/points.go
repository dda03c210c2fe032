package mem

import (
	"context"
	"io"
	"maps"
	"slices"

	"sitrep/internal/block"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
)

// points keeps copies of the disks.
type points struct{ r *memReplica }

func isPoint(s *replica.State, at hrl.Pos) bool {
	return slices.ContainsFunc(s.Points, func(p replica.Point) bool { return p.At == at })
}

// Preserve copies the disks when they are at a point; see replica.Points.
func (p *points) Preserve(ctx context.Context, s replica.State, _ hrl.Pos, _ map[string]*block.Set, redo bool) error {
	if err := p.r.begin(ctx, true); err != nil {
		return err
	}
	defer p.r.vm.mu.Unlock()
	if !isPoint(&s, s.Applied) {
		return nil
	}
	if redo {
		if p.r.vm.points[s.Applied] == nil {
			return fault.New(fault.ReplicaCorrupt, "pages were overwritten that no recovery point has any more").Of(p.r.vm.name, "")
		}
		return nil
	}
	p.r.vm.points[s.Applied] = p.r.vm.copyDisks()
	return nil
}

func (v *vm) copyDisks() map[string]*disk {
	out := map[string]*disk{}
	for name, d := range v.disks {
		out[name] = &disk{content: d.content.clone(), sums: maps.Clone(d.sums)}
	}
	return out
}

// Open opens a recovery point; see replica.Points.
func (p *points) Open(ctx context.Context, s replica.State, id string) (replica.PointView, error) {
	if err := p.r.begin(ctx, false); err != nil {
		return nil, err
	}
	defer p.r.vm.mu.Unlock()
	point := s.Point(id)
	if point == nil {
		return nil, fault.New(fault.PointMissing, "the ledger has no recovery point %q", id).Of(p.r.vm.name, "")
	}
	from := p.r.vm.points[point.At]
	if s.Applying == nil && s.Applied == point.At {
		from = p.r.vm.copyDisks()
	}
	v := &pointView{vm: p.r.vm.name, disks: map[string]*pointDisk{}}
	for name, size := range point.Sizes {
		d, of := from[name], s.Disk(name)
		if d == nil || d.content.size < size || of == nil {
			return nil, fault.New(fault.PointMissing, "the recovery point was not preserved").Of(p.r.vm.name, name)
		}
		v.disks[name] = newPointDisk(p.r, name, d, size, of.BlockSize)
	}
	return v, nil
}

// Sweep drops the copies of positions that are no points; see replica.Points.
func (p *points) Sweep(ctx context.Context, s replica.State) error {
	if err := p.r.begin(ctx, true); err != nil {
		return err
	}
	defer p.r.vm.mu.Unlock()
	maps.DeleteFunc(p.r.vm.points, func(at hrl.Pos, _ map[string]*disk) bool { return !isPoint(&s, at) })
	return nil
}

type pointView struct {
	vm    string
	disks map[string]*pointDisk
}

// Disk returns a disk of the point; see replica.PointView.
func (v *pointView) Disk(name string) (replica.PointDisk, error) {
	d := v.disks[name]
	if d == nil {
		return nil, fault.New(fault.PointMissing, "the recovery point has no such disk").Of(v.vm, name)
	}
	return d, nil
}

// Close has nothing to do.
func (v *pointView) Close() error { return nil }

// pointDisk is a copy, which nobody changes.
type pointDisk struct {
	vm, name string
	content  *sparse
	size     int64
	proven   *replica.Proven
}

func newPointDisk(r *memReplica, name string, d *disk, size, blockSize int64) *pointDisk {
	return &pointDisk{vm: r.vm.name, name: name, content: d.content, size: size, proven: &replica.Proven{
		BlockSize: blockSize, End: d.content.size, ShortEnd: size, Path: r.path(name + ".vhd"),
		Read: func(p []byte, off int64) error { d.content.read(p, off); return nil },
		Sums: func(first int64, out []sums.Sum) error {
			for i := range out {
				out[i] = d.sums[first+int64(i)]
			}
			return nil
		},
	}}
}

// Size is the number of guest bytes at the point.
func (d *pointDisk) Size() int64 { return d.size }

// ReadAt reads guest bytes; see io.ReaderAt.
func (d *pointDisk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fault.New(fault.IO, "offset %d", off)
	}
	n := min(int64(len(p)), max(d.size-off, 0))
	if err := d.proven.ReadAt(p[:n], off); err != nil {
		return 0, fault.In(err, d.vm, d.name)
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// Extent tells data from zeros; see replica.PointDisk.
func (d *pointDisk) Extent(off, n int64) (block.Extent, error) {
	if !(block.Range{Off: off, Len: n}).Within(d.size) {
		return block.Extent{}, fault.New(fault.IO, "[%d,+%d) is not on the disk of %d bytes", off, n, d.size)
	}
	if n == 0 {
		return block.Extent{Range: block.Range{Off: off}}, nil
	}
	e, err := d.proven.Extent(d.content.extent(off, n))
	return e, fault.In(err, d.vm, d.name)
}

// Reached is s.Applied: an old ledger cannot be brought back here.
func (p *points) Reached(ctx context.Context, s replica.State) (hrl.Pos, error) {
	return s.Applied, ctx.Err()
}

// Preserved is everything: points are copies of whole disks.
func (p *points) Preserved(ctx context.Context, _ replica.State, _ hrl.Pos) (map[string]*block.Set, bool, error) {
	return nil, true, fault.In(ctx.Err(), p.r.vm.name, "")
}
