package replica

// whole is a Replica whose Points.Preserve keeps the disks of a VM as they lie there, all of them and as a whole, and not only
// what is about to be overwritten.
type whole interface{ PreservesWhole() bool }

// PreservesWhole says whether r, whatever it is wrapped in, preserves disks as a whole. Of such a replica, everything that
// something else has written has to be healed before the first call of Preserve: what is preserved has it otherwise.
func PreservesWhole(r Replica) bool {
	w, ok := inside[whole](r)
	return ok && w.PreservesWhole()
}
