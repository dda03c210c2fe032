package durable_test

import (
	"errors"
	"io/fs"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"sitrep/internal/durable"
)

// TestReadOnly: nothing that changes a folder or a file works, and everything that looks does.
func TestReadOnly(t *testing.T) {
	dir := t.TempDir()
	name, other := filepath.Join(dir, "file"), filepath.Join(dir, "other")
	if err := durable.WriteFile(durable.OS(), name, []byte("content")); err != nil {
		t.Fatal(err)
	}
	ro := durable.ReadOnly(durable.OS())
	f, err := ro.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	create := func(file durable.File, err error) error {
		if err == nil {
			file.Close()
		}
		return err
	}
	_, werr := f.WriteAt([]byte("x"), 0)
	for what, err := range map[string]error{
		"OpenRW": create(ro.OpenRW(name)), "Create": create(ro.Create(other)), "Rename": ro.Rename(name, other),
		"Link": ro.Link(name, other), "Remove": ro.Remove(name), "MkdirAll": ro.MkdirAll(other),
		"WriteAt": werr, "Truncate": f.Truncate(1), "ZeroAt": f.ZeroAt(0, 1),
	} {
		if !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := ro.Clone(name, other); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	if got, err := durable.ReadFile(ro, name, 100); err != nil || string(got) != "content" {
		t.Errorf("%q, %v", got, err)
	}
	if list, err := ro.ReadDir(dir); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
}

// TestReadOnlyLock: the lock of a file that is there excludes, and none is made where there is none.
func TestReadOnlyLock(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "lock")
	ro := durable.ReadOnly(durable.OS())
	c, err := ro.Lock(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if list, err := ro.ReadDir(dir); err != nil || len(list) != 0 {
		t.Fatalf("%v, %v", list, err)
	}
	held, err := durable.OS().Lock(name)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if _, err := ro.Lock(name); !errors.Is(err, durable.ErrLocked) {
		t.Errorf("error %v", err)
	}
}

// TestReadOnlyIsWhole: whatever is added to a filesystem or a file has to be looked at, whether it changes something.
func TestReadOnlyIsWhole(t *testing.T) {
	for of, known := range map[reflect.Type][]string{
		reflect.TypeFor[durable.FS](): {"Boot", "Clone", "Create", "Link", "Lock", "MkdirAll", "Open", "OpenRW", "ReadDir", "Remove", "Rename",
			"Stat", "SyncDir"},
		reflect.TypeFor[durable.File](): {"Close", "Extent", "Name", "ReadAt", "Size", "Stamp", "Sync", "Truncate", "WriteAt", "ZeroAt"},
	} {
		var have []string
		for m := range of.Methods() {
			have = append(have, m.Name)
		}
		if slices.Sort(have); !slices.Equal(have, known) {
			t.Errorf("%s has the methods %v; see to it that ReadOnly refuses the new ones that change something", of, have)
		}
	}
}
