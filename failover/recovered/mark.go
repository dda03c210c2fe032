package recovered

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
)

// This file is about whose a disk is, and whose a folder of disks is. A name says nothing about that: two sites may share a recovery
// host, a path in a ledger or a site file may be edited or lead through a link to somewhere else, and a file may be replaced. What
// says it is a mark that only a failover makes:
//
//   - the claim of a folder, durable before the first disk in it is begun: no other failover makes disks there, and what a killed one
//     has left half made is known to be its own;
//   - the record beside each disk, with the failover's ID and the device and inode of the file, durable before the first byte of it.
//
// What has no mark, or another one, is neither read nor removed, whatever its name is.

// claimName is the name of the claim of a folder.
const claimName = ".recovered.json"

// Claim says which failover a folder of recovered disks belongs to.
type Claim struct {
	ID hrl.ID `json:"id"` // of the failover
	VM string `json:"vm"`
	// Site, Host and At say who made it, and when: for people.
	Site string    `json:"site"`
	Host string    `json:"host"`
	At   time.Time `json:"at"`
}

// Describe names the failover for people.
func (c Claim) Describe() string {
	if c.ID == (hrl.ID{}) {
		return "something that cannot be read"
	}
	return fmt.Sprintf("a failover of VM %s by site %q, host %q, of %s", c.VM, c.Site, c.Host, c.At.UTC().Format(time.RFC3339))
}

// Obsolete says that a claim is of the same VM and site as a later one: what one of the two made there, if anything is left of it, has
// marks of its own.
func (c Claim) Obsolete(later Claim) bool {
	return c.Site != "" && c.Site == later.Site && c.VM == later.VM
}

// ClaimOf reads the claim of a folder; there is false when nobody has claimed it. One that cannot be understood is the zero one: it
// is somebody else's.
func ClaimOf(fsys durable.FS, folder string) (c Claim, there bool, err error) {
	data, err := durable.ReadFile(fsys, filepath.Join(folder, claimName), maxRecord)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return c, false, nil
	case err != nil:
		return c, false, err
	}
	if json.Unmarshal(data, &c) != nil {
		c = Claim{}
	}
	return c, true, nil
}

// MakeClaim claims a folder, which is there, for the failover. It is durable on return. A folder that another one has claimed is
// Exists; one that this failover has claimed before is no error.
func MakeClaim(fsys durable.FS, folder string, c Claim) error {
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(folder, claimName)
	tmp := durable.TempName(path)
	if err := writeNew(fsys, tmp, append(data, '\n')); err != nil {
		return errors.Join(err, durable.RemoveIfThere(fsys, tmp))
	}
	err = fsys.Link(tmp, path) // which fails when the name is taken: of two failovers at the same time one gets the folder
	if errors.Is(err, errors.ErrUnsupported) {
		if _, err = fsys.Stat(path); errors.Is(err, fs.ErrNotExist) {
			err = fsys.Rename(tmp, path)
		} else if err == nil {
			err = fs.ErrExist
		}
	}
	err = errors.Join(err, durable.RemoveIfThere(fsys, tmp))
	if errors.Is(err, fs.ErrExist) {
		have, _, rerr := ClaimOf(fsys, folder)
		switch {
		case rerr != nil:
			return rerr
		case have.ID != c.ID && have.Obsolete(c):
			return durable.WriteFile(fsys, path, append(data, '\n'))
		case have.ID != c.ID || have.VM != c.VM:
			return fault.New(fault.Exists, "the folder belongs to %s: give this site another recovery.folder, or end that failover first", have.Describe()).At(folder)
		}
		err = nil
	}
	if err != nil {
		return err
	}
	return fsys.SyncDir(folder)
}

// RemoveClaim gives a folder up. It is durable on return.
func RemoveClaim(fsys durable.FS, folder string) error {
	if err := durable.RemoveIfThere(fsys, filepath.Join(folder, claimName)); err != nil {
		return err
	}
	return fsys.SyncDir(folder)
}

func writeNew(fsys durable.FS, name string, data []byte) error {
	f, err := fsys.Create(name)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// IsClaim says whether a name in a folder is that of its claim, or of one that is being written.
func IsClaim(name string) bool { return name == claimName || durable.IsTempOf(name, claimName) }

// Owner is what a disk was made for.
type Owner struct {
	ID       hrl.ID // of the failover
	VM, Disk string
}

// identity is which file a record speaks of. Zero: the record is of before it was kept, or the system has none.
type identity struct {
	Device uint64 `json:"device,omitempty"`
	Inode  uint64 `json:"inode,omitempty"`
	// Folder is the device of the folder: devices get other numbers when a machine starts, and a file is still beside its record then.
	Folder uint64 `json:"folder_device,omitempty"`
}

func identityOf(fsys durable.FS, path string) (id identity, err error) {
	file, err := fsys.Stat(path)
	if err != nil {
		return id, err
	}
	folder, err := fsys.Stat(filepath.Dir(path))
	return identity{file.Device, file.Inode, folder.Device}, err
}

// is says whether a file is the one that was recorded.
func (was identity) is(now identity) bool {
	if was.Inode == 0 {
		return true
	}
	sameDevice := was.Device == now.Device || was.Device == was.Folder && now.Device == now.Folder
	return was.Inode == now.Inode && sameDevice
}

// whose says what stands in the way of taking the disk at a path for the one that was made for an owner; "" is nothing. there is about
// the disk.
func whose(fsys durable.FS, path string, o Owner) (why string, was record, there bool, err error) {
	was, there, err = recordOf(fsys, path)
	if err != nil {
		return "", was, there, err
	}
	switch {
	case was.ID == (hrl.ID{}):
		return "nothing beside it says that a failover has made it", was, there, nil
	case was.ID != o.ID || was.VM != o.VM:
		return fmt.Sprintf("another failover, of VM %s, has made it", was.VM), was, there, nil
	case was.Disk != o.Disk:
		return "it is the disk " + was.Disk, was, there, nil
	case !there:
		return "", was, false, nil
	}
	now, err := identityOf(fsys, path)
	if err == nil && !was.is(now) {
		why = "the file is another one than was made: when it was replaced on purpose, take device and inode out of " + RecordPath(path)
	}
	return why, was, there, err
}

// Prove fails when the file at a path is not the disk that was made for an owner: NotFound when there is none, FailoverFailed when
// it is something else.
func Prove(fsys durable.FS, path string, o Owner) error {
	why, _, there, err := whose(fsys, path, o)
	switch {
	case err != nil:
		return fault.In(err, o.VM, o.Disk)
	case !there:
		return fault.New(fault.NotFound, "the recovered disk is not there").At(path).Of(o.VM, o.Disk)
	case why != "":
		return fault.New(fault.FailoverFailed, "this is not the disk of this failover: %s", why).At(path).Of(o.VM, o.Disk)
	}
	return nil
}

// Remove removes a disk that Make has made for an owner, with its record. What is not there is no error. What is there and is not the
// owner's is left, and why says why.
func Remove(fsys durable.FS, path string, o Owner) (why string, err error) {
	why, was, there, err := whose(fsys, path, o)
	if err != nil || why != "" {
		if !there && was.ID == (hrl.ID{}) {
			why = "" // nothing is there
		}
		return why, err
	}
	for _, name := range []string{path, RecordPath(path)} { // one after the other: a file that comes back after a power cut has its record still
		if err := durable.RemoveIfThere(fsys, name); err != nil {
			return "", err
		}
		if err := fsys.SyncDir(filepath.Dir(path)); err != nil {
			return "", err
		}
	}
	return "", nil
}

// RemoveRecord takes the mark of an owner from a disk that is to stay. The record of another one is left.
func RemoveRecord(fsys durable.FS, path string, o Owner) error {
	was, _, err := recordOf(fsys, path)
	if err != nil || was.ID != o.ID || was.VM != o.VM || was.Disk != o.Disk {
		return err
	}
	return durable.RemoveIfThere(fsys, RecordPath(path))
}

// Marked says for which failover the disk at a path was made, by the record beside it; the zero Owner when there is none.
func Marked(fsys durable.FS, path string) (Owner, error) {
	was, _, err := recordOf(fsys, path)
	return Owner{was.ID, was.VM, was.Disk}, err
}
