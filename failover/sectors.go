package failover

import (
	"sitrep/internal/disk"
	"sitrep/internal/fault"
	"sitrep/internal/host"
)

// takes refuses, before anything is changed, a disk that could be made and would be of no use: a guest that finds other sectors
// than those its disk was partitioned with does not find its partitions.
func (j *Job) takes(d host.Disk) error {
	if d.SectorSize > 512 && disk.Format(d.Format) == disk.VHD {
		return fault.New(fault.PrerequisiteFail, "its logical sectors have %d bytes, and a VHD has none but of 512: recover it as vhdx, raw or qcow2 (recovery.format)",
			d.SectorSize).Of(j.VM, d.Name)
	}
	if most, limited := disk.MaxSize(disk.Format(d.Format)); limited && d.Size > most && j.DisksIn != InStore {
		return fault.New(fault.PrerequisiteFail, "it has %d GiB, and a disk of the format %s has at most %d GiB, which is what hypervisors read: recover it in another format "+
			"(recovery.format)", d.Size>>30, d.Format, most>>30).Of(j.VM, d.Name)
	}
	if h, ok := j.Recovery.Host.(host.Picky); ok {
		return fault.In(h.Takes(d), j.VM, d.Name)
	}
	return nil
}
