package dir_test

import (
	"errors"
	"testing"

	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/replica/dir"
	"sitrep/internal/replica/replicatest"
)

// TestCrashRename cuts the power, and kills the process, at every operation of a rename: the replica has one of the two names, whole, and the
// rename is completed by being called again.
func TestCrashRename(t *testing.T) {
	t.Parallel()
	for k := 1; ; k++ {
		fs := crashfs.New()
		h := replicatest.NewHistory("vm", 1, logsOn(fs))
		if err := errors.Join(story(t.Context(), h, dir.New(fs, root)), h.Close()); err != nil {
			t.Fatal(err)
		}
		fs.CutAfter(k)
		err := dir.New(fs, root).Rename(t.Context(), "vm", "new")
		if err == nil {
			if k < 10 {
				t.Errorf("the rename has only %d operations", k-1)
			}
			return
		}
		for _, policy := range crashfs.Policies() {
			left := fs.AfterCrash(policy, uint64(k))
			store := dir.New(left, root)
			var names []string
			for name, err := range store.List(t.Context()) {
				check(t, err)
				names = append(names, name)
			}
			if len(names) != 1 || names[0] != "vm" && names[0] != "new" {
				t.Fatalf("cut at %d, %s: the store has %q", k, policy, names)
			}
			r, err := store.Open(t.Context(), names[0])
			if err != nil {
				t.Fatalf("cut at %d, %s: %v", k, policy, err)
			}
			st, err := r.Ledger().Load(t.Context())
			check(t, err)
			check(t, r.Close())
			check(t, store.Rename(t.Context(), "vm", "new"))
			r, err = store.Open(t.Context(), "new")
			check(t, err)
			again, err := r.Ledger().Load(t.Context())
			check(t, err)
			if again.VM != "new" || again.RenameTo != "" || again.Replica != st.Replica || len(again.Points) != len(st.Points) {
				t.Fatalf("cut at %d, %s: the ledger is of %q, with %d points", k, policy, again.VM, len(again.Points))
			}
			for _, p := range again.Points {
				view, err := r.Points().Open(t.Context(), again, p.ID)
				if err != nil {
					t.Fatalf("cut at %d, %s: point %s: %v", k, policy, p.ID, err)
				}
				check(t, view.Close())
			}
			check(t, r.Close())
			_, err = store.Open(t.Context(), "vm")
			wantCode(t, err, fault.NotProtected)
		}
	}
}
