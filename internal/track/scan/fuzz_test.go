package scan

import (
	"encoding/json"
	"strings"
	"testing"

	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/hrl"
)

// FuzzRecord: any bytes are a record that is written again as the same, or damage.
func FuzzRecord(f *testing.F) {
	raw, err := json.Marshal(&record{Format: formatVersion, VM: "vm", Position: hrl.Pos{}.Next(), Disks: []diskRecord{
		{Name: "d", Size: 5 << 20, BlockSize: 65536, Sums: 1, Redo: &redo{Number: 2, Entries: 1, Sum: "00"}, Stamps: []stamp{{}}},
	}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"format":1,"disks":[{"size":-1,"block_size":0}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if r, err := parseRecord("x", raw); err == nil {
			checkRecord(t, r)
		}
		// The same behind a right checksum: what is inside is checked too.
		var m json.RawMessage
		if json.Unmarshal(raw, &m) != nil {
			return
		}
		data, err := json.Marshal(envelope{Sum: sumOf(m), Record: m})
		if err != nil {
			t.Fatal(err)
		}
		if r, err := parseRecord("x", data); err == nil {
			checkRecord(t, r)
		}
	})
}

func checkRecord(t *testing.T, r *record) {
	for _, d := range r.Disks {
		if d.blocks() < 0 {
			t.Fatalf("%d blocks", d.blocks())
		}
	}
}

// FuzzRedo: any bytes are a redo file that stays within its disk, or damage.
func FuzzRedo(f *testing.F) {
	f.Add(entry{first: 3, n: 1, sum: [16]byte{1}}.append(nil), int64(1))
	f.Add(entry{first: 1 << 62, n: 1 << 62}.append(nil), int64(1))
	f.Add([]byte(strings.Repeat("\xff", 64)), int64(-1))
	f.Fuzz(func(t *testing.T, data []byte, entries int64) {
		fsys := crashfs.New()
		tr := &Tracker{fs: fsys, c: Config{VM: "vm", Dir: "/"}}
		d := diskRecord{Name: "d", Size: 100 * 512, BlockSize: 512, Sums: 1, Redo: &redo{Number: 2, Entries: entries, Sum: sumOf(data)}}
		for name, content := range map[string][]byte{tr.sumsPath("d", 1): nil, tr.redoPath("d", 2): data} {
			if err := durable.WriteFile(fsys, name, content); err != nil {
				t.Fatal(err)
			}
		}
		if tr.replay(d) != nil {
			return
		}
		s, err := fsys.Stat(tr.sumsPath("d", 1))
		if err != nil || s.Size > 100*16 {
			t.Fatalf("the sums have %d bytes (%v)", s.Size, err)
		}
	})
}
