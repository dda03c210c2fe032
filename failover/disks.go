package failover

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"

	"sitrep/failover/recovered"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
)

// DisksIn says where the disks of recovered VMs are made. The words are those of the ledger.
type DisksIn string

const (
	// InFolder is files of Job.Format in Job.Folder, or Job.TestFolder.
	InFolder DisksIn = ""
	// InStore is fixed VHDs beside the replica, in a store that is a replica.Promoter. The VM's host finds them by their address.
	InStore DisksIn = "store"
)

// diskPlace is where the disks of one recovered VM live. It is all that differs between the places: states, plan and steps know
// nothing else of them. Its methods can be called again after a kill at any time.
type diskPlace interface {
	// plan says what making disks of a point will do.
	plan(disks, point string) string
	// disk is where a disk will be, as far as that is known before it is made, and its format.
	disk(name string) (path string, f disk.Format)
	// ready fails when disks could not be made, or would be where others' are. The failover was not begun yet.
	ready(ctx context.Context, disks []host.Disk) error
	// make makes the disks of a point out of rep, and fills in where they are. It returns how many bytes it has dealt with. One
	// that an earlier run has made is left alone. Where it can be told later whether a disk was written to, rec gets what is needed.
	make(ctx context.Context, rep replica.Replica, st replica.State, rec *replica.Failover, disks []host.Disk) (int64, error)
	// open opens a disk that was made for reading, as its VM has left it.
	open(ctx context.Context, d host.Disk) (disk.Image, error)
	// untouched names the disks that nothing has written to since they were made, where that can be told.
	untouched(ctx context.Context, stamps map[string]string, disks []host.Disk) ([]string, error)
	// remove removes the disks of these names, complete or half made, and those that the ledger says were made. What is not there is no
	// error.
	remove(ctx context.Context, names []string, made []host.Disk) error
}

// disksOf is where the disks of a failover live; id is the one in its record, zero when there is none.
func (j *Job) disksOf(in DisksIn, k Kind, id hrl.ID) diskPlace {
	if in == InStore {
		return &storeDisks{j, k, id}
	}
	return &folderDisks{j, k, id}
}

// madeIn is where the disks live that a failover has made, or begun to make.
func (j *Job) madeIn(k Kind, rec *replica.Failover) diskPlace {
	if rec == nil {
		return j.disksOf(j.DisksIn, k, hrl.ID{})
	}
	return j.disksOf(DisksIn(rec.DisksIn), k, rec.ID)
}

// removeDisks removes the disks that a failover has made, half-made ones too.
func (j *Job) removeDisks(ctx context.Context, st replica.State, k Kind, d host.Definition) error {
	var names []string
	for _, s := range st.Disks {
		names = append(names, s.Name)
	}
	return j.madeIn(k, *k.record(&st)).remove(ctx, names, d.Disks)
}

// folderDisks are files in a folder.
type folderDisks struct {
	*Job
	kind Kind
	id   hrl.ID
}

func (p *folderDisks) folder() string {
	if p.kind == Test {
		return p.TestFolder
	}
	return p.Folder
}

func (p *folderDisks) plan(disks, point string) string {
	return "copy " + disks + " of point " + point + " to " + p.folder()
}

func (p *folderDisks) disk(name string) (string, disk.Format) {
	return filepath.Join(p.folder(), name+"."+string(p.Format)), p.Format
}

func (p *folderDisks) ready(_ context.Context, disks []host.Disk) error {
	for _, d := range disks {
		_, err := p.FS.Stat(d.Path)
		if err == nil {
			return fault.New(fault.Exists, "there is a disk already, of an earlier failover perhaps: move it away").At(d.Path).Of(p.VM, d.Name)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return fault.In(err, p.VM, d.Name)
		}
	}
	return p.writable()
}

// writable tries the folder, and leaves nothing in it: a source is not stopped for disks that cannot be made.
func (p *folderDisks) writable() error {
	if err := p.FS.MkdirAll(p.folder()); err != nil {
		return fault.FromOS(err)
	}
	f, err := p.FS.Create(durable.TempName(filepath.Join(p.folder(), "probe")))
	if err != nil {
		return fault.FromOS(err)
	}
	return errors.Join(f.Close(), p.removeFolder(p.folder()))
}

func (p *folderDisks) make(ctx context.Context, rep replica.Replica, st replica.State, rec *replica.Failover, disks []host.Disk) (bytes int64, err error) {
	if err := p.FS.MkdirAll(p.folder()); err != nil {
		return 0, err
	}
	view, err := rep.Points().Open(ctx, st, rec.Point)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, view.Close()) }()
	for _, d := range disks {
		n, err := p.makeOne(ctx, view, d)
		if err != nil {
			return bytes, fault.In(err, p.VM, d.Name)
		}
		bytes += n
	}
	return bytes, nil
}

func (p *folderDisks) makeOne(ctx context.Context, view replica.PointView, d host.Disk) (int64, error) {
	src, err := view.Disk(d.Name)
	if err != nil {
		return 0, err
	}
	res, err := recovered.Make(ctx, recovered.Config{
		FS: p.FS, Source: src, Path: d.Path, Format: disk.Format(d.Format), SectorSize: d.SectorSize, ID: p.id, VM: p.VM, Disk: d.Name, Meter: p.Meter,
	})
	return res.Written, err
}

func (p *folderDisks) open(_ context.Context, d host.Disk) (disk.Image, error) {
	return disk.Open(p.FS, d.Path, disk.Format(d.Format))
}

// untouched is for disks whose VM may have written to a copy; these files are what it runs from.
func (p *folderDisks) untouched(context.Context, map[string]string, []host.Disk) ([]string, error) {
	return nil, nil
}

// remove removes the files, and their folder when nothing of others is left in it.
func (p *folderDisks) remove(_ context.Context, names []string, made []host.Disk) error {
	paths := map[string]bool{}
	for _, name := range names {
		path, _ := p.disk(name)
		paths[path] = true
	}
	for _, d := range made { // the site file may name another folder, or format, by now
		paths[d.Path] = true
	}
	folders := map[string]bool{}
	for path := range paths {
		folders[filepath.Dir(path)] = true
		if _, err := p.FS.Stat(filepath.Dir(path)); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := recovered.Remove(p.FS, path); err != nil {
			return err
		}
	}
	for folder := range folders {
		if err := p.removeFolder(folder); err != nil {
			return err
		}
	}
	return nil
}

// removeFolder removes a folder of recovered disks with what a killed run has left half made, if nothing else is in it.
func (p *folderDisks) removeFolder(folder string) error {
	entries, err := p.FS.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Dir || !durable.IsTemp(e.Name) {
			return nil
		}
	}
	for _, e := range entries {
		if err := durable.RemoveIfThere(p.FS, filepath.Join(folder, e.Name)); err != nil {
			return err
		}
	}
	if err := durable.RemoveIfThere(p.FS, folder); err != nil {
		return err
	}
	return p.FS.SyncDir(filepath.Dir(folder)) // the ledger forgets it next, and it must not come back then
}
