package cmd

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"sitrep/internal/replica/pageblob"
)

// TestAccessIsWarnedOf: an access signature that ends within 14 days, has ended, or lacks a permission is a warning, of the plugin too.
func TestAccessIsWarnedOf(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name string
		a    pageblob.Access
		want string
	}{
		{"later", pageblob.Access{Until: now.AddDate(0, 0, 15)}, ""},
		{"soon", pageblob.Access{Until: now.AddDate(0, 0, 13)}, "ends on 2026-03-14T12:00:00Z"},
		{"over", pageblob.Access{Until: now.Add(-time.Hour)}, "has ended on 2026-03-01T11:00:00Z"},
		{"not said", pageblob.Access{}, ""},
		{"lacks", pageblob.Access{Until: now.AddDate(1, 0, 0), Missing: "d"}, "lacks the permissions d"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			w := &world{program: &program{stdout: &out, res: result{Access: accessObjectOf(c.a, now)}}}
			if err := w.plugin([]*statusObject{{vmHead: vmHead{VM: "web01", State: "replicating", Health: healthNormal}}}, true); err != nil {
				t.Fatal(err)
			}
			if line := out.String() + w.accessText(); !strings.Contains(line, c.want) || strings.HasPrefix(line, "OK") != (c.want == "") {
				t.Errorf("%q", line)
			}
		})
	}
}
