package hyperv

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"sitrep/internal/fault"
	"sitrep/internal/hook"
	"sitrep/internal/host"
)

// A golden is a call of the Host with the runs of PowerShell that it makes, and what comes of it.
type golden struct {
	Call       string
	VM         string
	Grace      string
	Definition host.Definition
	Exchanges  []exchange
	Want       string
	Error      fault.Code
	Says       string
}

type exchange struct {
	Script  string
	Request map[string]any // a mark of "*" is any
	Stdout  string
	Exit    int // -1: killed after its time limit
}

func scripts() map[string]string {
	return map[string]string{"state": stateScript, "start": startScript, "stop": stopScript, "create": createScript, "delete": deleteScript,
		"freeze": freezeScript, "thaw": thawScript}
}

// decode is what PowerShell makes of an encoded command.
func decode(t *testing.T, encoded string) string {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(b)%2 != 0 {
		t.Fatalf("%q: %v", encoded, err)
	}
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = uint16(b[2*i]) | uint16(b[2*i+1])<<8
	}
	return string(utf16.Decode(units))
}

// play checks a run of PowerShell against the exchange and answers it.
func (e exchange) play(t *testing.T, p hook.Program) (hook.Output, error) {
	t.Helper()
	want := []string{"-o", "BatchMode=yes", "--", "hv@hv01", "powershell.exe", "-NoProfile", "-NonInteractive", "-InputFormat", "Text",
		"-OutputFormat", "Text", "-EncodedCommand"}
	if p.Path != "ssh" || len(p.Args) != len(want)+1 || !slices.Equal(p.Args[:len(want)], want) || len(p.Env) > 0 {
		t.Errorf("the command is %s %q", p.Path, p.Args)
	}
	if text := decode(t, p.Args[len(p.Args)-1]); text != before+scripts()[e.Script]+after {
		t.Errorf("the script is not that of %s as it stands in the source:\n%s", e.Script, text)
	}
	doc, err := json.Marshal(p.Stdin)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range doc {
		if b >= 0x80 {
			t.Errorf("the request is not ASCII: %s", doc)
			break
		}
	}
	var got map[string]any
	if err := json.Unmarshal(doc, &got); err != nil {
		t.Fatal(err)
	}
	if e.Request["mark"] == "*" && strings.HasPrefix(fmt.Sprint(got["mark"]), "sitrep: made from definition ") {
		got["mark"] = "*"
	}
	if !reflect.DeepEqual(got, e.Request) {
		t.Errorf("the request is %s, not %v", doc, e.Request)
	}
	out := hook.Output{Stdout: e.Stdout}
	switch {
	case e.Exit < 0:
		return out, fault.Wrap(fault.HookFailed, &hook.ExitError{Path: p.Path, Code: -1, Timeout: p.Timeout}, "")
	case e.Exit > 0:
		return out, fault.Wrap(fault.HookFailed, &hook.ExitError{Path: p.Path, Code: e.Exit}, "")
	}
	return out, nil
}

// do makes the call.
func (g golden) do(h *Host) (string, error) {
	ctx := context.Background()
	switch g.Call {
	case "create":
		return "", h.Create(ctx, g.Definition)
	case "start":
		return "", h.Start(ctx, g.VM)
	case "stop":
		grace, err := time.ParseDuration(g.Grace)
		if err != nil {
			return "", err
		}
		return "", h.Stop(ctx, g.VM, grace)
	case "delete":
		return "", h.Delete(ctx, g.VM)
	case "freeze":
		held, err := h.Freeze(ctx, g.VM)
		return fmt.Sprint(held), err
	case "thaw":
		return "", h.Thaw(ctx, g.VM)
	}
	p, err := h.State(ctx, g.VM)
	return string(p), err
}

func TestExchanges(t *testing.T) {
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) < 3 {
		t.Fatalf("%v: %v", files, err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var all []golden
		if err := strict(b, &all); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for i, g := range all {
			t.Run(fmt.Sprintf("%s/%d-%s", filepath.Base(file), i, g.Call), func(t *testing.T) { g.test(t) })
		}
	}
}

func (g golden) test(t *testing.T) {
	h, err := New(Config{SSH: "hv@hv01", Switch: "Test Isolated", Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	left := g.Exchanges
	h.run = func(_ context.Context, p hook.Program) (hook.Output, error) {
		if len(left) == 0 {
			t.Fatal("one run too many")
		}
		e := left[0]
		left = left[1:]
		return e.play(t, p)
	}
	got, err := g.do(h)
	if got != g.Want && g.Want != "" {
		t.Errorf("the answer is %s, not %s", got, g.Want)
	}
	if (err != nil) != (g.Error != "") || err != nil && !fault.Is(err, g.Error) {
		t.Fatalf("the error is %v, not %q", err, g.Error)
	}
	if err != nil && (!strings.Contains(err.Error(), g.Says) || !strings.Contains(err.Error(), "VM "+g.VM+g.Definition.Name)) {
		t.Errorf("%q does not say %q, or not of which VM", err, g.Says)
	}
	if len(left) > 0 {
		t.Errorf("%d runs were not made", len(left))
	}
}

// TestScripts: the scripts are ASCII, fit the command line of cmd.exe, and take nothing but the request's fields.
func TestScripts(t *testing.T) {
	h, err := New(Config{SSH: "administrator@a-rather-long-name.of.a.server.contoso.local", Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]bool{}
	for i := range reflect.TypeFor[request]().NumField() {
		name, _, _ := strings.Cut(reflect.TypeFor[request]().Field(i).Tag.Get("json"), ",")
		fields[name] = true
	}
	for name, s := range scripts() {
		p, err := h.program(s, request{}, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(strings.Join(p.Args, " ")); n > 8000 {
			t.Errorf("%s: the command line has %d bytes", name, n)
		}
		for _, r := range s {
			if r >= 0x80 {
				t.Errorf("%s: %q is not ASCII", name, r)
			}
		}
		for _, after := range strings.Split(s, "$a.")[1:] {
			field := after[:strings.IndexFunc(after+" ", func(r rune) bool { return r < 'a' || r > 'z' })]
			if !fields[field] {
				t.Errorf("%s uses $a.%s, which no request has", name, field)
			}
		}
		for _, pair := range []string{"{}", "()", "[]"} {
			if strings.Count(s, pair[:1]) != strings.Count(s, pair[1:]) {
				t.Errorf("%s: the %s do not match", name, pair)
			}
		}
	}
}

// TestProcess goes through real processes: stand-ins for ssh and powershell.exe see what the real ones would.
func TestProcess(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the stand-ins are shell scripts")
	}
	dir := t.TempDir()
	stand := "#!/bin/sh\nprintf '%s\\n' \"$@\" >\"$OUT.args\"\ncat >\"$OUT.in\"\necho '{\"ok\":true,\"result\":\"Paused\"}'\n"
	for _, name := range []string{"ssh", "powershell.exe"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(stand), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv("OUT", filepath.Join(dir, "out"))
	hostile := "a'; rm -rf / #`$(x)\" ü"
	for _, ssh := range []string{"", "hv@hv01"} {
		h, err := New(Config{SSH: ssh, Timeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		p, err := h.State(context.Background(), hostile)
		if err != nil || p != host.Paused {
			t.Errorf("%s: %v", p, err)
		}
		args, err := os.ReadFile(filepath.Join(dir, "out.args"))
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(strings.TrimSpace(string(args)), "\n")
		if text := decode(t, lines[len(lines)-1]); strings.Contains(string(args)+text, "rm -rf") || text != before+stateScript+after {
			t.Errorf("the name has reached the command line or the script: %s %s", args, text)
		}
		in, err := os.ReadFile(filepath.Join(dir, "out.in"))
		if err != nil {
			t.Fatal(err)
		}
		var r request
		if err := strict(in, &r); err != nil || r.VM != hostile {
			t.Errorf("the request is %s: %v", in, err)
		}
		if h.Describe() == "" {
			t.Error("no name")
		}
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []Config{{}, {SSH: "-oProxyCommand=x", Timeout: 1}, {SSH: "a b", Timeout: 1}} {
		if _, err := New(c); !fault.Is(err, fault.SiteInvalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}
