package state

import (
	"errors"
	"path/filepath"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
)

// writer is the record of the folder's ID. It is made once, and never changed.
type writer struct {
	ID   hrl.ID    `json:"id"`
	Made time.Time `json:"made"`
}

const writerName = "writer.json"

// Writer returns the random ID of this folder, zero when it has none yet.
func (d *Dir) Writer() (hrl.ID, error) {
	var w writer
	_, err := d.load(d.Path(writerName), &w)
	return w.ID, err
}

// EnsureWriter returns the random ID of this folder, and gives it one when it has none. It is durable on return. Of runs that do it at
// once one makes it, and the others have it.
func (d *Dir) EnsureWriter() (id hrl.ID, err error) {
	if id, err = d.Writer(); err != nil || !id.IsZero() {
		return id, err
	}
	if err := d.fs.MkdirAll(d.Path("locks")); err != nil {
		return id, fault.FromOS(err)
	}
	lock, err := d.fs.Lock(filepath.Join(d.Path("locks"), ".writer"))
	for try := 0; errors.Is(err, durable.ErrLocked) && try < writerTries; try++ { // it is held for one small file
		time.Sleep(10 * time.Millisecond)
		lock, err = d.fs.Lock(filepath.Join(d.Path("locks"), ".writer"))
	}
	if errors.Is(err, durable.ErrLocked) {
		return id, fault.Wrap(fault.Busy, err, "another run makes the identity of this folder").At(d.Path(writerName))
	}
	if err != nil {
		return id, fault.FromOS(err)
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if id, err = d.Writer(); err != nil || !id.IsZero() {
		return id, err
	}
	id = hrl.NewID()
	return id, d.save(d.Path(writerName), writer{ID: id, Made: d.now().UTC()})
}

// writerTries is how often a lock is asked for that is held for milliseconds.
const writerTries = 200
