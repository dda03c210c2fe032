package cmd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"sitrep/failover"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/site"
	"sitrep/internal/state"
)

func (p *program) unprotectCommand() *cli.Command {
	return &cli.Command{
		Name: "unprotect", Usage: "disable protection: removes the replica, its recovery points and change logs", ArgsUsage: "VM...",
		Flags: vmFlags(&cli.BoolFlag{Name: "keep-replica", Usage: "leave the replica in the store, for reading"},
			&cli.BoolFlag{Name: "store-lost", Usage: "the store is lost for good: forget it, and set the change logs aside"}, yesFlag(), waitFlag()),
		Description: "On a terminal it asks before replicas are removed. A script says --yes with --all and --cloud; a VM that it names is meant.",
		Action: p.askedCommand("unprotect", noneIsWrong, askUnprotect, func(w *world, c *cli.Context) func(context.Context, *site.VM) (vmObject, error) {
			return func(ctx context.Context, vm *site.VM) (vmObject, error) {
				h := &vmHead{}
				if c.Bool("store-lost") {
					if c.Bool("keep-replica") {
						return h, fault.New(fault.UsageError, "--keep-replica and --store-lost exclude each other")
					}
					return h, w.unprotectLost(ctx, vm, h)
				}
				kept := kept(c.Bool("keep-replica"))
				if w.opts.dryRun {
					return h, w.planUnprotect(ctx, vm, h, kept)
				}
				return h, w.inFailover(ctx, vm, "", func(ctx context.Context) error { return w.unprotect(ctx, vm, h, kept) })
			}
		}),
	}
}

// askUnprotect asks before replicas are removed with all of their recovery points.
func askUnprotect(ctx context.Context, w *world, c *cli.Context, vms []*site.VM) error {
	if c.Bool("keep-replica") || c.Bool("store-lost") {
		return nil
	}
	s := silenceIsYes
	if c.Bool("all") || c.String("cloud") != "" {
		s = silenceIsNo
	}
	var names []string
	for _, vm := range vms {
		names = append(names, vm.Name)
	}
	where := "the store"
	if w.store != nil {
		where = w.store.Describe()
	}
	return w.confirm(ctx, c, s, fmt.Sprintf("the replicas in %s are removed, with all of their recovery points: %s\n", where, strings.Join(names, ", ")),
		"Remove "+plural(len(names), "replica")+"?")
}

// kept says whether the replica stays in the store.
type kept bool

func (k kept) String() string {
	if k {
		return "the replica is kept"
	}
	return "the replica is removed"
}

// unprotect ends the relationship. A replica that has vanished is no obstacle: this is the way out of that.
func (w *world) unprotect(ctx context.Context, vm *site.VM, h *vmHead, k kept) error {
	r, _, err := w.replica(ctx, vm, forReading)
	switch {
	case err == nil:
		if err := r.Close(); err != nil {
			return err
		}
	case fault.Is(err, fault.NotProtected): // and nothing here remembers that it ever was
		h.State = notProtected
		w.say("%s: it is not protected; nothing is to be done", vm.Name)
		return nil
	}
	return w.job(vm, "Disable protection", h, func(j *state.Job) error {
		id, err := w.endRelationship(ctx, vm, j, h, k)
		if err != nil {
			return err
		}
		err = j.Step("Remove what this site keeps", func() (int64, string, error) { return 0, "", w.forget(vm, id) })
		if err != nil {
			return err
		}
		h.State = notProtected
		w.say("%s: protection is disabled; %s", vm.Name, k)
		return nil
	})
}

// endRelationship removes or retires the replica, and returns which one it was.
func (w *world) endRelationship(ctx context.Context, vm *site.VM, j *state.Job, h *vmHead, k kept) (id hrl.ID, err error) {
	mem, _, err := w.memory.VM(vm.Name)
	if err != nil {
		return id, err
	}
	err = j.Step("Disable replication", func() (int64, string, error) {
		err := w.onReplica(ctx, vm, forWriting, h, func(s *session) error {
			id = s.state.Replica
			if err := failover.MayEnd(s.state); err != nil {
				return err
			}
			if err := s.mayRemove(ctx, k); err != nil {
				return err
			}
			if d, err := failover.Made(s.state.Failover); err == nil && d.Name != "" {
				s.say("%s: the recovered VM %s stays at %s, with its disks, and is protected by nothing", vm.Name, d.Name, s.state.Failover.Host)
			}
			if !k {
				return nil
			}
			return s.engine.Retire(ctx, "protection was disabled and the replica kept")
		})
		if fault.Is(err, fault.ReplicaMissing) && !bool(k) && !w.inAnother(mem) {
			id = mem.Replica
			return 0, "the replica was gone already", nil
		}
		if err != nil || bool(k) {
			if !w.inAnother(mem) { // else it says so already
				err = w.orLost(err, vm)
			}
			return 0, k.String(), err
		}
		return 0, k.String(), w.store.Remove(ctx, vm.Name)
	})
	return id, err
}

// mayRemove refuses to remove disks that machines may run from.
func (s *session) mayRemove(ctx context.Context, k kept) error {
	if k {
		return nil
	}
	return failover.MayRemove(ctx, s.engine.Replica, s.vm.Name)
}

// forget removes what this site keeps for a relationship: change logs, the tracker's memory, and that there is one.
func (w *world) forget(vm *site.VM, id hrl.ID) error {
	e := w.engine(vm, nil, id, w.meter(vm.Name))
	var disks []state.Disk
	for _, d := range vm.Disks {
		disks = append(disks, state.Disk{Name: d.Name, BlockSize: vm.Policy().BlockSize})
	}
	if err := w.withSource(e, vm, disks, w.trackDir(vm)); err != nil {
		return err
	}
	err := e.Forget()
	if fault.Is(err, fault.NotFound) { // the source is gone, and its logs with it
		err = e.Tracker.Forget()
	}
	return errors.Join(err, w.memory.ForgetVM(vm.Name))
}

func (w *world) planUnprotect(ctx context.Context, vm *site.VM, h *vmHead, k kept) error {
	return w.onReplica(ctx, vm, forReading, h, func(s *session) error {
		if err := failover.MayEnd(s.state); err != nil {
			return err
		}
		if err := s.mayRemove(ctx, k); err != nil {
			return err
		}
		s.planned(vm, "disable protection; %s, with %s", k, plural(len(s.state.Points), "recovery point"))
		return nil
	})
}
