package scan

import (
	"errors"
	"io"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
)

// view is what a cut needs of an open disk.
type view interface {
	disk.Image
	Files() []string
}

type rawView struct{ f durable.File }

func (v rawView) ReadAt(p []byte, off int64) (int, error) {
	n, err := v.f.ReadAt(p, off)
	if n == len(p) && errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}
func (v rawView) Size() int64                               { n, _ := v.f.Size(); return n }
func (v rawView) Extent(off, n int64) (block.Extent, error) { return v.f.Extent(off, n) }
func (v rawView) Close() error                              { return v.f.Close() }
func (v rawView) Files() []string                           { return []string{v.f.Name()} }

func openView(fsys durable.FS, path string, _ disk.Format) (view, error) {
	f, err := fsys.Open(path)
	if err != nil {
		return nil, err
	}
	return rawView{f}, nil
}
