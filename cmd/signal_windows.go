package cmd

import (
	"errors"
	"os"
	"syscall"
)

// endingSignals are those that ask a run to end: Ctrl-C and Ctrl-Break, and that the console, the session or the system ends.
func endingSignals() []os.Signal { return []os.Signal{os.Interrupt, syscall.SIGTERM} }

// drainPipeSignals has nothing to do: a write to a pipe that nobody reads is an error here.
func drainPipeSignals(chan os.Signal) {}

// isClosedPipe says whether a write failed because nobody reads the pipe any more.
func isClosedPipe(err error) bool {
	const noData = syscall.Errno(232) // ERROR_NO_DATA
	return errors.Is(err, syscall.ERROR_BROKEN_PIPE) || errors.Is(err, noData)
}
