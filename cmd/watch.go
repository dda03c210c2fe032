package cmd

import (
	"context"
	"io"
	"os"
	"regexp"
	"time"

	"golang.org/x/term"

	"sitrep/internal/site"
)

const (
	watchInterval = 5 * time.Second
	minInterval   = 100 * time.Millisecond
)

// watch shows the status again and again until it is interrupted, which is how it is meant to end. On a terminal each
// picture replaces the last one.
func (w *world) watch(ctx context.Context, vms []*site.VM, every time.Duration, details bool) error {
	clear := ""
	if screen(w.stdout) {
		clear = "\x1b[H\x1b[2J"
	}
	for {
		list, _ := w.collect(ctx, vms) // what went wrong with a VM is among its reasons
		if ctx.Err() != nil {
			return nil
		}
		if _, err := io.WriteString(w.stdout, clear); err != nil {
			return err
		}
		unlisted := ""
		if !details {
			unlisted = w.unlistedText(w.unlisted(ctx))
		}
		text := w.local(w.now()) + "\n" + w.statusText(list, details) + unlisted + w.accessText() + w.planText(w.plansUnderWay(ctx, vms))
		if clear == "" {
			text += "\n"
		}
		if err := w.show(text); err != nil {
			return err
		}
		if w.sleep(ctx, every) != nil {
			return nil
		}
	}
}

// screen says whether something is a terminal that understands escape sequences.
func screen(w io.Writer) bool {
	f, ok := fileOf(w)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb"
}

var healthWords = regexp.MustCompile(`\b(Normal|Warning|Critical)\b`)

// coloured gives the words of health their colours, on a terminal and unless NO_COLOR says not to.
func (p *program) coloured(text string) string {
	if !screen(p.stdout) || p.getenv("NO_COLOR") != "" {
		return text
	}
	colour := map[string]string{healthNormal: "\x1b[32m", healthWarning: "\x1b[33m", healthCritical: "\x1b[31m"}
	return healthWords.ReplaceAllStringFunc(text, func(s string) string { return colour[s] + s + "\x1b[0m" })
}
