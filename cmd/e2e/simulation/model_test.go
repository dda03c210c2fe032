//go:build linux

package simulation_test

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sitrep/internal/disk"
	"sitrep/internal/durable"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// content is what a disk holds: how many bytes, and their SHA-256.
type content struct {
	size int64
	sum  [sha256.Size]byte
}

func contentOf(data []byte) content { return content{int64(len(data)), sha256.Sum256(data)} }

func (c content) String() string { return fmt.Sprintf("%d bytes %x", c.size, c.sum[:4]) }

// moment is what the disks of a VM hold, from a point in time on.
type moment struct {
	from  time.Time
	disks map[string]content
}

func (m moment) equal(o map[string]content) bool { return maps.Equal(m.disks, o) }

// diskModel is a disk: its file, and its content as it should be.
type diskModel struct {
	name, path string
	format     disk.Format
	kind       disk.Kind
	data       []byte
}

// place is the disks of a VM at one machine, with everything that they have held.
type place struct {
	disks []*diskModel
	past  []moment // oldest first
}

// newDisk makes a disk.
func newDisk(t testing.TB, name, path string, f disk.Format, k disk.Kind, size int64) *diskModel {
	t.Helper()
	d := &diskModel{name: name, path: path, format: f, kind: k, data: make([]byte, size)}
	d.create(t)
	return d
}

// create makes the file anew, with the content of the model.
func (d *diskModel) create(t testing.TB) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(d.path), 0o755))
	must(t, os.RemoveAll(d.path))
	w, err := disk.Create(durable.OS(), d.path, disk.Spec{Format: d.format, Kind: d.kind, Size: int64(len(d.data))})
	must(t, err)
	must(t, w.Close())
	d.write(t, 0, d.data)
}

// write is a guest's.
func (d *diskModel) write(t testing.TB, off int64, data []byte) {
	t.Helper()
	w, err := disk.OpenRW(durable.OS(), d.path, d.format)
	must(t, err)
	_, err = w.WriteAt(data, off)
	must(t, err)
	must(t, w.Flush())
	must(t, w.Close())
	copy(d.data[off:], data)
}

// zero is a guest's discard.
func (d *diskModel) zero(t testing.TB, off, n int64) {
	t.Helper()
	w, err := disk.OpenRW(durable.OS(), d.path, d.format)
	must(t, err)
	must(t, w.ZeroAt(off, n))
	must(t, w.Flush())
	must(t, w.Close())
	clear(d.data[off : off+n])
}

// grow makes a raw disk larger; others stay as they are.
func (d *diskModel) grow(t testing.TB, by int64) {
	if d.format != disk.Raw {
		return
	}
	must(t, os.Truncate(d.path, int64(len(d.data))+by))
	d.data = append(d.data, make([]byte, by)...)
}

// read reads a disk file as the guest would.
func read(path string, f disk.Format) (content, error) {
	img, err := disk.Open(durable.OS(), path, f)
	if err != nil {
		return content{}, err
	}
	defer img.Close()
	data := make([]byte, img.Size())
	if _, err := img.ReadAt(data, 0); err != nil && len(data) > 0 {
		return content{}, err
	}
	return contentOf(data), nil
}

// scribble writes like a guest: a few pieces of noise, of one byte, and of zeros.
func (d *diskModel) scribble(t testing.TB, rnd *rand.Rand) {
	t.Helper()
	for range 1 + rnd.IntN(3) {
		size := int64(len(d.data)) / 512
		n := 1 + rnd.Int64N(min(size, 256))
		off := rnd.Int64N(size-n+1) * 512
		n *= 512
		switch rnd.IntN(6) {
		case 0:
			d.zero(t, off, n)
		case 1:
			d.write(t, off, make([]byte, n)) // written zeros
		case 2:
			b := make([]byte, n)
			for i := range b {
				b[i] = 0xA5
			}
			d.write(t, off, b)
		default:
			d.write(t, off, noise(rnd, n))
		}
	}
}

func noise(rnd *rand.Rand, n int64) []byte {
	var key [32]byte
	for i := range key {
		key[i] = byte(rnd.Uint32())
	}
	b := make([]byte, n)
	rand.NewChaCha8(key).Read(b)
	return b
}

// now is what the disks hold.
func (p *place) now() map[string]content {
	out := map[string]content{}
	for _, d := range p.disks {
		out[d.name] = contentOf(d.data)
	}
	return out
}

// remember says that the disks have changed.
func (p *place) remember() { p.past = append(p.past, moment{time.Now(), p.now()}) }

// at is what the disks held at a time, as far back as the model goes.
func (p *place) at(t time.Time) (moment, bool) {
	for i := len(p.past) - 1; i >= 0; i-- {
		if !p.past[i].from.After(t) {
			return p.past[i], true
		}
	}
	return moment{}, false
}
