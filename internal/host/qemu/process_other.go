//go:build !linux

package qemu

import (
	"context"
	"errors"
	"net"
	"time"

	"sitrep/internal/fault"
)

// errNoSocket stands for what is never found here.
var errNoSocket = errors.New("no socket")

func connectionRefused(error) bool { return false }

func queueIsFull(error) bool { return false }

func notHere() error {
	return fault.New(fault.HostRefused, "VMs of QEMU are run on Linux only; name the host's own commands (hypervisor: script)")
}

func dial(string) (net.Conn, error) { return nil, notHere() }

type process struct{ pid int }

func processOf(string) (*process, error) { return nil, notHere() }

func (*process) wait(context.Context, time.Duration) (bool, error) { return false, notHere() }

func (*process) kill() error { return notHere() }

func (*process) close() {}

func folderOf(net.Conn) string { return "" }
