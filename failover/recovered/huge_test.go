package recovered_test

import (
	"context"
	"testing"
	"time"

	"sitrep/failover/recovered"
	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
)

// patches is a disk of 64 TiB whose data lies in runs of a few KiB, all of it.
type patches struct{ run int64 }

func (p patches) Size() int64 { return 64 << 40 }

func (p patches) ReadAt(b []byte, _ int64) (int, error) { clear(b); return len(b), nil }

func (p patches) Extent(off, n int64) (block.Extent, error) {
	kind := block.Zero
	if off/p.run%2 == 1 {
		kind = block.Data
	}
	return block.Extent{Range: block.Range{Off: off, Len: min(n, (off/p.run+1)*p.run-off)}, Kind: kind}, nil
}

// TestHugeIsInterrupted: whatever walks over a disk answers a signal at once, also where it only counts.
func TestHugeIsInterrupted(t *testing.T) {
	for name, fs := range map[string]durable.FS{"counting": durable.OS(), "copying": crashfs.New()} {
		t.Run(name, func(t *testing.T) {
			ctx, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer stop()
			cancel, end := context.WithCancel(t.Context())
			defer end()
			go func() { <-ctx.Done(); end() }()
			began := time.Now()
			c := config(fs, patches{4096}, t.TempDir()+"/d", disk.QCOW2)
			_, err := recovered.Make(cancel, c)
			if !fault.Cancelled(err) || time.Since(began) > 2*time.Second {
				t.Fatalf("after %v: %v", time.Since(began), err)
			}
		})
	}
}

// TestHugeHole: a disk of 64 TiB with nothing on it is made at once.
func TestHugeHole(t *testing.T) {
	fs := crashfs.New()
	began := time.Now()
	must(recovered.Make(t.Context(), config(fs, patches{1 << 62}, "/v/d", disk.Raw)))(t)
	if took := time.Since(began); took > 2*time.Second {
		t.Fatal(took)
	}
}
