//go:build linux

package simulation_test

import (
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"
)

// patience is how often an operator does what is told before giving up.
const patience = 14

// heal is an operator: a delta, and whatever the program then says is to be done, until a delta succeeds. Where nothing was done to the
// VM's files the advice has to lead there; else the last way out is to begin anew.
func (w *world) heal(vm string) {
	w.Helper()
	if w.owner[vm] == nil {
		return
	}
	m := w.machines[0]
	args := []string{"delta", vm, "--now"}
	var said []string
	for range patience {
		o := w.run(m, args...)
		if isTakeOver(args) && o.code == 0 {
			w.owner[vm] = m
		}
		if o.code == 0 && args[0] == "delta" {
			w.healed(vm)
			return
		}
		said = append(said, o.String())
		w.byHand(vm, o)
		args = w.told(m, vm, o)
	}
	if !w.damaged[vm] {
		w.wrong("the advice leads nowhere:\n%s", strings.Join(said, "\n"))
	}
	w.beginAnew(vm, said)
}

// healed says that a VM's replica is up to date: it is held against its source.
func (w *world) healed(vm string) {
	w.Helper()
	if w.damaged[vm] || w.replaced[vm] {
		w.damaged[vm], w.replaced[vm] = false, false
		w.whole[vm] = time.Now()
	}
}

// accepting is how a message names the command by which another disk is accepted.
var accepting = regexp.MustCompile(`from now on: (sitrep [^;\n]*)`)

// told is the command that a run has said is next: of its error, or else of the VM's status. What only shows something is no way out.
func (w *world) told(m *machine, vm string, o outcome) []string {
	w.Helper()
	if m := accepting.FindStringSubmatch(o.err().Message); m != nil { // a decision of a person, and so no next command
		return w.words(strings.TrimSpace(m[1]))
	}
	if next := w.words(o.err().Next); o.code != 0 && leads(next) && !slices.Equal(next, o.args) {
		return next
	}
	st := w.run(m, "status", vm)
	if len(st.object.VMs) > 0 {
		switch next := w.words(st.object.VMs[0].Next); {
		case st.object.VMs[0].State == "not-protected":
			return []string{"protect", vm}
		case leads(next) && !slices.Equal(next, o.args):
			return next
		}
	}
	return []string{"delta", vm, "--now"}
}

// leads says whether a command changes anything.
func leads(args []string) bool {
	return len(args) > 0 && !slices.Contains([]string{"status", "why", "jobs", "check", "points", "help", "version", "hrl", "df", "mount"}, args[0])
}

// words splits a command that a message names, as a shell does, and leaves out what the simulation says itself.
func (w *world) words(command string) []string {
	if !strings.HasPrefix(command, "sitrep ") || strings.ContainsAny(command, "<>|;") {
		return nil
	}
	out, err := exec.Command("sh", "-c", `for a in `+strings.TrimPrefix(command, "sitrep ")+`; do printf '%s\n' "$a"; done`).Output()
	if err != nil {
		return nil
	}
	list := strings.Split(strings.TrimSpace(string(out)), "\n")
	for i := 0; i < len(list); i++ {
		if list[i] == "--site" || list[i] == "--state" {
			list = slices.Delete(list, i, min(i+2, len(list)))
			i--
		}
	}
	if !slices.Contains(list, "--yes") {
		list = append(list, w.yes(list[0])...)
	}
	return list
}

// isTakeOver says whether a command makes the machine that runs it the owner of a replica.
func isTakeOver(args []string) bool {
	return slices.Contains([]string{"takeover", "protect"}, args[0]) || args[0] == "store" && slices.Contains(args, "unlock")
}

// byHand does what a message asks a person to do before the next command.
func (w *world) byHand(vm string, o outcome) {
	w.Helper()
	switch o.err().Code {
	case "ledger-damaged", "ledger-missing", "ledger-corrupt":
		w.restore(vm, "ledger.json")
	}
}

// beginAnew gives a replica up and makes another one.
func (w *world) beginAnew(vm string, said []string) {
	w.Helper()
	w.counts["began anew"]++
	w.Logf("the advice has not led out (damaged: %v, another disk: %v):\n%s", w.damaged[vm], w.replaced[vm], strings.Join(w.trace[max(0, len(w.trace)-40):], "\n"))
	w.note("the operator gives the replica of %s up, after: %s", vm, strings.ReplaceAll(said[len(said)-1], "\n", " "))
	m := w.machines[0]
	if o := w.run(m, append([]string{"unprotect", vm}, w.yes("unprotect")...)...); o.code != 0 {
		must(w.T, os.RemoveAll(w.path("store", vm)))
		must(w.T, os.RemoveAll(w.path("a", ".sitrep")))
	}
	if o := w.run(m, "protect", vm); o.code != 0 {
		w.wrong("a VM whose replica was given up cannot be protected:\n%s\n%v", strings.Join(said, "\n"), o)
	}
	w.owner[vm] = m
	w.healed(vm)
}

// knows says whether the program has a flag.
func (w *world) knows(command, flag string) bool {
	out, _ := exec.Command(binary, "help", command).CombinedOutput()
	return strings.Contains(string(out), flag)
}
