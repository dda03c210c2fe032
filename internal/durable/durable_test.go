package durable_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"sitrep/internal/durable"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// names lists a folder.
func names(t testing.TB, dir string) []string {
	t.Helper()
	list, err := durable.OS().ReadDir(dir)
	must(t, err)
	var out []string
	for _, e := range list {
		out = append(out, e.Name)
	}
	return out
}

func TestWriteFile(t *testing.T) {
	dir, osfs := t.TempDir(), durable.OS()
	name := filepath.Join(dir, "f")
	for _, content := range []string{"first", "", "third, longer"} {
		must(t, durable.WriteFile(osfs, name, []byte(content)))
		got, err := durable.ReadFile(osfs, name, 100)
		if err != nil || string(got) != content {
			t.Errorf("read %q, %v, want %q", got, err, content)
		}
		if n := names(t, dir); len(n) != 1 {
			t.Errorf("the folder has %v", n)
		}
	}
}

func TestReplaceThatFailsLeavesNothing(t *testing.T) {
	dir, osfs := t.TempDir(), durable.OS()
	name := filepath.Join(dir, "f")
	must(t, durable.WriteFile(osfs, name, []byte("old")))
	broken := errors.New("broken")
	err := durable.Replace(osfs, name, func(f durable.File) error {
		if !durable.IsTemp(f.Name()) || filepath.Dir(f.Name()) != dir {
			t.Errorf("filling %s", f.Name())
		}
		_, err := f.WriteAt([]byte("half"), 0)
		return errors.Join(err, broken)
	})
	if !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	must(t, os.Mkdir(filepath.Join(dir, "folder"), 0o700))
	if err := durable.WriteFile(osfs, filepath.Join(dir, "folder"), []byte("x")); err == nil {
		t.Error("a folder was replaced by a file")
	}
	if err := durable.WriteFile(osfs, filepath.Join(dir, "none", "x"), nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("into a folder that is not there: %v", err)
	}
	if n := names(t, dir); strings.Join(n, " ") != "f folder" {
		t.Errorf("the folder has %v", n)
	}
	if got, _ := os.ReadFile(name); string(got) != "old" {
		t.Errorf("content %q", got)
	}
}

func TestReadFileLimit(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	must(t, os.WriteFile(name, []byte("12345"), 0o600))
	if got, err := durable.ReadFile(durable.OS(), name, 5); err != nil || string(got) != "12345" {
		t.Errorf("%q, %v", got, err)
	}
	var large *durable.TooLargeError
	if _, err := durable.ReadFile(durable.OS(), name, 4); !errors.As(err, &large) || large.Size != 5 || large.Limit != 4 {
		t.Errorf("%v", err)
	}
	must(t, os.Truncate(name, 1<<40)) // must not be allocated
	if _, err := durable.ReadFile(durable.OS(), name, 1<<20); !errors.As(err, &large) {
		t.Errorf("%v", err)
	}
	if _, err := durable.ReadFile(durable.OS(), filepath.Dir(name), 10); err == nil {
		t.Error("a folder was read")
	}
	if _, err := durable.ReadFile(durable.OS(), name+"x", 10); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// shrunk says that it has more bytes than can be read.
type shrunk struct{ durable.File }

func (s shrunk) Size() (int64, error) { n, err := s.File.Size(); return n + 1, err }

type shrunkFS struct{ durable.FS }

func (s shrunkFS) Open(name string) (durable.File, error) {
	f, err := s.FS.Open(name)
	return shrunk{f}, err
}

func TestReadFileThatShrinks(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	must(t, os.WriteFile(name, []byte("12345"), 0o600))
	if _, err := durable.ReadFile(shrunkFS{durable.OS()}, name, 10); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v", err)
	}
}

func TestTempName(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		n := durable.TempName("/a/b.vhd")
		if seen[n] || filepath.Dir(n) != filepath.FromSlash("/a") || !durable.IsTemp(n) {
			t.Fatalf("%q", n)
		}
		seen[n] = true
	}
	long := filepath.Join(t.TempDir(), strings.Repeat("ü", 127))
	must(t, durable.WriteFile(durable.OS(), long, []byte("x")))
	for name, want := range map[string]bool{
		"b.vhd": false, ".b.vhd": false, "b.sitrep-tmp-00": false, "/x/.b.sitrep-tmp-00": true, "": false,
		"/.sitrep-tmp-1/b": false,
	} {
		if durable.IsTemp(name) != want {
			t.Errorf("IsTemp(%q) = %v", name, !want)
		}
	}
}

func TestRemoveIfThere(t *testing.T) {
	osfs := durable.OS()
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	must(t, os.WriteFile(name, nil, 0o600))
	must(t, durable.RemoveIfThere(osfs, name))
	must(t, durable.RemoveIfThere(osfs, name))
	must(t, os.MkdirAll(filepath.Join(dir, "d", "e"), 0o700))
	if err := durable.RemoveIfThere(osfs, filepath.Join(dir, "d")); err == nil {
		t.Error("a full folder was removed")
	}
}

func TestMkdirAll(t *testing.T) {
	osfs, dir := durable.OS(), t.TempDir()
	deep := filepath.Join(dir, "a", "b", "c")
	must(t, osfs.MkdirAll(deep))
	must(t, osfs.MkdirAll(deep))
	file := filepath.Join(deep, "f")
	must(t, os.WriteFile(file, nil, 0o600))
	for _, name := range []string{file, filepath.Join(file, "x")} {
		if err := osfs.MkdirAll(name); err == nil {
			t.Errorf("%s was made", name)
		}
	}
}

func TestCreateOpenLinkRename(t *testing.T) {
	osfs, dir := durable.OS(), t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	f, err := osfs.Create(a)
	must(t, err)
	if _, err := osfs.Create(a); !errors.Is(err, fs.ErrExist) {
		t.Errorf("created twice: %v", err)
	}
	if _, err := osfs.OpenRW(b); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("opened nothing: %v", err)
	}
	if _, err := osfs.Open(dir); err == nil {
		t.Error("opened a folder")
	}
	must(t, osfs.Link(a, b))
	if err := osfs.Link(a, b); !errors.Is(err, fs.ErrExist) || errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("linked twice: %v", err)
	}
	if err := osfs.Link(a, filepath.Join(dir, "none", "x")); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("linked into no folder: %v", err)
	}
	_, err = f.WriteAt([]byte("x"), 5)
	must(t, err)
	must(t, f.Sync())
	sa, err := osfs.Stat(a)
	must(t, err)
	sb, err := osfs.Stat(b)
	must(t, err)
	sf, err := f.Stamp()
	must(t, err)
	if sa != sb || sa != sf || sa.Size != 6 {
		t.Errorf("%+v, %+v, %+v", sa, sb, sf)
	}
	must(t, f.Close())
	ro, err := osfs.Open(a)
	must(t, err)
	defer ro.Close()
	if _, err := ro.WriteAt([]byte("x"), 0); err == nil {
		t.Error("written through a file open for reading")
	}
	must(t, osfs.Remove(b))
	must(t, osfs.Rename(a, b))
	if n := names(t, dir); strings.Join(n, " ") != "b" {
		t.Errorf("%v", n)
	}
}

func TestZeroAt(t *testing.T) {
	f, err := durable.OS().Create(filepath.Join(t.TempDir(), "f"))
	must(t, err)
	defer f.Close()
	const size = 20001
	for _, tt := range []struct{ off, n int64 }{
		{0, 1}, {1, 4096}, {4096, 8192}, {4095, 8194}, {20000, 1}, {20000, 5000}, {20001, 1}, {1 << 40, 5}, {0, 1 << 40}, {5, 0},
	} {
		model := bytes.Repeat([]byte{7}, size)
		_, err := f.WriteAt(model, 0)
		must(t, err)
		must(t, f.ZeroAt(tt.off, tt.n))
		clear(model[min(tt.off, size):min(tt.off+tt.n, size)])
		got := make([]byte, size+1)
		if n, err := f.ReadAt(got, 0); n != size || err != io.EOF || !bytes.Equal(got[:n], model) {
			t.Errorf("ZeroAt(%d, %d): %d bytes, %v, equal %v", tt.off, tt.n, n, err, bytes.Equal(got[:n], model))
		}
	}
}

func TestAlignedBuffer(t *testing.T) {
	for n := range 300 {
		for _, n := range []int{n, n * 511, 64<<10 + n} {
			b := durable.AlignedBuffer(n)
			if len(b) != n || cap(b) != n {
				t.Fatalf("AlignedBuffer(%d) has length %d, capacity %d", n, len(b), cap(b))
			}
			if n > 0 && uintptr(unsafe.Pointer(&b[0]))%4096 != 0 {
				t.Fatalf("AlignedBuffer(%d) is at %p", n, b)
			}
		}
	}
}

func TestTempBase(t *testing.T) {
	for _, name := range []string{"a", "web01.os.0000000000000003-8ad85656.hrl", ".b", strings.Repeat("x", 200), "a.sitrep-tmp-b"} {
		if got, ok := durable.TempBase(durable.TempName(filepath.Join("folder", name))); !ok || got != name {
			t.Errorf("TempBase of a temporary name of %q: %q %v", name, got, ok)
		}
	}
	for _, name := range []string{"", ".", "a", "a.sitrep-tmp-00", ".sitrep-tmp-00", ".a.sitrep-tmp"} {
		if got, ok := durable.TempBase(name); ok {
			t.Errorf("TempBase(%q) = %q", name, got)
		}
	}
}

// noNumbers is a filesystem that does not tell files apart.
type noNumbers struct{ durable.FS }

func (noNumbers) Stat(string) (durable.Stamp, error) { return durable.Stamp{}, nil }

func (f noNumbers) Resolve(name string) (string, error) { return durable.Resolve(f.FS, name) }

// TestFileID reaches a file by two names, and another one beside it, where the filesystem tells files apart and where it does not.
func TestFileID(t *testing.T) {
	dir := t.TempDir()
	file, other, link := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "link")
	must(t, os.WriteFile(file, []byte("a"), 0o600))
	must(t, os.WriteFile(other, []byte("a"), 0o600))
	must(t, os.Symlink("a", link))
	for _, fsys := range []durable.FS{durable.OS(), noNumbers{durable.OS()}} {
		id := func(name string) string {
			id, err := durable.FileID(fsys, name)
			must(t, err)
			return id
		}
		if id(file) != id(link) || id(file) == id(other) {
			t.Errorf("%T: the file is %s, by its link %s, and another one is %s", fsys, id(file), id(link), id(other))
		}
	}
	if (durable.Stamp{Size: 1}).Same(durable.Stamp{Size: 1}) {
		t.Error("two stamps without numbers are of one file")
	}
}
