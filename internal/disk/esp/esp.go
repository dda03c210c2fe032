// Package esp looks into the EFI system partition of a guest's disk, for the loader that UEFI firmware starts when it knows of no other:
// \EFI\BOOT\BOOTX64.EFI. A VM whose partition has none boots by an entry in the variables of its firmware, and a VM that is made anew
// of its disks has other ones.
//
// It reads a GPT and FAT12, FAT16 or FAT32, a bounded number of bytes of them, and believes nothing that is out of bounds.
package esp

import (
	"encoding/binary"
	"errors"
	"io"
)

// ErrNone says that a disk has no GPT with an EFI system partition that can be read.
var ErrNone = errors.New("there is no EFI system partition that can be read")

// What is read at most: entries of the partition table, bytes of a folder.
const (
	maxEntries = 256
	maxFolder  = 4 << 20
)

// The names of folders and of the loader, as short names of FAT.
const (
	folderEFI  = "EFI        "
	folderBoot = "BOOT       "
	loaderX64  = "BOOTX64 EFI"
)

// HasFallback says whether the disk has the fallback loader for x86-64. It fails with ErrNone when that cannot be told.
func HasFallback(disk io.ReaderAt) (bool, error) {
	for _, sector := range []int64{512, 4096} {
		at, err := partition(disk, sector)
		if err != nil {
			continue
		}
		v, err := openFAT(io.NewSectionReader(disk, at, 1<<62-at))
		if err != nil {
			return false, err
		}
		return v.hasFallback()
	}
	return false, ErrNone
}

// partition is the offset of the first EFI system partition of a GPT.
func partition(disk io.ReaderAt, sector int64) (int64, error) {
	var h [92]byte
	if _, err := disk.ReadAt(h[:], sector); err != nil || string(h[:8]) != "EFI PART" {
		return 0, ErrNone
	}
	le := binary.LittleEndian
	table, n, size := le.Uint64(h[72:]), le.Uint32(h[80:]), le.Uint32(h[84:])
	if size < 128 || size > 4096 || table > 1<<40 {
		return 0, ErrNone
	}
	const system = "\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b"
	e := make([]byte, size)
	for i := range int64(min(n, maxEntries)) {
		if _, err := disk.ReadAt(e, int64(table)*sector+i*int64(size)); err != nil {
			return 0, ErrNone
		}
		if first := le.Uint64(e[32:]); string(e[:16]) == system && first < 1<<40 {
			return int64(first) * sector, nil
		}
	}
	return 0, ErrNone
}

// volume is a FAT filesystem.
type volume struct {
	r        io.ReaderAt
	cluster  int64 // bytes
	fat      int64 // offset of the table
	data     int64 // offset of cluster 2
	bits     int   // of an entry of the table
	clusters int64
	root     uint32 // its first cluster, of FAT32
	rootAt   int64  // else where it lies
	rootLen  int64
}

func openFAT(r io.ReaderAt) (*volume, error) {
	var b [512]byte
	if _, err := r.ReadAt(b[:], 0); err != nil || b[510] != 0x55 || b[511] != 0xaa {
		return nil, ErrNone
	}
	le := binary.LittleEndian
	sector, perCluster := int64(le.Uint16(b[11:])), int64(b[13])
	reserved, tables, rootEntries := int64(le.Uint16(b[14:])), int64(b[16]), int64(le.Uint16(b[17:]))
	total, tableLen := int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if total == 0 {
		total = int64(le.Uint32(b[32:]))
	}
	v := &volume{r: r, bits: 16}
	if tableLen == 0 {
		tableLen, v.bits, v.root = int64(le.Uint32(b[36:])), 32, le.Uint32(b[44:])
	}
	if sector < 512 || sector > 4096 || perCluster == 0 || tables == 0 || tableLen == 0 {
		return nil, ErrNone
	}
	v.cluster, v.fat = sector*perCluster, reserved*sector
	v.rootAt, v.rootLen = (reserved+tables*tableLen)*sector, rootEntries*32
	v.data = v.rootAt + (v.rootLen+sector-1)/sector*sector
	v.clusters = (total*sector - v.data) / v.cluster
	if v.bits == 16 && v.clusters < 4085 {
		v.bits = 12
	}
	return v, nil
}

func (v *volume) hasFallback() (bool, error) {
	top, err := v.rootFolder()
	if err != nil {
		return false, err
	}
	efi, ok := find(top, folderEFI)
	if !ok {
		return false, nil
	}
	dir, err := v.chain(efi)
	if err != nil {
		return false, err
	}
	boot, ok := find(dir, folderBoot)
	if !ok {
		return false, nil
	}
	if dir, err = v.chain(boot); err != nil {
		return false, err
	}
	_, ok = find(dir, loaderX64)
	return ok, nil
}

func (v *volume) rootFolder() ([]byte, error) {
	if v.bits == 32 {
		return v.chain(v.root)
	}
	b := make([]byte, v.rootLen)
	if _, err := v.r.ReadAt(b, v.rootAt); err != nil {
		return nil, ErrNone
	}
	return b, nil
}

// chain reads the clusters of a folder.
func (v *volume) chain(first uint32) ([]byte, error) {
	var out []byte
	for c := int64(first); c >= 2 && c < v.clusters+2; {
		if len(out) >= maxFolder {
			return nil, ErrNone
		}
		b := make([]byte, v.cluster)
		if _, err := v.r.ReadAt(b, v.data+(c-2)*v.cluster); err != nil {
			return nil, ErrNone
		}
		out = append(out, b...)
		next, err := v.next(c)
		if err != nil {
			return nil, err
		}
		c = next
	}
	return out, nil
}

// next is the cluster behind another one.
func (v *volume) next(c int64) (int64, error) {
	var b [4]byte
	off, n := c*int64(v.bits)/8, v.bits/8
	if v.bits == 12 {
		off, n = c+c/2, 2
	}
	if _, err := v.r.ReadAt(b[:n], v.fat+off); err != nil {
		return 0, ErrNone
	}
	e := int64(binary.LittleEndian.Uint32(b[:]))
	switch {
	case v.bits == 12 && c%2 == 1:
		return e >> 4, nil
	case v.bits == 12:
		return e & 0xfff, nil
	}
	return e & 0x0fffffff, nil
}

// find returns the first cluster of the entry of a folder with a short name.
func find(dir []byte, name string) (uint32, bool) {
	const longName, volumeID = 0x0f, 0x08
	for ; len(dir) >= 32 && dir[0] != 0; dir = dir[32:] {
		if attr := dir[11]; attr == longName || attr&volumeID != 0 {
			continue
		}
		if string(dir[:11]) == name {
			return uint32(binary.LittleEndian.Uint16(dir[20:]))<<16 | uint32(binary.LittleEndian.Uint16(dir[26:])), true
		}
	}
	return 0, false
}
