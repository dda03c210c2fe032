package replica_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/replica/replicatest"
)

func encoded(t testing.TB, change func(*replica.State)) []byte {
	t.Helper()
	s := replicatest.FirstState("vm")
	s.Applied = hrl.Pos{}.Next()
	s.Applying = &replica.Span{From: s.Applied, To: s.Applied.Next()}
	s.Pending = []replica.Segment{{Span: *s.Applying, Sizes: map[string]int64{"os": 1}}}
	s.Points = []replica.Point{{ID: "p1", At: s.Applied, Sizes: map[string]int64{"os": 1}}}
	s.Definition = json.RawMessage(`{"cpus": 2}`)
	change(&s)
	data, err := replica.Encode(s)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func code(err error) fault.Code {
	if e := fault.Find(err); e != nil {
		return e.Code
	}
	return ""
}

func TestDecodeReturnsWhatWasEncoded(t *testing.T) {
	data := encoded(t, func(*replica.State) {})
	s, err := replica.Decode(data, "ledger.json", "vm")
	if err != nil {
		t.Fatal(err)
	}
	again, err := replica.Encode(s)
	if err != nil || !bytes.Equal(again, data) {
		t.Fatalf("%v:\n%s\nbecame\n%s", err, data, again)
	}
}

func TestDecodeTruncated(t *testing.T) {
	data := bytes.TrimSpace(encoded(t, func(*replica.State) {}))
	for n := range len(data) {
		_, err := replica.Decode(data[:n], "ledger.json", "vm")
		if code(err) != fault.LedgerCorrupt {
			t.Fatalf("the first %d of %d bytes: %v", n, len(data), err)
		}
		if e := fault.Find(err); !e.HasOff || e.Off > int64(n) || e.Path != "ledger.json" {
			t.Fatalf("the first %d bytes: the place is %s, %d", n, e.Path, e.Off)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	none := func(*replica.State) {}
	replace := func(old, with string) []byte { return bytes.Replace(encoded(t, none), []byte(old), []byte(with), 1) }
	for name, c := range map[string]struct {
		data []byte
		want fault.Code
	}{
		"empty":                {nil, fault.LedgerCorrupt},
		"zeros":                {make([]byte, 4096), fault.LedgerCorrupt},
		"null":                 {[]byte("null"), fault.LedgerCorrupt},
		"list":                 {[]byte("[]"), fault.LedgerCorrupt},
		"unknown key":          {replace(`"vault"`, `"vualt"`), fault.LedgerCorrupt},
		"wrong type":           {replace(`"generation": 1`, `"generation": "1"`), fault.LedgerCorrupt},
		"something after":      {append(encoded(t, none), '{'), fault.LedgerCorrupt},
		"newer":                {replace(`"format": 1`, `"format": 2, "news": true`), fault.LedgerVersion},
		"no format":            {replace(`"format": 1`, `"format": 0`), fault.LedgerCorrupt},
		"other VM":             {encoded(t, func(s *replica.State) { s.VM = "other" }), fault.ReplicaForeign},
		"no replica id":        {encoded(t, func(s *replica.State) { s.Replica = hrl.ID{} }), fault.LedgerCorrupt},
		"disk twice":           {encoded(t, func(s *replica.State) { s.Disks[1].Name = "OS" }), fault.LedgerCorrupt},
		"disk outside":         {encoded(t, func(s *replica.State) { s.Disks[1].Name = "../../x" }), fault.LedgerCorrupt},
		"size negative":        {encoded(t, func(s *replica.State) { s.Disks[1].Size = -512 }), fault.LedgerCorrupt},
		"size huge":            {encoded(t, func(s *replica.State) { s.Disks[1].Size = 1 << 62 }), fault.LedgerCorrupt},
		"size odd":             {encoded(t, func(s *replica.State) { s.Disks[1].Size++ }), fault.LedgerCorrupt},
		"block size 0":         {encoded(t, func(s *replica.State) { s.Disks[1].BlockSize = 0 }), fault.LedgerCorrupt},
		"block size 3 KiB":     {encoded(t, func(s *replica.State) { s.Disks[1].BlockSize = 3 << 10 }), fault.LedgerCorrupt},
		"block size 2 MiB":     {encoded(t, func(s *replica.State) { s.Disks[1].BlockSize = 2 << 20 }), fault.LedgerCorrupt},
		"seeded too far":       {encoded(t, func(s *replica.State) { s.Disks[1].Seeded = s.Disks[1].Size + 1 }), fault.LedgerCorrupt},
		"point twice":          {encoded(t, func(s *replica.State) { s.Points = append(s.Points, s.Points[0]) }), fault.LedgerCorrupt},
		"point without a name": {encoded(t, func(s *replica.State) { s.Points[0].ID = "" }), fault.LedgerCorrupt},
	} {
		if _, err := replica.Decode(c.data, "ledger.json", "vm"); code(err) != c.want {
			t.Errorf("%s: the error is %v, want one of code %s", name, err, c.want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encoded(f, func(s *replica.State) { // the same bytes in every process
		s.Replica, s.Applied, s.Applying = hrl.ID{1}, hrl.Pos{Seq: 1, ID: hrl.ID{2}}, nil
		s.Pending, s.Points = nil, []replica.Point{{ID: "p", At: s.Applied}}
	}))
	f.Add([]byte(`{"format":1,"vm":"vm","disks":[{}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := replica.Decode(data, "ledger.json", "vm")
		if err != nil {
			if c := code(err); c != fault.LedgerCorrupt && c != fault.LedgerVersion && c != fault.ReplicaForeign {
				t.Fatalf("the code is %q: %v", c, err)
			}
			return
		}
		again, err := replica.Encode(s)
		if err != nil {
			t.Fatalf("what was decoded cannot be encoded: %v", err)
		}
		if _, err := replica.Decode(again, "ledger.json", "vm"); err != nil {
			t.Fatalf("what was encoded cannot be decoded: %v", err)
		}
	})
}

func TestRetain(t *testing.T) {
	for _, c := range []struct{ have, keep, kept int }{
		{0, 3, 0}, {1, 0, 1}, {1, 3, 1}, {3, 3, 3}, {5, 3, 3}, {5, 1, 1}, {5, 0, 1}, {5, -4, 1},
	} {
		points := make([]replica.Point, c.have)
		for i := range points {
			points[i].ID = string(rune('a' + i))
		}
		kept, dropped := replica.Retain(points, c.keep)
		if len(kept) != c.kept || !slices.EqualFunc(slices.Concat(dropped, kept), points, func(a, b replica.Point) bool { return a.ID == b.ID }) {
			t.Errorf("of %d points %d are to be kept: %v are, %v are dropped", c.have, c.keep, kept, dropped)
		}
	}
}

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "web server 1", "disk.0", "Übung", strings.Repeat("x", 200)} {
		if err := replica.CheckName(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", ".", "..", ".x", "a/b", `a\b`, "c:", "a\x00b", " a", "a ", "a\n", strings.Repeat("x", 201)} {
		if replica.CheckName(name) == nil {
			t.Errorf("%q is taken for a name", name)
		}
	}
}

func TestCheckSave(t *testing.T) {
	stored := replicatest.FirstState("vm")
	stored.Version, stored.Generation = 7, 3
	for name, c := range map[string]struct {
		change func(*replica.State)
		want   fault.Code
	}{
		"same":                      {func(*replica.State) {}, ""},
		"takes over":                {func(s *replica.State) { s.Generation = 4 }, ""},
		"old version":               {func(s *replica.State) { s.Version = 6 }, fault.LedgerConflict},
		"takes over an old version": {func(s *replica.State) { s.Version, s.Generation = 6, 4 }, fault.LedgerConflict},
		"old owner":                 {func(s *replica.State) { s.Generation = 2 }, fault.Fenced},
		"old owner, old version":    {func(s *replica.State) { s.Version, s.Generation = 6, 2 }, fault.Fenced},
		"other replica":             {func(s *replica.State) { s.Replica = hrl.NewID() }, fault.ReplicaForeign},
	} {
		next := stored
		c.change(&next)
		if err := replica.CheckSave(stored, next, "ledger.json"); code(err) != c.want {
			t.Errorf("%s: the error is %v, want one of code %q", name, err, c.want)
		}
	}
}
