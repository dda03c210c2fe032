package hrl_test

import (
	"bytes"
	"context"
	"runtime"
	"testing"

	"sitrep/internal/hrl"
)

// FuzzOpen feeds any bytes to the reader. Half of the inputs have their checksums made right, to get past them.
func FuzzOpen(f *testing.F) {
	s := smallLog(f)
	foreign := &specLog{version: 0x10000, metadataSize: 512, perBlock: 3, dataSums: true}
	for i := range 8 {
		foreign.add(uint64(i*100), bytes.Repeat([]byte{byte(i)}, i*10))
	}
	for _, p := range [][]byte{s.sealed, s.unsealed, foreign.bytes(), nil} {
		f.Add(p, false)
		f.Add(p, true)
	}
	f.Fuzz(func(t *testing.T, p []byte, mended bool) {
		if mended && len(p) >= 4096 {
			p = bytes.Clone(p)
			mend(p)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		readAny(t, p)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20+200*uint64(len(p)) {
			t.Fatalf("%d bytes were allocated for a log of %d", n, len(p))
		}
	})
}

func readAny(t *testing.T, p []byte) {
	l, err := hrl.Open(&memFile{p: p})
	if err != nil {
		return
	}
	ctx := context.Background()
	verified := l.Verify(ctx)
	for r, err := range l.Records(ctx) {
		if err != nil {
			if verified == nil {
				t.Fatalf("verified, and then: %v", err)
			}
			return
		}
		if !r.Within(hrl.MaxDisk) || r.Empty() || r.At < 4096 || r.At > int64(len(p))-r.Len {
			t.Fatalf("%+v in a log of %d bytes", r, len(p))
		}
		if err := l.Read(r, make([]byte, min(r.Len, 4096)), 0); err != nil {
			t.Fatal(err)
		}
	}
}
