package dir

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"

	"sitrep/internal/disk/vhd"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

const (
	fenceName = "fence.json" // there while the files of disks have to be made anew after a Seize
	maxFence  = 16 << 20     // bytes
)

// fenceMark says that runs of older generations may have the files of the disks open for writing. It is written before the
// ledger that takes over, and removed when every file is another one than those runs have.
type fenceMark struct {
	// Generation is the one that takes over. A mark of a later generation than the ledger's is of a Seize that did not come
	// to take over.
	Generation uint64 `json:"generation"`
	// From is the generations whose locks were held.
	From []uint64 `json:"from"`
	// Files is what was made anew, by name.
	Files map[string]freshFile `json:"files,omitempty"`
}

// freshFile is a file that took the place of another one, or is about to.
type freshFile struct {
	Stamp string `json:"stamp"`
	// AsLeft says that what it was copied from was as the ledger's stamp says.
	AsLeft bool `json:"as_left"`
}

// Seize takes the replica over; see replica.Store and the package comment. It fails with fault.Busy when a run stopped in the
// middle of a change of names or of the ledger: that one can only be ended.
func (s *Store) Seize(ctx context.Context, vm string, take func(replica.State) (replica.State, error)) (replica.Replica, error) {
	r, err := s.replica(ctx, vm)
	if err != nil {
		return nil, fault.In(err, vm, "")
	}
	err = r.present()
	if err == nil {
		err = r.takeOver(ctx, take)
	}
	if err == nil {
		err = r.takeUp(ctx)
	}
	if err != nil {
		return nil, fault.In(errors.Join(err, r.Close()), vm, "")
	}
	return r, nil
}

// takeOver saves the ledger of the new owner. From then on nothing that an older generation does by name, or in the ledger,
// comes to be.
func (r *vmReplica) takeOver(ctx context.Context, take func(replica.State) (replica.State, error)) (err error) {
	ledgerLock, err := r.lockLedger(ctx)
	if err != nil {
		return r.heldBy(err)
	}
	defer func() { err = errors.Join(err, ledgerLock.Close()) }()
	st, err := r.loadLedger()
	if err != nil {
		return err
	}
	next, err := take(st)
	if err != nil {
		return err
	}
	if err := replica.CheckTake(st, next, r.ledgerPath()); err != nil {
		return err
	}
	if err := r.takeLock(next.Generation); err != nil {
		return err
	}
	r.id = st.Replica
	if next.Generation > st.Generation {
		release, serr := r.succeed(st.Generation, next.Generation)
		if serr != nil {
			return serr
		}
		defer func() { err = errors.Join(err, release()) }()
	}
	_, err = r.writeLedger(next)
	return err
}

// heldBy says whose run it is that holds the ledger, of a Busy of lockLedger.
func (r *vmReplica) heldBy(err error) error {
	st, lerr := r.loadLedger()
	if lerr != nil || !fault.Is(err, fault.Busy) {
		return err
	}
	return fault.Wrap(fault.Busy, err, "a run of site %q on host %q stopped while it was changing the replica; nothing was taken over; "+
		"end that process there, for good, and take over again", st.Owner.Site, st.Owner.Host).At(filepath.Join(r.folder, ledgerLock))
}

// succeed takes the lock of the generation that is taken over from, to be released when the ledger is saved: who has it knows that
// nobody else can write. When a run holds it, that has to be fenced, and this is remembered.
func (r *vmReplica) succeed(from, to uint64) (release func() error, err error) {
	path := r.lockPath(from)
	lock, err := r.fs.Lock(path)
	if err == nil {
		return func() error { return dropLock(r.fs, path, lock) }, nil
	}
	if !errors.Is(err, durable.ErrLocked) {
		return nil, err
	}
	mark, err := r.loadMark()
	if err != nil {
		return nil, err
	}
	mark = &fenceMark{Generation: to, From: append(mark.from(), from)} // what was made anew before, that run may have open
	return func() error { return nil }, r.saveMark(mark)
}

func (m *fenceMark) from() []uint64 {
	if m == nil {
		return nil
	}
	return m.From
}

func (r *vmReplica) fencePath() string { return filepath.Join(r.folder, fenceName) }

// loadMark returns the mark, nil when there is none.
func (r *vmReplica) loadMark() (*fenceMark, error) {
	data, err := durable.ReadFile(r.fs, r.fencePath(), maxFence)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var m fenceMark
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fault.Wrap(fault.LedgerCorrupt, err, "the mark of a takeover is damaged").At(r.fencePath())
	}
	return &m, nil
}

func (r *vmReplica) saveMark(m *fenceMark) error {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(r.fs, r.fencePath(), append(data, '\n'))
}

// fence completes what a Seize has begun: while runs of older generations live, the disks get files that those do not have
// open. It can be interrupted anywhere and done again; a file that was made anew is not copied twice.
func (r *vmReplica) fence(ctx context.Context) error {
	mark, err := r.loadMark()
	if mark == nil || err != nil {
		return err
	}
	st, err := r.loadLedger()
	if err != nil || mark.Generation > st.Generation {
		return err
	}
	gone, err := r.ended(mark.From)
	if err != nil {
		return err
	}
	if !gone {
		for _, d := range st.EveryDisk() {
			if err := r.renewDisk(ctx, &st, d, mark); err != nil {
				return fault.In(err, r.vm, d.Name)
			}
		}
	}
	if err := r.fs.SyncDir(r.folder); err != nil {
		return err
	}
	if err := r.restamp(ctx, st, mark); err != nil {
		return err
	}
	if err := durable.RemoveIfThere(r.fs, r.fencePath()); err != nil {
		return err
	}
	return r.fs.SyncDir(r.folder)
}

// ended says whether no run of these generations lives any more. There cannot come another one: see lockCurrent.
func (r *vmReplica) ended(generations []uint64) (bool, error) {
	for _, g := range generations {
		lock, err := r.fs.Lock(r.lockPath(g))
		if errors.Is(err, durable.ErrLocked) {
			return false, nil
		}
		if err == nil {
			err = dropLock(r.fs, r.lockPath(g), lock)
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

func (r *vmReplica) renewDisk(ctx context.Context, st *replica.State, d *replica.Disk, mark *fenceMark) error {
	pagesStamp, sumsStamp, _ := strings.Cut(d.Stamp, " ")
	err := r.renew(ctx, mark, r.pagesPath(d.Name), pagesStamp, func(in, out durable.File) error {
		return r.copyPages(ctx, st, d, in, out)
	})
	if err != nil {
		return err
	}
	return r.renew(ctx, mark, r.sumsPath(d.Name), sumsStamp, func(in, out durable.File) error {
		_, err := r.copyWhole(ctx, in, out)
		return err
	})
}

// renew puts a copy in the place of a file, unless it is one already. left is the stamp that the ledger knows.
func (r *vmReplica) renew(ctx context.Context, mark *fenceMark, path, left string, copyTo func(in, out durable.File) error) error {
	name := filepath.Base(path)
	stamp, err := r.fs.Stat(path)
	if errors.Is(err, fs.ErrNotExist) { // nobody can have it open either, under this name
		return nil
	}
	if err != nil {
		return err
	}
	if f, ok := mark.Files[name]; ok && f.Stamp == fileStamp(stamp) {
		return nil
	}
	tmp := durable.TempName(path)
	fresh, err := r.copyFile(path, tmp, copyTo)
	if err != nil {
		return errors.Join(err, durable.RemoveIfThere(r.fs, tmp))
	}
	if mark.Files == nil {
		mark.Files = map[string]freshFile{}
	}
	mark.Files[name] = freshFile{Stamp: fileStamp(fresh), AsLeft: fileStamp(stamp) == left}
	if err := r.saveMark(mark); err != nil {
		return err
	}
	err = r.fs.Rename(tmp, path)
	if errors.Is(err, fs.ErrPermission) { // Windows replaces no file that somebody has open
		return fault.Wrap(fault.Busy, err, "the run that was taken over from has the file open; end that process, and take over again").At(path)
	}
	return err
}

// copyFile makes a durable copy with a stamp that stays: a clone where the filesystem can.
func (r *vmReplica) copyFile(path, tmp string, copyTo func(in, out durable.File) error) (_ durable.Stamp, err error) {
	err = r.fs.Clone(path, tmp)
	if err == nil {
		if err := syncFile(r.fs, tmp); err != nil {
			return durable.Stamp{}, err
		}
		return r.fs.Stat(tmp)
	}
	if !errors.Is(err, errors.ErrUnsupported) {
		return durable.Stamp{}, err
	}
	in, err := r.fs.Open(path)
	if err != nil {
		return durable.Stamp{}, err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	out, err := r.fs.Create(tmp)
	if err != nil {
		return durable.Stamp{}, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if err := copyTo(in, out); err != nil {
		return durable.Stamp{}, err
	}
	if err := out.Sync(); err != nil {
		return durable.Stamp{}, err
	}
	return out.Stamp()
}

// copyWhole copies a file, without its holes, to what it had as its end at the beginning, which it returns.
func (r *vmReplica) copyWhole(ctx context.Context, in, out durable.File) (size int64, err error) {
	if size, err = in.Size(); err != nil {
		return 0, err
	}
	if err := out.Truncate(size); err != nil {
		return 0, err
	}
	_, err = r.copyData(ctx, out, in, size)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%s became shorter while it was copied: %w", in.Name(), err)
	}
	return size, err
}

// copyPages copies pages that a run may be writing to. What it writes then belongs to the step that the ledger says is being
// applied, and is written again, whole, by who finishes it. Only the footer has to be right: a run that makes the disk
// larger moves it, and a copy might miss it in both places.
func (r *vmReplica) copyPages(ctx context.Context, st *replica.State, d *replica.Disk, in, out durable.File) error {
	size, err := r.copyWhole(ctx, in, out)
	end := size - vhd.FooterSize
	if err != nil || end < d.Size || !st.MayGrow(*d) {
		return err
	}
	p := &pages{r: r, disk: d.Name, id: diskID(st, d.Name), born: *st}
	_, err = out.WriteAt(p.footer(end), end)
	return err
}

// restamp makes the ledger know the files that took the place of those it knows. A file that something else had written to
// stays unknown.
func (r *vmReplica) restamp(ctx context.Context, st replica.State, mark *fenceMark) error {
	if st.Applying != nil {
		return nil // the stamps say nothing then
	}
	st.OwnDisks()
	changed := false
	for _, d := range st.EveryDisk() {
		pagesStamp, sumsStamp, ok := strings.Cut(d.Stamp, " ")
		if !ok {
			continue
		}
		a, err := r.successor(mark, r.pagesPath(d.Name), pagesStamp)
		if err != nil {
			return err
		}
		b, err := r.successor(mark, r.sumsPath(d.Name), sumsStamp)
		if err != nil {
			return err
		}
		if now := a + " " + b; now != d.Stamp {
			d.Stamp, changed = now, true
		}
	}
	if !changed {
		return nil
	}
	_, err := r.saveLedger(ctx, st)
	return err
}

// successor is the stamp of a file that was made anew from one that was as the ledger left it; else it is left.
func (r *vmReplica) successor(mark *fenceMark, path, left string) (string, error) {
	f, ok := mark.Files[filepath.Base(path)]
	if !ok || !f.AsLeft {
		return left, nil
	}
	stamp, err := r.fs.Stat(path)
	if err != nil || fileStamp(stamp) != f.Stamp {
		return left, err
	}
	return f.Stamp, nil
}

// fileStamp is what a disk's Stamp has of each of its two files.
func fileStamp(s durable.Stamp) string { return fmt.Sprintf("%d:%d:%d", s.Size, s.ModTime, s.Inode) }
