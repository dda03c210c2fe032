//go:build linux

package simulation_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// manualAction is what a person has to do in the recovery plan.
const manualAction = "check the database by hand"

// planLife fails both VMs over by the recovery plan, and back again.
func (w *world) planLife(string) {
	w.Helper()
	for _, vm := range w.vms {
		w.replicating(vm)
		w.heal(vm)
		w.guest(vm)
		if w.damaged[vm] {
			return
		}
	}
	w.slow(w.chance(60))
	defer w.slow(false)
	m := w.machines[0]
	w.counts["plans"]++
	switch kind := w.pick("test", "planned", "unplanned"); kind {
	case "test":
		w.runPlan("dr start web-test", "failover", "test", "--plan", "shop")
		for _, vm := range w.vms {
			if p, ok := w.failoverPoint(vm, true); ok {
				w.recovered(vm, vm+"-test", p)
			}
		}
		w.insist(m, "failover", "cleanup", "--plan", "shop")
		for _, vm := range w.vms {
			w.nothingLeft(vm + "-test")
		}
	default:
		before := map[string]map[string]content{}
		for _, vm := range w.vms {
			before[vm] = w.home(vm).now()
		}
		w.runPlan("dr start web", "failover", kind, "--plan", "shop")
		for _, vm := range w.vms {
			w.failedOver(vm, point{}, before[vm], kind == "planned")
		}
		if w.chance(50) {
			w.insist(m, "failover", "undo", "--plan", "shop")
			for _, vm := range w.vms {
				w.undone(vm)
			}
			break
		}
		w.insist(m, "failover", "commit", "--plan", "shop")
		for _, vm := range w.vms {
			w.away(vm)
		}
		w.runPlan("src start web", "failback", "--plan", "shop")
		for _, vm := range w.vms {
			w.backHome(vm)
		}
		w.insist(m, "failover", "commit", "--plan", "shop")
		for _, vm := range w.vms {
			w.nothingLeft(vm)
		}
	}
	w.slow(false)
	w.healAll()
}

// runPlan runs a plan to its end, through kills and through what a person has to do. last is how the log of calls tells that the VM of
// the last group is started.
func (w *world) runPlan(last string, args ...string) {
	w.Helper()
	m := w.machines[0]
	from := len(w.calls())
	begin := slices.Clone(args)
	for range 40 {
		var o outcome
		if w.chance(50) {
			o = w.hit(m, args...)
		} else {
			o = w.run(m, args...)
		}
		w.gates(last, from)
		action, waits := w.waiting(m)
		switch {
		case o.code == 0:
			return
		case waits && w.chance(80):
			w.call("manual " + manualAction) // a person does it
			args = []string{"failover", "continue", "--plan", "shop", "--done", action}
		case w.chance(50):
			args = begin
		default:
			args = []string{"failover", "continue", "--plan", "shop"}
		}
		if o.code > 0 && o.signal == nil && !waits && o.err().Code != "wrong-state" {
			w.wrong("the plan stops: %v", o)
		}
	}
	w.wrong("the plan does not come to its end")
}

// waiting is the manual action that the plan waits for.
func (w *world) waiting(m *machine) (string, bool) {
	w.Helper()
	for _, p := range w.run(m, "status").object.Plans {
		if p.Waiting != "" {
			return p.Waiting, true
		}
	}
	return "", false
}

// calls is what the hosts and actions were asked for, in order.
func (w *world) calls() []string {
	w.Helper()
	var out []string
	for _, name := range []string{"order.log"} {
		data, err := os.ReadFile(w.path("hosts", name))
		if err != nil && !os.IsNotExist(err) {
			w.Fatal(err)
		}
		out = append(out, strings.Split(strings.TrimSpace(string(data)), "\n")...)
	}
	return out
}

func (w *world) call(line string) {
	w.Helper()
	f, err := os.OpenFile(w.path("hosts", "order.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	must(w.T, err)
	_, err = fmt.Fprintln(f, line)
	must(w.T, err)
	must(w.T, f.Close())
}

// gates asks whether all that has to be done before a VM of the plan is started was done before.
func (w *world) gates(last string, from int) {
	w.Helper()
	calls := w.calls()[from:]
	first := strings.ReplaceAll(last, "web", "db")
	for start, gates := range map[string][]string{
		first: {"action pre1"},
		last:  {"action pre1", first, "action boot", "manual " + manualAction, "action post1", "action pre2"},
	} {
		at := slices.Index(calls, start)
		for _, gate := range gates {
			if i := slices.Index(calls, gate); at >= 0 && (i < 0 || i > at) {
				w.wrong("%q came before %q; the calls were\n%s", start, gate, strings.Join(calls, "\n"))
			}
		}
	}
}
