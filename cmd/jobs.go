package cmd

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"sitrep/internal/fault"
	"sitrep/internal/state"
)

// jobObject is a job in --json.
type jobObject struct {
	state.Record
	Seconds float64 `json:"seconds"`
}

// defaultJobs is how many jobs are listed unless told otherwise.
const defaultJobs = 20

func (p *program) jobsCommand() *cli.Command {
	return &cli.Command{
		Name: "jobs", Usage: "what ran, with its steps, times, bytes and errors",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "vm", Usage: "only those of the VM `NAME`"},
			&cli.IntFlag{Name: "limit", Usage: "the newest `N`, 0 = all", Value: defaultJobs},
		},
		Action: p.action("jobs", p.jobs),
		Subcommands: []*cli.Command{{
			Name: "show", Usage: "show one job; the beginning or the end of its ID is enough", ArgsUsage: "ID",
			Action: p.action("jobs show", p.showJob),
		}},
	}
}

func (p *program) jobs(_ context.Context, c *cli.Context) error {
	if c.NArg() > 0 {
		return fault.New(fault.UsageError, "jobs takes no names: \"sitrep jobs --vm NAME\", \"sitrep jobs show ID\"")
	}
	if c.Int("limit") < 0 {
		return fault.New(fault.UsageError, "--limit cannot be negative")
	}
	w, err := p.open()
	if err != nil {
		return err
	}
	if name := c.String("vm"); name != "" {
		if _, err := w.site.VM(name); err != nil {
			return err
		}
	}
	list, err := w.memory.Jobs(state.Query{VM: c.String("vm"), Limit: c.Int("limit")})
	if err != nil {
		return err
	}
	w.res.Jobs = []jobObject{}
	rows := [][]string{{"ID", "VM", "JOB", "STATE", "STARTED", "TOOK", "SENT"}}
	for _, j := range list {
		o := w.jobObject(j)
		w.res.Jobs = append(w.res.Jobs, o)
		rows = append(rows, []string{j.ID, cmpOr(j.VM, "-"), j.Name, string(j.State), j.Started.Local().Format("2006-01-02 15:04:05"),
			o.took(), size(j.Bytes)})
	}
	return w.show(table(rows))
}

// jobObject adds how long a job took, or has been running.
func (w *world) jobObject(j state.Record) jobObject {
	end := j.Ended
	switch {
	case j.State == state.Interrupted:
		end = j.Started // nobody knows
	case end.IsZero():
		end = w.now()
	}
	return jobObject{j, end.Sub(j.Started).Seconds()}
}

func (o jobObject) took() string {
	if o.State == state.Interrupted {
		return "-"
	}
	return span(time.Duration(o.Seconds * float64(time.Second)))
}

func (p *program) showJob(_ context.Context, c *cli.Context) error {
	if c.NArg() != 1 {
		return fault.New(fault.UsageError, "jobs show takes one ID")
	}
	w, err := p.open()
	if err != nil {
		return err
	}
	j, err := w.memory.Job(c.Args().First())
	if err != nil {
		return err
	}
	o := w.jobObject(j)
	w.res.Job, w.res.Jobs = j.ID, []jobObject{o}
	return w.show(w.jobText(o))
}

func (w *world) jobText(o jobObject) string {
	var b strings.Builder
	b.WriteString(table([][]string{
		{"job", o.ID}, {"name", o.Name}, {"command", o.Command}, {"VM", cmpOr(o.VM, "-")}, {"state", string(o.State)},
		{"started", w.when(o.Started)}, {"took", o.took()}, {"sent", size(o.Bytes)},
	}))
	if len(o.Steps) > 0 {
		rows := [][]string{{"STEP", "STATE", "TOOK", "SENT", "REMARK"}}
		for _, s := range o.Steps {
			took := "-"
			if !s.Ended.IsZero() {
				took = span(s.Ended.Sub(s.Started))
			}
			rows = append(rows, []string{s.Name, string(s.State), took, size(s.Bytes), cmpOr(s.Note, "-")})
		}
		b.WriteString("\n" + table(rows))
	}
	if e := o.Error; e != nil {
		fmt.Fprintf(&b, "\nerror (%s): %s\n  cause: %s\n  next:  %s\n", e.Code, e.Message, e.Cause, w.commands(e.Advice))
	}
	return b.String()
}
