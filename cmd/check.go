package cmd

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/internal/state"
	"sitrep/internal/support"
)

// finding is something that stands in the way of protection, or that one should know before.
type finding = support.Finding

// checkObject is what check says of a VM.
type checkObject struct {
	vmHead
	Findings []finding        `json:"findings"`
	Disks    []diskFactObject `json:"disks"`
}

type diskFactObject struct {
	Name       string `json:"name"`
	Path       string `json:"path"`
	Format     string `json:"format"`
	Kind       string `json:"kind"`
	Size       int64  `json:"size"`
	Data       int64  `json:"data_bytes"`
	SectorSize int    `json:"sector_size"`
}

func (p *program) checkCommand() *cli.Command {
	return &cli.Command{
		Name: "check", Usage: "validate the site file, and each VM against the support matrix; changes nothing",
		ArgsUsage: "[VM...]", Flags: vmFlags(),
		Action: p.action("check", func(ctx context.Context, c *cli.Context) error {
			w, err := p.open()
			if err != nil {
				return err
			}
			vms, err := selectVMs(w.site, c, noneIsAll)
			if err != nil {
				return err
			}
			what := siteFile
			if c.Args().Present() || c.Bool("all") || c.String("cloud") != "" {
				what = readiness
			}
			err = w.each(ctx, vms, func(ctx context.Context, vm *site.VM) (vmObject, error) {
				o := &checkObject{}
				return o, w.check(ctx, vm, what, o)
			})
			if isWhole(c) {
				w.res.Unlisted = w.unlisted(ctx)
				err = errors.Join(err, w.show(w.unlistedText(w.res.Unlisted)))
			}
			return errors.Join(err, w.show(w.accessText()))
		}),
	}
}

// question is what check is asked.
type question bool

const (
	// siteFile: is the site file right? A disk that is not there yet, of a VM that is not protected, is a warning then: a new
	// site file is written before its disks are in place.
	siteFile question = false
	// readiness: can these VMs be protected?
	readiness question = true
)

func (w *world) check(ctx context.Context, vm *site.VM, what question, o *checkObject) error {
	st, storeFindings := w.examineStore(ctx, vm)
	facts, findings := w.examine(ctx, vm, w.pinned(vm, st))
	for _, f := range facts {
		o.Disks = append(o.Disks, diskFactObject{f.disk.Name, f.disk.Path, string(f.format), string(f.kind), f.size, f.data, f.sector})
	}
	if st != nil {
		w.describe(vm, *st, &o.vmHead)
	} else if len(storeFindings) == 0 {
		o.State = notProtected
	}
	if what == siteFile && st == nil && !w.isKnown(vm) {
		findings = lenient(findings)
	}
	findings = append(findings, support.CheckRecovery(w.recovery(vm))...)
	o.Findings = slices.Concat([]finding{}, findings, storeFindings, w.clockFinding(vm), w.secondaryFinding(vm))
	if err := w.show(checkText(vm, o)); err != nil {
		return err
	}
	if err := refusal(vm, o.Findings); err != nil {
		n := total(o.Findings, func(f finding) int64 {
			if f.Severity == support.Error {
				return 1
			}
			return 0
		})
		return &shown{fault.New(fault.PrerequisiteFail, "not ready: %s", plural(n, "prerequisite")+" not met").Of(vm.Name, "")}
	}
	return nil
}

// lenient makes warnings of missing disks.
func lenient(findings []finding) []finding {
	for i := range findings {
		if f := &findings[i]; f.Rule == string(fault.DiskMissing) {
			f.Severity = support.Warning
			f.Advice = "Put the disk there, or correct the path, before you protect the VM."
		}
	}
	return findings
}

func checkText(vm *site.VM, o *checkObject) string {
	var b strings.Builder
	for _, f := range o.Findings {
		fmt.Fprintln(&b, f.String())
	}
	fmt.Fprintf(&b, "VM %s: %s", vm.Name, verdict(o.Findings))
	if len(o.Disks) > 0 {
		b.WriteString(": " + diskSummary(o.Disks))
	}
	b.WriteString("\n")
	return b.String()
}

// verdict says whether a VM with these findings can be protected.
func verdict(list []finding) string {
	switch {
	case support.Err(list) != nil:
		return "not ready"
	case slices.ContainsFunc(list, func(f finding) bool { return f.Rule == string(fault.DiskMissing) }):
		return "not ready yet"
	case len(list) > 0:
		return "ready, with " + plural(len(list), "warning")
	}
	return "ready"
}

func diskSummary(disks []diskFactObject) string {
	var parts []string
	for _, d := range disks {
		kind := d.Kind + " " + d.Format
		if d.Kind == d.Format || d.Kind == "" {
			kind = d.Format
		}
		parts = append(parts, fmt.Sprintf("%s (%s, %s)", d.Name, kind, size(d.Size)))
	}
	return strings.Join(parts, ", ")
}

// diskFacts is what opening a disk tells.
type diskFacts struct {
	disk   *site.Disk
	format disk.Format
	kind   disk.Kind
	size   int64 // guest bytes
	data   int64 // of them not known to be zero
	sector int
	// identity is what tells the disk from others.
	identity disk.Identity
	like     string // the format that a raw disk's content looks like, "" if none
}

// examine opens the VM's disks, which are pinned when it is protected, and looks up what is found in the support matrix.
func (w *world) examine(ctx context.Context, vm *site.VM, pinned []state.Disk) ([]diskFacts, []finding) {
	var facts []diskFacts
	var findings []finding
	for _, d := range vm.Disks {
		f, err := w.look(vm, d, formatOf(d, pinned))
		if err != nil {
			findings = append(findings, w.opensNot(vm, d, err))
			continue
		}
		facts = append(facts, f)
		findings = append(findings, append(formatFindings(vm, f), w.another(vm, f, pinned)...)...)
	}
	return facts, slices.Concat(findings, blockSizeFinding(vm, pinned), support.Check(w.subject(ctx, vm, facts), w.others(ctx, vm)), w.limits(vm, facts), w.unfit(vm),
		w.around(ctx, vm), w.foreseen(ctx, vm, facts))
}

func (w *world) look(vm *site.VM, d *site.Disk, format disk.Format) (f diskFacts, err error) {
	img, err := w.openDisk(vm, d, format)
	if err != nil {
		return f, err
	}
	defer func() { joined(&err, img.Close()) }()
	n, err := dataBytes(img, 0)
	like, lerr := img.Resembles()
	id, ierr := img.Identity()
	return diskFacts{disk: d, format: img.Format(), kind: img.Kind(), size: img.Size(), data: n, sector: img.SectorSize(), like: like, identity: id},
		errors.Join(err, lerr, ierr)
}

// blockSizeFinding is a warning that the block size of the policy is not that of the replica.
func blockSizeFinding(vm *site.VM, pinned []state.Disk) (out []finding) {
	want := vm.Policy().BlockSize
	for _, p := range pinned {
		if p.BlockSize != 0 && p.BlockSize != want {
			out = append(out, finding{VM: vm.Name, Disk: p.Name, Rule: "block-size-fixed", Severity: support.Warning,
				Message: fmt.Sprintf("the policy has block_size: %s, and the disk was protected with blocks of %s, which stay", size(want), size(p.BlockSize)),
				Advice:  "Take the old value back; or, to have the new one, start over: sitrep unprotect " + vm.Name + " and then: sitrep protect " + vm.Name})
		}
	}
	return out
}

// another is the finding that another disk than the one that is protected stands at its path.
func (w *world) another(vm *site.VM, f diskFacts, pinned []state.Disk) (out []finding) {
	for _, p := range pinned {
		if p.Name != f.disk.Name || p.Anew {
			continue
		}
		if why := disk.ParseIdentity(p.Identity).Another(f.identity); why != "" {
			out = append(out, finding{VM: vm.Name, Disk: p.Name, Rule: string(fault.DiskReplaced), Severity: support.Error,
				Message: f.disk.Path + ": " + why,
				Advice:  "Bring the right disk back; or, if this one is to be replicated from now on: " + w.commands("sitrep delta "+vm.Name+" --accept-disk "+p.Name+" --now")})
		}
	}
	return out
}

// formatFindings are warnings that a disk may be read as what it is not.
func formatFindings(vm *site.VM, f diskFacts) (out []finding) {
	warn := func(rule, advice, format string, args ...any) {
		out = append(out, finding{VM: vm.Name, Disk: f.disk.Name, Rule: rule, Severity: support.Warning,
			Message: fmt.Sprintf(format, args...), Advice: advice})
	}
	if want := wantedFormat(f.disk); want != disk.Auto && want != f.format {
		warn("format-pinned", "If the site file is right, start over: sitrep unprotect "+vm.Name+" and then: sitrep protect "+vm.Name,
			"the site file says format: %s, and the disk was protected as %s and is read as that", want, f.format)
	}
	if f.like != "" {
		warn("format-raw", "If it is an image of that format, correct format: in the site file (of a protected VM: and start over with sitrep unprotect). If the guest has written that, all is well.",
			"it is read as raw, and its content looks like %s", f.like)
	}
	return out
}

// opensNot is the finding that a disk cannot be read.
func (w *world) opensNot(vm *site.VM, d *site.Disk, err error) finding {
	e := fault.FromOS(err)
	bare := *e
	bare.VM, bare.Disk = "", ""
	return finding{VM: vm.Name, Disk: d.Name, Rule: string(e.Code), Severity: support.Error,
		Message: "the disk cannot be read: " + bare.Error(), Advice: e.Code.Lookup().Cause + " Mend that, then run: " + w.commands("sitrep check "+vm.Name)}
}

// subject is the VM as the support matrix sees it.
func (w *world) subject(ctx context.Context, vm *site.VM, facts []diskFacts) support.VM {
	s := support.VM{Name: vm.Name, Generation: vm.Generation, OS: string(vm.OS), Azure: w.site.InAzure(),
		CopyFrequency: vm.Policy().CopyFrequency, Points: vm.Policy().RecoveryPoints}
	if a := w.site.Store.Azure; a != nil {
		s.Premium = a.LogAccountURL != "" // which only such an account needs
	}
	for _, d := range vm.Disks {
		sd := support.Disk{Name: d.Name, ID: w.fileID(d.Path), OS: d.OS}
		for _, f := range facts {
			if f.disk == d {
				sd.Size, sd.SectorSize, sd.Format = f.size, f.sector, string(f.format)
			}
		}
		s.Disks = append(s.Disks, sd)
	}
	for _, n := range vm.NICs {
		s.NICs = append(s.NICs, support.NIC{Network: n.Network, IP: n.IP})
	}
	if w.store != nil {
		if st, err := w.existing(ctx, vm); err == nil && st != nil {
			for _, d := range st.Disks {
				s.Protected = append(s.Protected, d.Name)
			}
		}
	}
	return s
}

// others are the other VMs of the site, as far as shared disks go.
func (w *world) others(_ context.Context, vm *site.VM) []support.VM {
	var out []support.VM
	for _, o := range w.site.VMs() {
		if o == vm {
			continue
		}
		s := support.VM{Name: o.Name}
		for _, d := range o.Disks {
			s.Disks = append(s.Disks, support.Disk{Name: d.Name, ID: w.fileID(d.Path)})
		}
		out = append(out, s)
	}
	return out
}

// fileID tells one file from another, however its path is written; "" when it cannot be told.
func (w *world) fileID(path string) string {
	id, err := durable.FileID(w.fs, path)
	if err != nil {
		return ""
	}
	return id
}

// limits are findings about the machine that sitrep runs on, and about what the policy wants and the VM does not have.
func (w *world) limits(vm *site.VM, facts []diskFacts) (out []finding) {
	warn := func(disk, rule, advice, format string, args ...any) {
		out = append(out, finding{VM: vm.Name, Disk: disk, Rule: rule, Severity: support.Warning,
			Message: fmt.Sprintf(format, args...), Advice: advice})
	}
	p := vm.Policy()
	for _, f := range facts {
		need := f.data / 100 * int64(p.LogLimitPercent)
		folder := w.logDir(vm, f.disk)
		if free, err := freeSpace(folder); err == nil && free < need {
			warn(f.disk.Name, "log-space", "Free space there, or move the disk.",
				"the change logs of this disk can grow to %s, and %s has %s free", size(need), folder, size(free))
		}
	}
	for _, f := range facts {
		if rec := w.site.Recovery; f.sector > 512 && rec.Name != "" && rec.Format == site.RecoverVHD {
			warn(f.disk.Name, "recovery-sectors", "Set recovery.format to vhdx (Hyper-V), raw or qcow2 (QEMU).",
				"its logical sectors have %d bytes, and it is to be recovered as a VHD, which has none but of 512: a failover is refused", f.sector)
		}
	}
	need := total(facts, func(f diskFacts) int64 { return f.data })
	if w.site.Store.Azure == nil {
		free, err := freeSpace(existingFolder(w.site.Store.Directory))
		if err == nil && free < need && !w.isKnown(vm) {
			warn("", "store-space", "Free space there, or use another volume.",
				"the initial copy holds %s, and the store %s has %s free", size(need), w.store.Describe(), size(free))
		}
	}
	if err := w.pauses(vm, total(facts, func(f diskFacts) int64 { return f.data })); err != nil {
		out = append(out, finding{VM: vm.Name, Rule: string(fault.PauseLimit), Severity: support.Error,
			Message: bareMessage(fault.FromOS(err)), Advice: w.advice(fault.PauseLimit, vm.Name)})
	}
	if p.AppConsistentEvery > 0 && vm.Hooks.Freeze == "" {
		warn("", "app-consistent", "Give the VM hooks: {freeze: ..., thaw: ...}.",
			"the policy wants application-consistent recovery points, and the VM has no hooks that quiesce its applications")
	}
	return out
}

func (w *world) isKnown(vm *site.VM) bool {
	_, ok, err := w.memory.VM(vm.Name)
	return err == nil && ok
}

// existingFolder is the folder, or the nearest one above it that exists.
func existingFolder(folder string) string {
	for {
		if _, err := freeSpace(folder); err == nil || filepath.Dir(folder) == folder {
			return folder
		}
		folder = filepath.Dir(folder)
	}
}

// examineStore asks whether the store is there, and returns the VM's ledger if it has one.
func (w *world) examineStore(ctx context.Context, vm *site.VM) (*replica.State, []finding) {
	st, err := (*replica.State)(nil), w.haveStore()
	if err == nil {
		st, err = w.existing(ctx, vm)
	}
	if err == nil {
		return st, nil
	}
	e := fault.FromOS(err)
	return nil, []finding{{VM: vm.Name, Rule: string(e.Code), Severity: support.Error,
		Message: "the store cannot be used: " + message(err), Advice: w.advice(e.Code, vm.Name)}}
}

// clockFinding is a warning that the store will refuse this machine's requests before long.
func (w *world) clockFinding(vm *site.VM) []finding {
	if w.store == nil {
		return nil
	}
	c, ok := replica.ClockedOf(w.store)
	if !ok {
		return nil
	}
	_, remark, ok := c.Clock()
	if !ok || remark == "" {
		return nil
	}
	return []finding{{VM: vm.Name, Rule: string(fault.StoreClock), Severity: support.Warning, Message: remark,
		Advice: w.advice(fault.StoreClock, "")}}
}

// secondaryFinding says that the store is the read-only copy of a storage account.
func (w *world) secondaryFinding(vm *site.VM) []finding {
	if w.secondary == "" {
		return nil
	}
	return []finding{{VM: vm.Name, Rule: "store-secondary", Severity: support.Error,
		Message: "the address of the store is that of the account's secondary, a read-only copy: nothing can be replicated to it, failed over for good, or recorded",
		Advice: "Name " + w.secondary + " in the site file. If that is lost, fail the account over first (az storage account failover); until then recovery points can be read from here: " +
			w.commands("sitrep points "+vm.Name+" --export latest --to FOLDER")}}
}

// refusal is the error that findings make; nil when none of them is an error.
func refusal(vm *site.VM, findings []finding) error {
	if err := support.Err(findings); err != nil {
		return fault.In(err, vm.Name, "")
	}
	return nil
}

// findingsNote sums up findings for a job's record.
func findingsNote(list []finding) string {
	if len(list) == 0 {
		return ""
	}
	return plural(len(list), "finding")
}
