package qcow2_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// sameAsQEMU compares what a disk holds with what QEMU reads of it, and its extents with its bytes.
func sameAsQEMU(t *testing.T, path string, parents ...string) *disk.Disk {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "want")
	qemu(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw)
	want := must(os.ReadFile(raw))(t)
	d := must(disk.Open(durable.OS(), path, disk.QCOW2, parents...))(t)
	t.Cleanup(func() { d.Close() })
	got := make([]byte, d.Size())
	for off := 0; off < len(got); off += 333_312 { // across and within clusters
		p := got[off:min(off+333_312, len(got))]
		if n := must(d.ReadAt(p, int64(off)))(t); n != len(p) {
			t.Fatalf("%d bytes at %d", n, off)
		}
	}
	if !bytes.Equal(got, want) {
		t.Fatalf("%s: content differs from what QEMU reads", path)
	}
	for off := int64(0); off < d.Size(); {
		e := must(d.Extent(off, d.Size()-off))(t)
		if e.Off != off || e.Len <= 0 || e.End() > d.Size() || e.Kind == block.Zero && !block.IsZero(got[e.Off:e.End()]) {
			t.Fatalf("extent %v at %d", e, off)
		}
		off = e.End()
	}
	return d
}

// changes are commands of qemu-io that change a disk at random.
func changes(r *rand.Rand, size int64, n int) (args []string) {
	for range n {
		off := r.Int64N(size/512) * 512
		length := min(size-off, (1+r.Int64N(600))*512)
		what := []string{fmt.Sprintf("write -q -P %d", 1+r.IntN(255)), "write -q -z", "write -q -z -u", "discard -q"}[r.IntN(4)]
		args = append(args, "-c", fmt.Sprintf("%s %d %d", what, off, length))
	}
	return args
}

// TestSources reads disks of the kinds that KVM hosts have, changed at random through QEMU.
func TestSources(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	const size = 9<<20 + 512*77
	for _, options := range []string{"compat=1.1", "compat=0.10", "cluster_size=4k", "cluster_size=2M", "extended_l2=on", "extended_l2=on,cluster_size=16k"} {
		t.Run(options, func(t *testing.T) {
			dir := t.TempDir()
			at := func(name string) string { return filepath.Join(dir, name) }
			qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, at("base.qcow2"), fmt.Sprint(size))
			qemu(t, "qemu-io", append(changes(r, size, 12), "-f", "qcow2", at("base.qcow2"))...)
			sameAsQEMU(t, at("base.qcow2"))
			// An internal snapshot has tables of its own.
			qemu(t, "qemu-img", "snapshot", "-c", "before", at("base.qcow2"))
			qemu(t, "qemu-io", append(changes(r, size, 12), "-f", "qcow2", at("base.qcow2"))...)
			sameAsQEMU(t, at("base.qcow2"))
			// Overlays, the second one larger.
			qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "-b", "base.qcow2", "-F", "qcow2", at("one.qcow2"))
			qemu(t, "qemu-io", append(changes(r, size, 12), "-f", "qcow2", at("one.qcow2"))...)
			qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, "-b", at("one.qcow2"), "-F", "qcow2", at("two.qcow2"), fmt.Sprint(size+2<<20))
			qemu(t, "qemu-io", append(changes(r, size+2<<20, 12), "-f", "qcow2", at("two.qcow2"))...)
			d := sameAsQEMU(t, at("two.qcow2"))
			if d.Kind() != disk.Differencing || len(d.Files()) != 3 {
				t.Errorf("%s of %q", d.Kind(), d.Files())
			}
			must(d.Layer())(t)
		})
	}
}

// TestCompressed reads clusters that QEMU has compressed, also below an overlay and in part.
func TestCompressed(t *testing.T) {
	for _, options := range []string{"compression_type=zlib", "compression_type=zstd", "compression_type=zlib,cluster_size=512", "compression_type=zstd,cluster_size=2M",
		"compression_type=zlib,extended_l2=on"} {
		t.Run(options, func(t *testing.T) {
			dir := t.TempDir()
			raw, path, top := filepath.Join(dir, "raw"), filepath.Join(dir, "c.qcow2"), filepath.Join(dir, "top.qcow2")
			guest := bytes.Repeat([]byte("easy to compress "), 1<<18)
			copy(guest[1<<20:2<<20], pattern(rand.New(rand.NewPCG(1, 2)), 1<<20))
			if err := os.WriteFile(raw, guest[:4<<20+512*3], 0o600); err != nil {
				t.Fatal(err)
			}
			qemu(t, "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, path)
			sameAsQEMU(t, path)
			qemu(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 9 70000 5000", path)
			sameAsQEMU(t, path)
			qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", "c.qcow2", "-F", "qcow2", top)
			qemu(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 8 1M 3000", top)
			sameAsQEMU(t, top)
		})
	}
}

// TestBackingFormats reads overlays of disks of other formats.
func TestBackingFormats(t *testing.T) {
	for _, format := range []string{"raw", "vpc", "vhdx"} {
		dir := t.TempDir()
		base, top := filepath.Join(dir, "base."+format), filepath.Join(dir, "top.qcow2")
		qemu(t, "qemu-img", "create", "-q", "-f", format, base, "8M")
		qemu(t, "qemu-io", "-f", format, "-c", "write -q -P 5 1M 3M", base)
		qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", format, top)
		qemu(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 6 2M 64k", top)
		sameAsQEMU(t, top)
	}
}

// TestBackingRefused: a backing file is a file, of a format that is known without guessing, and lies where parents may lie.
func TestBackingRefused(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, filepath.FromSlash(name)) }
	for _, d := range []string{"vm", "other"} {
		if err := os.Mkdir(at(d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	qemu(t, "qemu-img", "create", "-q", "-f", "qcow2", at("other/base.qcow2"), "1M")
	qemu(t, "qemu-img", "create", "-q", "-f", "raw", at("vm/base.img"), "1M")
	top := func(backing, format string) string {
		path := at("vm/" + strings.Map(func(r rune) rune {
			if r == '/' || r == ':' {
				return '_'
			}
			return r
		}, backing+format) + ".qcow2")
		args := []string{"create", "-q", "-u", "-f", "qcow2", "-b", backing, path, "1M"}
		if format != "" {
			args = append(args, "-F", format)
		}
		qemu(t, "qemu-img", args...)
		return path
	}
	refused := func(path string, code fault.Code, parents ...string) {
		t.Helper()
		d, err := disk.Open(durable.OS(), path, disk.QCOW2, parents...)
		if !fault.Is(err, code) {
			t.Errorf("%s: %v, want %s", path, err, code)
		}
		if err == nil {
			d.Close()
		}
	}
	outside := top("../other/base.qcow2", "qcow2")
	refused(outside, fault.ParentElsewhere)
	sameAsQEMU(t, outside, at("other"))
	refused(top("/etc/hostname", "raw"), fault.ParentElsewhere)
	refused(top("nbd://127.0.0.1/x", "raw"), fault.DiskUnsupported)
	refused(top("gone.qcow2", "qcow2"), fault.ChainBroken)
	refused(top("base.img", "vmdk"), fault.DiskUnsupported)
	loop := top("loop.qcow2", "qcow2")
	if err := os.Rename(loop, at("vm/loop.qcow2")); err != nil {
		t.Fatal(err)
	}
	refused(at("vm/loop.qcow2"), fault.ChainBroken)
}
