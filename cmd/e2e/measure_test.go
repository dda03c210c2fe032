package e2e_test

import (
	"os"
	"os/exec"
	"strconv"
)

// measureEnv makes this test binary a program that runs another one and writes its peak of memory to the file named.
//
// The kernel counts to a process what the one that started it had in memory at that moment, because the two share it until
// the new program is loaded. So it is started by one that is small.
const measureEnv = "SITREP_E2E_MEASURE"

// measure runs a command and returns its exit code.
func measure(to string, args []string) int {
	c := exec.Command(args[0], args[1:]...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	_ = c.Run() // its exit code tells
	if c.ProcessState == nil || os.WriteFile(to, []byte(strconv.FormatInt(maxRSS(c.ProcessState), 10)), 0o600) != nil {
		return -1
	}
	return c.ProcessState.ExitCode()
}
