// Package hosttest is the contract of package host as a runnable suite. Every kind of host passes it.
package hosttest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/host"
)

// Name is the VM of the suite. A host that makes more of a name than data fails.
const Name = `vm, 'b' $(x) "c"`

// Rig is a host with nothing on it, and how to use it.
type Rig struct {
	Host host.Host
	// Define makes the disks of a new VM and returns its definition, not yet created. Its guest, when there is one, writes to its
	// disks all the time and obeys the power button.
	Define func(t *testing.T, name string) host.Definition
	// Written returns when the guest of the VM, which was started, has come up and written to its disks. nil: the VMs of this
	// rig have no guest.
	Written func(t *testing.T, vm string)
	// Obeyed fails the test when the VM's guest, which was stopped with a grace, did not end by itself. nil: nobody can tell.
	Obeyed func(t *testing.T, vm string)
	// Grace is how long a guest may take to shut down, far more than one does that obeys.
	Grace time.Duration
	// Together says that calls for one VM may come at the same time, from several processes too; the contract asks for less.
	Together bool
}

// TestHost runs the suite, each test on a fresh rig.
func TestHost(t *testing.T, fresh func(t *testing.T) Rig) {
	for name, test := range map[string]func(*testing.T, Rig){
		"Absent": testAbsent, "Create": testCreate, "Power": testPower, "Grace": testGrace, "DeleteRunning": testDeleteRunning,
		"Cancelled": testCancelled, "Disposable": testDisposable, "Together": testTogether, "Freeze": testFreeze,
	} {
		t.Run(name, func(t *testing.T) {
			r := fresh(t)
			t.Cleanup(func() {
				if err := r.Host.Delete(context.Background(), Name); err != nil {
					t.Errorf("clean up: %v", err)
				}
			})
			test(t, r)
		})
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func is(t *testing.T, err error, code fault.Code) {
	t.Helper()
	if !fault.Is(err, code) {
		t.Errorf("the error is %v, not %s", err, code)
	}
}

func state(t *testing.T, r Rig, want host.Power) {
	t.Helper()
	got, err := r.Host.State(context.Background(), Name)
	ok(t, err)
	if got != want {
		t.Fatalf("the VM is %s, not %s", got, want)
	}
}

// sums are the SHA-256 of the disk files, and a failure when one is not there.
func sums(t *testing.T, d host.Definition) string {
	t.Helper()
	s := ""
	for _, disk := range d.Disks {
		b, err := os.ReadFile(disk.Path)
		ok(t, err)
		s += fmt.Sprintf("%x ", sha256.Sum256(b))
	}
	return s
}

// other is the definition changed.
func other(d host.Definition) host.Definition {
	d.Memory += 64 << 20
	return d
}

func testAbsent(t *testing.T, r Rig) {
	ctx := context.Background()
	state(t, r, host.Absent)
	is(t, r.Host.Start(ctx, Name), fault.VMAbsent)
	is(t, r.Host.Stop(ctx, Name, 0), fault.VMAbsent)
	is(t, r.Host.Stop(ctx, Name, time.Minute), fault.VMAbsent)
	ok(t, r.Host.Delete(ctx, Name))
	if f, can := r.Host.(host.Freezer); can {
		held, err := f.Freeze(ctx, Name)
		is(t, err, fault.VMAbsent)
		if held {
			t.Error("a VM that is absent is held")
		}
	}
	if r.Host.Describe() == "" {
		t.Error("the host has no name")
	}
}

func testCreate(t *testing.T, r Rig) {
	ctx := context.Background()
	d := r.Define(t, Name)
	before := sums(t, d)
	ok(t, r.Host.Create(ctx, d))
	ok(t, r.Host.Create(ctx, d))
	state(t, r, host.Off)
	ok(t, r.Host.Create(ctx, other(d)))
	state(t, r, host.Off)
	ok(t, r.Host.Stop(ctx, Name, time.Minute)) // off already
	ok(t, r.Host.Delete(ctx, Name))
	ok(t, r.Host.Delete(ctx, Name))
	state(t, r, host.Absent)
	if sums(t, d) != before {
		t.Error("a disk was changed though the VM never ran")
	}
	ok(t, r.Host.Create(ctx, d))
	state(t, r, host.Off)
}

func testPower(t *testing.T, r Rig) {
	ctx := context.Background()
	d := r.Define(t, Name)
	ok(t, r.Host.Create(ctx, d))
	for range 2 {
		ok(t, r.Host.Start(ctx, Name))
		ok(t, r.Host.Start(ctx, Name))
		state(t, r, host.Running)
		ok(t, r.Host.Create(ctx, d))
		is(t, r.Host.Create(ctx, other(d)), fault.HostRefused)
		state(t, r, host.Running)
		ok(t, r.Host.Stop(ctx, Name, 0))
		state(t, r, host.Off)
		ok(t, r.Host.Stop(ctx, Name, 0))
	}
	ok(t, r.Host.Create(ctx, other(d)))
	sums(t, d)
}

func testGrace(t *testing.T, r Rig) {
	ctx := context.Background()
	d := r.Define(t, Name)
	ok(t, r.Host.Create(ctx, d))
	ok(t, r.Host.Start(ctx, Name))
	if r.Written != nil {
		r.Written(t, Name)
	}
	ok(t, r.Host.Stop(ctx, Name, r.Grace))
	state(t, r, host.Off)
	if r.Obeyed != nil {
		r.Obeyed(t, Name)
	}
	at := sums(t, d)
	ok(t, r.Host.Stop(ctx, Name, r.Grace))
	if sums(t, d) != at {
		t.Error("something was written after the VM was off")
	}
}

func testDeleteRunning(t *testing.T, r Rig) {
	ctx := context.Background()
	d := r.Define(t, Name)
	ok(t, r.Host.Create(ctx, d))
	ok(t, r.Host.Start(ctx, Name))
	ok(t, r.Host.Delete(ctx, Name))
	state(t, r, host.Absent)
	at := sums(t, d)
	ok(t, r.Host.Delete(ctx, Name))
	if sums(t, d) != at {
		t.Error("the disk changes though its VM was deleted")
	}
}

func testCancelled(t *testing.T, r Rig) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	d := r.Define(t, Name)
	cancelled := func(what string, err error) {
		t.Helper()
		if !fault.Cancelled(err) {
			t.Errorf("%s with a cancelled context: %v", what, err)
		}
	}
	cancelled("create", r.Host.Create(ctx, d))
	ok(t, r.Host.Create(context.Background(), d))
	cancelled("start", r.Host.Start(ctx, Name))
	ok(t, r.Host.Start(context.Background(), Name))
	cancelled("stop", r.Host.Stop(ctx, Name, time.Hour))
	cancelled("delete", r.Host.Delete(ctx, Name))
	state(t, r, host.Running)
	ok(t, r.Host.Stop(context.Background(), Name, 0))
	state(t, r, host.Off)
}

// testDisposable: nothing that the guest of a disposable VM writes reaches its disk files, and what that of another one does.
func testDisposable(t *testing.T, r Rig) {
	ctx := context.Background()
	d := r.Define(t, Name)
	before := sums(t, d)
	d.Disposable = true
	run := func() {
		t.Helper()
		ok(t, r.Host.Create(ctx, d))
		ok(t, r.Host.Start(ctx, Name))
		if r.Written != nil {
			r.Written(t, Name)
		}
		ok(t, r.Host.Stop(ctx, Name, 0))
	}
	run()
	if sums(t, d) != before {
		t.Fatal("the disk of a disposable VM was changed")
	}
	ok(t, r.Host.Delete(ctx, Name))
	if sums(t, d) != before {
		t.Fatal("the disk of a disposable VM was changed when it was deleted")
	}
	if r.Written == nil {
		return
	}
	d.Disposable = false
	run()
	if sums(t, d) == before {
		t.Error("the guest wrote nothing: this test proves nothing")
	}
}

// testTogether: calls for one VM at the same time end as if they had come one after the other.
func testTogether(t *testing.T, r Rig) {
	if !r.Together {
		return
	}
	ctx := context.Background()
	d := r.Define(t, Name)
	together := func(do func() error) {
		t.Helper()
		errs := make([]error, 4)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() { errs[i] = do() })
		}
		wg.Wait()
		ok(t, errors.Join(errs...))
	}
	together(func() error { return r.Host.Create(ctx, d) })
	state(t, r, host.Off)
	together(func() error { return r.Host.Start(ctx, Name) })
	state(t, r, host.Running)
	together(func() error { return r.Host.Stop(ctx, Name, 0) })
	state(t, r, host.Off)
	together(func() error { return r.Host.Delete(ctx, Name) })
	state(t, r, host.Absent)
}

func testFreeze(t *testing.T, r Rig) {
	f, can := r.Host.(host.Freezer)
	if !can {
		return
	}
	ctx := context.Background()
	d := r.Define(t, Name)
	ok(t, r.Host.Create(ctx, d))
	held, err := f.Freeze(ctx, Name)
	ok(t, err)
	if held {
		t.Error("a VM that is off is held")
	}
	ok(t, r.Host.Start(ctx, Name))
	if r.Written != nil {
		r.Written(t, Name)
	}
	for range 2 { // the second one stands for a run after one that was killed
		held, err = f.Freeze(ctx, Name)
		ok(t, err)
		if !held {
			t.Fatal("a VM that runs is not held")
		}
		state(t, r, host.Paused)
	}
	at := sums(t, d)
	if sums(t, d) != at {
		t.Error("a frozen VM writes")
	}
	ok(t, f.Thaw(ctx, Name))
	state(t, r, host.Running)
	ok(t, f.Thaw(ctx, Name))
	ok(t, r.Host.Stop(ctx, Name, 0))
	ok(t, f.Thaw(ctx, Name))
	state(t, r, host.Off)
}
