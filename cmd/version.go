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
	Go       string `json:"go"`
	System   string `json:"system"`
}

func (p *program) versionCommand() *cli.Command {
	return &cli.Command{Name: "version", Usage: "print the version", Action: p.action("version", p.printVersion)}
}

func (p *program) printVersion(context.Context, *cli.Context) error {
	v := &versionObject{Version: version(), Revision: setting("vcs.revision"), Go: runtime.Version(),
		System: runtime.GOOS + "/" + runtime.GOARCH}
	p.res.Version = v
	text := "sitrep " + v.Version
	if v.Revision != "" {
		text += " " + v.Revision
	}
	return p.show(text + " " + v.Go + " " + v.System + "\n")
}

// version is what the build was made of: a tag, or "(devel)".
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}

func setting(key string) string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == key {
			return s.Value
		}
	}
	return ""
}
