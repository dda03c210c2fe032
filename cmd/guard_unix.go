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

// hookPipe is a pipe whose second end the freeze hook inherits, and whose first end the guard gets.
func hookPipe() (ends, hook *os.File, err error) { return os.Pipe() }

// hookEnds is the guard's end of it.
func hookEnds() *os.File {
	syscall.CloseOnExec(3)
	return os.NewFile(3, "freeze hook")
}
