package failover_test

import (
	"os"
	"testing"

	"sitrep/failover"
)

// TestTable holds the table of states against the one that people read. UPDATE_GOLDEN=1 writes it anew.
func TestTable(t *testing.T) {
	const golden = "testdata/states.txt"
	got := failover.Table()
	if os.Getenv("UPDATE_GOLDEN") != "" {
		must(t, os.MkdirAll("testdata", 0o755))
		must(t, os.WriteFile(golden, []byte(got), 0o644))
	}
	want, err := os.ReadFile(golden)
	must(t, err)
	if got != string(want) {
		t.Errorf("the table of states is\n%s\nand %s has\n%s", got, golden, want)
	}
}
