package crashfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"sync"
	"syscall"
	"testing"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
)

func TestFailOn(t *testing.T) {
	fs := crashfs.New()
	f := durableFile(t, fs, "/a", "A")
	fs.FailOn(func(op crashfs.Op) error {
		switch {
		case op.Kind == crashfs.Write && op.Name == "/a" && op.Off == 0:
			return syscall.ENOSPC
		case op.Kind == crashfs.Read:
			return syscall.EIO
		}
		return nil
	})
	if _, err := f.WriteAt([]byte("B"), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
	write(t, f, "B", 1)
	if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, syscall.EIO) {
		t.Error(err)
	}
	fs.FailOn(nil)
	if got := dump(t, fs); got != "/a=AB" {
		t.Error(got)
	}
}

func TestCapacity(t *testing.T) {
	fs := crashfs.New()
	fs.SetClone(true)
	fs.SetCapacity(3 * 4096)
	f := create(t, fs, "/a")
	n, err := f.WriteAt(make([]byte, 5*4096), 100)
	if n != 3*4096-100 || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("wrote %d, %v", n, err)
	}
	if size, _ := f.Size(); size != 3*4096 {
		t.Errorf("size %d", size)
	}
	write(t, f, "over what is there", 0)
	must(t, fs.Clone("/a", "/b")) // takes nothing
	if got := fs.Allocated(); got != 3*4096 {
		t.Errorf("%d allocated after Clone", got)
	}
	if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a shared page was written without room: %v", err)
	}
	must(t, fs.Remove("/b"))
	write(t, f, "x", 0)
	must(t, f.ZeroAt(0, 8192))
	must(t, fs.Remove("/a"))
	if got := fs.Allocated(); got != 4096 {
		t.Errorf("%d allocated while open", got)
	}
	must(t, f.Close())
	if got := fs.Allocated(); got != 0 {
		t.Errorf("%d allocated at the end", got)
	}
}

func TestHugeSparse(t *testing.T) {
	const tib = int64(1) << 40
	fs := crashfs.New()
	f := create(t, fs, "/big")
	must(t, f.Truncate(tib))
	write(t, f, "x", tib/2+4096+7)
	want := []block.Extent{
		{Range: block.Range{Off: 0, Len: tib/2 + 4096}, Kind: block.Zero},
		{Range: block.Range{Off: tib/2 + 4096, Len: 4096}, Kind: block.Data},
		{Range: block.Range{Off: tib/2 + 8192, Len: tib - tib/2 - 8192}, Kind: block.Zero},
	}
	for _, w := range want {
		if e, err := f.Extent(w.Off, tib-w.Off); err != nil || e != w {
			t.Errorf("%v, %v, want %v", e, err, w)
		}
	}
	if e, err := f.Extent(tib+5, 10); err != nil || e.Kind != block.Zero || e.Len != 10 {
		t.Errorf("after the end: %v, %v", e, err)
	}
	must(t, f.ZeroAt(0, tib))
	if e, _ := f.Extent(0, tib); e.Kind != block.Zero || e.Len != tib || fs.Allocated() != 0 {
		t.Errorf("%v, %d allocated", e, fs.Allocated())
	}
	for _, p := range crashfs.Policies() {
		fs.AfterCrash(p, 1)
	}
}

func TestOpenFilesOutliveTheirNames(t *testing.T) {
	fs := crashfs.New()
	f, g := durableFile(t, fs, "/a", "A"), durableFile(t, fs, "/b", "B")
	must(t, fs.Rename("/a", "/b"))
	write(t, f, "a", 1)
	write(t, g, "b", 1)
	if got := dump(t, fs); got != "/b=Aa" {
		t.Error(got)
	}
	must(t, fs.Remove("/b"))
	p := make([]byte, 2)
	for _, h := range []durable.File{f, g} {
		if _, err := h.ReadAt(p, 0); err != nil {
			t.Error(err)
		}
		must(t, h.Sync())
		must(t, h.Close())
		if err := h.Sync(); !errors.Is(err, iofs.ErrClosed) {
			t.Error(err)
		}
	}
	if string(p) != "Bb" {
		t.Errorf("%q", p)
	}
}

func TestErrors(t *testing.T) {
	fs := crashfs.New()
	f := durableFile(t, fs, "/a", "A")
	must(t, fs.MkdirAll("/d/e"))
	ro, err := fs.Open("/a")
	must(t, err)
	_, notFound := fs.Open("/x")
	_, exists := fs.Create("/a")
	_, noFolder := fs.Create("/x/y")
	_, throughFile := fs.Create("/a/y")
	_, wFolder := fs.OpenRW("/d")
	_, roWrite := ro.WriteAt([]byte("x"), 0)
	_, negative := f.ReadAt(make([]byte, 1), -1)
	for _, tt := range []struct {
		name      string
		got, want error // want nil: any error
	}{
		{"open nothing", notFound, iofs.ErrNotExist},
		{"create what is there", exists, iofs.ErrExist},
		{"create in no folder", noFolder, iofs.ErrNotExist},
		{"create in a file", throughFile, nil},
		{"open a folder", wFolder, nil},
		{"write to what is open for reading", roWrite, nil},
		{"read before the start", negative, nil},
		{"remove nothing", fs.Remove("/x"), iofs.ErrNotExist},
		{"remove a full folder", fs.Remove("/d"), syscall.ENOTEMPTY},
		{"remove the root", fs.Remove("/"), nil},
		{"rename nothing", fs.Rename("/x", "/y"), iofs.ErrNotExist},
		{"rename a file over a folder", fs.Rename("/a", "/d"), nil},
		{"rename a folder over a file", fs.Rename("/d", "/a"), nil},
		{"rename a folder into itself", fs.Rename("/d", "/d/e/f"), nil},
		{"link over a file", fs.Link("/a", "/a"), iofs.ErrExist},
		{"clone", fs.Clone("/a", "/b"), errors.ErrUnsupported},
		{"mkdir over a file", fs.MkdirAll("/a/b"), nil},
		{"syncdir nothing", fs.SyncDir("/x"), iofs.ErrNotExist},
		{"truncate below zero", f.Truncate(-1), nil},
	} {
		if tt.got == nil || tt.want != nil && !errors.Is(tt.got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, tt.got, tt.want)
		}
	}
	if got := dump(t, fs); got != "/a=A /d/ /d/e/" {
		t.Error(got)
	}
	if _, err := fs.Stat("/b"); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("an unsupported Clone left %v", err)
	}
}

func TestLock(t *testing.T) {
	fs := crashfs.New()
	l, err := fs.Lock("/l")
	must(t, err)
	if _, err := fs.Lock("l"); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("second lock: %v", err)
	}
	if _, err := fs.AfterCrash(crashfs.ProcessKill, 0).Lock("/l"); err != nil {
		t.Errorf("a killed process holds the lock: %v", err)
	}
	must(t, l.Close())
	l, err = fs.Lock("/l")
	must(t, err)
	must(t, l.Close())
}

func TestStampsGrow(t *testing.T) {
	fs := crashfs.New()
	f := create(t, fs, "/a")
	last, err := f.Stamp()
	must(t, err)
	for _, step := range []struct {
		name    string
		content bool
		do      func() error
	}{
		{"write", true, func() error { _, err := f.WriteAt([]byte("x"), 0); return err }},
		{"same write", true, func() error { _, err := f.WriteAt([]byte("x"), 0); return err }},
		{"truncate", true, func() error { return f.Truncate(10) }},
		{"zero", true, func() error { return f.ZeroAt(0, 1) }},
		{"rename", false, func() error { return fs.Rename("/a", "/b") }},
		{"link", false, func() error { return fs.Link("/b", "/c") }},
		{"unlink", false, func() error { return fs.Remove("/b") }},
	} {
		must(t, step.do())
		now, err := f.Stamp()
		must(t, err)
		if now.ChangeTime <= last.ChangeTime || (now.ModTime > last.ModTime) != step.content || now.Inode != last.Inode {
			t.Errorf("%s: %+v after %+v", step.name, now, last)
		}
		last = now
	}
	must(t, f.Sync())
	must(t, fs.SyncDir("/"))
	byName, err := fs.Stat("/c")
	must(t, err)
	after, err := fs.AfterCrash(crashfs.DropUnsynced, 0).Stat("/c")
	must(t, err)
	if byName != last || after != last {
		t.Errorf("%+v, by name %+v, after a crash %+v", last, byName, after)
	}
}

func TestReadAtTheEnd(t *testing.T) {
	fs := crashfs.New()
	f := durableFile(t, fs, "/a", "abc")
	for _, tt := range []struct {
		off  int64
		len  int
		want string
		err  error
	}{{0, 3, "abc", nil}, {1, 3, "bc", io.EOF}, {3, 1, "", io.EOF}, {9, 1, "", io.EOF}, {0, 0, "", nil}, {9, 0, "", nil}} {
		p := bytes.Repeat([]byte{'!'}, tt.len)
		n, err := f.ReadAt(p, tt.off)
		if string(p[:n]) != tt.want || err != tt.err {
			t.Errorf("ReadAt(%d bytes, %d) = %q, %v", tt.len, tt.off, p[:n], err)
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	fs := crashfs.New()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			name := fmt.Sprintf("/%d", i)
			for j := range 50 {
				if err := durable.WriteFile(fs, name, fmt.Append(nil, i, j)); err != nil {
					t.Error(err)
				}
				_, err := durable.ReadFile(fs.AfterCrash(crashfs.Torn, uint64(j)), name, 100)
				if err != nil && (j > 0 || !errors.Is(err, iofs.ErrNotExist)) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
