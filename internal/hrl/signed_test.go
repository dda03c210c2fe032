package hrl

import (
	"context"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// patched is a file of which some bytes read differently.
type patched struct {
	durable.File
	p []byte
}

func (f patched) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(f.p)) {
		return 0, io.EOF
	}
	n := copy(p, f.p[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// TestSignedDamage damages logs and signs them again: what the digests would catch has to be caught without them too.
func TestSignedDamage(t *testing.T) {
	id := Identity{VM: "v", Disk: "d", Kind: Redo, To: Pos{Seq: 1}, Size: 10*4096 + 5, BlockSize: 4096, CutAt: time.Unix(1e9, 0)}
	name := filepath.Join(t.TempDir(), "x")
	w, err := Create(durable.OS(), name, id)
	if err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 2*4096)
	data[0], data[4096] = 1, 2
	if err := w.Append(4096, data, nil); err != nil {
		t.Fatal(err)
	}
	if err := w.Zero(block.Range{Off: 8 * 4096, Len: 4096}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Seal(); err != nil {
		t.Fatal(err)
	}
	f, err := durable.OS().Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	whole, err := durable.ReadFile(durable.OS(), name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	verify := func(change func(h *header, meta []byte)) error {
		p := slices.Clone(whole)
		h, err := decodeHeader(name, p[:headerSize])
		if err != nil {
			t.Fatal(err)
		}
		loc := int64(len(p) - metadataSize)
		meta := p[loc:]
		change(h, meta)
		for e := range slices.Chunk(meta[metaHeaderSize:], entrySize) {
			if e[eOperation] != 0 && e[eFlags] <= 1 {
				le.PutUint32(e[eChecksum:], checksum(e, eChecksum))
			}
		}
		d := blockDigest(h.uniqueID, loc, digest(p[headerSize+mDigest:]), meta)
		copy(meta[mDigest:], d[:])
		le.PutUint32(meta[mChecksum:], checksum(meta[:metaHeaderSize], mChecksum))
		copy(p, h.encode(d))
		l, err := Open(patched{f, p})
		if err != nil {
			return err
		}
		return l.Verify(context.Background())
	}
	if err := verify(func(*header, []byte) {}); err != nil {
		t.Fatal(err)
	}
	entry := func(i int, meta []byte) []byte { return meta[metaHeaderSize+i*entrySize:] }
	for _, c := range []struct {
		name   string
		change func(h *header, meta []byte)
		text   string
	}{
		{"entry beyond the disk", func(_ *header, m []byte) { le.PutUint64(entry(1, m), 11*4096) }, "not in the disk"},
		{"entry not at a block", func(_ *header, m []byte) { le.PutUint64(entry(1, m), 512) }, "whole blocks"},
		{"entry of nothing", func(_ *header, m []byte) { le.PutUint32(entry(1, m)[eDataLength:], 0) }, "not in the disk"},
		{"entry of part of a block", func(_ *header, m []byte) { le.PutUint32(entry(1, m)[eDataLength:], 5) }, "whole blocks"},
		{"less data than there is", func(_ *header, m []byte) { le.PutUint32(entry(0, m)[eDataLength:], 4096) }, "belong to no entry"},
		{"more data than there is", func(_ *header, m []byte) { le.PutUint32(entry(1, m)[eDataLength:], 2*4096) }, "does not fit"},
		{"operation", func(_ *header, m []byte) { entry(1, m)[eOperation] = 2 }, "operation"},
		{"too many entries", func(_ *header, m []byte) { le.PutUint32(m[mEntries:], 200) }, "do not fit"},
		{"more entries than were written", func(_ *header, m []byte) { le.PutUint32(m[mEntries:], 3) }, ""},
		{"previous metadata too near", func(_ *header, m []byte) { le.PutUint64(m, 4095) }, "before it"},
		{"previous metadata in the header", func(_ *header, m []byte) { le.PutUint64(m, uint64(len(whole)-metadataSize-4095)) }, "before it"},
		{"previous metadata wraps", func(_ *header, m []byte) { le.PutUint64(m, 1<<64-4096) }, "before it"},
		{"zeros that are data", func(_ *header, m []byte) { entry(1, m)[eFlags] = 0 }, "zeros"},
		{"a wrong sum", func(_ *header, m []byte) { entry(2, m)[3] ^= 1 }, "sum"},
		{"sums in another order", func(_ *header, m []byte) {
			s := entry(2, m)
			for i := range 16 {
				s[i], s[16+i] = s[16+i], s[i]
			}
		}, "sum"},
		{"data that is zeros", func(_ *header, m []byte) { entry(0, m)[eFlags] = flagZero }, "speaks of"},
		{"fewer records", func(h *header, _ []byte) { h.entries-- }, "speaks of"},
		{"fewer data", func(h *header, _ []byte) { h.ours.dataBytes-- }, "speaks of"},
		{"fewer zeros", func(h *header, _ []byte) { h.ours.zeroBytes-- }, "speaks of"},
		{"another disk", func(h *header, _ []byte) { h.ours.id.Disk = "e" }, "contradicts"},
		{"another log", func(h *header, _ []byte) { h.uniqueID[0] ^= 1 }, "contradicts"},
		{"metadata size", func(h *header, _ []byte) { h.metadataSize = 8192 }, "contradicts"},
		{"no direction", func(h *header, _ []byte) { h.ours.id.To.Seq = 0 }, "cannot lead"},
		{"unsealed beyond its end", func(h *header, _ []byte) { h.eol, h.currentSize = 0, uint64(len(whole)+1) }, "ends here"},
		{"unsealed without content", func(h *header, _ []byte) { h.eol, h.currentSize = 0, headerSize }, "first metadata"},
		{"two ends", func(h *header, _ []byte) { h.currentSize-- }, "goes on"},
	} {
		err := verify(c.change)
		if e := fault.Find(err); e == nil || e.Code != fault.LogCorrupt || e.Path == "" || !e.HasOff || !strings.Contains(e.Msg, c.text) {
			t.Errorf("%s: %v, want %q", c.name, err, c.text)
		}
	}
}

// TestSeen compares the bitmap with a plain one.
func TestSeen(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	const size = 4*pieceBits + 1000
	var s seen
	model := make([]bool, size)
	for range 2000 {
		first := r.Int64N(size)
		end := min(first+1+r.Int64N(300), size)
		switch r.IntN(200) {
		case 0:
			first, end = pieceBits*r.Int64N(4), size
		case 1:
			first -= first % pieceBits
			end = min(first+pieceBits, size)
		}
		free := !slices.Contains(model[first:end], true)
		if s.any(first, end) == free || s.add(first, end) != free {
			t.Fatalf("seed %d: [%d, %d) is free: %v", seed, first, end, free)
		}
		if free {
			for i := first; i < end; i++ {
				model[i] = true
			}
		}
	}
}
