package cmd

import (
	"context"
	"errors"
	"slices"

	"github.com/urfave/cli/v2"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/internal/state"
	"sitrep/replicate"
)

func (p *program) resumeCommand() *cli.Command {
	return &cli.Command{
		Name: "resume", Usage: "go on after a pause, or after the cause of a critical state was mended", ArgsUsage: "VM...",
		Flags: vmFlags(waitFlag()),
		Action: p.vmCommand("resume", noneIsWrong, func(w *world, c *cli.Context) func(context.Context, *site.VM) (vmObject, error) {
			return func(ctx context.Context, vm *site.VM) (vmObject, error) {
				h := &vmHead{}
				mem, _, err := w.memory.VM(vm.Name)
				if err != nil {
					return h, err
				}
				stopped := func(st replica.State) bool { return st.Phase == replica.Paused || mem.Critical != nil && canPause(st) }
				if w.idle(ctx, vm, unnamed(c, stopped), h) {
					return h, nil
				}
				goesOn := func(st replica.State) bool { return st.Phase == replica.Replicating && mem.Critical == nil }
				if done, err := w.stoodAlready(ctx, vm, h, goesOn); done || err != nil {
					return h, err
				}
				if w.opts.dryRun {
					return h, w.planPhase(ctx, vm, h, "resume replication", w.mayResume(vm))
				}
				return h, w.resume(ctx, vm, h)
			}
		}),
	}
}

// resume ends a pause and forgets an error that an administrator had to mend. One of the two must be there.
func (w *world) resume(ctx context.Context, vm *site.VM, h *vmHead) error {
	return w.verb(ctx, vm, "Resume replication", h, func(s *session) error {
		mem, _, err := s.memory.VM(vm.Name)
		if err != nil {
			return err
		}
		if err := s.mended(mem.Critical); err != nil {
			return err
		}
		phase := s.state.Phase
		err = s.step("Resume", func() (int64, string, error) {
			if phase != replica.Paused && mem.Critical != nil {
				return 0, "", nil
			}
			phase, err = s.engine.Resume(ctx)
			return 0, string(phase), err
		})
		if err != nil {
			return err
		}
		s.say("%s: replication goes on, the state is %s", vm.Name, phase)
		if err := s.noteSuccess(vm, rateDelta, 0, 0); err != nil {
			return err
		}
		return s.beginCycles(vm)
	})
}

// mayResume says whether there is something to resume: a pause, or an error that stopped the VM.
func (w *world) mayResume(vm *site.VM) func(replica.State) error {
	return func(st replica.State) error {
		mem, _, err := w.memory.VM(vm.Name)
		if err != nil || mem.Critical != nil {
			return err
		}
		return replicate.MayResume(st)
	}
}

// mended refuses to forget an error of a source disk that still cannot be opened, or is still too small.
func (s *session) mended(f *state.Failure) error {
	if f == nil || f.Disk == "" {
		return nil
	}
	d := diskOf(s.vm, f.Disk)
	if d == nil || !slices.Contains([]fault.Code{fault.DiskMissing, fault.DiskFormat, fault.DiskCorrupt, fault.DiskUnsupported,
		fault.ChainBroken, fault.ParentElsewhere, fault.DiskShrunk}, f.Code) {
		return nil
	}
	return s.asLarge(d)
}

// comparable refuses to compare with disks that cannot be opened, or are smaller than their replicas.
func (s *session) comparable() error {
	for _, d := range s.vm.Disks {
		if err := s.asLarge(d); err != nil {
			return err
		}
	}
	return nil
}

// asLarge opens a source disk and refuses one of fewer bytes than its replica.
func (s *session) asLarge(d *site.Disk) error {
	img, err := s.openDisk(s.vm, d, formatOf(d, disksOf(s.state)))
	if err != nil {
		return err
	}
	return errors.Join(s.largeEnough(d, img.Size()), img.Close())
}

// largeEnough refuses a source disk of fewer bytes than its replica.
func (s *session) largeEnough(d *site.Disk, bytes int64) error {
	for _, r := range s.state.Disks {
		if r.Name == d.Name && bytes < r.Size {
			return fault.New(fault.DiskShrunk, "the disk has %d bytes, its replica has %d", bytes, r.Size).At(d.Path).Of(s.vm.Name, d.Name)
		}
	}
	return nil
}
