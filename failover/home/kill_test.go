package home_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"sitrep/failover/home"
	"sitrep/internal/disk"
	"sitrep/internal/durable"
)

// childEnv tells a copy of this test which folder to bring home, and in which shape.
const childEnv = "SITREP_HOME_CHILD"

// killed is the VM of TestKill in a folder.
func killed(t testing.TB, dir, shape string, src disk.Image) *home.Job {
	j := job(durable.OS(), filepath.Join(dir, "state"), home.Disk{Name: "os", Source: src, Target: filepath.Join(dir, "os"), Format: shapes()[shape].format})
	j.Again = true
	return j
}

// TestKill kills a real process with SIGKILL at some moment, again and again: after Resume the original is old or new, and
// after the next run it is new.
func TestKill(t *testing.T) {
	if dir := os.Getenv(childEnv); dir != "" {
		shape := os.Getenv(childEnv + "_SHAPE")
		src := open(t, durable.OS(), filepath.Join(dir, "recovered"), disk.Raw)
		os.Stdout.WriteString("ready\n")
		must(killed(t, dir, shape, src).Bring(context.Background()))(t)
		return
	}
	r := seeded(t)
	rounds := 3
	if os.Getenv("SITREP_LONG") != "" {
		rounds = 60
	}
	for name, s := range shapes() {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			guest := make([]byte, 8<<20)
			scribble(r, guest, 40)
			create(t, durable.OS(), filepath.Join(dir, "os"), s, guest)
			took := 40 * time.Millisecond
			for range rounds {
				old := bytes.Clone(guest)
				scribble(r, guest, 40)
				src := sourceOf(t, durable.OS(), filepath.Join(dir, "recovered"), guest)
				cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
				cmd.Env = append(os.Environ(), childEnv+"="+dir, childEnv+"_SHAPE="+name)
				out := must(cmd.StdoutPipe())(t)
				ok(t, cmd.Start())
				must(io.ReadFull(out, make([]byte, len("ready\n"))))(t)
				time.Sleep(time.Duration(r.Int64N(int64(took)))) // the moment is chance, what must hold afterwards is not
				ok(t, cmd.Process.Kill())
				_ = cmd.Wait()
				done := must(killed(t, dir, name, nil).Resume(t.Context()))(t)
				got := content(t, durable.OS(), filepath.Join(dir, "os"), s.format)
				if isNew := bytes.Equal(got, guest); !isNew && (done || !bytes.Equal(got, old)) {
					t.Fatalf("resumed (%v): neither old nor new", done)
				}
				began := time.Now()
				must(killed(t, dir, name, src).Bring(t.Context()))(t)
				took = max(took, time.Since(began))
				if !bytes.Equal(content(t, durable.OS(), filepath.Join(dir, "os"), s.format), guest) {
					t.Fatal("brought home: content differs")
				}
				src.Close()
			}
		})
	}
}
