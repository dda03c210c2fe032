package disk_test

import (
	"bytes"
	"compress/bzip2"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/disk/vhd"
	"sitrep/internal/disk/vhd/vhdtest"
	"sitrep/internal/disk/vhdx"
	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
)

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func wantCode(t testing.TB, err error, code fault.Code) {
	t.Helper()
	if !fault.Is(err, code) {
		t.Fatalf("error %v, want %s", err, code)
	}
	if e := fault.Find(err); e.Path == "" {
		t.Fatalf("error %v names no file", err)
	}
}

func put(t testing.TB, fs durable.FS, path string, data []byte) {
	t.Helper()
	if err := fs.MkdirAll(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	f := must(fs.Create(path))(t)
	must(f.WriteAt(data, 0))(t)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// content reads a whole disk, and checks that what Extent calls zero is zero.
func content(t testing.TB, m disk.Image) []byte {
	t.Helper()
	data := make([]byte, m.Size())
	if n, err := m.ReadAt(data, 0); n != len(data) {
		t.Fatalf("read %d of %d bytes: %v", n, len(data), err)
	}
	for off := int64(0); off < m.Size(); {
		e := must(m.Extent(off, m.Size()-off))(t)
		if e.Off != off || e.Len <= 0 || e.End() > m.Size() {
			t.Fatalf("extent %v asked for at %d of %d", e, off, m.Size())
		}
		if e.Kind == block.Zero && !block.IsZero(data[e.Off:e.End()]) {
			t.Fatalf("extent %v is said to be zero", e)
		}
		off = e.End()
	}
	return data
}

func fixedVHD(guest []byte) []byte {
	foot, _ := vhd.NewFooter(int64(len(guest)), vhd.UUID{1}, time.Unix(1e9, 0)).MarshalBinary()
	return append(bytes.Clone(guest), foot...)
}

func qemu(t testing.TB, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing", name)
		}
		t.Skipf("%s is missing: apt-get install qemu-utils", name)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestProbe(t *testing.T) {
	guest := bytes.Repeat([]byte("guest   "), 1024)
	begin := func(magic string) []byte { return append([]byte(magic), guest[len(magic):]...) }
	dynamic := vhdtest.File{Type: vhdtest.Dynamic, Size: 1 << 20, BlockSize: 64 << 10}.Bytes()
	damaged := fixedVHD(guest)
	damaged[len(damaged)-440]++
	forged := fixedVHD(begin("conectix")) // the guest's own first bytes
	for _, c := range []struct {
		name   string
		data   []byte
		format disk.Format
		want   disk.Format // when there is no error
		kind   disk.Kind
		code   fault.Code
	}{
		{name: "raw", data: guest, want: disk.Raw, kind: disk.RawFile},
		{name: "a few bytes", data: []byte("x"), want: disk.Raw, kind: disk.RawFile},
		{name: "empty", code: fault.DiskFormat},
		{name: "fixed.vhd", data: fixedVHD(guest), want: disk.VHD, kind: disk.Fixed},
		{name: "fixed, 511 bytes.vhd", data: fixedVHD(guest)[:len(guest)+511], want: disk.VHD, kind: disk.Fixed},
		{name: "fixed, damaged.vhd", data: damaged, code: fault.DiskCorrupt},
		{name: "fixed, beginning like a VHD.vhd", data: forged, want: disk.VHD, kind: disk.Fixed},
		{name: "fixed, beginning like a VHDX", data: fixedVHD(begin("vhdxfile")), code: fault.DiskFormat},
		{name: "the same, told", data: fixedVHD(begin("vhdxfile")), format: disk.VHD, want: disk.VHD, kind: disk.Fixed},
		{name: "the same, told raw", data: fixedVHD(begin("vhdxfile")), format: disk.Raw, want: disk.Raw, kind: disk.RawFile},
		{name: "dynamic.avhd", data: dynamic, want: disk.VHD, kind: disk.Dynamic},
		{name: "dynamic, cut.VHD", data: dynamic[:len(dynamic)-512], want: disk.VHD, kind: disk.Dynamic},
		{name: "raw told VHD", data: guest, format: disk.VHD, code: fault.DiskFormat},
		{name: "raw told VHDX", data: guest, format: disk.VHDX, code: fault.DiskFormat},
		{name: "VHD told VHDX", data: dynamic, format: disk.VHDX, code: fault.DiskFormat},
		{name: "VHD told raw", data: dynamic, format: disk.Raw, want: disk.Raw, kind: disk.RawFile},
		{name: "only the cookie of VHDX.vhdx", data: begin("vhdxfile"), code: fault.DiskCorrupt},
		{name: "qcow", data: begin("QFI\xfb\x00\x00\x00\x01"), code: fault.DiskUnsupported},
		{name: "qcow2 told raw", data: begin("QFI\xfb\x00\x00\x00\x03"), format: disk.Raw, want: disk.Raw, kind: disk.RawFile},
		{name: "vmdk", data: begin("KDMV"), code: fault.DiskUnsupported},
		{name: "vmdk text", data: begin("# Disk DescriptorFile\n"), code: fault.DiskUnsupported},
		{name: "set.vhds", data: guest, code: fault.DiskUnsupported},
		{name: "unknown word", data: guest, format: "vdi", code: fault.DiskUnsupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := crashfs.New()
			put(t, fs, "/"+c.name, c.data)
			d, err := disk.Open(fs, "/"+c.name, c.format)
			w, werr := disk.OpenRW(fs, "/"+c.name, c.format)
			if c.code != "" {
				wantCode(t, err, c.code)
				wantCode(t, werr, c.code)
				return
			}
			if err != nil || werr != nil {
				t.Fatal(err, werr)
			}
			if d.Format() != c.want || d.Kind() != c.kind || d.SectorSize() != 512 || !slices.Equal(d.Files(), []string{"/" + c.name}) {
				t.Errorf("%s %s %d %q", d.Format(), d.Kind(), d.SectorSize(), d.Files())
			}
			if !bytes.Equal(content(t, d), content(t, w)) {
				t.Error("two contents")
			}
			if err := errors.Join(d.Close(), w.Close()); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestForeignFormats(t *testing.T) {
	for _, format := range []string{"qcow", "vmdk", "vdi", "qed", "parallels"} {
		path := filepath.Join(t.TempDir(), "d.img")
		qemu(t, "qemu-img", "create", "-q", "-f", format, path, "8M")
		_, err := disk.Open(durable.OS(), path, disk.Auto)
		wantCode(t, err, fault.DiskUnsupported)
	}
}

func TestMissing(t *testing.T) {
	for _, format := range []disk.Format{disk.Auto, disk.Raw, disk.VHD, disk.VHDX} {
		for _, fs := range []durable.FS{crashfs.New(), durable.OS()} {
			path := filepath.Join(t.TempDir(), "none")
			_, err := disk.Open(fs, path, format)
			wantCode(t, err, fault.DiskMissing)
			_, err = disk.OpenRW(fs, path, format)
			wantCode(t, err, fault.DiskMissing)
		}
	}
}

func TestRawTail(t *testing.T) {
	fs := crashfs.New()
	put(t, fs, "/r", bytes.Repeat([]byte{9}, 1000))
	d := must(disk.Open(fs, "/r", disk.Auto))(t)
	if want := append(bytes.Repeat([]byte{9}, 1000), make([]byte, 24)...); !bytes.Equal(content(t, d), want) {
		t.Error("content differs")
	}
	p := make([]byte, 100)
	if n, err := d.ReadAt(p, 990); n != 34 || err != io.EOF || p[9] != 9 || p[10] != 0 {
		t.Errorf("%d, %v, %v", n, err, p)
	}
	if n, err := d.ReadAt(p[:10], 1010); n != 10 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if s := must(d.Layer())(t); s.Bytes() != 1024 {
		t.Errorf("layer of %d bytes", s.Bytes())
	}
	f := must(fs.OpenRW("/r"))(t)
	if err := f.Truncate(500); err != nil {
		t.Fatal(err)
	}
	_, err := d.ReadAt(p, 450)
	wantCode(t, err, fault.DiskModified)
}

func TestCreateAndWrite(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for _, s := range []disk.Spec{
		{Format: disk.Raw, Size: 5<<20 + 512},
		{Format: disk.VHD, Kind: disk.Fixed, Size: 5<<20 + 512},
		{Format: disk.VHD, Kind: disk.Dynamic, Size: 5<<20 + 512, BlockSize: 512 << 10},
		{Format: disk.VHDX, Kind: disk.Fixed, Size: 5<<20 + 512, BlockSize: 1 << 20},
		{Format: disk.VHDX, Kind: disk.Dynamic, Size: 5<<20 + 512, BlockSize: 1 << 20},
		{Format: disk.VHDX, Kind: disk.Dynamic, Size: 5 << 20, BlockSize: 1 << 20, SectorSize: 4096},
	} {
		t.Run(fmt.Sprint(s), func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "d")
			w := must(disk.Create(durable.OS(), path, s))(t)
			want := make([]byte, s.Size)
			for i := range 30 {
				off := rng.Int64N(s.Size)
				n := 1 + rng.Int64N(min(s.Size-off, 300_000))
				p := bytes.Repeat([]byte{byte(i + 1)}, int(n))
				if i%5 == 4 {
					clear(p)
					if err := w.ZeroAt(off, n); err != nil {
						t.Fatal(err)
					}
				} else {
					must(w.WriteAt(p, off))(t)
				}
				copy(want[off:], p)
				if i == 15 {
					if err := w.Close(); err != nil {
						t.Fatal(err)
					}
					w = must(disk.OpenRW(durable.OS(), path, s.Format))(t)
				}
			}
			if !bytes.Equal(content(t, w), want) {
				t.Error("content differs")
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			d := must(disk.Open(durable.OS(), path, s.Format))(t)
			defer d.Close()
			kind := s.Kind
			if s.Format == disk.Raw {
				kind = disk.RawFile
			}
			if d.Format() != s.Format || d.Kind() != kind || d.SectorSize() != max(512, s.SectorSize) || !bytes.Equal(content(t, d), want) {
				t.Errorf("%s %s %d, or content differs", d.Format(), d.Kind(), d.SectorSize())
			}
			if stamps := must(d.Stamps())(t); len(stamps) != 1 || stamps[0].Size == 0 {
				t.Errorf("stamps %v", stamps)
			}
			raw := filepath.Join(dir, "want")
			if err := os.WriteFile(raw, want, 0o600); err != nil {
				t.Fatal(err)
			}
			if s.SectorSize == 4096 {
				return // QEMU refuses it
			}
			name := map[disk.Format]string{disk.Raw: "raw", disk.VHD: "vpc", disk.VHDX: "vhdx"}[s.Format]
			qemu(t, "qemu-img", "compare", "-f", name, "-F", "raw", path, raw)
		})
	}
}

func TestCreateRefuses(t *testing.T) {
	for _, s := range []disk.Spec{
		{Format: disk.Auto, Kind: disk.Fixed, Size: 1 << 20}, {Format: disk.Raw}, {Format: disk.Raw, Size: -512}, {Format: disk.Raw, Size: 1000},
		{Format: disk.VHD, Kind: disk.Differencing, Size: 1 << 20}, {Format: disk.VHD, Size: 1 << 20},
		{Format: disk.VHD, Kind: disk.Dynamic, Size: 3 << 40}, {Format: disk.VHD, Kind: disk.Fixed, Size: 1 << 20, SectorSize: 4096},
		{Format: disk.VHDX, Kind: disk.Dynamic, Size: 512, SectorSize: 4096}, {Format: disk.VHDX, Kind: disk.Dynamic, Size: 65 << 40},
	} {
		fs := crashfs.New()
		_, err := disk.Create(fs, "/d", s)
		wantCode(t, err, fault.DiskUnsupported)
		if names := must(fs.ReadDir("/"))(t); len(names) != 0 {
			t.Errorf("%v left %v behind", s, names)
		}
	}
	fs := crashfs.New()
	put(t, fs, "/d", []byte("precious"))
	if _, err := disk.Create(fs, "/d", disk.Spec{Format: disk.Raw, Size: 512}); err == nil {
		t.Error("a file was overwritten")
	}
	if f := must(fs.Open("/d"))(t); must(f.Size())(t) != 8 {
		t.Error("a file was changed")
	}
}

func TestWindowsImages(t *testing.T) {
	fs := crashfs.New()
	for name, want := range map[string]string{
		"ntfs-dynamic.vhd": "8b10b52e3d1e76075d05a5101a6536b9fa8376a5b8f7c22f502d0987d165c876",
		"ntfs-fixed.vhd":   "cd81fade3878f1b2957f1ece168201876bdf4e90c9b30f60c2f232eba5fea76c",
	} {
		in := must(os.Open("../../testdata/disk/" + name + ".bz2"))(t)
		put(t, fs, "/"+name, must(io.ReadAll(bzip2.NewReader(in)))(t))
		in.Close()
		d := must(disk.Open(fs, "/"+name, disk.Auto))(t)
		sum := sha256.Sum256(content(t, d))
		if got := hex.EncodeToString(sum[:]); got != want || d.Format() != disk.VHD {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// child is a differencing VHD with one block of its own, all of whose even sectors are set.
func child(id, parent byte, name string, locators map[string]string) []byte {
	b := vhdtest.Block{Data: bytes.Repeat([]byte{id}, 4<<10), Set: []int{0, 2, 4, 6}}
	return vhdtest.File{Type: vhdtest.Differencing, ID: vhd.UUID{id}, Parent: vhd.UUID{parent}, Size: 64 << 10, BlockSize: 4 << 10,
		Name: name, Locators: locators, Blocks: map[int]vhdtest.Block{int(id): b}, Order: []int{int(id)}}.Bytes()
}

func TestFindParentVHD(t *testing.T) {
	base := func(id byte) []byte {
		b := vhdtest.Block{Data: bytes.Repeat([]byte{0xbb}, 4<<10)}
		return vhdtest.File{Type: vhdtest.Dynamic, ID: vhd.UUID{id}, Size: 64 << 10, BlockSize: 4 << 10,
			Blocks: map[int]vhdtest.Block{3: b, 5: b}, Order: []int{5, 3}}.Bytes()
	}
	w2ru := func(s string) map[string]string { return map[string]string{"W2ru": s} }
	for name, c := range map[string]struct {
		files map[string][]byte
		want  string // the file of the parent, "" when there is none
	}{
		"beside":              {map[string][]byte{"/d/c": child(3, 9, "", w2ru(`.\p.vhd`)), "/d/p.vhd": base(9)}, "/d/p.vhd"},
		"other case":          {map[string][]byte{"/d/c": child(3, 9, "", w2ru(`.\p.vhd`)), "/d/P.VHD": base(9)}, "/d/P.VHD"},
		"folder below":        {map[string][]byte{"/d/c": child(3, 9, "", w2ru(`.\Sub\p.vhd`)), "/d/sub/p.vhd": base(9)}, "/d/sub/p.vhd"},
		"folder above":        {map[string][]byte{"/d/e/c": child(3, 9, "", w2ru(`..\P.vhd`)), "/d/p.vhd": base(9)}, "/d/p.vhd"},
		"moved":               {map[string][]byte{"/d/c": child(3, 9, "", w2ru(`..\far\p.vhd`)), "/d/p.vhd": base(9)}, "/d/p.vhd"},
		"by the drive":        {map[string][]byte{"/d/c": child(3, 9, "", map[string]string{"W2ku": `C:\VMs\p.vhd`}), "/d/p.vhd": base(9)}, "/d/p.vhd"},
		"by a share":          {map[string][]byte{"/d/c": child(3, 9, `\\?\UNC\server\vms\p.vhd`, nil), "/d/p.vhd": base(9)}, "/d/p.vhd"},
		"by the header":       {map[string][]byte{"/d/c": child(3, 9, `C:\VMs\Übung.vhd`, nil), "/d/übung.vhd": base(9)}, "/d/übung.vhd"},
		"absolute":            {map[string][]byte{"/d/c": child(3, 9, "", map[string]string{"W2ku": `/far/p.vhd`}), "/far/p.vhd": base(9)}, "/far/p.vhd"},
		"URL":                 {map[string][]byte{"/d/c": child(3, 9, "", map[string]string{"MacX": `file://localhost/far/p.vhd`}), "/far/p.vhd": base(9)}, "/far/p.vhd"},
		"wrong one first":     {map[string][]byte{"/d/c": child(3, 9, `C:\q.vhd`, w2ru(`.\p.vhd`)), "/d/p.vhd": base(8), "/d/q.vhd": base(9)}, "/d/q.vhd"},
		"junk first":          {map[string][]byte{"/d/c": child(3, 9, `C:\q.vhd`, w2ru(`.\p.vhd`)), "/d/p.vhd": []byte("junk"), "/d/q.vhd": base(9)}, "/d/q.vhd"},
		"itself first":        {map[string][]byte{"/d/p.vhd": child(3, 9, `C:\q.vhd`, w2ru(`..\base\p.vhd`)), "/d/q.vhd": base(9)}, "/d/q.vhd"},
		"nowhere":             {map[string][]byte{"/d/c": child(3, 9, `C:\p.vhd`, w2ru(`.\p.vhd`))}, ""},
		"no name":             {map[string][]byte{"/d/c": child(3, 9, "", nil)}, ""},
		"wrong one":           {map[string][]byte{"/d/c": child(3, 9, "", w2ru(`.\p.vhd`)), "/d/p.vhd": base(8)}, ""},
		"no VHD":              {map[string][]byte{"/d/c": child(3, 9, "", w2ru(`.\p.vhd`)), "/d/p.vhd": make([]byte, 4096)}, ""},
		"itself":              {map[string][]byte{"/d/p.vhd": child(3, 3, "", w2ru(`.\p.vhd`))}, ""},
		"a circle":            {map[string][]byte{"/d/c": child(3, 4, "", w2ru(`.\p.vhd`)), "/d/p.vhd": child(4, 3, "", w2ru(`.\c`))}, ""},
		"parent without base": {map[string][]byte{"/d/c": child(3, 4, "", w2ru(`.\p.vhd`)), "/d/p.vhd": child(4, 9, "", w2ru(`.\q`))}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			fs := crashfs.New()
			top := "/d/c"
			for path, data := range c.files {
				put(t, fs, path, data)
			}
			for _, other := range []string{"/d/e/c", "/d/p.vhd"} {
				if _, ok := c.files[top]; !ok {
					top = other
				}
			}
			d, err := disk.Open(fs, top, disk.VHD, "/d", "/far")
			if c.want == "" {
				wantCode(t, err, fault.ChainBroken)
				_, err = disk.OpenRW(fs, top, disk.VHD, "/d", "/far")
				wantCode(t, err, fault.ChainBroken)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if got := d.Files(); len(got) != 2 || got[0] != top || got[1] != c.want {
				t.Fatalf("files %q, want %s", got, c.want)
			}
			want := make([]byte, 64<<10)
			layer := block.NewSet()
			for s := range 8 {
				off := 3*(4<<10) + s*512
				copy(want[off:off+512], bytes.Repeat([]byte{map[bool]byte{true: 3, false: 0xbb}[s%2 == 0]}, 512))
				if s%2 == 0 {
					layer.Add(block.Range{Off: int64(off), Len: 512})
				}
			}
			copy(want[5*(4<<10):6*(4<<10)], bytes.Repeat([]byte{0xbb}, 4<<10))
			if !bytes.Equal(content(t, d), want) {
				t.Error("content differs")
			}
			if got := must(d.Layer())(t); !slices.Equal(slices.Collect(got.All()), slices.Collect(layer.All())) {
				t.Errorf("layer %v", slices.Collect(got.All()))
			}
			if d.Kind() != disk.Differencing || len(must(d.Stamps())(t)) != 2 {
				t.Errorf("kind %s", d.Kind())
			}
		})
	}
}

// TestDepth opens chains of 256 and 257 files.
func TestDepth(t *testing.T) {
	fs := crashfs.New()
	id := func(i int) (u [16]byte) { u[0], u[1] = byte(i), byte(i>>8); return u }
	put(t, fs, "/0", vhdtest.File{Type: vhdtest.Dynamic, ID: id(0), Size: 1 << 20, BlockSize: 64 << 10}.Bytes())
	for i := 1; i <= 256; i++ {
		put(t, fs, fmt.Sprintf("/%d", i), vhdtest.File{Type: vhdtest.Differencing, ID: id(i), Parent: id(i - 1), Size: 1 << 20, BlockSize: 64 << 10,
			Locators: map[string]string{"W2ru": fmt.Sprintf(`.\%d`, i-1)}}.Bytes())
	}
	d := must(disk.Open(fs, "/255", disk.VHD))(t)
	if len(d.Files()) != 256 || !block.IsZero(content(t, d)) {
		t.Errorf("%d files", len(d.Files()))
	}
	_, err := disk.Open(fs, "/256", disk.VHD)
	wantCode(t, err, fault.ChainBroken)
}

// TestManyPlaces has every file of a chain name two parents that fit and lead nowhere: without a limit that would be
// 2 to the power of 200 files.
func TestManyPlaces(t *testing.T) {
	fs := crashfs.New()
	for i := range 200 {
		for _, dir := range []string{"/a", "/b"} {
			put(t, fs, fmt.Sprintf("%s/%d", dir, i), vhdtest.File{Type: vhdtest.Differencing, ID: vhd.UUID{byte(i)}, Parent: vhd.UUID{byte(i + 1)},
				Size: 1 << 20, BlockSize: 64 << 10, Locators: map[string]string{"W2ru": fmt.Sprintf(`..\a\%d`, i+1), "W2ku": fmt.Sprintf(`/b/%d`, i+1)}}.Bytes())
		}
	}
	start := time.Now()
	_, err := disk.Open(fs, "/a/0", disk.VHD, "/b")
	wantCode(t, err, fault.ChainBroken)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestChainVHDX(t *testing.T) {
	fs := crashfs.New()
	base := must(disk.Create(fs, "/base.vhdx", disk.Spec{Format: disk.VHDX, Kind: disk.Dynamic, Size: 8 << 20, BlockSize: 1 << 20}))(t)
	want := bytes.Repeat([]byte("parent.."), 1<<20)
	must(base.WriteAt(want, 0))(t)
	if err := base.Close(); err != nil {
		t.Fatal(err)
	}
	if err := fs.MkdirAll("/snap"); err != nil {
		t.Fatal(err)
	}
	parent := must(vhdx.Open(must(fs.Open("/base.vhdx"))(t), vhdx.Options{}))(t)
	w := must(vhdx.Create(must(fs.Create("/snap/a.avhdx"))(t), vhdx.Spec{Kind: vhdx.Differencing, Parent: parent, RelativePath: `..\Base.vhdx`}))(t)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	rw := must(disk.OpenRW(fs, "/snap/a.avhdx", disk.Auto, "/base.vhdx"))(t)
	p := []byte(strings.Repeat("child", 1000))
	must(rw.WriteAt(p, 3<<20+100))(t)
	copy(want[3<<20+100:], p)
	if err := rw.Close(); err != nil {
		t.Fatal(err)
	}
	d := must(disk.Open(fs, "/snap/a.avhdx", disk.Auto, "/base.vhdx"))(t)
	if !bytes.Equal(content(t, d), want) {
		t.Error("content differs")
	}
	if got := d.Files(); !slices.Equal(got, []string{"/snap/a.avhdx", "/base.vhdx"}) || d.Kind() != disk.Differencing || d.Format() != disk.VHDX {
		t.Errorf("%q %s", got, d.Kind())
	}
	layer := must(d.Layer())(t)
	if layer.Bytes() > 6144 || !layer.Contains(3<<20+100) || !layer.Contains(3<<20+5099) || layer.Contains(3<<20-1) {
		t.Errorf("layer %v", slices.Collect(layer.All()))
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	base = must(disk.OpenRW(fs, "/base.vhdx", disk.Auto))(t)
	must(base.WriteAt([]byte("modified"), 0))(t)
	if err := base.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := disk.Open(fs, "/snap/a.avhdx", disk.Auto, "/base.vhdx")
	wantCode(t, err, fault.ChainBroken)
	if err := fs.Remove("/base.vhdx"); err != nil {
		t.Fatal(err)
	}
	_, err = disk.Open(fs, "/snap/a.avhdx", disk.Auto, "/base.vhdx")
	wantCode(t, err, fault.ChainBroken)
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte("raw"))
	f.Add(fixedVHD(make([]byte, 1024)))
	f.Add(vhdtest.File{Type: vhdtest.Dynamic, Size: 64 << 10, BlockSize: 4 << 10}.Bytes())
	f.Add(child(1, 2, `C:\disks\parent.vhd`, map[string]string{"W2ru": `..\a\.\b//c`}))
	f.Add(append([]byte("vhdxfile"), make([]byte, 1024)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		fs := crashfs.New()
		put(t, fs, "/d", data)
		for _, format := range []disk.Format{disk.Auto, disk.VHD, disk.VHDX, disk.Raw} {
			d, err := disk.Open(fs, "/d", format)
			if err != nil {
				if e := fault.Find(err); e == nil || e.Path == "" {
					t.Fatalf("error %v is not classified", err)
				}
				continue
			}
			p := make([]byte, min(d.Size(), 1<<20))
			if _, err := d.ReadAt(p, d.Size()-int64(len(p))); err != nil && fault.Find(err) == nil {
				t.Fatal(err)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// layered makes a dynamic VHDX with a byte at its beginning, and a differencing one that names it by the path.
func layered(t *testing.T, base, top, relative string) {
	t.Helper()
	w := must(disk.Create(durable.OS(), base, disk.Spec{Format: disk.VHDX, Kind: disk.Dynamic, Size: 4 << 20}))(t)
	must(w.WriteAt([]byte("base"), 0))(t)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	parent := must(vhdx.Open(must(durable.OS().Open(base))(t), vhdx.Options{}))(t)
	defer parent.Close()
	c := must(vhdx.Create(must(durable.OS().Create(top))(t), vhdx.Spec{Kind: vhdx.Differencing, Parent: parent, RelativePath: relative}))(t)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestParents: a parent lies in the folder of the disk, or of what its path is a link to, or where it is told that parents lie.
func TestParents(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, filepath.FromSlash(name)) }
	for _, d := range []string{"real", "links", "moved"} {
		if err := os.Mkdir(at(d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	layered(t, at("real/base.vhdx"), at("real/top.avhdx"), `.\base.vhdx`)
	if err := os.Symlink(at("real/top.avhdx"), at("links/top.avhdx")); err != nil {
		t.Skip(err)
	}
	reads := func(path string, parents ...string) error {
		t.Helper()
		d, err := disk.Open(durable.OS(), path, disk.VHDX, parents...)
		if err != nil {
			return err
		}
		defer d.Close()
		if p := content(t, d); string(p[:4]) != "base" {
			t.Errorf("%s: %q", path, p[:4])
		}
		return nil
	}
	for _, path := range []string{"real/top.avhdx", "links/top.avhdx"} {
		if err := reads(at(path)); err != nil {
			t.Error(err)
		}
	}
	if err := os.Rename(at("real/base.vhdx"), at("moved/base.vhdx")); err != nil {
		t.Fatal(err)
	}
	err := reads(at("links/top.avhdx"))
	wantCode(t, err, fault.ChainBroken)
	for _, looked := range []string{at("links/base.vhdx"), at("real/base.vhdx")} {
		if !strings.Contains(err.Error(), looked) {
			t.Errorf("%v does not say %s", err, looked)
		}
	}
	for _, parents := range []string{at("moved"), at("moved/base.vhdx")} {
		if err := reads(at("links/top.avhdx"), parents); err != nil {
			t.Error(err)
		}
	}
	if err := os.Symlink(at("moved/base.vhdx"), at("real/base.vhdx")); err != nil {
		t.Fatal(err)
	}
	wantCode(t, reads(at("real/top.avhdx")), fault.ParentElsewhere)
}

// TestURL: the name of a parent as a URL has escapes.
func TestURL(t *testing.T) {
	for name, url := range map[string]string{"/d/a b.vhd": "file:///d/a%20b.vhd", "/d/c d.vhd": "file:///C:/VMs/c%20d.vhd"} {
		fs := crashfs.New()
		put(t, fs, "/d/top.avhd", child(3, 9, "", map[string]string{"MacX": url}))
		put(t, fs, name, vhdtest.File{Type: vhdtest.Dynamic, ID: vhd.UUID{9}, Size: 64 << 10, BlockSize: 4 << 10}.Bytes())
		d, err := disk.Open(fs, "/d/top.avhd", disk.Auto)
		if err != nil {
			t.Error(err)
			continue
		}
		d.Close()
	}
}

// TestNameAgainstContent: a damaged image is not taken for a raw disk because its signature is gone.
func TestNameAgainstContent(t *testing.T) {
	for _, name := range []string{"a.vhdx", "a.AVHDX", "a.vhd", "a.qcow2"} {
		fs := crashfs.New()
		f, err := fs.Create("/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(1 << 20); err != nil {
			t.Fatal(err)
		}
		f.Close()
		if _, err := disk.Open(fs, "/"+name, disk.Auto); !fault.Is(err, fault.DiskFormat) {
			t.Errorf("%s: %v", name, err)
		}
		d, err := disk.Open(fs, "/"+name, disk.Raw)
		if err != nil {
			t.Fatalf("%s, named raw: %v", name, err)
		}
		d.Close()
	}
}
