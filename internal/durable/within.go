package durable

import (
	"path/filepath"
)

// Within returns fsys as far as it lies in the folder root, for a folder that others can write to as well: a share, a mount,
// the folder of a hypervisor. Whoever writes there may plant a link to a file of this machine, for this program, which may do
// more than they, to write to, read or remove. So of what is returned:
//
//   - root itself may be reached through links, as the operator named it. Below it no link is followed, in no part of a name,
//     and a name that is not below root is refused. Both hold while somebody renames things at the same time.
//   - What is opened is a regular file; nothing waits for the other end of a pipe, and no device is opened.
//   - A file has one name. A second one would be a file of somebody else that is written to, or read, as if it were ours.
//     OpenLinked opens what Link made.
//   - A file belongs to this account, to root, or to whom root (the folder) belongs to. Where the server or a mount option
//     decides what owner is seen (NFS, SMB, FUSE, FAT) the owner says nothing and is not asked.
//   - A rename replaces a regular file or nothing.
//
// What is refused is fault.UnsafeFile. An FS that has no such rules (one of a test) is returned as it is.
func Within(fsys FS, root string) FS {
	if w, can := fsys.(interface{ Within(root string) FS }); can {
		return w.Within(root)
	}
	return fsys
}

// OpenLinked opens a file that may have other names (see FS.Link), to read it and to Sync what was written to it.
func OpenLinked(fsys FS, name string) (File, error) {
	if w, can := fsys.(interface {
		OpenLinked(name string) (File, error)
	}); can {
		return w.OpenLinked(name)
	}
	return fsys.Open(name)
}

// within is the part of the operating system's filesystem that lies in a folder.
type within struct {
	osFS
	root string
}

// Within is the part of the filesystem that lies in a folder; see the function Within.
func (osFS) Within(root string) FS { return within{root: filepath.Clean(root)} }

// below returns the path of a name from root on, "." for root itself.
func (w within) below(name string) (string, error) {
	rel, err := filepath.Rel(w.root, name)
	if err != nil || !filepath.IsLocal(rel) {
		return "", unsafeFile(name, "does not lie in "+w.root)
	}
	return rel, nil
}
