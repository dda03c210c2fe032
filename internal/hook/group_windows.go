package hook

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// ownGroup has cmd and its descendants killed when its context ends.
func ownGroup(cmd *exec.Cmd) {
	cmd.Cancel = func() error {
		kill := exec.Command("taskkill", "/T", "/F", "/PID", strconv.Itoa(cmd.Process.Pid))
		kill.Env = cmd.Env
		if kill.Run() == nil {
			return nil
		}
		return cmd.Process.Kill()
	}
}

func signalOf(*os.ProcessState) string { return "" } // there are none

// sameVariable says whether two names are of one environment variable.
func sameVariable(a, b string) bool { return strings.EqualFold(a, b) }

// inherit gives nothing: handles are inherited in other ways here.
func inherit(*exec.Cmd, *os.File) {}
