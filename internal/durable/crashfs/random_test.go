package crashfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
)

func newRand(t *testing.T) *rand.Rand {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// kind makes errors of two filesystems comparable.
func kind(err error) string {
	for _, known := range []error{iofs.ErrNotExist, iofs.ErrExist, io.EOF, iofs.ErrClosed} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	if err != nil {
		return "error"
	}
	return ""
}

// side is one of two filesystems on which the same things are done.
type side struct {
	fs   durable.FS
	root string
	open map[int]durable.File
}

func (s *side) path(name string) string { return filepath.Join(s.root, name) }

// step does one random thing and returns everything that can be seen of its result.
func (s *side) step(rng *rand.Rand) string {
	names := []string{"a", "b", "d/a", "d/b", "e", "d", "d/e"}
	name, other := names[rng.IntN(len(names))], names[rng.IntN(len(names))]
	handle := rng.IntN(4)
	off, n := rng.Int64N(40000), rng.IntN(20000)
	data := bytes.Repeat([]byte{byte(1 + rng.IntN(200))}, n)
	switch what := rng.IntN(16); what {
	case 0, 1, 2:
		open := []func(string) (durable.File, error){s.fs.Create, s.fs.OpenRW, s.fs.Open}[what]
		f, err := open(s.path(name))
		if err == nil {
			if old := s.open[handle]; old != nil {
				old.Close()
			}
			s.open[handle] = f
		}
		return fmt.Sprint("open ", what, name, kind(err))
	case 3:
		return fmt.Sprint("rename ", name, other, kind(s.fs.Rename(s.path(name), s.path(other))) != "")
	case 4:
		return fmt.Sprint("remove ", name, kind(s.fs.Remove(s.path(name))))
	case 5:
		err := s.fs.Link(s.path(name), s.path(other))
		return fmt.Sprint("link ", name, other, err != nil)
	case 6:
		return fmt.Sprint("mkdir ", name, kind(s.fs.MkdirAll(s.path(name))))
	case 7:
		list, err := s.fs.ReadDir(s.path("d"))
		return fmt.Sprint("list ", list, kind(err))
	}
	return s.stepFile(rng, s.open[handle], off, data)
}

func (s *side) stepFile(rng *rand.Rand, f durable.File, off int64, data []byte) string {
	what := rng.IntN(9)
	if f == nil {
		return "no file"
	}
	n := int64(len(data))
	switch what {
	case 0, 1, 2:
		k, err := f.WriteAt(data, off)
		return fmt.Sprint("write ", off, k, kind(err))
	case 3:
		return fmt.Sprint("truncate ", off, kind(f.Truncate(off)))
	case 4:
		if size, err := f.Size(); err != nil || off >= size || n == 0 {
			return "nothing to zero" // whether a file open for reading refuses even that is left open
		}
		return fmt.Sprint("zero ", off, n, kind(f.ZeroAt(off, n)) != "")
	case 5, 6:
		k, err := f.ReadAt(data, off)
		return fmt.Sprint("read ", off, k, kind(err), short(data[:k]))
	case 7:
		size, err := f.Size()
		return fmt.Sprint("size ", size, kind(err))
	}
	return fmt.Sprint("sync ", kind(f.Sync()), checkExtents(f))
}

// checkExtents walks the extents: they must make progress, and what is called zero must be zero.
func checkExtents(f durable.File) string {
	size, err := f.Size()
	if err != nil {
		return err.Error()
	}
	for off := int64(0); off < size; {
		e, err := f.Extent(off, size-off)
		if err != nil || e.Off != off || e.Len <= 0 || e.End() > size {
			return fmt.Sprint("bad extent ", e, err)
		}
		p := make([]byte, e.Len)
		if n, err := f.ReadAt(p, off); n != len(p) {
			return fmt.Sprint("short read ", n, err)
		}
		if e.Kind == block.Zero && !block.IsZero(p) {
			return fmt.Sprint("not zero ", e)
		}
		off = e.End()
	}
	return ""
}

// crashfs must behave as the operating system does, as long as nothing crashes.
func TestSameAsTheOperatingSystem(t *testing.T) {
	if os.PathSeparator != '/' {
		t.Skip("open files keep their folders from being removed on this system")
	}
	rng := newRand(t)
	for round := range 20 {
		dir := t.TempDir()
		a := &side{fs: durable.OS(), root: dir, open: map[int]durable.File{}}
		b := &side{fs: crashfs.New(), root: "/", open: map[int]durable.File{}}
		var done []string
		for range 300 {
			seed := rng.Uint64()
			got := a.step(rand.New(rand.NewPCG(seed, 0)))
			want := b.step(rand.New(rand.NewPCG(seed, 0)))
			done = append(done, got)
			if got != want {
				t.Fatalf("round %d: the system says %q, crashfs %q, after %q", round, got, want, done[max(0, len(done)-20):])
			}
		}
		for _, f := range a.open {
			f.Close()
		}
	}
}

// Every sector of a file that a power cut leaves has one of the contents it had since the last Sync.
func TestSectorsAfterRandomHistories(t *testing.T) {
	const sectors = 24
	rng := newRand(t)
	for range 60 {
		fs := crashfs.New()
		f := durableFile(t, fs, "/a", string(make([]byte, sectors*512)))
		var allowed [sectors][]byte // of each sector, the fill byte it may have; the first is durable
		for i := range allowed {
			allowed[i] = []byte{0}
		}
		for step := range 1 + rng.IntN(25) {
			first := rng.IntN(sectors)
			n := 1 + rng.IntN(sectors-first)
			switch rng.IntN(5) {
			case 0:
				must(t, f.Sync())
				for i := range allowed {
					allowed[i] = allowed[i][len(allowed[i])-1:]
				}
				continue
			case 1:
				must(t, f.ZeroAt(int64(first)*512, int64(n)*512))
				for i := range n {
					allowed[first+i] = append(allowed[first+i], 0)
				}
			default:
				fill := byte(step + 1)
				_, err := f.WriteAt(bytes.Repeat([]byte{fill}, n*512), int64(first)*512)
				must(t, err)
				for i := range n {
					allowed[first+i] = append(allowed[first+i], fill)
				}
			}
		}
		checkSectors(t, fs, allowed[:])
	}
}

func checkSectors(t *testing.T, fs *crashfs.FS, allowed [][]byte) {
	t.Helper()
	for _, p := range crashfs.Policies() {
		data, err := durable.ReadFile(fs.AfterCrash(p, 7), "/a", 1<<20)
		must(t, err)
		for i, ok := range allowed {
			sector := data[i*512:][:512]
			if p == crashfs.DropUnsynced {
				ok = ok[:1]
			}
			if p == crashfs.KeepAll || p == crashfs.ProcessKill {
				ok = ok[len(ok)-1:]
			}
			if !slices.Contains(ok, sector[0]) || !bytes.Equal(sector, bytes.Repeat(sector[:1], 512)) {
				t.Fatalf("%v: sector %d is %s, want one of %v", p, i, short(sector), ok)
			}
		}
	}
}
