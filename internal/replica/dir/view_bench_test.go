package dir_test

import (
	"math/rand/v2"
	"path/filepath"
	"testing"

	"sitrep/internal/durable"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/replica/dir"
	"sitrep/internal/replica/replicatest"
	"sitrep/internal/sums"
)

// BenchmarkPointRead reads the newest point of a disk of 64 MiB, in order.
func BenchmarkPointRead(b *testing.B) {
	const size, bs, unit = 64 << 20, 64 << 10, 1 << 20
	ctx := b.Context()
	store := dir.New(durable.OS(), filepath.Join(b.TempDir(), "store"))
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	_, err := store.Prepare(ctx, hrl.ID{})
	must(err)
	st := replicatest.FirstState("vm")
	st.Disks = []replica.Disk{{Name: "os", Source: "/os.raw", Format: "raw", Size: size, BlockSize: bs}}
	r, err := store.Create(ctx, st)
	must(err)
	defer r.Close()
	p, err := r.Disk(ctx, st.Disks[0])
	must(err)
	rng := rand.NewChaCha8([32]byte{1})
	buf := durable.AlignedBuffer(unit)
	for off := int64(0); off < size; off += unit {
		rng.Read(buf)
		must(p.WriteAt(ctx, buf, off))
		for i := range int64(unit / bs) {
			must(p.StoreSums(ctx, off/bs+i, []sums.Sum{sums.Of(buf[i*bs : (i+1)*bs])}))
		}
	}
	must(p.Flush(ctx))
	must(p.Close())
	st, err = r.Ledger().Load(ctx)
	must(err)
	at := hrl.Pos{}.Next()
	st.Applied, st.Received = at, at
	st.Points = []replica.Point{{ID: "x", At: at, Sizes: map[string]int64{"os": size}}}
	v, err := r.Points().Open(ctx, st, "x")
	must(err)
	defer v.Close()
	d, err := v.Disk("os")
	must(err)
	for name, n := range map[string]int64{"1MiB": unit, "64KiB": bs, "4KiB": 4096} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(n)
			b.ReportAllocs()
			off := int64(0)
			for b.Loop() {
				if _, err := d.ReadAt(buf[:n], off); err != nil {
					b.Fatal(err)
				}
				off = (off + n) % size
			}
		})
	}
}
