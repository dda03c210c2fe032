package durable_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"sitrep/internal/durable"
)

// TestLockNamesItsHolder wants the error of a lock that is held to say by whom, where the kernel knows.
func TestLockNamesItsHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	lock, err := durable.OS().Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	_, err = durable.OS().Lock(path)
	if !errors.Is(err, durable.ErrLocked) {
		t.Fatalf("the error is %v", err)
	}
	if _, err := os.Stat("/proc/locks"); err != nil {
		t.Skip("this kernel does not list its locks")
	}
	var held *durable.LockedError
	if !errors.As(err, &held) || held.PID != os.Getpid() {
		t.Errorf("the error is %v; this is process %d", err, os.Getpid())
	}
}
