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

// ignoreMissing turns "is not there" into nil.
func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// RemoveIfThere removes a file; that it is not there is no error.
func RemoveIfThere(fs FS, name string) error { return ignoreMissing(fs.Remove(name)) }
