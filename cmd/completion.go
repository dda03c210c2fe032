package cmd

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"sitrep/failover"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/site"
	"sitrep/internal/state"
)

func (p *program) completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print a completion script for bash, zsh, fish or PowerShell", ArgsUsage: "SHELL",
		Description: "    bash        source <(sitrep completion bash)\n    zsh         source <(sitrep completion zsh)\n" +
			"    fish        sitrep completion fish | source\n    PowerShell  sitrep completion powershell | Out-String | Invoke-Expression\n\n" +
			"Commands and flags are completed, and what the site file, the store and the jobs have: VMs, plans, clouds, hosts, networks, disks,\n" +
			"recovery points, jobs, the manual action for which a plan waits. Nothing is written, and a store is asked for 2 s at the most.",
		Action: p.action("completion", func(_ context.Context, c *cli.Context) error {
			if text, ok := completionScript(c.Args().First()); ok && c.NArg() == 1 {
				return p.show(text)
			}
			return fault.New(fault.UsageError, "completion takes a shell: %s", strings.Join(shells(), ", "))
		}),
	}
}

func shells() []string { return []string{"bash", "zsh", "fish", "powershell"} }

// The scripts ask the program itself what can stand at the cursor: it knows its commands, and reads the site file. The answers are
// never evaluated by a shell: they may have been written by anybody. A word "=" at the cursor is an empty one: bash makes it a word of
// its own, and Windows PowerShell drops empty arguments.
const (
	bashScript = `_sitrep() {
  local cur=${COMP_WORDS[COMP_CWORD]} word
  COMPREPLY=()
  while IFS= read -r word; do
    if [[ $cur == "=" || $word == "$cur"* ]]; then COMPREPLY+=("$(printf '%q' "$word")"); fi
  done < <(sitrep candidates -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -o default -F _sitrep sitrep
`
	zshScript = `#compdef sitrep
_sitrep() {
  local -a found
  found=("${(@f)$(sitrep candidates -- "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
  if [[ -n "$found" ]]; then compadd -a found; else _files; fi
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit -i; }
compdef _sitrep sitrep
`
	fishScript = `complete -c sitrep -f -a '(sitrep candidates -- (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'
complete -c sitrep -n 'test (count (sitrep candidates -- (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)) -eq 0' -F
`
	powershellScript = `Register-ArgumentCompleter -Native -CommandName sitrep -ScriptBlock {
  param($word, $command, $position)
  $words = @($command.CommandElements | Select-Object -Skip 1 | Where-Object { $_.Extent.EndOffset -lt $position } | ForEach-Object { $_.ToString().Trim("'", '"') })
  $current = if ($word) { $word } else { '=' }
  sitrep candidates '--' @words $current 2>$null | Where-Object { $_ -and $_.StartsWith($word) } | ForEach-Object {
    $text = if ($_ -match '[^\w.:=/-]') { "'" + $_.Replace("'", "''") + "'" } else { $_ }
    [System.Management.Automation.CompletionResult]::new($text, $_, 'ParameterValue', $_)
  }
}
`
)

func completionScript(shell string) (text string, ok bool) {
	switch shell {
	case "bash":
		return bashScript, true
	case "zsh":
		return zshScript, true
	case "fish":
		return fishScript, true
	case "powershell":
		return powershellScript, true
	}
	return "", false
}

// candidatesCommand answers the completion scripts: its arguments are the words after "sitrep" up to the cursor, the last of them
// the one that is being written.
func (p *program) candidatesCommand() *cli.Command {
	return &cli.Command{
		Name: "candidates", Hidden: true, ArgsUsage: "WORD...",
		Action: p.action("candidates", func(ctx context.Context, c *cli.Context) error {
			words := c.Args().Slice()
			if len(words) == 0 {
				words = []string{""}
			}
			ctx, cancel := context.WithTimeout(ctx, completionTime)
			defer cancel()
			p.fs = durable.ReadOnly(p.fs)
			before, cur := words[:len(words)-1], words[len(words)-1]
			if cur == "=" {
				cur = ""
			}
			if n := len(before); n > 1 && before[n-1] == "=" && strings.HasPrefix(before[n-2], "-") {
				before = before[:n-1]
			}
			list := (&completion{p: p, ctx: ctx}).candidates(c.App, before, cur)
			return p.show(strings.Join(append(list, ""), "\n"))
		}),
	}
}

// completionTime is how long somebody who presses Tab waits for a store.
const completionTime = 2 * time.Second

// completion finds what can be written next. What cannot be found out is not offered; nothing is an error.
type completion struct {
	p   *program
	ctx context.Context
}

// candidates are the words that can stand where cur is being written, after the words before it.
func (k *completion) candidates(app *cli.App, before []string, cur string) []string {
	s := splitter{global: app.Flags, commands: app.Commands}
	s.split(before)
	k.where(&s)
	if n := len(before); n > 0 {
		if f := open(&s, before[n-1]); f != nil {
			return k.values(&s, f)
		}
	}
	if name, _, ok := strings.Cut(cur, "="); ok && strings.HasPrefix(cur, "-") {
		return prefixed(name+"=", k.values(&s, open(&s, name)))
	}
	if strings.HasPrefix(cur, "-") {
		return append(flagNames(s.command), flagNames(app.Flags)...)
	}
	return k.words(app, &s)
}

// words are commands, or else the names that the command takes.
func (k *completion) words(app *cli.App, s *splitter) []string {
	if len(s.names) == 0 && len(s.commands) > 0 {
		if words := commandNames(s.commands); len(words) > 0 {
			if len(s.path) == 0 {
				words = append(words, "help")
			}
			return words
		}
	}
	switch {
	case len(s.path) == 0:
		return nil
	case s.path[0] == "help":
		return append(commandNames(app.Commands), topicNames()...)
	case s.path[0] == "completion":
		return shells()
	case slices.Equal(s.path, []string{"jobs", "show"}):
		return k.jobs()
	case slices.Equal(s.path, []string{"store", "rename"}), slices.Equal(s.path, []string{"store", "remove"}):
		return k.stored(s)
	case strings.HasPrefix(s.usage, "VM"), strings.HasPrefix(s.usage, "[VM"):
		if s.usage == "VM" && len(s.names) > 0 {
			return nil
		}
		return without(k.vms(), s.names)
	}
	return nil
}

// stored are the replicas that the site file does not name; after one of them, the VMs that it may have become.
func (k *completion) stored(s *splitter) []string {
	if s.path[1] == "rename" {
		switch len(s.names) {
		case 0:
		case 1:
			return k.vms()
		default:
			return nil
		}
	}
	w, err := k.p.open()
	if err != nil {
		return nil
	}
	var out []string
	for _, o := range w.unlisted(k.ctx) {
		out = append(out, o.VM)
	}
	return without(out, s.names)
}

func (k *completion) jobs() (out []string) {
	w, err := k.p.open()
	if err != nil {
		return nil
	}
	list, err := w.memory.Jobs(state.Query{Limit: defaultJobs})
	if err != nil {
		return nil
	}
	for _, j := range list {
		out = append(out, j.ID)
	}
	return out
}

// waiting are the manual actions that plans under way wait for.
func (k *completion) waiting() (out []string) {
	w, err := k.p.open()
	if err != nil {
		return nil
	}
	for _, plan := range w.site.RecoveryPlans {
		if rec, ok, err := w.planRecord(plan.Name); err == nil && ok && rec.Ended.IsZero() && rec.Waiting != "" {
			out = append(out, rec.Waiting)
		}
	}
	return out
}

func without(list, names []string) []string {
	return slices.DeleteFunc(list, func(name string) bool { return slices.Contains(names, name) })
}

// open is the flag that a word is, when a value has to follow it.
func open(s *splitter, word string) cli.Flag {
	if !strings.HasPrefix(word, "-") || strings.Contains(word, "=") {
		return nil
	}
	name := strings.TrimLeft(word, "-")
	f := find(s.command, name)
	if f == nil {
		f = find(s.global, name)
	}
	if f == nil || !takesValue(f) {
		return nil
	}
	return f
}

// values are what a flag can be given. What is a file, a number or a text has none.
func (k *completion) values(s *splitter, f cli.Flag) []string {
	if f == nil {
		return nil
	}
	name := f.Names()[0]
	if find(s.command, name) == nil && name == "progress" {
		return []string{"auto", "bar", "lines", "none"}
	}
	if len(s.path) == 0 {
		return nil
	}
	switch s.path[0] + " " + name {
	case "failback mode":
		return []string{string(failover.MinimalDowntime), string(failover.DuringFailover)}
	case "failback to":
		return k.fromSite(hostNames)
	case "failover network":
		return k.fromSite(networkNames)
	case "failover done":
		return k.waiting()
	case "failover point":
		return append([]string{failover.Latest, failover.LatestProcessed, failover.LatestAppConsistent}, k.points(s.names)...)
	case "points demote", "points release":
		return k.points(s.names)
	case "points export", "points promote", "points hold":
		return append([]string{failover.Latest}, k.points(s.names)...)
	case "jobs state":
		return jobStates()
	case "jobs vm":
		return k.vms()
	}
	switch name {
	case "cloud":
		return k.fromSite(cloudNames)
	case "plan":
		return k.fromSite(planNames)
	case "accept-disk":
		return k.fromSite(func(site *site.Site) []string { return diskNames(site, s.names) })
	}
	return nil
}

func hostNames(s *site.Site) (out []string) {
	for _, c := range s.VMM.Clouds {
		for _, h := range c.Hosts {
			out = append(out, h.Name)
		}
	}
	return out
}

func networkNames(s *site.Site) (out []string) {
	for _, n := range s.Recovery.Networks {
		out = append(out, n.Name)
	}
	return append(out, site.Isolated)
}

func cloudNames(s *site.Site) (out []string) {
	for _, c := range s.VMM.Clouds {
		out = append(out, c.Name)
	}
	return out
}

func planNames(s *site.Site) (out []string) {
	for _, plan := range s.RecoveryPlans {
		out = append(out, plan.Name)
	}
	return out
}

// diskNames are the disks of the VMs that are named, of all where none is.
func diskNames(s *site.Site, vms []string) (out []string) {
	for _, vm := range s.VMs() {
		if len(vms) > 0 && !slices.Contains(vms, vm.Name) {
			continue
		}
		for _, d := range vm.Disks {
			if !slices.Contains(out, d.Name) {
				out = append(out, d.Name)
			}
		}
	}
	return out
}

// where takes the flags that say where the site is.
func (k *completion) where(s *splitter) {
	for i, w := range s.globals {
		name, value, ok := strings.Cut(strings.TrimLeft(w, "-"), "=")
		if !ok && i+1 < len(s.globals) {
			value = s.globals[i+1]
		}
		switch {
		case !strings.HasPrefix(w, "-") || value == "":
		case name == "site":
			k.p.opts.site = value
		case name == "state":
			k.p.opts.state = value
		}
	}
}

func (k *completion) vms() []string {
	return k.fromSite(func(s *site.Site) (out []string) {
		for _, vm := range s.VMs() {
			out = append(out, vm.Name)
		}
		return out
	})
}

// fromSite are names of the site file; none where it cannot be read.
func (k *completion) fromSite(names func(*site.Site) []string) []string {
	s, err := site.Load(k.p.fs, k.p.opts.site)
	if err != nil {
		return nil
	}
	return names(s)
}

// points are the recovery points of the VM that was named, the newest first.
func (k *completion) points(names []string) []string {
	w, err := k.p.open()
	if err != nil || len(names) == 0 {
		return nil
	}
	vm, err := w.site.VM(names[0])
	if err != nil {
		return nil
	}
	r, st, err := w.replica(k.ctx, vm, forReading)
	if err != nil {
		return nil
	}
	defer r.Close()
	var out []string
	for _, x := range slices.Backward(st.Points) {
		out = append(out, x.ID)
	}
	return out
}

func prefixed(prefix string, list []string) []string {
	for i := range list {
		list[i] = prefix + list[i]
	}
	return list
}

func topicNames() []string {
	var out []string
	for _, t := range topics() {
		out = append(out, t.name)
	}
	return out
}

func commandNames(list []*cli.Command) []string {
	var out []string
	for _, c := range list {
		if !c.Hidden {
			out = append(out, c.Name)
		}
	}
	return out
}

func flagNames(list []cli.Flag) []string {
	var out []string
	for _, f := range list {
		for _, n := range f.Names() {
			if len(n) > 1 {
				out = append(out, "--"+n)
			}
		}
	}
	return out
}
