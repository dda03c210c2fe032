package cmd

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"sitrep/internal/fault"
	"sitrep/internal/site"
	"sitrep/internal/state"
)

// A guard is a process of its own that lets a VM go on when the run that holds it is killed. It is this program with a command that
// is not for people, in a session of its own, and deaf to signals that ask it to end. It knows how the VM goes on before the VM is held:
// it has read the site file and the record. It holds one end of a pipe whose other end the run holds. When the run ends
// without having said that the VM goes on, the guard lets it go on. It then ends, as it does when the run has said so.
const guardName = "hold-guard"

const (
	guardReady = "ready\n"
	guardDone  = "done\n"

	guardStart    = 30 * time.Second       // how long a guard may take to be ready
	guardEnd      = 5 * time.Second        // and to end
	guardPatience = 5 * time.Minute        // how long it tries to let a VM go on
	guardPause    = 500 * time.Millisecond // between two tries
)

// startGuard starts a guard for what is held as a record says, and returns when it is ready.
type startGuard func(w *world, rec state.Held) (*guard, error)

// guard is the guard as its run sees it.
type guard struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

// guardProcess starts guards by running this program again, under the name that it was run with.
func guardProcess(name string) startGuard {
	return func(w *world, rec state.Held) (*guard, error) {
		g, err := w.launchGuard(name, rec)
		if err != nil {
			return nil, fault.Wrap(fault.IO, err, "the VM is not held still: no guard could be started that would let it go on").Of(rec.VM, "")
		}
		return g, nil
	}
}

func (w *world) launchGuard(name string, rec state.Held) (*guard, error) {
	self, err := selfPath()
	if err != nil {
		return nil, err
	}
	stateDir, err := filepath.Abs(w.memory.Path())
	if err != nil {
		return nil, err
	}
	g := &guard{cmd: &exec.Cmd{Path: self, Args: []string{name, "--site", w.site.Path, "--state", stateDir, guardName, rec.VM, rec.ID}}}
	detach(g.cmd)
	out, err := g.cmd.StdoutPipe()
	if err == nil {
		g.in, err = g.cmd.StdinPipe()
	}
	if err == nil {
		err = g.cmd.Start()
	}
	if err != nil {
		return nil, err
	}
	if err := awaitReady(out); err != nil {
		g.cmd.Process.Kill()
		g.done()
		return nil, err
	}
	return g, nil
}

// awaitReady waits until the guard says that it is ready.
func awaitReady(out io.Reader) error {
	said := make(chan error, 1)
	go func() {
		line, err := bufio.NewReader(out).ReadString('\n')
		if err == nil && line != guardReady {
			err = fmt.Errorf("the guard said %.100q", line)
		}
		said <- err
	}()
	select {
	case err := <-said:
		return err
	case <-time.After(guardStart):
		return fmt.Errorf("the guard was not ready within %v", guardStart)
	}
}

// done tells the guard that it has nothing to do any more, and waits for its end.
func (g *guard) done() {
	io.WriteString(g.in, guardDone) // one that was killed does not hear it
	g.in.Close()
	kill := time.AfterFunc(guardEnd, func() { g.cmd.Process.Kill() })
	defer kill.Stop()
	g.cmd.Wait()
}

// guardCommand is the guard's own side.
func (p *program) guardCommand() *cli.Command {
	return &cli.Command{
		Name: guardName, Hidden: true, Usage: "let a VM go on when the run that holds it is killed; sitrep starts it by itself", ArgsUsage: "VM ID",
		Action: p.action(guardName, func(ctx context.Context, c *cli.Context) error {
			p.deaf.Store(true)
			w, err := p.open()
			if err != nil {
				return err
			}
			if c.NArg() != 2 {
				return fault.New(fault.UsageError, "%s is not for people: sitrep starts it by itself", guardName)
			}
			vm, err := w.site.VM(c.Args().Get(0))
			if err != nil {
				return err
			}
			return w.standGuard(context.WithoutCancel(ctx), vm, c.Args().Get(1))
		}),
	}
}

func (w *world) standGuard(ctx context.Context, vm *site.VM, id string) error {
	rec, ok, err := w.holds.Held(vm.Name)
	if err != nil || !ok || rec.ID != id {
		return fault.New(fault.WrongState, "nothing is held as %s", id).Of(vm.Name, "")
	}
	if _, err := w.freezerAt(vm, rec.Side); err != nil {
		return err
	}
	if _, err := io.WriteString(w.stdout, guardReady); err != nil {
		return err
	}
	said, _ := io.ReadAll(io.LimitReader(w.stdin, 1<<10))
	if strings.Contains(string(said), guardDone) {
		return nil
	}
	return w.guardTries(ctx, vm, id)
}

// guardTries lets the VM go on, with patience, unless somebody else has done so.
func (w *world) guardTries(ctx context.Context, vm *site.VM, id string) (err error) {
	for deadline := time.Now().Add(guardPatience); time.Now().Before(deadline); time.Sleep(guardPause) {
		lock, lerr := w.holds.LockHeld(vm.Name)
		if lerr != nil {
			err = lerr
			continue
		}
		rec, ok, _ := w.holds.Held(vm.Name)
		if !ok || rec.ID != id {
			return lock.Close()
		}
		err = w.letGoLate(ctx, vm, rec)
		lock.Close()
		if err == nil || !fault.Is(err, fault.HostUnreachable) && !fault.Is(err, fault.HostTimeout) {
			return err
		}
	}
	return err
}
