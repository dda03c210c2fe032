package replicate_test

import (
	"context"
	"encoding/json"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/replicate"
	"sitrep/replicate/replicatetest"
)

// TestAddedDisk adds a disk to a VM while the other disks go on being replicated: the older points stay points of the VM without it, the
// newer ones have it, and all of them are what the disks were.
func TestAddedDisk(t *testing.T) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(8, 1))
	g := replicatetest.NewGuest(rng)
	r := replicatetest.New(crashfs.New(), "os", "data")
	must(t, r.Write(g))
	must(t, r.Prepare(ctx, g))
	must(t, r.Protect(ctx))
	step := func(r *replicatetest.Rig) {
		r.Now = r.Now.Add(time.Minute)
		replicatetest.Scribble(rng, g)
		g["os"][0]++
		must(t, r.Write(g))
		_, err := r.Delta(ctx)
		must(t, err)
	}
	step(r)
	old := g.Clone()

	g["added"] = make([]byte, 3<<20)
	for i := range g["added"] {
		g["added"][i] = byte(rng.Uint32())
	}
	must(t, r.Write(g))
	joining := func(f func(j *replicate.Job)) {
		t.Helper()
		j, done, err := r.Joining(ctx, "added")
		must(t, err)
		f(j)
		must(t, done())
	}
	joining(func(j *replicate.Job) {
		_, err := j.Add(ctx, []replica.Disk{r.Entry("added", 2<<20)}, nil)
		must(t, err)
		st, err := j.Join(ctx, nil)
		must(t, err)
		if st.Disk("added") != nil {
			t.Fatal("a disk that was not copied has joined")
		}
		_, complete, err := j.SeedJoining(ctx, 0) // the slice is over before it begins
		must(t, err)
		if complete {
			t.Fatal("nothing of the disk can have been copied")
		}
	})
	step(r) // the others go on
	slice := 20 * time.Millisecond
	for complete := false; !complete; slice *= 2 {
		joining(func(j *replicate.Job) {
			var err error
			_, complete, err = j.SeedJoining(ctx, slice)
			must(t, err)
		})
	}
	step(r)
	without, err := r.Points(ctx)
	must(t, err)
	joining(func(j *replicate.Job) {
		st, err := j.Join(ctx, json.RawMessage(`{"cpus":3}`))
		must(t, err)
		if !slices.Equal(st.Joined, []string{"added"}) || st.Consistent || len(st.Joining) != 0 {
			t.Fatalf("the disk has not joined: %+v", st)
		}
	})
	now, err := r.Known(ctx)
	must(t, err)
	j, done, err := now.Job(ctx, false)
	must(t, err)
	if _, err := j.PlanDelta(ctx); !fault.Is(err, fault.WrongState) {
		t.Errorf("a plan before the disk is in a cut: %v", err)
	}
	must(t, done())
	d, err := now.Delta(ctx) // nothing was written since
	must(t, err)
	if d.Unchanged() {
		t.Error("the cut that has the disk for the first time has no position of its own")
	}
	all, err := r.Points(ctx)
	must(t, err)
	st, err := r.State(ctx)
	must(t, err)
	if !reflect.DeepEqual(all[st.Applied], g) || len(st.Joined) != 0 || !st.Consistent {
		t.Errorf("the newest point does not have all disks: %v, joined %v", slices.Sorted(maps.Keys(all[st.Applied])), st.Joined)
	}
	for at, was := range without {
		if is, ok := all[at]; ok && !reflect.DeepEqual(is, was) {
			t.Errorf("the point at %s has changed", at)
		}
		if _, has := was["added"]; has {
			t.Errorf("the point at %s is of before the disk was there", at)
		}
	}
	if !slices.ContainsFunc(slices.Collect(maps.Values(all)), func(p replicatetest.Guest) bool { return reflect.DeepEqual(p, old) }) {
		t.Error("the point of before the disk was added is not there any more")
	}
	if missing := st.Without(st.Points[0]); !slices.Equal(missing, []string{"added"}) {
		t.Errorf("the oldest point is without %v", missing)
	}
	for range 6 { // until no point of before is left
		step(now)
	}
	must(t, now.SameReplica(ctx, g))
	must(t, now.Verified(ctx))
}

// TestAddedDiskSmaller corrects the path of a disk that is being added, to that of a smaller one.
func TestAddedDiskSmaller(t *testing.T) {
	ctx := context.Background()
	g := replicatetest.NewGuest(rand.New(rand.NewPCG(8, 2)))
	r := replicatetest.New(crashfs.New(), "os", "data")
	must(t, r.Write(g))
	must(t, r.Prepare(ctx, g))
	must(t, r.Protect(ctx))
	wrong := g.Clone()
	wrong["added"] = slices.Repeat([]byte{7}, 1<<20)
	must(t, r.Write(wrong))
	j, done, err := r.Joining(ctx, "added")
	must(t, err)
	_, err = j.Add(ctx, []replica.Disk{r.Entry("added", 1<<20)}, nil)
	must(t, err)
	_, _, err = j.SeedJoining(ctx, time.Hour)
	must(t, err)
	must(t, done())
	g["added"] = slices.Repeat([]byte{8}, 9*512)
	must(t, r.Write(g))
	must(t, r.AddDisk(ctx, "added", 1<<20))
	must(t, r.SameReplica(ctx, g))
	must(t, r.Verified(ctx))

	j, done, err = r.Joining(ctx, "other") // and one that is given up before it has joined leaves nothing in the ledger
	must(t, err)
	_, err = j.Add(ctx, []replica.Disk{r.Entry("other", 512)}, nil)
	must(t, err)
	st, err := j.Add(ctx, nil, []string{"other"})
	must(t, err)
	if len(st.Joining) != 0 {
		t.Errorf("still joining: %+v", st.Joining)
	}
	must(t, done())
}
