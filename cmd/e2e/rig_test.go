package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sitrep/internal/durable"
	"sitrep/internal/replica"
	"sitrep/internal/replica/dir"
)

// rig is a site: a folder with a site file, the VMs' disks in folders of their names, and a store.
type rig struct {
	*testing.T
	dir    string
	keep   int    // recovery points
	policy string // more of the policy, in YAML
	vms    []*machine
}

// machine is a VM of a rig, with what its disks held at each recovery point.
type machine struct {
	name  string
	disks map[string]guest
	past  []moment // of the points, oldest first
}

// moment is what the disks of a VM hold: size and hash of each.
type moment map[string]string

// newRig makes a site in an empty folder, without VMs.
func newRig(t *testing.T) *rig {
	needQEMU(t)
	return &rig{T: t, dir: t.TempDir(), keep: 24}
}

// path is in the folder of the site.
func (r *rig) path(parts ...string) string {
	return filepath.Join(append([]string{r.dir}, parts...)...)
}

// add puts a VM into the site file.
func (r *rig) add(name string, disks map[string]guest) *machine {
	r.Helper()
	m := &machine{name: name, disks: disks}
	r.vms = append(r.vms, m)
	r.writeSite()
	return m
}

// one makes a site with one VM, web01, that has one raw disk called os.
func one(t *testing.T, size int64) (*rig, *machine, *qemuGuest) {
	t.Helper()
	r := newRig(t)
	g := newQEMU(t, r.path("web01", "os.raw"), "raw", size)
	return r, r.add("web01", map[string]guest{"os": g}), g
}

func (r *rig) writeSite() {
	r.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "vault: e2e\nstore: {directory: ./store}\npolicies:\n  - {name: gold, recovery_points: %d, log_limit_percent: 100%s}\nnetworks: [{name: lan}]\n", r.keep, r.policy)
	b.WriteString("vmm:\n  clouds:\n    - name: c\n      policy: gold\n      hosts:\n        - name: h\n          hypervisor: none\n          vms:\n")
	for _, m := range r.vms {
		fmt.Fprintf(&b, "            - {name: %s, generation: 1, os: linux, cpus: 1, memory: 1GiB, nics: [{network: lan}], disks: [", m.name)
		for i, name := range m.names() {
			if i > 0 {
				b.WriteString(", ")
			}
			g := m.disks[name]
			fmt.Fprintf(&b, "{name: %s, path: %q, format: %s, os: %v}", name, g.file(), g.format(), i == 0)
		}
		b.WriteString("]}\n")
	}
	check(r.T, os.WriteFile(r.path("site.yaml"), []byte(b.String()), 0o600))
}

// names are those of the VM's disks, "os" first where there is one.
func (m *machine) names() []string {
	var out []string
	for name := range m.disks {
		out = append(out, name)
	}
	slices.Sort(out)
	if i := slices.Index(out, "os"); i > 0 {
		out = append([]string{"os"}, slices.Delete(out, i, i+1)...)
	}
	return out
}

// outcome is what became of a run.
type outcome struct {
	args           []string
	code           int // exit code; -1 when it was killed
	stdout, stderr string
	state          *os.ProcessState
}

// object is what a run writes with --json.
type object struct {
	OK       bool             `json:"ok"`
	ExitCode int              `json:"exit_code"`
	Error    *errorObject     `json:"error"`
	VMs      []vmObject       `json:"vms"`
	Jobs     []jobObject      `json:"jobs"`
	Log      *json.RawMessage `json:"log"`
}

type errorObject struct {
	Code, Message, Hint, VM, Disk, Path string
}

type vmObject struct {
	VM, State, Health string
	Sequence          uint64
	Unchanged         bool
	Shipped           int             `json:"cuts_shipped"`
	Applied           int             `json:"cuts_applied"`
	Sent              int64           `json:"bytes_sent"`
	Points            json.RawMessage // a number, or the points themselves
	Complete          bool
	Error             *errorObject
	Disks             []struct {
		Name    string
		Size    int64
		Scanned int64 `json:"bytes_scanned"`
		Changed int64 `json:"bytes_changed"`
		Sent    int64 `json:"bytes_sent"`
		Blocks  int64
	}
}

type jobObject struct {
	ID, VM, Name, Command, State string
}

// command is a run of the binary that is not started.
func (r *rig) command(args ...string) *exec.Cmd {
	c := exec.Command(os.Getenv(binaryEnv), append([]string{"--site", r.path("site.yaml")}, args...)...)
	c.Dir = r.dir
	return c
}

// run runs the binary to its end.
func (r *rig) run(args ...string) outcome {
	r.Helper()
	var out, errs bytes.Buffer
	c := r.command(args...)
	c.Stdout, c.Stderr = &out, &errs
	if err := c.Start(); err != nil {
		r.Fatal(err)
	}
	return r.wait(c, &out, &errs)
}

func (r *rig) wait(c *exec.Cmd, out, errs *bytes.Buffer) outcome {
	r.Helper()
	err := c.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.Fatal(err)
	}
	return outcome{c.Args[3:], c.ProcessState.ExitCode(), out.String(), errs.String(), c.ProcessState}
}

func (o outcome) String() string {
	text := o.stderr // which has it all when something went wrong
	if text == "" {
		text = o.stdout
	}
	return fmt.Sprintf("sitrep %q: exit code %d\n%s", o.args, o.code, text)
}

// ok runs the binary; it must succeed, and be silent on stderr unless the tests expect remarks there.
func (r *rig) ok(args ...string) outcome {
	r.Helper()
	o := r.run(args...)
	if o.code != 0 {
		r.Fatal(o)
	}
	return o
}

// json runs the binary with --json; it must succeed.
func (r *rig) json(args ...string) object {
	r.Helper()
	return r.ok(append(args, "--json")...).object(r.T)
}

func (o outcome) object(t *testing.T) object {
	t.Helper()
	var obj object
	if err := json.Unmarshal([]byte(o.stdout), &obj); err != nil {
		t.Fatalf("%v\n%v", err, o)
	}
	return obj
}

// vm runs the binary on one VM with --json, and returns what it says of it.
func (r *rig) vm(args ...string) vmObject {
	r.Helper()
	obj := r.json(args...)
	if len(obj.VMs) != 1 {
		r.Fatalf("%q: %d VMs", args, len(obj.VMs))
	}
	return obj.VMs[0]
}

// refused runs the binary; it must fail with the exit code and the error code. words must stand in the message for people,
// with what is to be done next; what is tried first is what the operator sees, then the object for programs.
func (r *rig) refused(exit int, code string, words []string, args ...string) outcome {
	r.Helper()
	o := r.run(append(args, "--json")...)
	if o.code != exit {
		r.Fatalf("exit code %d is wanted: %v", exit, o)
	}
	obj := o.object(r.T)
	if obj.ExitCode != exit || obj.OK || obj.Error == nil || obj.Error.Code != code {
		r.Fatalf("error %s is wanted: %v", code, o)
	}
	for _, w := range append(words, "next:", "cause:", "retry:") {
		if !strings.Contains(o.stderr, w) {
			r.Fatalf("%q is not said: %v", w, o)
		}
	}
	if strings.Contains(o.stderr, "panic") || strings.Contains(o.stderr, "goroutine") {
		r.Fatal(o)
	}
	return o
}

// now is what the VM's disks hold.
func (m *machine) now(t *testing.T) moment {
	t.Helper()
	at := moment{}
	for name, g := range m.disks {
		at[name] = fmt.Sprintf("%d %s", g.size(t), g.hash(t))
	}
	return at
}

// remember says that a recovery point of the present was taken.
func (m *machine) remember(t *testing.T) {
	t.Helper()
	m.past = append(m.past, m.now(t))
}

// replica is the file of a disk in the store.
func (r *rig) replica(m *machine, disk string) string { return r.path("store", m.name, disk+".vhd") }

// same fails the test unless the replica is the source, by the judgement of another program.
func (r *rig) same(m *machine) {
	r.Helper()
	for name, g := range m.disks {
		g.same(r.T, r.replica(m, name))
	}
}

// up does what brings the replica up to date, and proves that it is, with all its recovery points.
func (r *rig) up(m *machine) vmObject {
	r.Helper()
	o := r.vm("delta", m.name, "--now")
	r.same(m)
	at := m.now(r.T)
	isNew := len(m.past) == 0 || !equalMoments(m.past[len(m.past)-1], at)
	if isNew == o.Unchanged {
		r.Fatalf("delta says unchanged: %v", o.Unchanged)
	}
	if isNew {
		m.past = append(m.past, at)
	}
	r.pointsAre(m)
	return o
}

func equalMoments(a, b moment) bool {
	for name, x := range a {
		if b[name] != x {
			return false
		}
	}
	return len(a) == len(b)
}

// protect enables protection, and proves the outcome.
func (r *rig) protect(m *machine) {
	r.Helper()
	r.ok("protect", m.name)
	r.same(m)
	m.past = []moment{m.now(r.T)}
	r.pointsAre(m)
}

// pointsAre fails the test unless the recovery points are what the disks held, all of it and in order.
func (r *rig) pointsAre(m *machine) {
	r.Helper()
	points := r.points(m)
	if len(points) != len(m.past) {
		r.Fatalf("%d recovery points, want %d", len(points), len(m.past))
	}
	for i, p := range points {
		if !equalMoments(p, m.past[i]) {
			r.Fatalf("recovery point %d holds %v, the disks held %v", i, p, m.past[i])
		}
	}
}

// points reads all recovery points of a VM.
func (r *rig) points(m *machine) (out []moment) {
	r.Helper()
	ctx := context.Background()
	rep, err := dir.New(durable.OS(), r.path("store")).View(ctx, m.name)
	check(r.T, err)
	defer rep.Close()
	st, err := rep.Ledger().Load(ctx)
	check(r.T, err)
	for _, p := range st.Points {
		view, err := rep.Points().Open(ctx, st, p.ID)
		check(r.T, err)
		out = append(out, r.content(m, view))
		check(r.T, view.Close())
	}
	return out
}

func (r *rig) content(m *machine, view replica.PointView) moment {
	r.Helper()
	at := moment{}
	for name := range m.disks {
		d, err := view.Disk(name)
		check(r.T, err)
		at[name] = fmt.Sprintf("%d %s", d.Size(), hashOf(r.T, io.NewSectionReader(d, 0, d.Size())))
	}
	return at
}

// export writes a disk as of the i-th recovery point to a file.
func (r *rig) export(m *machine, i int, disk, path string) {
	r.Helper()
	ctx := context.Background()
	rep, err := dir.New(durable.OS(), r.path("store")).View(ctx, m.name)
	check(r.T, err)
	defer rep.Close()
	st, err := rep.Ledger().Load(ctx)
	check(r.T, err)
	view, err := rep.Points().Open(ctx, st, st.Points[i].ID)
	check(r.T, err)
	defer view.Close()
	d, err := view.Disk(disk)
	check(r.T, err)
	f, err := os.Create(path)
	check(r.T, err)
	_, err = io.Copy(f, io.NewSectionReader(d, 0, d.Size()))
	check(r.T, errors.Join(err, f.Close()))
}

// clean fails the test if anything was left behind: change logs and clones beside the disks, half-made files and applied
// logs in the store.
func (r *rig) clean(m *machine) {
	r.Helper()
	for _, name := range m.names() {
		for _, e := range r.list(filepath.Dir(m.disks[name].file())) {
			if strings.HasSuffix(e, ".hrl") || durable.IsTemp(e) {
				r.Fatalf("%s was left beside the disks", e)
			}
		}
	}
	for _, e := range r.list(r.path("store")) {
		if durable.IsTemp(e) || strings.Contains(e, string(filepath.Separator)+"shelf"+string(filepath.Separator)) {
			r.Fatalf("%s was left in the store", e)
		}
	}
}

// list is all files below a folder.
func (r *rig) list(folder string) (out []string) {
	r.Helper()
	check(r.T, filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			out = append(out, path)
		}
		return err
	}))
	return out
}

// proven verifies the replica in both ways, and that nothing is left behind.
func (r *rig) proven(m *machine) {
	r.Helper()
	r.ok("verify", m.name)
	r.ok("verify", "--against-source", m.name)
	r.clean(m)
}
