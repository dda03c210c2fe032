package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
)

// testTime is a clock that tests move.
type testTime struct{ at time.Time }

func (c *testTime) now() time.Time { return c.at }

func newTime() *testTime { return &testTime{time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC)} }

func testDir(t *testing.T) (*Dir, *testTime) {
	t.Helper()
	c := newTime()
	return Open(durable.OS(), filepath.Join(t.TempDir(), "state"), c.now), c
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestReadingLeavesNoTrace(t *testing.T) {
	d, _ := testDir(t)
	if _, ok, err := d.Store(); ok || err != nil {
		t.Errorf("Store: %v %v", ok, err)
	}
	if _, ok, err := d.VM("web01"); ok || err != nil {
		t.Errorf("VM: %v %v", ok, err)
	}
	if jobs := must(d.Jobs(Query{}))(t); len(jobs) != 0 {
		t.Errorf("Jobs: %v", jobs)
	}
	if _, err := d.Job("x"); !fault.Is(err, fault.UsageError) {
		t.Errorf("Job: %v", err)
	}
	check(t, d.ForgetVM("web01"))
	check(t, d.Prune(time.Hour))
	if _, err := os.Stat(d.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder was made: %v", err)
	}
}

func TestMemory(t *testing.T) {
	d, c := testDir(t)
	id := hrl.NewID()
	check(t, d.RememberStore(id, "/dr"))
	c.at = c.at.Add(time.Hour)
	check(t, d.RememberStore(id, "/dr")) // no change: not written
	if s, ok, err := d.Store(); !ok || err != nil || s.ID != id || s.Where != "/dr" || !s.Seen.Equal(newTime().at) {
		t.Errorf("Store: %+v %v %v", s, ok, err)
	}
	vm := VM{VM: "web01", Replica: hrl.NewID(), Store: id, Protected: c.at, Rates: map[string]float64{"seed": 5}}
	check(t, d.RememberVM(vm))
	if got, ok, err := d.VM("web01"); !ok || err != nil || got.Replica != vm.Replica || got.Rates["seed"] != 5 {
		t.Errorf("VM: %+v %v %v", got, ok, err)
	}
	check(t, d.ForgetVM("web01"))
	if _, ok, err := d.VM("web01"); ok || err != nil {
		t.Errorf("forgotten VM: %v %v", ok, err)
	}
}

// TestDamaged: a memory that cannot be understood is none.
func TestDamaged(t *testing.T) {
	for _, data := range []string{"", "{", "[]", `{"id": 5}`, "\x00\x01", strings.Repeat("x", maxRecord+1)} {
		d, _ := testDir(t)
		check(t, os.MkdirAll(d.Path("jobs"), 0o700))
		check(t, os.WriteFile(d.Path("store.json"), []byte(data), 0o600))
		check(t, os.WriteFile(d.Path("jobs", "20260102T030405-678Z-aabbcc.json"), []byte(data), 0o600))
		if _, ok, err := d.Store(); ok || err != nil {
			t.Errorf("%.20q: %v %v", data, ok, err)
		}
		if jobs, err := d.Jobs(Query{}); len(jobs) != 0 || err != nil {
			t.Errorf("%.20q: %v %v", data, jobs, err)
		}
	}
}

// TestDamagedVM: a record of a VM whose name has rotted is none. Were it taken, what is remembered next would be saved by that name.
func TestDamagedVM(t *testing.T) {
	for _, damage := range [][2]string{{`"vm": "web01"`, `"vm": "wec01"`}, {`"vm"`, `"vn"`}, {`"phase": "replicating"`, `"phase": 5`}} {
		d, _ := testDir(t)
		check(t, d.RememberVM(VM{VM: "web01", Replica: hrl.NewID(), Phase: replica.Replicating, Runs: []hrl.ID{hrl.NewID()}}))
		data := must(os.ReadFile(d.vmFile("web01")))(t)
		rotten := bytes.Replace(data, []byte(damage[0]), []byte(damage[1]), 1)
		if bytes.Equal(data, rotten) {
			t.Fatalf("%s: nothing to damage in %s", damage[0], data)
		}
		check(t, os.WriteFile(d.vmFile("web01"), rotten, 0o600))
		if vm, ok, err := d.VM("web01"); ok || err != nil || !vm.Replica.IsZero() || vm.Runs != nil {
			t.Errorf("%s: %+v %v %v", damage[1], vm, ok, err)
		}
		check(t, d.ChangeVM("web01", func(vm *VM) { vm.Applied = 7 }))
		if _, err := os.Stat(d.vmFile("wec01")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: saved by another name: %v", damage[1], err)
		}
	}
}

// TestDamagedHeld: a guest that may be frozen is let go on, also when what is remembered of that is damaged.
func TestDamagedHeld(t *testing.T) {
	for _, data := range []string{"", "{", `{"vm": "db01", "side": "recovery"}`} {
		d, _ := testDir(t)
		if _, ok, err := d.Held("web01"); ok || err != nil {
			t.Fatalf("before: %v %v", ok, err)
		}
		check(t, os.MkdirAll(d.Path("held"), 0o700))
		check(t, os.WriteFile(d.heldFile("web01"), []byte(data), 0o600))
		want := Held{VM: "web01", Side: AtSource, Name: "web01", Host: true, Hooks: true}
		if h, ok, err := d.Held("web01"); !ok || err != nil || h != want {
			t.Errorf("%q: %+v %v %v", data, h, ok, err)
		}
		check(t, d.ForgetHeld("web01"))
	}
}

func TestLock(t *testing.T) {
	d, _ := testDir(t)
	lock := must(d.Lock("web01"))(t)
	j := must(d.Begin("delta", "Replicate changes", "web01"))(t)
	_, err := d.Lock("web01")
	if !fault.Is(err, fault.RunLocked) || !strings.Contains(err.Error(), j.ID()) {
		t.Errorf("second lock: %v", err)
	}
	other := must(d.Lock("db01"))(t)
	check(t, errors.Join(lock.Close(), other.Close()))
	must(d.Lock("web01"))(t).Close()
}

func TestJob(t *testing.T) {
	d, c := testDir(t)
	j := must(d.Begin("protect", "Enable protection", "web01"))(t)
	running := must(d.Job(j.ID()))(t)
	if running.State != InProgress {
		t.Errorf("a running job is %s", running.State)
	}
	check(t, j.Step("one", func() (int64, string, error) { c.at = c.at.Add(3 * time.Second); return 5, "five", nil }))
	boom := fault.New(fault.DiskMissing, "gone")
	err := j.Step("two", func() (int64, string, error) {
		for range 50 { // a step that takes its time can be seen
			if r := must(d.Job(j.ID()))(t); len(r.Steps) == 2 && r.Steps[1].State == InProgress {
				return 2, "", boom
			}
			time.Sleep(flushAfter / 10)
		}
		t.Error("a step that takes its time cannot be seen")
		return 2, "", boom
	})
	if err != boom {
		t.Errorf("Step returned %v", err)
	}
	if err := j.End(err); err != boom {
		t.Errorf("End returned %v", err)
	}
	got := must(d.Job(j.ID()))(t)
	if got.State != Failed || got.Bytes != 7 || got.Steps[0].State != Succeeded || got.Steps[1].State != Failed ||
		got.Steps[0].Ended.Sub(got.Steps[0].Started) != 3*time.Second || got.Steps[0].Note != "five" {
		t.Errorf("record: %+v", got)
	}
	if e := got.Error; e == nil || e.Code != fault.DiskMissing || !strings.Contains(e.Advice, "sitrep protect web01") || e.Cause == "" {
		t.Errorf("error: %+v", got.Error)
	}
	if _, err := os.Stat(d.lockFile(j.ID())); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the lock's file stays: %v", err)
	}
}

func TestJobStates(t *testing.T) {
	tests := map[JobState]error{
		Succeeded: nil,
		Failed:    errors.New("any"),
		Cancelled: fault.Wrap(fault.IO, context.Canceled, "reading"),
		Waiting:   fault.New(fault.ManualAction, "plan p waits").Then("sitrep failover continue --plan p"),
	}
	for want, cause := range tests {
		d, _ := testDir(t)
		j := must(d.Begin("delta", "", "web01"))(t)
		_ = j.Step("s", func() (int64, string, error) { return 0, "", cause })
		_ = j.End(cause)
		if r := must(d.Job(j.ID()))(t); r.State != want || r.Steps[0].State != want {
			t.Errorf("%v: job %s, step %s", cause, r.State, r.Steps[0].State)
		}
		check(t, d.Settle(j.ID(), Succeeded, "done")) // of a job that waits only
		r := must(d.Job(j.ID()))(t)
		if waited := want == Waiting; waited != (r.Steps[0].Note == "done") || waited && (r.State != Succeeded || r.Error != nil) {
			t.Errorf("settled: %+v", r)
		}
	}
}

// TestDead: a record says that the job runs, and nobody holds its lock.
func TestDead(t *testing.T) {
	d, _ := testDir(t)
	j := must(d.Begin("delta", "", "web01"))(t)
	j.rec.Steps = []Step{{Name: "s", State: InProgress}}
	check(t, j.flush())
	check(t, j.lock.Close()) // as the kernel does when the process dies
	r := must(d.Job(j.ID()))(t)
	if r.State != Interrupted || r.Steps[0].State != Interrupted {
		t.Errorf("job %s, step %s", r.State, r.Steps[0].State)
	}
	check(t, os.Remove(d.lockFile(j.ID())))
	if r := must(d.Job(j.ID()))(t); r.State != Interrupted {
		t.Errorf("without its lock's file: %s", r.State)
	}
	if _, err := os.Stat(d.lockFile(j.ID())); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("looking made the lock's file: %v", err)
	}
}

func TestJobsQuery(t *testing.T) {
	d, c := testDir(t)
	var ids []string
	for i := range 6 {
		c.at = c.at.Add(time.Minute)
		j := must(d.Begin("delta", "", []string{"web01", "db01"}[i%2]))(t)
		check(t, j.End(nil))
		ids = append(ids, j.ID())
	}
	list := must(d.Jobs(Query{}))(t)
	if len(list) != 6 || list[0].ID != ids[5] || list[5].ID != ids[0] {
		t.Errorf("all jobs: %d", len(list))
	}
	if list = must(d.Jobs(Query{VM: "web01", Limit: 2}))(t); len(list) != 2 || list[0].ID != ids[4] || list[1].ID != ids[2] {
		t.Errorf("two of web01: %+v", list)
	}
	for _, part := range []string{ids[3], ids[3][:19], ids[3][len(ids[3])-6:]} {
		if r := must(d.Job(part))(t); r.ID != ids[3] {
			t.Errorf("Job(%q) = %s", part, r.ID)
		}
	}
	if _, err := d.Job("2026"); !fault.Is(err, fault.UsageError) || !strings.Contains(err.Error(), "6 jobs") {
		t.Errorf("an ID that is not one job's: %v", err)
	}
}

func TestPrune(t *testing.T) {
	d, c := testDir(t)
	c.at = time.Now() // the mark's time is the filesystem's
	begin := func() *Job { return must(d.Begin("delta", "", "web01"))(t) }
	old, running := begin(), begin()
	check(t, old.End(nil))
	c.at = c.at.Add(24*time.Hour + time.Second)
	fresh := begin()
	check(t, fresh.End(nil))
	check(t, d.Prune(24*time.Hour))
	left := map[string]bool{}
	for _, r := range must(d.Jobs(Query{}))(t) {
		left[r.ID] = true
	}
	if left[old.ID()] || !left[running.ID()] || !left[fresh.ID()] {
		t.Errorf("left: %v", left)
	}
	check(t, running.End(nil))

	// It looks once an hour at most.
	c.at = time.Now()
	check(t, d.Prune(0))
	if n := len(must(d.Jobs(Query{}))(t)); n != 2 {
		t.Errorf("%d jobs are left, want 2: the list was looked through again", n)
	}
	c.at = time.Now().Add(pruneEvery + 25*time.Hour)
	check(t, d.Prune(time.Hour))
	if n := len(must(d.Jobs(Query{}))(t)); n != 0 {
		t.Errorf("%d jobs are left", n)
	}
}

// TestPruneHalfMade: what a run that was killed had half written goes away, what another run may be writing stays.
func TestPruneHalfMade(t *testing.T) {
	d, c := testDir(t)
	c.at = time.Now()
	check(t, must(d.Begin("delta", "", "web01"))(t).End(nil))
	check(t, d.RememberVM(VM{VM: "web01"}))
	var temps []string
	for _, name := range []string{d.Path("store.json"), d.vmFile("web01"), d.jobFile("x")} {
		temps = append(temps, durable.TempName(name))
		check(t, os.WriteFile(temps[len(temps)-1], []byte("{"), 0o600))
	}
	left := func() (n int) {
		for _, name := range temps {
			if _, err := os.Stat(name); err == nil {
				n++
			}
		}
		return n
	}
	check(t, d.Prune(24*time.Hour))
	if n := left(); n != 3 {
		t.Errorf("%d half-made files are left of 3 that may be in the making", n)
	}
	c.at = c.at.Add(pruneEvery + time.Minute)
	check(t, d.Prune(24*time.Hour))
	if n := left(); n != 0 {
		t.Errorf("%d half-made files are left", n)
	}
	if _, ok, err := d.VM("web01"); !ok || err != nil {
		t.Errorf("the memory of the VM: %v %v", ok, err)
	}
}

// TestCrash cuts the power at every operation: what is remembered afterwards is what was, or what was about to be, and
// can always be written again.
func TestCrash(t *testing.T) {
	one, two := hrl.ID{1}, hrl.ID{2}
	history := func(fsys durable.FS) error {
		d := Open(fsys, "/state", newTime().now)
		if err := d.RememberVM(VM{VM: "web01", Replica: one}); err != nil {
			return err
		}
		j, err := d.Begin("delta", "", "web01")
		if err != nil {
			return err
		}
		if err := j.Step("s", func() (int64, string, error) { return 0, "", d.RememberVM(VM{VM: "web01", Replica: two}) }); err != nil {
			return j.End(err)
		}
		return j.End(nil)
	}
	whole := crashfs.New()
	check(t, history(whole))
	for k := 1; k <= whole.Ops(); k++ {
		cut := crashfs.New()
		cut.CutAfter(k)
		_ = history(cut)
		for _, policy := range crashfs.Policies() {
			t.Run(fmt.Sprintf("%d/%v", k, policy), func(t *testing.T) {
				after := cut.AfterCrash(policy, uint64(k))
				d := Open(after, "/state", newTime().now)
				vm, ok, err := d.VM("web01")
				if err != nil || ok && vm.Replica != one && vm.Replica != two {
					t.Errorf("VM: %+v %v %v", vm, ok, err)
				}
				for _, j := range must(d.Jobs(Query{}))(t) {
					if j.State == InProgress {
						t.Errorf("a job runs after the crash: %+v", j)
					}
				}
				check(t, history(after))
			})
		}
	}
}

func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"id":"20260102T030405-678Z-aabbcc","state":"InProgress","steps":[{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		fsys := crashfs.New()
		check(t, fsys.MkdirAll("/state/jobs"))
		file := must(fsys.Create("/state/jobs/20260102T030405-678Z-aabbcc.json"))(t)
		_, err := io.Copy(io.NewOffsetWriter(file, 0), bytes.NewReader(data))
		check(t, errors.Join(err, file.Close()))
		must(Open(fsys, "/state", newTime().now).Jobs(Query{}))(t)
	})
}

// TestPercent: how far a job is, is that of the step that runs, and not known where nothing is planned.
func TestPercent(t *testing.T) {
	for _, c := range []struct {
		of   Record
		want int
	}{
		{Record{State: InProgress}, 0},
		{Record{State: InProgress, Steps: []Step{{Bytes: 70}}}, 0},
		{Record{State: InProgress, Steps: []Step{{Planned: 200, Done: 50}}}, 25},
		{Record{State: InProgress, Steps: []Step{{Planned: 200, Done: 50, Bytes: 70}}}, 35},
		{Record{State: InProgress, Steps: []Step{{Planned: 200, Done: 200}}}, 99},
		{Record{State: Interrupted, Steps: []Step{{Planned: 200, Done: 50}}}, 0},
	} {
		if got := c.of.Percent(); got != c.want {
			t.Errorf("%+v: %d, want %d", c.of, got, c.want)
		}
	}
}
