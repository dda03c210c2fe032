package hrl_test

import (
	"bytes"
	"encoding/binary"
	"flag"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
)

var update = flag.Bool("update", false, "write the logs of testdata/hrl anew")

const smallSize, smallBlock = 16*512 - 100, 512

// small is a log with data, zeros, a short last block and three batches (one of nothing, one for each commit). Of the
// unsealed one the last commit is the second, and a torn tail follows. Contents are what replay makes of a disk of 7s.
type small struct {
	sealed, unsealed   []byte
	content, committed []byte
	holes              []block.Range // in the sealed file
}

func smallLog(t testing.TB) small {
	dir := t.TempDir()
	var s small
	r := rand.New(rand.NewPCG(3, 4))
	disk := bytes.Repeat([]byte{7}, smallSize)
	id := identity(smallSize, smallBlock)
	name := filepath.Join(dir, hrl.FileName(id.VM, id.Disk, id.To))
	w := create(t, durable.OS(), name, id)
	put := func(off, n int64) {
		p := noise(r, n)
		copy(disk[off:], p)
		if err := w.Append(off, p, nil); err != nil {
			t.Fatal(err)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	put(2*512, 1024)
	put(0, 512)
	must(w.Zero(block.Range{Off: 8 * 512, Len: 1024}))
	clear(disk[8*512 : 10*512])
	must(w.Commit())
	s.committed = bytes.Clone(disk)
	put(15*512, 412)
	s.unsealed = append(readFile(t, name), bytes.Repeat([]byte{0x55}, 700)...)
	_, err := w.Seal()
	must(err)
	s.sealed, s.content = readFile(t, name), disk
	s.holes = []block.Range{{Off: 8192 + 1536, Len: 1024}}
	return s
}

// TestVectors keeps the format what it is.
func TestVectors(t *testing.T) {
	s := smallLog(t)
	for name, p := range map[string][]byte{"sealed.hrl": s.sealed, "unsealed.hrl": s.unsealed} {
		if *update {
			if err := os.WriteFile(vectors+name, p, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(readFile(t, vectors+name), p) {
			t.Errorf("%s: the same log gives another file", name)
		}
	}
}

// TestPlainReader reads our log with nothing but the specification.
func TestPlainReader(t *testing.T) {
	s := smallLog(t)
	got := bytes.Repeat([]byte{7}, smallSize)
	if err := specReplay(bytes.NewReader(s.sealed), got); err != nil || !bytes.Equal(got, s.content) {
		t.Fatalf("a plain reader gets another content: %v", err)
	}
	h, list, err := specRead(bytes.NewReader(s.sealed))
	if err != nil {
		t.Fatal(err)
	}
	id := identity(smallSize, smallBlock)
	if uint64(len(s.sealed)) != h.CurrentSize || h.CurrentSize != h.EOLLocation || h.TotalMetadataEntries != uint64(len(list)) ||
		h.UniqueID != hrl.LogID(hrl.Redo, id.To, id.Disk) || h.PreviousUniqueID != hrl.LogID(hrl.Redo, id.From, id.Disk) ||
		h.Vhd2DataWriteGUID != id.DataWriteGUID {
		t.Fatalf("%+v", h)
	}
	if _, _, err := specRead(bytes.NewReader(s.unsealed)); err == nil {
		t.Fatal("a plain reader takes an unsealed log for a closed one")
	}
}

// attempt replays p over a disk of 7s.
func attempt(p []byte) (hrl.Info, []byte, error) {
	got := bytes.Repeat([]byte{7}, smallSize)
	info, err := replayBytes(p, got)
	return info, got, err
}

func TestEveryTruncation(t *testing.T) {
	t.Parallel()
	s := smallLog(t)
	for n := range s.sealed {
		if _, _, err := attempt(s.sealed[:n]); !fault.Is(err, fault.LogCorrupt) {
			t.Fatalf("sealed log cut to %d bytes: %v", n, err)
		}
	}
	info, _, err := attempt(s.unsealed)
	if err != nil {
		t.Fatal(err)
	}
	for n := range s.unsealed {
		got, content, err := attempt(s.unsealed[:n])
		if n < int(info.End) {
			if !fault.Is(err, fault.LogCorrupt) {
				t.Fatalf("unsealed log cut to %d bytes: %v", n, err)
			}
			continue
		}
		if err != nil || !bytes.Equal(content, s.committed) || got.Torn != int64(n)-info.End || got.Sealed {
			t.Fatalf("unsealed log cut to %d bytes: %v, %+v", n, err, got)
		}
	}
	if _, _, err := attempt(append(bytes.Clone(s.sealed), 0)); !fault.Is(err, fault.LogCorrupt) {
		t.Fatalf("sealed log with one byte more: %v", err)
	}
}

func TestEveryBitFlip(t *testing.T) {
	t.Parallel()
	s := smallLog(t)
	info, _, err := attempt(s.unsealed)
	if err != nil {
		t.Fatal(err)
	}
	hole := s.holes[0]
	for _, c := range []struct {
		name    string
		p, want []byte
		end     int64
	}{
		{"sealed", s.sealed, s.content, int64(len(s.sealed))},
		{"unsealed", s.unsealed, s.committed, info.End},
	} {
		p := bytes.Clone(c.p)
		for i := range int64(len(p)) {
			for bit := range 8 {
				p[i] ^= 1 << bit
				_, got, err := attempt(p)
				p[i] ^= 1 << bit
				counts := i < c.end && (i < hole.Off || i >= hole.End())
				if counts && err == nil {
					t.Fatalf("%s: bit %d of byte %d is not noticed", c.name, bit, i)
				}
				if !counts && (err != nil || !bytes.Equal(got, c.want)) {
					t.Fatalf("%s: bit %d of byte %d, which means nothing: %v", c.name, bit, i, err)
				}
				if e := fault.Find(err); e != nil && (e.Path == "" || !e.HasOff) {
					t.Fatalf("%s: the error does not name the place: %v", c.name, err)
				}
			}
		}
	}
}

// mend makes the checksums of [MS-HRL] right again: they are no match for a mix-up, so the digests must be.
func mend(p []byte) {
	le := binary.LittleEndian
	end, size := int64(le.Uint64(p[44:])), int64(le.Uint32(p[56:]))
	if end == 0 {
		end = int64(le.Uint64(p[32:]))
	}
	for at := end - size; at >= 4096 && size >= 512 && at <= int64(len(p))-size; {
		m := p[at : at+size]
		le.PutUint32(m[12:], specChecksum(m[:32], 12))
		for i := range min(int64(le.Uint32(m[8:])), (size-32)/32) {
			e := m[32+32*i : 64+32*i]
			le.PutUint32(e[8:], specChecksum(e, 8))
		}
		back := int64(le.Uint64(m))
		if back <= 0 {
			break
		}
		at -= back
	}
	resum(p)
}

func TestEveryMendedBitFlip(t *testing.T) {
	t.Parallel()
	s := smallLog(t)
	info, _, _ := attempt(s.unsealed)
	for _, c := range []struct {
		name    string
		p, want []byte
		end     int64
	}{
		{"sealed", s.sealed, s.content, int64(len(s.sealed))},
		{"unsealed", s.unsealed, s.committed, info.End},
	} {
		for i := range c.end {
			if c.p[i] == 0 && i%64 != 0 { // of the zeros, some will do
				continue
			}
			for bit := range 8 {
				p := bytes.Clone(c.p)
				p[i] ^= 1 << bit
				mend(p)
				if bytes.Equal(p, c.p) {
					continue // it was a checksum
				}
				hole := i >= s.holes[0].Off && i < s.holes[0].End()
				got, content, err := attempt(p)
				if err == nil && got.Identity != nil && !hole {
					t.Fatalf("%s: bit %d of byte %d is not noticed", c.name, bit, i)
				}
				if err == nil && !hole && !bytes.Equal(content, c.want) {
					t.Fatalf("%s: bit %d of byte %d changes the content", c.name, bit, i)
				}
			}
		}
	}
}
