package cmd

import (
	"slices"

	"sitrep/internal/fault"
)

// The exit codes. Scripts depend on them.
const (
	exitDone         = 0
	exitFailed       = 1
	exitUsage        = 2
	exitPrerequisite = 3
	exitCritical     = 4
	exitResync       = 5
	exitRefused      = 6
	exitDiffers      = 7
	exitLocked       = 11
	exitWaits        = 12
	exitInterrupted  = 130
)

// exitCode is the one place where an error becomes an exit code.
func exitCode(err error) int {
	if err == nil {
		return exitDone
	}
	if fault.Cancelled(err) {
		return exitInterrupted
	}
	switch fault.FromOS(err).Class() {
	case fault.Critical:
		return exitCritical
	case fault.Resync:
		return exitResync
	case fault.Refused:
		return exitRefused
	case fault.Differs:
		return exitDiffers
	case fault.Prerequisite:
		return exitPrerequisite
	case fault.Usage:
		return exitUsage
	case fault.Locked:
		return exitLocked
	case fault.Waits:
		return exitWaits
	}
	return exitFailed
}

// gravity is the order in which the codes of several VMs outweigh each other, the gravest first.
func gravity() []int {
	return []int{exitInterrupted, exitUsage, exitCritical, exitRefused, exitDiffers, exitResync, exitPrerequisite,
		exitFailed, exitWaits, exitLocked, exitDone}
}

// gravest returns the error whose exit code outweighs the others, the first of them; nil when there is none.
func gravest(errs []error) error {
	var worst error
	order := gravity()
	for _, err := range errs {
		if slices.Index(order, exitCode(err)) < slices.Index(order, exitCode(worst)) {
			worst = err
		}
	}
	return worst
}
