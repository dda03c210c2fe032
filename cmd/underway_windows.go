package cmd

import (
	"errors"
	"os"
)

// raiseSign makes none: programs inherit no file here, so that nobody can wait for a freeze hook that outlives its run.
func raiseSign(string) (*os.File, error) { return nil, nil }

func signIsUp(string) (bool, error) { return false, nil }

// endHolders cannot tell here who has a file open.
func endHolders(string) error { return errors.New("this system does not tell who that is") }
