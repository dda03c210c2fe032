package durable

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/windows"
)

// place is a name in the folder of a within. The folder is open as an os.Root, so whatever is renamed meanwhile, nothing
// outside of it is reached; that no link in it is followed is looked at before.
type place struct {
	root *os.Root
	rel  string
}

func (w within) at(name string) (place, error) {
	rel, err := w.below(name)
	if err != nil {
		return place{}, err
	}
	root, err := os.OpenRoot(w.root)
	if err != nil {
		return place{}, err
	}
	p := place{root: root, rel: rel}
	for i, c := range rel {
		if c == filepath.Separator {
			err = errors.Join(err, p.refuseLink(rel[:i], name))
		}
	}
	if err = errors.Join(err, p.refuseLink(rel, name)); err != nil {
		return place{}, errors.Join(err, root.Close())
	}
	return p, nil
}

// refuseLink fails when a part of the path is a reparse point. One that is not there is no link.
func (p place) refuseLink(rel, name string) error {
	info, err := p.root.Lstat(rel)
	if err == nil && info.Mode()&(fs.ModeSymlink|fs.ModeIrregular) != 0 {
		return unsafeFile(name, fmt.Sprintf("lies behind a link or another reparse point (%s), which is not followed", rel))
	}
	return nil
}

func (w within) open(name string, flag int, manyNames bool) (File, error) {
	p, err := w.at(name)
	if err != nil {
		return nil, err
	}
	defer p.root.Close()
	f, err := p.root.OpenFile(p.rel, flag, 0o600)
	if err != nil {
		return nil, err
	}
	if err := checkOpened(f, name, manyNames); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return fileOf(f, flag), nil
}

// checkOpened refuses what is not a regular file, and, unless it may have more, one with several names.
func checkOpened(f *os.File, name string, manyNames bool) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return checkKind(name, info.Mode()|fs.ModeIrregular)
	}
	var by windows.ByHandleFileInformation
	if err := windows.GetFileInformationByHandle(windows.Handle(f.Fd()), &by); err != nil {
		return &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	if by.NumberOfLinks > 1 && !manyNames {
		return unsafeFile(name, fmt.Sprintf("has %d names (hard links): it is also a file somewhere else", by.NumberOfLinks))
	}
	return nil
}

func (w within) Open(name string) (File, error)   { return w.open(name, os.O_RDONLY, false) }
func (w within) OpenRW(name string) (File, error) { return w.open(name, os.O_RDWR, false) }
func (w within) Create(name string) (File, error) {
	return w.open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, false)
}

// OpenLinked opens for writing where that is allowed: only so can it be synced.
func (w within) OpenLinked(name string) (File, error) {
	f, err := w.open(name, os.O_RDWR, true)
	if errors.Is(err, fs.ErrPermission) {
		return w.open(name, os.O_RDONLY, true)
	}
	return f, err
}

// do calls the operation with the place of a name.
func (w within) do(name string, op func(p place) error) error {
	p, err := w.at(name)
	if err != nil {
		return err
	}
	return errors.Join(op(p), p.root.Close())
}

func (w within) Rename(oldName, newName string) error {
	return w.do(oldName, func(from place) error {
		return w.do(newName, func(to place) error {
			info, err := to.root.Lstat(to.rel)
			if err := mayBeReplaced(newName, info, err); err != nil {
				return err
			}
			return from.root.Rename(from.rel, to.rel)
		})
	})
}

// Link takes any file as the old name, which an os.Root has no call for: the folder of the new name was looked at just before.
func (w within) Link(oldName, newName string) error {
	return w.do(newName, func(place) error { return w.osFS.Link(oldName, newName) })
}

func (w within) Remove(name string) error {
	rel, err := w.below(name)
	if err != nil || rel == "." {
		return errors.Join(err, w.osFS.Remove(w.root))
	}
	root, err := os.OpenRoot(w.root)
	if err != nil {
		return err
	}
	p := place{root: root, rel: rel}
	if folder := filepath.Dir(rel); folder != "." { // the name itself may be a link, and goes
		for part := folder; part != "."; part = filepath.Dir(part) {
			err = errors.Join(err, p.refuseLink(part, name))
		}
	}
	if err == nil {
		err = root.Remove(rel)
	}
	return errors.Join(err, root.Close())
}

func (w within) MkdirAll(name string) error {
	rel, err := w.below(name)
	if err == nil {
		err = w.osFS.MkdirAll(w.root)
	}
	if err != nil || rel == "." {
		return err
	}
	return w.do(name, func(p place) error { return p.root.MkdirAll(p.rel, 0o700) })
}

func (w within) ReadDir(name string) (list []Entry, err error) {
	err = w.do(name, func(p place) error {
		d, err := p.root.Open(p.rel)
		if err == nil {
			list, err = listed(d)
		}
		return err
	})
	return list, err
}

func (w within) Stat(name string) (s Stamp, err error) {
	err = w.do(name, func(place) error { // which has found no link on the way
		s, err = stampAt(name)
		return err
	})
	return s, err
}

func (w within) SyncDir(string) error { return nil }

func (w within) Lock(name string) (lock io.Closer, err error) {
	err = w.do(name, func(place) error {
		lock, err = w.osFS.Lock(name)
		return err
	})
	return lock, err
}
