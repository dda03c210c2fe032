package durable

import "path/filepath"

// Resolve is the absolute path of a file or folder with all links followed. A filesystem that has no links is taken at
// the name.
func Resolve(fsys FS, name string) (string, error) {
	if r, can := fsys.(interface {
		Resolve(name string) (string, error)
	}); can {
		return r.Resolve(name)
	}
	return filepath.Clean(name), nil
}

func (osFS) Resolve(name string) (string, error) {
	path, err := filepath.Abs(name)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}
