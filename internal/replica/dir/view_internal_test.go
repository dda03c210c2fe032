package dir

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"

	"sitrep/internal/block"
)

// TestIndex compares the merger of random layers with a byte for byte model: the first layer that holds a byte has it.
func TestIndex(t *testing.T) {
	const size = 200
	for seed := range uint64(400) {
		rng := rand.New(rand.NewPCG(seed, 3))
		d := pointDisk{size: size}
		model := make([]piece, size) // of one byte each; Len 0: the base
		for layer := range rng.IntN(9) {
			var run []piece
			for off := rng.Int64N(20); off < size; {
				pc := piece{Range: block.Range{Off: off, Len: min(1+rng.Int64N(30), size-off)}, layer: layer, at: rng.Int64N(1000)}
				if rng.IntN(3) == 0 {
					pc.at = -1
				}
				run = append(run, pc)
				for i := pc.Off; i < pc.End(); i++ {
					if model[i].Len == 0 {
						model[i] = pc.cut(i, i+1)
					}
				}
				off = pc.End() + rng.Int64N(40)
			}
			d.runs = append(d.runs, run)
		}
		d.merge()
		if !slices.IsSortedFunc(d.index, func(a, b piece) int { return cmp.Compare(a.End(), b.Off+1) }) {
			t.Fatalf("seed %d: the index is not sorted: %v", seed, d.index)
		}
		for off := range int64(size) {
			pc, next, ok := d.find(off)
			if ok != (model[off].Len > 0) || next <= off || next > size {
				t.Fatalf("seed %d: at %d: %v, next %d, found %v; it has to be %v", seed, off, pc, next, ok, model[off])
			}
			if ok && pc.cut(off, off+1) != model[off] {
				t.Fatalf("seed %d: at %d: %v instead of %v", seed, off, pc, model[off])
			}
			if !ok && slices.ContainsFunc(model[off:next], func(p piece) bool { return p.Len > 0 }) {
				t.Fatalf("seed %d: from %d to %d is not all base", seed, off, next)
			}
		}
	}
}

// TestWholeBlocks rounds every extent to blocks: never is a byte of data called zero, and there is always progress.
func TestWholeBlocks(t *testing.T) {
	for _, bs := range []int64{512, 4096} {
		for length := int64(512); length <= 3*4096; length += 512 {
			for have := int64(1); have <= length; have += 511 {
				for _, kind := range []block.Kind{block.Data, block.Zero} {
					r := block.Range{Off: 8192, Len: length}
					n, zero := wholeBlocks(block.Extent{Range: block.Range{Off: 8192, Len: have}, Kind: kind}, r, bs)
					if n <= 0 || n > length || n%bs != 0 && n != length || zero && (kind != block.Zero || n > have) {
						t.Fatalf("%d bytes of %s of a run of %d: %d, zero %v", have, kind, length, n, zero)
					}
				}
			}
		}
	}
}
