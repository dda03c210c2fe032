package disk_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sitrep/internal/disk"
	"sitrep/internal/durable"
)

// TestAnother: what makes a disk another one, and what its guest or its administrator may do to it.
func TestAnother(t *testing.T) {
	known := disk.Identity{Container: "vhdx:a", Guest: "gpt:1", File: 7}
	for name, c := range map[string]struct {
		known, now disk.Identity
		another    bool
	}{
		"the same":                       {known, known, false},
		"never known":                    {disk.Identity{}, known, false},
		"nothing known now":              {known, disk.Identity{}, false},
		"other virtual disk":             {known, disk.Identity{Container: "vhdx:b", Guest: "gpt:1", File: 7}, true},
		"restored from a copy":           {known, disk.Identity{Container: "vhdx:a", Guest: "gpt:1", File: 8}, false},
		"new partitions":                 {known, disk.Identity{Container: "vhdx:a", Guest: "gpt:2", File: 7}, false},
		"no partitions any more":         {known, disk.Identity{Container: "vhdx:a", File: 7}, false},
		"cloned, other guest":            {known, disk.Identity{Container: "vhdx:a", Guest: "gpt:2", File: 8}, true},
		"raw: other file, other guest":   {disk.Identity{Guest: "mbr:1", File: 7}, disk.Identity{Guest: "gpt:2", File: 8}, true},
		"raw: other file":                {disk.Identity{Guest: "mbr:1", File: 7}, disk.Identity{Guest: "mbr:1", File: 8}, false},
		"raw: new partitions":            {disk.Identity{Guest: "mbr:1", File: 7}, disk.Identity{Guest: "mbr:2", File: 7}, false},
		"device: new partitions":         {disk.Identity{Container: "device:s1", Guest: "gpt:1"}, disk.Identity{Container: "device:s1", Guest: "gpt:2"}, false},
		"device: other one":              {disk.Identity{Container: "device:s1", Guest: "gpt:1"}, disk.Identity{Container: "device:s2", Guest: "gpt:1"}, true},
		"nameless device: other content": {disk.Identity{Guest: "gpt:1"}, disk.Identity{Guest: "gpt:2"}, true},
	} {
		if got := c.known.Another(c.now); (got != "") != c.another {
			t.Errorf("%s: %q", name, got)
		}
		if got := disk.ParseIdentity(c.now.String()); got != c.now {
			t.Errorf("%s: %v was read back as %v", name, c.now, got)
		}
	}
	if got := disk.ParseIdentity("of a newer version: x"); got != (disk.Identity{}) {
		t.Errorf("%v", got)
	}
}

// TestGuestIdentity reads the name that a guest's tools have given a disk.
func TestGuestIdentity(t *testing.T) {
	for name, c := range map[string]struct {
		tool, input string
		args        []string
		want        string
	}{
		"gpt": {"sfdisk", "label: gpt\nlabel-id: 0B9D4F1E-5B3C-4C2D-9A1F-3344556677AA\n,4M\n", nil, "gpt:0b9d4f1e-5b3c-4c2d-9a1f-3344556677aa"},
		"mbr": {"sfdisk", "label: dos\nlabel-id: 0x1234abcd\n,4M\n", nil, "mbr:1234abcd"},
		"ext": {"mkfs.ext4", "", []string{"-q", "-U", "0b9d4f1e-5b3c-4c2d-9a1f-3344556677aa"}, "ext:0b9d4f1e5b3c4c2d9a1f3344556677aa"},
		"fat": {"mkfs.vfat", "", []string{"-i", "1234abcd"}, "fat:1234abcd"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "d.raw")
			f := must(os.Create(path))(t)
			if err := f.Truncate(16 << 20); err != nil {
				t.Fatal(err)
			}
			f.Close()
			tool, err := exec.LookPath(c.tool)
			if err != nil {
				t.Skipf("%s is missing: apt-get install fdisk e2fsprogs dosfstools", c.tool)
			}
			cmd := exec.Command(tool, append(c.args, path)...)
			cmd.Stdin = strings.NewReader(c.input)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			d := must(disk.Open(durable.OS(), path, disk.Auto))(t)
			defer d.Close()
			if id := must(d.Identity())(t); id.Guest != c.want || id.File == 0 || id.Container != "" {
				t.Errorf("%+v, want %s", id, c.want)
			}
		})
	}
}

// TestContainerIdentity: it is that of the first file of a chain, and stays when a checkpoint is taken.
func TestContainerIdentity(t *testing.T) {
	dir := t.TempDir()
	base, top := filepath.Join(dir, "base.vhdx"), filepath.Join(dir, "top.avhdx")
	layered(t, base, top, `.\base.vhdx`)
	var ids []disk.Identity
	for _, path := range []string{base, top} {
		d := must(disk.Open(durable.OS(), path, disk.Auto))(t)
		ids = append(ids, must(d.Identity())(t))
		d.Close()
	}
	if ids[0] != ids[1] || !strings.HasPrefix(ids[0].Container, "vhdx:") || ids[0].File == 0 {
		t.Errorf("%v", ids)
	}
	path := filepath.Join(dir, "d.vhd")
	if err := os.WriteFile(path, fixedVHD(bytes.Repeat([]byte{1}, 8192)), 0o600); err != nil {
		t.Fatal(err)
	}
	d := must(disk.Open(durable.OS(), path, disk.Auto))(t)
	defer d.Close()
	if id := must(d.Identity())(t); id.Container != "vhd:01000000-0000-0000-0000-000000000000" {
		t.Errorf("%v", id)
	}
}
