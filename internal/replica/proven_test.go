package replica_test

import (
	"testing"

	"sitrep/internal/block"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
)

// TestHugeHole: a hole of 64 TiB costs what there are sums in it, not what there could be.
func TestHugeHole(t *testing.T) {
	const size, blockSize, at = 64 << 40, 4096, 9 << 30 // at is the block that has a sum
	loads := 0
	p := &replica.Proven{BlockSize: blockSize, End: size, ShortEnd: size,
		Sums: func(first int64, out []sums.Sum) error {
			loads++
			clear(out)
			if i := at - first; i >= 0 && i < int64(len(out)) {
				out[i] = sums.Of([]byte("guest"))
			}
			return nil
		},
		NextSums: func(first, end int64) (int64, int64, error) {
			if at >= first && at < end {
				return at, 1, nil
			}
			return 0, 0, nil
		}}
	steps, data := 0, int64(0)
	for off := int64(0); off < size; steps++ {
		e, err := p.Extent(block.Extent{Range: block.Range{Off: off, Len: size - off}, Kind: block.Zero})
		if err != nil || e.Off != off || e.Len <= 0 {
			t.Fatal(e, err)
		}
		if e.Kind == block.Data { // a hole in which there should be something: for ReadAt to refuse
			data += e.Len
			if e.Off != at*blockSize {
				t.Fatalf("data at %d", e.Off)
			}
		}
		off = e.End()
	}
	if data != blockSize || steps > 3 || loads > 2 {
		t.Fatalf("%d bytes of data, %d steps, %d loads of sums", data, steps, loads)
	}
}
