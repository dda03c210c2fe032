package failover_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"time"

	"sitrep/failover"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/hrl"
	"sitrep/internal/progress"
	"sitrep/internal/replica"
	"sitrep/internal/replica/dir"
	"sitrep/replicate/replicatetest"
)

// machines is a host whose VMs are kept in memory: it is a machine of its own, that no crash of ours changes.
type machines struct {
	name string
	vms  map[string]machine
	log  []string
	fail map[string]error // by operation
}

type machine struct {
	def   host.Definition
	power host.Power
}

func newMachines(name string) *machines {
	return &machines{name: name, vms: map[string]machine{}, fail: map[string]error{}}
}

func (m *machines) clone() *machines {
	return &machines{name: m.name, vms: maps.Clone(m.vms), log: slices.Clone(m.log), fail: maps.Clone(m.fail)}
}

func (m *machines) did(op, vm string) error {
	m.log = append(m.log, op+" "+vm)
	return m.fail[op]
}

func (m *machines) Describe() string { return m.name }

func (m *machines) Create(_ context.Context, d host.Definition) error {
	if err := m.did("create", d.Name); err != nil {
		return err
	}
	if m.vms[d.Name].power == host.Running {
		return fault.New(fault.HostRefused, "%s runs", d.Name)
	}
	m.vms[d.Name] = machine{d, host.Off}
	return nil
}

func (m *machines) Start(_ context.Context, vm string) error {
	if err := m.did("start", vm); err != nil {
		return err
	}
	v, ok := m.vms[vm]
	if !ok {
		return fault.New(fault.VMAbsent, "no VM %s", vm)
	}
	v.power = host.Running
	m.vms[vm] = v
	return nil
}

func (m *machines) Stop(_ context.Context, vm string, _ time.Duration) error {
	if err := m.did("stop", vm); err != nil {
		return err
	}
	v, ok := m.vms[vm]
	if !ok {
		return fault.New(fault.VMAbsent, "no VM %s", vm)
	}
	v.power = host.Off
	m.vms[vm] = v
	return nil
}

func (m *machines) State(_ context.Context, vm string) (host.Power, error) {
	if err := m.fail["state"]; err != nil {
		return "", err
	}
	v, ok := m.vms[vm]
	if !ok {
		return host.Absent, nil
	}
	return v.power, nil
}

func (m *machines) Delete(_ context.Context, vm string) error {
	if err := m.did("delete", vm); err != nil {
		return err
	}
	delete(m.vms, vm)
	return nil
}

// world is a protected site, a recovery site and a store, on one recorded filesystem.
type world struct {
	*replicatetest.Rig
	source, recovery *machines
	hooked           []string
	in               failover.DisksIn // where disks are made
}

// on is the same world on another filesystem, with hosts that go their own way from here.
func (w *world) on(fs *crashfs.FS) *world {
	return &world{Rig: w.On(fs), source: w.source.clone(), recovery: w.recovery.clone(), in: w.in}
}

func (w *world) job() *failover.Job {
	store := replica.InHand(promoting{dir.New(w.FS, "/store"), w.FS})
	j := &failover.Job{
		VM: "web01", Store: store, DisksIn: w.in, FS: w.FS, By: replica.Owner{Site: "dr", Host: "dr1"}, Keep: w.Keep,
		Source:   failover.Place{Host: w.source, Name: "web01"},
		Recovery: failover.Place{Host: w.recovery, Name: "web01"},
		Folder:   "/dr/web01", TestFolder: "/dr/web01-test", Format: disk.VHD,
		Machine: host.Definition{Generation: 1, OS: "linux", CPUs: 1, Memory: 1 << 28},
		NICs: func(context.Context, failover.Kind) ([]host.NIC, []string, error) {
			return []host.NIC{{Source: "lan", Network: "dr-lan", Attach: host.User, Primary: true}}, nil, nil
		},
		LastChanges: func(ctx context.Context) error { _, err := w.Delta(ctx); return err },
		Hook: func(_ context.Context, k failover.Kind, d host.Definition) error {
			w.hooked = append(w.hooked, string(k)+" "+d.Name)
			return nil
		},
		Step:  func(_ string, f func() (int64, string, error)) error { _, _, err := f(); return err },
		Meter: progress.None(), Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return w.Now },
		Pause: func(ctx context.Context, _ time.Duration) error { return ctx.Err() }, // this filesystem's clock goes on with each operation
	}
	j.Home = failover.Home{Place: j.Source, Machine: j.Machine, StateDir: "/site/.sitrep/failback/web01",
		Readopt: func(ctx context.Context) error {
			e, done, err := w.Job(ctx, false)
			if err != nil {
				return err
			}
			return errors.Join(e.Readopt(ctx), done())
		}}
	for _, name := range w.Disks {
		j.Home.Disks = append(j.Home.Disks, failover.HomeDisk{Name: name, Path: w.Path(name), Format: "raw", LogDir: "/site/disks", OS: name == "os"})
	}
	return j
}

// newWorld is a VM that runs at its source and is protected, with a few recovery points.
func newWorld(t *testing.T, g replicatetest.Guest, past int, change func()) *world {
	t.Helper()
	ctx := t.Context()
	w := &world{Rig: replicatetest.New(crashfs.New(), "os", "data"), source: newMachines("hv01"), recovery: newMachines("dr-kvm")}
	w.source.vms["web01"] = machine{host.Definition{Name: "web01"}, host.Running}
	must(t, w.Write(g))
	must(t, w.Prepare(ctx, g))
	must(t, w.Protect(ctx))
	for range past {
		change()
		w.Now = w.Now.Add(5 * time.Minute)
		must(t, w.Write(g))
		_, err := w.Delta(ctx)
		must(t, err)
	}
	return w
}

// recovered reads the disks of a VM at the recovery site, as its guest sees them.
func (w *world) recovered(vm string) (replicatetest.Guest, error) {
	v, ok := w.recovery.vms[vm]
	if !ok {
		return nil, fmt.Errorf("there is no VM %s at the recovery site", vm)
	}
	g := replicatetest.Guest{}
	for _, d := range v.def.Disks {
		img, err := disk.Open(w.FS, file(d.Path), disk.Format(d.Format))
		if err != nil {
			return nil, err
		}
		b := make([]byte, img.Size())
		err = durable.ReadFull(img, b, 0)
		if err = errors.Join(err, img.Close()); err != nil {
			return nil, err
		}
		g[d.Name] = b
	}
	return g, nil
}

// write is what a guest at the recovery site does.
func (w *world) write(vm string, g replicatetest.Guest) error {
	for _, d := range w.recovery.vms[vm].def.Disks {
		img, err := disk.OpenRW(w.FS, file(d.Path), disk.Format(d.Format))
		if err != nil {
			return err
		}
		_, err = img.WriteAt(g[d.Name], 0)
		if err = errors.Join(err, img.Flush(), img.Close()); err != nil {
			return err
		}
	}
	return nil
}

// atHome reads the source disks.
func (w *world) atHome() (replicatetest.Guest, error) {
	g := replicatetest.Guest{}
	for _, name := range w.Disks {
		img, err := disk.Open(w.FS, w.Path(name), disk.Raw)
		if err != nil {
			return nil, err
		}
		g[name] = make([]byte, img.Size())
		err = durable.ReadFull(img, g[name], 0)
		if err = errors.Join(err, img.Close()); err != nil {
			return nil, err
		}
	}
	return g, nil
}

func same(what string, got, want replicatetest.Guest) error {
	for name := range want {
		if !bytes.Equal(got[name], want[name]) {
			return fmt.Errorf("%s: disk %s is not what it should be", what, name)
		}
	}
	return nil
}

// samePoints proves that every point that is still there holds what it held.
func (w *world) samePoints(ctx context.Context, want map[hrl.Pos]replicatetest.Guest) error {
	got, err := w.Points(ctx)
	if err != nil {
		return err
	}
	for at, g := range got {
		if p, ok := want[at]; ok {
			if err := same(fmt.Sprintf("recovery point %v", at), g, p); err != nil {
				return err
			}
		}
	}
	return nil
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, err error, code fault.Code) {
	t.Helper()
	if e := fault.Find(err); e == nil || e.Code != code {
		t.Fatalf("the error is %v, want one of code %s", err, code)
	}
}
