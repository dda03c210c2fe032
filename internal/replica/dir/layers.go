package dir

import (
	"errors"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

// maxOpen is how many undo logs of a disk are kept open. A chain may be longer than a process may have files: of the others each read
// opens the file again.
const maxOpen = 32

// layers are the files of verified undo logs. They may be read concurrently.
type layers struct {
	fs   durable.FS
	list []layer
}

type layer struct {
	path  string
	file  durable.File // nil: opened when it is read
	stamp durable.Stamp
}

func (l *layers) count() int { return len(l.list) }

func (l *layers) name(i int) string { return l.list[i].path }

// add takes over a file. After an error it is the caller's.
func (l *layers) add(f durable.File) error {
	x := layer{path: f.Name(), file: f}
	if len(l.list) >= maxOpen {
		var err error
		if x.stamp, err = f.Stamp(); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		x.file = nil
	}
	l.list = append(l.list, x)
	return nil
}

// read fills p from an offset of a file.
func (l *layers) read(i int, p []byte, at int64) (err error) {
	x := &l.list[i]
	if x.file != nil {
		return readPages(x.file, p, at)
	}
	f, err := l.fs.Open(x.path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	stamp, err := f.Stamp()
	if err != nil {
		return err
	}
	if stamp != x.stamp {
		return replica.Unseen(fault.New(fault.PointMissing, "the undo log was replaced while the recovery point was read").At(x.path))
	}
	return readPages(f, p, at)
}

func (l *layers) close() error {
	var err error
	for _, x := range l.list {
		if x.file != nil {
			err = errors.Join(err, x.file.Close())
		}
	}
	l.list = nil
	return err
}
