package dir_test

import (
	"errors"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/replica/dir"
	"sitrep/internal/replica/replicatest"
)

// TestOneHolder has many runs make, open and remove one replica, with its lock: never do two of them hold it at once.
func TestOneHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	_, err := dir.New(durable.OS(), path).Prepare(t.Context(), hrl.ID{})
	check(t, err)
	var holders, held atomic.Int32
	var runs sync.WaitGroup
	for range 4 {
		runs.Go(func() {
			store := dir.New(durable.OS(), path)
			for i := range 60 {
				r, err := store.Create(t.Context(), replicatest.FirstState("vm"))
				if fault.Is(err, fault.AlreadyProtected) {
					r, err = store.Open(t.Context(), "vm")
				}
				if err != nil {
					expected(t, err)
					continue
				}
				if holders.Add(1) > 1 {
					t.Error("two runs hold the replica")
				}
				held.Add(1)
				runtime.Gosched()
				holders.Add(-1)
				if err := r.Close(); err != nil {
					t.Error(err)
				}
				if i%2 == 0 {
					expected(t, store.Remove(t.Context(), "vm"))
				}
			}
		})
	}
	runs.Wait()
	if held.Load() == 0 {
		t.Error("nobody ever held the replica")
	}
}

// expected takes the errors that a run may see while others work.
func expected(t *testing.T, err error) {
	if err != nil && !fault.Is(err, fault.ReplicaHeld) && !fault.Is(err, fault.NotProtected) && !fault.Is(err, fault.AlreadyProtected) &&
		!fault.Is(err, fault.Busy) {
		t.Error(err)
	}
}

// TestOneStore has many runs make one store: all of them get the same identity.
func TestOneStore(t *testing.T) {
	for range 10 {
		path := filepath.Join(t.TempDir(), "store")
		var mu sync.Mutex
		seen := map[hrl.ID]bool{}
		var runs sync.WaitGroup
		for range 8 {
			runs.Go(func() {
				id, err := dir.New(durable.OS(), path).Prepare(t.Context(), hrl.ID{})
				if err != nil {
					if !fault.Is(err, fault.Busy) {
						t.Error(err)
					}
					return
				}
				mu.Lock()
				defer mu.Unlock()
				seen[id] = true
			})
		}
		runs.Wait()
		if len(seen) != 1 {
			t.Fatalf("one store has the identities %v", seen)
		}
	}
}

// TestTakeOver changes the ledger while another run holds the replica, as a failover does that cannot stop it.
func TestTakeOver(t *testing.T) {
	fs, _ := grown(t, false)
	r, err := dir.New(fs, root).Open(t.Context(), "vm")
	check(t, err)
	defer r.Close()
	s, err := r.Ledger().Load(t.Context())
	check(t, err)
	theirs := s
	theirs.Generation, theirs.Version = 2, s.Version+1
	theirs.Owner = replica.Owner{Site: "recovery", Host: "h2"}
	data, err := replica.Encode(theirs)
	check(t, err)
	write(t, fs, root+"/vm/ledger.json", data)
	_, err = r.Ledger().Save(t.Context(), s)
	wantCode(t, err, fault.Fenced)
	if got := read(t, fs, root+"/vm/ledger.json"); string(got) != string(data) {
		t.Error("the ledger was changed")
	}
}

// TestSaveWaits has two runs save at once: each of them is told the truth, and no version is lost.
func TestSaveWaits(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store")
	store := dir.New(durable.OS(), path)
	_, err := store.Prepare(t.Context(), hrl.ID{})
	check(t, err)
	r, err := store.Create(t.Context(), replicatest.FirstState("vm"))
	check(t, err)
	defer r.Close()
	var saved atomic.Int64
	var runs sync.WaitGroup
	for range 4 {
		runs.Go(func() {
			for range 20 {
				s, err := r.Ledger().Load(t.Context())
				if err == nil {
					_, err = r.Ledger().Save(t.Context(), s)
				}
				if err == nil {
					saved.Add(1)
				} else if !fault.Is(err, fault.LedgerConflict) {
					t.Error(err)
				}
			}
		})
	}
	runs.Wait()
	s, err := r.Ledger().Load(t.Context())
	if err != nil || s.Version != uint64(1+saved.Load()) {
		t.Errorf("after %d saves the version is %d (error %v)", saved.Load(), s.Version, err)
	}
}

// TestPutLinks checks that a log on the same filesystem is not copied, and that one whose name now stands for another
// file is read from where it was opened.
func TestPutLinks(t *testing.T) {
	fs, _ := grown(t, false)
	r, err := dir.New(fs, root).Open(t.Context(), "vm")
	check(t, err)
	defer r.Close()
	f, err := logsOn(fs)("a.hrl", []byte("a log"))
	check(t, err)
	defer f.Close()
	for range 2 { // the second time it is there already
		_, err = r.Shelf().Put(t.Context(), "linked.hrl", f)
		check(t, err)
	}
	mine, err := f.Stamp()
	check(t, err)
	linked, err := fs.Stat(r.Shelf().Path("linked.hrl"))
	check(t, err)
	if mine.Inode != linked.Inode {
		t.Error("the log was copied")
	}
	write(t, fs, f.Name(), []byte("b log"))
	_, err = r.Shelf().Put(t.Context(), "copied.hrl", f)
	check(t, err)
	check(t, fs.Remove(f.Name()))
	_, err = r.Shelf().Put(t.Context(), "nameless.hrl", f)
	check(t, err)
	for _, name := range []string{"linked.hrl", "copied.hrl", "nameless.hrl"} {
		if got := string(read(t, fs, r.Shelf().Path(name))); got != "a log" {
			t.Errorf("%s is %q", name, got)
		}
	}
	left, err := fs.ReadDir(filepath.Dir(r.Shelf().Path("x")))
	if err != nil || len(left) != 3 {
		t.Errorf("on the shelf is %v (error %v)", left, err)
	}
}

// alike is a filesystem that does not tell one file from another.
type alike struct{ durable.FS }

func (a alike) Open(name string) (durable.File, error) {
	f, err := a.FS.Open(name)
	return alikeFile{f}, err
}

type alikeFile struct{ durable.File }

func (f alikeFile) Stamp() (durable.Stamp, error) {
	s, err := f.File.Stamp()
	s.Device, s.Inode = 0, 0
	return s, err
}

// TestPutWhereFilesAreAlike puts a log whose name stands for another file of the same length by now, where nothing tells the two apart.
func TestPutWhereFilesAreAlike(t *testing.T) {
	fs, _ := grown(t, false)
	r, err := dir.New(alike{fs}, root).Open(t.Context(), "vm")
	check(t, err)
	defer r.Close()
	f, err := logsOn(alike{fs})("a.hrl", []byte("a log"))
	check(t, err)
	defer f.Close()
	write(t, fs, f.Name(), []byte("b log"))
	_, err = r.Shelf().Put(t.Context(), "copied.hrl", f)
	check(t, err)
	if got := string(read(t, fs, r.Shelf().Path("copied.hrl"))); got != "a log" {
		t.Errorf("on the shelf is %q", got)
	}
}

// TestPutDurable puts a log that its writer did not sync.
func TestPutDurable(t *testing.T) {
	fs, _ := grown(t, false)
	r, err := dir.New(fs, root).Open(t.Context(), "vm")
	check(t, err)
	f, err := fs.Create("/vol/vm/unsynced")
	check(t, err)
	_, err = f.WriteAt([]byte("a log"), 0)
	check(t, err)
	_, err = r.Shelf().Put(t.Context(), "d.hrl", f)
	check(t, errors.Join(err, f.Close()))
	path := r.Shelf().Path("d.hrl")
	check(t, r.Close())
	if got := string(read(t, fs.AfterCrash(crashfs.DropUnsynced, 0), path)); got != "a log" {
		t.Fatalf("the log on the shelf is %q", got)
	}
}

// TestSeenIsNotDurable has a run killed between a rename and its SyncDir. The next one sees the name, and must not build
// on it before it is durable.
func TestSeenIsNotDurable(t *testing.T) {
	fs, h := grown(t, false)
	vm := root + "/vm"
	paths := []string{vm + "/shelf/x.hrl", vm + "/points/x", vm + "/x"}
	for _, path := range paths {
		write(t, fs, "/vol/other/x", []byte("x"))
		check(t, fs.Rename("/vol/other/x", path))
	}
	r, err := dir.New(fs, root).Open(t.Context(), h.VM)
	check(t, err)
	check(t, r.Close())
	for _, path := range paths {
		read(t, fs.AfterCrash(crashfs.DropUnsynced, 0), path)
	}
}

// TestPreserveAgain has the last sync of a step fail, and the step be asked for again.
func TestPreserveAgain(t *testing.T) {
	fs, h := grown(t, false)
	r, err := dir.New(fs, root).Open(t.Context(), h.VM)
	check(t, err)
	defer r.Close()
	s, err := r.Ledger().Load(t.Context())
	check(t, err)
	renamed := false
	fs.FailOn(func(op crashfs.Op) error {
		renamed = renamed || op.Kind == crashfs.Rename && op.To == filepath.Join(root, "vm/points", s.Applied.String())
		if renamed && op.Kind == crashfs.SyncDir {
			return syscall.EIO
		}
		return nil
	})
	to := s.Applied.Next()
	if r.Points().Preserve(t.Context(), s, to, nil, false) == nil {
		t.Fatal("a step is preserved although its name is not durable")
	}
	fs.FailOn(nil)
	check(t, r.Points().Preserve(t.Context(), s, to, nil, false))
	read(t, fs.AfterCrash(crashfs.DropUnsynced, 0), filepath.Join(root, "vm/points", s.Applied.String(), "os.undo.hrl"))
}

// TestLockOfRemovedFile has holders remove the file of the lock: who opened it before must not hold it afterwards.
func TestLockOfRemovedFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var holders atomic.Int32
	var runs sync.WaitGroup
	for range 4 {
		runs.Go(func() {
			for range 3000 {
				lock, err := durable.OS().Lock(path)
				if errors.Is(err, durable.ErrLocked) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if holders.Add(1) > 1 {
					t.Error("two hold the lock")
				}
				runtime.Gosched()
				holders.Add(-1)
				err = durable.RemoveIfThere(durable.OS(), path)
				if err := errors.Join(err, lock.Close()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	runs.Wait()
}

// TestRedoOfMore redoes more than was preserved: what the point had there may be lost, and that is said.
func TestRedoOfMore(t *testing.T) {
	fs, h := grown(t, false)
	r, err := dir.New(fs, root).Open(t.Context(), h.VM)
	check(t, err)
	defer r.Close()
	s, err := r.Ledger().Load(t.Context())
	check(t, err)
	to := s.Applied.Next()
	some := func(n int64) map[string]*block.Set {
		return map[string]*block.Set{"os": block.NewSet(block.Range{Off: replicatest.BlockSize, Len: n * replicatest.BlockSize})}
	}
	check(t, r.Points().Preserve(t.Context(), s, to, some(3), false))
	check(t, r.Points().Preserve(t.Context(), s, to, some(3), true))
	check(t, r.Points().Preserve(t.Context(), s, to, some(2), true))
	wantCode(t, r.Points().Preserve(t.Context(), s, to, some(4), true), fault.ReplicaCorrupt)
	wantCode(t, r.Points().Preserve(t.Context(), s, s.Applied.Next(), some(3), true), fault.ReplicaCorrupt)
}
