//go:build !windows

package cmd

import (
	"os"
	"os/exec"
	"runtime"
	"syscall"
)

// selfPath is this program, also when its file was replaced meanwhile.
func selfPath() (string, error) {
	if runtime.GOOS == "linux" {
		return "/proc/self/exe", nil
	}
	return os.Executable()
}

// detach gives cmd a session of its own, which no terminal and no signal to this run's group reaches.
func detach(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }
