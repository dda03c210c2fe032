package durable_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// share is a folder that somebody else can write to, beside a folder that they cannot.
type share struct {
	*testing.T
	fs             durable.FS
	root, file     string // file is in the share
	secret, victim string // a file and a folder outside
}

func newShare(t *testing.T) *share {
	dir := t.TempDir()
	s := &share{T: t, root: filepath.Join(dir, "share"), secret: filepath.Join(dir, "secret"), victim: filepath.Join(dir, "victim")}
	s.file = filepath.Join(s.root, "vm", "file")
	must(t, os.MkdirAll(filepath.Dir(s.file), 0o700))
	must(t, os.MkdirAll(s.victim, 0o700))
	must(t, os.WriteFile(s.secret, []byte("secret"), 0o600))
	must(t, os.WriteFile(filepath.Join(s.victim, "file"), []byte("secret"), 0o600))
	s.fs = durable.Within(durable.OS(), s.root)
	return s
}

// operations is everything that an FS can be asked for, of one name.
func (s *share) operations() map[string]func(name string) error {
	closed := func(f durable.File, err error) error {
		if err == nil {
			err = f.Close()
		}
		return err
	}
	other := filepath.Join(s.root, "other")
	return map[string]func(string) error{
		"Open":       func(n string) error { return closed(s.fs.Open(n)) },
		"OpenRW":     func(n string) error { return closed(s.fs.OpenRW(n)) },
		"OpenLinked": func(n string) error { return closed(durable.OpenLinked(s.fs, n)) },
		"Clone":      func(n string) error { return s.fs.Clone(n, filepath.Join(s.root, "clone")) },
		"Stat":       func(n string) error { _, err := s.fs.Stat(n); return err },
		"ReadDir":    func(n string) error { _, err := s.fs.ReadDir(n); return err },
		"SyncDir":    s.fs.SyncDir,
		"MkdirAll":   s.fs.MkdirAll,
		"RenameOver": func(n string) error { must(s.T, os.WriteFile(other, nil, 0o600)); return s.fs.Rename(other, n) },
		"WriteFile":  func(n string) error { return durable.WriteFile(s.fs, n, []byte("written")) },
		"ReadFile":   func(n string) error { _, err := durable.ReadFile(s.fs, n, 100); return err },
		"Lock": func(n string) error {
			l, err := s.fs.Lock(n)
			if err == nil {
				err = l.Close()
			}
			return err
		},
	}
}

// untouched fails when something outside of the share is not as it was.
func (s *share) untouched(op string) {
	s.Helper()
	for _, name := range []string{s.secret, filepath.Join(s.victim, "file")} {
		if b, err := os.ReadFile(name); err != nil || string(b) != "secret" {
			s.Errorf("%s: %s now has %q, %v", op, name, b, err)
		}
	}
	if list, err := os.ReadDir(s.victim); err != nil || len(list) != 1 {
		s.Errorf("%s: the folder outside now has %v, %v", op, list, err)
	}
}

// refused calls every operation and wants it refused, at once.
func (s *share) refused(name string, except ...string) {
	s.Helper()
	for op, do := range s.operations() {
		if strings.Contains(" "+strings.Join(except, " ")+" ", " "+op+" ") {
			continue
		}
		ended := make(chan error, 1)
		go func() { ended <- do(name) }()
		select {
		case err := <-ended:
			if !fault.Is(err, fault.UnsafeFile) {
				s.Errorf("%s: %v", op, err)
			}
		case <-time.After(10 * time.Second):
			s.Fatalf("%s waits", op)
		}
		s.untouched(op)
	}
}

func TestWithinFollowsNoLink(t *testing.T) {
	for what, target := range map[string]func(*share) string{
		"to a file": func(s *share) string { return s.secret }, "to a folder": func(s *share) string { return s.victim },
		"to nothing": func(s *share) string { return filepath.Join(s.victim, "new") },
		"that stays": func(s *share) string { return "../vm" },
	} {
		t.Run(what, func(t *testing.T) {
			s := newShare(t)
			must(t, os.Symlink(target(s), s.file))
			s.refused(s.file)
			must(t, s.fs.Remove(s.file)) // the link
			s.untouched("Remove")
		})
	}
	t.Run("in the middle of a path", func(t *testing.T) {
		s := newShare(t)
		must(t, os.Remove(filepath.Dir(s.file)))
		must(t, os.Symlink(s.victim, filepath.Dir(s.file)))
		s.refused(s.file)
		for op, err := range map[string]error{
			"Create": func() error { _, err := s.fs.Create(s.file + "2"); return err }(),
			"Remove": s.fs.Remove(s.file), "MkdirAll": s.fs.MkdirAll(filepath.Join(s.file, "a", "b")),
			"Link": s.fs.Link(s.secret, s.file+"3"), "RenameFrom": s.fs.Rename(s.file, filepath.Join(s.root, "x")),
		} {
			if !fault.Is(err, fault.UnsafeFile) {
				t.Errorf("%s: %v", op, err)
			}
		}
		s.untouched("in the middle")
	})
	t.Run("out of the folder", func(t *testing.T) {
		s := newShare(t)
		s.refused(filepath.Join(s.root, "vm", "..", "..", "secret"))
		s.refused(s.secret)
		if err := s.fs.Remove(s.secret); !fault.Is(err, fault.UnsafeFile) {
			t.Errorf("Remove: %v", err)
		}
		s.untouched("out of the folder")
	})
}

func TestWithinOfARunThatOnlyLooks(t *testing.T) {
	s := newShare(t)
	must(t, os.Symlink(s.secret, s.file))
	looking := durable.Within(durable.ReadOnly(durable.OS()), s.root)
	if _, err := looking.Open(s.file); !fault.Is(err, fault.UnsafeFile) {
		t.Errorf("Open: %v", err)
	}
	if _, err := durable.OpenLinked(looking, s.file); !fault.Is(err, fault.UnsafeFile) {
		t.Errorf("OpenLinked: %v", err)
	}
}

func TestWithinOpensFilesOnly(t *testing.T) {
	for what, make := range map[string]func(name string) error{
		"pipe":   func(name string) error { return unix.Mkfifo(name, 0o600) },
		"socket": func(name string) error { return unix.Mknod(name, unix.S_IFSOCK|0o600, 0) },
		"device": func(name string) error { return unix.Mknod(name, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) },
	} {
		t.Run(what, func(t *testing.T) {
			s := newShare(t)
			if err := make(s.file); err == syscall.EPERM {
				t.Skip("only root makes devices")
			} else {
				must(t, err)
			}
			s.refused(s.file, "ReadDir", "SyncDir") // those say that it is no folder
		})
	}
}

func TestWithinRefusesASecondName(t *testing.T) {
	s := newShare(t)
	must(t, os.Link(s.secret, s.file))
	s.refused(s.file, "OpenLinked", "Stat", "ReadDir", "SyncDir", "MkdirAll", "RenameOver", "WriteFile")
	must(t, durable.WriteFile(s.fs, s.file, []byte("new"))) // takes the place of the name only
	s.untouched("WriteFile")
}

func TestWithinRefusesAFileOfSomebodyElse(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives files away")
	}
	s := newShare(t)
	must(t, os.WriteFile(s.file, nil, 0o666))
	must(t, os.Chown(s.file, 12345, 12345))
	if _, err := s.fs.OpenRW(s.file); !fault.Is(err, fault.UnsafeFile) || !strings.Contains(err.Error(), "user 12345") {
		t.Errorf("another account's file: %v", err)
	}
	must(t, os.Chown(s.root, 12345, 12345)) // as a server does that lets nobody be root
	f, err := s.fs.OpenRW(s.file)
	must(t, err)
	must(t, f.Close())
}

func TestWithinRootMayBeALink(t *testing.T) {
	s := newShare(t)
	link := s.root + "-link"
	must(t, os.Symlink(s.root, link))
	linked := durable.Within(durable.OS(), link)
	must(t, linked.MkdirAll(filepath.Join(link, "a", "b")))
	must(t, durable.WriteFile(linked, filepath.Join(link, "a", "b", "c"), []byte("x")))
	if b, err := os.ReadFile(filepath.Join(s.root, "a", "b", "c")); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
	l, err := linked.Lock(filepath.Join(link, "lock"))
	must(t, err)
	must(t, l.Close())
	list, err := linked.ReadDir(link)
	must(t, err)
	if len(list) != 3 {
		t.Errorf("%v", list)
	}
}

// TestOnlyFilesAreReplaced: of the whole filesystem too.
func TestOnlyFilesAreReplaced(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "name")
	for what, make := range map[string]func() error{
		"pipe":   func() error { return unix.Mkfifo(name, 0o600) },
		"link":   func() error { return os.Symlink("elsewhere", name) },
		"folder": func() error { return os.Mkdir(name, 0o700) },
		"device": func() error { return unix.Mknod(name, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) },
	} {
		if err := make(); err != nil {
			t.Logf("%s: %v", what, err)
			continue
		}
		before, err := os.Lstat(name)
		must(t, err)
		if err := durable.WriteFile(durable.OS(), name, []byte("x")); !fault.Is(err, fault.UnsafeFile) {
			t.Errorf("%s: %v", what, err)
		}
		if after, err := os.Lstat(name); err != nil || after.Mode() != before.Mode() || !os.SameFile(before, after) {
			t.Errorf("%s: was replaced: %v, %v", what, after, err)
		}
		must(t, os.Remove(name))
		if list, err := os.ReadDir(dir); err != nil || len(list) != 0 {
			t.Errorf("%s: left behind: %v, %v", what, list, err)
		}
	}
}

// TestOpenNeverWaits: of the whole filesystem too, where an operator's path may lead to anything.
func TestOpenNeverWaits(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	must(t, unix.Mkfifo(pipe, 0o600))
	link := pipe + "-link"
	must(t, os.Symlink(pipe, link))
	for _, name := range []string{pipe, link, "/dev/null", "/dev/zero"} {
		for op, do := range map[string]func() error{
			"Open":   func() error { _, err := durable.OS().Open(name); return err },
			"OpenRW": func() error { _, err := durable.OS().OpenRW(name); return err },
			"Lock":   func() error { _, err := durable.OS().Lock(name); return err },
		} {
			ended := make(chan error, 1)
			go func() { ended <- do() }()
			select {
			case err := <-ended:
				if !fault.Is(err, fault.UnsafeFile) {
					t.Errorf("%s %s: %v", op, name, err)
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("%s %s waits", op, name)
			}
		}
	}
}
