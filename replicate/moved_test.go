package replicate_test

import (
	"context"
	"testing"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/replicate/replicatetest"
)

// move gives files of the replica other inodes and times, with the same bytes.
func move(t *testing.T, r *replicatetest.Rig, files ...string) {
	t.Helper()
	for _, name := range files {
		path := "/store/web01/" + name
		data, err := durable.ReadFile(r.FS, path, 1<<24)
		must(t, err)
		must(t, r.FS.Remove(path))
		must(t, durable.WriteFile(r.FS, path, data))
	}
}

// TestMovedStore: files of the replica that are other ones of the same content are accepted, all of them or some, by a delta and by an
// apply; what something else has written to is found, with the offset.
func TestMovedStore(t *testing.T) {
	ctx := context.Background()
	all := []string{"os.vhd", "os.sums", "data.vhd", "data.sums"}
	for name, files := range map[string][]string{"all": all, "pages of one disk": all[:1], "sums of one disk": all[3:]} {
		t.Run(name, func(t *testing.T) {
			r, g := protectedRig(t)
			for range 2 {
				move(t, r, files...)
				g["os"][700] ^= 1
				must(t, r.Write(g))
				_, err := r.Delta(ctx)
				must(t, err)
				must(t, r.SameReplica(ctx, g))
			}
			g["os"][800] ^= 1
			must(t, r.Write(g))
			must(t, r.Capture(ctx))
			j, done, err := r.Job(ctx, false)
			must(t, err)
			_, err = j.Ship(ctx)
			must(t, err)
			move(t, r, files...)
			if n, err := j.Apply(ctx); n != 1 || err != nil {
				t.Errorf("%d cuts were applied: %v", n, err)
			}
			must(t, done())
			must(t, r.SameReplica(ctx, g))
			must(t, r.Verified(ctx))
		})
	}
	r, _ := protectedRig(t)
	move(t, r, all...)
	spoil(t, r)
	_, err := r.Delta(ctx)
	if e := fault.Find(err); e == nil || e.Code != fault.ReplicaChanged || !e.HasOff || e.Off != 0 {
		t.Errorf("what something else wrote: %v", err)
	}
}

// TestMarkOfUnfinished: a VM that was paused before its initial replication was complete goes back to that, whatever is found meanwhile.
func TestMarkOfUnfinished(t *testing.T) {
	ctx := context.Background()
	r, g := protectedRig(t)
	g["os"][700] ^= 1
	must(t, r.Write(g))
	must(t, r.Capture(ctx))
	j, done, err := r.Job(ctx, false)
	must(t, err)
	_, err = j.Ship(ctx)
	must(t, err)
	st, err := j.Replica.Ledger().Load(ctx)
	must(t, err)
	st.Phase, st.PausedFrom = replica.Paused, replica.Seeding
	_, err = j.Replica.Ledger().Save(ctx, st)
	must(t, err)
	spoil(t, r)
	if _, err := j.Apply(ctx); !fault.Is(err, fault.ReplicaChanged) {
		t.Errorf("apply: %v", err)
	}
	must(t, done())
	if st, err = r.State(ctx); err != nil || st.PausedFrom != replica.Seeding {
		t.Errorf("it goes back to %s (%v)", st.PausedFrom, err)
	}
}
