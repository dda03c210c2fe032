package disk

import (
	"testing"

	"sitrep/internal/block"
)

// sizeOnly is an image of which only the size is asked for.
type sizeOnly struct {
	Image
	size int64
}

func (s sizeOnly) Size() int64 { return s.size }

// TestLayerIsBounded has a layer of every second sector, more runs than are kept.
func TestLayerIsBounded(t *testing.T) {
	const size, limit = 1<<20 + 512, 100
	d := &Disk{Image: sizeOnly{size: size}}
	d.layer = func(off, n int64) (block.Range, bool, error) {
		return block.Range{Off: off, Len: min(n, 512)}, off/512%2 == 0, nil
	}
	all, err := d.layerOf(size)
	if err != nil || all.Runs() != size/1024+1 {
		t.Fatalf("%d runs, %v", all.Runs(), err)
	}
	few, err := d.layerOf(limit)
	if err != nil || few.Runs() > limit {
		t.Fatalf("%d runs, %v", few.Runs(), err)
	}
	kept := few.Bytes()
	for r := range all.All() {
		if run, ok := few.Next(r); !ok || run != r {
			t.Fatalf("%v is missing", r)
		}
	}
	few.Remove(block.Range{Len: size})
	if few.Runs() != 0 {
		t.Errorf("something lies outside of the disk")
	}
	if kept > size {
		t.Errorf("%d bytes", kept)
	}
}
