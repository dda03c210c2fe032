package cmd

import (
	"context"
	"runtime"
	"runtime/debug"

	"github.com/urfave/cli/v2"
)

// versionObject is the version in --json.
type versionObject struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	// Time is when the revision was committed, RFC 3339, and Modified says that the source was not what was committed.
	Time     string `json:"time,omitempty"`
	Modified bool   `json:"modified,omitempty"`
	Go       string `json:"go"`
	System   string `json:"system"`
}

func (p *program) versionCommand() *cli.Command {
	return &cli.Command{Name: "version", Usage: "print the version, with the commit and its date", Action: p.action("version", p.printVersion)}
}

func (p *program) printVersion(context.Context, *cli.Context) error {
	b := buildOf()
	p.res.Version = &versionObject{Version: version(), Revision: b.revision, Time: b.time, Modified: b.modified, Go: runtime.Version(),
		System: runtime.GOOS + "/" + runtime.GOARCH}
	return p.show("sitrep " + version() + b.text() + " " + runtime.Version() + " " + runtime.GOOS + "/" + runtime.GOARCH + "\n")
}

// version is what the build was made of: a tag, or "(devel)".
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}

// build is what the binary was built of. All of it is empty where the build was not of a repository.
type build struct {
	revision, time string
	modified       bool
}

func buildOf() build {
	info, _ := debug.ReadBuildInfo()
	return buildIn(info)
}

func buildIn(info *debug.BuildInfo) (b build) {
	if info == nil {
		return b
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.revision = s.Value
		case "vcs.time":
			b.time = s.Value
		case "vcs.modified":
			b.modified = s.Value == "true"
		}
	}
	return b
}

// text is the commit and its date for people.
func (b build) text() string {
	if b.revision == "" {
		return " (commit unknown: it was built without -buildvcs, or outside a clone)"
	}
	text := " commit " + b.revision[:min(12, len(b.revision))]
	if b.time != "" {
		text += " of " + b.time
	}
	if b.modified {
		text += " (modified)"
	}
	return text
}
