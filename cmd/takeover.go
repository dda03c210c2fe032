package cmd

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"sitrep/failover"
	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/internal/state"
)

// takeoverObject is what takeover and store unlock say of a VM.
type takeoverObject struct {
	vmHead
	Generation uint64         `json:"generation,omitempty"` // of the replica, from now on
	Was        *replica.Owner `json:"previous_owner,omitempty"`
	LastWrite  *time.Time     `json:"last_write_at,omitempty"` // of the owner before
	Position   uint64         `json:"sequence_found,omitempty"`
	Points     int            `json:"points,omitempty"`
	Notes      []string       `json:"notes,omitempty"` // what may be lost
}

func (p *program) takeoverCommand() *cli.Command {
	return &cli.Command{
		Name: "takeover", Usage: "become the writer of a replica that another machine or state folder writes to", ArgsUsage: "VM...",
		Description: "A replica has one writer. When that machine, or its state folder, is gone for good, the one that replicates the VM from now on\n" +
			"takes the replica over. It is said first who wrote last, and what may be lost: the next resynchronization makes the replica what\n" +
			"the disks here are. The other one is refused from then on, should it live after all. A failover needs no takeover.",
		Flags: vmFlags(yesFlag(), waitFlag()),
		Action: p.vmCommand("takeover", noneIsWrong, func(w *world, c *cli.Context) func(context.Context, *site.VM) (vmObject, error) {
			return func(ctx context.Context, vm *site.VM) (vmObject, error) {
				o := &takeoverObject{}
				if w.opts.dryRun {
					return o, w.takeover(ctx, c, vm, o)
				}
				return o, w.locked(ctx, vm, func(ctx context.Context) error { return w.takeover(ctx, c, vm, o) })
			}
		}),
	}
}

// takeover makes this site the writer. Who is it already stays it.
func (w *world) takeover(ctx context.Context, c *cli.Context, vm *site.VM, o *takeoverObject) error {
	st, err := w.mayTakeOver(ctx, vm)
	if err == nil {
		err = failover.MayUnlock(st)
	}
	if err == nil {
		err = st.CheckHome("takeover")
	}
	if err != nil {
		return err
	}
	w.describe(vm, st, &o.vmHead)
	me, err := w.writer(vm.Name, st)
	if err != nil {
		return err
	}
	if st.Foreign(me) == "" {
		w.say("%s: this site writes to the replica already; nothing was changed", vm.Name)
		return nil
	}
	w.loss(vm, st, o)
	if w.opts.dryRun {
		w.sayText(vm, o.text())
		w.planned(vm, "take the replica over, with generation %d", st.Generation+1)
		return nil
	}
	if err := w.confirm(ctx, c, silenceIsNo, indented(vm.Name, o.text()), "Take the replica of "+vm.Name+" over?"); err != nil {
		return err
	}
	if c.Bool("yes") {
		w.sayText(vm, o.text())
	}
	return w.takeOver(ctx, vm, "Take the replica over from another writer", o)
}

// takeOver is the job that makes this site the owner, with a higher generation. The caller holds the VM's lock.
func (w *world) takeOver(ctx context.Context, vm *site.VM, name string, o *takeoverObject) error {
	return w.job(vm, name, &o.vmHead, func(j *state.Job) error {
		return j.Step("Take the replica over", func() (int64, string, error) {
			st, err := w.mayTakeOver(ctx, vm)
			if err == nil {
				err = w.remember(ctx, vm, st)
			}
			if err != nil {
				return 0, "", err
			}
			by, err := w.owner()
			if err == nil {
				by.Run, err = w.newRun(vm.Name, st)
			}
			if err != nil {
				return 0, "", err
			}
			by.Wrote = w.now().UTC()
			was, is, err := failover.Unlock(ctx, w.store, vm.Name, by, w.now())
			if err != nil {
				return 0, "", err
			}
			o.Generation = is.Generation
			w.describe(vm, is, &o.vmHead)
			w.say("%s: nobody holds the replica any more: it was that of site %s on host %s since %s, and is this site's, with generation %d; "+
				"it is in state %s, as before", vm.Name, was.Owner.Site, was.Owner.Host, stamp(was.Owner.Since), is.Generation, is.Phase)
			return 0, "", w.noteLedger(vm, is)
		})
	})
}

// loss says in o who is taken over from, and what may be lost by it.
func (w *world) loss(vm *site.VM, st replica.State, o *takeoverObject) {
	was, position := st.Owner, max(st.Applied.Seq, st.Received.Seq)
	o.Was, o.LastWrite, o.Position, o.Points = &was, utc(st.LastWrite()), position, len(st.Points)
	note := func(format string, args ...any) { o.Notes = append(o.Notes, fmt.Sprintf(format, args...)) }
	note("the replica is written by %s since %s, last at %s", was, stamp(was.Since), stamp(st.LastWrite()))
	note("it is at position %d, as of %s, with %s", position, stamp(st.AsOf), plural(len(st.Points), "recovery point"))
	note("afterwards that one is refused, and the next resynchronization makes the replica what the disks here are: what it has replicated and " +
		"they do not hold is then in the recovery points only, until newer ones take their place")
	for _, d := range st.Disks {
		here := diskOf(vm, d.Name)
		if here == nil {
			note("disk %s: the site file has none of this name", d.Name)
			continue
		}
		s, err := w.fs.Stat(here.Path)
		switch at := time.Unix(0, s.ModTime); {
		case err != nil:
			note("disk %s: %s is not here: nothing can be replicated from this machine before it is", d.Name, here.Path)
		case at.Before(st.AsOf):
			note("disk %s: %s was last written to at %s, before the replica's last change: it is likely an OLDER disk", d.Name, here.Path, stamp(at))
		default:
			note("disk %s: %s was last written to at %s", d.Name, here.Path, stamp(at))
		}
	}
}

func (o *takeoverObject) text() string { return strings.Join(o.Notes, "\n") + "\n" }

// indented puts a VM's name before each line.
func indented(vm, text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(vm + ": " + line)
	}
	return b.String()
}
