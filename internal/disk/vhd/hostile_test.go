package vhd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
	"time"
	"unsafe"

	"sitrep/internal/block"
	"sitrep/internal/disk/vhd"
	"sitrep/internal/disk/vhd/vhdtest"
	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
)

// small is a dynamic disk of four blocks, two of which are in the file, and its content.
func small() (file, want []byte) {
	rng := rand.New(rand.NewPCG(5, 5))
	x := vhdtest.File{Type: vhdtest.Dynamic, ID: vhd.UUID{1}, Size: 14 << 10, BlockSize: 4 << 10, Order: []int{2, 1}}
	x.Blocks = map[int]vhdtest.Block{1: {Data: fill(4<<10, rng)}, 2: {Data: fill(4<<10, rng)}}
	want = make([]byte, x.Size)
	copy(want[4<<10:], x.Blocks[1].Data)
	copy(want[8<<10:], x.Blocks[2].Data)
	return x.Bytes(), want
}

// Where things lie in the file of small, in bytes.
const (
	smallHeader = 512
	smallTable  = 1536
	smallBlock2 = 2048
	smallBlock1 = smallBlock2 + 512 + 4096
	smallFooter = smallBlock1 + 512 + 4096
)

func openBytes(t testing.TB, data []byte) (*vhd.Image, error) {
	fs := crashfs.New()
	put(t, fs, "/x.vhd", data)
	return vhd.Open(openFile(t, fs, "/x.vhd"), vhd.Options{})
}

// TestTruncation cuts a file everywhere. What still has all blocks is read by the copy of the footer.
func TestTruncation(t *testing.T) {
	file, want := small()
	if len(file) != smallFooter+512 {
		t.Fatalf("the file has %d bytes", len(file))
	}
	for n := range len(file) {
		m, err := openBytes(t, file[:n])
		switch {
		case err == nil && n < smallFooter:
			t.Fatalf("cut to %d bytes: no error", n)
		case err == nil:
			if !bytes.Equal(content(t, m), want) {
				t.Fatalf("cut to %d bytes: content differs", n)
			}
		case n >= smallFooter:
			t.Fatalf("cut to %d bytes: %v", n, err)
		case !fault.Is(err, fault.DiskCorrupt) && !(n < 512 && fault.Is(err, fault.DiskFormat)):
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
}

// TestBitFlips flips each bit of what is not the guest's. Every flip is healed, refused, or without meaning.
func TestBitFlips(t *testing.T) {
	file, want := small()
	for at := range file {
		guests := at >= smallBlock2 && at < smallFooter
		if guests {
			continue
		}
		for bit := range 8 {
			file[at] ^= 1 << bit
			m, err := openBytes(t, file)
			inTable := at >= smallTable && at < smallTable+16
			switch {
			case err == nil && inTable: // no checksum covers the table
				content(t, m)
			case err == nil:
				if !bytes.Equal(content(t, m), want) {
					t.Fatalf("bit %d of byte %d: content differs", bit, at)
				}
			case at < smallHeader || at >= smallFooter:
				t.Fatalf("bit %d of byte %d: the other footer was not used: %v", bit, at, err)
			default:
				wantCode(t, err, fault.DiskCorrupt)
			}
			file[at] ^= 1 << bit
		}
	}
}

func TestHostile(t *testing.T) {
	be := binary.BigEndian
	header := func(off int, v uint64, n int) func(f []byte) {
		return func(f []byte) {
			switch n {
			case 4:
				be.PutUint32(f[smallHeader+off:], uint32(v))
			case 8:
				be.PutUint64(f[smallHeader+off:], v)
			}
			vhdtest.Seal(f[smallHeader:smallHeader+1024], 36)
		}
	}
	footer := func(off int, v uint64, n int) func(f []byte) {
		return func(f []byte) {
			for _, at := range []int{0, smallFooter} {
				switch n {
				case 4:
					be.PutUint32(f[at+off:], uint32(v))
				case 8:
					be.PutUint64(f[at+off:], v)
				}
				vhdtest.Seal(f[at:at+512], 64)
			}
		}
	}
	table := func(entry int, sector uint32) func(f []byte) {
		return func(f []byte) { be.PutUint32(f[smallTable+4*entry:], sector) }
	}
	for name, c := range map[string]struct {
		change func(f []byte)
		code   fault.Code
	}{
		"no cookies":          {func(f []byte) { f[0], f[smallFooter] = 0, 0 }, fault.DiskFormat},
		"both footers bad":    {func(f []byte) { f[9]++; f[smallFooter+9]++ }, fault.DiskCorrupt},
		"size 0":              {footer(48, 0, 8), fault.DiskCorrupt},
		"size over int64":     {footer(48, 1<<63, 8), fault.DiskCorrupt},
		"size max":            {footer(48, 1<<64-1, 8), fault.DiskCorrupt},
		"size over 2040 GiB":  {footer(48, 2041<<30, 8), fault.DiskCorrupt},
		"size over the table": {footer(48, 1<<20, 8), fault.DiskCorrupt},
		"version 2":           {footer(12, 0x20000, 4), fault.DiskUnsupported},
		"type 5":              {footer(60, 5, 4), fault.DiskUnsupported},
		"fixed but short":     {func(f []byte) { footer(60, 2, 4)(f); footer(48, 1<<30, 8)(f) }, fault.DiskCorrupt},
		"header at the end":   {footer(16, smallFooter, 8), fault.DiskCorrupt},
		"header outside":      {footer(16, 1<<62, 8), fault.DiskCorrupt},
		"header nowhere":      {footer(16, 1<<64-1, 8), fault.DiskCorrupt},
		"header in footer":    {footer(16, 4, 8), fault.DiskCorrupt},
		"header version":      {header(24, 0x20000, 4), fault.DiskUnsupported},
		"block size 0":        {header(32, 0, 4), fault.DiskCorrupt},
		"block size odd":      {header(32, 3<<10, 4), fault.DiskCorrupt},
		"block size tiny":     {header(32, 256, 4), fault.DiskCorrupt},
		"block size huge":     {header(32, 1<<31, 4), fault.DiskCorrupt},
		"few entries":         {header(28, 3, 4), fault.DiskCorrupt},
		"table in the header": {header(16, 600, 8), fault.DiskCorrupt},
		"table outside":       {header(16, 1<<63, 8), fault.DiskCorrupt},
		"huge table": {func(f []byte) {
			footer(48, 2040<<30, 8)(f)
			header(28, 1<<32-1, 4)(f)
			header(32, 512, 4)(f)
		}, fault.DiskUnsupported},
		"long table": {func(f []byte) { footer(48, 1<<30, 8)(f); header(28, 1<<20, 4)(f) }, fault.DiskCorrupt},
		"same place": {table(1, smallBlock2/512), fault.DiskCorrupt},
		"overlap":    {table(1, smallBlock2/512+1), fault.DiskCorrupt},
		"in copy":    {table(0, 0), fault.DiskCorrupt},
		"in header":  {table(0, 2), fault.DiskCorrupt},
		"in table":   {table(0, smallTable/512), fault.DiskCorrupt},
		"in footer":  {table(1, smallBlock1/512+1), fault.DiskCorrupt},
		"outside":    {table(1, 1<<32-2), fault.DiskCorrupt},
		"is a child": {footer(60, 4, 4), fault.ChainBroken},
	} {
		t.Run(name, func(t *testing.T) {
			file, _ := small()
			c.change(file)
			_, err := openBytes(t, file)
			wantCode(t, err, c.code)
		})
	}
}

// TestLocatorsOutside gives a child names of its parent that lie outside of its file, or are endless.
func TestLocatorsOutside(t *testing.T) {
	for _, c := range []struct {
		length uint32
		offset uint64
	}{{1 << 31, 0}, {1<<32 - 1, 1<<64 - 1}, {10, 1 << 40}, {65536, 0}} {
		x := vhdtest.File{Type: vhdtest.Differencing, Size: 1 << 20, BlockSize: 64 << 10, Locators: map[string]string{"W2ru": `.\p.vhd`}}
		file := append(x.Bytes(), make([]byte, 0)...)
		l := file[512+576:]
		binary.BigEndian.PutUint32(l[8:], c.length)
		binary.BigEndian.PutUint64(l[16:], c.offset)
		vhdtest.Seal(file[512:1536], 36)
		_, err := openBytes(t, file)
		wantCode(t, err, fault.DiskCorrupt)
	}
}

// TestOldFooter reads a footer of 511 bytes, and sizes that are no whole number of sectors.
func TestOldFooter(t *testing.T) {
	guest := bytes.Repeat([]byte{7}, 1000)
	foot := must(vhd.NewFooter(1000, vhd.UUID{1}, time.Now()).MarshalBinary())(t)
	for _, n := range []int{511, 512} {
		m := must(openBytes(t, append(bytes.Clone(guest), foot[:n]...)))(t)
		if want := append(bytes.Clone(guest), make([]byte, 24)...); !bytes.Equal(content(t, m), want) {
			t.Errorf("footer of %d bytes: content differs", n)
		}
	}
	fs := crashfs.New()
	put(t, fs, "/a", append(guest, foot...))
	_, err := vhd.OpenRW(must(fs.OpenRW("/a"))(t), vhd.Options{})
	wantCode(t, err, fault.DiskUnsupported)
}

// TestGuestCannotForge has a fixed disk whose guest wrote a dynamic disk at its beginning.
func TestGuestCannotForge(t *testing.T) {
	guest, _ := small()
	foot := must(vhd.NewFooter(int64(len(guest)), vhd.UUID{1}, time.Now()).MarshalBinary())(t)
	m := must(openBytes(t, append(bytes.Clone(guest), foot...)))(t)
	if !bytes.Equal(content(t, m), guest) {
		t.Error("content differs")
	}
	foot[70] ^= 1
	_, err := openBytes(t, append(bytes.Clone(guest), foot...))
	wantCode(t, err, fault.DiskCorrupt)
}

// TestWalkOfSparse walks over the greatest disk that there can be.
func TestWalkOfSparse(t *testing.T) {
	fs := crashfs.New()
	w := must(vhd.Create(must(fs.Create("/a"))(t), vhd.Spec{Type: vhd.Dynamic, Size: vhd.MaxSparseSize}))(t)
	must(w.WriteAt([]byte("x"), 1<<40))(t)
	runs, data := 0, int64(0)
	for off := int64(0); off < w.Size(); runs++ {
		e := must(w.Extent(off, w.Size()-off))(t)
		if e.Kind == block.Data {
			data += e.Len
		}
		off = e.End()
	}
	if runs > 4 || data == 0 || data > 2<<20 {
		t.Errorf("%d runs, %d bytes of data", runs, data)
	}
	if fs.Allocated() > 6<<20 {
		t.Errorf("%d bytes allocated", fs.Allocated())
	}
}

// recorder remembers where the memory of large reads was.
type recorder struct {
	durable.File
	reads []uintptr
}

func (r *recorder) ReadAt(p []byte, off int64) (int, error) {
	r.reads = append(r.reads, uintptr(unsafe.Pointer(unsafe.SliceData(p))))
	return r.File.ReadAt(p, off)
}

// TestReadIsNotCopied reads into memory that the file gets to see, at places that are aligned in the file.
func TestReadIsNotCopied(t *testing.T) {
	for _, typ := range []vhd.Type{vhd.Fixed, vhd.Dynamic} {
		fs := crashfs.New()
		w := must(vhd.Create(must(fs.Create("/a"))(t), vhd.Spec{Type: typ, Size: 8 << 20}))(t)
		must(w.WriteAt(bytes.Repeat([]byte{1}, 8<<20), 0))(t)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		r := &recorder{File: openFile(t, fs, "/a")}
		m := must(vhd.Open(r, vhd.Options{}))(t)
		r.reads = nil
		p := make([]byte, 4<<20)
		must(m.ReadAt(p, 1<<20))(t)
		base := uintptr(unsafe.Pointer(unsafe.SliceData(p)))
		for _, at := range r.reads {
			if at < base || at >= base+4<<20 || (at-base)%4096 != 0 {
				t.Errorf("%s: a read went elsewhere", typ)
			}
		}
		if len(r.reads) > 3 {
			t.Errorf("%s: %d reads", typ, len(r.reads))
		}
	}
}

// TestWriteFails lets single operations fail, as on a full disk. What was flushed stays, and the file can be opened.
func TestWriteFails(t *testing.T) {
	for kind := range map[crashfs.Kind]bool{crashfs.Write: true, crashfs.Sync: true, crashfs.Zero: true} {
		for nth := range 12 {
			fs := crashfs.New()
			w := must(vhd.Create(must(fs.Create("/a"))(t), vhd.Spec{Type: vhd.Dynamic, Size: 1 << 20, BlockSize: 64 << 10}))(t)
			must(w.WriteAt([]byte("first"), 5))(t)
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			n := 0
			fs.FailOn(func(op crashfs.Op) error {
				if op.Kind == kind {
					if n++; n == nth+1 {
						return errors.New("injected")
					}
				}
				return nil
			})
			var errs []error
			for i := range 4 {
				_, err := w.WriteAt(bytes.Repeat([]byte{byte(i + 1)}, 100<<10), int64(i)*200<<10)
				errs = append(errs, err, w.Flush())
			}
			errs = append(errs, w.Close())
			fs.FailOn(nil)
			m := must(vhd.Open(openFile(t, fs, "/a"), vhd.Options{}))(t)
			data := content(t, m)
			for i := range 4 {
				wrote := errs[2*i] == nil && errs[2*i+1] == nil
				if wrote && !bytes.Equal(data[i*200<<10:][:100<<10], bytes.Repeat([]byte{byte(i + 1)}, 100<<10)) {
					t.Errorf("%s %d: write %d is lost", kind, nth, i)
				}
			}
		}
	}
}

func FuzzOpen(f *testing.F) {
	file, _ := small()
	f.Add(file)
	f.Add(vhdtest.File{Type: vhdtest.Differencing, Size: 64 << 10, BlockSize: 4 << 10, Parent: vhd.UUID{1}, Name: `C:\p.vhd`,
		Locators: map[string]string{"W2ru": `.\p.vhd`, "MacX": "file://p"},
		Blocks:   map[int]vhdtest.Block{1: {Set: []int{0, 3}, Data: make([]byte, 4<<10)}}, Order: []int{1}}.Bytes())
	parent, _ := small()
	f.Fuzz(func(t *testing.T, data []byte) {
		// The checksums are made right, so that what they protect is reached.
		data = bytes.Clone(data)
		if n := len(data); n >= 2048 {
			vhdtest.Seal(data[:512], 64)
			vhdtest.Seal(data[512:1536], 36)
			vhdtest.Seal(data[n-512:], 64)
		}
		fs := crashfs.New()
		put(t, fs, "/x", data)
		put(t, fs, "/p", parent)
		o := vhd.Options{OpenParent: func(vhd.ParentLocator) (*vhd.Image, error) {
			return vhd.Open(openFile(t, fs, "/p"), vhd.Options{})
		}}
		m, err := vhd.Open(openFile(t, fs, "/x"), o)
		if err != nil {
			if fault.Find(err) == nil {
				t.Fatalf("error %v is not classified", err)
			}
			return
		}
		p := make([]byte, min(m.Size(), 1<<20))
		for _, off := range []int64{0, m.Size() - int64(len(p))} {
			if _, err := m.ReadAt(p, off); err != nil {
				t.Fatal(err)
			}
		}
		for off, i := int64(0), 0; off < m.Size() && i < 100; i++ {
			e, err := m.Extent(off, m.Size()-off)
			if err != nil || e.Len <= 0 || e.Off != off || e.End() > m.Size() {
				t.Fatal(e, err)
			}
			if run, _, err := m.LayerExtent(off, m.Size()-off); err != nil || run.Len <= 0 || run.End() > m.Size() {
				t.Fatal(run, err)
			}
			off = e.End()
		}
		writeFuzzed(t, fs, o, m.Size())
	})
}

// writeFuzzed writes into an image that opens, and expects to find it again.
func writeFuzzed(t *testing.T, fs durable.FS, o vhd.Options, size int64) {
	w, err := vhd.OpenRW(must(fs.OpenRW("/x"))(t), o)
	if err != nil {
		return
	}
	off := size / 2 &^ 511
	if _, err := w.WriteAt([]byte("here"), off); err != nil {
		if fault.Is(err, fault.DiskUnsupported) {
			return
		}
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	m := must(vhd.Open(openFile(t, fs, "/x"), o))(t)
	got := make([]byte, 4)
	if _, err := m.ReadAt(got, off); err != nil || string(got) != "here" {
		t.Fatalf("%q, %v", got, err)
	}
}
