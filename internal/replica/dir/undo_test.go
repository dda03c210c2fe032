package dir_test

import (
	"bytes"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sitrep/internal/block"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/replica/dir"
)

// TestRottenIsNotPreserved has a block rot in the pages, or in a hole of them, before it is overwritten. It goes into no undo log
// as if it were good: a delta is refused before anything is done; where pages are overwritten all the same, no point shows it.
func TestRottenIsNotPreserved(t *testing.T) {
	for name, x := range map[string]struct {
		change func(*replica.State)
		refuse bool // nothing is preserved
		hidden bool // the point does not show the block, if it was the block that rotted and not its sum
		none   bool // the point does not show anything then
	}{
		"delta":             {change: func(*replica.State) {}, refuse: true},
		"marked":            {change: func(s *replica.State) { s.Phase = replica.ResyncRequired }, refuse: true},
		"failover":          {change: func(s *replica.State) { s.Phase = replica.FailoverStarted }, hidden: true},
		"resynchronization": {change: func(s *replica.State) { s.Phase, s.Resync = replica.Resynchronizing, &replica.Resync{} }, hidden: true},
		"deep, sums sealed": {hidden: true, change: func(s *replica.State) {
			s.Phase, s.Resync = replica.Resynchronizing, &replica.Resync{Deep: true, Sealed: map[string]bool{"os": true}}
		}},
		"deep, sums in doubt": {none: true, change: func(s *replica.State) { s.Phase, s.Resync = replica.Resynchronizing, &replica.Resync{Deep: true} }},
	} {
		for _, hole := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				fs, h := grown(t, false)
				r, err := dir.New(fs, root).Open(t.Context(), h.VM)
				check(t, err)
				defer r.Close()
				s, err := r.Ledger().Load(t.Context())
				check(t, err)
				bad, good := rot(t, fs, s, hole)
				to := s.Applied.Next()
				x.change(&s)
				before := names(t, fs, root+"/vm/points")
				set := block.NewSet(bad, good)
				err = r.Points().Preserve(t.Context(), s, to, map[string]*block.Set{"os": set}, false)
				if x.refuse {
					wantCode(t, err, fault.ReplicaCorrupt)
					if e := fault.Find(err); e.Disk != "os" || e.Off != bad.Off {
						t.Errorf("%v", err)
					}
					if after := names(t, fs, root+"/vm/points"); !slices.Equal(after, before) {
						t.Errorf("before: %q, after: %q", before, after)
					}
					return
				}
				check(t, err)
				fs = fs.AfterCrash(crashfs.DropUnsynced, 0) // what was preserved is durable
				want := make([]byte, good.Len)
				readAt(t, fs, root+"/vm/os.vhd", want, good.Off)
				overwrite(t, fs, bad)
				overwrite(t, fs, good)
				s.Applying = &replica.Span{From: s.Applied, To: to}
				if x.none && !hole {
					unseen(t, fs, s)
					return
				}
				seen(t, fs, s, bad, good, want, x.hidden && !hole)
			})
		}
	}
}

// unseen has the newest point of s refused: nothing proves what it holds.
func unseen(t *testing.T, fs *crashfs.FS, s replica.State) {
	t.Helper()
	r, err := dir.New(fs, root).View(t.Context(), s.VM)
	check(t, err)
	defer r.Close()
	id := s.Points[len(s.Points)-1].ID
	_, err = r.Points().Open(t.Context(), s, id)
	wantCode(t, err, fault.PointDamaged)
	lost, err := replica.UnprovenPoints(t.Context(), r, s)
	check(t, err)
	if !slices.Equal(lost, []string{id}) {
		t.Errorf("the points without a proof are %q", lost)
	}
}

// seen looks at the newest point of s.
func seen(t *testing.T, fs *crashfs.FS, s replica.State, bad, good block.Range, want []byte, hidden bool) {
	t.Helper()
	r, err := dir.New(fs, root).View(t.Context(), s.VM)
	check(t, err)
	defer r.Close()
	i := slices.IndexFunc(s.Points, func(p replica.Point) bool { return p.At == s.Applied })
	v, err := r.Points().Open(t.Context(), s, s.Points[i].ID)
	check(t, err)
	defer v.Close()
	d, err := v.Disk("os")
	check(t, err)
	got := make([]byte, good.Len)
	if _, err := d.ReadAt(got, good.Off); err != nil || !bytes.Equal(got, want) {
		t.Errorf("a block that was whole is not shown: %v", err)
	}
	_, err = d.ReadAt(make([]byte, bad.Len), bad.Off)
	if !hidden {
		check(t, err)
		return
	}
	wantCode(t, err, fault.ReplicaCorrupt)
	if e, err := d.Extent(bad.Off, bad.Len); err != nil || e.Kind != block.Data {
		t.Errorf("what is rotten is left out by who reads data only: %+v, %v", e, err)
	}
}

// rot spoils a block of the pages of the disk os, or the sum of one that is a hole, and returns it and one that is whole.
func rot(t *testing.T, fs *crashfs.FS, s replica.State, hole bool) (bad, good block.Range) {
	t.Helper()
	bs := s.Disk("os").BlockSize
	f, err := fs.Open(root + "/vm/os.vhd")
	check(t, err)
	defer f.Close()
	for i := range s.Disk("os").Size / bs {
		b := block.Range{Off: i * bs, Len: bs}
		e, err := f.Extent(b.Off, b.Len)
		check(t, err)
		isHole := e.Kind == block.Zero && e.Len == bs
		switch {
		case isHole == hole && bad.Empty():
			bad = b
		case !isHole && good.Empty():
			good = b
		}
	}
	if bad.Empty() || good.Empty() {
		t.Fatalf("the disk has no blocks for this test: %v, %v", bad, good)
	}
	if hole {
		spoil(t, fs, root+"/vm/os.sums", bad.Off/bs*16)
	} else {
		spoil(t, fs, root+"/vm/os.vhd", bad.Off+7)
	}
	return bad, good
}

func overwrite(t *testing.T, fs *crashfs.FS, r block.Range) {
	t.Helper()
	f, err := fs.OpenRW(root + "/vm/os.vhd")
	check(t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte{0xA5}, int(r.Len)), r.Off)
	check(t, err)
	check(t, f.Close())
}

func readAt(t *testing.T, fs *crashfs.FS, path string, p []byte, off int64) {
	t.Helper()
	f, err := fs.Open(path)
	check(t, err)
	_, err = f.ReadAt(p, off)
	check(t, err)
	check(t, f.Close())
}

// TestRottenListDamaged: without the list nobody knows what of the point is good.
func TestRottenListDamaged(t *testing.T) {
	fs, h := grown(t, false)
	r, err := dir.New(fs, root).Open(t.Context(), h.VM)
	check(t, err)
	defer r.Close()
	s, err := r.Ledger().Load(t.Context())
	check(t, err)
	bad, _ := rot(t, fs, s, false)
	s.Phase = replica.FailoverStarted
	to := s.Applied.Next()
	check(t, r.Points().Preserve(t.Context(), s, to, map[string]*block.Set{"os": block.NewSet(bad)}, false))
	write(t, fs, listOf(s.Applied), []byte("[{"))
	s.Applying = &replica.Span{From: s.Applied, To: to}
	_, err = r.Points().Open(t.Context(), s, s.Points[len(s.Points)-1].ID)
	wantCode(t, err, fault.PointMissing)
	if e := fault.Find(err); !strings.Contains(e.Cause, "damaged") { // "there is no such recovery point" would be wrong
		t.Errorf("the cause is %q", e.Cause)
	}
}

func listOf(at hrl.Pos) string {
	return filepath.Join(root, "vm/points", at.String(), "os.rotten.json")
}
