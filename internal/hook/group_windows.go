package hook

import (
	"os"
	"os/exec"
	"strconv"
)

// ownGroup has cmd and its descendants killed when its context ends.
func ownGroup(cmd *exec.Cmd) {
	cmd.Cancel = func() error {
		if exec.Command("taskkill", "/T", "/F", "/PID", strconv.Itoa(cmd.Process.Pid)).Run() == nil {
			return nil
		}
		return cmd.Process.Kill()
	}
}

func signalOf(*os.ProcessState) string { return "" } // there are none
