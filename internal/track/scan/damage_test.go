package scan_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"sitrep/internal/disk"
	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/track"
	"sitrep/internal/track/scan"
)

// file finds the one file of the tracker whose name has a part.
func (v *vm) file(t *testing.T, part string) string {
	t.Helper()
	entries, err := v.fs.ReadDir("/state/vm")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.Contains(e.Name, part) {
			return "/state/vm/" + e.Name
		}
	}
	t.Fatalf("no %s among %v", part, entries)
	return ""
}

// damaged calls check for the VM with bits of every byte of a file flipped in turn, and with the file cut off at every length.
func damaged(t *testing.T, v *vm, name string, check func(what string, at int, v *vm)) {
	t.Helper()
	data, err := durable.ReadFile(v.fs, name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	put := func(what string, at int, content []byte) {
		bad := v.on(v.fs.AfterCrash(crashfs.KeepAll, 0))
		if err := durable.WriteFile(bad.fs, name, content); err != nil {
			t.Fatal(err)
		}
		check(what, at, bad)
	}
	for n := range len(data) {
		put("cut off", n, data[:n])
		for bit := n % 4; bit < 8; bit += 4 {
			flipped := append([]byte(nil), data...)
			flipped[n] ^= 1 << bit
			put("flipped", n*8+bit, flipped)
		}
	}
	put("longer", 0, append(append([]byte(nil), data...), 1))
}

// rightOrLost: the tracker gives the right changes since its position, or none at all.
func rightOrLost(t *testing.T, at hrl.Pos, v *vm) (lost bool, err error) {
	t.Helper()
	tr, err := openSmall(v.fs)
	if err != nil {
		return false, err
	}
	if tr.Position().IsZero() {
		if tr.Reason() == nil {
			return true, errors.New("lost without a reason")
		}
		_, err := tr.Cut(context.Background(), at)
		if !fault.Is(err, fault.PositionLost) {
			return true, err
		}
		return true, nil
	}
	err = v.verifyOpen(tr, at)
	if fault.Is(err, fault.PositionLost) {
		if !tr.Position().IsZero() {
			return true, errors.New("stands at a position that it has lost")
		}
		return true, nil
	}
	return false, err
}

func TestDamage(t *testing.T) {
	t.Parallel()
	v, at := newVM(t, rand.New(rand.NewPCG(3, 3)))
	// Every sum counts: all blocks of a disk become zero, so that a sum that was lost would hide a change.
	v.now["os"] = make([]byte, smallSize)
	if err := durable.WriteFile(v.fs, "/os.img", v.now["os"]); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"position.json", "os.1.sums"} {
		t.Run(part, func(t *testing.T) {
			lost := 0
			damaged(t, v, v.file(t, part), func(what string, n int, bad *vm) {
				l, err := rightOrLost(t, at, bad)
				if err != nil {
					t.Fatalf("%s at %d: %v", what, n, err)
				}
				if l {
					lost++
				}
			})
			if lost == 0 {
				t.Error("no damage was ever noticed")
			}
			gone := v.on(v.fs.AfterCrash(crashfs.KeepAll, 0))
			if err := gone.fs.Remove(v.file(t, part)); err != nil {
				t.Fatal(err)
			}
			tr, err := openSmall(gone.fs)
			if err != nil || !tr.Position().IsZero() {
				t.Errorf("file gone: stands at %v, %v", tr.Position(), err)
			}
		})
	}
}

// TestDamagedRedo damages the redo file of an Advance that was interrupted.
func TestDamagedRedo(t *testing.T) {
	v, at := newVM(t, rand.New(rand.NewPCG(4, 4)))
	to := at.Next()
	v.states[to] = v.now
	for k := 1; ; k++ {
		broken := v.on(v.fs.AfterCrash(crashfs.KeepAll, 0))
		broken.fs.CutAfter(k)
		if advance(broken, at, to) == nil {
			t.Fatal("no crash left a redo file that was needed")
		}
		found := broken.on(broken.fs.AfterCrash(crashfs.KeepAll, 0))
		data, err := durable.ReadFile(found.fs, "/state/vm/position.json", 1<<20)
		if err != nil || !strings.Contains(string(data), `"redo"`) {
			continue
		}
		v = found
		break
	}
	lost := 0
	damaged(t, v, v.file(t, ".redo"), func(what string, n int, bad *vm) {
		l, err := rightOrLost(t, to, bad)
		if err != nil {
			t.Fatalf("%s at %d: %v", what, n, err)
		}
		if !l {
			t.Fatalf("%s at %d: not noticed", what, n)
		}
		lost++
	})
	if lost == 0 {
		t.Error("nothing was damaged")
	}
}

// TestOtherDisks: a position is of the disks that it was taken of.
func TestOtherDisks(t *testing.T) {
	v, at := newVM(t, rand.New(rand.NewPCG(5, 5)))
	all := smallDisks()
	other, renamed := smallDisks(), smallDisks()
	other[0].BlockSize *= 2
	renamed[1].Name = "Data"
	extra := append(smallDisks(), track.Disk{Name: "third", Path: "/os.img", Format: disk.Raw, BlockSize: smallBlock})
	for name, disks := range map[string][]track.Disk{
		"one less": all[:1], "block size": other, "renamed": renamed, "one more": extra,
	} {
		tr, err := scan.Open(v.fs, scan.Config{VM: "vm", Disks: disks, Dir: "/state/vm"})
		if err != nil {
			t.Fatal(err)
		}
		if !tr.Position().IsZero() || tr.Reason() == nil {
			t.Errorf("%s: stands at %v, %v", name, tr.Position(), tr.Reason())
		}
		if _, err := tr.Cut(context.Background(), at); !fault.Is(err, fault.PositionLost) {
			t.Errorf("%s: %v", name, err)
		}
	}
	tr, err := scan.Open(v.fs, scan.Config{VM: "other", Disks: all, Dir: "/state/vm"})
	if err != nil || !tr.Position().IsZero() {
		t.Errorf("other VM: stands at %v, %v", tr.Position(), err)
	}
	if _, err := v.verify(at); err != nil {
		t.Errorf("put right: %v", err)
	}
	for _, name := range []string{"", "..", "a/b", `a\b`} {
		_, err := scan.Open(v.fs, scan.Config{VM: "vm", Disks: []track.Disk{{Name: name, BlockSize: 4096}}, Dir: "/state/vm"})
		if err == nil {
			t.Errorf("disk name %q was taken", name)
		}
	}
}
