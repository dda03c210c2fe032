package scan_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/hrl"
	"sitrep/internal/sums"
	"sitrep/internal/track"
	"sitrep/internal/track/scan"
)

const (
	smallBlock = 4096
	smallSize  = 40*smallBlock + 512
)

// vm is two raw disks on a crashfs, and what they held at each position that the tracker may stand at.
type vm struct {
	fs     *crashfs.FS
	states map[hrl.Pos]map[string][]byte
	now    map[string][]byte
}

func smallDisks() []track.Disk {
	return []track.Disk{
		{Name: "os", Path: "/os.img", Format: disk.Raw, BlockSize: smallBlock},
		{Name: "data", Path: "/data.img", Format: disk.Raw, BlockSize: smallBlock},
	}
}

func openSmall(fsys durable.FS) (*scan.Tracker, error) {
	return scan.Open(fsys, scan.Config{VM: "vm", Disks: smallDisks(), Dir: "/state/vm"})
}

// memBase is the sums of bytes.
type memBase []byte

func (m memBase) Size() int64 { return int64(len(m)) }
func (m memBase) All(_ context.Context, f func(int64, sums.Sum) error) error {
	for i := range block.Count(m.Size(), smallBlock) {
		r := block.Nth(i, smallBlock, m.Size())
		if s := sums.Of(m[r.Off:r.End()]); !s.IsZero() {
			if err := f(i, s); err != nil {
				return err
			}
		}
	}
	return nil
}

func bases(state map[string][]byte) map[string]track.Base {
	out := map[string]track.Base{}
	for name, data := range state {
		out[name] = memBase(data)
	}
	return out
}

func copyState(s map[string][]byte) map[string][]byte {
	out := map[string][]byte{}
	for name, data := range s {
		out[name] = bytes.Clone(data)
	}
	return out
}

// newVM makes the disks and a tracker that stands at the returned position; then the disks are written to.
func newVM(t testing.TB, rng *rand.Rand) (*vm, hrl.Pos) {
	v := &vm{fs: crashfs.New(), states: map[hrl.Pos]map[string][]byte{}, now: map[string][]byte{}}
	for _, d := range smallDisks() {
		v.now[d.Name] = make([]byte, smallSize)
	}
	v.write(t, rng, 30)
	tr, err := openSmall(v.fs)
	if err != nil {
		t.Fatal(err)
	}
	at := hrl.Pos{}.Next()
	if err := tr.Rebase(context.Background(), at, bases(v.now)); err != nil {
		t.Fatal(err)
	}
	v.states[at] = copyState(v.now)
	v.write(t, rng, 8)
	return v, at
}

// write changes blocks of the disks, a third of them to zero, and makes it durable.
func (v *vm) write(t testing.TB, rng *rand.Rand, blocks int) {
	for _, d := range smallDisks() {
		data := v.now[d.Name]
		for range blocks {
			r := block.Nth(rng.Int64N(block.Count(smallSize, smallBlock)), smallBlock, smallSize)
			clear(data[r.Off:r.End()])
			if rng.IntN(3) > 0 {
				data[r.Off+rng.Int64N(r.Len)] = byte(1 + rng.IntN(255))
			}
		}
		if err := durable.WriteFile(v.fs, d.Path, data); err != nil {
			t.Fatal(err)
		}
	}
}

// on returns the VM on another filesystem.
func (v *vm) on(fsys *crashfs.FS) *vm {
	return &vm{fs: fsys, states: maps.Clone(v.states), now: copyState(v.now)}
}

// changes scans a whole cut and returns the copy with the changes.
func changes(c track.Cut, from map[string][]byte) (map[string][]byte, error) {
	out := copyState(from)
	for _, d := range c.Disks() {
		var mu sync.Mutex
		data := out[d.Name()]
		if n := d.Size() - int64(len(data)); n > 0 {
			data = append(data, make([]byte, n)...)
		}
		out[d.Name()] = data
		_, err := d.Scan(context.Background(), track.Options{Unit: 4 * smallBlock}, func(ctx context.Context, ch track.Change) error {
			mu.Lock()
			defer mu.Unlock()
			clear(data[ch.Off:ch.End()])
			copy(data[ch.Off:], ch.Data)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, c.Check(context.Background())
}

func equalStates(a, b map[string][]byte) bool {
	return maps.EqualFunc(a, b, func(x, y []byte) bool { return bytes.Equal(x, y) })
}

// verify opens the tracker and looks whether it is right, wherever it stands.
func (v *vm) verify(allowed ...hrl.Pos) (hrl.Pos, error) {
	tr, err := openSmall(v.fs)
	if err != nil {
		return hrl.Pos{}, err
	}
	return tr.Position(), v.verifyOpen(tr, allowed...)
}

func (v *vm) verifyOpen(tr *scan.Tracker, allowed ...hrl.Pos) error {
	at := tr.Position()
	if !slices.Contains(allowed, at) {
		return fmt.Errorf("the tracker stands at %v (%v)", at, tr.Reason())
	}
	if at.IsZero() {
		return nil
	}
	c, err := tr.Cut(context.Background(), at)
	if err != nil {
		return err
	}
	got, err := changes(c, v.states[at])
	if err = errors.Join(err, c.Close()); err != nil {
		return err
	}
	if !equalStates(got, v.now) {
		return fmt.Errorf("the changes since %v do not lead to the disks", at)
	}
	return v.strays(at)
}

// strays says whether files were left behind.
func (v *vm) strays(at hrl.Pos) error {
	entries, err := v.fs.ReadDir("/state/vm")
	if err != nil {
		return err
	}
	if len(entries) != 1+len(smallDisks()) {
		return fmt.Errorf("at %v the folder holds %v", at, entries)
	}
	return nil
}

func advance(v *vm, at, to hrl.Pos) error {
	tr, err := openSmall(v.fs)
	if err != nil {
		return err
	}
	c, err := tr.Cut(context.Background(), at)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := changes(c, v.states[at]); err != nil {
		return err
	}
	return c.Advance(context.Background(), to)
}

func rebase(v *vm, _, to hrl.Pos) error {
	tr, err := openSmall(v.fs)
	if err != nil {
		return err
	}
	return tr.Rebase(context.Background(), to, bases(v.now))
}

// steps are the ways to a new position, with everything that may be found after a crash in them.
func steps() map[string]func(v *vm, at, to hrl.Pos) error {
	return map[string]func(v *vm, at, to hrl.Pos) error{"advance": advance, "rebase": rebase}
}

// TestCrash cuts the power at every operation, and, while the tracker recovers, at every operation once more.
func TestCrash(t *testing.T) {
	t.Parallel()
	for name, step := range steps() {
		t.Run(name, func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 0))
			v, at := newVM(t, rng)
			to := at.Next()
			v.states[to] = v.now
			whole := v.on(v.fs.AfterCrash(crashfs.KeepAll, 0))
			if err := step(whole, at, to); err != nil {
				t.Fatal(err)
			}
			ops := whole.fs.Ops()
			seen := map[hrl.Pos]int{}
			for k := 1; k <= ops+1; k++ {
				broken := v.on(v.fs.AfterCrash(crashfs.KeepAll, 0))
				broken.fs.CutAfter(k)
				err := step(broken, at, to)
				if k <= ops && !errors.Is(err, crashfs.ErrCut) {
					t.Fatalf("operation %d: %v", k, err)
				}
				allowed := []hrl.Pos{at, to}
				if k > ops {
					allowed = []hrl.Pos{to}
				}
				recover2(t, broken, k, rng.Uint64(), allowed, seen)
			}
			t.Logf("%d operations; found old %d times, new %d times", ops, seen[at], seen[to])
			if seen[at] == 0 || seen[to] == 0 || seen[hrl.Pos{}] != 0 {
				t.Errorf("found %v", seen)
			}
		})
	}
}

// recover2 looks at what a crash left under every policy, once as it is, once with another crash in between, and once with the power cut
// right after the tracker has said where it stands: that holds.
func recover2(t *testing.T, broken *vm, k int, seed uint64, allowed []hrl.Pos, seen map[hrl.Pos]int) {
	t.Helper()
	for _, p := range crashfs.Policies() {
		for j := 0; ; j++ {
			found := broken.on(broken.fs.AfterCrash(p, seed))
			if j > 0 {
				found.fs.CutAfter(j)
				if _, err := openSmall(found.fs); err == nil {
					break // opening takes less than j operations
				}
				found = broken.on(found.fs.AfterCrash(p, seed+1))
			}
			at, err := found.verify(allowed...)
			if err != nil {
				t.Fatalf("operation %d, %v, then operation %d, seed %d: %v", k, p, j, seed, err)
			}
			seen[at]++
		}
		opened := broken.on(broken.fs.AfterCrash(p, seed))
		tr, err := openSmall(opened.fs)
		if err != nil {
			t.Fatalf("operation %d, %v, seed %d: %v", k, p, seed, err)
		}
		for _, q := range crashfs.Policies() {
			for i := range uint64(4) {
				if _, err := opened.on(opened.fs.AfterCrash(q, seed+i)).verify(tr.Position()); err != nil {
					t.Fatalf("operation %d, %v, then %v, seed %d: %v", k, p, q, seed+i, err)
				}
			}
		}
	}
}

// TestForgetCrash: a tracker that was to forget stands where it stood, or nowhere.
func TestForgetCrash(t *testing.T) {
	v, at := newVM(t, rand.New(rand.NewPCG(1, 1)))
	for k := 1; ; k++ {
		broken := v.on(v.fs.AfterCrash(crashfs.KeepAll, 0))
		tr, err := openSmall(broken.fs)
		if err != nil {
			t.Fatal(err)
		}
		broken.fs.CutAfter(k)
		err = tr.Forget()
		for _, p := range crashfs.Policies() {
			found := broken.on(broken.fs.AfterCrash(p, uint64(k)))
			allowed := []hrl.Pos{at, {}}
			if err == nil {
				allowed = []hrl.Pos{{}}
			}
			if _, err := found.verify(allowed...); err != nil {
				t.Fatalf("operation %d, %v: %v", k, p, err)
			}
		}
		if err == nil {
			return
		}
	}
}

// TestFailure lets every operation fail, one at a time: the tracker goes on from where it says that it stands.
func TestFailure(t *testing.T) {
	for name, step := range map[string]func(tr *scan.Tracker, v *vm, at, to hrl.Pos) error{
		"advance": func(tr *scan.Tracker, v *vm, at, to hrl.Pos) (err error) {
			c, err := tr.Cut(context.Background(), at)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, c.Close()) }()
			if _, err := changes(c, v.states[at]); err != nil {
				return err
			}
			return c.Advance(context.Background(), to)
		},
		"rebase": func(tr *scan.Tracker, v *vm, _, to hrl.Pos) error {
			return tr.Rebase(context.Background(), to, bases(v.now))
		},
	} {
		t.Run(name, func(t *testing.T) {
			v, at := newVM(t, rand.New(rand.NewPCG(2, 2)))
			to := at.Next()
			v.states[to] = v.now
			for k := 1; ; k++ {
				tried := v.on(v.fs.AfterCrash(crashfs.KeepAll, 0))
				tr, err := openSmall(tried.fs)
				if err != nil {
					t.Fatal(err)
				}
				n := 0
				tried.fs.FailOn(func(op crashfs.Op) error {
					if n++; n == k {
						return syscall.EIO
					}
					return nil
				})
				err = step(tr, tried, at, to)
				tried.fs.FailOn(nil)
				if n < k {
					return
				}
				want := []hrl.Pos{at, to, {}} // nowhere, when even reading where it stands has failed
				if err == nil {
					want = []hrl.Pos{to}
				}
				if !slices.Contains(want, tr.Position()) {
					t.Fatalf("operation %d (%v): stands at %v", k, err, tr.Position())
				}
				if _, err := tried.verify(want[:min(2, len(want))]...); err != nil {
					t.Fatalf("operation %d: opened again: %v", k, err)
				}
			}
		})
	}
}
