package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"testing"

	"sitrep/internal/fault"
)

// contract is the exit code of every kind of error.
func contract() map[int][]fault.Code {
	return map[int][]fault.Code{
		1: {fault.IO, fault.NoSpace, fault.SourceReserve, fault.PauseLimit, fault.Busy, fault.DiskModified, fault.StoreNotMounted, fault.LedgerConflict},
		2: {fault.UsageError, fault.SiteInvalid, fault.VMUnknown},
		3: {fault.PrerequisiteFail},
		4: {fault.Permission, fault.NotFound, fault.DiskMissing, fault.DiskFormat, fault.DiskCorrupt, fault.DiskUnsupported,
			fault.ChainBroken, fault.DiskShrunk, fault.LogVersion, fault.StoreForeign, fault.ReplicaMissing, fault.ReplicaForeign,
			fault.LedgerCorrupt, fault.LedgerVersion, fault.PointMissing},
		5: {fault.LogCorrupt, fault.LogTorn, fault.LogForeign, fault.LogGap, fault.PositionLost, fault.ReplicaChanged,
			fault.ReplicaCorrupt, fault.ResyncRequired, fault.LogLimit},
		6:   {fault.Fenced, fault.NotProtected, fault.AlreadyProtected, fault.WrongState, fault.Exists},
		7:   {fault.Difference},
		11:  {fault.RunLocked, fault.ReplicaHeld, fault.GaveWay},
		12:  {fault.ManualAction},
		130: {fault.Interrupted},
	}
}

// TestExitCodes holds the contract's table: the left column is what scripts see.
func TestExitCodes(t *testing.T) {
	for want, codes := range contract() {
		for _, c := range codes {
			e := fault.New(c, "x")
			for _, err := range []error{e, fmt.Errorf("wrapped: %w", e), errors.Join(e, errors.New("other"))} {
				if got := exitCode(err); got != want {
					t.Errorf("%s: exit code %d, want %d (%v)", c, got, want, err)
				}
			}
		}
	}
	plain := map[error]int{
		nil:                    0,
		errors.New("any"):      1,
		io.ErrUnexpectedEOF:    1,
		fs.ErrPermission:       4,
		context.Canceled:       130,
		errCancelledRead(t):    130,
		fault.New("other", ""): 1,
	}
	for err, want := range plain {
		if got := exitCode(err); got != want {
			t.Errorf("%v: exit code %d, want %d", err, got, want)
		}
	}
}

// errCancelledRead is what a layer makes of a read that the context ended.
func errCancelledRead(*testing.T) error {
	return fault.Wrap(fault.DiskCorrupt, context.Canceled, "reading")
}

// TestGravest holds the order 4, 6, 7, 5, 3, 1, 12, 11, 0 of several VMs.
func TestGravest(t *testing.T) {
	order := []error{
		context.Canceled,
		fault.New(fault.UsageError, ""),
		fault.New(fault.DiskMissing, ""),
		fault.New(fault.WrongState, ""),
		fault.New(fault.Difference, ""),
		fault.New(fault.LogGap, ""),
		fault.New(fault.PrerequisiteFail, ""),
		fault.New(fault.IO, ""),
		fault.New(fault.ManualAction, ""),
		fault.New(fault.RunLocked, ""),
		nil,
	}
	for i, a := range order {
		for j, b := range order {
			want := exitCode(order[min(i, j)])
			if got := exitCode(gravest([]error{a, b})); got != want {
				t.Errorf("of %d and %d: %d, want %d", exitCode(a), exitCode(b), got, want)
			}
		}
	}
	if gravest(nil) != nil {
		t.Error("no errors have a gravest one")
	}
}

// TestPrintedCommands: every command that an error's advice names can be run as it stands.
func TestPrintedCommands(t *testing.T) {
	p := testApp()
	app := p.app()
	app.Setup()
	for _, codes := range contract() {
		for _, c := range codes {
			for _, verb := range []string{"protect", "replicate", "delta", "apply", "verify", "unprotect", "status"} {
				line := fault.Fill(c.Lookup().Command, "web01", verb)
				words := strings.Fields(line)
				if len(words) == 0 {
					continue
				}
				cmd := app.Command(words[1])
				if words[0] != "sitrep" || cmd == nil {
					t.Errorf("%s: %q is no command", c, line)
					continue
				}
				for _, w := range words[2:] {
					if name, isFlag := strings.CutPrefix(w, "--"); isFlag && find(cmd.Flags, name) == nil {
						t.Errorf("%s: %q: there is no flag %s", c, line, w)
					}
				}
			}
		}
	}
}
