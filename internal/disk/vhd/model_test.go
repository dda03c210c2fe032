package vhd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"sitrep/internal/block"
	"sitrep/internal/disk/vhd"
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

// fixture describes a file that is put together here byte by byte, after the specification and not by the product.
type fixture struct {
	typ       uint32
	id        vhd.UUID
	size      int64
	blockSize int64
	parent    vhd.UUID
	name      string            // Parent Unicode Name
	locators  map[string]string // by platform code
	blocks    map[int]hand      // in the file in the order of places
	order     []int             // the order of the blocks in the file
	more      int               // table entries that the disk does not need
}

// hand is a block: the sectors whose bit is set, and the guest's bytes, all of them.
type hand struct {
	set  []int
	data []byte
}

func (x fixture) footer() []byte {
	b := make([]byte, 512)
	copy(b, "conectix\x00\x00\x00\x02\x00\x01\x00\x00")
	binary.BigEndian.PutUint64(b[16:], 512)
	copy(b[28:], "vpc \x00\x05\x00\x03Wi2k")
	binary.BigEndian.PutUint64(b[40:], uint64(x.size))
	binary.BigEndian.PutUint64(b[48:], uint64(x.size))
	copy(b[56:], "\x00\x01\x04\x11") // a geometry that says much less
	binary.BigEndian.PutUint32(b[60:], x.typ)
	copy(b[68:], x.id[:])
	seal(b, 64)
	return b
}

// seal writes the checksum of b into the field at off.
func seal(b []byte, off int) {
	clear(b[off : off+4])
	var n uint32
	for _, c := range b {
		n += uint32(c)
	}
	binary.BigEndian.PutUint32(b[off:], ^n)
}

func units(s string, order binary.AppendByteOrder) (out []byte) {
	for _, u := range utf16.Encode([]rune(s)) {
		out = order.AppendUint16(out, u)
	}
	return out
}

// bytes lays the file out: copy, header, names of the parent, table, blocks, footer.
func (x fixture) bytes() []byte {
	head := make([]byte, 1024)
	be := binary.BigEndian
	copy(head, "cxsparse\xff\xff\xff\xff\xff\xff\xff\xff")
	blocks := int((x.size + x.blockSize - 1) / x.blockSize)
	copy(head[24:], "\x00\x01\x00\x00")
	be.PutUint32(head[28:], uint32(blocks+x.more))
	be.PutUint32(head[32:], uint32(x.blockSize))
	copy(head[40:], x.parent[:])
	copy(head[64:], units(x.name, binary.BigEndian))
	var names []byte
	k := 0
	for _, code := range []string{"W2ku", "W2ru", "MacX", "Wi2r"} {
		path, ok := x.locators[code]
		if !ok {
			continue
		}
		text := units(path, binary.LittleEndian)
		if code == "MacX" {
			text = []byte(path)
		}
		l := head[576+24*k:]
		copy(l, code)
		be.PutUint32(l[4:], 1) // sectors, where Windows writes bytes
		be.PutUint32(l[8:], uint32(len(text)))
		be.PutUint64(l[16:], uint64(1536+len(names)))
		names = append(names, text...)
		names = append(names, make([]byte, 512-len(text)%512)...)
		k++
	}
	table := bytes.Repeat([]byte{0xff}, (4*(blocks+x.more)+511)/512*512)
	be.PutUint64(head[16:], uint64(1536+len(names)))
	var body []byte
	at := 1536 + len(names) + len(table)
	for _, i := range x.order {
		be.PutUint32(table[4*i:], uint32((at+len(body))/512))
		bits := make([]byte, (x.blockSize/512/8+511)/512*512)
		for _, s := range x.blocks[i].set {
			bits[s/8] |= 1 << (7 - s%8)
		}
		body = append(append(body, bits...), x.blocks[i].data...)
	}
	seal(head, 36)
	f := x.footer()
	return bytes.Join([][]byte{f, head, names, table, body, f}, nil)
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
		x := fixture{typ: 4, id: ids[level], size: sizes[level], blockSize: bs, blocks: map[int]hand{}, more: level * 200}
		if level == 0 {
			x.typ = 3
		} else {
			x.parent, x.name = ids[level-1], `C:\disks\Parent.vhd`
			x.locators = map[string]string{"W2ru": `.\parent.vhd`, "W2ku": `C:\disks\parent.vhd`, "MacX": "file://localhost/parent.vhd", "Wi2r": "junk"}
		}
		want = append(want, make([]byte, sizes[level]-int64(len(want)))...)
		own[level] = block.NewSet()
		blocks := int((x.size + bs - 1) / bs)
		for _, i := range rng.Perm(blocks)[:blocks/2] {
			h := hand{data: fill(bs, rng)} // sectors whose bit is clear hold rubbish
			for s := range bs / 512 {
				off := int64(i)*bs + int64(s)*512
				if off >= x.size || level > 0 && rng.IntN(2) == 0 {
					continue
				}
				if level > 0 || rng.IntN(2) == 0 { // in a dynamic disk the bits mean nothing
					h.set = append(h.set, s)
				}
				if rng.IntN(4) == 0 {
					clear(h.data[s*512:][:512]) // zeros over something
				}
				copy(want[off:off+512], h.data[s*512:])
				own[level].Add(block.Range{Off: off, Len: 512})
			}
			x.blocks[i] = h
			x.order = append(x.order, i)
		}
		put(t, fs, "/"+strconv.Itoa(level), x.bytes())
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
	for range 300 {
		off := rng.Int64N(m.Size())
		p := make([]byte, 1+rng.Int64N(m.Size()-off))
		must(m.ReadAt(p, off))(t)
		if !bytes.Equal(p, want[off:off+int64(len(p))]) {
			t.Fatalf("read of %d bytes at %d differs", len(p), off)
		}
	}
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
			t.Errorf("names of the parent: %s", got)
		}
		return openChain(t, fs, n-1)
	}}
}

func TestParentRefused(t *testing.T) {
	fs := crashfs.New()
	put(t, fs, "/0", fixture{typ: 3, id: vhd.UUID{9}, size: 1 << 20, blockSize: 64 << 10}.bytes())
	child := fixture{typ: 4, size: 1 << 20, blockSize: 64 << 10, parent: vhd.UUID{1}}
	put(t, fs, "/1", child.bytes())
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
		self.id = child.parent
		path := "/self" + strconv.Itoa(n)
		put(t, fs, path, self.bytes())
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
		parent := fixture{typ: 3, id: vhd.UUID{7}, size: size, blockSize: bs, blocks: map[int]hand{}}
		base := make([]byte, size)
		for _, i := range []int{0, 3, 4, 9, 18} {
			h := hand{data: fill(bs, rng)}
			copy(base[i*bs:], h.data)
			parent.blocks[i], parent.order = h, append(parent.order, i)
		}
		put(t, fs, "/p", parent.bytes())
		put(t, fs, "/d", fixture{typ: 4, size: size, blockSize: bs, parent: parent.id}.bytes())
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
