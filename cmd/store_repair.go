package cmd

import (
	"context"
	"fmt"
	"slices"

	"github.com/urfave/cli/v2"

	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
)

func (p *program) repairCommand() *cli.Command {
	return &cli.Command{
		Name: "repair", Usage: "write the store's identity back, where it is gone and the replicas are there",
		Description: "The identity (sitrep-store.json) tells the store from the empty folder that is there when its volume is not mounted. It is written\n" +
			"anew as the ledgers of the replicas name it, else as this site remembers it, else with a new ID. Nothing else is changed.",
		Action: p.action("store repair", p.repairStore),
	}
}

func (p *program) repairStore(ctx context.Context, c *cli.Context) error {
	if c.NArg() > 0 {
		return fault.New(fault.UsageError, "store repair takes no names: it is about the store of the site file")
	}
	w, err := p.open()
	if err == nil {
		err = w.haveStore()
	}
	if err != nil {
		return err
	}
	w.res.Store = w.store.Describe()
	m, ok := replica.MenderOf(w.store)
	if !ok {
		return fault.New(fault.PrerequisiteFail, "this kind of store has no identity that could be written").At(w.store.Describe())
	}
	if _, err := w.store.Prepare(ctx, hrl.NewID()); err != nil && !fault.Is(err, fault.StoreUnnamed) && !fault.Is(err, fault.StoreForeign) {
		return err // it is not there, or out of reach
	}
	id, why, err := w.identityOf(ctx, m)
	if err != nil {
		return err
	}
	if w.opts.dryRun {
		w.say("plan: write the identity %s of the store %s, %s", id, w.store.Describe(), why)
		return nil
	}
	err = m.Identify(ctx, id)
	if fault.Is(err, fault.Exists) {
		w.say("%s: the store has its identity: there is nothing to repair", w.store.Describe())
		return nil
	}
	if err != nil {
		return err
	}
	if known, ok, err := w.memory.Store(); err != nil || ok && known.Where == w.store.Describe() && known.ID != id {
		if err == nil {
			err = w.memory.RememberStore(id, w.store.Describe())
		}
		if err != nil {
			return err
		}
	}
	w.say("%s: the store has its identity again: %s, %s; run again what was refused", w.store.Describe(), id, why)
	return nil
}

// identityOf is the identity that a store without one is to have, and why: the one that most of its ledgers name; one that this site
// remembers of the store in this place; a new one.
func (w *world) identityOf(ctx context.Context, m replica.Mender) (id hrl.ID, why string, err error) {
	votes, ledgers := map[hrl.ID]int{}, 0
	for st, err := range m.Ledgers(ctx) {
		switch {
		case fault.Cancelled(err):
			return id, "", err
		case err != nil && fault.Find(err).VM == "":
			return id, "", err
		case err != nil:
			w.log.Warn("a ledger cannot be read and is left out", "error", err)
			continue
		}
		ledgers++
		if !st.Store.IsZero() {
			votes[st.Store]++
		}
	}
	known, ok, err := w.memory.Store()
	if err != nil {
		return id, "", err
	}
	here := ok && known.Where == w.store.Describe()
	if here && (len(votes) == 0 || votes[known.ID] > 0) {
		return known.ID, "as this site remembers it", nil
	}
	if len(votes) > 0 {
		best := 0
		for candidate, n := range votes {
			if n > best || n == best && slices.Compare(candidate[:], id[:]) < 0 {
				id, best = candidate, n
			}
		}
		return id, fmt.Sprintf("as %d of %s name it", best, plural(ledgers, "ledger")), nil
	}
	return hrl.NewID(), "a new one: no ledger names the old one, and this site does not remember it; a site that does goes on all the same, by its replicas", nil
}
