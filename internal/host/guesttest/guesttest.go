// Package guesttest gives tests real guests: small disks that boot by themselves, tell on the serial console which files
// they found with which content, and write, loop or wait as their mode says.
//
// A disk is made of a boot part (MBR, syslinux, Debian's kernel, an initial filesystem with busybox; also a script for a UEFI
// shell, so that generation 2 boots it too, with UEFIMemory), built once per
// machine by testdata/guest/build.sh into the user's cache folder, and an ext4 with the test's own files. If one block of
// the boot sector, the FAT, the kernel or the ext4 is wrong, it does not boot or the hashes differ: that is what makes it a
// proof of replication. A boot takes 2 to 4 s of emulation.
package guesttest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"sitrep/internal/disk"
	"sitrep/internal/durable"
)

// Mode is what a guest does after it has told what is on its disks.
type Mode string

// The modes. Serve, Edit and Loop end when the power button is pressed.
const (
	Read  Mode = "read"  // nothing; it mounts read-only and powers off
	Write Mode = "write" // writes a new file and a line into "marker" of each filesystem, tells them, powers off
	Edit  Mode = "edit"  // the same, says "@@ EDITED" and stays up
	Loop  Mode = "loop"  // writes on and on, saying "@@ N COUNT" after each durable round
	Serve Mode = "serve" // stays up
)

// Sizes in bytes. A boot disk has DiskSize, a data disk DataSize.
const (
	bootSize = 21 << 20
	DataSize = 32 << 20
	DiskSize = bootSize + DataSize
)

// modeOffset is the sector between boot sector and first partition that holds the mode.
const modeOffset = 2040 * 512

// Memory is what a guest needs, in bytes; UEFIMemory is what it needs with a UEFI firmware.
const (
	Memory     = 192 << 20
	UEFIMemory = 256 << 20
)

// Install is the command that installs what guests need, on Debian 12.
const Install = "apt-get install --no-install-recommends qemu-system-x86 qemu-utils syslinux syslinux-common mtools dosfstools fdisk cpio e2fsprogs"

// Guest is the built boot part.
type Guest struct {
	Dir            string // holds the following
	Kernel, Initrd string // paths, to boot without a boot disk
	boot           string
}

// Build builds the guest, once per machine and version of its scripts. Where tools are missing it skips the test, and fails it
// under CI=true.
func Build(t testing.TB) Guest {
	t.Helper()
	need(t)
	scripts := filepath.Join(root(t), "testdata", "guest")
	sum := sha256.New()
	for _, name := range []string{"build.sh", "init"} {
		b, err := os.ReadFile(filepath.Join(scripts, name))
		check(t, err)
		sum.Write(b)
	}
	cache, err := os.UserCacheDir()
	check(t, err)
	cache = filepath.Join(cache, "sitrep-guest")
	check(t, os.MkdirAll(cache, 0o755))
	dir := filepath.Join(cache, hex.EncodeToString(sum.Sum(nil)[:6]))
	lock := acquire(t, dir+".lock")
	defer lock()
	run(t, filepath.Join(scripts, "build.sh"), dir)
	return Guest{Dir: dir, Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd.gz"), boot: filepath.Join(dir, "boot.raw")}
}

// Disk makes a disk that boots by itself at path, in the format raw, vhd (fixed), vhdx (dynamic) or qcow2, of DiskSize guest
// bytes, with files (names may have folders) in its filesystem.
func (g Guest) Disk(t testing.TB, path, format string, mode Mode, files map[string][]byte) {
	t.Helper()
	boot, err := os.ReadFile(g.boot)
	check(t, err)
	copy(boot[modeOffset:modeOffset+512], make([]byte, 512))
	copy(boot[modeOffset:], mode)
	fill(t, path, format, boot, files)
}

// Data makes a disk without partitions, of DataSize guest bytes, with files in its filesystem. The guest mounts such a disk
// below /data and tells its files as NAME:PATH, where NAME is the serial number that the host gave to the disk.
func Data(t testing.TB, path, format string, files map[string][]byte) {
	t.Helper()
	fill(t, path, format, nil, files)
}

// fill writes boot and a filesystem after it into a disk.
func fill(t testing.TB, path, format string, boot []byte, files map[string][]byte) {
	t.Helper()
	seed := filepath.Join(t.TempDir(), "seed")
	check(t, os.MkdirAll(seed, 0o755))
	for name, data := range files {
		file := filepath.Join(seed, name)
		check(t, os.MkdirAll(filepath.Dir(file), 0o755))
		check(t, os.WriteFile(file, data, 0o644))
	}
	raw := filepath.Join(t.TempDir(), "raw")
	f, err := os.Create(raw)
	check(t, err)
	_, err = f.Write(boot)
	check(t, err)
	check(t, f.Truncate(int64(len(boot))+DataSize))
	check(t, f.Close())
	run(t, "mke2fs", "-q", "-t", "ext4", "-F", "-d", seed, "-E", fmt.Sprintf("offset=%d", len(boot)), raw, fmt.Sprintf("%dk", DataSize>>10))
	args := []string{"convert", "-f", "raw"}
	switch format {
	case "raw":
		args = append(args, "-O", "raw")
	case "vhd":
		ownVHD(t, raw, path)
		return
	case "vhdx":
		args = append(args, "-O", "vhdx", "-o", "subformat=dynamic")
	case "qcow2":
		args = append(args, "-O", "qcow2")
	default:
		t.Fatalf("the disk format %q is not one of raw, vhd, vhdx, qcow2", format)
	}
	run(t, "qemu-img", append(args, raw, path)...)
}

// ownVHD makes a fixed VHD with the footer that the product writes.
func ownVHD(t testing.TB, raw, path string) {
	t.Helper()
	b, err := os.ReadFile(raw)
	check(t, err)
	d, err := disk.Create(durable.OS(), path, disk.Spec{Format: disk.VHD, Kind: disk.Fixed, Size: int64(len(b))})
	check(t, err)
	const step = 64 << 10
	zero := make([]byte, step)
	for off := 0; off < len(b); off += step {
		if p := b[off:min(off+step, len(b))]; !bytes.Equal(p, zero[:len(p)]) {
			_, err := d.WriteAt(p, int64(off))
			check(t, err)
		}
	}
	check(t, d.Flush())
	check(t, d.Close())
}

// SetMode changes the mode of the boot disk at path, whose VM is off.
func SetMode(t testing.TB, path, format string, mode Mode) {
	t.Helper()
	sector := make([]byte, 512)
	copy(sector, mode)
	if format == "qcow2" {
		file := filepath.Join(t.TempDir(), "sector")
		check(t, os.WriteFile(file, sector, 0o644))
		run(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -q -s %s %d 512", file, modeOffset), path)
		return
	}
	d, err := disk.OpenRW(durable.OS(), path, disk.Format(format))
	check(t, err)
	_, err = d.WriteAt(sector, modeOffset)
	check(t, err)
	check(t, d.Flush())
	check(t, d.Close())
}

// Line waits until the console log has a line with the text in it, and returns the log up to the end of that line. It
// fails the test after a time in which the slowest machine is done, or at once when stop, unless nil, says that there
// is nothing to wait for any more (the VM is off, say) and the log has no such line.
func Line(t testing.TB, log, text string, stop func() bool) string {
	t.Helper()
	deadline := time.Now().Add(5 * time.Minute)
	for {
		over := stop != nil && stop() // asked before the last look
		b, err := os.ReadFile(log)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		if i := strings.Index(string(b), text); i >= 0 {
			if end := strings.IndexByte(string(b[i:]), '\n'); end >= 0 {
				return string(b[:i+end+1]) // with its end: half a line says nothing
			}
		}
		if over || time.Now().After(deadline) {
			t.Fatalf("the console never said %q; it said:\n%s", text, b)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Files reads the files that the guest told on its console: path -> SHA-256 in hex, of each the last one told.
func Files(console string) map[string]string {
	files := map[string]string{}
	for line := range strings.Lines(console) {
		var sum, path string
		if n, _ := fmt.Sscanf(strings.TrimSpace(line), "@@ FILE %64s %s", &sum, &path); n == 2 {
			files[path] = sum
		}
	}
	return files
}

// Rounds is the count of the last "@@ N COUNT" line of a guest that loops, 0 when there is none.
func Rounds(console string) int {
	n := 0
	for line := range strings.Lines(console) {
		if strings.HasSuffix(line, "\n") {
			fmt.Sscanf(line, "@@ N %d", &n)
		}
	}
	return n
}

// Sum is the SHA-256 of data as the guest tells it.
func Sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

// Firmware returns the path of a UEFI firmware, and skips the test where there is none; it fails it under CI=true.
func Firmware(t testing.TB) string {
	t.Helper()
	const path = "/usr/share/OVMF/OVMF_CODE.fd"
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v: apt-get install ovmf", err)
		}
		t.Skipf("%v: apt-get install ovmf", err)
	}
	return path
}

// need skips the test where a tool is missing.
func need(t testing.TB) {
	t.Helper()
	for _, name := range []string{"qemu-system-x86_64", "qemu-img", "qemu-io", "syslinux", "mcopy", "mkfs.vfat", "sfdisk", "cpio",
		"mke2fs", "apt-get", "dpkg-deb"} {
		if _, err := exec.LookPath(find(name)); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is missing: %s", name, Install)
			}
			t.Skipf("%s is missing: %s", name, Install)
		}
	}
}

// find looks a tool up in the folders of system tools too, which are not in everybody's PATH.
func find(name string) string {
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path
		}
	}
	return name
}

// acquire waits for the lock: another test's process may be building.
func acquire(t testing.TB, name string) (release func()) {
	t.Helper()
	for range 6000 {
		l, err := durable.OS().Lock(name)
		if err == nil {
			return func() { l.Close() }
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("%s is locked for ten minutes", name)
	return nil
}

// root is the folder of the module, found from where this file was compiled or, where paths are trimmed, from the test's folder.
func root(t testing.TB) string {
	t.Helper()
	_, file, _, _ := runtime.Caller(0)
	if !filepath.IsAbs(file) {
		wd, err := os.Getwd()
		check(t, err)
		file = filepath.Join(wd, "x")
	}
	for dir := filepath.Dir(file); ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("the module's folder is not found")
		}
	}
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(find(name), args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
