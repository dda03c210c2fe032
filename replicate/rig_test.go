package replicate_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"sitrep/internal/disk"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/hrl"
	"sitrep/internal/progress"
	"sitrep/internal/replica"
	"sitrep/internal/replica/dir"
	"sitrep/internal/track"
	"sitrep/internal/track/scan"
	"sitrep/replicate"
)

const blockSize = 4096

// guest is the disks of a VM as the test knows them: the model.
type guest map[string][]byte

func (g guest) clone() guest {
	c := guest{}
	for name, b := range g {
		c[name] = bytes.Clone(b)
	}
	return c
}

// rig is a protected site and its store on one recorded filesystem.
type rig struct {
	fs    *crashfs.FS
	disks []string
	id    hrl.ID
	now   time.Time
	keep  int
}

func newRig(fs *crashfs.FS, disks ...string) *rig {
	return &rig{fs: fs, disks: disks, now: time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC), keep: 4}
}

func (r *rig) path(disk string) string { return "/site/disks/" + disk + ".raw" }

// write puts the model's bytes into the source disks and makes them durable: the guest's own filesystem is not on trial.
func (r *rig) write(g guest) error {
	if err := r.fs.MkdirAll("/site/disks"); err != nil {
		return err
	}
	for name, want := range g {
		f, err := r.fs.OpenRW(r.path(name))
		if err != nil {
			if f, err = r.fs.Create(r.path(name)); err != nil {
				return err
			}
		}
		size, err := f.Size()
		if err != nil {
			return err
		}
		have := make([]byte, size)
		if n, err := f.ReadAt(have, 0); n < len(have) {
			return err
		}
		if !bytes.Equal(have, want) {
			if size != int64(len(want)) {
				if err := f.Truncate(int64(len(want))); err != nil {
					return err
				}
			}
			if _, err := f.WriteAt(want, 0); err != nil {
				return err
			}
			if err := f.Sync(); err != nil {
				return err
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return r.fs.SyncDir("/site/disks")
}

// prepare makes the store and the relationship.
func (r *rig) prepare(ctx context.Context, g guest) error {
	store := dir.New(r.fs, "/store")
	if _, err := store.Prepare(ctx, hrl.ID{}); err != nil {
		return err
	}
	var disks []replica.Disk
	for _, name := range r.disks {
		disks = append(disks, replica.Disk{
			Name: name, Source: r.path(name), Format: "raw", Size: int64(len(g[name])), BlockSize: blockSize,
		})
	}
	first := replicate.First("web01", "vault", replica.Owner{Site: "site", Host: "h", Since: r.now}, disks, r.now)
	rep, err := store.Create(ctx, first)
	if err != nil {
		return err
	}
	r.id = first.Replica
	return rep.Close()
}

// job opens everything anew, as each run of the program does.
func (r *rig) job(ctx context.Context, capture bool) (*replicate.Job, func() error, error) {
	var disks []track.Disk
	dirs := map[string]string{}
	for _, name := range r.disks {
		disks = append(disks, track.Disk{Name: name, Path: r.path(name), Format: disk.Raw, BlockSize: blockSize})
		dirs[name] = filepath.Dir(r.path(name))
	}
	tr, err := scan.Open(r.fs, scan.Config{
		VM: "web01", Disks: disks, Dir: "/site/.sitrep/track/web01", Now: func() time.Time { return r.now },
	})
	if err != nil {
		return nil, nil, err
	}
	j := &replicate.Job{
		VM: "web01", ReplicaID: r.id, Tracker: tr, FS: r.fs, LogDir: dirs, Keep: r.keep,
		Meter: progress.None(), Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return r.now },
	}
	if capture {
		return j, func() error { return nil }, nil
	}
	if j.Replica, err = dir.New(r.fs, "/store").Open(ctx, "web01"); err != nil {
		return nil, nil, err
	}
	return j, j.Replica.Close, nil
}

// protect makes or completes the protection, as the command does.
func (r *rig) protect(ctx context.Context) error {
	j, done, err := r.job(ctx, false)
	if err != nil {
		return err
	}
	defer done()
	if _, err := j.Seed(ctx); err != nil {
		return err
	}
	_, err = j.Finalize(ctx, json.RawMessage(`{"cpus":2}`))
	return err
}

func (r *rig) delta(ctx context.Context) (replicate.Delta, error) {
	j, done, err := r.job(ctx, false)
	if err != nil {
		return replicate.Delta{}, err
	}
	defer done()
	return j.Delta(ctx)
}

func (r *rig) capture(ctx context.Context) error {
	j, _, err := r.job(ctx, true)
	if err != nil {
		return err
	}
	_, err = j.Capture(ctx)
	return err
}

func (r *rig) ledger(ctx context.Context) (replica.State, error) {
	rep, err := dir.New(r.fs, "/store").View(ctx, "web01")
	if err != nil {
		return replica.State{}, err
	}
	defer rep.Close()
	return rep.Ledger().Load(ctx)
}

// sameReplica compares the pages, byte for byte, with the model.
func (r *rig) sameReplica(ctx context.Context, g guest) error {
	rep, err := dir.New(r.fs, "/store").View(ctx, "web01")
	if err != nil {
		return err
	}
	defer rep.Close()
	st, err := rep.Ledger().Load(ctx)
	if err != nil {
		return err
	}
	for _, d := range st.Disks {
		pages, err := rep.Disk(ctx, d)
		if err != nil {
			return err
		}
		got := make([]byte, pages.Size())
		err = pages.ReadAt(ctx, got, 0)
		pages.Close()
		if err != nil {
			return err
		}
		if !bytes.Equal(got, g[d.Name]) {
			return fmt.Errorf("disk %s differs from the source, first at %d", d.Name, firstDifference(got, g[d.Name]))
		}
	}
	return nil
}

// points reads the content of every recovery point, by position.
func (r *rig) points(ctx context.Context) (map[hrl.Pos]guest, error) {
	rep, err := dir.New(r.fs, "/store").View(ctx, "web01")
	if err != nil {
		return nil, err
	}
	defer rep.Close()
	st, err := rep.Ledger().Load(ctx)
	if err != nil {
		return nil, err
	}
	all := map[hrl.Pos]guest{}
	for _, p := range st.Points {
		view, err := rep.Points().Open(ctx, st, p.ID)
		if err != nil {
			return nil, fmt.Errorf("point %s: %w", p.ID, err)
		}
		g := guest{}
		for _, d := range st.Disks {
			pd, err := view.Disk(d.Name)
			if err != nil {
				return nil, fmt.Errorf("point %s, disk %s: %w", p.ID, d.Name, err)
			}
			g[d.Name] = make([]byte, pd.Size())
			if n, err := pd.ReadAt(g[d.Name], 0); n < len(g[d.Name]) {
				return nil, fmt.Errorf("point %s, disk %s: %w", p.ID, d.Name, err)
			}
		}
		if err := view.Close(); err != nil {
			return nil, err
		}
		all[p.At] = g
	}
	return all, nil
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// scribble changes the model as a guest would: data, zeros, single sectors, and now and then nothing.
func scribble(rng *rand.Rand, g guest) {
	for _, name := range []string{"os", "data"} {
		b, ok := g[name]
		if !ok {
			continue
		}
		for range rng.IntN(6) {
			n := (1 + rng.IntN(24)) * 512
			off := rng.IntN((len(b)-n)/512+1) * 512
			if rng.IntN(3) == 0 {
				clear(b[off : off+n])
				continue
			}
			for i := range b[off : off+n] {
				b[off+i] = byte(rng.Uint32())
			}
		}
	}
}

func newGuest(rng *rand.Rand) guest {
	g := guest{"os": make([]byte, 40*blockSize), "data": make([]byte, 17*blockSize+1536)}
	scribble(rng, g)
	return g
}

// must fails the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
