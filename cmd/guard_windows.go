package cmd

import (
	"os"
	"os/exec"
	"syscall"
)

// selfPath is this program; a file that runs cannot be replaced.
func selfPath() (string, error) { return os.Executable() }

// detach keeps the console's Ctrl-C and its end from cmd.
func detach(cmd *exec.Cmd) {
	const detached = 0x00000008 // DETACHED_PROCESS
	cmd.SysProcAttr = &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP | detached}
}
