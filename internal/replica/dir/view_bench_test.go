package dir_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"sitrep/internal/durable"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/replica/dir"
	"sitrep/internal/replica/replicatest"
	"sitrep/internal/sums"
)

// BenchmarkPointRead reads the newest point of a disk of 64 MiB, in order: from the page cache, so that what is measured is the
// proof and not the disk, whose speed is its own matter and another one every minute. "plain" is the same read without proof.
func BenchmarkPointRead(b *testing.B) {
	const size, bs, unit = 64 << 20, 64 << 10, 1 << 20
	ctx := b.Context()
	root := filepath.Join(b.TempDir(), "store")
	store := dir.New(durable.OS(), root)
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
	_, err = os.ReadFile(filepath.Join(root, "vm", "os.vhd")) // warm
	must(err)
	plain, err := durable.OS().Open(filepath.Join(root, "vm", "os.vhd"))
	must(err)
	defer plain.Close()
	for _, n := range []int64{unit, bs, 4096} {
		for _, from := range []struct {
			name string
			io.ReaderAt
		}{{"proven", d}, {"plain", plain}} {
			b.Run(fmt.Sprintf("%s/%dKiB", from.name, n>>10), func(b *testing.B) {
				b.SetBytes(n)
				b.ReportAllocs()
				off := int64(0)
				for b.Loop() {
					if _, err := from.ReadAt(buf[:n], off); err != nil {
						b.Fatal(err)
					}
					off = (off + n) % size
				}
			})
		}
	}
}
