package disk

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"strings"

	"sitrep/internal/disk/vhd"
	"sitrep/internal/disk/vhdx"
	"sitrep/internal/fault"
)

// Identity tells one disk from another that has come to stand at its path. Each part is "" (File 0) where it is not known.
type Identity struct {
	// Container names the virtual disk or the device, whatever its content: the ID in the first file of a VHD or VHDX chain,
	// which stays what it is when checkpoints are taken and merged; serial number, WWN or UUID of a device.
	Container string
	// Guest names what is on the disk: the GPT's GUID, the MBR's signature, or the UUID of what takes the disk as a whole.
	Guest string
	// File is the inode of the first file of the chain. A copy has another one.
	File uint64
}

// Another says why now is another disk than known, "" when it is not, or nothing tells. A guest that makes new partitions on
// its own disk changes Guest alone, a disk that is moved or restored from a copy File alone.
func (known Identity) Another(now Identity) string {
	named := known.Container != "" && now.Container != ""
	if named && known.Container != now.Container {
		return fmt.Sprintf("another disk than before: its identity is %s, and was %s", now.Container, known.Container)
	}
	marked := known.Guest != "" && now.Guest != ""
	filed := known.File != 0 && now.File != 0
	if !marked || known.Guest == now.Guest || filed && known.File == now.File || named && !filed {
		return ""
	}
	return fmt.Sprintf("another disk than before: the file is another one, and what is on it is %s, and was %s", now.Guest, known.Guest)
}

// String is for ParseIdentity.
func (i Identity) String() string {
	if i == (Identity{}) {
		return ""
	}
	return fmt.Sprintf("%s %s %d", or(i.Container), or(i.Guest), i.File)
}

// or is a word for a part that is not known.
func or(part string) string {
	if part == "" {
		return "-"
	}
	return part
}

// ParseIdentity reads what String has written. What cannot be read is not known: it is no reason to refuse a disk.
func ParseIdentity(s string) (i Identity) {
	parts := strings.Split(s, " ")
	if len(parts) != 3 {
		return Identity{}
	}
	if parts[0] != "-" {
		i.Container = parts[0]
	}
	if parts[1] != "-" {
		i.Guest = parts[1]
	}
	i.File, _ = strconv.ParseUint(parts[2], 10, 64)
	return i
}

// Identity reads the first sectors of the disk.
func (d *Disk) Identity() (i Identity, err error) {
	base := d.files[len(d.files)-1]
	if d.kind == Device {
		i.Container = deviceID(base.Name())
	} else {
		s, err := base.Stamp()
		if err != nil {
			return i, fault.FromOS(err)
		}
		i.Container, i.File = containerID(d.Image), s.Inode
	}
	head := make([]byte, min(identityHead, d.Size()))
	if n, err := d.ReadAt(head, 0); n < len(head) {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return i, err
	}
	i.Guest = guestID(head)
	return i, nil
}

// containerID is the identity in the first file of a chain.
func containerID(m Image) string {
	switch m := m.(type) {
	case *vhd.Image:
		return "vhd:" + m.Root().UUID().String()
	case *vhdx.Image:
		return "vhdx:" + m.Root().DiskID().String()
	}
	return ""
}

// identityHead is how much of the beginning of a disk guestID looks at, in bytes.
const identityHead = 8 << 10

// mark is where something that names a disk lies on it.
type mark struct {
	kind  string
	at    int    // of magic
	magic string // bytes that tell that it is there
	id, n int    // where the name lies, and how many bytes it has
}

// marks are what guests write on their disks, what takes precedence first. A boot sector of a filesystem has the MBR's end
// too, and code where the MBR has its signature, so it comes before.
func marks() []mark {
	return []mark{
		{kind: "gpt", at: 512, magic: "EFI PART", id: 512 + 56, n: 16},
		{kind: "gpt", at: 4096, magic: "EFI PART", id: 4096 + 56, n: 16},
		{kind: "ntfs", at: 3, magic: "NTFS    ", id: 0x48, n: 8},
		{kind: "fat", at: 0x36, magic: "FAT", id: 0x27, n: 4},
		{kind: "fat", at: 0x52, magic: "FAT32", id: 0x43, n: 4},
		{kind: "luks", at: 0, magic: "LUKS\xba\xbe", id: 168, n: 36},
		{kind: "xfs", at: 0, magic: "XFSB", id: 32, n: 16},
		{kind: "lvm", at: 512, magic: "LABELONE", id: 512 + 32, n: 32},
		{kind: "mbr", at: 510, magic: "\x55\xaa", id: 440, n: 4},
		{kind: "ext", at: 1024 + 56, magic: "\x53\xef", id: 1024 + 104, n: 16},
	}
}

// guestID names what the beginning of a disk belongs to, "" if nothing tells.
func guestID(head []byte) string {
	for _, m := range marks() {
		if len(head) < max(m.at+len(m.magic), m.id+m.n) || !bytes.HasPrefix(head[m.at:], []byte(m.magic)) {
			continue
		}
		id := head[m.id : m.id+m.n]
		switch {
		case bytes.Count(id, []byte{0}) == len(id):
		case m.kind == "gpt":
			return m.kind + ":" + mixedEndian(id)
		case m.kind == "mbr", m.kind == "fat":
			return fmt.Sprintf("%s:%08x", m.kind, binary.LittleEndian.Uint32(id))
		default:
			return m.kind + ":" + hex.EncodeToString(id)
		}
	}
	return ""
}

// mixedEndian words a GUID as Windows and sfdisk do.
func mixedEndian(g []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(g), le.Uint16(g[4:]), le.Uint16(g[6:]), g[8:10], g[10:16])
}
