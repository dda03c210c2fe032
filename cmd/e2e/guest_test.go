package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"sitrep/internal/disk"
	"sitrep/internal/disk/vhd"
	"sitrep/internal/disk/vhd/vhdtest"
	"sitrep/internal/disk/vhdx"
	"sitrep/internal/durable"
)

// guest is a disk of a VM, written to and judged by something other than the program under test.
type guest interface {
	file() string   // the image that the site file names
	format() string // in the words of the site file
	size(t *testing.T) int64
	sector() int64
	// put writes what changes hold, as a guest does.
	put(t *testing.T, changes []change)
	// hash is the SHA-256 of the guest's bytes now.
	hash(t *testing.T) string
	// same fails the test unless a file of guest bytes and a VHD footer holds the guest's bytes of now.
	same(t *testing.T, replica string)
}

// change is one write of a guest. Without bytes it is zeros: written, or discarded.
type change struct {
	off, n  int64
	data    []byte
	discard bool
}

// scattered makes a few changes at random places.
func scattered(rnd *rand.Rand, size, sector int64) []change {
	var list []change
	for i := range 6 {
		n := min((1+rnd.Int64N(64))*sector, size)
		c := change{off: rnd.Int64N((size-n)/sector+1) * sector, n: n}
		switch i {
		case 4: // zeros, larger than a block of the sums
			c.n = min(256<<10, size-c.off)
		case 5:
			c.n, c.discard = min(512<<10, size-c.off), true
		default:
			c.data = noise(rnd, n)
		}
		list = append(list, c)
	}
	end := change{off: size - sector, n: sector, data: noise(rnd, sector)}
	return append(list, end)
}

func noise(rnd *rand.Rand, n int64) []byte {
	b := make([]byte, n)
	var chacha [32]byte
	for i := range chacha {
		chacha[i] = byte(rnd.Uint32())
	}
	rand.NewChaCha8(chacha).Read(b)
	return b
}

// qemuGuest is a disk that QEMU writes to and judges.
type qemuGuest struct {
	path   string
	qemu   string // QEMU's word for the format
	asSite string
}

// newQEMU makes a disk with qemu-img. kind is a format of QEMU, with a subformat after a slash.
func newQEMU(t *testing.T, path, kind string, size int64) *qemuGuest {
	t.Helper()
	qemu, sub, _ := strings.Cut(kind, "/")
	g := &qemuGuest{path: path, qemu: qemu, asSite: map[string]string{"raw": "raw", "vpc": "vhd", "vhdx": "vhdx"}[qemu]}
	args := []string{"create", "-q", "-f", qemu}
	if sub != "" {
		args = append(args, "-o", "subformat="+sub)
	}
	check(t, os.MkdirAll(filepath.Dir(path), 0o755))
	tool(t, "qemu-img", append(args, path, strconv.FormatInt(size, 10))...)
	return g
}

func (g *qemuGuest) file() string   { return g.path }
func (g *qemuGuest) format() string { return g.asSite }
func (g *qemuGuest) sector() int64  { return 512 }

func (g *qemuGuest) size(t *testing.T) int64 {
	t.Helper()
	out := tool(t, "qemu-img", "info", "-f", g.qemu, g.path)
	_, out, _ = strings.Cut(out, "virtual size:")
	_, out, _ = strings.Cut(out, "(")
	digits, _, _ := strings.Cut(out, " bytes")
	n, err := strconv.ParseInt(digits, 10, 64)
	check(t, err)
	return n
}

func (g *qemuGuest) put(t *testing.T, changes []change) {
	t.Helper()
	args := []string{"-f", g.qemu}
	dir := t.TempDir()
	for i, c := range changes {
		command := fmt.Sprintf("write -z %d %d", c.off, c.n)
		switch {
		case c.data != nil:
			name := filepath.Join(dir, strconv.Itoa(i))
			check(t, os.WriteFile(name, c.data, 0o600))
			command = fmt.Sprintf("write -s %s %d %d", name, c.off, c.n)
		case c.discard:
			command = fmt.Sprintf("discard %d %d", c.off, c.n)
		}
		args = append(args, "-c", command)
	}
	out := tool(t, "qemu-io", append(args, "-c", "flush", g.path)...)
	if strings.Contains(out, "failed") {
		t.Fatalf("qemu-io: %s", out)
	}
}

func (g *qemuGuest) hash(t *testing.T) string {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	tool(t, "qemu-img", "convert", "-f", g.qemu, "-O", "raw", g.path, raw)
	defer os.Remove(raw)
	f, err := os.Open(raw)
	check(t, err)
	defer f.Close()
	return hashOf(t, f)
}

func hashOf(t *testing.T, r io.Reader) string {
	t.Helper()
	h := sha256.New()
	_, err := io.CopyBuffer(h, struct{ io.Reader }{r}, make([]byte, 1<<20))
	check(t, err)
	return hex.EncodeToString(h.Sum(nil))
}

func (g *qemuGuest) same(t *testing.T, replica string) {
	t.Helper()
	out, err := exec.Command("qemu-img", "compare", "-f", g.qemu, "-F", "vpc", g.path, replica).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Images are identical.") {
		t.Fatalf("qemu-img compare %s %s: %v\n%s", g.path, replica, err, out)
	}
}

// modelGuest is a disk that QEMU cannot judge. Its content is kept in memory besides.
type modelGuest struct {
	path, asSite string
	sect         int64
	data         []byte
}

func (g *modelGuest) file() string            { return g.path }
func (g *modelGuest) format() string          { return g.asSite }
func (g *modelGuest) sector() int64           { return g.sect }
func (g *modelGuest) size(t *testing.T) int64 { return int64(len(g.data)) }

func (g *modelGuest) put(t *testing.T, changes []change) {
	t.Helper()
	w, err := disk.OpenRW(durable.OS(), g.path, disk.Format(g.asSite))
	check(t, err)
	for _, c := range changes {
		part := g.data[c.off : c.off+c.n]
		if c.data == nil {
			clear(part)
			check(t, w.ZeroAt(c.off, c.n))
			continue
		}
		copy(part, c.data)
		_, err := w.WriteAt(c.data, c.off)
		check(t, err)
	}
	check(t, w.Flush())
	check(t, w.Close())
}

func (g *modelGuest) hash(t *testing.T) string {
	t.Helper()
	return hashOf(t, bytes.NewReader(g.data))
}

func (g *modelGuest) same(t *testing.T, replica string) {
	t.Helper()
	have, err := os.ReadFile(replica)
	check(t, err)
	if len(have) != len(g.data)+vhd.FooterSize {
		t.Fatalf("%s has %d bytes, want %d and a footer", replica, len(have), len(g.data))
	}
	if i := firstDifference(have, g.data); i >= 0 {
		t.Fatalf("%s differs from its source at %d", replica, i)
	}
}

func firstDifference(a, b []byte) int {
	if bytes.Equal(a[:len(b)], b) {
		return -1
	}
	for i := range b {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// new4K makes a dynamic VHDX with sectors of 4096 bytes, which QEMU does not open.
func new4K(t *testing.T, path string, size int64) *modelGuest {
	t.Helper()
	check(t, os.MkdirAll(filepath.Dir(path), 0o755))
	w, err := disk.Create(durable.OS(), path, disk.Spec{Format: disk.VHDX, Kind: disk.Dynamic, Size: size, SectorSize: 4096, BlockSize: 1 << 20})
	check(t, err)
	check(t, w.Close())
	return &modelGuest{path: path, asSite: "vhdx", sect: 4096, data: make([]byte, size)}
}

// parent makes a disk with QEMU, lets QEMU write to it, and returns its content by QEMU.
func parent(t *testing.T, path, kind string, size int64, rnd *rand.Rand) []byte {
	t.Helper()
	g := newQEMU(t, path, kind, size)
	size = g.size(t)
	g.put(t, scattered(rnd, size, 512))
	raw := filepath.Join(t.TempDir(), "raw")
	tool(t, "qemu-img", "convert", "-f", g.qemu, "-O", "raw", path, raw)
	data, err := os.ReadFile(raw)
	check(t, err)
	return data
}

// vhdChain makes a differencing VHD on a dynamic one that QEMU made.
func vhdChain(t *testing.T, dir string, size int64, rnd *rand.Rand) *modelGuest {
	t.Helper()
	data := parent(t, filepath.Join(dir, "base.vhd"), "vpc/dynamic", size, rnd)
	f, err := durable.OS().Open(filepath.Join(dir, "base.vhd"))
	check(t, err)
	base, err := vhd.Open(f, vhd.Options{})
	check(t, err)
	child := vhdtest.File{
		Type: vhdtest.Differencing, ID: vhd.NewUUID(), Size: int64(len(data)), BlockSize: 2 << 20, Parent: base.UUID(),
		Name: "base.vhd", Locators: map[string]string{"W2ru": `.\base.vhd`},
	}
	check(t, base.Close())
	path := filepath.Join(dir, "child.vhd")
	check(t, os.WriteFile(path, child.Bytes(), 0o644))
	return &modelGuest{path: path, asSite: "vhd", sect: 512, data: data}
}

// vhdxChain makes a differencing VHDX on another one, on a dynamic one that QEMU made.
func vhdxChain(t *testing.T, dir string, size int64, rnd *rand.Rand) *modelGuest {
	t.Helper()
	g := &modelGuest{asSite: "vhdx", sect: 512, data: parent(t, filepath.Join(dir, "base.vhdx"), "vhdx/dynamic", size, rnd)}
	g.path = filepath.Join(dir, "middle.avhdx")
	differencing(t, "base.vhdx", g.path)
	g.put(t, scattered(rnd, int64(len(g.data)), 512))
	top := filepath.Join(dir, "top.avhdx")
	differencing(t, "middle.avhdx", top)
	g.path = top
	return g
}

// differencing makes the file path a child of a VHDX in the same folder.
func differencing(t *testing.T, base, path string) {
	t.Helper()
	dir := filepath.Dir(path)
	pf, err := durable.OS().Open(filepath.Join(dir, base))
	check(t, err)
	p, err := vhdx.Open(pf, vhdx.Options{OpenParent: func(l vhdx.ParentLocator) (vhdx.Parent, error) {
		f, err := durable.OS().Open(filepath.Join(dir, "base.vhdx"))
		if err != nil {
			return nil, err
		}
		return vhdx.Open(f, vhdx.Options{})
	}})
	check(t, err)
	f, err := durable.OS().Create(path)
	check(t, err)
	w, err := vhdx.Create(f, vhdx.Spec{Kind: vhdx.Differencing, Parent: p, RelativePath: `.\` + base})
	check(t, err)
	check(t, w.Close())
}
