package disk

import (
	"encoding/binary"
	"errors"
	"io"
	"path/filepath"
	"strings"

	"sitrep/internal/durable"
)

// maxBeside is how many files of a folder Child looks at.
const maxBeside = 1000

// Child looks in the folder of a disk for a file that was made on top of it: a checkpoint's AVHDX, a snapshot's overlay. A VM that has such
// a file writes to it, and the disk stays as it is. Of a chain of them the last one is returned, "" when there is none. Whose child
// a file is, its header says: by path, and of VHD and VHDX by the identity of the parent too. Files that cannot be read as images are no
// children. It reads headers only, of at most maxBeside files.
func Child(fsys durable.FS, path string) (string, error) {
	base, err := fsys.Stat(path)
	if err != nil {
		return "", nil // that the disk cannot be found is said better by opening it
	}
	dir := filepath.Dir(path)
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return "", err
	}
	found, depth, looked := "", 0, 0
	for _, e := range entries {
		if e.Dir || e.Name == filepath.Base(path) || durable.IsTemp(e.Name) || strings.HasSuffix(e.Name, ".hrl") {
			continue
		}
		if looked++; looked > maxBeside {
			break
		}
		file := filepath.Join(dir, e.Name)
		if st, err := fsys.Stat(file); err != nil || st.Same(base) {
			continue
		}
		if n := above(fsys, file, base, path); n > depth {
			found, depth = file, n
		}
	}
	return found, nil
}

// above is by how many files a file lies above the base, 0 when it does not.
func above(fsys durable.FS, file string, base durable.Stamp, path string) int {
	format := signatureOf(fsys, file)
	switch {
	case format == QCOW2:
		return qcow2Above(fsys, file, base, path)
	case format != VHD && format != VHDX:
		return 0
	}
	d, err := Open(fsys, file, format)
	if err != nil {
		return 0
	}
	defer d.Close()
	for i, f := range d.Files() {
		if st, err := fsys.Stat(f); i > 0 && err == nil && isFile(st, base, f, path) {
			return i
		}
	}
	return 0
}

// isFile compares by what the filesystem says where it tells files apart, else by name.
func isFile(st, base durable.Stamp, name, path string) bool {
	if st.Inode != 0 && base.Inode != 0 {
		return st.Same(base)
	}
	return filepath.Clean(name) == filepath.Clean(path)
}

// signatureOf is the format that the first bytes of a file say, Raw when they say none. Those of a VHD with a parent have a copy of its
// footer.
func signatureOf(fsys durable.FS, file string) Format {
	f, err := fsys.Open(file)
	if err != nil {
		return Raw
	}
	defer f.Close()
	var h [8]byte
	if _, err := f.ReadAt(h[:], 0); err != nil {
		return Raw
	}
	switch {
	case string(h[:]) == "vhdxfile":
		return VHDX
	case string(h[:]) == "conectix":
		return VHD
	case string(h[:4]) == "QFI\xfb":
		return QCOW2
	}
	return Raw
}

// qcow2Above follows the backing files of a qcow2 file.
func qcow2Above(fsys durable.FS, file string, base durable.Stamp, path string) int {
	for n := 1; n <= maxDepth; n++ {
		backing, err := backingOf(fsys, file)
		if err != nil || backing == "" {
			return 0
		}
		if !filepath.IsAbs(backing) {
			backing = filepath.Join(filepath.Dir(file), backing)
		}
		st, err := fsys.Stat(backing)
		if err != nil {
			return 0
		}
		if isFile(st, base, backing, path) {
			return n
		}
		file = backing
	}
	return 0
}

// backingOf is the name of the backing file of a qcow2 file, "" when it has none.
func backingOf(fsys durable.FS, file string) (string, error) {
	f, err := fsys.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var h [20]byte
	if _, err := f.ReadAt(h[:], 0); err != nil {
		return "", err
	}
	off, n := binary.BigEndian.Uint64(h[8:]), binary.BigEndian.Uint32(h[16:])
	if string(h[:4]) != "QFI\xfb" || off == 0 || n == 0 {
		return "", nil
	}
	const maxName = 1023 // of the format
	if n > maxName || off > 2<<20 {
		return "", errors.New("the name of the backing file is out of bounds")
	}
	name := make([]byte, n)
	if _, err := f.ReadAt(name, int64(off)); err != nil && err != io.EOF {
		return "", err
	}
	return strings.TrimPrefix(string(name), "file:"), nil
}
