package cmd

import (
	"errors"
	"fmt"
	"strings"

	"sitrep/internal/fault"
	"sitrep/internal/health"
	"sitrep/internal/replica"
)

// The exit codes of status --check are those of monitoring plugins.
const (
	checkOK       = 0
	checkWarning  = 1
	checkCritical = 2
	checkUnknown  = 3
)

// isProtected says whether the VM is meant to replicate: one whose replica was kept when protection was disabled is not.
func (o *statusObject) isProtected() bool {
	return o.State != notProtected && o.State != string(replica.Retired)
}

// plugin writes the one line that a monitoring plugin shows, and sets the exit code. A VM that is not protected is none of
// its business, unless it was named, or no other is protected: a site that protects nothing is hardly what is wanted.
func (w *world) plugin(list []*statusObject, named bool) error {
	worst, bad, protected := checkOK, []string{}, 0
	for _, o := range list {
		code := checkCodeOf(o, named)
		if o.isProtected() {
			protected++
		}
		if code == checkOK {
			continue
		}
		why := "it is not protected"
		switch {
		case len(o.HealthReasons) > 0:
			why = o.HealthReasons[0]
		case o.Error != nil:
			why = o.Error.Message
		}
		text := o.VM + ": " + strings.Join(strings.Fields(why), " ")
		if code > worst { // the gravest comes first
			bad = append([]string{text}, bad...)
		} else {
			bad = append(bad, text)
		}
		worst = max(worst, code)
	}
	for _, o := range w.res.Unlisted {
		worst, bad = max(worst, checkWarning), append(bad, o.VM+": "+o.text())
	}
	if text := w.res.Access.text(); text != "" {
		worst, bad = max(worst, checkWarning), append(bad, "store: "+text)
	}
	summary := fmt.Sprintf("%d of %d VMs are protected", protected, len(list))
	if protected == 0 {
		summary, worst = "no VM is protected", max(worst, checkWarning)
	}
	if len(bad) > 0 {
		summary = strings.Join(bad, "; ")
	}
	w.verdict = &worst
	word := [...]string{"OK", "WARNING", "CRITICAL"}[worst]
	return w.show(fmt.Sprintf("%s - %s%s\n", word, strings.ReplaceAll(summary, "|", "/"), perfdata(list)))
}

// pluginError is the line of a plugin that could not look: it shows what it finds on stdout, and nothing else.
func (p *program) pluginError(err error) error {
	code, word, more := checkCritical, "CRITICAL", ""
	if fault.Is(err, fault.Permission) { // nothing is known of the VMs
		code, word = checkUnknown, "UNKNOWN"
		more = "; run the check as the account that replicates, such as with sudo, or have it read the file of status --prometheus"
	}
	p.verdict = &code
	line := fmt.Sprintf("%s - %s%s\n", word, strings.ReplaceAll(strings.Join(strings.Fields(message(err)), " "), "|", "/"), more)
	return errors.Join(err, p.show(line))
}

func checkCodeOf(o *statusObject, named bool) int {
	switch {
	case o.Health == healthCritical, o.Error != nil: // what cannot be looked at is not well
		return checkCritical
	case o.Health == healthWarning, !o.isProtected() && named:
		return checkWarning
	}
	return checkOK
}

// perfdata is the numbers behind the line, in the form that plugins have for them: 'label'=value;warning;critical;minimum.
func perfdata(list []*statusObject) string {
	var b strings.Builder
	for _, o := range list {
		if !o.isProtected() {
			continue
		}
		if o.RPO != nil {
			fmt.Fprintf(&b, " '%s rpo'=%.0fs;%.0f;;0", o.VM, *o.RPO, health.BehindLimit.Seconds())
		}
		fmt.Fprintf(&b, " '%s pending'=%dB;;;0", o.VM, o.Pending)
	}
	if b.Len() == 0 {
		return ""
	}
	return " |" + b.String()
}
