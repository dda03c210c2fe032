package cmd

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/internal/support"
)

// probeObject is one check of the store in --json.
type probeObject struct {
	Check   string  `json:"check"`
	Holds   bool    `json:"holds"`
	Needed  bool    `json:"needed"`
	Detail  string  `json:"detail"`
	Seconds float64 `json:"seconds"`
}

func (p *program) storeCommand() *cli.Command {
	return &cli.Command{
		Name: "store", Usage: "look at the store, and keep what lies in it in order",
		Action: p.action("store", func(context.Context, *cli.Context) error {
			return fault.New(fault.UsageError, "store takes a subcommand: \"sitrep store list\", or sitrep store probe, repair, rename, remove or unlock")
		}),
		Subcommands: []*cli.Command{{
			Name: "probe", Usage: "try the store for what replicas rely on, in a place of its own that is removed afterwards",
			Description: "Exits with 0 when everything that is needed holds, and with 3 otherwise. What was found is remembered: " +
				"\"check\" and \"protect\" refuse a store in which something that is needed did not hold.",
			Action: p.action("store probe", p.probeStore),
		}, p.storeListCommand(), p.repairCommand(), p.renameCommand(), p.removeCommand(), p.unlockCommand()},
	}
}

func (p *program) probeStore(ctx context.Context, c *cli.Context) error {
	if c.NArg() > 0 {
		return fault.New(fault.UsageError, "store probe takes no names: it is about the store of the site file")
	}
	w, err := p.open()
	if err != nil {
		return err
	}
	if err := w.haveStore(); err != nil {
		return err
	}
	if err := w.checkStore(ctx); err != nil { // a probe of an empty mount point would say nothing
		return err
	}
	prober, ok := replica.ProberOf(w.store)
	if !ok {
		return fault.New(fault.PrerequisiteFail, "this kind of store cannot be probed").At(w.store.Describe())
	}
	w.res.Store = w.store.Describe()
	if w.opts.dryRun {
		w.say("plan: make something of every kind in %s, beside the replicas, and remove it", w.store.Describe())
		return nil
	}
	return w.probe(ctx, prober)
}

func (w *world) probe(ctx context.Context, prober replica.Prober) error {
	checks, err := prober.Probe(ctx)
	w.res.Checks = []probeObject{}
	for _, c := range checks {
		w.res.Checks = append(w.res.Checks, probeObject{c.Name, c.Holds, c.Needed, c.Detail, c.Took.Seconds()})
	}
	if len(checks) > 0 { // else the store could not even be entered
		if serr := w.show(probeText(checks)); err == nil {
			err = serr
		}
	}
	if err != nil {
		return err
	}
	unfit := replica.Unfit(checks)
	if err := w.memory.RememberProbe(w.store.Describe(), unfit); err != nil {
		return err
	}
	if len(unfit) > 0 {
		return &shown{fault.New(fault.StoreUnfit, "what is needed and does not hold: %s", strings.Join(unfit, "; ")).At(w.store.Describe())}
	}
	w.say("\n%s: everything that is needed holds", w.store.Describe())
	return nil
}

func probeText(checks []replica.Check) string {
	rows := [][]string{{"CHECK", "NEEDED", "HOLDS", "TOOK", "FOUND"}}
	for _, c := range checks {
		needed, holds := "-", "yes"
		if c.Needed {
			needed = "yes"
		}
		if !c.Holds {
			holds = "NO"
		}
		rows = append(rows, []string{c.Name, needed, holds, span(c.Took), cmpOr(c.Detail, "-")})
	}
	return table(rows)
}

// unfit is the finding that the store, when it was probed last, did not do what is needed. The store is not probed here:
// looking at a VM changes nothing, and a probe writes.
func (w *world) unfit(vm *site.VM) []finding {
	last, ok, err := w.memory.Probe()
	if err != nil || !ok || w.store == nil || last.Where != w.store.Describe() || len(last.Unfit) == 0 {
		return nil
	}
	return []finding{{VM: vm.Name, Rule: string(fault.StoreUnfit), Severity: support.Error,
		Message: fmt.Sprintf("in the store %s, at the probe of %s, this did not hold: %s", last.Where,
			last.At.Format(time.RFC3339), strings.Join(last.Unfit, "; ")),
		Advice: w.advice(fault.StoreUnfit, vm.Name)}}
}
