package failover

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/sync/errgroup"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

// proveUnit is how many bytes of a recovery point are read at once, and proveTasks how many such reads are in flight.
const (
	proveUnit  = 1 << 20
	proveTasks = 8
)

// prove reads every disk of the point that the failover is to be changed to, through the view that proves what it reads, before
// what was made of another point is given up for it. Nothing is written. It returns how many bytes were read.
func (r *run) prove(ctx context.Context) (bytes int64, err error) {
	err = r.beside(ctx, InFolder, func(rep replica.Replica, st replica.State) (err error) {
		if err := r.mine(st); err != nil {
			return err
		}
		point := st.Point(r.plan.Found.ID)
		if point == nil {
			return fault.New(fault.PointMissing, "recovery point %q is gone", r.plan.Found.ID)
		}
		view, err := replica.Follow(ctx, rep, point.ID)
		if err != nil {
			return r.rotten(ctx, rep, st, *point, err)
		}
		defer func() { err = errors.Join(err, view.Close()) }()
		for _, d := range st.Disks {
			if _, ok := point.Sizes[d.Name]; !ok {
				continue
			}
			n, err := r.proveDisk(ctx, view, d.Name)
			bytes += n
			if err != nil {
				return r.rotten(ctx, rep, st, *point, fault.In(err, r.VM, d.Name))
			}
		}
		return nil
	})
	return bytes, r.condemn(ctx, err)
}

func (r *run) proveDisk(ctx context.Context, view replica.PointView, name string) (bytes int64, err error) {
	src, err := view.Disk(name)
	if err != nil {
		return 0, err
	}
	task := "prove " + name
	r.Meter.Begin(task, src.Size(), 0)
	defer r.Meter.End(task)
	buffers := sync.Pool{New: func() any { b := durable.AlignedBuffer(proveUnit); return &b }}
	g, running := errgroup.WithContext(ctx)
	g.SetLimit(proveTasks)
	for off := int64(0); off < src.Size() && running.Err() == nil; {
		var e block.Extent
		if e, err = src.Extent(off, src.Size()-off); err != nil { // a hole is one step, whatever its size
			break
		}
		if e.Kind == block.Data {
			e.Len = min(e.Len, proveUnit)
		}
		off = e.End()
		r.Meter.Add(task, e.Len)
		if e.Kind != block.Data {
			continue
		}
		bytes += e.Len
		g.Go(func() error {
			b := buffers.Get().(*[]byte)
			defer buffers.Put(b)
			return durable.ReadFull(src, (*b)[:e.Len], e.Off)
		})
	}
	if gerr := g.Wait(); gerr != nil { // the walk ended because of it
		return bytes, gerr
	}
	return bytes, errors.Join(err, ctx.Err())
}
