//go:build !windows

package cmd

import (
	"errors"
	"os"
	"os/signal"
	"syscall"
)

// endingSignals are those that ask a run to end.
func endingSignals() []os.Signal {
	list := []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT}
	if !signal.Ignored(syscall.SIGHUP) {
		list = append(list, syscall.SIGHUP)
	}
	return list
}

// drainPipeSignals makes a write to a pipe that nobody reads an error instead of the end of the run. It is not ignored, which
// the operator's programs would inherit.
func drainPipeSignals(c chan os.Signal) { signal.Notify(c, syscall.SIGPIPE) }

// isClosedPipe says whether a write failed because nobody reads the pipe any more.
func isClosedPipe(err error) bool { return errors.Is(err, syscall.EPIPE) }
