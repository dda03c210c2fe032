package cmd

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	"github.com/urfave/cli/v2"

	"sitrep/internal/block"
	"sitrep/internal/disk"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/internal/state"
	"sitrep/replicate"
)

// The names of jobs and steps are those that people know from the service.
const (
	jobEnable   = "Enable protection"
	jobFinalize = "Finalize protection on the virtual machine"
	jobInitial  = "Initial replication"

	stepPrerequisites = "Prerequisites check for enabling protection"
	stepTarget        = "Identifying the replication target"
	stepRelationship  = "Enable replication"
	stepInitial       = "Starting initial replication"
	stepSettings      = "Recording network and other settings for the recovery site, first delta and recovery point"
)

// seedObject is what protect and replicate say of a VM.
type seedObject struct {
	vmHead
	FinalizeJob string       `json:"finalize_job,omitempty"`
	Findings    []finding    `json:"findings,omitempty"`
	Sent        int64        `json:"bytes_sent"`
	Planned     *int64       `json:"bytes_planned,omitempty"`
	Seconds     float64      `json:"seconds"`
	Estimated   *float64     `json:"estimated_seconds,omitempty"`
	Points      int          `json:"points"`
	Disks       []diskObject `json:"disks"`
}

func (p *program) protectCommand() *cli.Command {
	return &cli.Command{
		Name: "protect", Usage: "enable protection: prerequisites, relationship, initial replication, finalization",
		ArgsUsage: "VM...",
		Flags:     vmFlags(&cli.BoolFlag{Name: "later", Usage: "leave the initial replication to \"sitrep replicate\""}, waitFlag()),
		Action: p.vmCommand("protect", noneIsWrong, func(w *world, c *cli.Context) func(context.Context, *site.VM) (vmObject, error) {
			return func(ctx context.Context, vm *site.VM) (vmObject, error) {
				o := &seedObject{}
				if w.opts.dryRun {
					return o, w.planProtect(ctx, vm, o)
				}
				if st := w.addsDisks(ctx, vm); st != nil {
					return o, w.addDisks(ctx, vm, *st, o)
				}
				return o, w.locked(ctx, vm, func(ctx context.Context) error { return w.protect(ctx, vm, o, c.Bool("later")) })
			}
		}),
	}
}

// protect is enable protection and, unless it is left for later, finalize protection: two jobs, as people know them.
func (w *world) protect(ctx context.Context, vm *site.VM, o *seedObject, later bool) error {
	if done, err := w.isProtected(ctx, vm, o); done {
		return err
	}
	err := w.job(vm, jobEnable, &o.vmHead, func(j *state.Job) error {
		return w.enable(ctx, vm, j, o, later)
	})
	if err != nil {
		return err
	}
	if later {
		w.say("%s: protection is enabled; the initial replication is left to: %s", vm.Name, w.commands("sitrep replicate "+vm.Name))
		return nil
	}
	return w.finalize(ctx, vm, o)
}

// isProtected says that the VM is protected already, by this site, which writes to its replica, so that there is nothing to be done.
func (w *world) isProtected(ctx context.Context, vm *site.VM, o *seedObject) (done bool, err error) {
	st, err := w.existing(ctx, vm)
	if err != nil || st == nil || w.mine(vm.Name, *st) != nil || st.Phase.Away() || st.Phase == replica.Seeding || st.Phase == replica.Retired {
		return false, nil // what is in the way is said, and recorded, by the job
	}
	w.describe(vm, *st, &o.vmHead)
	w.say("%s: protected already, since %s; the state is %s", vm.Name, stamp(st.Created), st.Phase)
	return true, errors.Join(w.remember(ctx, vm, *st), w.noteLedger(vm, *st))
}

// enable makes the relationship, or goes on with one whose initial replication was interrupted, and copies.
func (w *world) enable(ctx context.Context, vm *site.VM, j *state.Job, o *seedObject, later bool) (err error) {
	var disks []replica.Disk
	var begun bool
	err = j.Step(stepPrerequisites, func() (int64, string, error) {
		disks, begun, err = w.mayProtect(ctx, vm, o)
		return 0, findingsNote(o.Findings), err
	})
	if err != nil {
		return err
	}
	err = j.Step(stepTarget, func() (int64, string, error) { return 0, w.store.Describe(), w.prepareStore(ctx) })
	if err != nil {
		return err
	}
	var r, claimed replica.Replica
	err = j.Step(stepRelationship, func() (int64, string, error) {
		if r, err = w.relationship(ctx, vm, disks, begun); err != nil {
			return 0, "", err
		}
		st, err := r.Ledger().Load(ctx)
		if err == nil {
			err = w.mine(vm.Name, st)
		}
		if err == nil {
			err = w.remember(ctx, vm, st)
		}
		if err == nil {
			claimed, err = w.claim(vm.Name, r, st)
		}
		return 0, "replica " + st.Replica.String(), err
	})
	if r != nil {
		defer closing(r, &err)
	}
	if err != nil {
		return err
	}
	st, err := r.Ledger().Load(ctx)
	if err != nil {
		return err
	}
	return w.session(ctx, vm, claimed, st, &o.vmHead, func(s *session) error {
		if later {
			return nil
		}
		s.record = j
		return s.seed(ctx, stepInitial, o)
	})
}

// mayProtect checks the prerequisites. begun says that there is a relationship whose initial replication is not complete.
func (w *world) mayProtect(ctx context.Context, vm *site.VM, o *seedObject) (disks []replica.Disk, begun bool, err error) {
	st, err := w.existing(ctx, vm)
	if err != nil {
		return nil, false, err
	}
	if st != nil {
		return nil, true, w.continues(st)
	}
	facts, findings := w.examine(ctx, vm, nil)
	o.Findings = findings
	if err := refusal(vm, findings); err != nil {
		return nil, false, err
	}
	for _, f := range facts {
		disks = append(disks, f.entry(vm))
	}
	return disks, false, nil
}

// entry is the disk as the ledger has it when nothing of it was copied.
func (f diskFacts) entry(vm *site.VM) replica.Disk {
	d := replica.Disk{
		Name: f.disk.Name, OS: f.disk.OS, Source: f.disk.Path, Format: string(f.format), Size: f.size,
		BlockSize: vm.Policy().BlockSize, Identity: f.identity.String(),
	}
	if f.sector != 512 {
		d.SectorSize = f.sector
	}
	return d
}

// continues refuses a VM that has a replica already, unless its initial replication can go on.
func (w *world) continues(st *replica.State) error {
	if err := w.owned(*st); err != nil {
		return err
	}
	if st.Phase == replica.Retired {
		return fault.New(fault.ReplicaKept, "the store holds a replica that was kept when protection was disabled at %s",
			stamp(st.PhaseSince)).Of(st.VM, "")
	}
	if err := w.mine(st.VM, *st); err != nil {
		return err
	}
	if st.Phase != replica.Seeding {
		return fault.New(fault.AlreadyProtected, "the VM is protected since %s, its state is %s", stamp(st.Created), st.Phase).
			Of(st.VM, "")
	}
	return nil
}

// existing returns the ledger of the VM's replica, nil when there is none and it is certain that none was lost.
func (w *world) existing(ctx context.Context, vm *site.VM) (*replica.State, error) {
	r, st, err := w.replica(ctx, vm, forReading)
	switch {
	case err == nil:
		return &st, r.Close()
	case fault.Is(err, fault.NotProtected), fault.Is(err, fault.StoreNotMounted) && w.newStore():
		return nil, nil
	}
	return nil, w.elseDelta(vm, err)
}

// elseDelta names the command that leads on from an error of the store: of a VM that is protected already it is no
// second protect, which would be refused.
func (w *world) elseDelta(vm *site.VM, err error) error {
	mem, known, merr := w.memory.VM(vm.Name)
	e := fault.Find(err)
	if merr == nil && known && mem.Phase != "" && mem.Phase != replica.Seeding && e != nil && e.Class() == fault.Recoverable && e.Next == "" && strings.Contains(e.Code.Lookup().Command, "{again}") {
		e.Next = "sitrep delta " + vm.Name + " --now"
	}
	return err
}

// newStore says that this site has never used a store at this place.
func (w *world) newStore() bool {
	known, ok, err := w.memory.Store()
	return err == nil && (!ok || known.Where != w.store.Describe())
}

// prepareStore makes sure of the store, and founds it when this site has never used one at this place.
func (w *world) prepareStore(ctx context.Context) error {
	var want hrl.ID
	known, ok, err := w.memory.Store()
	if err != nil {
		return err
	}
	if ok && known.Where == w.store.Describe() {
		want = known.ID
	}
	id, err := w.store.Prepare(ctx, want)
	if err != nil {
		return err
	}
	return w.memory.RememberStore(id, w.store.Describe())
}

func (w *world) relationship(ctx context.Context, vm *site.VM, disks []replica.Disk, begun bool) (replica.Replica, error) {
	if begun {
		return w.store.Open(ctx, vm.Name)
	}
	o, err := w.owner()
	if err != nil {
		return nil, err
	}
	return w.store.Create(ctx, replicate.First(vm.Name, w.site.Vault, o, disks, w.now().UTC()))
}

// seed makes the initial copy, as a step of the job.
func (s *session) seed(ctx context.Context, step string, o *seedObject) error {
	if err := s.source(); err != nil {
		return err
	}
	s.meter.plan(total(s.state.Disks, func(d replica.Disk) int64 { return d.Size }))
	c := s.clock()
	err := s.step(step, func() (int64, string, error) {
		results, err := s.engine.Seed(ctx)
		o.Disks = diskObjects(results)
		o.Sent = sentBytes(o.Disks)
		return o.Sent, "", err
	})
	o.Seconds = c.took().Seconds()
	if err != nil {
		return err
	}
	s.say("%s: initial replication: %s sent in %s", s.vm.Name, size(o.Sent), span(c.took()))
	return s.noteSuccess(s.vm, rateSeed, o.Sent, c.took())
}

// finalize is the job that completes protection after the initial copy.
func (w *world) finalize(ctx context.Context, vm *site.VM, o *seedObject) error {
	var h vmHead
	defer func() { o.FinalizeJob, o.State, o.Health = h.Job, cmpOr(h.State, o.State), cmpOr(h.Health, o.Health) }()
	return w.job(vm, jobFinalize, &h, func(j *state.Job) error {
		return w.onReplica(ctx, vm, forWriting, &h, func(s *session) error {
			s.record = j
			if err := s.source(); err != nil {
				return err
			}
			return s.step(stepSettings, func() (int64, string, error) { return s.settle(ctx, o) })
		})
	})
}

func (s *session) settle(ctx context.Context, o *seedObject) (int64, string, error) {
	def, err := definition(s.site, s.vm)
	if err != nil {
		return 0, "", err
	}
	d, err := s.engine.Finalize(ctx, def)
	sent := sentOf(d)
	o.Sent, o.Points = o.Sent+sent, d.Points
	if err != nil {
		return sent, "", err
	}
	s.say("%s: protected, %s", s.vm.Name, plural(d.Points, "recovery point"))
	return sent, plural(d.Points, "recovery point"), errors.Join(s.noteSuccess(s.vm, rateDelta, 0, 0), s.beginCycles(s.vm))
}

// planProtect says what protect would do.
func (w *world) planProtect(ctx context.Context, vm *site.VM, o *seedObject) error {
	if err := w.haveStore(); err != nil {
		return err
	}
	if st := w.addsDisks(ctx, vm); st != nil {
		return w.planAdd(ctx, vm, *st, o)
	}
	if done, err := w.isProtected(ctx, vm, o); done {
		return err
	}
	disks, begun, err := w.mayProtect(ctx, vm, o)
	if err != nil {
		return err
	}
	o.State = notProtected
	if begun {
		st, err := w.existing(ctx, vm)
		if err != nil {
			return err
		}
		w.describe(vm, *st, &o.vmHead)
		disks = st.Disks
	} else {
		w.planned(vm, "make a relationship with the store %s", w.store.Describe())
	}
	return w.planSeed(ctx, vm, disks, o)
}

// planSeed says what the initial copy would move: what the disks hold from where an earlier one stopped.
func (w *world) planSeed(ctx context.Context, vm *site.VM, disks []replica.Disk, o *seedObject) error {
	for _, d := range disks {
		if err := ctx.Err(); err != nil {
			return err
		}
		s := diskOf(vm, d.Name)
		if s == nil {
			continue // told by whoever opens it
		}
		img, err := w.openDisk(vm, s, disk.Format(d.Format))
		if err != nil {
			return err
		}
		n, err := dataBytes(img, min(d.Seeded, img.Size()))
		joined(&err, img.Close())
		if err != nil {
			return fault.In(err, vm.Name, d.Name)
		}
		o.Disks = append(o.Disks, diskObject{Name: d.Name, Sent: n})
	}
	planned := sentBytes(o.Disks)
	o.Planned, o.Estimated = &planned, w.sending(vm, w.estimate(vm, rateSeed, planned), planned)
	w.planned(vm, "copy %s of %s, %s; then the first delta and recovery point", size(planned), plural(len(disks), "disk"),
		estimateText(o.Estimated))
	return nil
}

// dataBytes counts the bytes after an offset that are not known to be zero, without reading them.
func dataBytes(img disk.Image, from int64) (n int64, err error) {
	for off := from; off < img.Size(); {
		e, err := img.Extent(off, img.Size()-off)
		if err != nil {
			return n, err
		}
		if e.Kind == block.Data {
			n += e.Len
		}
		off = e.End()
	}
	return n, nil
}

// machine is what the recovery site needs to make the VM: the part of the ledger that finalize protection records.
type machine struct {
	Name       string        `json:"name"`
	Cloud      string        `json:"cloud"`
	Host       string        `json:"host"`
	Hypervisor string        `json:"hypervisor"`
	Generation int           `json:"generation"` // 1 BIOS, 2 UEFI
	OS         string        `json:"os"`
	CPUs       int           `json:"cpus"`
	Memory     int64         `json:"memory"` // bytes
	Disks      []machineDisk `json:"disks"`
	NICs       []machineNIC  `json:"nics,omitempty"`
	Recovery   string        `json:"recovery_host,omitempty"`
}

type machineDisk struct {
	Name string `json:"name"`
	Path string `json:"path"`
	OS   bool   `json:"os,omitempty"`
}

type machineNIC struct {
	Network string `json:"network"`
	IP      string `json:"ip,omitempty"`
	Primary bool   `json:"primary,omitempty"`
	To      string `json:"recovery_network,omitempty"`
	Subnet  string `json:"recovery_subnet,omitempty"`
}

// definition describes the VM as the site file has it now, with where its networks are mapped to.
func definition(s *site.Site, vm *site.VM) (json.RawMessage, error) {
	m := machine{Name: vm.Name, Cloud: vm.Cloud.Name, Host: vm.Host.Name, Hypervisor: string(vm.Host.Hypervisor),
		Generation: vm.Generation, OS: string(vm.OS), CPUs: vm.CPUs, Memory: vm.Memory, Recovery: s.Recovery.Name}
	for _, d := range vm.Disks {
		m.Disks = append(m.Disks, machineDisk{d.Name, d.Path, d.OS})
	}
	for _, n := range vm.NICs {
		nic := machineNIC{Network: n.Network, Primary: n.Primary}
		if n.IP.IsValid() {
			nic.IP = n.IP.String()
		}
		if to, sub := s.Target(n); to != nil {
			nic.To = to.Name
			if sub != nil {
				nic.Subnet = sub.Name
			}
		}
		m.NICs = append(m.NICs, nic)
	}
	return json.Marshal(m)
}
