package replica_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sitrep/internal/replica"
)

// TestOlderLedgers reads what earlier versions have written, as testdata has it, and writes it again without a loss.
func TestOlderLedgers(t *testing.T) {
	files, err := filepath.Glob("testdata/ledgers/*.json")
	if err != nil || len(files) < 4 {
		t.Fatalf("%d ledgers: %v", len(files), err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		must(t, err)
		st, err := replica.Decode(data, file, "web01")
		if err != nil {
			t.Error(err)
			continue
		}
		if want := strings.TrimSuffix(file, ".json"); !strings.HasSuffix(want, string(st.Phase)) {
			t.Errorf("%s: the phase is %s", file, st.Phase)
		}
		if len(st.Points) != 3 || len(st.Disks) != 2 || st.Disk("os").Seal == nil || st.Point(st.Points[2].ID).At != st.Applied {
			t.Errorf("%s is read as %+v", file, st)
		}
		again, err := replica.Encode(st)
		must(t, err)
		var before, after any
		must(t, json.Unmarshal(data, &before))
		must(t, json.Unmarshal(again, &after))
		if !reflect.DeepEqual(before, after) {
			t.Errorf("%s is written as\n%s", file, again)
		}
	}
}

// TestLedgerDocument: every field of the ledger, and every phase, is in its specification.
func TestLedgerDocument(t *testing.T) {
	text, err := os.ReadFile("LEDGER.md")
	must(t, err)
	fields := map[string]bool{}
	collect(reflect.TypeFor[replica.State](), fields)
	if len(fields) < 100 {
		t.Errorf("%d fields only", len(fields))
	}
	for _, p := range []replica.Phase{replica.Seeding, replica.Replicating, replica.Paused, replica.ResyncRequired, replica.Resynchronizing, replica.Retired,
		replica.FailoverStarted, replica.FailedOver, replica.Committed, replica.FailbackStarted, replica.FailedBack} {
		fields[string(p)] = true
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if !strings.Contains(string(text), "`"+name+"`") {
			t.Errorf("LEDGER.md does not have `%s`", name)
		}
	}
}

// collect adds the names that the fields of t have in JSON, and those of what they hold.
func collect(t reflect.Type, names map[string]bool) {
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		collect(t.Elem(), names)
	case reflect.Struct:
		for i := range t.NumField() {
			f := t.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name != "" {
				names[name] = true
			}
			if strings.HasPrefix(f.Type.String(), "replica.") || f.Anonymous || f.Type.Kind() != reflect.Struct {
				collect(f.Type, names)
			}
		}
	}
}
