package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/hook"
	"sitrep/internal/host"
)

// rehearsalLimit is how long a rehearsal may take.
const rehearsalLimit = 30 * time.Second

// Rehearse starts QEMU with everything of the VM but its disks, which are empty ones of the same sizes, and ends it before the guest's
// first instruction: what QEMU or this machine refuses (memory, processors, a bridge or its helper, firmware, more disks than
// the bus takes, arguments of the site file, an accelerator) is known then. The VM need not be there, nor its disks; nothing is left.
// See host.Rehearser.
func (h *Host) Rehearse(ctx context.Context, d host.Definition) error {
	if err := h.mayRun(d); err != nil {
		return err
	}
	args, err := h.rehearsal(d)
	if err != nil {
		return fault.In(err, d.Name, "")
	}
	quit := []byte("{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"quit\"}\n")
	_, err = h.c.Programs.Run(ctx, hook.Program{Path: h.c.Binary, Args: args, Dir: os.TempDir(), Input: quit, Timeout: rehearsalLimit})
	if err != nil {
		return fault.In(refused(err, "QEMU would not run the VM"), d.Name, "")
	}
	if total, ok := memoryTotal(); ok && d.Memory > total {
		return fault.New(fault.HostRefused, "the VM has %d MiB of memory, and this machine %d MiB", d.Memory>>20, total>>20).Of(d.Name, "")
	}
	return nil
}

// rehearsal is the command line of a rehearsal.
func (h *Host) rehearsal(d host.Definition) ([]string, error) {
	args := append(h.basics(d), "-S", "-qmp", "stdio", "-serial", "null")
	machine, err := h.machine(d)
	if err != nil {
		return nil, err
	}
	disks, err := h.attached(d, func(node string, i int) (string, error) {
		b, err := json.Marshal(struct {
			Driver string `json:"driver"`
			Node   string `json:"node-name"`
			Size   int64  `json:"size"`
		}{"null-co", node, max(d.Disks[i].Size, 1<<20)})
		return string(b), err
	})
	if err != nil {
		return nil, err
	}
	args = append(append(args, machine...), disks...)
	return append(append(args, h.nics(d)...), h.c.Args...), nil
}

// basics is the part of the command line that is the same whenever the VM is run.
func (h *Host) basics(d host.Definition) []string {
	clock := "utc"
	if d.OS == "windows" {
		clock = "localtime"
	}
	return []string{
		"-name", "guest=" + escape(d.Name), "-no-user-config", "-nodefaults", "-display", "none", "-vga", "std",
		"-accel", h.c.Accel, "-cpu", h.c.CPU, "-smp", strconv.Itoa(d.CPUs), "-m", fmt.Sprintf("size=%dB", d.Memory), "-rtc", "base=" + clock,
	}
}

// Memory is the memory of the machine in bytes; known is false when it cannot be told. See host.Rehearser.
func (h *Host) Memory() (total int64, known bool) { return memoryTotal() }

func memoryTotal() (int64, bool) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, false
	}
	for line := range bytes.Lines(data) {
		var kib int64
		if n, _ := fmt.Sscanf(string(line), "MemTotal: %d kB", &kib); n == 1 {
			return kib << 10, true
		}
	}
	return 0, false
}
