package durable

import (
	"errors"
	"fmt"
	"io/fs"
)

// TooLargeError says that a file is longer than what its reader is ready to hold in memory.
type TooLargeError struct {
	Name        string
	Size, Limit int64 // bytes
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("%s has %d bytes, more than the %d that such a file can have", e.Name, e.Size, e.Limit)
}

// LockedError is ErrLocked with the process that holds the lock.
type LockedError struct {
	PID int // on this machine, as this process sees it
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("locked by process %d of this machine", e.PID)
}

// Unwrap makes it ErrLocked.
func (e *LockedError) Unwrap() error { return ErrLocked }

// ignoreMissing turns "is not there" into nil.
func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// RemoveIfThere removes a file; that it is not there is no error.
func RemoveIfThere(fs FS, name string) error { return ignoreMissing(fs.Remove(name)) }
