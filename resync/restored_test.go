package resync_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/replica/dir"
	"sitrep/replicate/replicatetest"
)

const restoredVM = "/store/web01"

// backup is the files of a replica as they were once, by path; folders end in a slash.
type backup map[string][]byte

func backupOf(t *testing.T, fs *crashfs.FS) backup {
	t.Helper()
	b := backup{}
	var walk func(folder string)
	walk = func(folder string) {
		b[folder+"/"] = nil
		entries, err := fs.ReadDir(folder)
		must(t, err)
		for _, e := range entries {
			path := filepath.Join(folder, e.Name)
			switch {
			case e.Dir:
				walk(path)
			case !strings.HasSuffix(e.Name, "lock") && !strings.HasPrefix(e.Name, "lock"):
				data, err := durable.ReadFile(fs, path, 1<<24)
				must(t, err)
				b[path] = data
			}
		}
	}
	walk(restoredVM)
	return b
}

// old restores files of a store from older copies, as people do.
type old struct {
	*replicatetest.Rig
	t       *testing.T
	rng     *rand.Rand
	copies  []backup
	content map[string]replicatetest.Guest // of every point that was ever taken, by its ID
	shown   int
	refused int
	said    string // what was restored
}

// put brings one file back: into the file that is there, or in the place of it.
func (o *old) put(path string, data []byte) {
	o.t.Helper()
	must(o.t, o.FS.MkdirAll(filepath.Dir(path)))
	if o.rng.IntN(2) == 0 {
		must(o.t, durable.WriteFile(o.FS, path, data))
		return
	}
	f, err := o.FS.OpenRW(path)
	if err != nil {
		f, err = o.FS.Create(path)
	}
	must(o.t, err)
	must(o.t, f.Truncate(0))
	_, err = f.WriteAt(data, 0)
	must(o.t, err)
	must(o.t, f.Sync())
	must(o.t, f.Close())
}

// restore brings some of the files back from a copy, or takes some away.
func (o *old) restore() {
	o.t.Helper()
	from := o.copies[o.rng.IntN(len(o.copies))]
	now := backupOf(o.t, o.FS)
	all := o.rng.IntN(8) == 0
	points := o.rng.IntN(4)
	o.said = fmt.Sprintf("all %v, points %d:", all, points)
	for _, path := range slices.Sorted(maps.Keys(from)) {
		in := strings.HasPrefix(path, restoredVM+"/points/")
		if strings.HasSuffix(path, "/") || !all && (in && (points == 0 || points == 1 && o.rng.IntN(2) == 0) || !in && o.rng.IntN(3) > 0) {
			continue
		}
		o.said += " " + strings.TrimPrefix(path, restoredVM+"/")
		o.put(path, from[path])
	}
	for path := range now { // what is not in the copy
		_, kept := from[path]
		if !strings.HasPrefix(path, restoredVM+"/points/") || strings.HasSuffix(path, "/") {
			continue
		}
		if !kept && (points == 3 || all) || o.rng.IntN(40) == 0 {
			o.said += " -" + strings.TrimPrefix(path, restoredVM+"/")
			must(o.t, durable.RemoveIfThere(o.FS, path))
		}
	}
}

// note remembers what the newest point holds, if it is a new one: the source held still.
func (o *old) note(g replicatetest.Guest) {
	o.t.Helper()
	st, err := o.State(context.Background())
	must(o.t, err)
	if n := len(st.Points); n > 0 && st.Consistent && st.Points[n-1].At == st.Applied {
		if id := st.Points[n-1].ID; o.content[id] == nil {
			o.content[id] = g.Clone()
		}
	}
}

// check compares every point that is offered with what it was.
func (o *old) check(when string) {
	o.t.Helper()
	ctx := context.Background()
	rep, err := dir.New(o.FS, "/store").View(ctx, "web01")
	must(o.t, err)
	defer rep.Close()
	st, err := rep.Ledger().Load(ctx)
	must(o.t, err)
	lost, err := replica.UnprovenPoints(ctx, rep, st)
	must(o.t, err)
	for _, p := range st.Points {
		err := o.checkPoint(ctx, rep, st, p)
		told := slices.Contains(lost, p.ID)
		switch code := fault.Find(err); {
		case err == nil && told:
			o.t.Fatalf("%s: point %s is said to be lost, and can be read", when, p.ID)
		case err == nil:
			o.shown++
		case code == nil || !told && code.Code != fault.ReplicaCorrupt && code.Code != fault.PointMissing:
			o.t.Fatalf("%s (%s): point %s: %v", when, o.said, p.ID, err)
		default:
			o.refused++
		}
	}
}

func (o *old) checkPoint(ctx context.Context, rep replica.Replica, st replica.State, p replica.Point) error {
	v, err := rep.Points().Open(ctx, st, p.ID)
	if err != nil {
		return err
	}
	defer v.Close()
	for name, want := range o.content[p.ID] {
		d, err := v.Disk(name)
		if err != nil {
			return err
		}
		got := make([]byte, d.Size())
		if _, err := d.ReadAt(got, 0); err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("disk %s has %d bytes, which are not the %d that it had", name, len(got), len(want))
		}
	}
	return nil
}

// advised does what the program advises until a delta succeeds.
func (o *old) advised(g replicatetest.Guest) {
	o.t.Helper()
	for range 12 {
		_, err := o.Delta(context.Background())
		o.check("after a delta")
		if err == nil {
			o.note(g)
			return
		}
		e := fault.Find(err)
		if e == nil || e.Class() != fault.Resync {
			o.t.Fatalf("delta (%s): %v", o.said, err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		if o.rng.IntN(3) == 0 { // it is interrupted somewhere
			left := o.rng.IntN(300)
			o.FS.FailOn(func(crashfs.Op) error {
				if left--; left == 0 {
					cancel()
				}
				return nil
			})
		}
		_, err = run(ctx, o.Rig, o.rng.IntN(4) == 0)
		o.FS.FailOn(nil)
		if err != nil && ctx.Err() == nil {
			o.t.Fatalf("resync (%s): %v", o.said, err)
		}
		if err == nil {
			o.note(g)
		}
		cancel()
		o.check("after a resynchronization")
	}
	o.t.Fatalf("nothing that is advised helps (%s)", o.said)
}

// TestOlderFiles brings parts of a store back from older copies, at random, and takes parts away, and does what is advised then: every
// point that is shown holds what was there. SITREP_SEED and SITREP_LONG take other seeds, and more of them.
func TestOlderFiles(t *testing.T) {
	seed, n := uint64(1), uint64(8)
	if os.Getenv("SITREP_LONG") != "" {
		n = 600
	}
	if v, err := strconv.ParseUint(os.Getenv("SITREP_SEED"), 10, 64); err == nil {
		seed, n = v, 1
	}
	shown, refused := 0, 0
	for ; n > 0; seed, n = seed+1, n-1 {
		t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			s, r := olderFiles(t, seed)
			shown, refused = shown+s, refused+r
		})
	}
	t.Logf("%d points were shown, %d were refused", shown, refused)
	if shown == 0 {
		t.Error("no point was shown")
	}
}

func olderFiles(t *testing.T, seed uint64) (shown, refused int) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(seed, 11))
	fs := crashfs.New()
	fs.SetClone(seed%2 == 0)
	o := &old{Rig: replicatetest.New(fs, "os", "data"), t: t, rng: rng, content: map[string]replicatetest.Guest{}}
	o.Keep = 3 + rng.IntN(8)
	g := replicatetest.NewGuest(rng)
	must(t, o.Write(g))
	must(t, o.Prepare(ctx, g))
	must(t, o.Protect(ctx))
	o.note(g)
	for range 6 {
		for range 1 + rng.IntN(6) {
			o.Now = o.Now.Add(time.Hour)
			replicatetest.Scribble(rng, g)
			if rng.IntN(6) == 0 {
				g["os"] = append(g["os"], make([]byte, 512*(1+rng.IntN(30)))...)
			}
			must(t, o.Write(g))
			if rng.IntN(3) == 0 {
				o.copies = append(o.copies, backupOf(t, fs))
			}
			o.advised(g)
		}
		if len(o.copies) > 0 {
			o.restore()
			o.check("as restored")
		}
	}
	o.advised(g)
	must(t, o.SameReplica(ctx, g))
	must(t, o.Verified(ctx))
	return o.shown, o.refused
}
