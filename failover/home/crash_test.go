package home_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"sitrep/failover/home"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
)

// vm is a VM of two disks on its way home.
type vm struct {
	shape    shape
	old, new [2][]byte
	sources  [2]disk.Image
	files    [2][]byte // the originals before, to the byte
	again    bool
	at       string // position of the record before; "" when there is none
	brought  int64  // what all runs together bring home
}

var names = [2]string{"os", "data"}

func (v *vm) target(i int) string { return "/vms/web/" + names[i] }

func (v *vm) job(fs durable.FS, withSource bool) *home.Job {
	var disks []home.Disk
	for i := range names {
		d := home.Disk{Name: names[i], Target: v.target(i), Format: v.shape.format}
		if withSource {
			d.Source = v.sources[i]
		}
		disks = append(disks, d)
	}
	j := job(fs, "/state", disks...)
	j.Again, j.Tasks = v.again, 2
	return j
}

// rig makes the originals, brings them home once, and has the recovered disks change.
func rig(t *testing.T, r *rand.Rand, s shape, grow, again bool) (*vm, *crashfs.FS) {
	v, fs := &vm{shape: s, again: again}, crashfs.New()
	sources := crashfs.New()
	for i := range names {
		guest := make([]byte, 512*(300+r.IntN(500)))
		scribble(r, guest, 8)
		v.old[i] = bytes.Clone(guest)
		create(t, fs, v.target(i), s, make([]byte, len(guest)))
		scribble(r, guest, 6)
		if grow && i == 1 {
			guest = append(guest, make([]byte, 512*200)...)
			guest[len(guest)-3000] = 9
		}
		v.new[i] = guest
	}
	for i := range names {
		v.sources[i] = sourceOf(t, sources, fmt.Sprint("/old", i), v.old[i])
	}
	must(v.job(fs, true).Bring(t.Context()))(t)
	for i := range names {
		v.sources[i] = sourceOf(t, sources, fmt.Sprint("/new", i), v.new[i])
		v.files[i] = must(durable.ReadFile(fs, v.target(i), 1<<30))(t)
	}
	_, v.at = record(t, fs)
	uncut := fs.AfterCrash(crashfs.KeepAll, 0)
	must(v.job(uncut, true).Bring(t.Context()))(t)
	if v.brought = must(v.job(uncut, true).Brought())(t); v.brought <= must(v.job(fs, true).Brought())(t) {
		t.Fatalf("nothing was brought: %d bytes", v.brought)
	}
	return v, fs.AfterCrash(crashfs.KeepAll, 0)
}

// record is the phase of the originals and their position; both are "" when there is no record.
func record(t *testing.T, fs durable.FS) (phase, at string) {
	t.Helper()
	for _, e := range must(fs.ReadDir("/vms/web"))(t) {
		if durable.IsTemp(e.Name) || !strings.HasSuffix(e.Name, ".json") {
			continue
		}
		var rec struct{ Phase, At string }
		ok(t, json.Unmarshal(must(durable.ReadFile(fs, "/vms/web/"+e.Name, 1<<20))(t), &rec))
		return rec.Phase, rec.At
	}
	return "", ""
}

// state says what the VM's disks are: old, new, or mixed.
func (v *vm) state(t *testing.T, fs durable.FS) string {
	t.Helper()
	var is [2]string
	for i := range names {
		switch got := content(t, fs, v.target(i), v.shape.format); {
		case bytes.Equal(got, v.new[i]):
			is[i] = "new"
		case bytes.Equal(got, v.old[i]):
			is[i] = "old"
		default:
			return "mixed"
		}
	}
	if is[0] != is[1] {
		return "mixed"
	}
	return is[0]
}

// untouched says whether the originals are to the byte what they were before.
func (v *vm) untouched(t *testing.T, fs durable.FS) bool {
	t.Helper()
	for i := range names {
		if !bytes.Equal(v.files[i], must(durable.ReadFile(fs, v.target(i), 1<<30))(t)) {
			return false
		}
	}
	return true
}

// judge looks at what a crash has left, and completes it. The source is used last of all.
func (v *vm) judge(t *testing.T, fs *crashfs.FS, r *rand.Rand) error {
	t.Helper()
	phase, at := record(t, fs)
	switch {
	case phase == "sealed" || phase == "idle" && at == v.at:
		if !v.untouched(t, fs) {
			return fmt.Errorf("the record says %s, and the originals are not what they were", phase)
		}
	case phase == "idle" && v.state(t, fs) != "new":
		return errors.New("the record says that the originals are new, and they are not")
	}
	before := "old"
	if phase == "idle" && at != v.at {
		before = "new"
	}
	if phase != "idle" { // and the power goes once more
		fs.CutAfter(1 + r.IntN(30))
		_, _ = v.job(fs, false).Resume(t.Context())
		fs = fs.AfterCrash(crashfs.Policies()[r.IntN(4)], r.Uint64())
		phase, _ = record(t, fs)
	}
	done, err := v.job(fs, false).Resume(t.Context())
	if err != nil {
		return err
	}
	if done != (phase != "idle") {
		return fmt.Errorf("resume of %s: done is %v", phase, done)
	}
	if is := v.state(t, fs); is != "new" && (is != before || done) {
		return fmt.Errorf("resumed (%v) it is %s", done, is)
	}
	if _, err := v.job(fs, true).Bring(t.Context()); err != nil {
		return err
	}
	if is := v.state(t, fs); is != "new" {
		return fmt.Errorf("brought home it is %s", is)
	}
	if n := must(v.job(fs, true).Brought())(t); n != v.brought {
		return fmt.Errorf("all runs together have brought %d bytes, and say %d", v.brought, n)
	}
	for _, e := range must(fs.ReadDir("/vms/web"))(t) {
		if strings.HasSuffix(e.Name, ".hrl") || durable.IsTemp(e.Name) && !strings.Contains(e.Name, "os.sitrep") && !strings.Contains(e.Name, "data.sitrep") {
			return fmt.Errorf("left behind: %s", e.Name)
		}
	}
	return nil
}

// TestCutEverywhere cuts the power, and kills the process, at every operation of a second pass.
func TestCutEverywhere(t *testing.T) {
	for name, s := range shapes() {
		for _, c := range []struct{ grow, again bool }{{}, {again: true}, {grow: true}} {
			if c.grow && !s.grows() {
				continue
			}
			t.Run(fmt.Sprintf("%s grow=%v again=%v", name, c.grow, c.again), func(t *testing.T) {
				t.Parallel()
				r := seeded(t)
				v, start := rig(t, r, s, c.grow, c.again)
				step := 1
				if os.Getenv("SITREP_LONG") == "" {
					step = 8
				}
				for k := 1 + r.IntN(step); ; k += step {
					fs := start.AfterCrash(crashfs.KeepAll, 0)
					fs.CutAfter(k)
					_, err := v.job(fs, true).Bring(t.Context())
					if err == nil {
						if k < 20 {
							t.Fatalf("%d operations", k)
						}
						t.Logf("%d operations", k-1)
						return
					}
					if !errors.Is(err, crashfs.ErrCut) {
						t.Fatal(err)
					}
					for _, policy := range crashfs.Policies() {
						if err := v.judge(t, fs.AfterCrash(policy, uint64(k)), r); err != nil {
							t.Fatalf("cut at operation %d, then %s: %v", k, policy, err)
						}
					}
				}
			})
		}
	}
}
