package replica

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/plain"
)

// MaxLedger is the number of bytes that a ledger can have; a longer one is not read.
const MaxLedger = 16 << 20

// maxDiskSize keeps every sum of offsets of a disk far from overflowing.
const maxDiskSize = 1 << 60

// Encode writes a state as it lies in a store: JSON, readable by people.
func Encode(s State) ([]byte, error) {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(data, '\n'), nil
}

// Decode reads what Encode wrote. The bytes are foreign: whatever is not a whole, valid ledger of the VM is refused with
// fault.LedgerCorrupt, fault.LedgerVersion or fault.ReplicaForeign. The error names path, for people.
func Decode(data []byte, path, vm string) (State, error) {
	data = plain.JSON(data, false) // others may have written it, and much of it is printed
	var head struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return State{}, corruptAt(err, path, int64(len(data)))
	}
	if head.Format > Format {
		return State{}, fault.New(fault.LedgerVersion, "the ledger has format %d; this version knows formats up to %d",
			head.Format, Format).At(path)
	}
	if head.Format < 1 {
		return State{}, fault.New(fault.LedgerCorrupt, "this is no ledger: it has no format").AtOff(path, 0)
	}
	var s State
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return State{}, corruptAt(err, path, dec.InputOffset())
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return State{}, fault.New(fault.LedgerCorrupt, "something follows the ledger's end").AtOff(path, dec.InputOffset())
	}
	if s.RenameTo == vm { // it has the new name already, and its ledger does not
		s.VM, s.RenameTo = vm, ""
	}
	if s.VM != vm {
		return State{}, fault.New(fault.ReplicaForeign, "the ledger is of VM %q, not of %q", s.VM, vm).At(path)
	}
	if err := s.Check(); err != nil {
		return State{}, fault.Wrap(fault.LedgerCorrupt, err, "the ledger contradicts itself").At(path)
	}
	return s, nil
}

// corruptAt names the byte where reading ended, as exactly as the decoder knows it.
func corruptAt(err error, path string, off int64) error {
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		off = syntax.Offset
	case errors.As(err, &typ):
		off = typ.Offset
	}
	return fault.Wrap(fault.LedgerCorrupt, err, "the ledger is damaged").AtOff(path, off)
}

// Check says what in the state cannot be, whatever happened to the replica.
func (s *State) Check() error {
	if err := CheckName(s.VM); err != nil {
		return fmt.Errorf("VM: %w", err)
	}
	if s.Format != Format {
		return fmt.Errorf("format %d is unknown", s.Format)
	}
	if s.Replica.IsZero() {
		return errors.New("it has no replica id")
	}
	seen := map[string]bool{}
	for _, d := range s.EveryDisk() {
		if err := CheckDisk(*d); err != nil {
			return err
		}
		if key := strings.ToLower(d.Name); seen[key] {
			return fmt.Errorf("disk %q is there twice", d.Name)
		} else {
			seen[key] = true
		}
	}
	points := map[string]bool{}
	for _, p := range s.Points {
		if p.ID == "" || points[p.ID] {
			return fmt.Errorf("recovery point %q is there twice, or has no name", p.ID)
		}
		points[p.ID] = true
	}
	return nil
}

// CheckDisk says what in the entry of a disk cannot be.
func CheckDisk(d Disk) error {
	if err := CheckName(d.Name); err != nil {
		return fmt.Errorf("disk: %w", err)
	}
	if d.Size < 0 || d.Size > maxDiskSize || d.Size%512 != 0 {
		return fmt.Errorf("disk %q cannot have %d bytes", d.Name, d.Size)
	}
	if d.BlockSize < 512 || d.BlockSize > 1<<20 || d.BlockSize&(d.BlockSize-1) != 0 {
		return fmt.Errorf("disk %q cannot have blocks of %d bytes", d.Name, d.BlockSize)
	}
	if d.Seeded < 0 || d.Seeded > d.Size {
		return fmt.Errorf("disk %q cannot be seeded up to %d of %d bytes", d.Name, d.Seeded, d.Size)
	}
	return nil
}

// CheckName refuses a name that could mean anything but one entry of one folder, on any system.
func CheckName(name string) error {
	switch {
	case name == "":
		return errors.New("a name is empty")
	case len(name) > 200:
		return errors.New("a name is longer than 200 bytes")
	case name[0] == '.', strings.ContainsAny(name, "/\\:\x00"), strings.TrimSpace(name) != name:
		return fmt.Errorf("%q is not a name of a file", name)
	}
	return nil
}

// CheckNewVM is CheckName for a VM that is to get a replica: the names of what lies beside the replicas in a store (its identity, with its
// lock, and the folders of probes) are refused. A replica that an earlier version has made by such a name can be opened.
func CheckNewVM(name string) error {
	if strings.HasPrefix(strings.ToLower(name), "sitrep-") {
		return fmt.Errorf("%q is a name that the store uses itself", name)
	}
	return CheckName(name)
}

// CheckSave is the compare of a ledger's compare-and-swap: it says whether next may replace stored, with fault.Fenced
// when another owner has taken over since next was loaded, and fault.LedgerConflict when it was changed otherwise. A next
// with a higher Generation is how an owner takes over.
func CheckSave(stored, next State, path string) error {
	if err := CheckOwner(stored, next.Replica, next.Generation, path); err != nil {
		return err
	}
	if stored.Version != next.Version {
		return fault.New(fault.LedgerConflict, "the ledger has version %d, this run has read version %d",
			stored.Version, next.Version).At(path)
	}
	return nil
}

// CheckOwner says whether a run that opened the replica id at a generation still owns it: fault.Fenced with who took over
// and when, or fault.ReplicaForeign when it is another replica by now.
func CheckOwner(stored State, id hrl.ID, generation uint64, path string) error {
	switch {
	case stored.Replica != id:
		return fault.New(fault.ReplicaForeign, "the replica was removed, and made anew, since this run began").At(path)
	case stored.Generation > generation:
		return fault.New(fault.Fenced, "site %q, host %q, has taken over since %s (generation %d, this run has %d)",
			stored.Owner.Site, stored.Owner.Host, stored.Owner.Since.UTC().Format(time.RFC3339),
			stored.Generation, generation).At(path)
	}
	return nil
}

// CheckTake says whether next may follow stored by Store.Seize: a higher generation, or the same one of the same owner,
// who was interrupted.
func CheckTake(stored, next State, path string) error {
	same := stored.Generation == next.Generation && stored.Owner.Site == next.Owner.Site && stored.Owner.Host == next.Owner.Host
	if next.Generation <= stored.Generation && !same {
		return fault.New(fault.Fenced, "site %q, host %q, owns generation %d since %s; it cannot be taken over with generation %d",
			stored.Owner.Site, stored.Owner.Host, stored.Generation, stored.Owner.Since.UTC().Format(time.RFC3339),
			next.Generation).At(path)
	}
	return CheckSave(stored, next, path)
}

// CheckHome refuses, with fault.Fenced, what the site that replicates the VM must not do while the VM belongs to the recovery
// site: it says who took over, and when. verb names what is refused.
func (s *State) CheckHome(verb string) error {
	if !s.Phase.Away() {
		return nil
	}
	return fault.New(fault.Fenced, "site %q, host %q, took over at %s (generation %d): %s is not possible while the VM is in state %s, since %s",
		s.Owner.Site, s.Owner.Host, s.Owner.Since.UTC().Format(time.RFC3339), s.Generation, verb, s.Phase,
		s.PhaseSince.UTC().Format(time.RFC3339)).Of(s.VM, "")
}

// Retain applies a retention of keep points: the oldest are dropped first, and neither the newest nor those that are held, or claimed (by
// ID), which do not count. points is sorted, oldest first.
func Retain(points []Point, keep int, claimed ...string) (kept, dropped []Point) {
	drop := max(len(points)-max(keep, 1), 0)
	held := func(p Point) bool { return p.Held != "" || slices.Contains(claimed, p.ID) }
	for i, p := range points {
		if held(p) && i < len(points)-1 {
			drop = max(drop-1, 0)
		}
	}
	for i, p := range points {
		if drop > len(dropped) && !held(p) && i < len(points)-1 {
			dropped = append(dropped, p)
		} else {
			kept = append(kept, p)
		}
	}
	return kept, dropped
}
