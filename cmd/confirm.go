package cmd

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"sitrep/internal/fault"
)

// yesFlag is of commands that give something up for good.
func yesFlag() cli.Flag {
	return &cli.BoolFlag{Name: "yes", Usage: "do it without a question, in a script"}
}

// silence is what becomes of a question where nobody can be asked.
type silence bool

const (
	// silenceIsNo: a script has to say --yes.
	silenceIsNo silence = false
	// silenceIsYes: what was named on the command line is meant.
	silenceIsYes silence = true
)

// confirm asks a person at a terminal whether to do it. what says what will be lost, in whole lines; it is shown in any case.
func (w *world) confirm(ctx context.Context, c *cli.Context, s silence, what, question string) error {
	if c.Bool("yes") || w.opts.dryRun {
		return nil
	}
	if !w.canAsk() {
		if s == silenceIsYes {
			return nil
		}
		fmt.Fprint(w.stderr, what)
		return fault.New(fault.UsageError, "%s Nobody can be asked here: --yes says that it is meant", question).Then("sitrep help " + w.res.Command)
	}
	fmt.Fprint(w.stderr, what)
	yes, err := w.ask(ctx, question+" [y/N] ")
	if err == nil && !yes {
		err = fault.New(fault.Declined, "nothing was changed")
	}
	return err
}

// canAsk says whether somebody sits at a terminal.
func (p *program) canAsk() bool {
	if p.askable != nil {
		return p.askable()
	}
	f, ok := p.stdin.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && !p.opts.json
}

// ask waits for an answer. An end of the input is no yes.
func (p *program) ask(ctx context.Context, question string) (bool, error) {
	fmt.Fprint(p.stderr, question)
	said := make(chan string, 1)
	go func() { // a terminal cannot be waited for and be interrupted
		line, _ := bufio.NewReader(p.stdin).ReadString('\n')
		said <- line
	}()
	select {
	case <-ctx.Done():
		return false, fault.FromOS(ctx.Err())
	case line := <-said:
		answer := strings.ToLower(strings.TrimSpace(line))
		return answer == "y" || answer == "yes", nil
	}
}
