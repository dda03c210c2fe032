// Package replicatetest is a protected site and its store on one recorded filesystem, for the tests of the engines: every
// write of source, site and store can be cut, and what a crash leaves can be looked at.
package replicatetest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
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

// BlockSize is the block size of the disks, in bytes.
const BlockSize = 4096

// Guest is the disks of a VM as the test knows them: the model.
type Guest map[string][]byte

// Clone copies the model.
func (g Guest) Clone() Guest {
	c := Guest{}
	for name, b := range g {
		c[name] = bytes.Clone(b)
	}
	return c
}

// Rig is a protected site and its store on one recorded filesystem.
type Rig struct {
	FS    *crashfs.FS
	Disks []string
	ID    hrl.ID // of the relationship
	Now   time.Time
	Keep  int // recovery points that stay
}

// New returns a site without anything on a filesystem.
func New(fs *crashfs.FS, disks ...string) *Rig {
	return &Rig{FS: fs, Disks: disks, Now: time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC), Keep: 4}
}

// Path is where the file of a disk lies.
func (r *Rig) Path(disk string) string { return "/site/disks/" + disk + ".raw" }

// Write puts the model's bytes into the source disks and makes them durable: the Guest's own filesystem is not on trial.
func (r *Rig) Write(g Guest) error {
	if err := r.FS.MkdirAll("/site/disks"); err != nil {
		return err
	}
	for name, want := range g {
		f, err := r.FS.OpenRW(r.Path(name))
		if err != nil {
			if f, err = r.FS.Create(r.Path(name)); err != nil {
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
	return r.FS.SyncDir("/site/disks")
}

// Prepare makes the store and the relationship.
func (r *Rig) Prepare(ctx context.Context, g Guest) error {
	store := replica.InHand(dir.New(r.FS, "/store"))
	if _, err := store.Prepare(ctx, hrl.ID{}); err != nil {
		return err
	}
	var disks []replica.Disk
	for _, name := range r.Disks {
		disks = append(disks, r.Entry(name, len(g[name])))
	}
	first := replicate.First("web01", "vault", replica.Owner{Site: "site", Host: "h", Since: r.Now}, disks, r.Now)
	rep, err := store.Create(ctx, first)
	if err != nil {
		return err
	}
	r.ID = first.Replica
	return rep.Close()
}

// Job opens everything anew, as each run of the program does.
func (r *Rig) Job(ctx context.Context, capture bool) (*replicate.Job, func() error, error) {
	return r.job(ctx, capture, "/site/.sitrep/track/web01")
}

// Joining is Job for the copy of a disk that is to join the VM.
func (r *Rig) Joining(ctx context.Context, disk string) (*replicate.Job, func() error, error) {
	return r.of(disk).job(ctx, false, "/site/.sitrep/joining/web01")
}

// of is the same site with other disks.
func (r *Rig) of(disks ...string) *Rig {
	c := *r
	c.Disks = disks
	return &c
}

// AddDisk adds a disk to the VM, as the commands do: it is copied alone, joins, and the next delta has it.
func (r *Rig) AddDisk(ctx context.Context, name string, size int) error {
	if err := r.copyAlone(ctx, r.Entry(name, size)); err != nil {
		return err
	}
	now, err := r.Known(ctx)
	if err != nil {
		return err
	}
	_, err = now.Delta(ctx)
	return err
}

// Entry is what the ledger says of a disk of which nothing was copied.
func (r *Rig) Entry(name string, size int) replica.Disk {
	return replica.Disk{Name: name, Source: r.Path(name), Format: "raw", Size: int64(size), BlockSize: BlockSize}
}

func (r *Rig) copyAlone(ctx context.Context, d replica.Disk) error {
	j, done, err := r.Joining(ctx, d.Name)
	if err != nil {
		return err
	}
	defer done()
	if _, err := j.Add(ctx, []replica.Disk{d}, nil); err != nil {
		return err
	}
	if _, _, err := j.SeedJoining(ctx, time.Hour); err != nil {
		return err
	}
	_, err = j.Join(ctx, json.RawMessage(`{"cpus":2}`))
	return err
}

// Known is the same site with the disks that the ledger has.
func (r *Rig) Known(ctx context.Context) (*Rig, error) {
	st, err := r.State(ctx)
	var names []string
	for _, d := range st.Disks {
		names = append(names, d.Name)
	}
	return r.of(names...), err
}

func (r *Rig) job(ctx context.Context, capture bool, memory string) (*replicate.Job, func() error, error) {
	var disks []track.Disk
	dirs := map[string]string{}
	for _, name := range r.Disks {
		disks = append(disks, track.Disk{Name: name, Path: r.Path(name), Format: disk.Raw, BlockSize: BlockSize})
		dirs[name] = filepath.Dir(r.Path(name))
	}
	tr, err := scan.Open(r.FS, scan.Config{
		VM: "web01", Disks: disks, Dir: memory, Now: func() time.Time { return r.Now },
	})
	if err != nil {
		return nil, nil, err
	}
	j := &replicate.Job{
		VM: "web01", ReplicaID: r.ID, Tracker: tr, FS: r.FS, LogDir: dirs, Keep: r.Keep,
		Meter: progress.None(), Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return r.Now },
	}
	if capture {
		return j, func() error { return nil }, nil
	}
	if j.Replica, err = replica.InHand(dir.New(r.FS, "/store")).Open(ctx, "web01"); err != nil {
		return nil, nil, err
	}
	return j, j.Replica.Close, nil
}

// Protect makes or completes the protection, as the command does.
func (r *Rig) Protect(ctx context.Context) error {
	j, done, err := r.Job(ctx, false)
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

// Delta runs a whole cycle.
func (r *Rig) Delta(ctx context.Context) (replicate.Delta, error) {
	j, done, err := r.Job(ctx, false)
	if err != nil {
		return replicate.Delta{}, err
	}
	defer done()
	return j.Delta(ctx)
}

// Capture writes change logs, without the store.
func (r *Rig) Capture(ctx context.Context) error {
	j, _, err := r.Job(ctx, true)
	if err != nil {
		return err
	}
	_, err = j.Capture(ctx)
	return err
}

// State loads the ledger.
func (r *Rig) State(ctx context.Context) (replica.State, error) {
	rep, err := dir.New(r.FS, "/store").View(ctx, "web01")
	if err != nil {
		return replica.State{}, err
	}
	defer rep.Close()
	return rep.Ledger().Load(ctx)
}

// SameReplica compares the pages, byte for byte, with the model.
func (r *Rig) SameReplica(ctx context.Context, g Guest) error {
	rep, err := dir.New(r.FS, "/store").View(ctx, "web01")
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

// Points reads the content of every recovery point, by position.
func (r *Rig) Points(ctx context.Context) (map[hrl.Pos]Guest, error) {
	rep, err := dir.New(r.FS, "/store").View(ctx, "web01")
	if err != nil {
		return nil, err
	}
	defer rep.Close()
	st, err := rep.Ledger().Load(ctx)
	if err != nil {
		return nil, err
	}
	all := map[hrl.Pos]Guest{}
	for _, p := range st.Points {
		view, err := rep.Points().Open(ctx, st, p.ID)
		if err != nil {
			return nil, fmt.Errorf("point %s: %w", p.ID, err)
		}
		g := Guest{}
		for name := range p.Sizes {
			pd, err := view.Disk(name)
			if err != nil {
				return nil, fmt.Errorf("point %s, disk %s: %w", p.ID, name, err)
			}
			g[name] = make([]byte, pd.Size())
			if n, err := pd.ReadAt(g[name], 0); n < len(g[name]) {
				return nil, fmt.Errorf("point %s, disk %s: %w", p.ID, name, err)
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

// Scribble changes the model as a Guest would: data, zeros, single sectors, and now and then nothing.
func Scribble(rng *rand.Rand, g Guest) {
	for _, name := range []string{"os", "data", "added"} {
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

// NewGuest returns two disks, of which the second is no whole number of blocks, with something on them.
func NewGuest(rng *rand.Rand) Guest {
	g := Guest{"os": make([]byte, 40*BlockSize), "data": make([]byte, 17*BlockSize+1536)}
	Scribble(rng, g)
	return g
}

// On is the same site on another filesystem.
func (r *Rig) On(fs *crashfs.FS) *Rig {
	c := *r
	c.FS = fs
	return &c
}

// Verified proves pages, sums and seal with the product's own verification.
func (r *Rig) Verified(ctx context.Context) error {
	j, done, err := r.Job(ctx, false)
	if err != nil {
		return err
	}
	defer done()
	_, err = j.Verify(ctx, 0)
	return err
}

// Cuts is at which operations a test that cuts the power everywhere does so: at every single one when SITREP_LONG is set,
// else at every fourth, beginning with another one each time.
func Cuts() (first, step int) {
	if os.Getenv("SITREP_LONG") != "" {
		return 1, 1
	}
	return 1 + rand.IntN(4), 4
}
