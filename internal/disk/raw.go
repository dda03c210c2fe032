package disk

import (
	"errors"
	"fmt"
	"io"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// sectorSize is the unit of the size of a disk in bytes.
const sectorSize = 512

// rawImage is a file, or a block device, that holds the guest's bytes and nothing else. A file that ends within a sector
// is taken as if zeros followed up to the end of that sector.
type rawImage struct {
	file durable.File
	have int64 // bytes of the file when it was opened
	size int64 // guest bytes
}

func openRaw(f durable.File) (*rawImage, error) {
	have, err := f.Size()
	if err != nil {
		return nil, fault.FromOS(err)
	}
	if have <= 0 || have > 1<<62 {
		return nil, fault.New(fault.DiskFormat, "a disk cannot have %d bytes", have).At(f.Name())
	}
	return &rawImage{file: f, have: have, size: block.RoundUp(have, sectorSize)}, nil
}

func (r *rawImage) Size() int64  { return r.size }
func (r *rawImage) Close() error { return r.file.Close() }

func (r *rawImage) check(off, n int64) error {
	if !(block.Range{Off: off, Len: n}).Within(r.size) {
		return fmt.Errorf("range [%d,+%d) lies outside of the disk of %d bytes: %s", off, n, r.size, r.file.Name())
	}
	return nil
}

func (r *rawImage) ReadAt(p []byte, off int64) (int, error) {
	var eof error
	if off >= 0 && int64(len(p)) > r.size-off {
		p, eof = p[:max(0, r.size-off)], io.EOF
	}
	if len(p) == 0 {
		return 0, eof
	}
	if err := r.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	inFile := p[:max(0, min(int64(len(p)), r.have-off))]
	if err := readFull(r.file, inFile, off); err != nil {
		return 0, err
	}
	clear(p[len(inFile):])
	return len(p), eof
}

func (r *rawImage) Extent(off, n int64) (block.Extent, error) {
	if err := r.check(off, n); err != nil {
		return block.Extent{}, err
	}
	return r.file.Extent(off, n)
}

// rawWriter is a raw image that can be changed.
type rawWriter struct{ *rawImage }

func (w rawWriter) WriteAt(p []byte, off int64) (int, error) {
	if err := w.check(off, int64(len(p))); err != nil {
		return 0, err
	}
	n, err := w.file.WriteAt(p, off)
	if err != nil {
		return n, fault.FromOS(err)
	}
	return n, nil
}

func (w rawWriter) ZeroAt(off, n int64) error {
	if err := w.check(off, n); err != nil {
		return err
	}
	return fromOS(w.file.ZeroAt(off, n))
}

func (w rawWriter) Flush() error { return fromOS(w.file.Sync()) }
func (w rawWriter) Close() error { return errors.Join(w.Flush(), w.rawImage.Close()) }

// fromOS is fault.FromOS that leaves nil alone.
func fromOS(err error) error {
	if err == nil {
		return nil
	}
	return fault.FromOS(err)
}

// readFull fills p. That the file ends before means that somebody made it shorter after its size was asked for.
func readFull(f durable.File, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fault.New(fault.DiskModified, "the file became shorter while it was open").AtOff(f.Name(), off+int64(n))
	}
	return fault.FromOS(err)
}
