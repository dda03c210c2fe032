package vhd_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/disk/vhd"
	"sitrep/internal/disk/vhd/vhdtest"
	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
)

// newRand is seeded by the environment variable SEED, or by the time; the seed is printed when the test fails.
func newRand(t testing.TB) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("SEED"); s != "" {
		seed = must(strconv.ParseUint(s, 10, 64))(t)
	}
	t.Logf("SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

func put(t testing.TB, fs durable.FS, path string, data []byte) {
	t.Helper()
	f := must(fs.Create(path))(t)
	must(f.WriteAt(data, 0))(t)
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func fill(n int64, rng *rand.Rand) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

// TestDifferencing reads a chain of three hand-made files, and compares with their content laid over each other.
func TestDifferencing(t *testing.T) {
	rng := newRand(t)
	fs := crashfs.New()
	const bs = 16 << 10
	var want []byte
	ids := []vhd.UUID{{1}, {2}, {3}}
	sizes := []int64{10*bs + 512, 10*bs + 512, 12*bs + 1024} // the last one was enlarged
	own := make([]*block.Set, 3)
	for level := range ids {
		x := vhdtest.File{Type: 4, ID: ids[level], Size: sizes[level], BlockSize: bs, Blocks: map[int]vhdtest.Block{}, More: level * 200}
		if level == 0 {
			x.Type = 3
		} else {
			x.Parent, x.Name = ids[level-1], `C:\disks\Parent.vhd`
			x.Locators = map[string]string{"W2ru": `.\parent.vhd`, "W2ku": `C:\disks\parent.vhd`, "MacX": "file://localhost/parent.vhd", "Wi2r": "junk"}
		}
		want = append(want, make([]byte, sizes[level]-int64(len(want)))...)
		own[level] = block.NewSet()
		blocks := int((x.Size + bs - 1) / bs)
		for _, i := range rng.Perm(blocks)[:blocks/2] {
			h := vhdtest.Block{Data: fill(bs, rng)} // sectors whose bit is clear hold rubbish
			for s := range bs / 512 {
				off := int64(i)*bs + int64(s)*512
				if off >= x.Size || level > 0 && rng.IntN(2) == 0 {
					continue
				}
				if level > 0 || rng.IntN(2) == 0 { // in a dynamic disk the bits mean nothing
					h.Set = append(h.Set, s)
				}
				if rng.IntN(4) == 0 {
					clear(h.Data[s*512:][:512]) // zeros over something
				}
				copy(want[off:off+512], h.Data[s*512:])
				own[level].Add(block.Range{Off: off, Len: 512})
			}
			x.Blocks[i] = h
			x.Order = append(x.Order, i)
		}
		put(t, fs, "/"+strconv.Itoa(level), x.Bytes())
	}
	m := must(openChain(t, fs, 2))(t)
	defer m.Close()
	if !bytes.Equal(content(t, m), want) {
		t.Fatal("content differs")
	}
	got := block.NewSet()
	for off := int64(0); off < m.Size(); {
		run, present, err := m.LayerExtent(off, m.Size()-off)
		if err != nil || run.Off != off || run.Len <= 0 {
			t.Fatal(run, err)
		}
		if present {
			got.Add(run)
		}
		off = run.End()
	}
	if !equalSets(got, own[2]) {
		t.Errorf("layer %v, want %v", got, own[2])
	}
	var readers sync.WaitGroup
	for range 3 {
		seed := rng.Uint64()
		readers.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 0))
			for range 200 {
				off := rng.Int64N(m.Size())
				p := make([]byte, 1+rng.Int64N(m.Size()-off))
				if _, err := m.ReadAt(p, off); err != nil || !bytes.Equal(p, want[off:off+int64(len(p))]) {
					t.Errorf("read of %d bytes at %d differs: %v", len(p), off, err)
				}
			}
		})
	}
	readers.Wait()
}

func equalSets(a, b *block.Set) bool {
	x, y := *block.NewSet(), *block.NewSet()
	for r := range a.All() {
		x.Add(r)
	}
	for r := range b.All() {
		x.Remove(r)
		y.Add(r)
	}
	for r := range a.All() {
		y.Remove(r)
	}
	return x.Bytes() == 0 && y.Bytes() == 0
}

// openChain opens the file /n, whose parent is /n-1 and so on.
func openChain(t testing.TB, fs durable.FS, n int) (*vhd.Image, error) {
	return vhd.Open(openFile(t, fs, "/"+strconv.Itoa(n)), chainOptions(t, fs, n))
}

func chainOptions(t testing.TB, fs durable.FS, n int) vhd.Options {
	return vhd.Options{OpenParent: func(l vhd.ParentLocator) (*vhd.Image, error) {
		if got := strings.Join(l.Paths, "|"); got != `.\parent.vhd|/parent.vhd|C:\disks\parent.vhd|C:\disks\Parent.vhd` && n > 0 {
			t.Errorf("names of the Parent: %s", got)
		}
		return openChain(t, fs, n-1)
	}}
}

func TestParentRefused(t *testing.T) {
	fs := crashfs.New()
	put(t, fs, "/0", vhdtest.File{Type: 3, ID: vhd.UUID{9}, Size: 1 << 20, BlockSize: 64 << 10}.Bytes())
	child := vhdtest.File{Type: 4, Size: 1 << 20, BlockSize: 64 << 10, Parent: vhd.UUID{1}}
	put(t, fs, "/1", child.Bytes())
	_, err := vhd.Open(openFile(t, fs, "/1"), vhd.Options{})
	wantCode(t, err, fault.ChainBroken)
	parent := func(vhd.ParentLocator) (*vhd.Image, error) { return vhd.Open(openFile(t, fs, "/0"), vhd.Options{}) }
	_, err = vhd.Open(openFile(t, fs, "/1"), vhd.Options{OpenParent: parent})
	wantCode(t, err, fault.ChainBroken)
	var deeper func(vhd.ParentLocator) (*vhd.Image, error)
	n := 0
	deeper = func(vhd.ParentLocator) (*vhd.Image, error) { // a disk that is its own parent
		n++
		self := child
		self.ID = child.Parent
		path := "/self" + strconv.Itoa(n)
		put(t, fs, path, self.Bytes())
		if n > 300 {
			return vhd.Open(openFile(t, fs, "/0"), vhd.Options{})
		}
		return vhd.Open(openFile(t, fs, path), vhd.Options{OpenParent: deeper})
	}
	_, err = vhd.Open(openFile(t, fs, "/1"), vhd.Options{OpenParent: deeper})
	wantCode(t, err, fault.ChainBroken)
}

type writable interface {
	image
	WriteAt(p []byte, off int64) (int, error)
	ZeroAt(off, n int64) error
	Flush() error
	Close() error
}

// change writes or zeroes something, in the image and in the model, at multiples of unit; it says what it touched.
func change(t testing.TB, rng *rand.Rand, w writable, model []byte, unit int64) (block.Range, error) {
	total := int64(len(model)) / unit
	off := rng.Int64N(total)
	n := 1 + rng.Int64N(min(total-off, 1+rng.Int64N(total/4)))
	r := block.Range{Off: off * unit, Len: n * unit}
	if rng.IntN(4) == 0 {
		clear(model[r.Off:r.End()])
		return r, w.ZeroAt(r.Off, r.Len)
	}
	p := bytes.Repeat([]byte{byte(rng.Uint32())}, int(r.Len))
	if rng.IntN(2) == 0 {
		rng2 := rand.NewChaCha8([32]byte{byte(rng.Uint32())})
		rng2.Read(p)
	}
	copy(model[r.Off:], p)
	_, err := w.WriteAt(p, r.Off)
	return r, err
}

// kinds make disks that can be written to; parent is the content that a fresh one has.
func kinds(rng *rand.Rand) map[string]func(t testing.TB, fs durable.FS) (open func(fs durable.FS) (*vhd.Writer, error), content []byte) {
	const size, bs = 300<<10 + 512, 16 << 10
	opener := func(path string, o func(fs durable.FS) vhd.Options) func(fs durable.FS) (*vhd.Writer, error) {
		return func(fs durable.FS) (*vhd.Writer, error) {
			f, err := fs.OpenRW(path)
			if err != nil {
				return nil, err
			}
			w, err := vhd.OpenRW(f, o(fs))
			if err != nil {
				f.Close()
			}
			return w, err
		}
	}
	alone := func(durable.FS) vhd.Options { return vhd.Options{} }
	created := func(typ vhd.Type) func(t testing.TB, fs durable.FS) (func(fs durable.FS) (*vhd.Writer, error), []byte) {
		return func(t testing.TB, fs durable.FS) (func(fs durable.FS) (*vhd.Writer, error), []byte) {
			w := must(vhd.Create(must(fs.Create("/d"))(t), vhd.Spec{Type: typ, Size: size, BlockSize: bs}))(t)
			if err := errors.Join(w.Close(), fs.SyncDir("/")); err != nil {
				t.Fatal(err)
			}
			return opener("/d", alone), make([]byte, size)
		}
	}
	child := func(t testing.TB, fs durable.FS) (func(fs durable.FS) (*vhd.Writer, error), []byte) {
		parent := vhdtest.File{Type: 3, ID: vhd.UUID{7}, Size: size, BlockSize: bs, Blocks: map[int]vhdtest.Block{}}
		base := make([]byte, size)
		for _, i := range []int{0, 3, 4, 9, 18} {
			h := vhdtest.Block{Data: fill(bs, rng)}
			copy(base[i*bs:], h.Data)
			parent.Blocks[i], parent.Order = h, append(parent.Order, i)
		}
		put(t, fs, "/p", parent.Bytes())
		put(t, fs, "/d", vhdtest.File{Type: 4, Size: size, BlockSize: bs, Parent: parent.ID}.Bytes())
		if err := fs.SyncDir("/"); err != nil {
			t.Fatal(err)
		}
		return opener("/d", func(fs durable.FS) vhd.Options {
			return vhd.Options{OpenParent: func(vhd.ParentLocator) (*vhd.Image, error) {
				f, err := fs.Open("/p")
				if err != nil {
					return nil, err
				}
				return vhd.Open(f, vhd.Options{})
			}}
		}), base
	}
	return map[string]func(t testing.TB, fs durable.FS) (func(fs durable.FS) (*vhd.Writer, error), []byte){
		"fixed": created(vhd.Fixed), "dynamic": created(vhd.Dynamic), "differencing": child,
	}
}

// TestModel compares each kind of disk with a slice of bytes over many writes and reopenings.
func TestModel(t *testing.T) {
	rng := newRand(t)
	for name, make := range kinds(rng) {
		t.Run(name, func(t *testing.T) {
			fs := crashfs.New()
			open, model := make(t, fs)
			w := must(open(fs))(t)
			for i := range 400 {
				unit := int64(1)
				if rng.IntN(2) == 0 {
					unit = 512
				}
				if r, err := change(t, rng, w, model, unit); err != nil {
					t.Fatal(r, err)
				}
				if i%10 == 0 && !bytes.Equal(content(t, w), model) {
					t.Fatalf("content differs after %d changes", i)
				}
				if rng.IntN(10) == 0 {
					if err := w.Flush(); err != nil {
						t.Fatal(err)
					}
				}
				if rng.IntN(40) == 0 {
					if err := w.Close(); err != nil {
						t.Fatal(err)
					}
					w = must(open(fs))(t)
				}
			}
			if !bytes.Equal(content(t, w), model) {
				t.Fatal("content differs")
			}
		})
	}
}

// versions are, for each sector, what a crash may leave there.
type versions map[int64][][]byte

func (v versions) add(r block.Range, model []byte) {
	for s := r.Off / 512; s < r.End()/512; s++ {
		v[s] = append(v[s], bytes.Clone(model[s*512:(s+1)*512]))
	}
}

// history runs a number of changes with the given seed, until an error. It returns the content at the last Flush that
// succeeded, and all versions of sectors since.
func history(t testing.TB, open func(durable.FS) (*vhd.Writer, error), fs durable.FS, model []byte, seed uint64) ([]byte, versions, error) {
	rng := rand.New(rand.NewPCG(seed, 1))
	flushed, since := bytes.Clone(model), versions{}
	w, err := open(fs)
	for i := 0; i < 14 && err == nil; i++ {
		var r block.Range
		r, err = change(t, rng, w, model, 512)
		since.add(r, model)
		if err == nil && rng.IntN(4) == 0 {
			if err = w.Flush(); err == nil {
				flushed, since = bytes.Clone(model), versions{}
			}
		}
		if err == nil && i == 9 {
			if err = w.Close(); err == nil {
				flushed, since = bytes.Clone(model), versions{}
				w, err = open(fs)
			}
		}
	}
	if err == nil {
		if err = w.Close(); err == nil {
			flushed, since = bytes.Clone(model), versions{}
		}
	}
	return flushed, since, err
}

// TestCrash cuts the power at each write and sync of a history. What is left opens, holds in each sector the old or a new
// version, and can be written to.
func TestCrash(t *testing.T) {
	rng := newRand(t)
	for name, make := range kinds(rng) {
		t.Run(name, func(t *testing.T) {
			seed := rng.Uint64()
			base := crashfs.New()
			open, fresh := make(t, base)
			whole := base.AfterCrash(crashfs.KeepAll, 0)
			if _, _, err := history(t, open, whole, bytes.Clone(fresh), seed); err != nil {
				t.Fatal(err)
			}
			for k := 1; k <= whole.Ops(); k++ {
				fs := base.AfterCrash(crashfs.KeepAll, 0)
				fs.CutAfter(k)
				flushed, since, err := history(t, open, fs, bytes.Clone(fresh), seed)
				if !errors.Is(err, crashfs.ErrCut) {
					t.Fatalf("cut at %d: %v", k, err)
				}
				// crashfs.ProcessKill is left out: it stops within sectors, where no system does.
				for _, policy := range []crashfs.Policy{crashfs.DropUnsynced, crashfs.KeepAll, crashfs.Torn} {
					for s := range uint64(5) {
						after := fs.AfterCrash(policy, s)
						checkCrash(t, open, after, flushed, since)
						if t.Failed() {
							t.Fatalf("cut at %d of %d, %s, %d; the history's seed is %d", k, whole.Ops(), policy, s, seed)
						}
					}
				}
			}
		})
	}
}

func checkCrash(t *testing.T, open func(durable.FS) (*vhd.Writer, error), fs *crashfs.FS, flushed []byte, since versions) {
	w, err := open(fs)
	if err != nil {
		t.Error(err)
		return
	}
	got := content(t, w)
	for s := range int64(len(got) / 512) {
		have := got[s*512 : (s+1)*512]
		ok := bytes.Equal(have, flushed[s*512:(s+1)*512])
		for _, v := range since[s] {
			ok = ok || bytes.Equal(have, v)
		}
		if !ok {
			t.Errorf("sector %d is neither old nor new", s)
			return
		}
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for range 5 {
		if _, err := change(t, rng, w, got, 512); err != nil {
			t.Error(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	w, err = open(fs)
	if err != nil {
		t.Error(err)
		return
	}
	if !bytes.Equal(content(t, w), got) {
		t.Error("writing after the crash went wrong")
	}
}
