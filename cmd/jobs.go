package cmd

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"sitrep/internal/fault"
	"sitrep/internal/site"
	"sitrep/internal/state"
	"sitrep/internal/walltime"
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
			&cli.StringFlag{Name: "state", Usage: "only those in the state `NAME`: " + strings.Join(jobStates(), ", ")},
			&cli.StringFlag{Name: "since", Usage: "only those that began after the `TIME` (2006-01-02, 2006-01-02T15:04:05) or within it (24h)"},
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
		if err := w.hasJobsOf(name); err != nil {
			return err
		}
	}
	q, err := w.jobQuery(c)
	if err != nil {
		return err
	}
	list, err := w.memory.Jobs(q)
	if err != nil {
		return err
	}
	w.res.Jobs = []jobObject{}
	rows := [][]string{{"ID", "VM", "JOB", "STATE", "STARTED", "TOOK", "SENT"}}
	for _, j := range list {
		o := w.jobObject(j)
		w.res.Jobs = append(w.res.Jobs, o)
		rows = append(rows, []string{j.ID, cmpOr(j.VM, "-"), j.Name, string(j.State), w.local(j.Started),
			o.took(), size(j.Bytes)})
	}
	return w.show(table(rows) + w.waitingText(list))
}

// hasJobsOf refuses a name that neither the site file nor a job has. What ran for a VM that was renamed or removed since is
// recorded under the name that it had then.
func (w *world) hasJobsOf(name string) error {
	_, unknown := w.site.VM(name)
	if unknown == nil {
		return nil
	}
	list, err := w.memory.Jobs(state.Query{VM: name, Limit: 1})
	if err == nil && len(list) == 0 {
		return unknown
	}
	return err
}

// waitingText says for what jobs wait, and what is run then.
func (w *world) waitingText(list []state.Record) string {
	var b strings.Builder
	for _, j := range list {
		if j.State == state.Waiting && j.Error != nil {
			fmt.Fprintf(&b, "%s: %s; when it is done: %s\n", j.ID, j.Error.Message, w.commands(j.Error.Command))
		}
	}
	return b.String()
}

// jobStates are the states that jobs can be looked for in.
func jobStates() []string {
	var names []string
	for _, s := range []state.JobState{state.InProgress, state.Waiting, state.Succeeded, state.Failed, state.Cancelled, state.Interrupted} {
		names = append(names, string(s))
	}
	return names
}

func (w *world) jobQuery(c *cli.Context) (q state.Query, err error) {
	q = state.Query{VM: c.String("vm"), Limit: c.Int("limit")}
	if name := c.String("state"); name != "" {
		i := slices.IndexFunc(jobStates(), func(s string) bool { return strings.EqualFold(s, name) })
		if i < 0 {
			return q, fault.New(fault.UsageError, "--state is one of %s%s", strings.Join(jobStates(), ", "), site.DidYouMean(name, jobStates()))
		}
		q.State = state.JobState(jobStates()[i])
	}
	if since := c.String("since"); since != "" {
		q.Since, err = w.since(since)
	}
	return q, err
}

// since reads a time, or how long ago it was. A time without a zone is local.
func (w *world) since(text string) (time.Time, error) {
	now := w.now()
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	if t, ok, err := walltime.Parse(text, now.Location()); ok {
		return t, err
	}
	return now, fault.New(fault.UsageError, "--since %q is no time (2006-01-02, 2006-01-02T15:04:05) and no duration (24h)", text)
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
		word := "error"
		if o.State == state.Waiting {
			word = "waits"
		}
		fmt.Fprintf(&b, "\n"+word+" (%s): %s\n  cause: %s\n  next:  %s\n", e.Code, e.Message, e.Cause, w.commands(e.Advice))
	}
	return b.String()
}
