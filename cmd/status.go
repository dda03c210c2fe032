package cmd

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/internal/state"
)

// statusObject is how a VM stands. Sizes are bytes, durations seconds, times UTC.
type statusObject struct {
	vmHead
	HealthReasons  []string           `json:"health_reasons"`
	Cloud          string             `json:"cloud"`
	Host           string             `json:"host"`
	Generation     uint64             `json:"generation"`
	Owner          *replica.Owner     `json:"owner,omitempty"`
	LastReplicated *time.Time         `json:"last_replicated_at"`
	RPO            *float64           `json:"rpo_seconds"`
	Pending        int64              `json:"pending_log_bytes"`
	Sequence       uint64             `json:"sequence"`
	Points         int                `json:"points"`
	RetryAt        *time.Time         `json:"retry_at"`
	LastError      *state.Failure     `json:"last_error,omitempty"`
	Next           string             `json:"next_action"`
	Disks          []statusDiskObject `json:"disks"`
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
		Flags: vmFlags(), Action: p.action("status", p.status),
	}
}

func (p *program) status(ctx context.Context, c *cli.Context) error {
	w, err := p.open()
	if err != nil {
		return err
	}
	vms, err := selectVMs(w.site, c, noneIsAll)
	if err != nil {
		return err
	}
	var list []*statusObject
	err = w.each(ctx, vms, func(ctx context.Context, vm *site.VM) (vmObject, error) {
		o := &statusObject{Cloud: vm.Cloud.Name, Host: vm.Host.Name}
		list = append(list, o)
		return o, w.statusOf(ctx, vm, o)
	})
	if serr := w.show(w.statusText(list, len(c.Args().Slice()) > 0)); serr != nil && err == nil {
		err = serr
	}
	return err
}

// statusOf needs the store and, for the logs beside the disks, the source if it is there.
func (w *world) statusOf(ctx context.Context, vm *site.VM, o *statusObject) error {
	o.VM = vm.Name
	r, st, err := w.replica(ctx, vm, forReading)
	if fault.Is(err, fault.NotProtected) {
		o.fill(vm, judge(vm.Name, nil, state.VM{}, w.now()))
		return nil
	}
	if err != nil {
		o.State, o.Health = "unknown", healthCritical
		o.HealthReasons = []string{message(err)}
		return err
	}
	defer closing(r, &err)
	mem, _, err := w.memory.VM(vm.Name)
	if err != nil {
		return err
	}
	o.fill(vm, judge(vm.Name, &st, mem, w.now()))
	o.ledger(st, w.now())
	o.LastError = mem.Critical
	if o.LastError == nil {
		o.LastError = mem.Failed
	}
	beside, perr := w.engine(vm, nil, st.Replica, nil).PendingBytes(st.Received)
	if perr != nil {
		w.log.Info("the logs beside the disks cannot be counted from here", "vm", vm.Name, "error", perr)
	}
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

func (o *statusObject) fill(vm *site.VM, v verdict) {
	o.State, o.Health, o.Next = v.state, v.health, v.next
	o.HealthReasons = append([]string{}, v.reasons...)
	if o.State == notProtected {
		for _, d := range vm.Disks {
			o.Disks = append(o.Disks, statusDiskObject{Name: d.Name, Path: d.Path})
		}
	}
}

// ledger takes over what the ledger says.
func (o *statusObject) ledger(st replica.State, now time.Time) {
	owner := st.Owner
	o.Generation, o.Owner, o.Sequence, o.Points = st.Generation, &owner, st.Applied.Seq, len(st.Points)
	if o.LastReplicated = utc(st.AsOf); o.LastReplicated != nil {
		rpo := max(0, now.Sub(st.AsOf)).Seconds()
		o.RPO = &rpo
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

// statusText is a table of the VMs, and for VMs that were named, or are not healthy, what there is to say of each.
func (w *world) statusText(list []*statusObject, details bool) string {
	rows := [][]string{{"VM", "STATE", "HEALTH", "LAST REPLICATED", "PENDING", "POINTS", "NEXT"}}
	for _, o := range list {
		last, health := "-", cmpOr(o.Health, "-")
		if o.LastReplicated != nil {
			last = w.when(*o.LastReplicated)
		}
		rows = append(rows, []string{o.VM, o.State, health, last, size(o.Pending), strconv.Itoa(o.Points),
			cmpOr(w.commands(o.Next), "-")})
	}
	var b strings.Builder
	b.WriteString(table(rows))
	for _, o := range list {
		for _, r := range o.HealthReasons {
			fmt.Fprintf(&b, "%s: %s\n", o.VM, r)
		}
		if details && len(o.Disks) > 0 && o.Generation > 0 {
			b.WriteString("\n" + w.diskTable(o))
		}
	}
	return b.String()
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
