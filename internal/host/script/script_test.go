//go:build !windows

package script_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/host/hosttest"
	"sitrep/internal/host/script"
)

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func definition(t *testing.T, name string) host.Definition {
	t.Helper()
	path := filepath.Join(t.TempDir(), "os disk")
	ok(t, os.WriteFile(path, []byte("data\n"), 0o644))
	return host.Definition{Name: name, Generation: 2, OS: "linux", CPUs: 2, Memory: 1 << 30,
		Disks: []host.Disk{{Name: "os-1", Path: path, Format: "vhd", Size: 512, OS: true}},
		NICs:  []host.NIC{{Source: "lan", Network: "dr", Attach: host.Bridge, Switch: "br0", IP: "10.1.0.5/24", Primary: true}}}
}

func TestContract(t *testing.T) {
	for _, freeze := range []string{"", "with freeze"} {
		t.Run(freeze, func(t *testing.T) {
			hosttest.TestHost(t, func(t *testing.T) hosttest.Rig {
				t.Setenv("FAKEHOST", t.TempDir())
				p, err := filepath.Abs("testdata/host.sh")
				ok(t, err)
				c := script.Config{Name: "test", Create: p, Start: p, Stop: p, State: p, Delete: p, Timeout: time.Minute}
				if freeze != "" {
					c.Freeze, c.Thaw = p, p
				}
				h, err := script.New(c)
				ok(t, err)
				if _, can := h.(host.Freezer); can != (freeze != "") {
					t.Errorf("freezes: %v", can)
				}
				return hosttest.Rig{Host: h, Define: definition, Grace: time.Minute,
					Written: func(*testing.T, string) {}} // it has when it has started
			})
		})
	}
}

// program is a host whose operations are all the same script.
func program(t *testing.T, body string, timeout time.Duration) host.Host {
	t.Helper()
	p := filepath.Join(t.TempDir(), "host.sh")
	ok(t, os.WriteFile(p, []byte("#!/bin/sh\n"+body+"\n"), 0o755))
	h, err := script.New(script.Config{Name: "test", Create: p, Start: p, Stop: p, State: p, Delete: p, Freeze: p, Thaw: p, Timeout: timeout})
	ok(t, err)
	return h
}

func TestInput(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	t.Setenv("OUT", dir)
	h := program(t, `env | grep ^SITREP_ | sort >"$OUT/env.$SITREP_OPERATION"; cat >"$OUT/json.$SITREP_OPERATION"
		[ "$SITREP_OPERATION" != state ] || if [ -e "$OUT/env.stop" ]; then echo off; else echo running; fi`, time.Minute)
	d := definition(t, "vm")
	ok(t, h.Create(ctx, d))
	ok(t, h.Stop(ctx, "vm", 1500*time.Millisecond))
	env, err := os.ReadFile(filepath.Join(dir, "env.create"))
	ok(t, err)
	want := `SITREP_CPUS=2
SITREP_DISKS=1
SITREP_DISK_1_FORMAT=vhd
SITREP_DISK_1_NAME=os-1
SITREP_DISK_1_OS=1
SITREP_DISK_1_PATH=` + d.Disks[0].Path + `
SITREP_DISK_1_SIZE=512
SITREP_DISK_OS_1=` + d.Disks[0].Path + `
SITREP_DISPOSABLE=0
SITREP_GENERATION=2
SITREP_MEMORY=1073741824
SITREP_NICS=1
SITREP_NIC_1_ATTACH=bridge
SITREP_NIC_1_GATEWAY=
SITREP_NIC_1_IP=10.1.0.5/24
SITREP_NIC_1_MAC=
SITREP_NIC_1_NETWORK=dr
SITREP_NIC_1_PRIMARY=1
SITREP_NIC_1_PUBLIC_IP=0
SITREP_NIC_1_SOURCE=lan
SITREP_NIC_1_SOURCE_IP=
SITREP_NIC_1_SUBNET=
SITREP_NIC_1_SWITCH=br0
SITREP_OPERATION=create
SITREP_OS=linux
SITREP_VM=vm
`
	for line := range strings.Lines(want) {
		if !strings.Contains("\n"+string(env), "\n"+line) {
			t.Errorf("%q is not in the environment", line)
		}
	}
	n := strings.Count(string(env), "\n")
	for _, v := range os.Environ() { // those of who runs the tests: SITREP_LONG and the like
		if strings.HasPrefix(v, "SITREP_") {
			n--
		}
	}
	if n != strings.Count(want, "\n") {
		t.Errorf("the environment has %d variables of ours:\n%s", n, env)
	}
	var doc struct {
		Operation, VM string
		Definition    host.Definition
	}
	b, err := os.ReadFile(filepath.Join(dir, "json.create"))
	ok(t, err)
	ok(t, json.Unmarshal(b, &doc))
	a, err := json.Marshal(doc.Definition)
	ok(t, err)
	if c, _ := json.Marshal(d); doc.Operation != "create" || doc.VM != "vm" || string(a) != string(c) {
		t.Errorf("the document is %s", b)
	}
	stop, err := os.ReadFile(filepath.Join(dir, "json.stop"))
	ok(t, err)
	if string(stop) != `{"operation":"stop","vm":"vm","grace_seconds":1.5}`+"\n" {
		t.Errorf("the document of stop is %s", stop)
	}
}

func TestAnswers(t *testing.T) {
	ctx := context.Background()
	for body, want := range map[string]fault.Code{
		"exit 75":                       fault.HostUnreachable,
		"exit 1":                        fault.HostRefused,
		"echo on":                       fault.HostRefused,
		"echo off; echo running":        fault.HostRefused,
		"sleep 1000":                    fault.HostTimeout,
		"echo no such host >&2; exit 3": fault.HostRefused,
	} {
		h := program(t, body, 500*time.Millisecond)
		if body != "sleep 1000" {
			h = program(t, body, time.Minute)
		}
		_, err := h.State(ctx, "vm")
		if !fault.Is(err, want) || !strings.Contains(err.Error(), "VM vm") {
			t.Errorf("%s: %v", body, err)
		}
		if strings.Contains(body, ">&2") && !strings.Contains(err.Error(), "no such host") {
			t.Errorf("the error does not say what the program said: %v", err)
		}
	}
	for _, p := range []host.Power{host.Absent, host.Off, host.Running, host.Paused, host.Unknown} {
		got, err := program(t, "echo "+string(p), time.Minute).State(ctx, "vm")
		if err != nil || got != p {
			t.Errorf("%s is %s: %v", p, got, err)
		}
	}
	for _, op := range []func(host.Host) error{
		func(h host.Host) error { return h.Stop(ctx, "vm", 0) }, func(h host.Host) error { return h.Delete(ctx, "vm") },
	} {
		if err := op(program(t, "echo running", time.Minute)); !fault.Is(err, fault.HostRefused) {
			t.Errorf("a program that does not do what it says: %v", err)
		}
	}
	if err := program(t, "echo off", time.Minute).Start(ctx, "vm"); !fault.Is(err, fault.HostRefused) {
		t.Errorf("a start that starts nothing: %v", err)
	}
	if _, err := program(t, "echo off", time.Minute).State(ctx, "-rf"); !fault.Is(err, fault.HostRefused) {
		t.Errorf("a name like a flag: %v", err)
	}
}

// A freeze that fails, or was killed half way, is thawed.
func TestFreezeFails(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	t.Setenv("LOG", log)
	h := program(t, `echo running; echo $SITREP_OPERATION >>"$LOG"; [ $SITREP_OPERATION != freeze ]`, time.Minute)
	held, err := h.(host.Freezer).Freeze(context.Background(), "vm")
	if held || !fault.Is(err, fault.HostRefused) {
		t.Errorf("%v, %v", held, err)
	}
	b, err := os.ReadFile(log)
	ok(t, err)
	if string(b) != "state\nfreeze\nstate\nthaw\n" {
		t.Errorf("what ran: %q", b)
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []script.Config{
		{}, {Start: "/a", Stop: "/a", State: "/a"}, {Start: "/a", Stop: "/a", Timeout: 1}, {Start: "/a", Stop: "/a", State: "/a", Freeze: "/a", Timeout: 1},
	} {
		if _, err := script.New(c); !fault.Is(err, fault.SiteInvalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	h, err := script.New(script.Config{Start: "/a", Stop: "/a", State: "/a", Timeout: 1})
	ok(t, err)
	if err := h.Create(context.Background(), definition(t, "vm")); !fault.Is(err, fault.HostRefused) {
		t.Errorf("nothing can be made: %v", err)
	}
}
