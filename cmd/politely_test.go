package cmd

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/state"
)

// gate is a filesystem in which the first read of the replica's disk waits until it is opened.
type gate struct {
	durable.FS
	once    *sync.Once
	reached chan struct{}
	open    chan struct{}
}

func newGate(fsys durable.FS) *gate {
	return &gate{fsys, new(sync.Once), make(chan struct{}), make(chan struct{})}
}

func (g *gate) Open(name string) (durable.File, error) { return g.gated(name, g.FS.Open) }

func (g *gate) OpenRW(name string) (durable.File, error) { return g.gated(name, g.FS.OpenRW) }

func (g *gate) gated(name string, open func(string) (durable.File, error)) (durable.File, error) {
	f, err := open(name)
	if err != nil || !strings.HasSuffix(name, "/web01/os.vhd") {
		return f, err
	}
	return gatedFile{f, g}, nil
}

type gatedFile struct {
	durable.File
	g *gate
}

func (f gatedFile) ReadAt(p []byte, off int64) (int, error) {
	if len(p) > 512 { // not the footer
		f.g.once.Do(func() {
			close(f.g.reached)
			<-f.g.open
		})
	}
	return f.File.ReadAt(p, off)
}

// TestReplicationBesideLooking: a verification and an export step aside for a delta, whose retention does not take the point that is being
// exported, and go on where they stood. One that is interrupted while it waits leaves nothing held, and no files.
func TestReplicationBesideLooking(t *testing.T) {
	for _, c := range []struct {
		line string
		code int
	}{{"verify web01", 0}, {"points web01 --export OLDEST --to /out", 0}, {"points web01 --export OLDEST --to /out", 130}} {
		t.Run(c.line, func(t *testing.T) {
			m := newRig(t, "copy_frequency: 5m")
			m.must(0, "protect", "web01")
			oldest := readAll(t, m.fs, "/disks/os.raw")
			for i := range byte(2) {
				m.later()
				m.write("os", 0, 4096, 7+i)
				m.must(0, "delta", "web01", "--now")
			}
			ids, _ := m.pointIDs()
			g := newGate(m.fs)
			var stdout, stderr bytes.Buffer
			now := m.now
			p := &program{fs: g, stdin: bytes.NewReader(nil), stdout: &stdout, stderr: &stderr, now: func() time.Time { return now },
				getenv: func(string) string { return "" }}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan int, 1)
			go func() {
				ended <- p.run(ctx, append([]string{"sitrep", "--site", "/site.yaml"}, strings.Fields(strings.ReplaceAll(c.line, "OLDEST", ids[0]))...))
			}()
			select {
			case <-g.reached:
			case code := <-ended:
				t.Fatalf("exit code %d, before it read anything\n%s%s", code, &stdout, &stderr)
			}

			memory := state.Open(m.fs, "/.sitrep", func() time.Time { return now })
			go func() {
				for {
					if _, asked := memory.Asked("web01", state.Looks); asked {
						break
					}
					time.Sleep(time.Millisecond)
				}
				time.Sleep(2 * turnPoll) // until it has heard
				close(g.open)
			}()
			m.later()
			m.write("os", 0, 4096, 9)
			out, _ := m.must(0, "delta", "web01", "--now")
			if !strings.Contains(out, "4.0 KiB changed") || strings.Contains(out, "waits") {
				t.Errorf("the delta says %s", out)
			}
			if c.code == 130 {
				cancel()
			}
			if code := <-ended; code != c.code {
				t.Fatalf("exit code %d\n%s%s", code, &stdout, &stderr)
			}
			m.later()
			m.write("os", 0, 4096, 10)
			m.must(0, "delta", "web01", "--now")
			if left, held := m.pointIDs(); len(left) != 3 || len(held) != 0 {
				t.Errorf("points %q, of them held %q", left, held)
			}
			switch files, _ := m.fs.ReadDir("/out"); {
			case c.code != 0 && len(files) > 0:
				t.Errorf("left: %v", files)
			case c.code == 0 && strings.HasPrefix(c.line, "points"):
				if got := readAll(t, m.fs, "/out/web01.os.vhd"); !bytes.Equal(got[:len(oldest)], oldest) {
					t.Error("what was exported is not the point")
				}
			case c.code == 0 && !strings.Contains(stdout.String(), "no difference"):
				t.Errorf("it says %s", &stdout)
			}
			cancel()
		})
	}
}
