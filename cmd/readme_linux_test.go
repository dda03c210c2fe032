package cmd_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
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
