package disk

import (
	"bytes"
	"path/filepath"
	"strings"

	"sitrep/internal/disk/qcow2"
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
		{0, "QFI\xfb\x00\x00\x00\x01", "qcow", Auto}, // version 1
		{0, qcow2.Magic, "qcow2", QCOW2},
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

// probe tells the format of a file where its name and its content say the same. What a raw disk holds is its guest's to
// write, so content alone decides nothing: a guest could have another file of the host replicated as the parent of its own
// disk. A file whose content looks like an image and whose name does not is refused until the site file names the format.
func probe(f durable.File) (Format, error) {
	name := strings.ToLower(filepath.Ext(f.Name()))
	found, err := content(f)
	switch {
	case err != nil:
		return Auto, err
	case found.name == "" && ofName(name) != Auto, found.name == "" && name == ".vmdk":
		return Auto, fault.New(fault.DiskFormat,
			"the name ends in %s and the content is no such image; if this is a raw disk, write \"format: raw\" in the site file", name).At(f.Name())
	case found.name == "":
		return Raw, nil
	case found.format == Auto:
		return Auto, fault.New(fault.DiskUnsupported, "the content looks like %s, which is not supported: disks are %s; "+
			"convert the image (qemu-img convert -O qcow2), or, if this is a raw disk, write \"format: raw\" in the site file", found.name, formats()).At(f.Name())
	case found.format != ofName(name):
		return Auto, fault.New(fault.DiskFormat, "the content looks like %s and the name does not say so, and a guest can write "+
			"what it wants on a raw disk: write \"format: %s\" in the site file if it is such an image, or \"format: raw\" if not",
			found.name, found.format).At(f.Name())
	}
	return found.format, nil
}

// formats lists the formats for the operator.
func formats() string { return "raw, VHD, VHDX and qcow2" }

// content is the signature that a file has: at the beginning one of the list, at the end the footer of a VHD. When both
// ends say something different, nothing is guessed. The zero signature is that of a raw disk.
func content(f durable.File) (none signature, err error) {
	size, err := f.Size()
	if err != nil {
		return none, fault.FromOS(err)
	}
	head := make([]byte, min(probeLen, size))
	if err := readFull(f, head, 0); err != nil {
		return none, err
	}
	tail := make([]byte, min(vhd.FooterSize, size))
	if err := readFull(f, tail, size-int64(len(tail))); err != nil {
		return none, err
	}
	footer := vhd.HasCookie(tail) || len(tail) > 0 && vhd.HasCookie(tail[1:]) // 512 bytes, or the 511 of old ones
	found, ok := match(head)
	switch {
	case ok && footer && found.format != VHD:
		return none, fault.New(fault.DiskFormat,
			"the beginning of the file looks like %s and its end like VHD: name the format in the site file", found.name).At(f.Name())
	case footer:
		return signature{name: "VHD", format: VHD}, nil
	}
	return found, nil
}

// ofName is the format that the end of a name (in lower case) stands for, Auto if none.
func ofName(ext string) Format {
	switch ext {
	case ".vhdx", ".avhdx":
		return VHDX
	case ".vhd", ".avhd":
		return VHD
	case ".qcow2":
		return QCOW2
	}
	return Auto
}

// Resembles names the format whose signature a disk has that is read as raw, "" if none: then the site file may be wrong,
// or the guest has written it.
func (d *Disk) Resembles() (name string, err error) {
	if d.format != Raw {
		return "", nil
	}
	found, err := content(d.files[0])
	if fault.Is(err, fault.DiskFormat) {
		return "several formats", nil
	}
	return found.name, err
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
