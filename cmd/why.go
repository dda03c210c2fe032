package cmd

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/internal/state"
)

// whyObject is why a VM stands as it does.
type whyObject struct {
	vmHead
	Chain []linkObject `json:"chain"` // what is seen first, then what led to it
	Mend  string       `json:"mend,omitempty"`
	Next  string       `json:"next_action"` // the exact command
}

// linkObject is one cause, with its evidence.
type linkObject struct {
	Code     string           `json:"code"`
	What     string           `json:"what"`
	Cause    string           `json:"cause,omitempty"`
	Since    *time.Time       `json:"since,omitempty"`
	Evidence []evidenceObject `json:"evidence,omitempty"`
}

type evidenceObject struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

func (l *linkObject) show(name, format string, args ...any) {
	l.Evidence = append(l.Evidence, evidenceObject{name, fmt.Sprintf(format, args...)})
}

func (p *program) whyCommand() *cli.Command {
	return &cli.Command{
		Name: "why", Usage: "the chain of causes of a bad state, with evidence, and the exact next command", ArgsUsage: "VM...",
		Flags: vmFlags(),
		Action: p.action("why", func(ctx context.Context, c *cli.Context) error {
			w, err := p.open()
			if err != nil {
				return err
			}
			vms, err := selectVMs(w.site, c, noneIsWrong)
			if err != nil {
				return err
			}
			return w.each(ctx, vms, func(ctx context.Context, vm *site.VM) (vmObject, error) {
				o, err := w.why(ctx, vm)
				if err != nil {
					return o, err
				}
				return o, w.show(w.whyText(o))
			})
		}),
	}
}

// why looks at a VM as status does, and then at what lies behind each reason: what this site remembers, the ledger, the
// logs and the disks themselves.
func (w *world) why(ctx context.Context, vm *site.VM) (*whyObject, error) {
	o := &whyObject{Chain: []linkObject{}}
	o.VM = vm.Name
	mem, _, err := w.memory.VM(vm.Name)
	if err != nil {
		return o, err
	}
	list, errs := w.collect(ctx, []*site.VM{vm})
	if err := ctx.Err(); err != nil {
		return o, fault.FromOS(err)
	}
	st := list[0]
	o.State, o.Health = st.State, st.Health
	var blind error
	if len(errs) > 0 {
		blind = errs[0]
	}
	ledger, lerr := w.present(ctx, vm)
	for i, r := range st.Reasons {
		l := linkObject{Code: r.Code, What: r.Text, Cause: causeOf(fault.Code(r.Code))}
		if lerr == nil && i == 0 {
			w.ledgerEvidence(&l, ledger)
		}
		o.Chain = append(o.Chain, l)
	}
	o.Chain = append(o.Chain, w.behind(vm, mem, ledger, lerr, st)...)
	w.nextStep(vm, mem, ledger, blind, st, o)
	return o, nil
}

func causeOf(c fault.Code) string {
	if e := c.Lookup(); e != fault.IO.Lookup() || c == fault.IO {
		return e.Cause
	}
	return ""
}

// ledgerEvidence is what the ledger says of a VM's state.
func (w *world) ledgerEvidence(l *linkObject, st replica.State) {
	text := fmt.Sprintf("version %d: phase %s since %s, applied %d, received %d", st.Version, st.Phase, stamp(st.PhaseSince), st.Applied.Seq, st.Received.Seq)
	if st.Applying != nil {
		text += fmt.Sprintf(", applying %d to %d", st.Applying.From.Seq, st.Applying.To.Seq)
	}
	if st.ReasonCode != "" {
		text += ", reason_code " + string(st.ReasonCode)
	}
	l.show("ledger", "%s in %s: %s", st.VM, w.store.Describe(), text)
	if !st.AsOf.IsZero() {
		l.show("clock", "%s here, the replica is of %s", stamp(w.now()), stamp(st.AsOf))
	}
}

// behind is what led to what is seen: the errors that are remembered, and how disks and logs are at this moment.
func (w *world) behind(vm *site.VM, mem state.VM, ledger replica.State, lerr error, st *statusObject) (chain []linkObject) {
	if m := mem.Marked; m != nil {
		l := linkObject{Code: string(m.Code), What: m.Reason, Cause: causeOf(m.Code), Since: utc(m.Since)}
		l.show("remembered in", "%s, the ledger was out of reach", w.memory.Path("vms", vm.Name+".json"))
		chain = append(chain, l)
	} else if lerr == nil && ledger.ReasonCode != "" {
		chain = append(chain, linkObject{Code: string(ledger.ReasonCode), What: ledger.Reason, Cause: causeOf(ledger.ReasonCode), Since: utc(ledger.PhaseSince)})
	}
	for _, f := range []*state.Failure{mem.Critical, mem.Failed} {
		if f == nil || st.State == notProtected {
			continue
		}
		if n := len(chain); n > 0 && chain[n-1].What == f.Message { // the error that the mark was made of
			w.failureEvidence(&chain[n-1], f)
			continue
		}
		l := linkObject{Code: string(f.Code), What: f.Message, Cause: f.Cause, Since: utc(f.At)}
		w.failureEvidence(&l, f)
		chain = append(chain, l)
	}
	if len(st.Reasons) > 0 {
		chain = append(chain, w.disksNow(vm, mem)...)
	}
	return chain
}

// failureEvidence is what is known of a failed run.
func (w *world) failureEvidence(l *linkObject, f *state.Failure) {
	if f.Path != "" {
		l.show("file", "%s", f.Path)
	}
	if f.Job == "" {
		return
	}
	l.show("job", "%s", f.Job)
	j, err := w.memory.Job(f.Job)
	if err != nil {
		return // pruned
	}
	l.show("ran", "%q from %s to %s", j.Name, stamp(j.Started), stamp(j.Ended))
	for _, s := range j.Steps {
		if s.State != state.Succeeded {
			l.show("step", "%q %s", s.Name, s.State)
		}
	}
}

// disksNow is what the source disks and their change logs are at this moment, where that is out of order.
func (w *world) disksNow(vm *site.VM, mem state.VM) (chain []linkObject) {
	for _, d := range vm.Disks {
		img, err := w.openDisk(vm, d, formatOf(d, mem.Disks))
		if err == nil {
			err = img.Close()
		}
		if err != nil {
			e := fault.FromOS(err)
			l := linkObject{Code: string(e.Code), What: "at this moment: " + err.Error(), Cause: causeOf(e.Code)}
			l.show("file", "%s", d.Path)
			chain = append(chain, l)
			continue
		}
		if l, any := w.logsNow(vm, d, mem.Replica); any {
			chain = append(chain, l)
		}
	}
	return chain
}

// logsNow is the change logs that lie beside a disk, and what is wrong with their sequence.
func (w *world) logsNow(vm *site.VM, d *site.Disk, id hrl.ID) (l linkObject, any bool) {
	logs, err := w.engine(vm, nil, id, nil).Waiting(d.Name)
	if err != nil || len(logs) == 0 {
		return l, false
	}
	l = linkObject{Code: "logs-waiting", What: fmt.Sprintf("beside disk %s: %s", d.Name, plural(len(logs), "change log"))}
	for i, x := range logs {
		if i > 0 && x.From != logs[i-1].To {
			l.show("gap", "no log leads from position %d to %d", logs[i-1].To.Seq, x.From.Seq)
		}
		l.show("log", "%s: position %d to %d, %s, cut at %s", x.Path, x.From.Seq, x.To.Seq, size(x.Bytes), stamp(x.CutAt))
	}
	return l, true
}

// nextStep says what has to be mended outside, and the exact command that leads on.
func (w *world) nextStep(vm *site.VM, mem state.VM, ledger replica.State, blind error, st *statusObject, o *whyObject) {
	say := func(c fault.Code, verb string) {
		e := c.Lookup()
		o.Next = w.commands(fault.Fill(e.Command, vm.Name, verb))
		advice := fault.Fill(e.Advice, vm.Name, verb)
		mend, _, found := strings.Cut(advice, "Then run: ")
		if found {
			o.Mend = strings.TrimSpace(w.commands(mend))
		}
	}
	switch {
	case st.Running != "":
		say(fault.RunLocked, "")
	case mem.Critical != nil && st.State != notProtected:
		say(mem.Critical.Code, "")
	case mem.Marked != nil:
		say(mem.Marked.Code, "")
	case blind != nil && mem.Failed != nil && mem.Failed.Code == fault.FromOS(blind).Code:
		say(mem.Failed.Code, verbOf(w, mem.Failed))
	case blind != nil:
		say(fault.FromOS(blind).Code, "")
	case marked(&ledger, mem).Phase == replica.ResyncRequired && ledger.ReasonCode != "":
		say(ledger.ReasonCode, "")
	case mem.Failed != nil && len(st.Reasons) > 0 && ledger.Phase != replica.Paused:
		say(mem.Failed.Code, verbOf(w, mem.Failed))
	default:
		o.Next = w.commands(st.Next)
	}
}

// verbOf is the subcommand that failed, "" when its job is not remembered any more.
func verbOf(w *world, f *state.Failure) string {
	if f.Job == "" {
		return ""
	}
	j, err := w.memory.Job(f.Job)
	if err != nil {
		return ""
	}
	return j.Command
}

func (w *world) whyText(o *whyObject) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s%s\n", o.VM, o.State, because(o.Health))
	if len(o.Chain) == 0 {
		b.WriteString("  nothing is wrong\n")
	}
	for i, l := range o.Chain {
		fmt.Fprintf(&b, "%d. %s (%s)\n", i+1, l.What, l.Code)
		if l.Cause != "" {
			fmt.Fprintf(&b, "     cause: %s\n", l.Cause)
		}
		if l.Since != nil {
			fmt.Fprintf(&b, "     since: %s\n", stamp(*l.Since))
		}
		for _, e := range l.Evidence {
			fmt.Fprintf(&b, "     %s: %s\n", e.Name, e.Value)
		}
	}
	if o.Mend != "" {
		fmt.Fprintf(&b, "first: %s\n", o.Mend)
	}
	if o.Next != "" {
		fmt.Fprintf(&b, "next:  %s\n", o.Next)
	}
	return b.String()
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ", " + reason
}
