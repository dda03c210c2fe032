package hrl_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/hrl"
)

const vectors = "../../testdata/hrl/"

// TestPublishedExample builds the log of [MS-HRL] section 3 from the published fields and checksums. The checksum of the
// header does not follow from the published fields; all others do, and are taken as they are printed.
func TestPublishedExample(t *testing.T) {
	out := make([]byte, 332288)
	h := specHeader{
		LogFormatVersion: 0x20000, TimeStamp: 539842380, CreatorVersion: 0xA0000, CurrentSize: 332288, EOLLocation: 332288,
		MetadataSize: 4096, LastModifiedTimeStamp: 539842384, TotalMetadataEntries: 58,
		UniqueID:          [16]byte{0xff, 0xc7, 0x2f, 0x57, 0x03, 0x1f, 0xab, 0x49, 0xb3, 0xc5, 0x30, 0xa6, 0x65, 0xb8, 0xe2, 0x0c},
		PreviousUniqueID:  [16]byte{0x46, 0x4b, 0xae, 0xa8, 0xad, 0xf7, 0x02, 0x44, 0x87, 0xaa, 0x5b, 0x33, 0xe9, 0xf8, 0x9c, 0x77},
		Vhd2DataWriteGUID: [16]byte{0x57, 0x5c, 0xbe, 0xb9, 0xbe, 0xf8, 0x03, 0x55, 0x98, 0xbb, 0x6c, 0x44, 0xfa, 0xf9, 0xac, 0x87},
	}
	copy(h.Cookie[:], "msctlog ")
	copy(h.CreatorApplication[:], "ct  ")
	h.Checksum = specChecksum(pack(h), 40)
	copy(out, pack(h))
	copy(out[4096:], pack(specMetadata{Checksum: 4294967295}))
	copy(out[328192:], pack(specMetadata{PreviousMetadataLocation: 324096, ValidMetadataEntries: 58, Checksum: 4294966991}))
	r := rand.New(rand.NewPCG(58, 58))
	copy(out[8192:], noise(r, 320000))
	want := make([]hrl.Record, 58)
	for line := range strings.Lines(string(readFile(t, vectors+"example.txt"))) {
		var n int
		var e specEntry
		if _, err := fmt.Sscan(line, &n, &e.MetaOperation, &e.DataLength, &e.ByteOffset, &e.TimeStamp, &e.Checksum); err != nil {
			continue // a comment
		}
		copy(out[328192+32*n:], pack(e))
		want[n-1].Off, want[n-1].Len = int64(e.ByteOffset), int64(e.DataLength)
		want[n-1].Time = time.Date(2017, 2, 8, 4, 13, int(e.TimeStamp-539842380), 0, time.UTC)
	}
	l, err := hrl.Open(&memFile{p: out})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Verify(context.Background()); err != nil {
		t.Fatal(err)
	}
	at, i := int64(8192), 0
	for r, err := range l.Records(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		if r.Range != want[i].Range || r.At != at || !r.Time.Equal(want[i].Time) || r.Zero || r.Sums != nil {
			t.Fatalf("record %d is %+v, published is %+v", i+1, r, want[i])
		}
		at += r.Len
		i++
	}
	if i != 58 || at != 328192 {
		t.Fatalf("%d records up to %d", i, at)
	}
	info := l.Info()
	if info.Identity != nil || info.Version != 2 || !info.Sealed || info.Torn != 0 || info.Entries != 58 || info.End != 332288 ||
		info.DataBytes != -1 || info.DataWriteGUID != h.Vhd2DataWriteGUID || info.UniqueID != h.UniqueID ||
		info.PreviousUniqueID != h.PreviousUniqueID || !info.Created.Equal(time.Date(2017, 2, 8, 4, 13, 0, 0, time.UTC)) {
		t.Fatalf("%+v", info)
	}
}

// TestForeign reads logs of other writers, of every shape that the specification allows.
func TestForeign(t *testing.T) {
	for _, version := range []uint32{0x10000, 0x20000} {
		for _, size := range []uint32{512, 4096, 12800, 1 << 20} {
			for _, sums := range []bool{false, true} {
				for _, slack := range []int{0, 100} {
					name := fmt.Sprintf("%#x/%d/%v/%d", version, size, sums, slack)
					t.Run(name, func(t *testing.T) { testForeign(t, version, size, sums, slack) })
				}
			}
		}
	}
}

func testForeign(t *testing.T, version, size uint32, dataSums bool, slack int) {
	r := rand.New(rand.NewPCG(uint64(size), 1))
	s := &specLog{version: version, metadataSize: size, dataSums: dataSums, slack: slack, perBlock: 7}
	want := make([]byte, 1<<16)
	for range 40 {
		off, n := r.IntN(60000), r.IntN(5000) // any offset and length, overlapping; later ones count
		p := noise(r, int64(n))
		copy(want[off:], p)
		s.add(uint64(off), p[:min(n, len(want)-off)])
	}
	p := s.bytes()
	got := make([]byte, len(want))
	info, err := replayBytes(p, got)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatal("another content: ", err)
	}
	if info.Identity != nil || info.Version != int(version>>16) || info.Entries != 40 || info.MetadataSize != int64(size) {
		t.Fatalf("%+v", info)
	}
	if version == 0x10000 && info.DataWriteGUID != [16]byte{} {
		t.Fatal("version 1 has no DataWriteGuid")
	}
	if dataSums {
		p[4096+int(size)+slack] ^= 1
		if _, err := replayBytes(p, got); !fault.Is(err, fault.LogCorrupt) {
			t.Fatalf("damaged data: %v", err)
		}
	}
}

// resum makes the header's checksum right again.
func resum(p []byte) []byte {
	binary.LittleEndian.PutUint32(p[40:], specChecksum(p[:4096], 40))
	return p
}

func TestForeignRefused(t *testing.T) {
	build := func(change func(*specLog)) []byte {
		s := &specLog{version: 0x20000, metadataSize: 4096, cookieEnd: ' ', perBlock: 100}
		s.add(0, []byte("data"))
		change(s)
		return s.bytes()
	}
	set := func(off int, b ...byte) []byte {
		p := build(func(*specLog) {})
		copy(p[off:], b)
		return p
	}
	entry := 4096 + 4096 + 4 + 32
	for _, c := range []struct {
		name string
		p    []byte
		code fault.Code
	}{
		{"empty", nil, fault.LogCorrupt},
		{"zeros", make([]byte, 8192), fault.LogCorrupt},
		{"another file", []byte("conectix is no log, it is a VHD"), fault.LogForeign},
		{"only a cookie", []byte("msctlog "), fault.LogCorrupt},
		{"newer", set(8, 0, 0, 3), fault.LogVersion},
		{"newer and short", set(8, 0, 0, 3)[:100], fault.LogVersion},
		{"newer minor", set(8, 1), fault.LogVersion},
		{"newer format of ours", set(126, 'S', 'I', 'T', 'R', 'E', 'P', 2), fault.LogVersion},
		{"short", set(0)[:4095], fault.LogCorrupt},
		{"checksum", set(200, 1), fault.LogCorrupt},
		{"error code", resum(set(52, 1)), fault.LogCorrupt},
		{"file type", resum(set(104, 1)), fault.LogCorrupt},
		{"not closed", build(func(s *specLog) { s.open = true }), fault.LogTorn},
		{"metadata size 0", resum(set(56, 0, 0)), fault.LogCorrupt},
		{"metadata size odd", resum(set(56, 1, 2)), fault.LogCorrupt},
		{"metadata size huge", resum(set(56, 0, 0, 0, 0x80)), fault.LogCorrupt},
		{"end in the header", resum(set(44, 0, 0x10, 0)), fault.LogCorrupt},
		{"end beyond the file", resum(set(44, 0, 0, 0, 1)), fault.LogCorrupt},
		{"end beyond int64", resum(set(44, 0, 0, 0, 0, 0, 0, 0, 0xff)), fault.LogCorrupt},
		{"metadata checksum", set(entry-32+8, 7), fault.LogCorrupt},
		{"entry checksum", set(entry, 7), fault.LogCorrupt},
	} {
		if _, err := replayBytes(c.p, make([]byte, 4096)); !fault.Is(err, c.code) {
			t.Errorf("%s: %v, want %s", c.name, err, c.code)
		}
	}
	bad := func(name string, e specEntry) {
		p := build(func(s *specLog) { s.entries[0] = e })
		if _, err := replayBytes(p, make([]byte, 4096)); !fault.Is(err, fault.LogCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	bad("operation", specEntry{DataLength: 4, MetaOperation: 2})
	bad("offset", specEntry{DataLength: 4, MetaOperation: 1, ByteOffset: hrl.MaxDisk - 3})
	bad("offset overflow", specEntry{DataLength: 4, MetaOperation: 1, ByteOffset: 1<<64 - 4})
	bad("length", specEntry{DataLength: 5, MetaOperation: 1})
	bad("huge length", specEntry{DataLength: 1<<32 - 1, MetaOperation: 1})
}
