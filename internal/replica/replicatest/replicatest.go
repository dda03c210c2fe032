// Package replicatest is the contract of package replica as tests that every kind of store has to pass.
package replicatest

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
)

// Place is where a store lies: each call returns a new Store on the same place, as a new process would have it.
type Place func() replica.Store

// TestStore runs the contract against a kind of store. fresh returns a new, empty place.
func TestStore(t *testing.T, fresh func(t *testing.T) Place) {
	tests := map[string]func(*testing.T, Place){
		"Identity":      testIdentity,
		"Create":        testCreate,
		"NotProtected":  testNotProtected,
		"Lock":          testLock,
		"List":          testList,
		"Remove":        testRemove,
		"View":          testView,
		"Pages":         testPages,
		"PagesRefuse":   testPagesRefuse,
		"PagesGrow":     testPagesGrow,
		"PagesMissing":  testPagesMissing,
		"Concurrent":    testConcurrent,
		"Stamp":         testStamp,
		"Sums":          testSums,
		"Shelf":         testShelf,
		"ShelfNames":    testShelfNames,
		"Ledger":        testLedger,
		"Fencing":       testFencing,
		"Proven":        testProven,
		"Seize":         testSeize,
		"SeizeAgain":    testSeizeAgain,
		"Cancelled":     testCancelled,
		"PreserveTwice": testPreserveTwice,
		"PreserveMore":  testPreserveMore,
		"History":       testHistory,
		"Joining":       testJoining,
		"Follow":        testFollow,
	}
	for name, f := range tests {
		t.Run(name, func(t *testing.T) {
			place := fresh(t)
			place() // where the store's service is not installed the test is skipped here, and not inside a test of its own
			f(t, place)
		})
	}
}

// OSLogs makes sealed logs in a folder of the operating system.
func OSLogs(t testing.TB) func(name string, data []byte) (durable.File, error) {
	folder := t.TempDir()
	return func(name string, data []byte) (durable.File, error) {
		path := filepath.Join(folder, name)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return nil, err
		}
		return durable.OS().Open(path)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantCode fails the test when the error has not the code; "" wants no error.
func wantCode(t *testing.T, err error, code fault.Code) {
	t.Helper()
	if code == "" && err == nil {
		return
	}
	if e := fault.Find(err); e == nil || e.Code != code {
		t.Fatalf("the error is %v (%T), want one of code %s", err, err, code)
	}
}

// begin prepares the store and makes a replica.
func begin(t *testing.T, place Place, first replica.State) replica.Replica {
	t.Helper()
	store := place()
	_, err := store.Prepare(t.Context(), hrl.ID{})
	check(t, err)
	r, err := store.Create(t.Context(), first)
	check(t, err)
	t.Cleanup(func() { r.Close() })
	return r
}

func reopen(t *testing.T, place Place, r replica.Replica, vm string) replica.Replica {
	t.Helper()
	check(t, r.Close())
	r, err := place().Open(t.Context(), vm)
	check(t, err)
	t.Cleanup(func() { r.Close() })
	return r
}

func load(t *testing.T, r replica.Replica) replica.State {
	t.Helper()
	s, err := r.Ledger().Load(t.Context())
	check(t, err)
	return s
}

// disk opens the first disk.
func disk(t *testing.T, r replica.Replica) replica.Pages {
	t.Helper()
	p, err := r.Disk(t.Context(), load(t, r).Disks[0])
	check(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

func testIdentity(t *testing.T, place Place) {
	ctx := t.Context()
	_, err := place().Prepare(ctx, hrl.NewID())
	wantCode(t, err, fault.StoreNotMounted)
	_, err = place().Open(ctx, "vm")
	wantCode(t, err, fault.StoreNotMounted)
	_, err = place().View(ctx, "vm")
	wantCode(t, err, fault.StoreNotMounted)
	_, err = place().Create(ctx, FirstState("vm"))
	wantCode(t, err, fault.StoreNotMounted)
	wantCode(t, place().Remove(ctx, "vm"), fault.StoreNotMounted)
	for _, err := range place().List(ctx) {
		wantCode(t, err, fault.StoreNotMounted)
	}
	id, err := place().Prepare(ctx, hrl.ID{})
	check(t, err)
	if id.IsZero() {
		t.Fatal("a new store has the zero id")
	}
	for _, want := range []hrl.ID{{}, id} {
		again, err := place().Prepare(ctx, want)
		check(t, err)
		if again != id {
			t.Fatalf("the id was %s and is %s", id, again)
		}
	}
	_, err = place().Prepare(ctx, hrl.NewID())
	wantCode(t, err, fault.StoreForeign)
	if m, ok := replica.MenderOf(place()); ok {
		wantCode(t, m.Identify(ctx, hrl.NewID()), fault.Exists)
		for st, err := range m.Ledgers(ctx) {
			t.Errorf("an empty store has the ledger of %q, %v", st.VM, err)
		}
		check(t, begin(t, place, FirstState("vm")).Close())
		for st, err := range m.Ledgers(ctx) {
			if check(t, err); st.VM != "vm" {
				t.Errorf("the store has the ledger of %q", st.VM)
			}
		}
	}
}

func testCreate(t *testing.T, place Place) {
	first := FirstState("a vm")
	r := begin(t, place, first)
	got := load(t, r)
	first.Version = got.Version
	if got.Version == 0 || !same(got, first) {
		t.Fatalf("the ledger is %+v, not the first one", got)
	}
	check(t, r.Close())
	_, err := place().Create(t.Context(), first)
	wantCode(t, err, fault.AlreadyProtected)
	r, err = place().Open(t.Context(), "a vm")
	check(t, err)
	check(t, r.Close())
	for _, name := range []string{"", ".", "..", "../x", "a/b", `a\b`, ".hidden", "a\x00", " a"} {
		s := FirstState(name)
		if _, err := place().Create(t.Context(), s); err == nil {
			t.Errorf("a VM called %q was created", name)
		}
	}
}

func testNotProtected(t *testing.T, place Place) {
	_, err := place().Prepare(t.Context(), hrl.ID{})
	check(t, err)
	_, err = place().Open(t.Context(), "vm")
	wantCode(t, err, fault.NotProtected)
	_, err = place().View(t.Context(), "vm")
	wantCode(t, err, fault.NotProtected)
	check(t, place().Remove(t.Context(), "vm"))
}

func testLock(t *testing.T, place Place) {
	first := FirstState("vm")
	r := begin(t, place, first)
	_, err := place().Open(t.Context(), "vm")
	wantCode(t, err, fault.ReplicaHeld)
	if e := fault.Find(err); e.VM != "vm" {
		t.Errorf("the error does not name the VM: %v", err)
	}
	wantCode(t, place().Remove(t.Context(), "vm"), fault.ReplicaHeld)
	_, err = place().Create(t.Context(), first)
	wantCode(t, err, fault.ReplicaHeld)
	other, err := place().Create(t.Context(), FirstState("other"))
	check(t, err)
	check(t, other.Close())
	v, err := place().View(t.Context(), "vm")
	check(t, err)
	check(t, v.Close())
	_, err = place().Open(t.Context(), "vm")
	wantCode(t, err, fault.ReplicaHeld)
	reopen(t, place, r, "vm")
}

func testList(t *testing.T, place Place) {
	_, err := place().Prepare(t.Context(), hrl.ID{})
	check(t, err)
	want := []string{"B", "a", "b", "c d"}
	for _, name := range []string{"b", "c d", "a", "B"} {
		r, err := place().Create(t.Context(), FirstState(name))
		check(t, err)
		check(t, r.Close())
	}
	var got []string
	for name, err := range place().List(t.Context()) {
		check(t, err)
		got = append(got, name)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("the list is %q instead of %q", got, want)
	}
	for range place().List(t.Context()) {
		break
	}
}

func testRemove(t *testing.T, place Place) {
	h := NewHistory("vm", 5, OSLogs(t))
	check(t, h.Begin(t.Context(), place()))
	check(t, h.Step(t.Context(), false))
	old := h.rep
	check(t, h.Close())
	check(t, place().Remove(t.Context(), "vm"))
	check(t, place().Remove(t.Context(), "vm"))
	for name := range place().List(t.Context()) {
		t.Errorf("%s is still listed", name)
	}
	_, err := place().Open(t.Context(), "vm")
	wantCode(t, err, fault.NotProtected)
	h = NewHistory("vm", 6, OSLogs(t))
	check(t, h.Begin(t.Context(), place()))
	check(t, h.Step(t.Context(), true))
	check(t, h.Check(t.Context()))
	if _, err := old.Ledger().Save(t.Context(), h.state); err == nil {
		t.Error("a replica that was closed saves its ledger")
	}
	check(t, h.Close())
}

func testView(t *testing.T, place Place) {
	h := NewHistory("vm", 7, OSLogs(t))
	check(t, h.Begin(t.Context(), place()))
	check(t, h.Step(t.Context(), false))
	defer h.Close()
	v, err := place().View(t.Context(), "vm")
	check(t, err)
	defer v.Close()
	seen := *h
	seen.rep = v
	check(t, seen.Check(t.Context()))
	p := disk(t, v)
	ctx := t.Context()
	f, err := OSLogs(t)("x", nil)
	check(t, err)
	defer f.Close()
	_, put := v.Shelf().Put(ctx, "x.hrl", f)
	_, save := v.Ledger().Save(ctx, h.state)
	for what, err := range map[string]error{
		"WriteAt": p.WriteAt(ctx, make([]byte, 512), 0), "ZeroAt": p.ZeroAt(ctx, 0, 512), "Grow": p.Grow(ctx, 1<<20),
		"StoreSums": p.StoreSums(ctx, 0, make([]sums.Sum, 1)), "ClearSums": p.ClearSums(ctx, 0, 1), "Flush": p.Flush(ctx),
		"Put": put, "Remove": v.Shelf().Remove(ctx, "x.hrl"), "Save": save,
		"Preserve": v.Points().Preserve(ctx, h.state, h.state.Applied.Next(), nil, false),
		"Sweep":    v.Points().Sweep(ctx, h.state),
	} {
		if err == nil {
			t.Errorf("%s works on a replica that is open for reading", what)
		}
	}
	check(t, h.Check(t.Context()))
}

func testLedger(t *testing.T, place Place) {
	ctx := t.Context()
	r := begin(t, place, FirstState("vm"))
	first := load(t, r)
	next := first
	next.Reason, next.Received = "because", first.Received.Next()
	saved, err := r.Ledger().Save(ctx, next)
	check(t, err)
	if saved.Version <= first.Version || saved.Reason != "because" {
		t.Fatalf("Save returns version %d after %d", saved.Version, first.Version)
	}
	if got := load(t, r); !same(got, saved) {
		t.Fatal("Load returns another state than Save")
	}
	next.Reason = "another one"
	_, err = r.Ledger().Save(ctx, next)
	wantCode(t, err, fault.LedgerConflict)
	wrong := saved
	wrong.Disks = append(slices.Clone(saved.Disks), saved.Disks[0])
	if _, err := r.Ledger().Save(ctx, wrong); err == nil {
		t.Error("a ledger with one disk twice was saved")
	}
	foreign := saved
	foreign.Replica = hrl.NewID()
	_, err = r.Ledger().Save(ctx, foreign)
	wantCode(t, err, fault.ReplicaForeign)
	r = reopen(t, place, r, "vm")
	if got := load(t, r); !same(got, saved) {
		t.Fatal("the ledger is another one after opening again")
	}
}

func testFencing(t *testing.T, place Place) {
	ctx := t.Context()
	r := begin(t, place, FirstState("vm"))
	mine := load(t, r)
	r = reopen(t, place, r, "vm")
	theirs := load(t, r)
	theirs.Generation++
	theirs.Owner = replica.Owner{Site: "recovery", Host: "h9", Since: clock(7)}
	theirs, err := r.Ledger().Save(ctx, theirs)
	check(t, err)
	_, err = r.Ledger().Save(ctx, mine)
	wantCode(t, err, fault.Fenced)
	for _, word := range []string{"recovery", "h9", "2026-03-01T00:07:00Z"} {
		if !bytes.Contains([]byte(err.Error()), []byte(word)) {
			t.Errorf("the error does not name %s: %v", word, err)
		}
	}
	mine.Version = theirs.Version
	_, err = r.Ledger().Save(ctx, mine)
	wantCode(t, err, fault.Fenced)
	if got := load(t, r); !same(got, theirs) {
		t.Fatal("who was fenced has changed the ledger")
	}
}

func testCancelled(t *testing.T, place Place) {
	h := NewHistory("vm", 21, OSLogs(t))
	check(t, h.Begin(t.Context(), place()))
	check(t, h.Step(t.Context(), false))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p := disk(t, h.rep)
	f, err := OSLogs(t)("x", []byte("x"))
	check(t, err)
	defer f.Close()
	one := bytes.Repeat([]byte{1}, 512)
	_, put := h.rep.Shelf().Put(ctx, "x.hrl", f)
	_, save := h.rep.Ledger().Save(ctx, h.state)
	_, create := place().Create(ctx, FirstState("new"))
	_, open := h.rep.Points().Open(ctx, h.state, h.state.Points[0].ID)
	_, prepare := place().Prepare(ctx, hrl.ID{})
	for what, err := range map[string]error{
		"ReadAt": p.ReadAt(ctx, one, 0), "WriteAt": p.WriteAt(ctx, one, 0), "ZeroAt": p.ZeroAt(ctx, 0, 512),
		"Grow": p.Grow(ctx, 1<<20), "StoreSums": p.StoreSums(ctx, 0, make([]sums.Sum, 1)), "ClearSums": p.ClearSums(ctx, 0, 1),
		"Flush": p.Flush(ctx), "Put": put, "Remove": h.rep.Shelf().Remove(ctx, "x"), "Save": save, "Create": create,
		"Preserve": h.rep.Points().Preserve(ctx, h.state, h.state.Applied.Next(), nil, false), "Open": open,
		"Sweep": h.rep.Points().Sweep(ctx, replica.State{}), "Prepare": prepare, "Store.Remove": place().Remove(ctx, "vm"),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s with a cancelled context returns %v", what, err)
		}
		wantCode(t, err, fault.Interrupted)
	}
	check(t, h.Check(t.Context()))
	_, err = place().View(t.Context(), "new")
	wantCode(t, err, fault.NotProtected)
	check(t, h.Close())
}
