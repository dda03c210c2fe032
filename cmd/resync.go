package cmd

import (
	"context"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"sitrep/internal/disk"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/resync"
)

// resyncObject is what resync says of a VM. Sizes are bytes.
type resyncObject struct {
	vmHead
	Deep       bool         `json:"deep"`
	Continued  bool         `json:"continued"`
	Consistent bool         `json:"consistent"`
	Due        *bool        `json:"due,omitempty"` // of --due
	WindowAt   *time.Time   `json:"window_opens_at,omitempty"`
	Scanned    int64        `json:"bytes_scanned"`
	Sent       int64        `json:"bytes_sent"`
	Foreign    int64        `json:"blocks_foreign"` // of the different ones, those that something other than sitrep had written to
	Sums       int64        `json:"sums_foreign"`   // block sums that something else had written to
	Seconds    float64      `json:"seconds"`
	Estimated  *float64     `json:"estimated_seconds,omitempty"`
	Points     int          `json:"points"`
	Disks      []diskObject `json:"disks"`
}

const jobResync = "Resynchronize"

// resyncOptions are how a resynchronization is made.
type resyncOptions struct {
	deep bool // the replica's bytes are read
	due  bool // only when it is needed, and inside the window
	todo todo // nil: the VM was named
}

func (p *program) resyncCommand() *cli.Command {
	return &cli.Command{
		Name: "resync", Usage: "compare source and replica in fixed blocks and send the different ones", ArgsUsage: "VM...",
		Flags: vmFlags(append(paceFlags(), acceptFlag(),
			&cli.BoolFlag{Name: "deep", Usage: "read the replica's bytes instead of trusting its block sums"},
			&cli.BoolFlag{Name: "due", Usage: "only VMs that need it, and only inside the policy's resync window"})...),
		Action: p.vmCommand("resync", noneIsWrong, func(w *world, c *cli.Context) func(context.Context, *site.VM) (vmObject, error) {
			p := paceOf(c, replicates)
			opts := resyncOptions{deep: c.Bool("deep"), due: c.Bool("due"), todo: p.todo}
			return func(ctx context.Context, vm *site.VM) (vmObject, error) {
				o := &resyncObject{}
				if err := w.accepts(c, vm); err != nil {
					return o, err
				}
				if w.opts.dryRun {
					return o, w.locked(ctx, vm, func(ctx context.Context) error { return w.planResync(ctx, vm, o, opts) })
				}
				return o, w.attempt(ctx, vm, &o.vmHead, p, func(ctx context.Context) error {
					if due, err := w.resyncDue(ctx, vm, o, opts); err != nil || !due {
						return err
					}
					return w.resync(ctx, vm, o, opts)
				})
			}
		}),
	}
}

// resyncDue says whether there is something to do; with --due there is only for a VM that needs it, inside the window.
func (w *world) resyncDue(ctx context.Context, vm *site.VM, o *resyncObject, opts resyncOptions) (bool, error) {
	if !opts.due {
		return !w.idle(ctx, vm, opts.todo, &o.vmHead), nil
	}
	st, needs, err := w.ledgerOrMark(ctx, vm)
	if fault.Is(err, fault.NotProtected) { // cron asks for all VMs
		o.Due, o.State = new(bool), notProtected
		return false, nil
	}
	if w.idleAs(vm, st, err, opts.todo, &o.vmHead) {
		o.Due = new(bool)
		return false, nil
	}
	if err != nil && !needs {
		return false, err
	}
	if err == nil {
		if err := w.mine(vm.Name, st); err != nil {
			return false, err
		}
	}
	now, window := w.now(), vm.Policy().ResyncWindow
	due := needs && window.Contains(now)
	o.Due = &due
	switch {
	case due:
		return true, nil
	case !needs:
		w.describe(vm, st, &o.vmHead)
		w.say("%s: no resynchronization is needed", vm.Name)
		return false, nil
	}
	at := window.Next(now).UTC()
	o.State, o.Health, o.WindowAt = string(st.Phase), healthCritical, &at
	w.say("%s: resynchronization is needed since %s; %s", vm.Name, stamp(st.PhaseSince), w.windowText(vm))
	return false, nil
}

// resync makes source and replica alike again, as a job. The caller holds the VM's lock.
func (w *world) resync(ctx context.Context, vm *site.VM, o *resyncObject, opts resyncOptions) error {
	return w.jobOn(ctx, vm, jobResync, &o.vmHead, func(s *session) error { return s.resync(ctx, o, opts) })
}

func (s *session) resync(ctx context.Context, o *resyncObject, opts resyncOptions) error {
	if err := s.writesHere(ctx, s.vm); err != nil { // before the ledger says that a comparison has begun
		return err
	}
	if err := s.tellLedger(ctx); err != nil {
		return err
	}
	if err := s.forgetAccepted(ctx); err != nil {
		return err
	}
	if err := s.sameDisks(); err != nil {
		return err
	}
	if err := s.source(); err != nil {
		return err
	}
	if err := s.comparable(); err != nil { // before the ledger says that a resynchronization was begun
		return err
	}
	if s.state.Phase == replica.ResyncRequired || s.state.Phase == replica.Resynchronizing {
		if err := s.dropLogs(); err != nil { // they lead nowhere any more
			return err
		}
	}
	o.Estimated = s.estimate(s.vm, rateResync, s.toCompare())
	c := s.clock()
	err := s.step("Compare and repair", func() (int64, string, error) {
		out, err := s.comparison(opts).Run(ctx)
		o.fill(out)
		return o.Sent, o.summary(), err
	})
	o.Seconds = c.took().Seconds()
	if err != nil {
		return err
	}
	if err := s.dropLogs(); err != nil {
		return err
	}
	s.say("%s: %s in %s%s", s.vm.Name, o.summary(), span(c.took()), estimated(o.Estimated))
	if err := s.noteSuccess(s.vm, rateResync, o.Scanned, c.took()); err != nil {
		return err
	}
	if err := s.beginCycles(s.vm); err != nil {
		return err
	}
	return s.goOn(ctx, o)
}

// goOn takes the delta that makes of a replica that was compared with a source that went on changing one of one moment.
func (s *session) goOn(ctx context.Context, o *resyncObject) error {
	if !o.Consistent {
		var d deltaObject
		err := s.step("Replicate what changed meanwhile", func() (int64, string, error) {
			done, err := s.cycle(ctx)
			d.fill(done)
			return d.Sent, d.summary(), err
		})
		o.Sent += d.Sent
		if err != nil {
			return s.marking(ctx, err)
		}
		s.say("%s: what changed meanwhile: %s", s.vm.Name, d.summary())
	}
	st, err := s.engine.Replica.Ledger().Load(ctx)
	o.Consistent, o.Points = st.Consistent, len(st.Points)
	return err
}

// comparison is the engine of resync, with the same disks, replica and tracker.
func (s *session) comparison(opts resyncOptions) *resync.Job {
	mem, _, err := s.memory.VM(s.vm.Name)
	deep := opts.deep || inDoubt(s.state.ReasonCode) || err == nil && mem.Failed != nil && inDoubt(mem.Failed.Code)
	return &resync.Job{
		VM: s.vm.Name, Replica: s.engine.Replica, Tracker: s.engine.Tracker, Keep: s.engine.Keep, Deep: deep,
		Massive: s.vm.Policy().MassiveChange, Accepted: s.accepted,
		Meter: s.meter, Log: s.log, Now: s.now,
	}
}

// dropLogs removes the change logs beside the disks.
func (s *session) dropLogs() error {
	freed, err := s.engine.DropLogs()
	if freed > 0 {
		s.log.Info("change logs that lead nowhere were removed", "vm", s.vm.Name, "bytes", freed)
	}
	return err
}

// toCompare is how many bytes the source holds that are not known to be zero, from where an earlier run stopped; as many
// as the disks are large, when it cannot be told.
func (s *session) toCompare() (n int64) {
	for _, d := range s.state.Disks {
		var from int64
		if s.state.Resync != nil {
			from = s.state.Resync.Cursors[d.Name]
		}
		n += s.dataBytesOf(d, from)
	}
	return n
}

func (s *session) dataBytesOf(d replica.Disk, from int64) int64 {
	file := diskOf(s.vm, d.Name)
	if file == nil {
		return 0
	}
	img, err := s.openDisk(s.vm, file, disk.Format(d.Format))
	if err != nil {
		return d.Size - from
	}
	defer img.Close()
	n, err := dataBytes(img, min(from, img.Size()))
	if err != nil {
		return d.Size - from
	}
	return n
}

func (o *resyncObject) fill(out resync.Outcome) {
	o.Deep, o.Continued, o.Consistent = out.Deep, out.Continued, out.Consistent
	o.Disks, o.Foreign, o.Sums = []diskObject{}, 0, 0
	for _, d := range out.Disks {
		o.Foreign, o.Sums = o.Foreign+d.Foreign, o.Sums+d.Sums
		o.Disks = append(o.Disks, diskObject{d.Name, d.Scanned, d.Changed, d.Sent, d.Blocks, d.Took.Seconds()})
	}
	o.Scanned, o.Sent = scannedBytes(o.Disks), sentBytes(o.Disks)
}

func (o *resyncObject) summary() string {
	how := "by the replica's sums"
	if o.Deep {
		how = "by the replica's bytes"
	}
	blocks := total(o.Disks, func(d diskObject) int64 { return d.Blocks })
	s := fmt.Sprintf("%s compared %s, %s different", size(o.Scanned), how, plural(blocks, "block"))
	if o.Foreign > 0 {
		s += fmt.Sprintf(" (%d had been written by something else)", o.Foreign)
	}
	s += fmt.Sprintf(", %s sent", size(o.Sent))
	if o.Sums > 0 {
		s += fmt.Sprintf(", %s mended that something else had written", plural(o.Sums, "block sum"))
	}
	if o.Continued {
		s += ", continued"
	}
	return s
}

// estimated words what was expected, beside what it took.
func estimated(seconds *float64) string {
	if seconds == nil {
		return ""
	}
	return fmt.Sprintf(" (estimated: %s)", span(time.Duration(*seconds*float64(time.Second))))
}

// planResync says what resync would do, by doing all of it that changes nothing.
func (w *world) planResync(ctx context.Context, vm *site.VM, o *resyncObject, opts resyncOptions) error {
	if due, err := w.resyncDue(ctx, vm, o, opts); err != nil || !due {
		return err
	}
	return w.onReplica(ctx, vm, forReading, &o.vmHead, func(s *session) error {
		if err := s.source(); err != nil {
			return err
		}
		c := s.clock()
		out, err := s.comparison(opts).Plan(ctx)
		o.fill(out)
		o.Seconds = c.took().Seconds()
		if err != nil {
			return err
		}
		o.Points = len(s.state.Points)
		o.Estimated = s.estimateResync(o)
		s.planned(vm, "%s; send %s, %s%s", o.summary(), size(o.Sent), estimateText(o.Estimated), moving(out.Moving))
		return nil
	})
}

// estimateResync is how long a resynchronization takes: at the rate of the last one, or as long as the comparison of the
// plan and the sending, at the rate at which bytes were sent last.
func (s *session) estimateResync(o *resyncObject) *float64 {
	if e := s.estimate(s.vm, rateResync, o.Scanned); e != nil {
		return s.sending(s.vm, e, o.Sent)
	}
	for _, kind := range []string{rateSeed, rateDelta} {
		if e := s.estimate(s.vm, kind, o.Sent); e != nil {
			*e += o.Seconds
			return s.sending(s.vm, e, o.Sent)
		}
	}
	return s.sending(s.vm, nil, o.Sent)
}
