//go:build !windows

package hook

import (
	"os"
	"os/exec"
	"syscall"
)

// ownGroup makes cmd the leader of a process group, which is killed as a whole when its context ends. It also keeps a
// Ctrl-C on the terminal from the program: sitrep decides about its end.
func ownGroup(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}

func signalOf(s *os.ProcessState) string {
	if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return w.Signal().String()
	}
	return ""
}

// sameVariable says whether two names are of one environment variable.
func sameVariable(a, b string) bool { return a == b }

// inherit gives cmd a file as descriptor 3.
func inherit(cmd *exec.Cmd, f *os.File) { cmd.ExtraFiles = []*os.File{f} }
