package cmd

import (
	"bytes"
	"regexp"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/site"
	"strings"
	"testing"
	"time"
)

func statusOf(vm, state, health string, reasons ...string) *statusObject {
	o := &statusObject{HealthReasons: reasons, Pending: 7}
	o.VM, o.State, o.Health = vm, state, health
	for i, r := range reasons {
		o.Reasons = append(o.Reasons, reasonObject{Code: "code-" + string(rune('a'+i%2)), Health: health, Text: r})
	}
	if state != notProtected {
		rpo := 90.4
		o.RPO, o.Generation = &rpo, 1
	}
	return o
}

func TestPlugin(t *testing.T) {
	good := statusOf("a", "replicating", healthNormal)
	behind := statusOf("b", "replicating", healthWarning, "behind | by\nan hour", "other")
	broken := statusOf("c", "error", healthCritical, "gone")
	free := statusOf("d", notProtected, "")
	retired := statusOf("e", "unprotected", "")
	for _, tt := range []struct {
		list  []*statusObject
		named bool
		code  int
		line  string
	}{
		{[]*statusObject{good, free, retired}, false, 0, "OK - 1 of 3 VMs are protected | 'a rpo'=90s;3600;;0 'a pending'=7B;;;0\n"},
		{[]*statusObject{free}, false, 1, "WARNING - no VM is protected\n"},
		{[]*statusObject{free, retired}, false, 1, "WARNING - no VM is protected\n"},
		{[]*statusObject{retired}, true, 1, "WARNING - e: it is not protected\n"},
		{[]*statusObject{free}, true, 1, "WARNING - d: it is not protected\n"},
		{[]*statusObject{good, behind}, false, 1, "WARNING - b: behind / by an hour | 'a rpo'=90s;3600;;0 'a pending'=7B;;;0 'b rpo'=90s;3600;;0 'b pending'=7B;;;0\n"},
		{[]*statusObject{behind, broken}, false, 2, "CRITICAL - c: gone; b: behind / by an hour | 'b rpo'=90s;3600;;0 'b pending'=7B;;;0 'c rpo'=90s;3600;;0 'c pending'=7B;;;0\n"},
	} {
		var out bytes.Buffer
		w := &world{program: &program{stdout: &out}}
		if err := w.plugin(tt.list, tt.named); err != nil {
			t.Fatal(err)
		}
		if w.finish(nil) != tt.code || out.String() != tt.line {
			t.Errorf("%d, %q, want %d, %q", *w.verdict, out.String(), tt.code, tt.line)
		}
	}
}

// sampleLine is a line of the exposition format of Prometheus.
var sampleLine = regexp.MustCompile(`^[a-z_]+(\{([a-z_]+="(\\\\|\\"|\\n|[^\\"\n])*",?)+\})? -?[0-9.]+$`)

func TestMetrics(t *testing.T) {
	o := statusOf(`we"ird\name`+"\n", "replicating", healthWarning, "x", "y", "z")
	at := time.Unix(1_700_000_000, 5e8)
	o.LastReplicated, o.RetryAt = &at, &at
	o.Cycles = &cyclesObject{Current: intervalObject{Successes: 2, AverageBytes: 5, MaxLatency: 1.5}}
	o.Disks = []statusDiskObject{{Name: "os", Size: 1 << 40, LastVerified: &at}}
	age, pause := 60.0, 0.25
	o.TestAge, o.Pause = &age, &pause
	w := &world{program: &program{fs: crashfs.New(), now: func() time.Time { return at }}, site: &site.Site{Vault: "v1"}}
	ends := at.Add(36 * time.Hour)
	w.res.Access = &accessObject{EndsAt: &ends}
	w.res.Unlisted = []replicaObject{{VM: "gone", State: "replicating"}}
	text := w.metricsText([]*statusObject{o, statusOf("b", notProtected, "")})
	declared, seen := map[string]bool{}, map[string]bool{}
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name := strings.Fields(rest)[0]
			if declared[name] {
				t.Errorf("%s is declared twice", name)
			}
			declared[name] = true
			continue
		}
		if strings.HasPrefix(line, "# HELP ") {
			continue
		}
		name, _, _ := strings.Cut(line, "{")
		name, _, _ = strings.Cut(name, " ")
		key, _, _ := strings.Cut(line, "} ")
		switch {
		case !sampleLine.MatchString(line):
			t.Errorf("no sample: %s", line)
		case !declared[name]:
			t.Errorf("not declared: %s", line)
		case seen[key]:
			t.Errorf("twice: %s", line)
		}
		seen[key] = true
	}
	for _, want := range []string{
		`sitrep_vm_rpo_seconds{vm="we\"ird\\name ",vault="v1"} 90.4`, `sitrep_disk_size_bytes{vm="we\"ird\\name ",disk="os",vault="v1"} 1099511627776`,
		`sitrep_store_access_end_days{vault="v1"} 1.5`, `sitrep_vm_protected{vm="b",vault="v1"} 0`, `sitrep_status_timestamp_seconds{vault="v1"} 1700000000.5`,
		`sitrep_vm_latency_seconds{vm="we\"ird\\name ",interval="current",stat="max",vault="v1"} 1.5`,
		`sitrep_vm_last_successful_test_age_seconds{vm="we\"ird\\name ",vault="v1"} 60`,
		`sitrep_vm_pause_seconds{vm="we\"ird\\name ",vault="v1"} 0.25`, `sitrep_unlisted_replica{vm="gone",state="replicating",vault="v1"} 1`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("missing: %s", want)
		}
	}
	if strings.Contains(text, `sitrep_vm_health{vm="b"`) {
		t.Error("a VM that is not protected has a health")
	}
}
