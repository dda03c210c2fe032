package cmd_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// onTerminal runs sitrep on a terminal of so many columns, and returns its exit code and what the terminal was sent.
func onTerminal(t *testing.T, dir string, columns uint16, answer string, args ...string) (code int, text string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("needs pseudo-terminals: mount -t devpts devpts /dev/pts")
	}
	defer master.Close()
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns})
	}
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(binary(t), args...)
	c.Dir, c.Stdin, c.Stdout, c.Stderr = dir, tty, tty, tty
	c.Env = append(os.Environ(), "LC_ALL=C", "TERM=xterm")
	if _, err := master.WriteString(answer); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	tty.Close()
	out, _ := io.ReadAll(master) // it ends with EIO when nobody has the terminal any more
	_ = c.Wait()                 // see its exit code
	return c.ProcessState.ExitCode(), regexp.MustCompile(`\x1b\[[0-9;?]*[A-Za-z]`).ReplaceAllString(string(out), "")
}

// TestBarFits: a bar is as wide as the terminal, and where one has no room there are lines.
func TestBarFits(t *testing.T) {
	t.Parallel()
	dir := around(t, "hypervisor: none", "hypervisor: none", "")
	must(t, dir, 0, "protect", "web01")
	for columns, bar := range map[uint16]bool{20: false, 61: false, 62: true, 70: true, 120: true} {
		code, text := onTerminal(t, dir, columns, "", "verify", "web01", "--against-source")
		if code != 0 {
			t.Fatalf("exit code %d\n%s", code, text)
		}
		longest := 0
		for _, piece := range regexp.MustCompile(`[\r\n]+`).Split(text, -1) {
			if strings.Contains(piece, "% [") {
				longest = max(longest, len(piece))
			}
		}
		if bar != (longest > 0) || longest >= int(columns) || bar && longest < int(columns)-2 {
			t.Errorf("on %d columns the bar takes %d:\n%q", columns, longest, text)
		}
	}
}

// TestAsksOnTerminal: what removes recovery points asks on a terminal, and only a yes is one.
func TestAsksOnTerminal(t *testing.T) {
	t.Parallel()
	dir := around(t, "hypervisor: none", "hypervisor: none", "")
	must(t, dir, 0, "protect", "web01")
	must(t, dir, 0, "failover", "unplanned", "web01")
	if code, text := onTerminal(t, dir, 80, "n\n", "failover", "commit", "web01"); code == 0 || !strings.Contains(text, "[y/N]") {
		t.Errorf("commit: exit code %d\n%s", code, text)
	}
	must(t, dir, 0, "failover", "undo", "web01")
	for _, args := range [][]string{{"unprotect", "--all"}, {"unprotect", "--cloud", "c"}, {"unprotect", "web01"}} {
		if code, text := onTerminal(t, dir, 80, "n\n", args...); code == 0 || !strings.Contains(text, "Remove 1 replica?") {
			t.Errorf("%v: exit code %d\n%s", args, code, text)
		}
		if _, err := os.Stat(filepath.Join(dir, "store/web01/ledger.json")); err != nil {
			t.Fatalf("%v: %v", args, err)
		}
	}
	if code, text := onTerminal(t, dir, 80, "y\n", "unprotect", "--all"); code != 0 {
		t.Errorf("exit code %d\n%s", code, text)
	}
	if exists(dir, "store/web01/ledger.json") {
		t.Error("the replica is still there")
	}
	if !slices.Contains(strings.Fields(must(t, dir, 0, "status")), "not-protected") {
		t.Error("it is still protected")
	}
}
