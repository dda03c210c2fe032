package cmd

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// permute puts the arguments of a command line into the order that urfave/cli understands: global flags, command, its
// flags, then names. People and scripts may write flags after names ("sitrep delta web01 --json"), and global flags
// after the command. What follows "--" is names, whatever it looks like. An unknown flag is left to the command, which
// reports it.
func permute(app *cli.App, args []string) []string {
	if len(args) == 0 {
		return args
	}
	s := splitter{global: app.Flags, commands: app.Commands}
	s.split(args[1:])
	if len(s.path) == 1 && s.path[0] == "help" && len(s.names) == 1 && isTopic(s.names[0]) {
		return append(append([]string{args[0]}, s.globals...), "topic", "--", s.names[0])
	}
	if topic := s.topic(app); topic != nil {
		return append(append([]string{args[0]}, topic...), "--help")
	}
	out := append([]string{args[0]}, s.globals...)
	switch s.open {
	case openGlobal: // the flag comes last, where nothing can be taken for its value
		return out
	case openOwn:
		return append(append(out, s.path...), s.flags...)
	}
	out = append(out, s.path...)
	out = append(out, s.flags...)
	if len(s.names) > 0 || s.dashes {
		if len(s.path) > 0 {
			out = append(out, "--")
		}
		out = append(out, s.names...)
	}
	return out
}

// splitter sorts arguments by what they are.
type splitter struct {
	global   []cli.Flag
	commands []*cli.Command // that the next word may name

	globals, path, flags, names []string

	command []cli.Flag // flags of the command that was named
	usage   string     // its arguments, in the words of its help
	dashes  bool
	help    bool // was asked for
	open    openFlag
}

// openFlag says that the command line ends with a flag whose value is missing, and whose flag that is.
type openFlag int

const (
	noneOpen openFlag = iota
	openGlobal
	openOwn
)

func (s *splitter) split(args []string) {
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "--":
			s.dashes = true
			s.names = append(s.names, args...)
			return
		case len(arg) > 1 && arg[0] == '-':
			args = s.flag(arg, args)
		default:
			s.word(arg)
		}
	}
}

// topic is the path of the command that help is asked for ("help jobs show", "jobs show --help"), nil when it is not, or
// not for a command. urfave/cli itself finds the first word of the path only.
func (s *splitter) topic(app *cli.App) []string {
	switch {
	case len(s.path) == 0 || app.Command(s.path[0]) == nil:
		return nil
	case s.help:
		return s.path
	case s.path[0] != "help" || len(s.names) == 0 || app.Command(s.names[0]) == nil:
		return nil
	}
	of := splitter{commands: app.Commands}
	of.split(s.names)
	return of.path
}

// word takes a word that is no flag: the next part of the command's name, as long as there is one of it, else a name.
func (s *splitter) word(arg string) {
	i := slices.IndexFunc(s.commands, func(c *cli.Command) bool { return c.HasName(arg) })
	if i < 0 || len(s.names) > 0 {
		s.names = append(s.names, arg)
		if len(s.path) == 0 {
			s.path, s.names = s.names, nil // an unknown command, reported as such
			s.commands = nil
		}
		return
	}
	s.path = append(s.path, arg)
	s.command, s.usage = s.commands[i].Flags, s.commands[i].ArgsUsage
	s.commands = s.commands[i].Subcommands
}

// flag takes a flag and its value, and returns the arguments after them. A command's own flag comes before a global one
// of the same name.
func (s *splitter) flag(arg string, rest []string) []string {
	name, _, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	f, to := find(s.command, name), &s.flags
	if f == nil {
		if f = find(s.global, name); f != nil || len(s.path) == 0 {
			to = &s.globals
		}
	}
	*to = append(*to, arg)
	s.help = s.help || f != nil && f == cli.HelpFlag
	if f == nil || hasValue || !takesValue(f) {
		return rest
	}
	if len(rest) == 0 {
		s.open = openOwn
		if to == &s.globals {
			s.open = openGlobal
		}
		return rest
	}
	*to = append(*to, rest[0])
	return rest[1:]
}

func find(flags []cli.Flag, name string) cli.Flag {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			return f
		}
	}
	return nil
}

func takesValue(f cli.Flag) bool {
	d, ok := f.(cli.DocGenerationFlag)
	return ok && d.TakesValue()
}
