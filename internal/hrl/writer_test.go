package hrl_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/sums"
)

// TestZeroRun records a disk of 1 TiB that was zeroed.
func TestZeroRun(t *testing.T) {
	const size, bs = 1 << 40, 64 << 10
	mem := crashfs.New()
	w := create(t, mem, "/x.hrl", identity(size, bs))
	p := noise(rand.New(rand.NewPCG(1, 1)), bs)
	if err := w.Append(size/2, p, nil); err != nil {
		t.Fatal(err)
	}
	for _, r := range []block.Range{{Off: 0, Len: size / 2}, {Off: size/2 + bs, Len: size/2 - bs}} {
		if err := w.Zero(r); err != nil {
			t.Fatal(err)
		}
	}
	if w.Zero(block.Range{Off: 5 << 30, Len: bs}) == nil {
		t.Fatal("a block in the middle of the zeros was taken twice")
	}
	info, err := w.Seal()
	if err != nil {
		t.Fatal(err)
	}
	if info.ZeroBytes != size-bs || info.Size < size {
		t.Fatalf("%+v", info)
	}
	if n := mem.Allocated(); n > 512<<10 {
		t.Fatalf("1 TiB of zeros takes %d bytes", n)
	}
	f, err := mem.Open("/x.hrl")
	if err != nil {
		t.Fatal(err)
	}
	l, err := hrl.Open(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Verify(context.Background()); err != nil {
		t.Fatal(err)
	}
	zero := int64(0)
	for r, err := range l.Records(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		if r.Zero {
			zero += r.Len
			some := []byte{1, 2, 3}
			if err := l.Read(r, some, r.Len-3); err != nil || !block.IsZero(some) {
				t.Fatal(err, some)
			}
		}
	}
	if zero != size-bs {
		t.Fatalf("%d bytes of zeros", zero)
	}
}

// TestEmpty seals a log without a record.
func TestEmpty(t *testing.T) {
	name := filepath.Join(t.TempDir(), "x")
	w := create(t, durable.OS(), name, identity(0, 4096))
	info, err := w.Seal()
	if err != nil {
		t.Fatal(err)
	}
	p := readFile(t, name)
	if _, err := replayBytes(p, nil); err != nil || info.Size != int64(len(p)) || len(p) != 8192 || info.Entries != 0 {
		t.Fatalf("%v: %+v", err, info)
	}
	if _, list, err := specRead(bytes.NewReader(p)); err != nil || len(list) != 0 {
		t.Fatalf("%v: %v", err, list)
	}
}

func TestWriterRefuses(t *testing.T) {
	const size, bs = 10*4096 + 100, 4096
	name := filepath.Join(t.TempDir(), "x")
	w := create(t, durable.OS(), name, identity(size, bs))
	p := noise(rand.New(rand.NewPCG(1, 1)), 2*bs)
	if err := w.Append(4*bs, p, nil); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"nothing":           w.Append(0, nil, nil),
		"negative":          w.Append(-bs, p, nil),
		"unaligned offset":  w.Append(1, p, nil),
		"unaligned length":  w.Append(0, p[:bs+1], nil),
		"beyond the disk":   w.Append(10*bs, p[:bs], nil),
		"far beyond":        w.Append(1<<62, p, nil),
		"too few sums":      w.Append(0, p, make([]sums.Sum, 1)),
		"a false zero sum":  w.Append(0, p, make([]sums.Sum, 2)),
		"a block twice":     w.Append(5*bs, p, nil),
		"a zero twice":      w.Zero(block.Range{Off: 3 * bs, Len: 2 * bs}),
		"zeros beyond":      w.Zero(block.Range{Off: 0, Len: 11 * bs}),
		"zeros overflowing": w.Zero(block.Range{Off: bs, Len: 1<<63 - 1}),
	} {
		if err == nil {
			t.Errorf("%s was not refused", what)
		}
	}
	if err := w.Append(10*bs, p[:100], nil); err != nil { // the short last block
		t.Fatal(err)
	}
	info, err := w.Seal()
	if err != nil || info.DataBytes != 2*bs+100 || info.Entries != 2 {
		t.Fatalf("%v: a refused call left a trace: %+v", err, info)
	}
	if _, err := w.Seal(); err == nil || w.Append(0, p, nil) == nil || w.Zero(block.Range{Len: bs}) == nil || w.Commit() == nil {
		t.Fatal("a sealed log can be written")
	}
	if err := w.Abort(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(name); err != nil {
		t.Fatal("Abort after Seal removed the log")
	}
	if _, err := hrl.Create(durable.OS(), name, identity(size, bs)); !errors.Is(err, fs.ErrExist) || fault.Find(err).Path != name {
		t.Fatalf("an existing log: %v", err)
	}
}

func TestIdentityRefused(t *testing.T) {
	for what, change := range map[string]func(*hrl.Identity){
		"no name":          func(id *hrl.Identity) { id.VM = "" },
		"long name":        func(id *hrl.Identity) { id.Disk = strings.Repeat("x", 256) },
		"no UTF-8":         func(id *hrl.Identity) { id.Disk = "\xff" },
		"no kind":          func(id *hrl.Identity) { id.Kind = 0 },
		"redo to the past": func(id *hrl.Identity) { id.From, id.To = id.To, id.From },
		"undo to the next": func(id *hrl.Identity) { id.Kind = hrl.Undo },
		"block size 0":     func(id *hrl.Identity) { id.BlockSize = 0 },
		"block size odd":   func(id *hrl.Identity) { id.BlockSize = 4097 },
		"block size big":   func(id *hrl.Identity) { id.BlockSize = 2 << 20 },
		"size":             func(id *hrl.Identity) { id.Size = -1 },
		"size huge":        func(id *hrl.Identity) { id.SizeBefore = hrl.MaxDisk + 1 },
		"time":             func(id *hrl.Identity) { id.CutAt = time.Time{} },
	} {
		id := identity(1<<20, 4096)
		change(&id)
		if _, err := hrl.Create(crashfs.New(), "/x", id); err == nil {
			t.Errorf("%s was not refused", what)
		}
	}
	id := identity(1<<20, 4096)
	id.VM, id.Disk = strings.Repeat("é", 127), strings.Repeat("d", 255)
	id.Kind, id.From, id.To = hrl.Undo, id.To, hrl.Pos{}
	id.AppConsistent = false
	mem := crashfs.New()
	if _, err := create(t, mem, "/x", id).Seal(); err != nil {
		t.Fatal(err)
	}
	f, _ := mem.Open("/x")
	if l, err := hrl.Open(f); err != nil || *l.Info().Identity != id || l.Info().PreviousUniqueID != hrl.LogID(hrl.Undo, id.From, id.Disk) {
		t.Fatalf("%v", err)
	}
}

// TestAbort leaves nothing, whatever went before it.
func TestAbort(t *testing.T) {
	for fail := range 2 {
		mem := crashfs.New()
		w := create(t, mem, "/x", identity(8<<20, 4096))
		if fail == 1 {
			mem.FailOn(func(op crashfs.Op) error {
				if op.Kind == crashfs.Write {
					return errDisk
				}
				return nil
			})
		}
		p := noise(rand.New(rand.NewPCG(1, 1)), 4096)
		for i := range int64(2000) {
			if err := w.Append(i*4096, p, nil); err != nil {
				break
			}
		}
		if fail == 1 {
			if _, err := w.Seal(); !errors.Is(err, errDisk) || fault.Find(err) == nil || fault.Find(err).Path == "" {
				t.Fatalf("the failed write is not reported: %v", err)
			}
		}
		if err := w.Abort(); err != nil {
			t.Fatal(err)
		}
		if list, err := mem.ReadDir("/"); err != nil || len(list) != 0 {
			t.Fatalf("%v %v", list, err)
		}
		if err := w.Abort(); err != nil {
			t.Fatal(err)
		}
	}
}

var errDisk = errors.New("the disk fails")

func TestNames(t *testing.T) {
	to := hrl.Pos{Seq: 0x2a, ID: hrl.ID{0xab, 0xcd, 0xef, 1, 2}}
	if got := hrl.FileName("a.b", "c", to); got != "a.b.c.000000000000002a-abcdef01.hrl" {
		t.Fatal(got)
	}
	if seq, ok := hrl.ParseFileName(hrl.FileName("a.b", "c", to), "a.b", "c"); !ok || seq != 0x2a {
		t.Fatal(seq, ok)
	}
	if disk, seq, ok := hrl.ParseShelfName(hrl.ShelfName("c.d", to)); !ok || seq != 0x2a || disk != "c.d" {
		t.Fatal(disk, seq, ok)
	}
	for _, name := range []string{
		"", ".hrl", "c.hrl", ".000000000000002a-abcdef01.hrl", "c.000000000000002A-abcdef01.hrl", "c.00000000000002a-abcdef01.hrl",
		"c.000000000000002a-abcdef01.hrl.tmp", "c-000000000000002a-abcdef01.hrl", "c.000000000000002a-abcdeg01.hrl",
		"c.000000000000002a.abcdef01.hrl", "c.+00000000000002a-abcdef01.hrl", "c.0000000-000002a-abcdef012.hrl",
	} {
		if disk, seq, ok := hrl.ParseShelfName(name); ok {
			t.Errorf("%q is taken for %q %d", name, disk, seq)
		}
	}
	if _, ok := hrl.ParseFileName("a.b.000000000000002a-abcdef01.hrl", "a", "c"); ok {
		t.Error("the log of another disk")
	}
}

// TestInterrupted stops reading when the caller does not want it any more.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	l, err := hrl.Open(&memFile{p: smallLog(t).sealed})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Verify(ctx); !fault.Is(err, fault.Interrupted) {
		t.Fatal(err)
	}
	for _, err := range l.Records(ctx) {
		if !fault.Is(err, fault.Interrupted) {
			t.Fatal(err)
		}
	}
}

// TestCutAtLocal has the writer say of its log what a reader will.
func TestCutAtLocal(t *testing.T) {
	id := identity(1<<20, 4096)
	id.CutAt = time.Now()
	mem := crashfs.New()
	info, err := create(t, mem, "/x", id).Seal()
	if err != nil {
		t.Fatal(err)
	}
	f, err := mem.Open("/x")
	if err != nil {
		t.Fatal(err)
	}
	if l, err := hrl.Open(f); err != nil || *l.Info().Identity != *info.Identity || !info.Identity.CutAt.Equal(id.CutAt) {
		t.Fatalf("%v: %v, %v", err, info.Identity.CutAt, id.CutAt)
	}
}
