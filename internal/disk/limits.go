package disk

// MaxSize is how many guest bytes hypervisors take of a disk of a format; limited is false of one without such a limit.
func MaxSize(f Format) (bytes int64, limited bool) {
	switch f {
	case VHD: // of the format as Hyper-V and QEMU read it
		return 2040 << 30, true
	case VHDX:
		return 64 << 40, true
	}
	return 0, false
}
