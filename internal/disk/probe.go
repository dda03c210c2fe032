package disk

import (
	"bytes"
	"path/filepath"
	"strings"

	"sitrep/internal/disk/vhd"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// signature is what files of one kind have at a fixed offset.
type signature struct {
	off    int
	magic  string
	name   string // for the operator
	format Format // Auto: recognised in order to be refused
}

// signatures are what the beginning of a file is compared with. Formats that cannot be read are among them: replicating
// the container as if it were the guest's bytes would make a replica that does not boot.
func signatures() []signature {
	return []signature{
		{0, "vhdxfile", "VHDX", VHDX},
		{0, "conectix", "VHD", VHD},
		{0, "QFI\xfb", "qcow", Auto}, // version 1 and qcow2
		{0, "KDMV", "VMDK", Auto},
		{0, "COWD", "VMDK", Auto},
		{0, "# Disk DescriptorFile", "VMDK", Auto},
		{0x40, "\x7f\x10\xda\xbe", "VDI", Auto},
		{0, "QED\x00", "QED", Auto},
		{0, "WithoutFreeSpace", "Parallels", Auto},
		{0, "WithouFreSpacExt", "Parallels", Auto},
	}
}

// probeLen is how much of the beginning of a file the signatures need.
const probeLen = 512

// probe tells the format of a file by its signature: at the beginning those of the list, at the end the footer of a VHD;
// what has none of them is raw. A fixed VHD has only the footer, and its beginning is the guest's to write: when both
// ends say something different, nothing is guessed.
func probe(f durable.File) (Format, error) {
	size, err := f.Size()
	if err != nil {
		return Auto, fault.FromOS(err)
	}
	head := make([]byte, min(probeLen, size))
	if err := readFull(f, head, 0); err != nil {
		return Auto, err
	}
	tail := make([]byte, min(vhd.FooterSize, size))
	if err := readFull(f, tail, size-int64(len(tail))); err != nil {
		return Auto, err
	}
	footer := vhd.HasCookie(tail) || len(tail) > 0 && vhd.HasCookie(tail[1:]) // 512 bytes, or the 511 of old ones
	found, ok := match(head)
	switch {
	case ok && footer && found.format != VHD:
		return Auto, fault.New(fault.DiskFormat,
			"the beginning of the file looks like %s and its end like VHD: name the format in the site file", found.name).At(f.Name())
	case footer:
		return VHD, nil
	case !ok:
		return Raw, namedRaw(f.Name())
	case found.format == Auto:
		return Auto, fault.New(fault.DiskUnsupported,
			"the format %s is not supported; if this is a raw disk, say so in the site file", found.name).At(f.Name())
	}
	return found.format, nil
}

// namedRaw refuses to take a file for raw whose name says that it is something else: it is damaged more likely.
func namedRaw(path string) error {
	switch ext := strings.ToLower(filepath.Ext(path)); ext {
	case ".vhdx", ".avhdx", ".vhd", ".avhd", ".qcow2", ".vmdk":
		return fault.New(fault.DiskFormat,
			"the name ends in %s and the content is no such image; if this is a raw disk, say so in the site file", ext).At(path)
	}
	return nil
}

func match(head []byte) (signature, bool) {
	for _, s := range signatures() {
		if len(head) >= s.off && bytes.HasPrefix(head[s.off:], []byte(s.magic)) {
			return s, true
		}
	}
	return signature{}, false
}

// refuseSet refuses a VHD set, which is told by its name: the file only points at the disks of a shared set.
func refuseSet(path string) error {
	if strings.EqualFold(filepath.Ext(path), ".vhds") {
		return fault.New(fault.DiskUnsupported, "a VHD set (shared disk) is not supported").At(path)
	}
	return nil
}
