package cmd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
)

const crashSite = `vault: test
store: {directory: /store}
policies: [{name: gold, recovery_points: 2, block_size: 4KiB, log_limit_percent: 100, source_reserve: off}] # the disks are small, a change of them is not
networks: [{name: lan}]
vmm:
  clouds:
    - name: c
      policy: gold
      hosts:
        - name: h
          hypervisor: none
          vms:
            - name: web01
              generation: 1
              os: linux
              cpus: 1
              memory: 1GiB
              disks:
                - {name: os, path: /disks/os.raw, os: true, format: raw}
                - {name: data, path: /disks/data.raw, format: raw}
              nics: [{network: lan}]
`

// sitrep runs a command line on a filesystem.
func sitrep(fsys durable.FS, args ...string) (code int, stderr string) {
	var out, errs bytes.Buffer
	p := &program{fs: fsys, stdin: bytes.NewReader(nil), stdout: &out, stderr: &errs, now: time.Now,
		pause:  func(ctx context.Context, _ time.Duration) error { return ctx.Err() },
		getenv: func(string) string { return "" }}
	code = p.run(context.Background(), append([]string{"sitrep", "--site", "/site.yaml"}, args...))
	return code, errs.String()
}

// crashMachine is a site with two disks.
func crashMachine(t *testing.T) *crashfs.FS {
	t.Helper()
	fsys := crashfs.New()
	if err := fsys.MkdirAll("/disks"); err != nil {
		t.Fatal(err)
	}
	writeAll(t, fsys, "/site.yaml", []byte(crashSite))
	writeAll(t, fsys, "/disks/os.raw", bytes.Repeat([]byte{1, 2, 3, 4}, 10<<10))
	writeAll(t, fsys, "/disks/data.raw", bytes.Repeat([]byte{5, 0, 0, 0}, 15<<10))
	return fsys
}

func writeAll(t *testing.T, fsys durable.FS, name string, data []byte) {
	t.Helper()
	if err := durable.WriteFile(fsys, name, data); err != nil {
		t.Fatal(err)
	}
}

func readAll(t *testing.T, fsys durable.FS, name string) []byte {
	t.Helper()
	f, err := fsys.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(io.NewSectionReader(f, 0, size))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// change writes to the disks, as a guest does.
func change(fsys durable.FS, round byte) error {
	for i, name := range []string{"/disks/os.raw", "/disks/data.raw"} {
		f, err := fsys.OpenRW(name)
		if err != nil {
			return err
		}
		if _, err = f.WriteAt(bytes.Repeat([]byte{round}, 5000), int64(i)*512); err == nil {
			err = f.Sync()
		}
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// life is protect and three deltas, of which the last two drop recovery points.
func life(fsys durable.FS) {
	sitrep(fsys, "protect", "web01")
	for round := range 3 {
		if change(fsys, byte(round+10)) != nil {
			return
		}
		sitrep(fsys, "delta", "web01")
	}
}

// TestCrashAnywhere cuts the power, or kills the process, at operations of a VM's life, and then does what an operator
// would do: the same commands again. The replica must become the source, and be proved, whatever was cut.
func TestCrashAnywhere(t *testing.T) {
	whole := crashMachine(t)
	before := whole.Ops()
	life(whole)
	recovered(t, whole)
	ops := whole.Ops() - before
	step := 23
	if os.Getenv("SITREP_LONG") != "" {
		step = 1
	}
	t.Logf("%d operations, one in %d is cut", ops, step)
	for k := 1; k <= ops; k += step {
		fsys := crashMachine(t)
		fsys.CutAfter(k)
		life(fsys)
		for _, policy := range crashfs.Policies() {
			t.Run(fmt.Sprintf("%d/%v", k, policy), func(t *testing.T) {
				recovered(t, fsys.AfterCrash(policy, uint64(k)))
			})
			if t.Failed() {
				return
			}
		}
	}
}

// recovered runs the commands that bring a replica up to date, and proves it.
func recovered(t *testing.T, fsys *crashfs.FS) {
	t.Helper()
	if code, errs := sitrep(fsys, "protect", "web01"); code != exitDone && code != exitRefused {
		t.Fatalf("protect: exit code %d\n%s", code, errs)
	}
	for _, args := range [][]string{{"delta", "--now", "web01"}, {"verify", "web01"}, {"verify", "--against-source", "web01"},
		{"status", "web01"}, {"points", "web01"}, {"jobs"}} {
		if code, errs := sitrep(fsys, args...); code != exitDone {
			t.Fatalf("%v: exit code %d\n%s", args, code, errs)
		}
	}
	for _, disk := range []string{"os", "data"} {
		source, replica := readAll(t, fsys, "/disks/"+disk+".raw"), readAll(t, fsys, "/store/web01/"+disk+".vhd")
		if !bytes.Equal(source, replica[:len(source)]) {
			t.Fatalf("the replica of %s is not its source", disk)
		}
	}
}

// TestFullDisk: a volume that is full is told, loses nothing, and the same command goes on when there is space again.
func TestFullDisk(t *testing.T) {
	fsys := crashMachine(t)
	if code, errs := sitrep(fsys, "protect", "web01"); code != exitDone {
		t.Fatalf("protect: exit code %d\n%s", code, errs)
	}
	if err := change(fsys, 7); err != nil {
		t.Fatal(err)
	}
	failed := 0
	for space := int64(0); ; space += 4096 { // more than what there is: each run leaves the record of a job
		fsys.SetCapacity(fsys.Allocated() + space)
		code, errs := sitrep(fsys, "delta", "--now", "web01")
		if code == exitDone {
			break
		}
		if failed++; code != exitFailed || !strings.Contains(errs, "The volume is full") {
			t.Fatalf("at %d bytes: exit code %d\n%s", space, code, errs)
		}
	}
	if failed == 0 {
		t.Fatal("the volume was never full")
	}
	fsys.SetCapacity(0)
	recovered(t, fsys)
}

// TestReadOnly: a store that cannot be written is an administrator's matter, and the next run goes on.
func TestReadOnly(t *testing.T) {
	fsys := crashMachine(t)
	life(fsys)
	if err := change(fsys, 7); err != nil {
		t.Fatal(err)
	}
	fsys.FailOn(func(op crashfs.Op) error {
		if op.Kind.Changes() && strings.HasPrefix(op.Name, "/store/") {
			return syscall.EROFS
		}
		return nil
	})
	if code, errs := sitrep(fsys, "delta", "web01"); code != exitCritical || !strings.Contains(errs, "/store/") {
		t.Fatalf("exit code %d\n%s", code, errs)
	}
	fsys.FailOn(nil)
	if code, errs := sitrep(fsys, "resume", "web01"); code != exitDone {
		t.Fatalf("resume: exit code %d\n%s", code, errs)
	}
	recovered(t, fsys)
}

// TestResyncCrashAnywhere cuts the power at operations of a resynchronization and of what leads to it: the next runs end
// it, and nothing is left marked.
func TestResyncCrashAnywhere(t *testing.T) {
	t.Parallel()
	marked := func() *crashfs.FS {
		fsys := crashMachine(t)
		sitrep(fsys, "protect", "web01")
		if err := errors.Join(change(fsys, 9), fsys.Rename("/.sitrep/track", "/away")); err != nil {
			t.Fatal(err)
		}
		return fsys
	}
	harmed := func(fsys *crashfs.FS) {
		sitrep(fsys, "delta", "web01")
		sitrep(fsys, "resync", "web01")
	}
	whole := marked()
	before := whole.Ops()
	harmed(whole)
	ops := whole.Ops() - before
	step := 7
	if os.Getenv("SITREP_LONG") != "" {
		step = 1
	}
	for k := 1; k <= ops; k += step {
		fsys := marked()
		fsys.CutAfter(k)
		harmed(fsys)
		for _, policy := range crashfs.Policies() {
			after := fsys.AfterCrash(policy, uint64(k))
			if code, errs := sitrep(after, "delta", "--now", "web01"); code != exitDone && code != exitResync {
				t.Fatalf("%d of %d, %v: delta: exit code %d\n%s", k, ops, policy, code, errs)
			}
			if code, errs := sitrep(after, "resync", "--now", "web01"); code != exitDone {
				t.Fatalf("%d of %d, %v: resync: exit code %d\n%s", k, ops, policy, code, errs)
			}
			recovered(t, after)
		}
	}
}
