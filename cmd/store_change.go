package cmd

import (
	"context"
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"sitrep/failover"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

func (p *program) renameCommand() *cli.Command {
	return &cli.Command{
		Name: "rename", Usage: "give the replica of a VM that was renamed its new name", ArgsUsage: "OLD NEW",
		Description: "The VM gets its new name in the site file first. Nothing is copied anew: the next resynchronization compares the disks with the\n" +
			"replica, and sends what differs. Recovery points stay. In a storage account nothing can be renamed.",
		Action: p.action("store rename", func(ctx context.Context, c *cli.Context) error {
			if c.NArg() != 2 {
				return fault.New(fault.UsageError, "store rename takes two names: that of the replica in the store, and the new one")
			}
			w, err := p.open()
			if err == nil {
				err = w.haveStore()
			}
			if err != nil {
				return err
			}
			return w.renameReplica(ctx, c.Args().Get(0), c.Args().Get(1))
		}),
	}
}

func (p *program) removeCommand() *cli.Command {
	return &cli.Command{
		Name: "remove", Usage: "remove a replica whose VM the site file does not name, with all of its recovery points", ArgsUsage: "VM...",
		Description: "On a terminal it asks; a script says --yes. A VM that the site file names is unprotected instead.",
		Flags:       []cli.Flag{yesFlag()},
		Action: p.action("store remove", func(ctx context.Context, c *cli.Context) error {
			if c.NArg() == 0 {
				return fault.New(fault.UsageError, "which replica? \"sitrep store list\" names them")
			}
			w, err := p.open()
			if err == nil {
				err = w.haveStore()
			}
			if err != nil {
				return err
			}
			var failed failures
			for _, name := range c.Args().Slice() {
				if err := w.removeReplica(ctx, c, name); err != nil {
					err = fault.In(err, name, "")
					w.printError(w.stderr, err, name)
					failed.errs = append(failed.errs, err)
				}
			}
			if len(failed.errs) > 0 {
				return &failed
			}
			return nil
		}),
	}
}

// orphan is the ledger of a replica of this vault whose VM the site file does not name.
func (w *world) orphan(ctx context.Context, name, instead string) (st replica.State, err error) {
	if err := replica.CheckName(name); err != nil {
		return st, fault.Wrap(fault.UsageError, err, "")
	}
	if w.names(name) {
		return st, fault.New(fault.UsageError, "the site file has the VM %s: %s", name, w.commands(instead))
	}
	if err := w.checkStore(ctx); err != nil {
		return st, err
	}
	if st, err = w.ledgerIn(ctx, name); err != nil {
		return st, err
	}
	return st, w.owned(st)
}

func (w *world) renameReplica(ctx context.Context, from, to string) (err error) {
	renamer, ok := replica.RenamerOf(w.store)
	if !ok {
		e := fault.New(fault.PrerequisiteFail, "blobs cannot be renamed").At(w.store.Describe()).Then("sitrep store list")
		e.Cause = "Azure storage has no call that gives a blob another name."
		e.Mend = fmt.Sprintf("Give the VM its old name %s in the site file again; or protect it anew by the new one, and then remove the old replica with \"%s\".",
			from, w.commands("sitrep store remove "+from))
		return e
	}
	for _, name := range []string{from, to} {
		lock, lerr := w.memory.Lock(name)
		if lerr != nil {
			return lerr
		}
		defer func() { err = errors.Join(err, lock.Close()) }()
	}
	st, err := w.orphan(ctx, from, "give it its new name there first")
	switch {
	case fault.Is(err, fault.NotProtected): // a rename that was interrupted at its end
		if done, derr := w.ledgerIn(ctx, to); derr != nil || w.owned(done) != nil {
			return err
		}
		return w.renamed(from, to)
	case err == nil:
		err = w.mayRename(from, st)
	}
	if err != nil {
		return err
	}
	if w.opts.dryRun {
		w.say("plan: give the replica of %s in %s the name %s", from, w.store.Describe(), to)
		return nil
	}
	if err := renamer.Rename(ctx, from, to); err != nil {
		return err
	}
	return w.renamed(from, to)
}

// mayRename refuses what a new name would tear apart: what is under way, or what was made of the replica by its old name.
func (w *world) mayRename(name string, st replica.State) error {
	if err := failover.MayEnd(st); err != nil {
		return err
	}
	if st.Phase != replica.Retired {
		if err := w.mine(name, st); err != nil {
			return err
		}
	}
	if st.Phase.Away() || len(st.Pending) > 0 || st.Applying != nil {
		return fault.New(fault.WrongState, "there is work under way in state %s: give the VM its old name in the site file again, end that, and rename it then",
			st.Phase).Then("sitrep store list")
	}
	return nil
}

// renamed takes what this site remembers over to the new name.
func (w *world) renamed(from, to string) error {
	if mem, known, err := w.memory.VM(from); err != nil {
		return err
	} else if known {
		mem.VM = to
		if err := w.memory.RememberVM(mem); err != nil {
			return err
		}
	}
	if err := w.memory.ForgetVM(from); err != nil {
		return err
	}
	next := "sitrep resync " + to + " --now"
	if !w.names(to) {
		next = "sitrep check"
	}
	w.say("the replica of %s has the name %s; next: %s", from, to, w.commands(next))
	return nil
}

func (w *world) removeReplica(ctx context.Context, c *cli.Context, name string) (err error) {
	lock, err := w.memory.Lock(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	st, err := w.orphan(ctx, name, "sitrep unprotect "+name)
	if err == nil {
		err = failover.MayEnd(st)
	}
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%s: the replica in %s is removed, with %s: %s, as of %s; written by %s, last at %s\n", name, w.store.Describe(),
		plural(len(st.Points), "recovery point"), st.Phase, stamp(st.AsOf), st.Owner, stamp(st.LastWrite()))
	if w.opts.dryRun {
		w.say("plan: %s", what)
		return nil
	}
	if err := w.confirm(ctx, c, silenceIsNo, what, "Remove the replica of "+name+"?"); err != nil {
		return err
	}
	r, err := w.store.Open(ctx, name)
	if err == nil {
		err = errors.Join(failover.MayRemove(ctx, r, name), r.Close())
	}
	if err == nil {
		err = w.store.Remove(ctx, name)
	}
	if err == nil {
		err = w.memory.ForgetVM(name)
	}
	if err == nil {
		w.say("%s: the replica is removed", name)
	}
	return err
}
