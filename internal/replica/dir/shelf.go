package dir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

const (
	copyUnit  = 1 << 20 // bytes of one transfer
	copyTasks = 8       // transfers under way
)

// shelf is the folder of the logs that have arrived.
type shelf struct{ r *vmReplica }

// Path tells where a log is.
func (s *shelf) Path(name string) string { return filepath.Join(s.r.shelfPath(), name) }

// Put lays a log on the shelf; see replica.Shelf. In the same filesystem the log gets a second name there, and nothing is
// copied: a sealed log is never written again. Bytes are counted as if they were.
func (s *shelf) Put(ctx context.Context, name string, f durable.File) (int64, error) {
	err := s.r.writable(ctx)
	if err == nil {
		err = checkLogName(name)
	}
	var sent int64
	if err == nil {
		sent, err = s.put(ctx, s.Path(name), f)
	}
	return sent, fault.In(s.r.cause(err), s.r.vm, "")
}

// checkLogName keeps a log from being taken for something else.
func checkLogName(name string) error {
	if err := replica.CheckName(name); err != nil {
		return fault.Wrap(fault.UsageError, err, "the name of a log")
	}
	return nil
}

func (s *shelf) put(ctx context.Context, path string, f durable.File) (sent int64, err error) {
	tmp := durable.TempName(path)
	defer func() {
		if err != nil {
			err = errors.Join(err, durable.RemoveIfThere(s.r.fs, tmp))
		}
	}()
	sent, err = s.link(f, tmp)
	if errors.Is(err, errors.ErrUnsupported) {
		sent, err = s.copy(ctx, f, tmp)
	}
	if err != nil {
		return 0, err
	}
	err = s.r.asOwner(ctx, func() error {
		if err := s.r.fs.Rename(tmp, path); err != nil {
			return err
		}
		// Rename does nothing when both names are the same file already, which is so when a log is put again.
		return durable.RemoveIfThere(s.r.fs, tmp)
	})
	if err != nil {
		return 0, err
	}
	return sent, s.r.fs.SyncDir(filepath.Dir(path))
}

// link gives f's file the name tmp, or fails with errors.ErrUnsupported.
func (s *shelf) link(f durable.File, tmp string) (int64, error) {
	err := s.r.fs.Link(f.Name(), tmp)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, errors.ErrUnsupported // f has no name any more, but it can be read
	}
	if err != nil {
		return 0, err
	}
	same, err := s.sameFile(f, tmp)
	if err == nil && !same { // another file has f's name by now
		err = errors.Join(errors.ErrUnsupported, durable.RemoveIfThere(s.r.fs, tmp))
	}
	if err != nil {
		return 0, err
	}
	return dataBytes(f)
}

// sameFile says whether path is certain to be f, and makes what was written to f durable.
func (s *shelf) sameFile(f durable.File, path string) (same bool, err error) {
	g, err := durable.OpenLinked(s.r.fs, path)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	mine, err := f.Stamp()
	if err != nil {
		return false, err
	}
	linked, err := g.Stamp()
	if err != nil || !mine.Same(linked) || mine.Size != linked.Size {
		return false, err
	}
	return true, g.Sync()
}

// dataBytes counts the bytes of a file that are not in holes.
func dataBytes(f durable.File) (n int64, err error) {
	size, err := f.Size()
	if err != nil {
		return 0, err
	}
	err = eachData(f, size, func(r block.Range) error { n += r.Len; return nil })
	return n, err
}

// eachData calls do for every run of data before size, in ascending order.
func eachData(f durable.File, size int64, do func(block.Range) error) error {
	for off := int64(0); off < size; {
		e, err := f.Extent(off, size-off)
		if err != nil {
			return err
		}
		if e.Len <= 0 {
			return fmt.Errorf("%s: no extent at offset %d", f.Name(), off)
		}
		if e.Kind == block.Data {
			if err := do(e.Range); err != nil {
				return err
			}
		}
		off = e.End()
	}
	return nil
}

// copy writes f's data into a new file tmp, leaving out its holes, and makes it durable.
func (s *shelf) copy(ctx context.Context, f durable.File, tmp string) (sent int64, err error) {
	out, err := s.r.fs.Create(tmp)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	size, err := f.Size()
	if err != nil {
		return 0, err
	}
	if err := out.Truncate(size); err != nil {
		return 0, err
	}
	sent, err = s.r.copyData(ctx, out, f, size)
	if err != nil {
		return 0, err
	}
	if err := out.Sync(); err != nil {
		return 0, err
	}
	if now, err := f.Size(); err != nil || now != size {
		return 0, errors.Join(err, fmt.Errorf("%s had %d bytes and now has %d: it was written to while it was copied", f.Name(), size, now))
	}
	return sent, nil
}

// copyData copies the runs of data of in, in aligned pieces, several at a time.
func (r *vmReplica) copyData(ctx context.Context, out, in durable.File, size int64) (sent int64, err error) {
	var runs block.Set
	if err := eachData(in, size, func(r block.Range) error { runs.Add(r); return nil }); err != nil {
		return 0, err
	}
	return r.eachPiece(ctx, &runs, func(buf []byte, off int64) error {
		if err := durable.ReadFull(in, buf, off); err != nil {
			return err
		}
		_, err := out.WriteAt(buf, off)
		return err
	})
}

// eachPiece calls do for a set in pieces of at most copyUnit bytes, from copyTasks goroutines, with memory of the piece's
// length, and returns the bytes that it was called for. The first error ends it. The memory is used again by the next call.
func (r *vmReplica) eachPiece(ctx context.Context, set *block.Set, do func(buf []byte, off int64) error) (sum int64, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	pieces := make(chan block.Range)
	longest := min(copyUnit, set.Bytes())
	var tasks sync.WaitGroup
	for range copyTasks {
		tasks.Go(func() {
			buf := r.buffer(longest)
			defer r.buffers.Put(&buf)
			for piece := range pieces {
				if ctx.Err() != nil {
					continue
				}
				if err := do(buf[:piece.Len], piece.Off); err != nil {
					cancel(err)
				}
			}
		})
	}
	for piece := range set.Chunks(copyUnit) {
		if ctx.Err() != nil {
			break
		}
		pieces <- piece
		sum += piece.Len
	}
	close(pieces)
	tasks.Wait()
	return sum, context.Cause(ctx)
}

// buffer returns n bytes, at most copyUnit, for transfers around the page cache. They go back to r.buffers.
func (r *vmReplica) buffer(n int64) []byte {
	if b, _ := r.buffers.Get().(*[]byte); b != nil && int64(len(*b)) >= n {
		return *b
	}
	return durable.AlignedBuffer(int(n))
}

// Open opens a log for reading; see replica.Shelf.
func (s *shelf) Open(ctx context.Context, name string) (durable.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, fault.In(err, s.r.vm, "")
	}
	if err := checkLogName(name); err != nil {
		return nil, fault.In(err, s.r.vm, "")
	}
	f, err := durable.OpenLinked(s.r.fs, s.Path(name)) // beside the disk it may have its first name still
	if err != nil {
		return nil, fault.In(err, s.r.vm, "")
	}
	return f, nil
}

// Names lists the shelf; see replica.Shelf.
func (s *shelf) Names(ctx context.Context) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, fault.In(err, s.r.vm, "")
	}
	entries, err := s.r.fs.ReadDir(s.r.shelfPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // nothing has arrived yet
	}
	if err != nil {
		return nil, fault.In(err, s.r.vm, "")
	}
	var names []string
	for _, e := range entries {
		if !e.Dir && !durable.IsTemp(e.Name) && !strings.HasPrefix(e.Name, ".") {
			names = append(names, e.Name)
		}
	}
	return names, nil
}

// Remove removes a log; see replica.Shelf.
func (s *shelf) Remove(ctx context.Context, name string) error {
	err := s.r.writable(ctx)
	if err == nil {
		err = checkLogName(name)
	}
	if err == nil {
		err = s.r.asOwner(ctx, func() error { return durable.RemoveIfThere(s.r.fs, s.Path(name)) })
	}
	return fault.In(err, s.r.vm, "")
}
