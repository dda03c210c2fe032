package esp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// need skips a test whose tool is missing, but under CI.
func need(t *testing.T, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is missing: apt-get install dosfstools mtools", tool)
			}
			t.Skipf("needs %s: apt-get install dosfstools mtools", tool)
		}
	}
}

// disk is a GPT disk with a FAT filesystem, in which the files are.
func disk(t *testing.T, sector int, bits, mib int, files ...string) []byte {
	t.Helper()
	t.Setenv("PATH", os.Getenv("PATH")+":/sbin:/usr/sbin")
	need(t, "mkfs.vfat", "mmd", "mcopy")
	dir := t.TempDir()
	fat, loader := filepath.Join(dir, "fat"), filepath.Join(dir, "loader")
	run := func(name string, args ...string) {
		t.Helper()
		c := exec.Command(name, args...)
		c.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	if err := os.WriteFile(fat, make([]byte, mib<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(loader, []byte("MZ"), 0o600); err != nil {
		t.Fatal(err)
	}
	run("mkfs.vfat", "-F", strconv.Itoa(bits), fat)
	made := map[string]bool{}
	for _, f := range files {
		for i, c := range f {
			if c == '/' && i > 0 && !made[f[:i]] {
				run("mmd", "-i", fat, "::"+f[:i])
				made[f[:i]] = true
			}
		}
		run("mcopy", "-i", fat, loader, "::"+f)
	}
	data, err := os.ReadFile(fat)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, 1<<20+len(data))
	copy(out[1<<20:], data)
	h := out[sector:]
	copy(h, "EFI PART")
	binary.LittleEndian.PutUint64(h[72:], 2)
	binary.LittleEndian.PutUint32(h[80:], 128)
	binary.LittleEndian.PutUint32(h[84:], 128)
	e := out[2*sector:]
	copy(e, "\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b")
	binary.LittleEndian.PutUint64(e[32:], uint64(1<<20/sector))
	return out
}

func TestHasFallback(t *testing.T) {
	many := []string{"/EFI/debian/shimx64.efi"}
	for i := range 300 { // more than a cluster of a folder
		many = append(many, "/EFI/BOOT/F"+strconv.Itoa(i)+".EFI")
	}
	for _, tt := range []struct {
		name              string
		sector, bits, mib int
		files             []string
		want              bool
	}{
		{"FAT32", 512, 32, 40, []string{"/EFI/BOOT/BOOTX64.EFI"}, true},
		{"FAT32, only of a distribution", 512, 32, 40, []string{"/EFI/debian/grubx64.efi"}, false},
		{"FAT32, nothing", 512, 32, 40, nil, false},
		{"FAT32, small letters", 512, 32, 40, []string{"/efi/boot/bootx64.efi"}, true},
		{"FAT32, long folder", 512, 32, 40, append(many, "/EFI/BOOT/BOOTX64.EFI"), true},
		{"FAT32, long folder without", 512, 32, 40, many, false},
		{"FAT16", 4096, 16, 20, []string{"/EFI/BOOT/BOOTX64.EFI"}, true},
		{"FAT12", 512, 12, 4, []string{"/EFI/BOOT/BOOTX64.EFI"}, true},
		{"FAT12, long folder", 512, 12, 4, append(many, "/EFI/BOOT/BOOTX64.EFI"), true},
		{"FAT12, another architecture", 512, 12, 4, []string{"/EFI/BOOT/BOOTAA64.EFI"}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := HasFallback(bytes.NewReader(disk(t, tt.sector, tt.bits, tt.mib, tt.files...)))
			if err != nil || got != tt.want {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}

func TestNone(t *testing.T) {
	for _, data := range [][]byte{nil, make([]byte, 1<<20), bytes.Repeat([]byte("EFI PART"), 1<<17), bytes.Repeat([]byte{0xff}, 1<<20)} {
		if _, err := HasFallback(bytes.NewReader(data)); !errors.Is(err, ErrNone) {
			t.Errorf("%.10q: %v", data, err)
		}
	}
}

func FuzzHasFallback(f *testing.F) {
	f.Add([]byte("EFI PART"), []byte{0x55, 0xaa})
	f.Fuzz(func(_ *testing.T, head, fat []byte) {
		d := make([]byte, 64<<10)
		copy(d[512:], head)
		copy(d[4096:], fat)
		d[4096+510], d[4096+511] = 0x55, 0xaa
		copy(d[1024:], "\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b")
		d[1024+32] = 8
		HasFallback(bytes.NewReader(d)) // ends, and does not panic
	})
}
