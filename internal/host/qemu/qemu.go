// Package qemu runs VMs with QEMU, by its command line and its control socket (QMP), without any daemon or library.
//
// A VM is a folder, Config.Folder/NAME, and perhaps a process:
//
//	definition.json   what the VM is; it exists as long as the VM does
//	console.log       what the guest has written to its serial port since the last start; the run before: console.previous.log
//	overlay-N.qcow2   of disposable VMs: what the guest has written to disk N
//	vars.fd           UEFI variables, of generation 2
//	qemu.pid          the process; QEMU holds a lock on it for as long as it lives
//	qmp.sock          the control socket
//
// The folder may hold other files too, such as the VM's disks; they are never touched. It has to be on a local filesystem,
// which has sockets and locks.
//
// The lock on qemu.pid is what says whether the VM runs: the kernel releases it when the process ends, however it ends, so
// that no crash of either side leaves a lie, and a process is killed only while its lock proves that the number has not
// become another's. QEMU is started in the VM's folder and names its socket without a path, because an address of a
// socket may have 107 bytes only; we reach it through /proc/self/fd where its path is longer. Who may write to the folder
// may control the VM: the folder is made for its owner alone.
//
// QEMU runs in a session of its own and outlives sitrep. A service manager that kills what a unit has left behind has to
// be told not to (systemd: KillMode=process).
//
// Two runs of sitrep do not get into each other's way: what changes a VM takes the lock Config.Folder/.NAME.lock.
//
// VMs that something else has started are handled through their control sockets (Config.QMP): they can be frozen,
// thawed, asked for their state and stopped, and neither made nor started nor deleted. They are not killed either:
// without an answer there is no telling which process would be hit.
//
// On systems other than Linux every operation is HostRefused.
package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hook"
	"sitrep/internal/host"
	"sitrep/internal/wait"
)

// Config is how QEMU is run. Only Folder is needed.
type Config struct {
	Folder   string   // absolute; made when it is not there
	Binary   string   // default qemu-system-x86_64
	Accel    string   // default tcg
	Machine  string   // default q35
	CPU      string   // default max
	DiskBus  string   // nvme (default), virtio, sata or scsi
	Firmware string   // UEFI firmware of generation 2; default that of Debian's package ovmf
	Args     []string // added to the command line as they are; QEMU runs in the VM's folder
	// QMP are the control sockets (absolute paths) of VMs that something else starts, by VM.
	QMP map[string]string
	// Disks are the paths of the disks of those VMs: while somebody uses one, a VM whose socket is silent is not taken to be off.
	Disks map[string][]string
	// Programs runs QEMU and its tools.
	Programs hook.Runner
}

// The time that QEMU gets to do what takes no time: to start, to end when it is told to quit, to answer, to end when it has
// closed its control socket; and that another run of sitrep gets to end what it does with the same VM.
const (
	startLimit  = time.Minute
	quitLimit   = 20 * time.Second
	answerLimit = 10 * time.Second
	endLimit    = 10 * time.Second
	lockLimit   = 10 * time.Second
)

// maxDefinition is the length in bytes of the longest definition that is read.
const maxDefinition = 1 << 20

// Host is a host.Host, host.Freezer and host.Console. Its methods may be called concurrently, and by several processes.
type Host struct{ c Config }

var (
	_ host.Host    = (*Host)(nil)
	_ host.Freezer = (*Host)(nil)
	_ host.Marker  = (*Host)(nil)
	_ host.Writer  = (*Host)(nil)

	_ host.Rehearser = (*Host)(nil)
	_ host.Console   = (*Host)(nil)
)

// New checks the configuration and fills in its defaults; it starts nothing.
func New(c Config) (*Host, error) {
	if !filepath.IsAbs(c.Folder) {
		return nil, fault.New(fault.SiteInvalid, "the folder of QEMU's VMs %q is no absolute path", c.Folder)
	}
	for p, value := range map[*string]string{&c.Binary: "qemu-system-x86_64", &c.Accel: "tcg", &c.Machine: "q35", &c.CPU: "max", &c.DiskBus: "nvme"} {
		if *p == "" {
			*p = value
		}
	}
	switch c.DiskBus {
	case "nvme", "virtio", "sata", "scsi":
	default:
		return nil, fault.New(fault.SiteInvalid, "disks cannot be attached as %q; nvme, virtio, sata and scsi are known", c.DiskBus)
	}
	for vm, path := range c.QMP {
		if !filepath.IsAbs(path) {
			return nil, fault.New(fault.SiteInvalid, "the control socket %q is no absolute path", path).Of(vm, "")
		}
	}
	return &Host{c}, nil
}

// Describe names the host.
func (h *Host) Describe() string { return fmt.Sprintf("QEMU (%s) in %s", h.c.Accel, h.c.Folder) }

// ConsoleLog is the path of the file with what the guest has written to its serial port since its last start. It exists
// from the first start on.
func (h *Host) ConsoleLog(vm string) string { return h.path(vm, consoleFile) }

// The files of a VM's folder.
const (
	definitionFile = "definition.json"
	consoleFile    = "console.log"
	previousFile   = "console.previous.log"
	pidFile        = "qemu.pid"
	socketFile     = "qmp.sock"
	varsFile       = "vars.fd"
)

func overlayFile(n int) string { return fmt.Sprintf("overlay-%d.qcow2", n) }

// ours says whether a file of a VM's folder is one that this package makes.
func ours(name string) bool {
	switch name {
	case definitionFile, consoleFile, previousFile, pidFile, socketFile, varsFile:
		return true
	}
	if of, ok := durable.TempBase(name); ok {
		return of == definitionFile || of == varsFile
	}
	return strings.HasPrefix(name, "overlay-") && strings.HasSuffix(name, ".qcow2")
}

func (h *Host) path(vm string, name ...string) string {
	return filepath.Join(append([]string{h.c.Folder, vm}, name...)...)
}

// Create makes the VM; see host.Host. Overlays of a disposable VM that is off are always made anew: one that was begun on disk
// files that have changed since would be damage.
func (h *Host) Create(ctx context.Context, d host.Definition) error {
	if err := h.checkDefinition(d); err != nil {
		return err
	}
	if err := h.makeFolder(d.Name); err != nil {
		return fault.In(err, d.Name, "")
	}
	return h.locked(ctx, d.Name, func() error { return h.create(ctx, d) })
}

func (h *Host) makeFolder(vm string) error {
	fsys := durable.OS()
	if err := fsys.MkdirAll(h.c.Folder); err != nil {
		return fault.FromOS(err)
	}
	if err := os.Mkdir(h.path(vm), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fault.FromOS(err)
	}
	return fsys.SyncDir(h.c.Folder)
}

func (h *Host) create(ctx context.Context, d host.Definition) error {
	old, err := h.definition(d.Name)
	if err != nil && !fault.Is(err, fault.VMAbsent) {
		return err
	}
	same := err == nil && reflect.DeepEqual(old, normal(d))
	p, err := processOf(h.path(d.Name, pidFile))
	if err != nil {
		return err
	}
	if p != nil {
		p.close()
		if same {
			return nil
		}
		return fault.New(fault.HostRefused, "the VM runs, with another definition; stop it first")
	}
	if same && !d.Disposable {
		return nil
	}
	if err := h.removeOverlays(d.Name); err != nil {
		return err
	}
	if err := h.makeParts(ctx, d); err != nil {
		return err
	}
	data, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return fault.FromOS(err)
	}
	// Last, and in one step: with it the VM is there.
	if err := durable.WriteFile(durable.OS(), h.path(d.Name, definitionFile), append(data, '\n')); err != nil {
		return fault.FromOS(err)
	}
	return nil
}

// makeParts makes what the VM has besides its definition.
func (h *Host) makeParts(ctx context.Context, d host.Definition) error {
	if d.Generation == 2 {
		if err := h.makeVars(d.Name); err != nil {
			return err
		}
	}
	if !d.Disposable {
		return nil
	}
	for i, disk := range d.Disks {
		_, err := h.c.Programs.Run(ctx, hook.Program{Path: "qemu-img", Timeout: startLimit,
			Args: []string{"create", "-q", "-f", "qcow2", "-b", disk.Path, "-F", driver(disk.Format), "--", h.path(d.Name, overlayFile(i))}})
		if err != nil {
			return fault.In(refused(err, "the overlay cannot be made"), d.Name, disk.Name)
		}
		if err := os.Chmod(h.path(d.Name, overlayFile(i)), 0o600); err != nil { // qemu-img makes it readable for all, with the guest's bytes in it
			return fault.In(fault.FromOS(err), d.Name, disk.Name)
		}
	}
	return nil
}

// normal is the definition as it is read back.
func normal(d host.Definition) host.Definition {
	data, err := json.Marshal(d)
	if err == nil {
		var back host.Definition
		if json.Unmarshal(data, &back) == nil {
			return back
		}
	}
	return d
}

// definition reads what the VM is; VMAbsent when there is none.
func (h *Host) definition(vm string) (d host.Definition, err error) {
	if err := checkName(vm); err != nil {
		return d, err
	}
	path := h.path(vm, definitionFile)
	data, err := durable.ReadFile(durable.OS(), path, maxDefinition)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return d, fault.New(fault.VMAbsent, "%s has no such VM", h.Describe()).Of(vm, "")
	case err != nil:
		return d, fault.FromOS(err)
	}
	if err := json.Unmarshal(data, &d); err != nil {
		return d, fault.Wrap(fault.HostRefused, err, "the VM's definition cannot be read; delete the VM and make it again").At(path)
	}
	return d, nil
}

// Start powers the VM on, or lets one go on that is paused; see host.Host.
func (h *Host) Start(ctx context.Context, vm string) error {
	if _, ok := h.c.QMP[vm]; !ok {
		if _, err := h.definition(vm); err != nil { // before a lock is made for it
			return err
		}
	}
	return h.locked(ctx, vm, func() error { return h.start(ctx, vm) })
}

func (h *Host) start(ctx context.Context, vm string) error {
	power, err := h.state(ctx, vm)
	switch {
	case err != nil:
		return err
	case power == host.Running:
		return h.unmark(vm)
	case power == host.Paused:
		return h.goOn(ctx, vm)
	}
	if path, ok := h.c.QMP[vm]; ok {
		return fault.New(fault.HostRefused, "the VM is off, and it is not sitrep that starts it: its control socket is made by something else").At(path)
	}
	d, err := h.definition(vm)
	if err != nil {
		return err
	}
	return h.launch(ctx, d)
}

func (h *Host) launch(ctx context.Context, d host.Definition) error {
	args, err := h.arguments(d)
	if err != nil {
		return err
	}
	if err := os.Rename(h.path(d.Name, consoleFile), h.path(d.Name, previousFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.FromOS(err)
	}
	if err := h.unmark(d.Name); err != nil {
		return err
	}
	// With -daemonize QEMU's parent ends when the VM runs or cannot, and says why.
	_, err = h.c.Programs.Run(ctx, hook.Program{Path: h.c.Binary, Args: args, Dir: h.path(d.Name), Timeout: startLimit})
	if err == nil {
		return nil
	}
	// What was killed half way may have come up all the same.
	if cutErr := h.cut(context.WithoutCancel(ctx), d.Name); cutErr != nil {
		return cutErr
	}
	return refused(err, "QEMU did not start the VM")
}

// refused makes an error of a host of one of a program.
func refused(err error, what string) error {
	var exit *hook.ExitError
	switch {
	case fault.Is(err, fault.Interrupted):
		return err
	case errors.As(err, &exit) && exit.Timeout > 0:
		return fault.Wrap(fault.HostTimeout, err, "%s", what)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, exec.ErrNotFound):
		return fault.Wrap(fault.HostRefused, err, "%s: is QEMU installed (apt-get install qemu-system-x86 qemu-utils)?", what)
	}
	return fault.Wrap(fault.HostRefused, err, "%s", what)
}

// State tells what the VM is doing; see host.Host. A VM of Config.QMP whose socket is not there, or has nobody listening, is
// off unless somebody uses its disks.
func (h *Host) State(ctx context.Context, vm string) (host.Power, error) {
	if err := checkName(vm); err != nil {
		return host.Unknown, err
	}
	power, err := h.state(ctx, vm)
	return power, fault.In(err, vm, "")
}

func (h *Host) state(ctx context.Context, vm string) (host.Power, error) {
	if _, ok := h.c.QMP[vm]; ok {
		return h.power(ctx, vm)
	}
	if _, err := h.definition(vm); fault.Is(err, fault.VMAbsent) {
		return host.Absent, nil
	} else if err != nil {
		return host.Unknown, err
	}
	p, err := processOf(h.path(vm, pidFile))
	if err != nil || p == nil {
		return host.Off, err
	}
	defer p.close()
	power, err := h.power(ctx, vm)
	limit := time.Duration(0)
	if err == nil && power == host.Off { // nobody listens any more: it is ending
		limit = endLimit
	}
	if gone, _ := p.wait(ctx, limit); gone {
		return host.Off, nil
	}
	if err == nil && power == host.Off {
		return host.Unknown, fault.New(fault.HostUnreachable, "QEMU runs (process %d), and its control socket is gone", p.pid).At(h.socket(vm))
	}
	return power, err
}

// Stop powers the VM off; see host.Host. A guest is asked by its power button. One that is paused goes on for that.
func (h *Host) Stop(ctx context.Context, vm string, grace time.Duration) error {
	if _, ok := h.c.QMP[vm]; ok {
		return h.locked(ctx, vm, func() error { return h.stopForeign(ctx, vm, grace) })
	}
	if _, err := h.definition(vm); err != nil {
		return err
	}
	return h.locked(ctx, vm, func() error {
		d, err := h.definition(vm)
		if err != nil {
			return err
		}
		if err := h.stop(ctx, vm, grace); err != nil {
			return err
		}
		if err := h.unmark(vm); err != nil {
			return err
		}
		if d.Disposable {
			return nil
		}
		return syncDisks(d)
	})
}

func (h *Host) stop(ctx context.Context, vm string, grace time.Duration) error {
	p, err := processOf(h.path(vm, pidFile))
	if err != nil || p == nil {
		return err
	}
	defer p.close()
	if grace > 0 && h.pressPowerButton(ctx, vm) == nil {
		gone, err := p.wait(ctx, grace)
		if gone || err != nil {
			return err
		}
	}
	if err := interrupted(ctx); err != nil {
		return err
	}
	return h.cut(ctx, vm)
}

// interrupted is the error of a context that has ended, nil before.
func interrupted(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fault.Wrap(fault.HostTimeout, ctx.Err(), "the operation took too long")
	}
	return fault.Wrap(fault.Interrupted, ctx.Err(), "the operation was interrupted")
}

// pressPowerButton asks the guest to shut down.
func (h *Host) pressPowerButton(ctx context.Context, vm string) error {
	power, err := h.power(ctx, vm)
	if err != nil {
		return err
	}
	if power == host.Paused {
		if err := h.command(ctx, vm, "cont", nil); err != nil {
			return err
		}
	}
	if err := h.command(ctx, vm, "system_powerdown", nil); !hungUp(err) {
		return err
	}
	return nil // it is ending already
}

// cut powers the VM off: QEMU is told to quit, by which it writes out what it still holds of its images' metadata; one that
// does not is killed.
func (h *Host) cut(ctx context.Context, vm string) error {
	p, err := processOf(h.path(vm, pidFile))
	if err != nil || p == nil {
		return err
	}
	defer p.close()
	if h.quit(ctx, vm) == nil {
		gone, err := p.wait(ctx, quitLimit)
		if gone || err != nil {
			return err
		}
	}
	if err := interrupted(ctx); err != nil {
		return err
	}
	if err := p.kill(); err != nil {
		return fault.Wrap(fault.HostRefused, err, "QEMU (process %d) cannot be killed", p.pid)
	}
	gone, err := p.wait(ctx, quitLimit)
	if err == nil && !gone {
		return fault.New(fault.HostTimeout, "QEMU (process %d) was killed and does not end; is its storage stuck?", p.pid)
	}
	return err
}

func pause(ctx context.Context, d time.Duration) error {
	if wait.For(ctx, d) != nil {
		return interrupted(ctx)
	}
	return nil
}

// syncDisks makes durable what the guest has written.
func syncDisks(d host.Definition) error {
	for _, disk := range d.Disks {
		if err := syncFile(disk.Path); err != nil {
			return fault.In(err, d.Name, disk.Name)
		}
	}
	return nil
}

// syncFile makes a file durable; one that is not there has nothing to lose.
func syncFile(path string) error {
	f, err := durable.OS().OpenRW(path)
	if errors.Is(err, fs.ErrPermission) {
		f, err = durable.OS().Open(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fault.FromOS(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return fault.FromOS(err)
	}
	return nil
}

// Delete powers the VM off and removes the files that this package has made, and the VM's folder if nothing else is in it.
func (h *Host) Delete(ctx context.Context, vm string) error {
	if err := checkName(vm); err != nil {
		return err
	}
	if path, ok := h.c.QMP[vm]; ok {
		return fault.New(fault.HostRefused, "the VM was not made by sitrep and is not deleted by it").Of(vm, "").At(path)
	}
	if _, err := os.Lstat(h.path(vm)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return h.locked(ctx, vm, func() error {
		if err := h.cut(ctx, vm); err != nil {
			return err
		}
		if err := h.remove(vm); err != nil {
			return fault.FromOS(err)
		}
		return nil
	})
}

func (h *Host) remove(vm string) error {
	fsys := durable.OS()
	if err := h.unmark(vm); err != nil {
		return err
	}
	if err := h.removeFiles(vm, ours); err != nil {
		return err
	}
	// Not empty means that there are files of others; a link to a folder is no folder of ours.
	if err := fsys.Remove(h.path(vm)); err == nil {
		if err := fsys.SyncDir(h.c.Folder); err != nil {
			return err
		}
	}
	return durable.RemoveIfThere(fsys, h.lockName(vm))
}

func (h *Host) removeOverlays(vm string) error {
	err := h.removeFiles(vm, func(name string) bool { return strings.HasPrefix(name, "overlay-") && ours(name) })
	if err != nil {
		return fault.FromOS(err)
	}
	return nil
}

func (h *Host) removeFiles(vm string, which func(name string) bool) error {
	fsys := durable.OS()
	entries, err := fsys.ReadDir(h.path(vm))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if which(e.Name) {
			if err := durable.RemoveIfThere(fsys, h.path(vm, e.Name)); err != nil {
				return err
			}
		}
	}
	return fsys.SyncDir(h.path(vm))
}

func (h *Host) lockName(vm string) string { return filepath.Join(h.c.Folder, "."+vm+".lock") }

// locked does what changes a VM under its lock, and names the VM in its error.
func (h *Host) locked(ctx context.Context, vm string, do func() error) error {
	if err := checkName(vm); err != nil {
		return err
	}
	release, err := h.lock(ctx, vm)
	if err != nil {
		return fault.In(err, vm, "")
	}
	defer release.Close()
	return fault.In(do(), vm, "")
}

func (h *Host) lock(ctx context.Context, vm string) (io.Closer, error) {
	if err := interrupted(ctx); err != nil {
		return nil, err
	}
	if err := durable.OS().MkdirAll(h.c.Folder); err != nil {
		return nil, fault.FromOS(err)
	}
	for deadline := time.Now().Add(lockLimit); ; {
		l, err := durable.OS().Lock(h.lockName(vm))
		switch {
		case err == nil:
			return l, nil
		case !errors.Is(err, durable.ErrLocked):
			return nil, fault.FromOS(err)
		case time.Now().After(deadline):
			return nil, fault.Wrap(fault.HostTimeout, err, "another run of sitrep works on this VM at its host").At(h.lockName(vm))
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return nil, err
		}
	}
}
