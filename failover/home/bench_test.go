package home_test

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"sitrep/failover/home"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
)

// BenchmarkBring brings a raw disk of 1 GiB home, full of data, of which 256 places of 64 KiB differ (1.6 %). Beside it what
// others need: rsync in place, and qemu-img, which only compares. "second" is a pass with the sums of the one before.
func BenchmarkBring(b *testing.B) {
	const size = 1 << 30
	dir := b.TempDir()
	recovered, target := filepath.Join(dir, "recovered"), filepath.Join(dir, "os")
	r := rand.New(rand.NewPCG(1, 1))
	chunk := make([]byte, 4<<20)
	for i := range chunk {
		chunk[i] = byte(r.Uint32())
	}
	for _, path := range []string{recovered, target} {
		f := must(os.Create(path))(b)
		for off := int64(0); off < size; off += int64(len(chunk)) {
			must(f.WriteAt(chunk, off))(b)
		}
		ok(b, f.Sync())
		ok(b, f.Close())
	}
	change := func() {
		b.StopTimer()
		defer b.StartTimer()
		f := must(os.OpenFile(recovered, os.O_RDWR, 0))(b)
		for range 256 {
			at := r.Int64N(size/65536) * 65536
			chunk[0]++
			must(f.WriteAt(chunk[:64<<10], at))(b)
		}
		ok(b, f.Sync())
		ok(b, f.Close())
		drop := exec.Command("dd", "if="+recovered, "iflag=nocache", "count=0")
		_ = drop.Run()
	}
	bring := func(again bool) []home.Result {
		src := open(b, durable.OS(), recovered, disk.Raw)
		defer src.Close()
		j := job(durable.OS(), filepath.Join(dir, "state"), home.Disk{Name: "os", Source: src, Target: target, Format: disk.Raw})
		j.Again, j.Pause = again, nil
		return must(j.Bring(b.Context()))(b)
	}
	b.Run("sitrep", func(b *testing.B) {
		for b.Loop() {
			change()
			bring(false)
		}
	})
	b.Run("sitrep keeping sums", func(b *testing.B) {
		for b.Loop() {
			change()
			bring(true)
		}
	})
	b.Run("sitrep second", func(b *testing.B) {
		bring(true)
		for b.Loop() {
			change()
			if res := bring(true); !res[0].BySums {
				b.Fatalf("%+v", res)
			}
		}
	})
	b.Run("rsync", func(b *testing.B) {
		for b.Loop() {
			change()
			if out, err := exec.Command("rsync", "--inplace", "--no-whole-file", "--ignore-times", "--fsync", recovered, target).CombinedOutput(); err != nil {
				b.Skipf("rsync: %v\n%s", err, out)
			}
		}
	})
	b.Run("qemu-img compare", func(b *testing.B) {
		bring(false)
		for b.Loop() {
			qemu(b, "qemu-img", "compare", "-T", "none", "-f", "raw", "-F", "raw", recovered, target)
		}
	})
}
