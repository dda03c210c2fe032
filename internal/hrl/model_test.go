package hrl_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/hrl"
	"sitrep/internal/sums"
)

// scenario writes a log of random records and keeps what a disk of 7s becomes by it.
type scenario struct {
	r       *rand.Rand
	id      hrl.Identity
	w       *hrl.Writer
	disk    []byte
	touched block.Set
}

func newScenario(seed uint64) *scenario {
	r := rand.New(rand.NewPCG(seed, 5))
	bs := int64(512) << r.IntN(6)
	size := r.Int64N(200*bs) + 1
	return &scenario{r: r, id: identity(size, bs), disk: bytes.Repeat([]byte{7}, int(size))}
}

// step appends one random record, which may be refused when it overlaps.
func (s *scenario) step() error {
	bs := s.id.BlockSize
	first := s.r.Int64N(block.Count(s.id.Size, bs))
	at := block.Range{Off: first * bs, Len: min((1+s.r.Int64N(12))*bs, s.id.Size-first*bs)}
	_, overlaps := s.touched.Next(at)
	p := noise(s.r, at.Len)
	var err error
	if s.r.IntN(3) == 0 {
		clear(p)
		err = s.w.Zero(at)
	} else {
		for b := range block.NewSet(at).Chunks(bs) {
			if s.r.IntN(4) == 0 { // blocks of zeros in the middle of data
				clear(p[b.Off-at.Off : b.End()-at.Off])
			}
		}
		var known []sums.Sum
		if s.r.IntN(2) == 0 {
			for b := range block.NewSet(at).Chunks(bs) {
				known = append(known, sums.Of(p[b.Off-at.Off:b.End()-at.Off]))
			}
		}
		err = s.w.Append(at.Off, p, known)
	}
	if overlaps {
		if err == nil {
			return fmt.Errorf("%v overlaps and was not refused", at)
		}
		return nil
	}
	if err == nil {
		s.touched.Add(at)
		copy(s.disk[at.Off:], p)
	}
	return err
}

// check compares a sealed log with the model, in the eyes of our reader and of a plain one.
func (s *scenario) check(f durable.File, info hrl.Info) error {
	l, err := hrl.Open(f)
	if err != nil {
		return err
	}
	got := bytes.Repeat([]byte{7}, len(s.disk))
	if err := replay(l, got); err != nil {
		return err
	}
	plain := bytes.Repeat([]byte{7}, len(s.disk))
	if err := specReplay(f, plain); err != nil {
		return err
	}
	if !bytes.Equal(got, s.disk) || !bytes.Equal(plain, s.disk) {
		return fmt.Errorf("another content; plain reader equal: %v", bytes.Equal(plain, s.disk))
	}
	i := l.Info()
	if *i.Identity != s.id || i.DataBytes+i.ZeroBytes != s.touched.Bytes() || !i.Sealed || i.Size != info.Size || i.Entries != info.Entries {
		return fmt.Errorf("%+v", i)
	}
	return s.checkRecords(l)
}

func (s *scenario) checkRecords(l *hrl.Log) error {
	var all block.Set
	for r, err := range l.Records(context.Background()) {
		if err != nil {
			return err
		}
		all.Add(r.Range)
		for i, sum := range r.Sums {
			b := block.Nth(int64(i), s.id.BlockSize, r.Len)
			if sums.Of(s.disk[r.Off+b.Off:r.Off+b.End()]) != sum {
				return fmt.Errorf("sum %d of %v", i, r.Range)
			}
		}
		if r.Zero != (r.Sums == nil) {
			return fmt.Errorf("%v: zero %v with %d sums", r.Range, r.Zero, len(r.Sums))
		}
	}
	if !slices.Equal(slices.Collect(all.All()), slices.Collect(s.touched.All())) {
		return fmt.Errorf("the records cover other ranges")
	}
	return nil
}

func TestModel(t *testing.T) {
	t.Parallel()
	base := rand.Uint64()
	dir := t.TempDir()
	for n := range uint64(40) {
		seed := base + n
		if err := model(dir, seed); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func model(dir string, seed uint64) (err error) {
	s := newScenario(seed)
	name := filepath.Join(dir, fmt.Sprint(seed))
	if s.w, err = hrl.Create(durable.OS(), name, s.id); err != nil {
		return err
	}
	defer s.w.Abort()
	for range s.r.IntN(200) {
		if err := s.step(); err != nil {
			return err
		}
		if s.r.IntN(30) == 0 {
			if err := s.w.Commit(); err != nil {
				return err
			}
		}
	}
	info, err := s.w.Seal()
	if err != nil {
		return err
	}
	f, err := durable.OS().Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return s.check(f, info)
}

// TestConcurrentAppend has several goroutines append to one log.
func TestConcurrentAppend(t *testing.T) {
	const bs, blocks = 4096, 4000
	name := filepath.Join(t.TempDir(), "x")
	w := create(t, durable.OS(), name, identity(blocks*bs, bs))
	want := noise(rand.New(rand.NewPCG(8, 8)), blocks*bs)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := g; i < blocks; i += 4 {
				if err := w.Append(int64(i)*bs, want[i*bs:(i+1)*bs], nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		for range 5 {
			if err := w.Commit(); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	if _, err := w.Seal(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := replayBytes(readFile(t, name), got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("another content: %v", err)
	}
}

// crashRun writes one log on fs until an operation fails, and returns the contents of each commit, as far as it came.
type crashRun struct {
	name     string
	created  bool
	states   [][]byte // what a disk of 7s is by each commit, the last one perhaps not acknowledged
	acked    int      // number of the states that were acknowledged
	sealed   bool
	sealable bool // Seal was begun
}

func runToCrash(fs durable.FS, seed uint64) crashRun {
	s := newScenario(seed)
	c := crashRun{name: "/disks/x.hrl"}
	c.states = append(c.states, bytes.Clone(s.disk))
	if fs.MkdirAll("/disks") != nil {
		return c
	}
	w, err := hrl.Create(fs, c.name, s.id)
	if err != nil {
		return c
	}
	c.created, c.acked, s.w = true, 1, w
	for range 3 {
		for range 8 {
			if s.step() != nil {
				return c
			}
		}
		c.states = append(c.states, bytes.Clone(s.disk))
		if w.Commit() != nil {
			return c
		}
		c.acked++
	}
	if s.step() != nil {
		return c
	}
	c.states = append(c.states, bytes.Clone(s.disk))
	c.sealable = true
	if _, err := w.Seal(); err == nil {
		c.sealed = true
		c.acked++
	}
	return c
}

// found checks that what a crash left is what the last acknowledged commit wrote, or a later one.
func (c crashRun) found(fsys durable.FS) error {
	f, err := fsys.Open(c.name)
	if err != nil {
		if !c.created && isMissing(err) {
			return nil
		}
		return err
	}
	defer f.Close()
	l, err := hrl.Open(f)
	if err != nil {
		return err
	}
	got := bytes.Repeat([]byte{7}, len(c.states[0]))
	if err := replay(l, got); err != nil {
		return err
	}
	info := l.Info()
	if c.sealed && !info.Sealed || info.Sealed && !c.sealable {
		return fmt.Errorf("sealed: %v", info.Sealed)
	}
	if info.Sealed {
		return sameContent(got, c.states[len(c.states)-1:])
	}
	return sameContent(got, c.states[max(c.acked-1, 0):])
}

func sameContent(got []byte, states [][]byte) error {
	for _, want := range states {
		if bytes.Equal(got, want) {
			return nil
		}
	}
	return fmt.Errorf("a content that was never committed, or an earlier one")
}

// TestCrash cuts the writing of a log at every operation.
func TestCrash(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	whole := crashfs.New()
	if c := runToCrash(whole, seed); !c.sealed {
		t.Fatalf("seed %d: the run does not end", seed)
	}
	log := whole.Log()
	for k := 1; k <= len(log); k++ {
		fs := crashfs.New()
		fs.CutAfter(k)
		c := runToCrash(fs, seed)
		for _, policy := range crashfs.Policies() {
			if policy == crashfs.ProcessKill && isHeader(log[k-1]) {
				continue // it stops at any byte, but a kill does not take effect within a sector
			}
			for n := range uint64(20) {
				if err := c.found(fs.AfterCrash(policy, n)); err != nil {
					t.Fatalf("seed %d, cut at operation %d, %v %d: %v", seed, k, policy, n, err)
				}
			}
		}
	}
}

// isHeader says whether an operation writes what changes in a header.
func isHeader(op crashfs.Op) bool { return op.Kind == crashfs.Write && op.Off == 0 && op.Len == 512 }

func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
