package hrl_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/hrl"
)

// identity is that of a small log; IDs are fixed, so that files are the same every time.
func identity(size, blockSize int64) hrl.Identity {
	return hrl.Identity{
		Replica: hrl.ID{1, 2, 3}, VM: "web", Disk: "system", Kind: hrl.Redo,
		From: hrl.Pos{Seq: 41, ID: hrl.ID{4, 1}}, To: hrl.Pos{Seq: 42, ID: hrl.ID{4, 2}},
		SizeBefore: size, Size: size, BlockSize: blockSize,
		CutAt: time.Date(2024, 2, 29, 12, 30, 0, 123456789, time.UTC), AppConsistent: true,
		DataWriteGUID: [16]byte{0xd, 0xe},
	}
}

func create(t testing.TB, fs durable.FS, name string, id hrl.Identity) *hrl.Writer {
	t.Helper()
	w, err := hrl.Create(fs, name, id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Abort() })
	return w
}

// noise is n bytes, none of them zero.
func noise(r *rand.Rand, n int64) []byte {
	p := make([]byte, n+7)
	for i := 0; i < int(n); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], r.Uint64()|0x0101010101010101)
	}
	return p[:n]
}

// replay verifies a log and writes it over disk.
func replay(l *hrl.Log, disk []byte) error {
	ctx := context.Background()
	if err := l.Verify(ctx); err != nil {
		return err
	}
	for r, err := range l.Records(ctx) {
		if err != nil {
			return err
		}
		if err := l.Read(r, disk[r.Off:r.End()], 0); err != nil {
			return err
		}
	}
	return nil
}

func TestWriteAndRead(t *testing.T) {
	const size, bs = 3<<20 + 512*3, 4096
	name := filepath.Join(t.TempDir(), "a.hrl")
	r := rand.New(rand.NewPCG(1, 2))
	w := create(t, durable.OS(), name, identity(size, bs))
	want := make([]byte, size)
	put := func(off, n int64) {
		p := noise(r, n)
		copy(want[off:], p)
		if err := w.Append(off, p, nil); err != nil {
			t.Fatal(err)
		}
	}
	put(0, 2<<20)
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	put(3<<20, 512*3) // the last block is short
	if err := w.Zero(block.Range{Off: 2<<20 + bs, Len: 10 * bs}); err != nil {
		t.Fatal(err)
	}
	put(2<<20, bs)
	info, err := w.Seal()
	if err != nil {
		t.Fatal(err)
	}
	f, err := durable.OS().Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l, err := hrl.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	got := bytes.Repeat([]byte{7}, size)
	for i := range want {
		if want[i] == 0 && !(i >= 2<<20+bs && i < 2<<20+11*bs) {
			want[i] = 7
		}
	}
	if err := replay(l, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("the content is another one")
	}
	if g := l.Info(); *g.Identity != *info.Identity || !g.Sealed || g.Torn != 0 || g.DataBytes != 2<<20+bs+512*3 || g.ZeroBytes != 10*bs {
		t.Fatalf("%+v", g)
	}
	if *info.Identity != identity(size, bs) {
		t.Fatalf("%+v", info.Identity)
	}
}
