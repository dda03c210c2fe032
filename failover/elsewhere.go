package failover

import (
	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

// elsewhere says that a VM was made at another host than the one that the site file names now, or by this machine's own
// hypervisor when it was another machine's. What is asked of a VM by its name is about a different one there, if there is any.
func (j *Job) elsewhere(rec *replica.Failover) bool {
	renamed := rec != nil && rec.HostKey != "" && rec.HostKey == j.Recovery.Key
	return made(rec) && rec.HostID != "" && rec.HostID != j.Recovery.ID && !renamed
}

// reaches fails when the recovered VM is elsewhere, before anything is done: it would run on, and so would another one.
func (j *Job) reaches(rec *replica.Failover) error {
	if !j.elsewhere(rec) || j.HostLost {
		return nil
	}
	return fault.New(fault.HostChanged, "the VM was recovered at %s, and the recovery host is now %s (it was %q and is %q)",
		rec.Host, j.Recovery.Describe(), rec.HostID, j.Recovery.ID).Of(j.VM, "")
}
