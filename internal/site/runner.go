package site

import (
	"os"
	"regexp"
	"time"

	"gopkg.in/yaml.v3"
)

// Defaults of a QEMUHost.
const (
	DefaultQEMU     = "qemu-system-x86_64"
	DefaultAccel    = "tcg"
	DefaultMachine  = "q35"
	DefaultCPU      = "max"
	DefaultBus      = "nvme"
	DefaultFirmware = "/usr/share/OVMF/OVMF_CODE.fd"
)

// DefaultRecoveredFolder is where disks of recovered VMs lie, beside the site file, unless it says otherwise.
const DefaultRecoveredFolder = "recovered"

// side says on which side of a failover a Runner stands: what its scripts have to do depends on it.
type side string

const (
	protectedSide side = "protected"
	recoverySide  side = "recovery"
)

// sections are the keys under which a host says how its hypervisor is reached, each with the hypervisor's own name.
func sections() []Hypervisor { return []Hypervisor{QEMU, Script, HyperV} }

// parseHypervisor returns "" for a word that it has reported, so that nothing is concluded from that word.
func parseHypervisor(v value) Hypervisor { return choice(v, "", HyperV, QEMU, Script, None) }

// parseRunner reads the sections of a host. Those of QEMU and Hyper-V have a default for everything and are set even where
// the file does not mention them; a script host of the protected site without a section is one that is never told to do
// anything.
func parseRunner(o object, run *Runner, where side) {
	for _, h := range sections() {
		if o.has(string(h)) && h != run.Hypervisor && run.Hypervisor != "" {
			o.get(string(h)).fail("%s: only with \"hypervisor: %s\", and here it is %s", h, h, run.Hypervisor)
		}
	}
	q, s, hv := parseQEMU(o.get("qemu")), parseScripts(o.get("script"), where), parseHyperV(o.get("hyperv"))
	switch run.Hypervisor {
	case QEMU:
		run.QEMU = q
	case HyperV:
		run.HyperV = hv
	case Script:
		run.Script = s
		if where == recoverySide {
			o.need("script")
		}
	}
}

func parseQEMU(v value) *QEMUHost {
	o := v.object("binary", "accel", "machine", "cpu", "disk", "firmware", "args")
	return &QEMUHost{
		Binary:   o.get("binary").command(DefaultQEMU),
		Accel:    choice(o.get("accel"), DefaultAccel, "tcg", "kvm", "hvf", "whpx"),
		Machine:  o.get("machine").titleOr(DefaultMachine),
		CPU:      o.get("cpu").titleOr(DefaultCPU),
		Disk:     choice(o.get("disk"), DefaultBus, "nvme", "virtio", "sata", "scsi"),
		Firmware: o.get("firmware").programOr(DefaultFirmware),
		Args:     o.get("args").arguments(),
	}
}

// arguments reads a list of arguments. Their values are never repeated: QEMU takes passwords among them.
func (v value) arguments() (out []string) {
	if v.n != nil && v.n.Kind != yaml.SequenceNode {
		v.fail("args: want a list (value not shown)")
		return nil
	}
	for _, a := range v.list() {
		s, ok := a.hiddenText()
		if ok && !isText(s) {
			a.fail("%s: want text without blanks at its ends and without control characters (value not shown)", a.label())
		}
		out = append(out, s)
	}
	return out
}

func parseScripts(v value, where side) *ScriptHost {
	o := v.object("create", "start", "stop", "state", "delete", "freeze", "thaw", "timeout")
	if o.v.n == nil {
		return nil
	}
	made := o.get
	if where == recoverySide {
		made = o.need // a VM that is not there yet is made first, and removed after a test
	}
	s := &ScriptHost{
		Create:  made("create").program(),
		Start:   o.need("start").program(),
		Stop:    o.need("stop").program(),
		State:   o.need("state").program(),
		Delete:  made("delete").program(),
		Freeze:  o.get("freeze").program(),
		Thaw:    o.get("thaw").program(),
		Timeout: o.get("timeout").limit(DefaultScriptTimeout),
	}
	o.together("freeze", "thaw")
	return s
}

// together reports that of two keys only one is there.
func (o object) together(a, b string) {
	switch {
	case o.has(a) && !o.has(b):
		o.get(a).fail("%s: give %s too, what is done by the one is undone by the other", a, b)
	case o.has(b) && !o.has(a):
		o.get(b).fail("%s: give %s too, what is done by the one is undone by the other", b, a)
	}
}

// sshText is a host, or a user and a host, that ssh cannot take for an option. A domain's user has a backslash.
var sshText = regexp.MustCompile(`^([A-Za-z0-9_][A-Za-z0-9_.\\-]*@)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$`)

func parseHyperV(v value) *HyperVHost {
	o := v.object("ssh", "switch", "timeout")
	h := &HyperVHost{Timeout: o.get("timeout").limit(DefaultScriptTimeout)}
	if s, ok := o.get("ssh").hiddenText(); ok {
		h.SSH = s
		if len(s) > 2*maxHost || !sshText.MatchString(s) {
			o.get("ssh").fail("ssh: want USER@HOST or HOST; keys and ports belong in the configuration of ssh (value not shown)")
		}
	}
	h.Switch = o.get("switch").titleOr("")
	return h
}

// limit reads how long something may take.
func (v value) limit(def time.Duration) time.Duration {
	return v.duration(def, "a duration such as 5m", func(t time.Duration) bool { return t > 0 })
}

// titleOr reads a title, or gives def where there is none.
func (v value) titleOr(def string) string {
	if v.n == nil {
		return def
	}
	return v.title()
}

// program reads the path of a file that is run or read, and makes it absolute.
func (v value) program() string {
	p := v.file()
	if p == "" {
		return ""
	}
	if raw := v.n.Value; os.IsPathSeparator(raw[len(raw)-1]) || within(p, v.d.dir) {
		v.fail("%s: %s is a folder", v.label(), quote(raw))
	}
	return p
}

func (v value) programOr(def string) string {
	if v.n == nil {
		return def
	}
	return v.program()
}

// bareCommand is a program that is looked for where the system keeps its programs.
var bareCommand = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.+-]*$`)

// command reads a program: a bare name is left to the system's search path, anything else is a path.
func (v value) command(def string) string {
	if v.n == nil {
		return def
	}
	if s := v.n.Value; bareCommand.MatchString(s) {
		return v.title()
	}
	return v.program()
}

// folder reads where disks are made. The store must not be in it nor around it, and neither must the folder of recovered VMs
// be that of protected ones: two VMs of one name would be one file.
func (v value) folder(def string, r *refs) string {
	p := v.file()
	if p == "" {
		return def
	}
	apart := func(other, whose string) {
		if other != "" && (within(other, p) || within(p, other)) {
			v.fail("%s: %s and the folder of %s must not lie in one another", v.label(), quote(v.n.Value), whose)
		}
	}
	apart(r.store, "the store")
	apart(r.recovered, "recovered VMs")
	return p
}
