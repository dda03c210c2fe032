package cmd

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"sitrep/failover"
	"sitrep/internal/fault"
	"sitrep/internal/health"
	"sitrep/internal/host"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/internal/state"
)

// statusObject is how a VM stands. Sizes are bytes, durations seconds, times UTC.
type statusObject struct {
	vmHead
	HealthReasons  []string       `json:"health_reasons"`
	Reasons        []reasonObject `json:"reasons"`
	Cloud          string         `json:"cloud"`
	Host           string         `json:"host"`
	Generation     uint64         `json:"generation"`
	Owner          *replica.Owner `json:"owner,omitempty"`
	LastReplicated *time.Time     `json:"last_replicated_at"`
	RPO            *float64       `json:"rpo_seconds"`
	Pending        int64          `json:"pending_log_bytes"`
	Sequence       uint64         `json:"sequence"`
	Points         int            `json:"points"`
	Held           int            `json:"points_held,omitempty"` // of Points
	NewestPoint    *time.Time     `json:"newest_point_at,omitempty"`
	OldestPoint    *time.Time     `json:"oldest_point_at,omitempty"`
	RetryAt        *time.Time     `json:"retry_at"`
	Attempts       int            `json:"failed_attempts,omitempty"` // since the last success
	LastError      *state.Failure `json:"last_error,omitempty"`
	Marked         *state.Mark    `json:"marked,omitempty"` // not yet told to the ledger
	Running        string         `json:"running_job,omitempty"`
	Progress       int            `json:"running_job_percent,omitempty"` // 0 where it is not known
	Next           string         `json:"next_action"`
	Cycles         *cyclesObject  `json:"cycles,omitempty"`
	Sent           *int64         `json:"bytes_sent_total,omitempty"` // by the jobs of this site
	Pause          *float64       `json:"pause_seconds,omitempty"`    // for how long the VM was held still for the last cut
	// Failover is the failover under way or done, Test the test failover that is there, LastTest how the last one went.
	// Massive is a massive change that nobody has acknowledged.
	Massive  *massiveObject      `json:"massive_change,omitempty"`
	Failover *failoverStatus     `json:"failover,omitempty"`
	Test     *failoverStatus     `json:"test_failover,omitempty"`
	LastTest *replica.TestResult `json:"last_test_failover,omitempty"`
	// TestAge is the seconds since the last test failover that was complete was cleaned up, and Pause those for which the VM was held still
	// the last time that its disks were read.
	TestAge *float64           `json:"last_successful_test_age_seconds,omitempty"`
	Disks   []statusDiskObject `json:"disks"`

	job state.Record // that works on the VM
}

// massiveObject is a massive change.
type massiveObject struct {
	replica.Massive
	Percent int `json:"percent"`
}

// reasonObject is one reason for a health.
type reasonObject struct {
	Code   string `json:"code"`
	Health string `json:"health"`
	Text   string `json:"text"`
	Next   string `json:"next_action,omitempty"`
}

// cyclesObject is what happened in the monitoring interval that is running and in the one before it.
type cyclesObject struct {
	Current intervalObject  `json:"current"`
	Last    *intervalObject `json:"last,omitempty"`
	// Reset is when everything was counted anew.
	Reset *time.Time `json:"reset_at,omitempty"`
}

type intervalObject struct {
	Start          time.Time `json:"start"`
	End            time.Time `json:"end"`
	Successes      int       `json:"successes"`
	Failures       int       `json:"failures"`
	Missed         int       `json:"missed"`
	AverageBytes   int64     `json:"average_bytes"` // of the change logs of a cycle
	MaxBytes       int64     `json:"max_bytes"`
	AverageLatency float64   `json:"average_latency_seconds"`
	MaxLatency     float64   `json:"max_latency_seconds"`
}

func intervalOf(i health.Interval) intervalObject {
	return intervalObject{i.Start, i.End, i.Successes, i.Failures, i.Missed, i.AverageBytes(), i.MaxBytes,
		i.AverageLatency().Seconds(), i.MaxLatency.Seconds()}
}

type statusDiskObject struct {
	Name         string     `json:"name"`
	Size         int64      `json:"size"`
	Path         string     `json:"path"`
	Replica      string     `json:"replica"`
	Pending      int64      `json:"pending_log_bytes"`
	Seeded       int64      `json:"seeded_bytes"`
	LastVerified *time.Time `json:"last_verified_at"`
}

func (p *program) statusCommand() *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "state, health, age of the replica, pending logs, points, next action", ArgsUsage: "[VM...]",
		Description: "Exit codes: 0 when the ledger of every VM could be read, however the VMs are; else what kept it from that: 1 when it may go\n" +
			"away by itself (the store is out of reach), 4 when it does not (a replica is missing, the ledger is damaged), 2 when the site\n" +
			"file or the command line is wrong. With --check: 0 OK, 1 WARNING (a VM's health is Warning, or a VM that was named is not\n" +
			"protected, or none is, or the store has a replica of this vault that the site file does not name), 2 CRITICAL (a VM's health is Critical, or the site file or the command line is wrong),\n" +
			"3 UNKNOWN (the account that asks may not read the site file or the state folder).",
		Flags: vmFlags(
			&cli.BoolFlag{Name: "check", Usage: "one line and exit code 0, 1, 2 or 3, for a monitoring plugin"},
			&cli.StringFlag{Name: "prometheus", Usage: "write metrics into `FILE`, for the textfile collector; - is stdout"},
			&cli.BoolFlag{Name: "reset-statistics", Usage: "count cycles anew: what was missed and measured until now is forgotten"},
			&cli.BoolFlag{Name: "watch", Usage: "again and again, until interrupted"},
			&cli.DurationFlag{Name: "interval", Usage: "of --watch", Value: watchInterval}),
		Action: p.action("status", func(ctx context.Context, c *cli.Context) error {
			err := p.status(ctx, c)
			if err != nil && c.Bool("check") && p.verdict == nil {
				return p.pluginError(err)
			}
			return err
		}),
	}
}

func (p *program) status(ctx context.Context, c *cli.Context) error {
	file := stdoutOr(c.String("prometheus"))
	switch {
	case c.Bool("watch") && (c.Bool("check") || file != "" || p.opts.json):
		return fault.New(fault.UsageError, "--watch is for people: it excludes --check, --prometheus and --json")
	case c.IsSet("prometheus") && file == "":
		return fault.New(fault.UsageError, "--prometheus needs the name of a file")
	case file == onStdout && (c.Bool("check") || p.opts.json):
		return fault.New(fault.UsageError, "--prometheus - writes to stdout: it excludes --check and --json")
	case c.Bool("reset-statistics") && (c.Bool("watch") || c.Bool("check") || file != ""):
		return fault.New(fault.UsageError, "--reset-statistics changes something: it excludes --watch, --check and --prometheus")
	case c.Duration("interval") < minInterval:
		return fault.New(fault.UsageError, "--interval cannot be less than %s", minInterval)
	}
	w, err := p.open()
	if err != nil {
		return err
	}
	none := noneIsAll
	if c.Bool("reset-statistics") {
		none = noneIsWrong
	}
	vms, err := selectVMs(w.site, c, none)
	if err != nil {
		return err
	}
	if c.Bool("reset-statistics") {
		return w.each(ctx, vms, func(ctx context.Context, vm *site.VM) (vmObject, error) {
			return w.resetStatistics(ctx, vm, c.NArg() > 0)
		})
	}
	if c.Bool("check") {
		if err := w.memory.Readable(); err != nil {
			return err
		}
	}
	if c.Bool("watch") {
		return w.watch(ctx, vms, c.Duration("interval"), c.NArg() > 0)
	}
	list, errs := w.collect(ctx, vms)
	for _, o := range list {
		w.res.VMs = append(w.res.VMs, o)
	}
	w.res.Plans = w.plansUnderWay(ctx, vms)
	w.nextOfPlans(list, w.res.Plans)
	if isWhole(c) {
		w.res.Unlisted = w.unlisted(ctx)
	}
	if file != "" {
		err = w.writeMetrics(file, list)
	}
	switch {
	case err != nil:
		return err
	case c.Bool("check"):
		return w.plugin(list, c.NArg() > 0)
	case file == "":
		err = w.show(w.statusText(list, c.NArg() > 0) + w.unlistedText(w.res.Unlisted) + w.accessText() + w.planText(w.res.Plans))
	}
	for _, e := range errs {
		if file != "" && w.opts.quiet { // the file says it, every few minutes
			continue
		}
		w.printError(w.stderr, e, "")
	}
	if len(errs) > 0 && err == nil {
		err = &failures{errs}
	}
	return err
}

// collect looks at the VMs. Each error is of one of them, which is in the list all the same.
func (w *world) collect(ctx context.Context, vms []*site.VM) (list []*statusObject, errs []error) {
	running, err := w.memory.Running()
	if err != nil {
		w.log.Info("it is not known which jobs run", "error", err)
	}
	for _, vm := range vms {
		if ctx.Err() != nil {
			return list, append(errs, fault.FromOS(ctx.Err()))
		}
		o := &statusObject{Cloud: vm.Cloud.Name, Host: vm.Host.Name, HealthReasons: []string{}, Reasons: []reasonObject{}}
		o.VM = vm.Name
		w.letGoLeft(ctx, vm)
		if j, ok := running[vm.Name]; ok {
			o.job, o.Running, o.Progress = j, j.ID, j.Percent()
		}
		if err := w.statusOf(ctx, vm, o); err != nil {
			err = fault.In(err, vm.Name, "")
			o.Error = w.object(err, vm.Name)
			errs = append(errs, err)
		}
		list = append(list, o)
	}
	return list, errs
}

// statusOf needs the store and, for the logs beside the disks, the source if it is there.
func (w *world) statusOf(ctx context.Context, vm *site.VM, o *statusObject) (err error) {
	mem, _, err := w.memory.VM(vm.Name)
	if err != nil {
		return err
	}
	r, st, err := w.replica(ctx, vm, forReading)
	foreign := err == nil && w.owned(st) != nil
	if foreign || fault.Is(err, fault.NotProtected) {
		v := w.judge(vm, nil, state.VM{}, o.job)
		if foreign {
			v = w.otherVault(v, st)
			defer closing(r, &err)
		}
		o.judged(v)
		for _, d := range vm.Disks {
			o.Disks = append(o.Disks, statusDiskObject{Name: d.Name, Path: d.Path})
		}
		return nil
	}
	if err != nil {
		w.blind(vm, mem, err, o)
		return err
	}
	defer closing(r, &err)
	missing, err := replica.GlancePoints(ctx, r, st)
	if err != nil {
		return err
	}
	st.LosePoints(func(p replica.Point) bool { return slices.Contains(missing, p.ID) })
	o.judged(w.judge(vm, &st, mem, o.job))
	o.ledger(st, w.now())
	if mem.Replica == st.Replica {
		o.remembered(mem, w.statistics(vm, mem))
	}
	beside := w.besides(vm, st.Replica, st.Received)
	for _, d := range st.Disks {
		x, err := w.statusDisk(ctx, r, vm, d)
		if err != nil {
			return err
		}
		x.Pending += beside[d.Name] + shelved(st, d.Name)
		o.Pending += x.Pending
		o.Disks = append(o.Disks, x)
	}
	return nil
}

// blind says of a VM whose ledger is out of reach, because of err, what this site remembers.
func (w *world) blind(vm *site.VM, mem state.VM, err error, o *statusObject) {
	e := fault.FromOS(err)
	first := reasonObject{Code: string(code(err, e)), Health: healthCritical, Text: message(err), Next: w.fillPlain(code(err, e), vm.Name)}
	var v health.Verdict
	if st := ledgerOf(vm, mem); st != nil {
		v = w.judge(vm, st, mem, o.job)
	}
	o.judged(v)
	o.State, o.Health, o.Next = outOfReach, healthCritical, first.Next
	o.Reasons = append([]reasonObject{first}, o.Reasons...)
	o.HealthReasons = append([]string{first.Text}, o.HealthReasons...)
	o.age(mem.AsOf, w.now())
	o.remembered(mem, w.statistics(vm, mem))
	beside := w.besides(vm, mem.Replica, hrl.Pos{})
	for _, d := range mem.Disks {
		x := statusDiskObject{Name: d.Name, Pending: beside[d.Name]}
		if s := diskOf(vm, d.Name); s != nil {
			x.Path = s.Path
		}
		o.Pending += x.Pending
		o.Disks = append(o.Disks, x)
	}
}

// ledgerOf is what this site remembers of a VM's ledger, nil for nothing.
func ledgerOf(vm *site.VM, mem state.VM) *replica.State {
	if mem.Phase == "" {
		return nil
	}
	return &replica.State{VM: vm.Name, Replica: mem.Replica, Phase: mem.Phase, PhaseSince: mem.AsOf, AsOf: mem.AsOf, Consistent: true}
}

// fillPlain is the command that the table has for a code.
func (w *world) fillPlain(c fault.Code, vm string) string {
	return fault.Fill(c.Lookup().Command, vm, w.res.Command)
}

// besides is the bytes of change logs beside the disks that lead on from a position; nil where there are no disks.
func (w *world) besides(vm *site.VM, id hrl.ID, from hrl.Pos) map[string]int64 {
	n, err := w.engine(vm, nil, id, nil).PendingBytes(from)
	if err != nil {
		w.log.Info("the logs beside the disks cannot be counted from here", "vm", vm.Name, "error", err)
	}
	return n
}

func (o *statusObject) judged(v health.Verdict) {
	o.State, o.Health, o.Next = v.State, string(v.Health), v.Next
	for _, r := range v.Reasons {
		o.Reasons = append(o.Reasons, reasonObject{string(r.Code), string(r.Health), r.Text, r.Next})
		o.HealthReasons = append(o.HealthReasons, r.Text)
	}
}

// ledger takes over what the ledger says.
func (o *statusObject) ledger(st replica.State, now time.Time) {
	owner := st.Owner
	o.Generation, o.Owner, o.Sequence, o.Points = st.Generation, &owner, st.Applied.Seq, len(st.Points)
	o.Failover, o.Test, o.LastTest = failoverStatusOf(st.Failover), failoverStatusOf(st.Test), st.LastTest
	for _, p := range st.Points {
		if p.Held != "" {
			o.Held++
		}
	}
	if m := st.Massive; m != nil {
		o.Massive = &massiveObject{*m, m.Percent()}
	}
	if n := len(st.Points); n > 0 {
		o.NewestPoint, o.OldestPoint = utc(st.Points[n-1].CutAt), utc(st.Points[0].CutAt)
	}
	if good := st.LastGoodTest(); good != nil {
		age := max(0, now.Sub(good.Cleaned).Seconds())
		o.TestAge = &age
	}
	if st.Phase.Away() { // nothing is replicated that could be late
		o.LastReplicated = utc(st.AsOf)
		return
	}
	o.age(st.AsOf, now)
}

func (o *statusObject) age(asOf, now time.Time) {
	if o.LastReplicated = utc(asOf); o.LastReplicated == nil {
		return
	}
	if age, known := health.RPO(asOf, now); known {
		rpo := age.Seconds()
		o.RPO = &rpo
	}
}

// remembered takes over what this site remembers.
func (o *statusObject) remembered(mem state.VM, s health.Statistics) {
	if o.LastError = mem.Critical; o.LastError == nil {
		o.LastError = mem.Failed
	}
	o.Pause, o.Sent = mem.Pause, &mem.Sent
	o.Marked, o.RetryAt, o.Attempts = mem.Marked, utc(mem.Retry.NextAt), mem.Retry.Attempts
	if s.Current.End.IsZero() {
		return
	}
	o.Cycles = &cyclesObject{Current: intervalOf(s.Current), Reset: utc(s.Reset)}
	if !s.Last.End.IsZero() {
		last := intervalOf(s.Last)
		o.Cycles.Last = &last
	}
}

func (w *world) statusDisk(ctx context.Context, r replica.Replica, vm *site.VM, d replica.Disk) (statusDiskObject, error) {
	o := statusDiskObject{Name: d.Name, Size: d.Size, Path: d.Source, Seeded: d.Seeded, LastVerified: utc(d.VerifiedAt)}
	if s := diskOf(vm, d.Name); s != nil {
		o.Path = s.Path
	}
	if d.Seeded == 0 && d.Size > 0 {
		return o, nil // there may be no pages yet
	}
	pages, err := r.Disk(ctx, d)
	if err != nil {
		return o, fault.In(err, vm.Name, d.Name)
	}
	o.Replica = pages.Path()
	return o, pages.Close()
}

// shelved is the length of the logs of a disk that lie on the shelf.
func shelved(st replica.State, disk string) int64 {
	return total(st.Pending, func(s replica.Segment) int64 { return s.Bytes[disk] })
}

func utc(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func num(n uint64) string { return strconv.FormatUint(n, 10) }

// statusText is a table of the VMs, the reasons why they are not healthy, and of VMs that were named all there is to say.
func (w *world) statusText(list []*statusObject, details bool) string {
	rows := [][]string{{"VM", "STATE", "HEALTH", "LAST REPLICATED", "PENDING", "POINTS", "NEXT"}}
	for _, o := range list {
		last := "-"
		if o.LastReplicated != nil {
			last = w.when(*o.LastReplicated)
		}
		rows = append(rows, []string{o.VM, o.State, cmpOr(o.Health, "-"), last, size(o.Pending), strconv.Itoa(o.Points),
			cmpOr(w.commands(o.Next), "-")})
	}
	var b strings.Builder
	b.WriteString(table(rows))
	for _, o := range list {
		for _, r := range o.HealthReasons {
			fmt.Fprintf(&b, "%s: %s\n", o.VM, r)
		}
		if details && o.State != notProtected {
			b.WriteString("\n" + w.detailText(o))
		}
	}
	return b.String()
}

// failoverStatus is a failover in the status. Durations are seconds.
type failoverStatus struct {
	Kind     string            `json:"kind"`
	Started  time.Time         `json:"started"`
	Finished *time.Time        `json:"finished,omitempty"`
	Point    string            `json:"point,omitempty"`
	CutAt    *time.Time        `json:"point_time,omitempty"`
	Host     string            `json:"host,omitempty"`
	VM       *host.Definition  `json:"recovered_vm,omitempty"`
	RTO      *float64          `json:"rto_seconds,omitempty"`
	RPO      *float64          `json:"rpo_seconds,omitempty"`
	Done     []string          `json:"done_steps,omitempty"`
	Failback *replica.Failback `json:"failback,omitempty"`
}

func failoverStatusOf(rec *replica.Failover) *failoverStatus {
	if rec == nil {
		return nil
	}
	s := &failoverStatus{Kind: rec.Kind, Started: rec.Started, Point: rec.Point, Host: rec.Host, Done: rec.Done, Failback: rec.Failback}
	if !rec.CutAt.IsZero() {
		s.CutAt = &rec.CutAt
	}
	if d, err := failover.Made(rec); err == nil && d.Name != "" {
		s.VM = &d
	}
	if !rec.Finished.IsZero() {
		rto, rpo := failover.RTO(*rec).Seconds(), failover.RPO(*rec).Seconds()
		s.Finished, s.RPO = &rec.Finished, &rpo
		if !rec.ByHand { // people start the VM: when it is up is not known
			s.RTO = &rto
		}
	}
	return s
}

// text words a failover for people.
func (s *failoverStatus) text() string {
	text := fmt.Sprintf("%s, since %s", s.Kind, stamp(s.Started))
	if s.Point != "" {
		text += ", from point " + s.Point
	}
	switch {
	case s.Failback != nil:
		return text + ", failback (" + s.Failback.Mode + ") since " + stamp(s.Failback.Started)
	case s.Finished == nil:
		return text + ", not complete"
	case s.VM != nil:
		text += fmt.Sprintf(", %s at %s", s.VM.Name, s.Host)
	}
	if s.RTO == nil {
		return text + ", nobody has started the VM, RPO " + seconds(*s.RPO)
	}
	return text + fmt.Sprintf(", RTO %s, RPO %s", seconds(*s.RTO), seconds(*s.RPO))
}

// lastTestText words how the last test failover went.
func lastTestText(r *replica.TestResult) string {
	how := "complete"
	if !r.OK {
		how = "it did not get done"
	}
	text := fmt.Sprintf("%s, %s, point %s, cleaned up at %s", stamp(r.Started), how, r.Point, stamp(r.Cleaned))
	if r.Notes != "" {
		text += ": " + r.Notes
	}
	return text
}

// detailText is all there is to say of one VM.
func (w *world) detailText(o *statusObject) string {
	rows := [][]string{{"VM", o.VM + " in cloud " + o.Cloud + " on host " + o.Host}}
	add := func(name, text string) {
		if text != "" {
			rows = append(rows, []string{name, text})
		}
	}
	if o.RPO != nil {
		add("RPO", span(time.Duration(*o.RPO*float64(time.Second))))
	}
	if o.Owner != nil {
		add("owner", fmt.Sprintf("%s on %s since %s, generation %d", o.Owner.Site, o.Owner.Host, stamp(o.Owner.Since), o.Generation))
		add("position", num(o.Sequence))
	}
	if o.NewestPoint != nil {
		held := ""
		if o.Held > 0 {
			held = fmt.Sprintf(", %d held", o.Held)
		}
		add("points", fmt.Sprintf("%s, %s to %s%s", plural(o.Points, "recovery point"), stamp(*o.OldestPoint), stamp(*o.NewestPoint), held))
	}
	if o.Failover != nil {
		add("failover", o.Failover.text())
	}
	if o.Test != nil {
		add("test", o.Test.text())
	}
	if o.LastTest != nil {
		add("last test", lastTestText(o.LastTest))
	} else if o.State == string(replica.Replicating) && o.Test == nil {
		add("last test", "none yet: \"sitrep failover test "+o.VM+"\" is recommended")
	}
	if o.Pause != nil {
		add("held still", seconds(*o.Pause)+" for the last cut")
	}
	if o.Running != "" {
		add("running", "job "+o.Running)
	}
	if o.Cycles != nil {
		add("cycles", "since "+stamp(o.Cycles.Current.Start)+o.Cycles.Current.text())
		if last := o.Cycles.Last; last != nil {
			add("before", stamp(last.Start)+" to "+stamp(last.End)+last.text())
		}
		if o.Cycles.Reset != nil {
			add("counted anew", "since "+stamp(*o.Cycles.Reset))
		}
	}
	if e := o.LastError; e != nil {
		add("last error", fmt.Sprintf("%s at %s%s", e.Code, stamp(e.At), jobText(e.Job)))
	}
	if o.RetryAt != nil {
		when := "by the next run"
		if w.toCome(*o.RetryAt) {
			when = w.clockTime(*o.RetryAt)
		}
		add("next attempt", fmt.Sprintf("%s, after %s", when, plural(o.Attempts, "failed attempt")))
	}
	return table(rows) + w.diskTable(o)
}

func jobText(id string) string {
	if id == "" {
		return ""
	}
	return ", job " + id
}

func seconds(s float64) string { return span(time.Duration(s * float64(time.Second))) }

// text words what happened in an interval.
func (i intervalObject) text() string {
	s := fmt.Sprintf(": %d completed, %d missed, %d failed", i.Successes, i.Missed, i.Failures)
	if i.Successes == 0 {
		return s
	}
	return s + fmt.Sprintf("; logs %s on average, %s at most; latency %s on average, %s at most", size(i.AverageBytes), size(i.MaxBytes),
		seconds(i.AverageLatency), seconds(i.MaxLatency))
}

func (w *world) diskTable(o *statusObject) string {
	rows := [][]string{{"VM", "DISK", "SIZE", "PENDING", "VERIFIED", "SOURCE", "REPLICA"}}
	for _, d := range o.Disks {
		verified := "never"
		if d.LastVerified != nil {
			verified = w.when(*d.LastVerified)
		}
		rows = append(rows, []string{o.VM, d.Name, size(d.Size), size(d.Pending), verified, d.Path, cmpOr(d.Replica, "-")})
	}
	return table(rows)
}
