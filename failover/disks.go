package failover

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"

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
	// ready fails when disks could not be made, or would be where others' are, before the source is touched.
	ready(ctx context.Context, disks []host.Disk) error
	// prove fails when a disk that the ledger names is not one that this failover has made: nothing is done with it then.
	prove(d host.Disk) error
	// make makes the disks of a point out of rep, and fills in where they are. It returns how many bytes it has dealt with. One
	// that an earlier run has made is left alone. Where it can be told later whether a disk was written to, rec gets what is needed.
	make(ctx context.Context, rep replica.Replica, st replica.State, rec *replica.Failover, disks []host.Disk) (int64, error)
	// open opens a disk that was made for reading, as its VM has left it.
	open(ctx context.Context, d host.Disk) (disk.Image, error)
	// untouched names the disks that nothing has written to since they were made, where that can be told.
	untouched(ctx context.Context, stamps map[string]string, disks []host.Disk) ([]string, error)
	// remove removes the disks of these names, complete or half made, and those that the ledger says were made. What is not there is no
	// error. What this failover has not made stays, and is what left says.
	remove(ctx context.Context, names []string, made []host.Disk) (left []string, err error)
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

// removeDisks removes the disks that a failover has made, half-made ones too. What it has not made stays, whatever its name is.
func (j *Job) removeDisks(ctx context.Context, st replica.State, k Kind, d host.Definition) error {
	var names []string
	for _, s := range st.Disks {
		names = append(names, s.Name)
	}
	left, err := j.madeIn(k, *k.record(&st)).remove(ctx, names, d.Disks)
	for _, what := range left {
		j.Log.Warn("what this failover has not made is left", "vm", j.VM, "what", what)
	}
	return err
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

// owner is what a disk is made for.
func (p *folderDisks) owner(name string) recovered.Owner {
	return recovered.Owner{ID: p.id, VM: p.VM, Disk: name}
}

func (p *folderDisks) claim() recovered.Claim {
	return recovered.Claim{ID: p.id, VM: p.VM, Site: p.By.Site, Host: p.By.Host, At: p.Now().UTC()}
}

func (p *folderDisks) prove(d host.Disk) error { return recovered.Prove(p.FS, d.Path, p.owner(d.Name)) }

func (p *folderDisks) ready(_ context.Context, disks []host.Disk) error {
	if err := p.free(p.folder(), disks); err != nil {
		return err
	}
	return p.writable()
}

// free refuses a folder in which a VM of somebody else lies, or in which the disks that are protected lie, by whatever name it is
// reached.
func (p *folderDisks) free(folder string, disks []host.Disk) error {
	at, err := durable.FileID(p.FS, folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.FromOS(err)
	}
	for _, d := range p.Home.Disks {
		source, err := durable.FileID(p.FS, filepath.Dir(d.Path))
		if err == nil && source == at {
			return fault.New(fault.PrerequisiteFail, "the disks of the recovered VM would be made in %s, which is the folder of the source's disk %s: "+
				"give another recovery.folder", folder, d.Path).At(folder).Of(p.VM, d.Name)
		}
	}
	claim, there, err := recovered.ClaimOf(p.FS, folder)
	if err != nil {
		return fault.FromOS(err)
	}
	if there && (claim.ID != p.id || claim.VM != p.VM) && !claim.Obsolete(p.claim()) {
		return fault.New(fault.Exists, "the folder belongs to %s: end that one first, or give this site another recovery.folder", claim.Describe()).At(folder)
	}
	for _, d := range disks {
		if _, err := p.FS.Stat(d.Path); err == nil && p.prove(d) != nil {
			return fault.New(fault.Exists, "there is a disk already, of an earlier failover perhaps: move it away").At(d.Path).Of(p.VM, d.Name)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fault.In(err, p.VM, d.Name)
		}
	}
	return p.strangers(folder)
}

// strangers refuses a folder with disks in it that this failover has not made, also when they have other names than those that it
// would make.
func (p *folderDisks) strangers(folder string) error {
	entries, err := p.FS.ReadDir(folder)
	if err != nil {
		return fault.FromOS(err)
	}
	for _, e := range entries {
		if e.Dir || durable.IsTemp(e.Name) || !isDiskName(e.Name) {
			continue
		}
		path := filepath.Join(folder, e.Name)
		made, err := recovered.Marked(p.FS, path)
		if err != nil {
			return fault.FromOS(err)
		}
		if made.ID != p.id || made.VM != p.VM || p.id == (hrl.ID{}) {
			return fault.New(fault.Exists, "there is a disk in the folder that this failover has not made: move it away, or give another recovery.folder").At(path).Of(p.VM, "")
		}
	}
	return nil
}

// isDiskName says whether a file is a disk, by its name.
func isDiskName(name string) bool {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".raw", ".img", ".vhd", ".vhdx", ".avhd", ".avhdx", ".vhds", ".qcow2":
		return true
	}
	return false
}

// probeName is what a file is called by which a folder is tried.
const probeName = "probe"

// writable tries the folder, and leaves nothing in it, also of a run that was killed while it tried: a source is not stopped for disks
// that cannot be made.
func (p *folderDisks) writable() error {
	_, err := p.FS.Stat(p.folder())
	was := err == nil
	if err := p.FS.MkdirAll(p.folder()); err != nil {
		return fault.FromOS(err)
	}
	f, err := p.FS.Create(durable.TempName(filepath.Join(p.folder(), probeName)))
	if err != nil {
		return fault.FromOS(err)
	}
	entries, err := p.FS.ReadDir(p.folder())
	err = errors.Join(err, f.Close())
	for _, e := range entries {
		if !e.Dir && durable.IsTempOf(e.Name, probeName) {
			err = errors.Join(err, durable.RemoveIfThere(p.FS, filepath.Join(p.folder(), e.Name)))
		}
	}
	if err == nil && !was {
		err = p.removeFolder(p.folder())
	}
	return err
}

func (p *folderDisks) make(ctx context.Context, rep replica.Replica, _ replica.State, rec *replica.Failover, disks []host.Disk) (bytes int64, err error) {
	if err := p.FS.MkdirAll(p.folder()); err != nil {
		return 0, err
	}
	if err := recovered.MakeClaim(p.FS, p.folder(), p.claim()); err != nil {
		return 0, err
	}
	view, err := replica.Follow(ctx, rep, rec.Point)
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
	if err := p.prove(d); err != nil {
		return nil, err
	}
	return disk.Open(p.FS, d.Path, disk.Format(d.Format))
}

// untouched is for disks whose VM may have written to a copy; these files are what it runs from.
func (p *folderDisks) untouched(context.Context, map[string]string, []host.Disk) ([]string, error) {
	return nil, nil
}

// remove removes the files that carry the mark of this failover, and their folder when nothing of others is left in it.
func (p *folderDisks) remove(_ context.Context, names []string, made []host.Disk) (left []string, err error) {
	paths := map[string]string{} // and the names of their disks
	for _, name := range names {
		path, _ := p.disk(name)
		paths[path] = name
	}
	for _, d := range made { // the site file may name another folder, or format, by now
		paths[d.Path] = d.Name
	}
	folders := map[string]bool{}
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		folder := filepath.Dir(path)
		if _, err := p.FS.Stat(folder); err != nil {
			continue // it is not there, or cannot be looked into: nothing in it is known to be ours
		}
		folders[folder] = true
		why, err := recovered.Remove(p.FS, path, p.owner(paths[path]))
		if err != nil {
			return left, err
		}
		if why != "" {
			left = append(left, path+": "+why)
		}
	}
	for _, folder := range slices.Sorted(maps.Keys(folders)) {
		if err := p.leave(folder, names); err != nil {
			return left, err
		}
	}
	return left, nil
}

// leave removes from a folder what a killed run of this failover has left half made there, and its claim; and the folder, when nothing
// else is in it. A folder without a claim is of before there were claims: it goes when there is nothing in it but what was half made.
func (p *folderDisks) leave(folder string, names []string) error {
	claim, claimed, err := recovered.ClaimOf(p.FS, folder)
	if err != nil || claimed && (claim.ID != p.id || claim.VM != p.VM) {
		return err
	}
	entries, err := p.FS.ReadDir(folder)
	if err != nil {
		return err
	}
	ours := func(e durable.Entry) bool { return !e.Dir && (recovered.IsClaim(e.Name) || p.halfMade(e.Name, names)) }
	if !claimed && slices.ContainsFunc(entries, func(e durable.Entry) bool { return !ours(e) }) {
		return nil
	}
	for _, e := range entries {
		if ours(e) && durable.IsTemp(e.Name) {
			if err := durable.RemoveIfThere(p.FS, filepath.Join(folder, e.Name)); err != nil {
				return err
			}
		}
	}
	if claimed { // last: as long as it is there the rest is known to be ours
		if err := recovered.RemoveClaim(p.FS, folder); err != nil {
			return err
		}
	}
	return p.removeFolder(folder)
}

// halfMade says whether a name is that of a disk of these names that is being made, of its record, or of a file that tried the folder.
func (p *folderDisks) halfMade(entry string, names []string) bool {
	base, temp := durable.TempBase(entry)
	if !temp {
		return false
	}
	if base == probeName {
		return true
	}
	for _, name := range names {
		if strings.HasPrefix(base, name+".") {
			return true
		}
	}
	return false
}

// removeFolder removes a folder that is empty.
func (p *folderDisks) removeFolder(folder string) error {
	entries, err := p.FS.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || len(entries) > 0 {
		return err
	}
	if err := durable.RemoveIfThere(p.FS, folder); err != nil {
		return err
	}
	return p.FS.SyncDir(filepath.Dir(folder)) // the ledger forgets it next, and it must not come back then
}
