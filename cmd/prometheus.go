package cmd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/health"
	"sitrep/internal/plain"
	"sitrep/internal/replica"
)

// onStdout is the name of the file that stands for stdout.
const onStdout = "-"

// metricsMode lets the account of the collector, which is another one, read the metrics. They hold no secrets.
const metricsMode fs.FileMode = 0o644

// writeMetrics writes the status in the text format of Prometheus, in one step, so that the collector never reads half, or
// a file that it may not read.
func (w *world) writeMetrics(file string, list []*statusObject) error {
	text := w.metricsText(list)
	if file == onStdout {
		return w.show(text)
	}
	path, err := filepath.Abs(file)
	if err != nil {
		return fault.FromOS(err)
	}
	if w.opts.dryRun {
		w.say("plan: write %s of metrics into %s", size(int64(len(text))), path)
		return nil
	}
	if isStream(path) {
		return writeStream(path, text)
	}
	if err := w.ownMetrics(path); err != nil {
		return wrongArgument(err, file)
	}
	err = durable.Replace(w.fs, path, func(f durable.File) error {
		if _, err := f.WriteAt([]byte(text), 0); err != nil {
			return err
		}
		return readableByAll(f)
	})
	if err != nil {
		return wrongArgument(err, file)
	}
	return nil
}

// metricsBegin is what each file of metrics begins with.
const metricsBegin = "# HELP sitrep_"

// ownMetrics refuses to replace a file that holds something else than metrics of sitrep.
func (w *world) ownMetrics(path string) error {
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		return nil // which Replace refuses
	}
	f, err := w.fs.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	n, err := f.Size()
	if err != nil || n == 0 {
		return err
	}
	head := make([]byte, min(n, int64(len(metricsBegin))))
	if _, err := f.ReadAt(head, 0); err != nil && err != io.EOF {
		return err
	}
	if string(head) != metricsBegin {
		return fault.New(fault.UnsafeFile, "the file is there, and holds something else than metrics of sitrep; it is left as it is").At(path)
	}
	return nil
}

// stdoutOr is onStdout for the names that the system has for it.
func stdoutOr(file string) string {
	switch file {
	case "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1":
		return onStdout
	}
	return file
}

// isStream says whether a name leads to something that is written to and never replaced: a terminal, a pipe, /dev/null.
func isStream(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&(fs.ModeCharDevice|fs.ModeNamedPipe) != 0
}

// writeStream writes without waiting for somebody to read a pipe that nobody has open.
func writeStream(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return fault.FromOS(err)
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Close()); err != nil {
		return fault.FromOS(err)
	}
	return nil
}

// readableByAll changes the mode of a file of the operating system; the filesystems of tests have none.
func readableByAll(f durable.File) error {
	if m, ok := f.(interface{ Chmod(fs.FileMode) error }); ok {
		return m.Chmod(metricsMode)
	}
	return nil
}

// metric is one family of samples.
type metric struct {
	name, help string
	vm         func(*statusObject) []sample
}

// sample is one value, with labels besides that of the VM: names and values in turn.
type sample struct {
	value  float64
	labels []string
}

func value(v float64) []sample { return []sample{{value: v}} }

func optional(v *float64) []sample {
	if v == nil {
		return nil
	}
	return value(*v)
}

func moment(t *time.Time) []sample {
	if t == nil {
		return nil
	}
	return value(float64(t.UnixMilli()) / 1e3)
}

// metrics is all families. A family without a sample of a VM says that this is not known of it.
func metrics() []metric {
	return []metric{
		{"sitrep_vm_info", "The VM, its cloud and host.", func(o *statusObject) []sample {
			return []sample{{1, []string{"cloud", o.Cloud, "host", o.Host}}}
		}},
		{"sitrep_vm_protected", "1 when the VM is protected.", func(o *statusObject) []sample { return value(one(o.isProtected())) }},
		{"sitrep_vm_state", "1 for the state that the VM is in.", stateSamples},
		{"sitrep_vm_health", "0 normal, 1 warning, 2 critical; nothing when the VM is not expected to replicate.", healthSample},
		{"sitrep_vm_health_reason", "1 for each reason why the VM is not healthy.", reasonSamples},
		{"sitrep_vm_rpo_seconds", "Age of the replica.", func(o *statusObject) []sample { return optional(o.RPO) }},
		{"sitrep_vm_last_replicated_timestamp_seconds", "Moment that the replica is of.", func(o *statusObject) []sample { return moment(o.LastReplicated) }},
		{"sitrep_vm_pending_log_bytes", "Change logs that are not applied.", protectedOnly(func(o *statusObject) []sample { return value(float64(o.Pending)) })},
		{"sitrep_vm_recovery_points", "Recovery points.", ledgerOnly(func(o *statusObject) []sample { return value(float64(o.Points)) })},
		{"sitrep_vm_recovery_points_held", "Recovery points that no retention drops.", ledgerOnly(func(o *statusObject) []sample { return value(float64(o.Held)) })},
		{"sitrep_vm_massive_change_ratio", "Share of a disk's data that one delta has changed, when that was massive and nobody has acknowledged it; else 0.",
			ledgerOnly(massiveSample)},
		{"sitrep_vm_sequence", "Position of the replica.", ledgerOnly(func(o *statusObject) []sample { return value(float64(o.Sequence)) })},
		{"sitrep_vm_generation", "Generation of the owner of the replica.", ledgerOnly(func(o *statusObject) []sample { return value(float64(o.Generation)) })},
		{"sitrep_vm_last_successful_test_age_seconds", "Time since the last test failover that was complete was cleaned up.", func(o *statusObject) []sample { return optional(o.TestAge) }},
		{"sitrep_vm_pause_seconds", "How long the VM was held still the last time that its disks were read.", func(o *statusObject) []sample { return optional(o.Pause) }},
		{"sitrep_vm_sent_bytes_total", "Bytes that jobs of this site have moved to the replica.", func(o *statusObject) []sample {
			if o.Sent == nil {
				return nil
			}
			return value(float64(*o.Sent))
		}},
		{"sitrep_vm_retry_timestamp_seconds", "When the next attempt is due, after one that failed.", func(o *statusObject) []sample { return moment(o.RetryAt) }},
		{"sitrep_vm_failed_attempts", "Attempts that failed since the last success.", protectedOnly(func(o *statusObject) []sample { return value(float64(o.Attempts)) })},
		{"sitrep_vm_cycles", "Cycles of the monitoring interval, by outcome.", cycleSamples},
		{"sitrep_vm_log_bytes", "Change logs of a cycle of the monitoring interval.", cycleStat(func(i intervalObject) (float64, float64) {
			return float64(i.AverageBytes), float64(i.MaxBytes)
		})},
		{"sitrep_vm_latency_seconds", "Time from the cut to the end of a cycle of the monitoring interval.", cycleStat(func(i intervalObject) (float64, float64) {
			return i.AverageLatency, i.MaxLatency
		})},
		{"sitrep_disk_size_bytes", "Size of the disk.", diskSamples(func(d statusDiskObject) []sample { return value(float64(d.Size)) })},
		{"sitrep_disk_pending_log_bytes", "Change logs of the disk that are not applied.", diskSamples(func(d statusDiskObject) []sample { return value(float64(d.Pending)) })},
		{"sitrep_disk_seeded_bytes", "How much of the initial copy of the disk is durable.", diskSamples(func(d statusDiskObject) []sample { return value(float64(d.Seeded)) })},
		{"sitrep_disk_last_verified_timestamp_seconds", "When the replica of the disk was last proved against its sums.", diskSamples(func(d statusDiskObject) []sample { return moment(d.LastVerified) })},
	}
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// allStates are the states that a VM can be in.
func allStates() []string {
	return []string{notProtected, string(replica.Seeding), string(replica.Replicating), string(replica.Paused), string(replica.ResyncRequired),
		string(replica.Resynchronizing), string(replica.Retired), string(replica.FailoverStarted), string(replica.FailedOver),
		string(replica.Committed), string(replica.FailbackStarted), string(replica.FailedBack), health.InError, outOfReach}
}

func stateSamples(o *statusObject) (list []sample) {
	for _, s := range allStates() {
		list = append(list, sample{one(o.State == s), []string{"state", s}})
	}
	return list
}

func healthSample(o *statusObject) []sample {
	switch o.Health {
	case healthNormal:
		return value(0)
	case healthWarning:
		return value(1)
	case healthCritical:
		return value(2)
	}
	return nil
}

func reasonSamples(o *statusObject) (list []sample) {
	seen := map[string]bool{}
	for _, r := range o.Reasons {
		if !seen[r.Code] {
			list = append(list, sample{1, []string{"reason", r.Code, "health", r.Health}})
		}
		seen[r.Code] = true
	}
	return list
}

func protectedOnly(f func(*statusObject) []sample) func(*statusObject) []sample {
	return func(o *statusObject) []sample {
		if o.State == notProtected {
			return nil
		}
		return f(o)
	}
}

// ledgerOnly is for what only the ledger knows.
func ledgerOnly(f func(*statusObject) []sample) func(*statusObject) []sample {
	return func(o *statusObject) []sample {
		if o.Generation == 0 {
			return nil
		}
		return f(o)
	}
}

func cycleSamples(o *statusObject) (list []sample) {
	if o.Cycles == nil {
		return nil
	}
	of := func(which string, i intervalObject) {
		for _, x := range []struct {
			outcome string
			n       int
		}{{"completed", i.Successes}, {"missed", i.Missed}, {"failed", i.Failures}} {
			list = append(list, sample{float64(x.n), []string{"interval", which, "outcome", x.outcome}})
		}
	}
	of("current", o.Cycles.Current)
	if o.Cycles.Last != nil {
		of("last", *o.Cycles.Last)
	}
	return list
}

// cycleStat is the average and the maximum of something, in the intervals in which a cycle completed.
func cycleStat(f func(intervalObject) (average, most float64)) func(*statusObject) []sample {
	return func(o *statusObject) (list []sample) {
		if o.Cycles == nil {
			return nil
		}
		of := func(which string, i *intervalObject) {
			if i == nil || i.Successes == 0 {
				return
			}
			average, most := f(*i)
			list = append(list, sample{average, []string{"interval", which, "stat", "average"}}, sample{most, []string{"interval", which, "stat", "max"}})
		}
		of("current", &o.Cycles.Current)
		of("last", o.Cycles.Last)
		return list
	}
}

func diskSamples(f func(statusDiskObject) []sample) func(*statusObject) []sample {
	return ledgerOnly(func(o *statusObject) (list []sample) {
		for _, d := range o.Disks {
			for _, s := range f(d) {
				list = append(list, sample{s.value, append([]string{"disk", d.Name}, s.labels...)})
			}
		}
		return list
	})
}

// siteMetrics is the families that are not of one VM of the site file.
func (w *world) siteMetrics() []family {
	timestamp := family{"sitrep_status_timestamp_seconds", "When this was written.", value(float64(w.now().UnixMilli()) / 1e3)}
	unlisted := family{name: "sitrep_unlisted_replica", help: "1 for each replica of this vault in the store whose VM the site file does not name."}
	for _, o := range w.res.Unlisted {
		unlisted.samples = append(unlisted.samples, sample{1, []string{"vm", o.VM, "state", o.State}})
	}
	room := family{name: "sitrep_store_free_bytes", help: "Free room of the volume of the store."}
	if w.site.Store.Azure == nil {
		if n, ok := durable.Free(w.fs, w.site.Store.Directory); ok {
			room.samples = value(float64(n))
		}
	}
	access := family{name: "sitrep_store_access_end_timestamp_seconds", help: "When the shared access signature of the store ends."}
	if a := w.res.Access; a != nil && a.EndsAt != nil {
		access.samples = value(float64(a.EndsAt.Unix()))
	}
	days := family{name: "sitrep_store_access_end_days", help: "Days until the shared access signature of the store ends; less than 0 when it has ended."}
	if a := w.res.Access; a != nil && a.EndsAt != nil {
		days.samples = value(a.EndsAt.Sub(w.now()).Hours() / 24)
	}
	return []family{room, access, days, unlisted, timestamp}
}

// sourceRoom is how much room each disk's volume has for its change logs.
func (w *world) sourceRoom(list []*statusObject) family {
	f := family{name: "sitrep_disk_source_free_bytes", help: "Free room of the volume of the disk, where its change logs wait."}
	for _, o := range list {
		vm, err := w.site.VM(o.VM)
		if err != nil {
			continue
		}
		for _, d := range vm.Disks {
			if n, ok := durable.Free(w.fs, w.logDir(vm, d)); ok {
				f.samples = append(f.samples, sample{float64(n), []string{"vm", o.VM, "disk", d.Name}})
			}
		}
	}
	return f
}

// family is a metric with its samples.
type family struct {
	name, help string
	samples    []sample
}

// kind is the type of the metric, by the convention of its name.
func (f family) kind() string {
	if strings.HasSuffix(f.name, "_total") {
		return "counter"
	}
	return "gauge"
}

// metricsText writes the families, each with its head, in the exposition format of Prometheus. Every sample names the vault: a machine may
// have the metrics of several sites in one folder.
func (w *world) metricsText(list []*statusObject) string {
	var families []family
	for _, m := range metrics() {
		f := family{name: m.name, help: m.help}
		for _, o := range list {
			for _, s := range m.vm(o) {
				f.samples = append(f.samples, sample{s.value, append([]string{"vm", o.VM}, s.labels...)})
			}
		}
		families = append(families, f)
	}
	families = append(families, w.sourceRoom(list))
	var b strings.Builder
	for _, f := range append(families, w.siteMetrics()...) {
		if len(f.samples) > 0 {
			fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", f.name, f.help, f.name, f.kind())
		}
		for _, s := range f.samples {
			fmt.Fprintf(&b, "%s{%s} %s\n", f.name, labelText(append(s.labels, "vault", w.site.Vault)), number(s.value))
		}
	}
	return b.String()
}

func number(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

// labelText writes labels, given as names and values in turn.
func labelText(pairs []string) string {
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)
	var parts []string
	for i := 0; i+1 < len(pairs); i += 2 {
		parts = append(parts, pairs[i]+`="`+escape.Replace(plain.Line(pairs[i+1]))+`"`)
	}
	return strings.Join(parts, ",")
}

func massiveSample(o *statusObject) []sample {
	if o.Massive == nil {
		return value(0)
	}
	return value(float64(o.Massive.Percent) / 100)
}
