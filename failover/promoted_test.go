package failover_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"sitrep/failover"
	"sitrep/failover/recovered"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/progress"
	"sitrep/internal/replica"
	"sitrep/internal/replica/dir"
	"sitrep/replicate/replicatetest"
)

// promoting is a store whose replicas are Promoters: promoted disks are files of a folder. Half made, they have another name.
type promoting struct {
	replica.Store
	fs durable.FS
}

const (
	blobs   = "/blobs"
	address = "https://account.test/replicas/web01/promoted/"
)

// file is where the disk is that a definition names.
func file(of string) string {
	if name, ok := strings.CutPrefix(of, address); ok {
		return path.Join(blobs, name)
	}
	return of
}

func (s promoting) wrap(r replica.Replica, err error) (replica.Replica, error) {
	if err != nil {
		return nil, err
	}
	return promoter{r, s.fs}, nil
}

func (s promoting) Open(ctx context.Context, vm string) (replica.Replica, error) {
	return s.wrap(s.Store.Open(ctx, vm))
}

func (s promoting) View(ctx context.Context, vm string) (replica.Replica, error) {
	return s.wrap(s.Store.View(ctx, vm))
}

type promoter struct {
	replica.Replica
	fs durable.FS
}

var _ replica.Promoter = promoter{}

func (r promoter) Promote(ctx context.Context, s replica.State, p replica.Promotion) (made replica.Promoted, err error) {
	view, err := r.Points().Open(ctx, s, p.Point)
	if err != nil {
		return made, err
	}
	defer func() { err = errors.Join(err, view.Close()) }()
	src, err := view.Disk(p.Disk)
	if err != nil {
		return made, err
	}
	_, err = recovered.Make(ctx, recovered.Config{FS: r.fs, Source: src, Path: path.Join(blobs, p.Name+".vhd"), Format: disk.VHD,
		VM: p.Point, Disk: p.Disk, Meter: progress.None()})
	if err != nil {
		return made, err
	}
	stamp, err := r.stamp(p.Name)
	return replica.Promoted{Where: address + p.Name + ".vhd", Stamp: stamp}, err
}

func (r promoter) stamp(name string) (string, error) {
	st, err := r.fs.Stat(path.Join(blobs, name+".vhd"))
	return fmt.Sprint(st), err
}

type openPromoted struct {
	disk.Image
	stamp string
}

func (d openPromoted) Stamp() string { return d.stamp }

func (r promoter) OpenPromoted(_ context.Context, name string, _ int64) (replica.PromotedDisk, error) {
	img, err := disk.Open(r.fs, path.Join(blobs, name+".vhd"), disk.VHD)
	if err != nil {
		return nil, err
	}
	stamp, err := r.stamp(name)
	return openPromoted{img, stamp}, err
}

func (r promoter) Promoted(context.Context) (names []string, err error) {
	entries, err := r.fs.ReadDir(blobs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name, ".vhd"); ok {
			names = append(names, name)
		}
	}
	return names, err
}

func (r promoter) Demote(ctx context.Context, name string) error { return r.RemovePromoted(ctx, name) }

func (r promoter) Strangers(context.Context) ([]string, error) { return nil, nil }

func (r promoter) RemovePromoted(_ context.Context, name string) error {
	entries, err := r.fs.ReadDir(blobs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if strings.Contains(e.Name, name) && err == nil {
			err = durable.RemoveIfThere(r.fs, path.Join(blobs, e.Name))
		}
	}
	return errors.Join(err, r.fs.SyncDir(blobs))
}

// inStore is edge with disks in the store.
func inStore(t *testing.T) (*world, replicatetest.Guest) {
	t.Helper()
	w, g := edge(t)
	w.in = failover.InStore
	return w, g
}

// garbage is what a guest writes that nobody wants to see again.
func garbage(g replicatetest.Guest) replicatetest.Guest {
	out := g.Clone()
	for name := range out {
		copy(out[name], bytes.Repeat([]byte{0xEE}, len(out[name])))
	}
	return out
}

// TestSecondTest: what the guest of a test wrote is in no other test of the same point, whether the first was cleaned up or not.
func TestSecondTest(t *testing.T) {
	w, g := inStore(t)
	seen := map[string]bool{}
	for range 3 {
		must(t, w.run(t, failover.Test, failover.Options{}))
		got, err := w.recovered("web01-test")
		must(t, errors.Join(err, same("the test VM", got, g)))
		for _, d := range w.recovery.vms["web01-test"].def.Disks {
			if seen[d.Path] || d.Format != "vhd" || !strings.HasPrefix(d.Path, address+"test-") {
				t.Errorf("disk %+v", d)
			}
			seen[d.Path] = true
		}
		must(t, w.write("web01-test", garbage(g)))
		must(t, w.job().Cleanup(t.Context(), ""))
		must(t, gone(w, "/dr/web01-test", "test-"))
	}
}

// TestThereAndBack: a failover that is changed to another point, and back to the first, has the disks as that point was, and
// nothing is left of those that its guests wrote to.
func TestThereAndBack(t *testing.T) {
	w, g := inStore(t)
	must(t, w.run(t, failover.Planned, failover.Options{}))
	st := w.state(t)
	last := st.Failover.Point
	for _, point := range []string{st.Points[0].ID, last} {
		must(t, w.write("web01", garbage(g)))
		must(t, w.run(t, failover.Unplanned, failover.Options{Point: point}))
		names, err := promoter{fs: w.FS}.Promoted(t.Context())
		if must(t, err); len(names) != len(w.Disks) {
			t.Errorf("in the store lies %q", names)
		}
	}
	got, err := w.recovered("web01")
	must(t, errors.Join(err, same("the recovered VM", got, g)))
}

// TestOtherPlace: a failover that could not make its disks in one place makes them in the other when the site file says so, and
// leaves nothing in the first. What was made stays where it is, whatever the site file says then.
func TestOtherPlace(t *testing.T) {
	for _, first := range []failover.DisksIn{failover.InFolder, failover.InStore} {
		w, g := edge(t)
		w.in = first
		second := failover.InStore
		if first == second {
			second = failover.InFolder
		}
		w.FS.SetCapacity(w.FS.Allocated() + 1<<16)
		wantCode(t, w.run(t, failover.Planned, failover.Options{}), fault.NoSpace)
		w.FS.SetCapacity(0)
		w.in = second
		must(t, w.run(t, failover.Planned, failover.Options{}))
		got, err := w.recovered("web01")
		must(t, errors.Join(err, same("the recovered VM", got, g)))
		if in := strings.HasPrefix(w.recovery.vms["web01"].def.Disks[0].Path, address); in != (second == failover.InStore) {
			t.Errorf("the disks are in %q", w.recovery.vms["web01"].def.Disks[0].Path)
		}
		w.in = first
		if second == failover.InFolder {
			must(t, gone(w, "/nowhere", "failover-"))
		} else {
			must(t, gone(w, "/dr/web01", "another failover"))
		}
		must(t, w.job().Undo(t.Context()))
		must(t, gone(w, "/dr/web01", "failover-"))
	}
}

// TestNoPromoter: a store that cannot do it is found out before anything is begun.
func TestNoPromoter(t *testing.T) {
	w, _ := inStore(t)
	j := w.job()
	j.Store = replica.InHand(dir.New(w.FS, "/store"))
	wantCode(t, j.Run(t.Context(), failover.Planned, failover.Options{}, ""), fault.PrerequisiteFail)
	if st := w.state(t); st.Failover != nil || w.source.vms["web01"].power != host.Running {
		t.Error("something was begun")
	}
}

// TestPlanInStore: the plan says what is done, where, and that it is proven.
func TestPlanInStore(t *testing.T) {
	w, _ := inStore(t)
	j := w.job()
	text := func() string {
		p, err := j.Plan(t.Context(), failover.Test, failover.Options{})
		must(t, err)
		return p.Steps[slices.IndexFunc(p.Steps, func(s failover.Step) bool { return s.ID == failover.StepDisks })].Text
	}
	point := w.state(t).Points[1].ID
	if got, want := text(), "copy 2 disks of point "+point+" inside the store, and read them to prove them"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	j.Proof = replica.ProofNone
	if got, want := text(), "copy 2 disks of point "+point+" inside the store"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestMayRemove: a replica is not removed while disks of a recovered VM lie beside it.
func TestMayRemove(t *testing.T) {
	w, _ := inStore(t)
	may := func() error {
		r, err := w.job().Store.View(t.Context(), "web01")
		must(t, err)
		return errors.Join(failover.MayRemove(t.Context(), r, "web01"), r.Close())
	}
	must(t, may())
	must(t, w.run(t, failover.Planned, failover.Options{}))
	must(t, w.job().Commit(t.Context()))
	wantCode(t, may(), fault.WrongState)
	for _, d := range w.recovery.vms["web01"].def.Disks {
		must(t, w.FS.Remove(file(d.Path)))
	}
	must(t, may())
}

// TestNothingWritten: a VM that has written to none of its disks ran from copies of them: nothing is brought home from the others.
func TestNothingWritten(t *testing.T) {
	w, g := inStore(t)
	ctx := t.Context()
	must(t, w.run(t, failover.Planned, failover.Options{}))
	must(t, w.job().Commit(ctx))
	back := func() error {
		return w.job().Failback(ctx, failover.FailbackOptions{Mode: failover.MinimalDowntime}, "")
	}
	wantCode(t, back(), fault.FailoverFailed)
	if w.source.vms["web01"].power == host.Running || w.recovery.vms["web01"].power == host.Running {
		t.Error("a VM runs")
	}
	disks := w.recovery.vms["web01"].def.Disks
	for _, d := range disks[:1] { // the stop of the host has brought it back
		img, err := disk.OpenRW(w.FS, file(d.Path), disk.VHD)
		must(t, err)
		copy(g[d.Name], bytes.Repeat([]byte{0xEE}, 4096))
		_, err = img.WriteAt(g[d.Name][:4096], 0)
		must(t, errors.Join(err, img.Flush(), img.Close()))
	}
	j := w.job()
	var notes []string
	j.Step = func(_ string, f func() (int64, string, error)) error {
		_, note, err := f()
		notes = append(notes, note)
		return err
	}
	must(t, j.Failback(ctx, failover.FailbackOptions{Mode: failover.MinimalDowntime}, ""))
	if want := "nothing was written since the failover to " + disks[1].Name; !slices.Contains(notes, want) {
		t.Errorf("the steps say %q, and not %q", notes, want)
	}
	home, err := w.atHome()
	must(t, errors.Join(err, same("the disks at home", home, g)))
}

// TestHomeFromStore: the way home of a failover whose disks lie in the store is priced, to disks that are there and to some that are
// not.
func TestHomeFromStore(t *testing.T) {
	w, g := inStore(t)
	ctx := t.Context()
	must(t, w.run(t, failover.Planned, failover.Options{}))
	must(t, w.job().Commit(ctx))
	replicatetest.Scribble(rand.New(rand.NewPCG(11, 4)), g)
	must(t, w.write("web01", g))
	must(t, w.FS.Remove(w.Path("data")))
	p, err := w.job().Price(ctx)
	must(t, err)
	for _, d := range p.Disks {
		if d.Different == 0 || d.Size == 0 {
			t.Errorf("disk %+v", d)
		}
	}
	must(t, w.job().Failback(ctx, failover.FailbackOptions{Mode: failover.DuringFailover}, ""))
	home, err := w.atHome()
	must(t, errors.Join(err, same("the disks at home", home, g)))
	must(t, w.job().Commit(ctx))
	must(t, gone(w, "/dr/web01", "failover-"))
}
