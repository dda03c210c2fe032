// Package cmd is the command line: one file for each subcommand, and the few things that all of them share.
//
//	run.go, args.go    from arguments to a subcommand
//	select.go          which VMs it is about
//	wire.go            the one place where contracts meet what implements them
//	output.go          tables and JSON
//	errors.go, exit.go errors as text, as JSON and as exit code
//	progress.go        bars and lines
//
// A subcommand does its work VM by VM, and adds to the result what it has to show. Engines get a context, a logger and
// a meter; that there is a terminal is known here only.
package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/plain"
	"sitrep/internal/site"
)

// Run does what args (with the program's name first) ask for, and returns the exit code. A signal that asks it to end ends it in
// good order: see untilSignal.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	p := &program{
		fs: durable.OS(), stdin: stdin, stdout: stdout, stderr: stderr, getenv: os.Getenv, now: time.Now,
	}
	if len(args) > 0 {
		p.guard = guardProcess(args[0])
	}
	ctx, stop := p.untilSignal(ctx)
	defer stop()
	return p.run(ctx, args)
}

// run does what args ask for, and returns the exit code.
func (p *program) run(ctx context.Context, args []string) int {
	out := sunk(p.stdout)
	p.stdout, p.stderr = out, sunk(p.stderr)
	code := p.do(ctx, args)
	if err := out.lost(); err != nil {
		fmt.Fprintf(p.stderr, "sitrep: stdout: %v; the work is done, its output is not complete\n", err)
		return max(code, exitFailed)
	}
	return code
}

// do does what args ask for, and returns the exit code.
func (p *program) do(ctx context.Context, args []string) int {
	app := p.app()
	app.Setup()
	ordered := permute(app, args)
	err := app.RunContext(ctx, ordered)
	var help cli.ExitCoder
	if errors.As(err, &help) { // only urfave/cli's own commands make such errors: there is nothing of that name to help with
		known := append(commandNames(app.Commands), topicNames()...)
		name := ordered[len(ordered)-1]
		err = fault.New(fault.UsageError, "there is no command and no topic %q%s", name, site.DidYouMean(name, known))
	}
	return p.finish(err)
}

// options are the global flags.
type options struct {
	site      string
	siteGiven bool // on the command line
	state     string
	json      bool
	quiet     bool
	verbose   bool
	progress  string
	dryRun    bool
	bandwidth *site.Bandwidth // nil: as the policies say
	version   bool
}

// program is one run of the command line.
type program struct {
	fs     durable.FS
	disk   durable.FS // fs; of a dry run too one that can be written to, to let a VM go on that was left held
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	getenv func(string) string
	now    func() time.Time
	pause  func(context.Context, time.Duration) error // nil: the clock on the wall decides
	hurry  chan struct{}                              // closed when the run is told twice to end; nil: never
	deaf   atomic.Bool                                // to signals that ask the run to end
	guard  startGuard                                 // nil: what is held has none
	// host and machine are the name and the identity of this machine; nil: as the system says.
	host, machine func() string
	runID         hrl.ID      // of this run, as ledgers name it; zero until something is written
	waits         bool        // --wait: for runs that work on the VM
	askable       func() bool // whether somebody can be asked; nil: at a terminal

	opts options
	errs *lines // stderr, for several goroutines: that of log
	log  *slog.Logger
	res  result
	// verdict is the exit code of a command whose exit code is its answer, whatever it could not do.
	verdict *int
}

// app is the tree of subcommands.
func (p *program) app() *cli.App {
	app := &cli.App{
		Name:            "sitrep",
		Usage:           "protects virtual machines against the loss of a site",
		UsageText:       "sitrep [--site FILE] [global flags] COMMAND [flags] [VM...]",
		Description:     topicList(),
		Version:         version(),
		HideVersion:     true,
		Flags:           p.globalFlags(),
		Commands:        p.subcommands(),
		Before:          p.before,
		Action:          p.noCommand,
		Reader:          p.stdin,
		Writer:          plain.Writer(p.stdout),
		ErrWriter:       plain.Writer(p.stderr),
		HideHelpCommand: false,
		OnUsageError:    onUsageError,
		// Errors come back from RunContext: only main ends the process.
		ExitErrHandler: func(*cli.Context, error) {},
	}
	finishCommands(app.Commands, app.Flags)
	return app
}

func (p *program) subcommands() []*cli.Command {
	return []*cli.Command{
		p.initCommand(), p.checkCommand(), p.storeCommand(), p.protectCommand(), p.replicateCommand(), p.deltaCommand(), p.applyCommand(),
		p.resyncCommand(), p.verifyCommand(), p.pointsCommand(), p.statusCommand(), p.whyCommand(), p.jobsCommand(), p.pauseCommand(), p.resumeCommand(),
		p.failoverCommand(), p.failbackCommand(), p.takeoverCommand(), p.unprotectCommand(), p.hrlCommand(), p.versionCommand(), p.completionCommand(), p.manCommand(), p.topicCommand(), p.candidatesCommand(), p.guardCommand(),
	}
}

// finishCommands gives every command what urfave/cli has per command only. Its "help" subcommand of each command is
// left out, because a VM may have that name.
func finishCommands(list []*cli.Command, global []cli.Flag) {
	for _, c := range list {
		c.OnUsageError = onUsageError
		c.CustomHelpTemplate = helpTemplate(c, global)
		c.HideHelpCommand = true
		finishCommands(c.Subcommands, global)
	}
}

// helpTemplate is the help of a command, with the global flags, and where the rest is told.
func helpTemplate(c *cli.Command, global []cli.Flag) string {
	text := cli.CommandHelpTemplate
	if len(c.Subcommands) > 0 {
		text = cli.SubcommandHelpTemplate
	}
	var list strings.Builder
	tabs := tabwriter.NewWriter(&list, 1, 8, 2, ' ', 0)
	for _, f := range global {
		fmt.Fprintf(tabs, "   %s\n", f)
	}
	tabs.Flush() // to a strings.Builder: cannot fail
	return text + "\nGLOBAL OPTIONS:\n" + list.String() + "\nEXIT CODES: sitrep help exit-codes\n"
}

func (p *program) globalFlags() []cli.Flag {
	o := &p.opts
	return []cli.Flag{
		&cli.StringFlag{Name: "site", Usage: "the site `FILE` (default: $SITREP_SITE, then ./site.yaml)", Destination: &o.site},
		&cli.StringFlag{Name: "state", Usage: "the `DIR` of jobs and locks (default: .sitrep beside the site file)", Destination: &o.state},
		&cli.BoolFlag{Name: "json", Usage: "write one JSON object to stdout", Destination: &o.json},
		&cli.BoolFlag{Name: "quiet", Usage: "write nothing but errors and what was asked for", Destination: &o.quiet},
		&cli.BoolFlag{Name: "verbose", Usage: "write to stderr what is being done", Destination: &o.verbose},
		&cli.StringFlag{Name: "progress", Usage: "auto, bar, lines or none", Value: "auto", Destination: &o.progress},
		&cli.BoolFlag{Name: "dry-run", Usage: "show the plan and change nothing", Destination: &o.dryRun},
		&cli.StringFlag{Name: "bandwidth", Usage: "send to the store at this `RATE`, such as 20Mbit, 2MiB or off, instead of the policy's",
			Action: func(_ *cli.Context, rate string) error { return o.setBandwidth(rate) }},
		&cli.BoolFlag{Name: "version", Usage: "print the version, as the command of this name does", Destination: &o.version},
	}
}

// before makes of the global flags what the commands use.
func (p *program) before(c *cli.Context) error {
	o := &p.opts
	o.siteGiven = c.IsSet("site")
	if o.version && c.Args().Present() {
		return fault.New(fault.UsageError, "--version excludes a command")
	}
	if o.site == "" {
		o.site = cmpOr(p.getenv("SITREP_SITE"), "site.yaml")
	}
	switch o.progress {
	case "auto", "bar", "lines", "none":
	default:
		return fault.New(fault.UsageError, "--progress is auto, bar, lines or none, not %q", o.progress)
	}
	if o.dryRun {
		p.disk = p.fs
		p.fs = durable.ReadOnly(p.fs)
	}
	p.errs = &lines{w: p.stderr}
	if o.verbose {
		p.log = slog.New(slog.NewTextHandler(plain.Writer(p.errs), &slog.HandlerOptions{Level: slog.LevelDebug}))
	} else {
		p.log = slog.New(newWordsHandler(plain.Writer(p.errs)))
	}
	return nil
}

// onUsageError words what the flag package of Go says of a wrong command line.
func onUsageError(c *cli.Context, err error, _ bool) error {
	known := c.App.Flags
	if c.Command != nil {
		known = append(slices.Clone(c.Command.Flags), known...)
	}
	wrong := fault.New(fault.UsageError, "%s", flagError(err.Error(), known))
	if c.Command != nil && strings.HasPrefix(c.Command.HelpName, "sitrep ") {
		wrong.Next = c.Command.HelpName + " --help"
	}
	return wrong
}

var (
	unknownFlag  = regexp.MustCompile(`^flag provided but not defined: -+(\S+)$`)
	missingValue = regexp.MustCompile(`^flag needs an argument: -+(\S+)$`)
	wrongValue   = regexp.MustCompile(`^invalid (?:boolean )?value "(.*)" for (?:flag )?-+([^:]+): (.*)$`)
)

// flagError is an error of the flag package in plain words.
func flagError(text string, known []cli.Flag) string {
	if m := unknownFlag.FindStringSubmatch(text); m != nil {
		return fmt.Sprintf("there is no flag --%s%s", m[1], site.DidYouMean("--"+m[1], flagNames(known)))
	}
	if m := missingValue.FindStringSubmatch(text); m != nil {
		return fmt.Sprintf("the flag --%s needs a value", m[1])
	}
	m := wrongValue.FindStringSubmatch(text)
	if m == nil {
		return text
	}
	wrong := fmt.Sprintf("the flag --%s does not take %q", m[2], m[1])
	switch find(known, m[2]).(type) {
	case *cli.DurationFlag:
		return wrong + ": want a duration such as 30s, 10m or 2h"
	case *cli.IntFlag:
		return wrong + ": want a number"
	case *cli.BoolFlag:
		return wrong + ": it is given without a value"
	}
	return wrong + ": " + m[3]
}

// noCommand answers a command line without a command, or with one that does not exist.
func (p *program) noCommand(c *cli.Context) error {
	if p.opts.version && !c.Args().Present() {
		return p.action("version", p.printVersion)(c)
	}
	if c.Args().Present() {
		var names []string
		for _, x := range c.App.Commands {
			names = append(names, x.Name)
		}
		return fault.New(fault.UsageError, "there is no command %q%s", c.Args().First(), site.DidYouMean(c.Args().First(), names))
	}
	c.App.Writer = c.App.ErrWriter
	if err := cli.ShowAppHelp(c); err != nil {
		return err
	}
	return fault.New(fault.UsageError, "a command is missing")
}

// action wraps what a subcommand does.
func (p *program) action(command string, f func(context.Context, *cli.Context) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		p.res.Command, p.waits = command, c.Bool("wait")
		return f(c.Context, c)
	}
}

// finish writes what is left to write and returns the exit code.
func (p *program) finish(err error) int {
	var several *failures
	if !errors.As(err, &several) {
		if err != nil {
			p.printError(p.stderr, err, "")
		}
	} else {
		err = several.worst() // each was printed when it happened
	}
	p.res.ExitCode = exitCode(err)
	if p.verdict != nil {
		p.res.ExitCode = *p.verdict
	}
	p.res.OK = p.res.ExitCode == exitDone
	p.res.Error = p.object(err, "")
	if p.opts.json && (p.res.Command != "" || err != nil) {
		if werr := p.res.write(p.stdout); werr != nil {
			fmt.Fprintf(p.stderr, "sitrep: the result cannot be written: %v\n", werr)
			return max(p.res.ExitCode, exitFailed)
		}
	}
	return p.res.ExitCode
}

// stateDir is where the site's memory lies.
func (p *program) stateDir(siteDir string) string {
	if p.opts.state != "" {
		return p.opts.state
	}
	return filepath.Join(siteDir, ".sitrep")
}
