package azuritetest

import (
	"os/exec"
	"syscall"
)

// dieWithUs has the kernel end the server when the test binary ends, however it ends.
func dieWithUs(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
