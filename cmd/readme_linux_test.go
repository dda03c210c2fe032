package cmd_test

import (
	"compress/bzip2"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// block is the block of the README that begins with a text, after its fence.
func block(t *testing.T, begin string) string {
	t.Helper()
	_, rest, ok := strings.Cut(read(t, "../README.md"), "\n"+begin)
	text, _, closed := strings.Cut(rest, "\n```")
	if !ok || !closed {
		t.Fatalf("the README has no block that begins with %q", begin)
	}
	return begin + text + "\n"
}

// TestReadmeDrill: the drill of the README runs as it stands with the plan of the README, and leaves no VM behind, also when it stops
// half way.
func TestReadmeDrill(t *testing.T) {
	drill, plan := block(t, "set -e\ncleanup()"), block(t, "recovery_plans:")
	for name, c := range map[string]struct {
		script string
		code   int
	}{
		"as it stands":         {drill, 0},
		"nobody says done":     {strings.Replace(drill, " --assume-done", "", 1), 12},
		"something else fails": {drill + "false\n", 1},
		"interrupted":          {drill + "kill -TERM $$; sleep 5\n", 130},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := around(t, "hypervisor: none", "hypervisor: none", "")
			write(t, filepath.Join(dir, "site.yaml"), []byte(read(t, filepath.Join(dir, "site.yaml"))+plan))
			must(t, dir, 0, "protect", "web01")
			sh := exec.Command("sh", "-c", c.script)
			sh.Dir, sh.Env = dir, append(os.Environ(), "PATH="+filepath.Dir(binary(t))+":"+os.Getenv("PATH"))
			out, err := sh.CombinedOutput()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if got := sh.ProcessState.ExitCode(); got != c.code {
				t.Errorf("exit code %d, want %d\n%s", got, c.code, out)
			}
			if exists(dir, "rec/web01-test") {
				t.Errorf("the test VM is still there\n%s", out)
			}
			says(t, must(t, dir, 0, "status"), "replicating")
		})
	}
}

// TestReadmeFiveMinutes: the first commands of the README print what it says they do, times and IDs aside.
func TestReadmeFiveMinutes(t *testing.T) {
	needProgram(t, "qemu-io", "qemu-utils")
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "disks"), 0o700); err != nil {
		t.Fatal(err)
	}
	for image, disk := range map[string]string{"ntfs-parent.vhdx.bz2": "web01-os.vhdx", "ntfs-fixed.vhd.bz2": "web01-data.vhd"} {
		f, err := os.Open(filepath.Join("../testdata/disk", image))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		data, err := io.ReadAll(bzip2.NewReader(f))
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "disks", disk), data)
	}
	write(t, filepath.Join(dir, "site.yaml"), []byte(read(t, "../testdata/demo/site.yaml")))
	if err := os.Symlink(binary(t), filepath.Join(dir, "sitrep")); err != nil {
		t.Fatal(err)
	}
	aside := regexp.MustCompile(`\d{4}-\d\d-\d\d [\d:+]+|\d{8}T\d{6}Z-[0-9a-f]{8}|[\d.]+ m?s\b|[\d.]+ MiB sent| +`)
	for _, text := range []string{block(t, "$ ./sitrep check"), block(t, "$ qemu-io -f vhdx")} {
		for _, step := range strings.Split("\n"+text, "\n$ ")[1:] {
			command, want, _ := strings.Cut(step, "\n")
			sh := exec.Command("sh", "-c", command)
			sh.Dir, sh.Env = dir, append(os.Environ(), "TZ=UTC")
			out, err := sh.CombinedOutput()
			if err != nil {
				t.Fatalf("%s: %v\n%s", command, err, out)
			}
			if got, want := aside.ReplaceAllString(strings.TrimSpace(string(out)), "_"), aside.ReplaceAllString(strings.TrimSpace(want), "_"); got != want {
				t.Errorf("%s prints\n%s\nand the README says\n%s", command, got, want)
			}
		}
	}
}
