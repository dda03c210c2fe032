package cmd

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"sitrep/internal/plain"
	"sitrep/internal/walltime"
)

// result is the object of --json. Fields are only added.
type result struct {
	Command  string       `json:"command"`
	Site     string       `json:"site,omitempty"`
	Job      string       `json:"job,omitempty"` // of the only VM; with several VMs each has its own
	OK       bool         `json:"ok"`
	ExitCode int          `json:"exit_code"`
	DryRun   bool         `json:"dry_run,omitempty"`
	VMs      []vmObject   `json:"vms,omitempty"`
	Error    *errorObject `json:"error,omitempty"`

	// What commands that are not about VMs have to show.
	Version *versionObject `json:"version,omitempty"`
	File    string         `json:"file,omitempty"`
	Jobs    []jobObject    `json:"jobs,omitzero"`
	Log     any            `json:"log,omitempty"`
	Plan    *planObject    `json:"plan,omitempty"`
	Plans   []planStatus   `json:"plans,omitempty"` // that are under way
	Store   string         `json:"store,omitempty"`
	Checks  []probeObject  `json:"checks,omitzero"`
	// Replicas is what lies in the store, and Unlisted the replicas of this vault that the site file does not name.
	Replicas []replicaObject `json:"replicas,omitzero"`
	Unlisted []replicaObject `json:"unlisted_replicas,omitempty"`
	// Access is what the shared access signature of the store says of itself, nil without one.
	Access *accessObject `json:"store_access,omitempty"`
}

// vmObject is what a command says of one VM: a struct that embeds vmHead.
type vmObject interface{ head() *vmHead }

// vmHead begins every VM's object.
type vmHead struct {
	VM     string       `json:"vm"`
	State  string       `json:"state,omitempty"`
	Health string       `json:"health,omitempty"`
	Job    string       `json:"job,omitempty"`
	Error  *errorObject `json:"error,omitempty"`
	// RetryAt is when the next attempt is due, after one that failed.
	RetryAt *time.Time `json:"retry_at,omitempty"`
	// Tried is false when nothing was done, because it was not yet time, or had to wait for something else.
	Tried *bool `json:"tried,omitempty"`
	// PassedOver says why a run of --all or --cloud had nothing to do for the VM.
	PassedOver string `json:"passed_over,omitempty"`
	// Sequence is the position of the replica, as far as this site remembers, when nothing was tried.
	Sequence uint64 `json:"sequence,omitempty"`
}

func (h *vmHead) head() *vmHead { return h }

func (r *result) write(w io.Writer) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(plain.JSON(data, true), '\n'))
	return err
}

// say writes a line for people about work that was done.
func (p *program) say(format string, args ...any) {
	if !p.opts.quiet && !p.opts.json {
		fmt.Fprintf(plain.Writer(p.stdout), format+"\n", args...)
	}
}

// show writes what was asked for, quiet or not.
func (p *program) show(text string) error {
	if p.opts.json {
		return nil
	}
	_, err := io.WriteString(p.stdout, p.coloured(plain.Text(text)))
	return err
}

// table aligns rows in columns. Empty trailing space is cut off, so that the output can be compared.
func table(rows [][]string) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		cells := make([]string, len(r))
		for i := range r {
			cells[i] = plain.Line(r[i])
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	w.Flush() // to a strings.Builder: cannot fail
	lines := strings.Split(b.String(), "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

// size writes a number of bytes for people: three digits that matter and a binary unit.
func size(n int64) string {
	if n < 0 {
		return "-" + size(-n)
	}
	v, units := float64(n), []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	i := 0
	for v >= 1023.95 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	switch {
	case i == 0:
		return fmt.Sprintf("%d B", n)
	case v < 99.95:
		return fmt.Sprintf("%.1f %s", v, units[i])
	}
	return fmt.Sprintf("%.0f %s", v, units[i])
}

// span writes a duration for people, to two units.
func span(d time.Duration) string {
	d = d.Abs()
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// local writes a moment for people, by the clock of this machine and with its zone.
func (p *program) local(t time.Time) string { return walltime.Text(t, p.now().Location()) }

// when writes a moment for people, and how long ago it was.
func (p *program) when(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	how := " ago)"
	ago := p.now().Sub(t)
	if ago < 0 {
		how = " from now: a clock is wrong)"
	}
	return p.local(t) + " (" + span(ago) + how
}

// plural writes a number with its noun.
func plural[T int | int64](n T, noun string) string {
	if n == 1 {
		return fmt.Sprintf("%d %s", n, noun)
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
