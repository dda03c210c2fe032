package replicatest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/replica"
)

func testShelf(t *testing.T, place Place) {
	ctx := t.Context()
	r := begin(t, place, FirstState("vm"))
	newLog := OSLogs(t)
	for i, data := range [][]byte{[]byte("first"), {}, bytes.Repeat([]byte("second, longer "), 200000)} {
		f, err := newLog(fmt.Sprint(i), data)
		check(t, err)
		for range 2 { // the same file again is no difference
			sent, err := r.Shelf().Put(ctx, "d.1.hrl", f)
			check(t, err)
			if sent < 0 || sent > int64(len(data))+4096 { // less, where they are compressed
				t.Errorf("%d bytes were moved for a log of %d", sent, len(data))
			}
		}
		check(t, f.Close())
		checkNames(t, r, "d.1.hrl")
		h := &History{rep: r}
		check(t, h.checkLog(ctx, "d.1.hrl", data))
		r = reopen(t, place, r, "vm")
		h.rep = r
		check(t, h.checkLog(ctx, "d.1.hrl", data))
	}
	testSparseLog(t, r)
	check(t, r.Shelf().Remove(ctx, "d.1.hrl"))
	check(t, r.Shelf().Remove(ctx, "d.1.hrl"))
	_, err := r.Shelf().Open(ctx, "d.1.hrl")
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("opening a log that was removed: %v", err)
	}
}

// testSparseLog puts a log of 1 GiB with holes that is longer than anybody would copy, and removes its file.
func testSparseLog(t *testing.T, r replica.Replica) {
	const size, at = 1 << 30, 700 << 20
	f, err := durable.OS().Create(filepath.Join(t.TempDir(), "sparse"))
	check(t, err)
	defer f.Close()
	data := bytes.Repeat([]byte("x"), 3<<20)
	check(t, f.Truncate(size))
	_, err = f.WriteAt(data, at)
	check(t, err)
	check(t, f.Sync())
	sent, err := r.Shelf().Put(t.Context(), "sparse.hrl", f)
	check(t, err)
	check(t, os.Remove(f.Name()))
	if e, err := f.Extent(0, at); err == nil && e.Kind == block.Zero && sent > int64(len(data))+64<<10 {
		t.Errorf("%d bytes were moved for %d of data", sent, len(data))
	}
	g, err := r.Shelf().Open(t.Context(), "sparse.hrl")
	check(t, err)
	defer g.Close()
	if n, err := g.Size(); err != nil || n != size {
		t.Fatalf("the log has %d bytes (error %v)", n, err)
	}
	got := make([]byte, len(data)+2*4096)
	if n, err := g.ReadAt(got, at-4096); n != len(got) {
		t.Fatal(err)
	}
	if !bytes.Equal(got[4096:4096+len(data)], data) || !block.IsZero(got[:4096]) || !block.IsZero(got[4096+len(data):]) {
		t.Error("the log on the shelf is another one")
	}
	check(t, r.Shelf().Remove(t.Context(), "sparse.hrl"))
}

func checkNames(t *testing.T, r replica.Replica, want ...string) {
	t.Helper()
	got, err := r.Shelf().Names(t.Context())
	check(t, err)
	if !slices.Equal(got, want) {
		t.Fatalf("on the shelf is %q, want %q", got, want)
	}
}

func testShelfNames(t *testing.T, place Place) {
	ctx := t.Context()
	r := begin(t, place, FirstState("vm"))
	checkNames(t, r)
	f, err := OSLogs(t)("log", []byte("log"))
	check(t, err)
	defer f.Close()
	for _, name := range []string{"b.hrl", "c d.hrl", "a.hrl"} {
		_, err := r.Shelf().Put(ctx, name, f)
		check(t, err)
	}
	checkNames(t, r, "a.hrl", "b.hrl", "c d.hrl")
	if r.Shelf().Path("a.hrl") == r.Shelf().Path("b.hrl") {
		t.Error("two logs have one path")
	}
	for _, name := range []string{"", "..", "../ledger.json", "x/y"} {
		if _, err := r.Shelf().Put(ctx, name, f); err == nil {
			t.Errorf("a log called %q was put", name)
		}
	}
	checkNames(t, r, "a.hrl", "b.hrl", "c d.hrl")
}
