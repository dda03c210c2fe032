package e2e_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

const mib = 1 << 20

// TestMatrix protects a VM, and three times lets its guest write and brings the replica up to date, for every kind of disk.
func TestMatrix(t *testing.T) {
	kinds := map[string]func(t *testing.T, dir string, rnd *rand.Rand) map[string]guest{
		"raw":          single("raw", 40*mib),
		"odd size":     single("raw", 100*mib+512),
		"VHD fixed":    single("vpc/fixed", 33*mib),
		"VHD dynamic":  single("vpc/dynamic", 50*mib),
		"VHDX fixed":   single("vhdx/fixed", 32*mib),
		"VHDX dynamic": single("vhdx/dynamic", 64*mib),
		"VHDX 4096": func(t *testing.T, dir string, rnd *rand.Rand) map[string]guest {
			return map[string]guest{"os": new4K(t, filepath.Join(dir, "os.vhdx"), 24*mib+4096)}
		},
		"VHD chain": func(t *testing.T, dir string, rnd *rand.Rand) map[string]guest {
			return map[string]guest{"os": vhdChain(t, dir, 24*mib, rnd)}
		},
		"VHDX chain": func(t *testing.T, dir string, rnd *rand.Rand) map[string]guest {
			return map[string]guest{"os": vhdxChain(t, dir, 24*mib, rnd)}
		},
		"two disks": func(t *testing.T, dir string, rnd *rand.Rand) map[string]guest {
			return map[string]guest{
				"os":   newQEMU(t, filepath.Join(dir, "os.vhdx"), "vhdx/dynamic", 40*mib),
				"data": newQEMU(t, filepath.Join(dir, "more", "data.raw"), "raw", 21*mib+512),
			}
		},
	}
	for name, disks := range kinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rnd := random(t)
			r := newRig(t)
			folder := r.path("web01")
			check(t, os.MkdirAll(folder, 0o755))
			rounds(r, r.add("web01", disks(t, folder, rnd)), rnd)
		})
	}
}

func single(kind string, size int64) func(*testing.T, string, *rand.Rand) map[string]guest {
	return func(t *testing.T, dir string, _ *rand.Rand) map[string]guest {
		return map[string]guest{"os": newQEMU(t, filepath.Join(dir, "os.img"), kind, size)}
	}
}

// rounds is the life of a VM: protected, written to and brought up to date, three times. Not every disk changes every time.
func rounds(r *rig, m *machine, rnd *rand.Rand) {
	r.Helper()
	for _, name := range m.names() {
		g := m.disks[name]
		g.put(r.T, scattered(rnd, g.size(r.T), g.sector()))
	}
	r.protect(m)
	for i := range 3 {
		names := m.names()
		for _, name := range names[:1+i%len(names)] {
			g := m.disks[name]
			g.put(r.T, scattered(rnd, g.size(r.T), g.sector()))
		}
		r.up(m)
	}
	r.proven(m)
}

// TestAllZero protects a disk that is nothing but zeros, lets it hold something for one position, and empties it again.
func TestAllZero(t *testing.T) {
	t.Parallel()
	rnd := random(t)
	r, m, g := one(t, 48*mib)
	r.protect(m)
	g.put(t, []change{{off: 5 * mib, n: 3 * mib}}) // zeros over zeros change nothing
	if o := r.up(m); !o.Unchanged {
		t.Error("zeros over zeros are a change")
	}
	data := noise(rnd, 560*1024)
	g.put(t, []change{{off: 7*mib + 512, n: int64(len(data)), data: data}})
	r.up(m)
	g.put(t, []change{{off: 0, n: 48 * mib}})
	if o := r.up(m); o.Sent > 64<<10 {
		t.Errorf("%d bytes sent to say that the disk is empty", o.Sent)
	}
	r.proven(m)
}

// TestGrowAndShrink lets a disk grow between deltas, and then takes a piece off it.
func TestGrowAndShrink(t *testing.T) {
	t.Parallel()
	rnd := random(t)
	r, m, g := one(t, 20*mib+512)
	other := newQEMU(t, r.path("web01", "data.vhdx"), "vhdx/dynamic", 16*mib)
	m.disks["data"] = other
	r.writeSite()
	g.put(t, scattered(rnd, 20*mib+512, 512))
	r.protect(m)

	tool(t, "qemu-img", "resize", "-q", "-f", "raw", g.path, "30M") // and nothing else
	r.up(m)
	size := int64(77*mib + 1024)
	tool(t, "qemu-img", "resize", "-q", "-f", "raw", g.path, "80741376")
	g.put(t, scattered(rnd, size, 512))
	other.put(t, scattered(rnd, 16*mib, 512))
	r.up(m)
	r.proven(m)

	held := m.now(t)
	tail := make([]byte, 2*mib)
	f, err := os.OpenFile(g.path, os.O_RDWR, 0)
	check(t, err)
	defer f.Close()
	_, err = f.ReadAt(tail, size-2*mib)
	check(t, err)
	check(t, f.Truncate(size-2*mib))
	var o outcome
	for range 2 {
		r.untouched(m, func() {
			o = r.refused(4, "disk-shrunk", []string{"web01", "os", g.path}, "delta", "web01", "--now")
		})
	}
	_, err = f.WriteAt(tail, size-2*mib)
	check(t, err)
	if !equalMoments(held, m.now(t)) {
		t.Fatal("the disk was not put back as it was")
	}
	r.mended(m, o)
	g.put(t, scattered(rnd, size, 512))
	r.up(m)
	r.proven(m)
}
