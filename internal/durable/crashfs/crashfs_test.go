package crashfs_test

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
)

// must stops the test at an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t testing.TB, fs durable.FS, name string) durable.File {
	t.Helper()
	f, err := fs.Create(name)
	must(t, err)
	return f
}

func openRW(t testing.TB, fs durable.FS, name string) durable.File {
	t.Helper()
	f, err := fs.OpenRW(name)
	must(t, err)
	return f
}

func write(t testing.TB, f durable.File, s string, off int64) {
	t.Helper()
	_, err := f.WriteAt([]byte(s), off)
	must(t, err)
}

// short writes runs of one byte as a count: "A512.512B3".
func short(p []byte) string {
	var b strings.Builder
	for len(p) > 0 {
		n := 1
		for n < len(p) && p[n] == p[0] {
			n++
		}
		c := p[0]
		if c == 0 {
			c = '.'
		}
		b.WriteByte(c)
		if n > 1 {
			fmt.Fprint(&b, n)
		}
		p = p[n:]
	}
	return b.String()
}

// dump writes down the whole tree: "/a=old /d/ /d/b=new".
func dump(t testing.TB, fs durable.FS) string {
	t.Helper()
	var parts []string
	var walk func(dir string)
	walk = func(dir string) {
		list, err := fs.ReadDir(dir)
		must(t, err)
		for _, e := range list {
			name := path.Join(dir, e.Name)
			if e.Dir {
				parts = append(parts, name+"/")
				walk(name)
				continue
			}
			data, err := durable.ReadFile(fs, name, 1<<20)
			must(t, err)
			parts = append(parts, name+"="+short(data))
		}
	}
	walk("/")
	return strings.Join(parts, " ")
}

const seeds = 400

// outcomes is the set of all trees that a policy leaves.
func outcomes(t testing.TB, fs *crashfs.FS, p crashfs.Policy) []string {
	t.Helper()
	set := map[string]bool{}
	for seed := range uint64(seeds) {
		set[dump(t, fs.AfterCrash(p, seed))] = true
	}
	return slices.Sorted(maps.Keys(set))
}

var (
	a512 = strings.Repeat("A", 512)
	b512 = strings.Repeat("B", 512)
	c512 = strings.Repeat("C", 512)
)

// durableFile makes a file with content and name durable.
func durableFile(t testing.TB, fs durable.FS, name, content string) durable.File {
	t.Helper()
	f := create(t, fs, name)
	write(t, f, content, 0)
	must(t, f.Sync())
	must(t, fs.SyncDir(path.Dir(name)))
	return f
}

func TestWhatACrashLeaves(t *testing.T) {
	tests := []struct {
		name       string
		history    func(t *testing.T, fs *crashfs.FS)
		drop, keep string
		torn       []string
	}{
		{"nothing", func(*testing.T, *crashfs.FS) {}, "", "", []string{""}},
		{"new file, nothing synced", func(t *testing.T, fs *crashfs.FS) {
			write(t, create(t, fs, "/a"), "x", 0)
		}, "", "/a=x", []string{"", "/a=", "/a=.", "/a=x"}},
		{"only the file synced: the name is not sure", func(t *testing.T, fs *crashfs.FS) {
			f := create(t, fs, "/a")
			write(t, f, "x", 0)
			must(t, f.Sync())
		}, "", "/a=x", []string{"", "/a=x"}},
		{"only the folder synced: the content is not sure", func(t *testing.T, fs *crashfs.FS) {
			write(t, create(t, fs, "/a"), "x", 0)
			must(t, fs.SyncDir("/"))
		}, "/a=", "/a=x", []string{"/a=", "/a=.", "/a=x"}},
		{"both synced", func(t *testing.T, fs *crashfs.FS) {
			durableFile(t, fs, "/a", "x")
		}, "/a=x", "/a=x", []string{"/a=x"}},
		{"two sectors overwritten", func(t *testing.T, fs *crashfs.FS) {
			f := durableFile(t, fs, "/a", a512+a512)
			write(t, f, b512+b512, 0)
		}, "/a=A1024", "/a=B1024", []string{"/a=A1024", "/a=A512B512", "/a=B1024", "/a=B512A512"}},
		{"one sector overwritten twice", func(t *testing.T, fs *crashfs.FS) {
			f := durableFile(t, fs, "/a", a512)
			write(t, f, b512, 0)
			write(t, f, c512, 0)
		}, "/a=A512", "/a=C512", []string{"/a=A512", "/a=B512", "/a=C512"}},
		{"a part of a sector", func(t *testing.T, fs *crashfs.FS) {
			f := durableFile(t, fs, "/a", "AAAA")
			write(t, f, "BB", 1)
		}, "/a=A4", "/a=AB2A", []string{"/a=A4", "/a=AB2A"}},
		{"appended", func(t *testing.T, fs *crashfs.FS) {
			f := durableFile(t, fs, "/a", a512)
			write(t, f, "BB", 512)
		}, "/a=A512", "/a=A512B2", []string{"/a=A512", "/a=A512.2", "/a=A512B2"}},
		{"cut short", func(t *testing.T, fs *crashfs.FS) {
			must(t, durableFile(t, fs, "/a", "AAAA").Truncate(2))
		}, "/a=A4", "/a=A2", []string{"/a=A2", "/a=A2.2", "/a=A4"}},
		{"made longer", func(t *testing.T, fs *crashfs.FS) {
			must(t, durableFile(t, fs, "/a", "AA").Truncate(4))
		}, "/a=A2", "/a=A2.2", []string{"/a=A2", "/a=A2.2"}},
		{"cut short and synced, then overwritten: the old size is past", func(t *testing.T, fs *crashfs.FS) {
			f := durableFile(t, fs, "/a", "AAAA")
			must(t, f.Truncate(2))
			must(t, f.Sync())
			write(t, f, "B", 0)
		}, "/a=A2", "/a=BA", []string{"/a=A2", "/a=BA"}},
		{"zeroed", func(t *testing.T, fs *crashfs.FS) {
			must(t, durableFile(t, fs, "/a", a512+a512).ZeroAt(0, 1024))
		}, "/a=A1024", "/a=.1024", []string{"/a=.1024", "/a=.512A512", "/a=A1024", "/a=A512.512"}},
		{"synced by another handle", func(t *testing.T, fs *crashfs.FS) {
			write(t, durableFile(t, fs, "/a", "A"), "B", 0)
			must(t, openRW(t, fs, "/a").Sync())
		}, "/a=B", "/a=B", []string{"/a=B"}},
		{"another file's sync does not help", func(t *testing.T, fs *crashfs.FS) {
			f, g := durableFile(t, fs, "/a", "A"), durableFile(t, fs, "/b", "A")
			write(t, f, "B", 0)
			write(t, g, "B", 0)
			must(t, g.Sync())
		}, "/a=A /b=B", "/a=B /b=B", []string{"/a=A /b=B", "/a=B /b=B"}},
		{"removed", func(t *testing.T, fs *crashfs.FS) {
			durableFile(t, fs, "/a", "A")
			must(t, fs.Remove("/a"))
		}, "/a=A", "", []string{"", "/a=A"}},
		{"removed and synced", func(t *testing.T, fs *crashfs.FS) {
			durableFile(t, fs, "/a", "A")
			must(t, fs.Remove("/a"))
			must(t, fs.SyncDir("/"))
		}, "", "", []string{""}},
		{"created and removed", func(t *testing.T, fs *crashfs.FS) {
			must(t, create(t, fs, "/a").Sync())
			must(t, fs.Remove("/a"))
		}, "", "", []string{"", "/a="}},
		{"renamed over another", func(t *testing.T, fs *crashfs.FS) {
			durableFile(t, fs, "/a", "old")
			durableFile(t, fs, "/t", "new")
			must(t, fs.Rename("/t", "/a"))
		}, "/a=old /t=new", "/a=new", []string{"/a=new", "/a=old /t=new"}},
		{"renamed over another without syncing it: the classic mistake", func(t *testing.T, fs *crashfs.FS) {
			durableFile(t, fs, "/a", "old")
			write(t, create(t, fs, "/t"), "new", 0)
			must(t, fs.Rename("/t", "/a"))
			must(t, fs.SyncDir("/"))
		}, "/a=", "/a=new", []string{"/a=", "/a=.3", "/a=new"}},
		{"renamed twice has one name", func(t *testing.T, fs *crashfs.FS) {
			durableFile(t, fs, "/a", "A")
			must(t, fs.Rename("/a", "/b"))
			must(t, fs.Rename("/b", "/c"))
		}, "/a=A", "/c=A", []string{"/a=A", "/b=A", "/c=A"}},
		{"renamed to another folder, which alone is synced", func(t *testing.T, fs *crashfs.FS) {
			must(t, fs.MkdirAll("/d"))
			durableFile(t, fs, "/a", "A")
			must(t, fs.Rename("/a", "/d/a"))
			must(t, fs.SyncDir("/d"))
		}, "/d/ /d/a=A", "/d/ /d/a=A", []string{"/d/ /d/a=A"}},
		{"created and renamed, the new folder synced, does not come back under the old name", func(t *testing.T, fs *crashfs.FS) {
			must(t, fs.MkdirAll("/d"))
			must(t, create(t, fs, "/a").Sync())
			must(t, fs.Rename("/a", "/d/a"))
			must(t, fs.SyncDir("/d"))
		}, "/d/ /d/a=", "/d/ /d/a=", []string{"/d/ /d/a="}},
		{"two names are independent", func(t *testing.T, fs *crashfs.FS) {
			create(t, fs, "/a")
			create(t, fs, "/b")
		}, "", "/a= /b=", []string{"", "/a=", "/a= /b=", "/b="}},
		{"linked", func(t *testing.T, fs *crashfs.FS) {
			durableFile(t, fs, "/a", "A")
			must(t, fs.Link("/a", "/b"))
			write(t, openRW(t, fs, "/b"), "B", 0)
		}, "/a=A", "/a=B /b=B", []string{"/a=A", "/a=A /b=A", "/a=B", "/a=B /b=B"}},
		{"cloned", func(t *testing.T, fs *crashfs.FS) {
			fs.SetClone(true)
			f := durableFile(t, fs, "/a", "A")
			must(t, fs.Clone("/a", "/b"))
			write(t, f, "B", 0)
			must(t, f.Sync())
		}, "/a=B", "/a=B /b=A", []string{"/a=B", "/a=B /b=", "/a=B /b=.", "/a=B /b=A"}},
		{"MkdirAll is durable", func(t *testing.T, fs *crashfs.FS) {
			must(t, fs.MkdirAll("/d/e"))
		}, "/d/ /d/e/", "/d/ /d/e/", []string{"/d/ /d/e/"}},
		{"a folder is removed", func(t *testing.T, fs *crashfs.FS) {
			must(t, fs.MkdirAll("/d/e"))
			must(t, fs.Remove("/d/e"))
		}, "/d/ /d/e/", "/d/", []string{"/d/", "/d/ /d/e/"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			fs := crashfs.New()
			tt.history(t, fs)
			for _, c := range []struct {
				policy crashfs.Policy
				want   []string
			}{
				{crashfs.DropUnsynced, []string{tt.drop}}, {crashfs.KeepAll, []string{tt.keep}},
				{crashfs.Torn, tt.torn}, {crashfs.ProcessKill, []string{tt.keep}},
			} {
				if got := outcomes(t, fs, c.policy); !slices.Equal(got, c.want) {
					t.Errorf("%v leaves %q, want %q", c.policy, got, c.want)
				}
			}
			// What a killed process leaves is in memory of the kernel only: a power cut can still take it.
			killed := fs.AfterCrash(crashfs.ProcessKill, 1)
			if got := outcomes(t, killed, crashfs.Torn); !slices.Equal(got, tt.torn) {
				t.Errorf("kill, then power cut leaves %q, want %q", got, tt.torn)
			}
			if got := dump(t, killed.AfterCrash(crashfs.DropUnsynced, 0)); got != tt.drop {
				t.Errorf("kill, then power cut leaves %q, want %q", got, tt.drop)
			}
			// What the power left is on the disk.
			again := fs.AfterCrash(crashfs.Torn, 3)
			if got, want := dump(t, again.AfterCrash(crashfs.DropUnsynced, 0)), dump(t, again); got != want {
				t.Errorf("a second power cut leaves %q of %q", got, want)
			}
		})
	}
}

func TestTheInterruptedWrite(t *testing.T) {
	fs := crashfs.New()
	f := durableFile(t, fs, "/a", a512+a512)
	fs.CutAfter(1)
	n, err := f.WriteAt([]byte(b512+b512), 0)
	if n != 0 || !errors.Is(err, crashfs.ErrCut) {
		t.Fatal(n, err)
	}
	if _, err := f.WriteAt([]byte(c512+c512), 0); !errors.Is(err, crashfs.ErrCut) {
		t.Fatal(err) // never issued: no C below
	}
	want := []string{"/a=A1024", "/a=A512B512", "/a=B1024", "/a=B512A512"}
	if got := outcomes(t, fs, crashfs.Torn); !slices.Equal(got, want) {
		t.Errorf("torn: %q, want %q", got, want)
	}
	want = []string{"/a=A1024", "/a=B1024", "/a=B512A512"} // whole sectors, in their order
	if got := outcomes(t, fs, crashfs.ProcessKill); !slices.Equal(got, want) {
		t.Errorf("killed: %q, want %q", got, want)
	}
}

// Every operation fails after the cut, and the one at the cut changes nothing.
func TestCutAfter(t *testing.T) {
	fs := crashfs.New()
	f := durableFile(t, fs, "/a", "A")
	before := fs.Ops()
	if before != 4 { // create, write, sync, syncdir
		t.Fatalf("%d operations: %v", before, fs.Log())
	}
	fs.CutAfter(2)
	write(t, f, "B", 0)
	calls := map[string]func() error{
		"sync":     f.Sync,
		"syncdir":  func() error { return fs.SyncDir("/") },
		"write":    func() error { _, err := f.WriteAt([]byte("C"), 0); return err },
		"read":     func() error { _, err := f.ReadAt(make([]byte, 1), 0); return err },
		"size":     func() error { _, err := f.Size(); return err },
		"stamp":    func() error { _, err := f.Stamp(); return err },
		"extent":   func() error { _, err := f.Extent(0, 1); return err },
		"truncate": func() error { return f.Truncate(0) },
		"zero":     func() error { return f.ZeroAt(0, 1) },
		"open":     func() error { _, err := fs.Open("/a"); return err },
		"openrw":   func() error { _, err := fs.OpenRW("/a"); return err },
		"create":   func() error { _, err := fs.Create("/b"); return err },
		"rename":   func() error { return fs.Rename("/a", "/b") },
		"link":     func() error { return fs.Link("/a", "/b") },
		"clone":    func() error { return fs.Clone("/a", "/b") },
		"remove":   func() error { return fs.Remove("/a") },
		"mkdir":    func() error { return fs.MkdirAll("/d") },
		"list":     func() error { _, err := fs.ReadDir("/"); return err },
		"stat":     func() error { _, err := fs.Stat("/a"); return err },
		"lock":     func() error { _, err := fs.Lock("/a"); return err },
	}
	must(t, fs.AfterCrash(crashfs.KeepAll, 0).Remove("/a")) // another filesystem
	if err := calls["sync"](); !errors.Is(err, crashfs.ErrCut) {
		t.Fatal(err)
	}
	for name, call := range calls {
		if err := call(); !errors.Is(err, crashfs.ErrCut) {
			t.Errorf("%s after the cut: %v", name, err)
		}
	}
	must(t, f.Close())
	if got := dump(t, fs.AfterCrash(crashfs.DropUnsynced, 0)); got != "/a=A" {
		t.Errorf("the sync at the cut was done: %q", got)
	}
	if got := dump(t, fs.AfterCrash(crashfs.KeepAll, 0)); got != "/a=B" {
		t.Errorf("kept %q", got)
	}
}

// After a cut at any operation of Replace the name has its old content or the whole new one, and a new run succeeds.
func TestReplaceUnderEveryCut(t *testing.T) {
	long := strings.Repeat("N", 9000)
	start := func() *crashfs.FS {
		fs := crashfs.New()
		must(t, fs.MkdirAll("/d"))
		must(t, durable.WriteFile(fs, "/d/a", []byte("old")))
		return fs.AfterCrash(crashfs.DropUnsynced, 0)
	}
	run := func(fs *crashfs.FS, content string) error { return durable.WriteFile(fs, "/d/a", []byte(content)) }
	whole := start()
	must(t, run(whole, long))
	ops := whole.Ops()
	if ops < 4 {
		t.Fatalf("only %d operations: %v", ops, whole.Log())
	}
	seen := map[string]int{}
	for k := 1; k <= ops+1; k++ {
		fs := start()
		fs.CutAfter(k)
		err := run(fs, long)
		if (err == nil) != (k > ops) || err != nil && !errors.Is(err, crashfs.ErrCut) {
			t.Fatalf("cut at %d: %v", k, err)
		}
		for _, p := range crashfs.Policies() {
			for seed := range uint64(40) {
				after := fs.AfterCrash(p, seed)
				got, err := durable.ReadFile(after, "/d/a", 1<<20)
				must(t, err)
				if string(got) != "old" && string(got) != long || k > ops && string(got) != long {
					t.Fatalf("cut at %d of %d, %v, seed %d: content %s", k, ops, p, seed, short(got))
				}
				seen[short(got)]++
				onlyTemps(t, after)
				must(t, run(after, "again"))
				again := after.AfterCrash(crashfs.DropUnsynced, 0)
				if got, err := durable.ReadFile(again, "/d/a", 10); err != nil || string(got) != "again" {
					t.Fatalf("cut at %d, %v, seed %d, then again: %q, %v", k, p, seed, got, err)
				}
			}
		}
	}
	if len(seen) != 2 {
		t.Errorf("saw %v, want both old and new", seen)
	}
}

func onlyTemps(t *testing.T, fs durable.FS) {
	t.Helper()
	list, err := fs.ReadDir("/d")
	must(t, err)
	for _, e := range list {
		if e.Name != "a" && !durable.IsTemp(e.Name) {
			t.Fatalf("%s was left behind", e.Name)
		}
	}
}

// What was written after the end that a crash left does not come back when the file grows again.
func TestNothingAfterTheEnd(t *testing.T) {
	fs := crashfs.New()
	f := durableFile(t, fs, "/a", "A")
	write(t, f, strings.Repeat("B", 9000), 0)
	for seed := range uint64(50) {
		after := fs.AfterCrash(crashfs.Torn, seed)
		f := openRW(t, after, "/a")
		size, err := f.Size()
		must(t, err)
		must(t, f.Truncate(9000))
		tail := make([]byte, 9000-size)
		if _, err := f.ReadAt(tail, size); err != nil || !block.IsZero(tail) {
			t.Fatalf("seed %d: after byte %d comes %s, %v", seed, size, short(tail), err)
		}
		if size == 1 && after.Allocated() > 4096 {
			t.Fatalf("seed %d: %d bytes are allocated for one", seed, after.Allocated())
		}
	}
}

// The mistake that the package exists to find must be found.
func TestMissingSyncIsFound(t *testing.T) {
	careless := func(fs durable.FS) error {
		f, err := fs.Create("/t")
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte("new"), 0); err != nil {
			return err
		}
		return fs.Rename("/t", "/a")
	}
	fs := crashfs.New()
	durableFile(t, fs, "/a", "old")
	must(t, careless(fs))
	if got := outcomes(t, fs, crashfs.Torn); !slices.Contains(got, "/a=.3") {
		t.Errorf("no torn content in %q", got)
	}
}

// A folder that a killed process made is not durable until the next MkdirAll says so.
func TestMkdirAllAfterKill(t *testing.T) {
	fs := crashfs.New()
	fs.CutAfter(3) // syncdir of the parent that is there, mkdir, syncdir
	if err := fs.MkdirAll("/d"); !errors.Is(err, crashfs.ErrCut) {
		t.Fatal(err)
	}
	killed := fs.AfterCrash(crashfs.ProcessKill, 0)
	if got := dump(t, killed); got != "/d/" {
		t.Fatalf("killed: %q", got)
	}
	if got := dump(t, killed.AfterCrash(crashfs.DropUnsynced, 0)); got != "" {
		t.Fatalf("the folder is durable without a sync: %q", got)
	}
	must(t, killed.MkdirAll("/d"))
	if got := dump(t, killed.AfterCrash(crashfs.DropUnsynced, 0)); got != "/d/" {
		t.Errorf("after MkdirAll: %q", got)
	}
}
