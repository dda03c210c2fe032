package cmd

import (
	"slices"

	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	system "sitrep/internal/machine"
	"sitrep/internal/replica"
	"sitrep/internal/site"
	"sitrep/internal/state"
)

// owner is this site, on this machine, as the ledgers of replicas name who writes to them. The state folder gets its ID by it, but in a
// dry run.
func (w *world) owner() (replica.Owner, error) {
	o := replica.Owner{Site: siteName(w.site), Host: w.hostName(), Machine: w.machineID(), Since: w.now().UTC()}
	var err error
	if o.State, err = system.Real(w.memory.Path()); err != nil {
		return o, fault.FromOS(err)
	}
	if w.opts.dryRun {
		o.Writer, err = w.memory.Writer()
	} else {
		o.Writer, err = w.memory.EnsureWriter()
	}
	return o, err
}

func siteName(s *site.Site) string {
	if s.VMM.Server == "" {
		return s.Vault
	}
	return s.Vault + "/" + s.VMM.Server
}

func (p *program) hostName() string {
	if p.host == nil {
		return system.Name()
	}
	return p.host()
}

func (p *program) machineID() string {
	if p.machine == nil {
		return system.ID()
	}
	return p.machine()
}

// writer is who this site is to a replica, and what it remembers of it. Nothing is written: a state folder without an ID has lost it, or
// never had one.
func (w *world) writer(vm string, st replica.State) (replica.Writer, error) {
	mem, _, err := w.memory.VM(vm)
	if err != nil {
		return replica.Writer{}, err
	}
	o := replica.Owner{Site: siteName(w.site), Host: w.hostName(), Machine: w.machineID()}
	if o.State, err = system.Real(w.memory.Path()); err != nil {
		return replica.Writer{}, fault.FromOS(err)
	}
	if o.Writer, err = w.memory.Writer(); err != nil {
		return replica.Writer{}, err
	}
	out := replica.Writer{Owner: o, Lives: func(folder string) bool { return w.livesIn(folder, o.Writer) }}
	if mem.Replica == st.Replica {
		out.Runs = mem.Runs
		out.Knows = mem.Applied == st.Applied.Seq && mem.AsOf.Equal(st.AsOf) && !st.AsOf.IsZero()
	}
	return out, nil
}

// livesIn says whether another folder of this machine is a state folder of that ID. This folder under another name is none.
func (w *world) livesIn(folder string, id hrl.ID) bool {
	there, err := state.Open(w.fs, folder, w.now).Writer()
	if err != nil || there != id {
		return false
	}
	a, aerr := w.fs.Stat(folder)
	b, berr := w.fs.Stat(w.memory.Path())
	return aerr != nil || berr != nil || a.Inode == 0 || a.Inode != b.Inode || a.Device != b.Device
}

// mine refuses what only the writer of the replica, in its own vault, may do; see replica.State.CheckWriter.
func (w *world) mine(vm string, st replica.State) error {
	if err := w.owned(st); err != nil {
		return err
	}
	me, err := w.writer(vm, st)
	if err != nil {
		return err
	}
	return st.CheckWriter(me)
}

// claim makes this site the writer of a replica that is open, and that it may write to. The state folder knows of the new run before
// anything is written in its name.
func (w *world) claim(vm string, r replica.Replica, st replica.State) (replica.Replica, error) {
	if w.opts.dryRun || st.Phase.Away() || st.Phase == replica.Retired {
		return r, nil
	}
	o, err := w.owner()
	if err != nil {
		return nil, err
	}
	known, _, err := w.memory.Store()
	if err != nil {
		return nil, err
	}
	if o.Run, err = w.newRun(vm, st); err != nil {
		return nil, err
	}
	return replica.Claim(r, o, known.ID, w.now), nil
}

// newRun is the run in whose name this program writes to a replica. The state folder remembers it, and the ones before: an undo gives
// back a ledger of before a failover.
func (w *world) newRun(vm string, st replica.State) (hrl.ID, error) {
	if w.runID.IsZero() {
		w.runID = hrl.NewID()
	}
	return w.runID, w.memory.ChangeVM(vm, func(mem *state.VM) {
		if mem.Replica != st.Replica {
			return
		}
		var runs []hrl.ID
		for _, id := range append([]hrl.ID{w.runID, st.Owner.Run}, mem.Runs...) {
			if !id.IsZero() && !slices.Contains(runs, id) && len(runs) < maxRuns {
				runs = append(runs, id)
			}
		}
		mem.Runs = runs
	})
}

// maxRuns is how many runs a state folder remembers.
const maxRuns = 16

// holder is who has the lease of a replica in Azure: this state folder, in its place on this machine. Only what opens a replica for
// writing asks.
func (w *world) holder() (string, error) {
	o, err := w.owner()
	return o.Writer.String() + " " + o.Machine + " " + o.State, err
}
