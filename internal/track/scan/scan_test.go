package scan_test

import (
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/track"
	"sitrep/internal/track/scan"
	"sitrep/internal/track/tracktest"
)

// agingFS is a filesystem whose clock can be put forward: new temporary files, by which a tracker asks for the time, say
// that they are younger than they are.
type agingFS struct {
	durable.FS
	ahead *atomic.Int64 // nanoseconds
}

func aging(fsys durable.FS) agingFS { return agingFS{fsys, new(atomic.Int64)} }

// age makes the clock jump past everything that was written, until something is written again.
func (a agingFS) age() { a.ahead.Store(int64(time.Hour)) }

func (a agingFS) OpenRW(name string) (durable.File, error) {
	a.ahead.Store(0)
	return a.FS.OpenRW(name)
}

func (a agingFS) Create(name string) (durable.File, error) {
	f, err := a.FS.Create(name)
	if err != nil || !durable.IsTemp(name) {
		return f, err
	}
	return agingFile{f, a.ahead.Load()}, nil
}

type agingFile struct {
	durable.File
	ahead int64
}

func (f agingFile) Stamp() (durable.Stamp, error) {
	s, err := f.File.Stamp()
	s.ChangeTime += f.ahead
	return s, err
}

func TestContract(t *testing.T) {
	t.Parallel()
	t.Run("os", func(t *testing.T) {
		tracktest.Test(t, func(t *testing.T) tracktest.Fixture { return fixture(durable.OS(), t.TempDir()) })
	})
	t.Run("crashfs", func(t *testing.T) {
		tracktest.Test(t, func(t *testing.T) tracktest.Fixture { return fixture(crashfs.New(), "/") })
	})
	t.Run("clones", func(t *testing.T) {
		tracktest.Test(t, func(t *testing.T) tracktest.Fixture {
			fsys := crashfs.New()
			fsys.SetClone(true)
			return fixture(fsys, "/")
		})
	})
}

func fixture(fsys durable.FS, dir string) tracktest.Fixture {
	a := aging(fsys)
	return tracktest.Fixture{
		FS: a, Dir: dir, Age: a.age,
		Open: func(disks []track.Disk) (track.Tracker, error) {
			return scan.Open(a, scan.Config{VM: "vm", Disks: disks, Dir: filepath.Join(dir, ".state", "vm")})
		},
	}
}
