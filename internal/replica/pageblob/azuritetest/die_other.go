//go:build !linux

package azuritetest

import "os/exec"

// dieWithUs does nothing where the kernel cannot do it: then a test binary that is killed leaves the server.
func dieWithUs(*exec.Cmd) {}
