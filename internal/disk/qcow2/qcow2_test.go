package qcow2_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/disk/qcow2"
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

// content reads a disk in pieces, and checks that what Extent calls zero is zero.
func content(t testing.TB, m *qcow2.Image) []byte {
	t.Helper()
	data := make([]byte, m.Size())
	for off := 0; off < len(data); off += 777_216 {
		p := data[off:min(off+777_216, len(data))]
		if n, err := m.ReadAt(p, int64(off)); n != len(p) || err != nil {
			t.Fatalf("read %d of %d bytes at %d: %v", n, len(p), off, err)
		}
	}
	for off := int64(0); off < m.Size(); {
		e := must(m.Extent(off, m.Size()-off))(t)
		if e.Off != off || e.Len <= 0 || e.End() > m.Size() {
			t.Fatalf("extent %v at %d", e, off)
		}
		if e.Kind == block.Zero && !block.IsZero(data[e.Off:e.End()]) {
			t.Fatalf("extent %v is said to be zero", e)
		}
		off = e.End()
	}
	return data
}

// pattern is a disk with data in some clusters.
func pattern(r *rand.Rand, size int64) []byte {
	p := make([]byte, size)
	for at := int64(0); at < size; {
		n := min(size-at, (1+r.Int64N(40))*qcow2.ClusterSize)
		if r.IntN(2) == 0 {
			for i := at; i < at+n; i++ {
				p[i] = byte(r.Uint32())
			}
		}
		at += n
	}
	return p
}

// write makes a disk of the clusters that are not zero.
func write(t testing.TB, fs durable.FS, path string, guest []byte) {
	t.Helper()
	f := must(fs.Create(path))(t)
	w := must(qcow2.Create(f, int64(len(guest))))(t)
	for i := range block.Count(int64(len(guest)), qcow2.ClusterSize) {
		r := block.Nth(i, qcow2.ClusterSize, int64(len(guest)))
		if p := guest[r.Off:r.End()]; !block.IsZero(p) {
			if err := w.Append(r.Off, p); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestWrittenForQEMU: qemu-img finds nothing to complain about, and the same bytes.
func TestWrittenForQEMU(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for _, size := range []int64{512, qcow2.ClusterSize, 5*qcow2.ClusterSize - 1024, 40 << 20} {
		dir := t.TempDir()
		path, raw := filepath.Join(dir, "d.qcow2"), filepath.Join(dir, "d.raw")
		guest := pattern(r, size)
		write(t, durable.OS(), path, guest)
		if err := os.WriteFile(raw, guest, 0o600); err != nil {
			t.Fatal(err)
		}
		qemu(t, "qemu-img", "check", "-f", "qcow2", path)
		qemu(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, path)
		m := must(qcow2.Open(must(durable.OS().Open(path))(t), qcow2.Options{}))(t)
		if !bytes.Equal(content(t, m), guest) {
			t.Errorf("%d bytes: read back differently", size)
		}
		m.Close()
	}
}

// TestSparse writes a few clusters far apart on a disk of 8 TiB.
func TestSparse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.qcow2")
	f := must(durable.OS().Create(path))(t)
	const size = 8 << 40
	w := must(qcow2.Create(f, size))(t)
	p := bytes.Repeat([]byte("data"), 2*qcow2.ClusterSize/4)
	at := []int64{0, 512<<20 - qcow2.ClusterSize, 3 << 40, size - 2*qcow2.ClusterSize} // the second crosses from one table to the next
	for _, off := range at {
		if err := w.Append(off, p); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Append(0, p); err == nil {
		t.Error("bytes were written twice")
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	qemu(t, "qemu-img", "check", "-f", "qcow2", path)
	m := must(qcow2.Open(must(durable.OS().Open(path))(t), qcow2.Options{}))(t)
	defer m.Close()
	var got []int64
	for off := int64(0); off < size; {
		e := must(m.Extent(off, size-off))(t)
		if e.Kind == block.Data {
			got = append(got, e.Off)
			if q := make([]byte, len(p)); e.Len != int64(len(p)) || must(m.ReadAt(q, off))(t) != len(q) || !bytes.Equal(p, q) {
				t.Errorf("extent %v", e)
			}
		}
		off = e.End()
	}
	if fmt.Sprint(got) != fmt.Sprint(at) {
		t.Errorf("data at %v, want %v", got, at)
	}
}

// TestWrittenByQEMU reads what QEMU has made of a disk, of several shapes.
func TestWrittenByQEMU(t *testing.T) {
	for _, options := range []string{"compat=1.1", "compat=0.10", "cluster_size=512", "cluster_size=2M", "lazy_refcounts=on",
		"preallocation=metadata", "preallocation=falloc", "refcount_bits=1", "compat=1.1,compression_type=zstd"} {
		t.Run(options, func(t *testing.T) {
			dir := t.TempDir()
			path, raw := filepath.Join(dir, "d.qcow2"), filepath.Join(dir, "d.raw")
			qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "33M")
			qemu(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", "-c", "write -P 8 1000448 512", "-c", "write -P 9 20M 3M",
				"-c", "write -z 21M 1M", "-c", "discard 0 128k", "-c", "write -P 3 34602496 512", path)
			qemu(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw)
			m := must(qcow2.Open(must(durable.OS().Open(path))(t), qcow2.Options{}))(t)
			defer m.Close()
			if want := must(os.ReadFile(raw))(t); !bytes.Equal(content(t, m), want) {
				t.Error("content differs")
			}
		})
	}
}

// TestContinuedByQEMU has QEMU write to a disk that was made here.
func TestContinuedByQEMU(t *testing.T) {
	dir := t.TempDir()
	path, raw := filepath.Join(dir, "d.qcow2"), filepath.Join(dir, "d.raw")
	guest := pattern(rand.New(rand.NewPCG(3, 4)), 20<<20)
	write(t, durable.OS(), path, guest)
	qemu(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 5000192 1M", "-c", "write -z 10M 2M", "-c", "discard 15M 1M", path)
	qemu(t, "qemu-img", "check", "-f", "qcow2", path)
	qemu(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw)
	m := must(qcow2.Open(must(durable.OS().Open(path))(t), qcow2.Options{}))(t)
	defer m.Close()
	got := content(t, m)
	if !bytes.Equal(got, must(os.ReadFile(raw))(t)) || bytes.Equal(got, guest) {
		t.Error("content differs")
	}
}

// TestRefused: what cannot be read is refused by name.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	base := filepath.Join(dir, "base.qcow2")
	qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", base, "8M")
	qemu(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 0 8M", base)
	for name, c := range map[string]struct {
		make func(path string)
		say  string
	}{
		"backing": {func(p string) { qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", p) }, "backing"},
		// Offset 32 is crypt_method: 1 is AES, 2 is LUKS. qemu-img cannot make the second on every machine ("Unable to get accurate CPU usage").
		"encrypted":       {func(p string) { patch(t, base, p, 35, 2) }, "encrypted"},
		"encrypted (AES)": {func(p string) { patch(t, base, p, 35, 1) }, "encrypted"},
		"data file": {func(p string) {
			qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+p+".raw", p, "8M")
		}, "another file"},
		"dirty":           {func(p string) { patch(t, base, p, 79, 1) }, "lazy"},
		"feature":         {func(p string) { patch(t, base, p, 72, 0x80) }, "not known"},
		"one table twice": {func(p string) { oneTableTwice(t, p) }, "two parts"},
		"corrupt":         {func(p string) { patch(t, base, p, 79, 2) }, "corrupt"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "d.qcow2")
			c.make(path)
			f := must(durable.OS().Open(path))(t)
			defer f.Close()
			m, err := qcow2.Open(f, qcow2.Options{})
			if err == nil {
				_, err = m.ReadAt(make([]byte, 512), 0)
			}
			if e := fault.Find(err); e == nil || e.Path != path || !strings.Contains(e.Error(), c.say) {
				t.Errorf("error %v, want one about %q", err, c.say)
			}
		})
	}
}

// patch copies a file with one byte changed.
func patch(t *testing.T, from, to string, at int, b byte) {
	t.Helper()
	p := must(os.ReadFile(from))(t)
	p[at] = b
	if err := os.WriteFile(to, p, 0o600); err != nil {
		t.Fatal(err)
	}
}

// oneTableTwice makes a disk of two L2 tables that are the same one.
func oneTableTwice(t *testing.T, path string) {
	t.Helper()
	f := must(durable.OS().Create(path))(t)
	w := must(qcow2.Create(f, 1<<30))(t)
	for _, off := range []int64{0, 512 << 20} {
		if err := w.Append(off, bytes.Repeat([]byte{1}, qcow2.ClusterSize)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	entry, at := make([]byte, 8), make([]byte, 8)
	must(f.ReadAt(at, 40))(t)
	l1 := int64(binary.BigEndian.Uint64(at))
	must(f.ReadAt(entry, l1))(t)
	must(f.WriteAt(entry, l1+8))(t)
	f.Close()
}

// TestOpenByName: the format is read when it is named, by the site file or by the name of the file.
func TestOpenByName(t *testing.T) {
	fs := crashfs.New()
	guest := pattern(rand.New(rand.NewPCG(5, 6)), 1<<20)
	write(t, fs, "/d.qcow2", guest)
	d := must(disk.Open(fs, "/d.qcow2", disk.QCOW2))(t)
	got := make([]byte, len(guest))
	if must(d.ReadAt(got, 0))(t) != len(got) || !bytes.Equal(got, guest) || d.Kind() != disk.Dynamic || d.Format() != disk.QCOW2 {
		t.Error("content differs")
	}
	d.Close()
	d = must(disk.Open(fs, "/d.qcow2", disk.Auto))(t)
	if d.Format() != disk.QCOW2 {
		t.Errorf("guessed %s", d.Format())
	}
	d.Close()
	if err := fs.Link("/d.qcow2", "/d.img"); err != nil {
		t.Fatal(err)
	}
	if _, err := disk.Open(fs, "/d.img", disk.Auto); !fault.Is(err, fault.DiskFormat) {
		t.Errorf("guessed: %v", err)
	}
	if _, err := disk.OpenRW(fs, "/d.qcow2", disk.QCOW2); !fault.Is(err, fault.DiskUnsupported) {
		t.Errorf("for writing: %v", err)
	}
}

// TestCutWriter: a disk that was not finished is no qcow2.
func TestCutWriter(t *testing.T) {
	guest := pattern(rand.New(rand.NewPCG(7, 8)), 2<<20)
	for k := 1; ; k++ {
		fs := crashfs.New()
		f := must(fs.Create("/d"))(t)
		if err := fs.SyncDir("/"); err != nil {
			t.Fatal(err)
		}
		fs.CutAfter(k)
		w := must(qcow2.Create(f, int64(len(guest))))(t)
		err := w.Append(0, guest)
		if err == nil {
			err = w.Finish()
		}
		if err == nil {
			return
		}
		for _, policy := range crashfs.Policies() {
			g := must(fs.AfterCrash(policy, uint64(k)).Open("/d"))(t)
			m, err := qcow2.Open(g, qcow2.Options{})
			if err == nil && !bytes.Equal(content(t, m), guest) {
				t.Fatalf("cut at %d, then %s: a disk with other content", k, policy)
			}
		}
	}
}

// FuzzOpen reads hostile files: no panic, no error without a name, bounded memory.
func FuzzOpen(f *testing.F) {
	guest := pattern(rand.New(rand.NewPCG(9, 9)), 4*qcow2.ClusterSize)
	fs := crashfs.New()
	write(f, fs, "/d", guest)
	good, err := durable.ReadFile(fs, "/d", 1<<24)
	if err != nil {
		f.Fatal(err)
	}
	small := make([]byte, 2048) // clusters of 512 bytes: a header, an L1, an L2, data
	copy(small, good[:112])
	be := binary.BigEndian
	be.PutUint32(small[20:], 9)
	be.PutUint64(small[24:], 32<<10)
	be.PutUint32(small[36:], 1)
	be.PutUint64(small[40:], 512)
	be.PutUint64(small[512:], 1024|1<<63)
	be.PutUint64(small[1024:], 1536|1<<63)
	be.PutUint64(small[1032:], 1<<62)
	f.Add(small)
	f.Fuzz(func(t *testing.T, data []byte) {
		fs := crashfs.New()
		file := must(fs.Create("/d"))(t)
		must(file.WriteAt(data, 0))(t)
		m, err := qcow2.Open(file, qcow2.Options{})
		if err != nil {
			if e := fault.Find(err); e == nil || e.Path == "" {
				t.Fatalf("error %v is not classified", err)
			}
			return
		}
		for i, off := 0, int64(0); off < m.Size() && i < 1000; i++ {
			e, err := m.Extent(off, m.Size()-off)
			if err != nil {
				if fault.Find(err) == nil {
					t.Fatal(err)
				}
				return
			}
			p := make([]byte, min(e.Len, 1<<16))
			if _, err := m.ReadAt(p, off); err != nil && fault.Find(err) == nil {
				t.Fatal(err)
			} else if err == nil && e.Kind == block.Zero && !block.IsZero(p) {
				t.Fatalf("%v is not zero", e)
			}
			off = e.End()
		}
	})
}
