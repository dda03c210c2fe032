package scan_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/hrl"
	"sitrep/internal/sums"
	"sitrep/internal/track"
	"sitrep/internal/track/scan"
)

// benchBytes is the data of the benchmarked disk; the disk is twice as large.
const benchBytes = 1 << 30

// benchDisk makes a raw disk with holes.
func benchDisk(b *testing.B) string {
	path := filepath.Join(b.TempDir(), "disk.raw")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	rng := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, 4<<20)
	for off := int64(0); off < 2*benchBytes; off += 8 << 20 {
		for i := 0; i < len(buf); i += 8 {
			binary.LittleEndian.PutUint64(buf[i:], rng.Uint64())
		}
		if _, err := f.WriteAt(buf, off); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Truncate(2 * benchBytes); err != nil {
		b.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	return path
}

func dropCache(b *testing.B, path string) {
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		b.Fatal(err)
	}
}

// collected is the sums that a cut since the beginning emitted.
type collected struct {
	mu   sync.Mutex
	sums map[int64]sums.Sum
	size int64
}

func (c *collected) Size() int64 { return c.size }
func (c *collected) All(_ context.Context, f func(int64, sums.Sum) error) error {
	for i := range c.size / benchBlock {
		if s := c.sums[i]; !s.IsZero() {
			if err := f(i, s); err != nil {
				return err
			}
		}
	}
	return nil
}

const benchBlock = 64 << 10

func benchScan(b *testing.B, cold bool, unit int64, tasks int) {
	path := benchDisk(b)
	t, err := scan.Open(durable.OS(), scan.Config{
		VM: "vm", Dir: filepath.Join(b.TempDir(), "t"),
		Disks: []track.Disk{{Name: "d", Path: path, Format: disk.Raw, BlockSize: benchBlock}},
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx := context.Background()
	base := &collected{sums: map[int64]sums.Sum{}, size: 2 * benchBytes}
	c, err := t.Cut(ctx, hrl.Pos{})
	if err != nil {
		b.Fatal(err)
	}
	_, err = c.Disks()[0].Scan(ctx, track.Options{}, func(ctx context.Context, ch track.Change) error {
		base.mu.Lock()
		defer base.mu.Unlock()
		for i, s := range ch.Sums {
			base.sums[ch.Off/benchBlock+int64(i)] = s
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	c.Close()
	at := hrl.Pos{}.Next()
	if err := t.Rebase(ctx, at, map[string]track.Base{"d": base}); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(benchBytes)
	b.ResetTimer()
	for range b.N {
		if cold {
			b.StopTimer()
			dropCache(b, path)
			b.StartTimer()
		}
		c, err := t.Cut(ctx, at)
		if err != nil {
			b.Fatal(err)
		}
		st, err := c.Disks()[0].Scan(ctx, track.Options{Unit: unit, Tasks: tasks}, func(context.Context, track.Change) error {
			return fmt.Errorf("nothing has changed")
		})
		if err != nil || st.Scanned != benchBytes {
			b.Fatal(st, err)
		}
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkScanWarm(b *testing.B) { benchScan(b, false, 0, 0) }
func BenchmarkScanCold(b *testing.B) { benchScan(b, true, 0, 0) }

func BenchmarkSizes(b *testing.B) {
	for _, cold := range []bool{false, true} {
		for _, unit := range []int64{256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20} {
			for _, tasks := range []int{2, 4, 8, 16} {
				b.Run(fmt.Sprintf("cold=%v/unit=%dK/tasks=%d", cold, unit>>10, tasks), func(b *testing.B) {
					benchScan(b, cold, unit, tasks)
				})
			}
		}
	}
}

// What two threads of pread reach, 1 MiB at once, on the data alone.
func BenchmarkFloorWarm(b *testing.B) { benchFloor(b, false) }
func BenchmarkFloorCold(b *testing.B) { benchFloor(b, true) }

func benchFloor(b *testing.B, cold bool) {
	path := benchDisk(b)
	b.SetBytes(benchBytes)
	b.ResetTimer()
	for range b.N {
		if cold {
			b.StopTimer()
			dropCache(b, path)
			b.StartTimer()
		}
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		var next atomic.Int64
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				buf := durable.AlignedBuffer(1 << 20)
				for {
					i := next.Add(1) - 1
					if i >= benchBytes>>20 {
						return
					}
					if _, err := f.ReadAt(buf, (i/4*8+i%4)<<20); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		f.Close()
	}
}
