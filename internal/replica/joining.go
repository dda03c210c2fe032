package replica

import "slices"

// A disk that is added to a VM which is protected joins in three steps, each of which is one Save:
//
//  1. State.Joining has it: its initial copy is being made, beside the replica. It belongs to no position and to no recovery point, and
//     the other disks go on being replicated.
//  2. State.Disks has it, and State.Joined names it: its copy is complete, and of no one moment. Points that there are stay points of the
//     VM without it.
//  3. State.Joined no longer names it: a cut of all disks, it among them, has been received.

// EveryDisk is the disks that have pages in the store: those of the VM, then those that are to join it. What it points to is the
// state's own.
func (s *State) EveryDisk() []*Disk {
	out := make([]*Disk, 0, len(s.Disks)+len(s.Joining))
	for i := range s.Disks {
		out = append(out, &s.Disks[i])
	}
	for i := range s.Joining {
		out = append(out, &s.Joining[i])
	}
	return out
}

// OwnDisks makes the disks of s its own, so that they can be changed whoever else has the state.
func (s *State) OwnDisks() {
	s.Disks, s.Joining = slices.Clone(s.Disks), slices.Clone(s.Joining)
}

// Joins returns the entry of a disk that is to join the VM, or nil.
func (s *State) Joins(name string) *Disk {
	i := slices.IndexFunc(s.Joining, func(d Disk) bool { return d.Name == name })
	if i < 0 {
		return nil
	}
	return &s.Joining[i]
}

// NeverWritten says that nothing of a disk's pages counts: whatever is there under its name may be replaced by an empty disk.
func (s *State) NeverWritten(d Disk) bool {
	return d.Seeded == 0 && (s.Joins(d.Name) != nil || s.Applied.IsZero() && s.Applying == nil)
}

// MayGrow says that the pages of a disk may be larger than its entry d says: they grow before the ledger does.
func (s *State) MayGrow(d Disk) bool {
	if s.Joins(d.Name) != nil {
		return d.Seeded > 0 // before that, what is there is another disk's
	}
	return s.Applying != nil || s.Phase == Seeding || s.Phase == ResyncRequired || s.Phase == Resynchronizing
}

// Without names the disks of the VM that a recovery point does not have: they were added after it.
func (s *State) Without(p Point) (names []string) {
	for _, d := range s.EveryDisk() {
		if _, ok := p.Sizes[d.Name]; !ok {
			names = append(names, d.Name)
		}
	}
	return names
}
