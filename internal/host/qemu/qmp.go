package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"path/filepath"
	"syscall"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/host"
)

// maxMessage is the length in bytes of the longest message that is read.
const maxMessage = 4 << 20

// qmp is a connection to a control socket. QEMU talks to one client at a time, so it is kept for one command only.
type qmp struct {
	conn net.Conn
	in   *bufio.Scanner
	path string
}

// reply is a message of QEMU: its greeting, an answer or an event.
type reply struct {
	Greeting json.RawMessage `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Error    *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event string `json:"event"`
}

// connect opens the control socket and makes it ready for commands.
func connect(ctx context.Context, path string) (*qmp, error) {
	conn, err := dialPatiently(ctx, path)
	if err != nil {
		return nil, err
	}
	q := &qmp{conn: conn, in: bufio.NewScanner(conn), path: path}
	q.in.Buffer(nil, maxMessage)
	if err := q.greet(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return q, nil
}

// dialPatiently waits while so many clients are before us that the kernel takes no more.
func dialPatiently(ctx context.Context, path string) (net.Conn, error) {
	for deadline := time.Now().Add(answerLimit); ; {
		c, err := dial(path)
		if err == nil {
			return c, nil
		}
		if !queueIsFull(err) || time.Now().After(deadline) {
			return nil, fault.Wrap(fault.HostUnreachable, err, "QEMU's control socket cannot be opened").At(path)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return nil, err
		}
	}
}

func (q *qmp) greet(ctx context.Context) error {
	defer q.limit(ctx)()
	r, err := q.read(ctx)
	if err != nil {
		return err
	}
	if r.Greeting == nil {
		return fault.New(fault.HostRefused, "what listens at the control socket is no QEMU").At(q.path)
	}
	return q.do(ctx, "qmp_capabilities", nil)
}

// limit lets what follows fail when ctx ends or QEMU takes too long; the returned function ends that.
func (q *qmp) limit(ctx context.Context) (done func() bool) {
	q.conn.SetDeadline(time.Now().Add(answerLimit))
	return context.AfterFunc(ctx, func() { q.conn.SetDeadline(time.Unix(1, 0)) })
}

func (q *qmp) read(ctx context.Context) (r reply, err error) {
	if !q.in.Scan() {
		err := q.in.Err()
		if e := interrupted(ctx); e != nil {
			return r, e
		}
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return r, fault.Wrap(fault.HostUnreachable, err, "QEMU does not answer").At(q.path)
	}
	if err := json.Unmarshal(q.in.Bytes(), &r); err != nil {
		return r, fault.Wrap(fault.HostRefused, err, "QEMU's answer cannot be understood").At(q.path)
	}
	return r, nil
}

// do sends a command and waits for its answer, which goes to result unless that is nil.
func (q *qmp) do(ctx context.Context, command string, result any) error {
	defer q.limit(ctx)()
	msg, err := json.Marshal(map[string]string{"execute": command})
	if err != nil {
		return err
	}
	if _, err := q.conn.Write(append(msg, '\n')); err != nil {
		if e := interrupted(ctx); e != nil {
			return e
		}
		return fault.Wrap(fault.HostUnreachable, err, "QEMU takes no command").At(q.path)
	}
	for {
		r, err := q.read(ctx)
		switch {
		case err != nil:
			return err
		case r.Error != nil:
			return fault.New(fault.HostRefused, "QEMU refused %s: %s", command, r.Error.Desc).At(q.path)
		case r.Return == nil: // an event
			continue
		case result == nil:
			return nil
		}
		if err := json.Unmarshal(r.Return, result); err != nil {
			return fault.Wrap(fault.HostRefused, err, "QEMU's answer to %s cannot be understood", command).At(q.path)
		}
		return nil
	}
}

// socket is the path of the VM's control socket.
func (h *Host) socket(vm string) string {
	if path, ok := h.c.QMP[vm]; ok {
		return path
	}
	return h.path(vm, socketFile)
}

// command has the VM's QEMU do something.
func (h *Host) command(ctx context.Context, vm, command string, result any) error {
	q, err := connect(ctx, h.socket(vm))
	if err != nil {
		return err
	}
	defer q.conn.Close()
	return q.do(ctx, command, result)
}

// power asks QEMU what the VM is doing; Off is that nobody listens, and nobody uses its disks. One that hangs up is about to end, and is asked again.
func (h *Host) power(ctx context.Context, vm string) (host.Power, error) {
	for deadline := time.Now().Add(endLimit); ; {
		power, err := h.askPower(ctx, vm)
		if !hungUp(err) || time.Now().After(deadline) {
			return power, err
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return host.Unknown, err
		}
	}
}

func (h *Host) askPower(ctx context.Context, vm string) (host.Power, error) {
	var status struct {
		Running bool   `json:"running"`
		Status  string `json:"status"`
	}
	err := h.command(ctx, vm, "query-status", &status)
	switch {
	case nobodyListens(err):
		if dir := filepath.Dir(h.socket(vm)); !exists(dir) {
			return host.Unknown, fault.New(fault.HostUnreachable, "the folder of the control socket is not there; correct qmp: in the site file, or make it").At(dir)
		}
		return h.unheard(vm)
	case err != nil:
		return host.Unknown, err
	case status.Running:
		return host.Running, nil
	}
	return host.Paused, nil // by whomever, and also by a disk that is full
}

// quit tells QEMU to end. That the connection ends before the answer is an answer.
func (h *Host) quit(ctx context.Context, vm string) error {
	if err := h.command(ctx, vm, "quit", nil); !hungUp(err) {
		return err
	}
	return nil
}

// hungUp says whether QEMU has closed the connection.
func hungUp(err error) bool {
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// imageFiles lists the files that QEMU writes to.
func (h *Host) imageFiles(ctx context.Context, vm string) ([]string, error) {
	var nodes []struct {
		Driver   string `json:"drv"`
		ReadOnly bool   `json:"ro"`
		File     string `json:"file"`
	}
	if err := h.command(ctx, vm, "query-named-block-nodes", &nodes); err != nil {
		return nil, err
	}
	var files []string
	for _, n := range nodes {
		if (n.Driver == "file" || n.Driver == "host_device") && !n.ReadOnly && filepath.IsAbs(n.File) {
			files = append(files, n.File)
		}
	}
	return files, nil
}

// nobodyListens says that the error of dial means that there is no process behind the socket.
func nobodyListens(err error) bool {
	return err != nil && (errors.Is(err, errNoSocket) || connectionRefused(err))
}
