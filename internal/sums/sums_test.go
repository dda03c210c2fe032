package sums_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/zeebo/xxh3"

	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/sums"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func newFile(t testing.TB, fs durable.FS, dir string) durable.File {
	t.Helper()
	f, err := fs.Create(filepath.Join(dir, "sums"))
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// sumOf is a Sum that is not zero.
func sumOf(n uint32) sums.Sum {
	return sums.Of([]byte{1, byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)})
}

// The sum of a block is its xxh3-128 with seed 0, high half first, as xxh128sum prints it.
func TestOf(t *testing.T) {
	if got := sums.Of([]byte("abc")).String(); got != "06b05ab6733a618578af5f94892f3950" {
		t.Errorf("Of(abc) = %s", got)
	}
	for _, n := range []int{0, 1, 4096, 65536, 65537} {
		p := make([]byte, n)
		if !sums.Of(p).IsZero() {
			t.Errorf("%d zeros have a sum", n)
		}
		if n == 0 {
			continue
		}
		for _, i := range []int{0, n / 2, n - 1} {
			p[i] = 1
			if h := xxh3.Hash128(p).Bytes(); sums.Of(p) != sums.Sum(h) || sums.Of(p).IsZero() {
				t.Errorf("%d bytes, one at %d", n, i)
			}
			p[i] = 0
		}
	}
}

func TestSealText(t *testing.T) {
	var l, back sums.Seal
	l.Add(5, sumOf(1))
	text, err := json.Marshal(l)
	must(t, err)
	must(t, json.Unmarshal(text, &back))
	if back != l || len(text) != 34 || l == (sums.Seal{}) {
		t.Errorf("%s came back as %v", text, back)
	}
	for _, bad := range []string{"", "0", strings.Repeat("0", 31), strings.Repeat("0", 33), strings.Repeat("0", 34),
		strings.Repeat("0", 1000), strings.Repeat("x", 32), strings.Repeat("0", 31) + "g"} {
		if err := back.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is taken for a seal", bad)
		}
	}
	if back != l {
		t.Error("a bad text changed the seal")
	}
}

func FuzzSealText(f *testing.F) {
	f.Add([]byte(strings.Repeat("0f", 16)))
	f.Fuzz(func(t *testing.T, text []byte) {
		var l sums.Seal
		if l.UnmarshalText(text) == nil {
			if again, _ := l.MarshalText(); !bytes.EqualFold(again, text) {
				t.Errorf("%q became %q", text, again)
			}
		}
	})
}

func TestSealTellsTablesApart(t *testing.T) {
	seal := func(m map[int64]sums.Sum) (l sums.Seal) {
		for i, s := range m {
			l.Add(i, s)
		}
		return l
	}
	a, b := sumOf(1), sumOf(2)
	all := []map[int64]sums.Sum{
		{}, {0: a}, {1: a}, {0: b}, {0: a, 1: a}, {0: a, 1: b}, {0: b, 1: a}, {1: a, 2: b}, {1 << 40: a},
	}
	for i := range all {
		for j := range i {
			if seal(all[i]) == seal(all[j]) {
				t.Errorf("%v and %v have one seal", all[i], all[j])
			}
		}
	}
	if seal(map[int64]sums.Sum{0: a, 7: {}}) != seal(all[1]) {
		t.Error("a zero sum counts")
	}
}

// table is a Table beside the map that it should equal, with the seal kept up to date by the changes alone.
type table struct {
	*sums.Table
	want map[int64]sums.Sum
	seal sums.Seal
}

const blocks = 5000

func (m *table) set(i int64, s sums.Sum) {
	m.seal.Remove(i, m.want[i])
	m.seal.Add(i, s)
	m.want[i] = s
	if s.IsZero() {
		delete(m.want, i)
	}
}

func (m *table) step(t *testing.T, rng *rand.Rand) {
	first := rng.Int64N(blocks)
	n := min(1+rng.Int64N(1<<rng.IntN(12)), blocks-first)
	switch rng.IntN(5) {
	case 0:
		must(t, m.Clear(first, n))
		for i := range n {
			m.set(first+i, sums.Sum{})
		}
	case 1:
		got := make([]sums.Sum, n)
		got[0] = sumOf(9) // must be overwritten
		must(t, m.Load(first, got))
		for i, s := range got {
			if s != m.want[first+int64(i)] {
				t.Fatalf("block %d: %v, want %v", first+int64(i), s, m.want[first+int64(i)])
			}
		}
	default:
		in := make([]sums.Sum, n)
		fill := sums.Sum{}
		for i := range in {
			if rng.IntN(200) == 0 { // runs of zeros and of sums, so that some zero runs are long
				fill = sums.Sum{}
				if rng.IntN(2) == 0 {
					fill = sumOf(rng.Uint32())
				}
			}
			in[i] = fill
			m.set(first+int64(i), fill)
		}
		must(t, m.Store(first, in))
	}
}

func (m *table) check(t *testing.T) {
	t.Helper()
	got := map[int64]sums.Sum{}
	last := int64(-1)
	must(t, m.All(blocks, func(i int64, s sums.Sum) error {
		if i <= last || s.IsZero() {
			t.Errorf("block %d, %v after %d", i, s, last)
		}
		last = i
		got[i] = s
		return nil
	}))
	if !maps.Equal(got, m.want) {
		t.Fatalf("%d sums, want %d", len(got), len(m.want))
	}
	if seal, err := m.Seal(blocks); err != nil || seal != m.seal {
		t.Fatalf("seal %v, %v; kept up to date %v", seal, err, m.seal)
	}
	half := 0
	must(t, m.All(blocks/2, func(i int64, _ sums.Sum) error { half++; return nil }))
	for i := range m.want {
		if i < blocks/2 {
			half--
		}
	}
	if half != 0 {
		t.Fatalf("the first half has %d sums too many", half)
	}
	m.checkNext(t)
}

// checkNext: the runs of Next hold every sum that is not zero.
func (m *table) checkNext(t *testing.T) {
	t.Helper()
	left := maps.Clone(m.want)
	for at := int64(0); ; {
		start, n, err := m.Next(at, blocks)
		must(t, err)
		if n == 0 {
			break
		}
		if start < at || start+n > blocks {
			t.Fatalf("run %d, %d after %d", start, n, at)
		}
		maps.DeleteFunc(left, func(i int64, _ sums.Sum) bool { return i >= start && i < start+n })
		at = start + n
	}
	if len(left) > 0 {
		t.Fatalf("Next passes over %v", slices.Sorted(maps.Keys(left)))
	}
}

func TestTableAgainstMap(t *testing.T) {
	for name, fs := range map[string]durable.FS{"memory": crashfs.New(), "system": durable.OS()} {
		t.Run(name, func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 0))
			dir := "/"
			if name == "system" {
				dir = t.TempDir()
			}
			m := &table{Table: sums.NewTable(newFile(t, fs, dir)), want: map[int64]sums.Sum{}}
			m.check(t)
			for range 300 {
				m.step(t, rng)
				if rng.IntN(10) == 0 {
					m.check(t)
				}
			}
			m.check(t)
		})
	}
}

func TestStoreMakesHoles(t *testing.T) {
	fs := crashfs.New()
	f := newFile(t, fs, "/")
	table := sums.NewTable(f)
	in := make([]sums.Sum, 1<<16)
	for i := range in {
		in[i] = sumOf(uint32(i))
	}
	must(t, table.Store(0, in))
	clear(in[256 : len(in)-256]) // all but the first and the last page
	must(t, table.Store(0, in))
	if got := fs.Allocated(); got != 2*4096 {
		t.Errorf("%d bytes are allocated, want two pages", got)
	}
	must(t, table.Store(1<<30, make([]sums.Sum, 1000)))
	if size, _ := f.Size(); size != 1<<20 {
		t.Errorf("zero sums after the end made the file %d bytes long", size)
	}
	got := make([]sums.Sum, len(in))
	must(t, table.Load(0, got))
	if !slices.Equal(got, in) {
		t.Error("other sums came back")
	}
}

// A table that a crash left with a part of a sum at its end is still read.
func TestTornEnd(t *testing.T) {
	f := newFile(t, crashfs.New(), "/")
	table := sums.NewTable(f)
	must(t, table.Store(0, []sums.Sum{sumOf(1), sumOf(2)}))
	must(t, f.Truncate(sums.Size+5))
	got := make([]sums.Sum, 3)
	must(t, table.Load(0, got))
	half := sumOf(2)
	clear(half[5:])
	if want := []sums.Sum{sumOf(1), half, {}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	var n int
	must(t, table.All(100, func(int64, sums.Sum) error { n++; return nil }))
	if n != 2 {
		t.Errorf("%d sums", n)
	}
}

func TestErrorsComeThrough(t *testing.T) {
	fs := crashfs.New()
	table := sums.NewTable(newFile(t, fs, "/"))
	must(t, table.Store(0, []sums.Sum{sumOf(1)}))
	stop := errors.New("stop")
	if err := table.All(10, func(int64, sums.Sum) error { return stop }); err != stop {
		t.Error(err)
	}
	for kind, call := range map[crashfs.Kind]func() error{
		crashfs.Read:   func() error { _, err := table.Seal(10); return err },
		crashfs.Extent: func() error { _, _, err := table.Next(0, 10); return err },
		crashfs.Stat:   func() error { _, _, err := table.Next(0, 10); return err },
		crashfs.Write:  func() error { return table.Store(0, []sums.Sum{sumOf(1)}) },
		crashfs.Zero:   func() error { return table.Store(0, make([]sums.Sum, 4096)) },
	} {
		fs.FailOn(func(op crashfs.Op) error {
			if op.Kind == kind {
				return syscall.EIO
			}
			return nil
		})
		if err := call(); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}

// A table of 2^26 blocks (4 TiB in blocks of 64 KiB) that is nearly empty takes no time to walk.
func TestSparseTableIsFast(t *testing.T) {
	const end = int64(1) << 26
	at := []int64{0, 1 << 20, 1<<25 + 77, end - 1}
	for name, fs := range map[string]durable.FS{"memory": crashfs.New(), "system": durable.OS()} {
		t.Run(name, func(t *testing.T) {
			dir := "/"
			if name == "system" {
				dir = t.TempDir()
			}
			f := newFile(t, fs, dir)
			table := sums.NewTable(f)
			var want sums.Seal
			for _, i := range at {
				must(t, table.Store(i, []sums.Sum{sumOf(uint32(i))}))
				want.Add(i, sumOf(uint32(i)))
			}
			if e, err := f.Extent(1<<20, 1<<20); err != nil || e.Len < 1<<20 {
				t.Skipf("this filesystem keeps no holes: %v, %v", e, err)
			}
			start := time.Now()
			got, err := table.Seal(end)
			if err != nil || got != want {
				t.Errorf("seal %v, %v, want %v", got, err, want)
			}
			if took := time.Since(start); took > time.Second {
				t.Errorf("it took %v", took)
			}
			if next, n, err := table.Next(1<<25+4096, end); err != nil || n == 0 || next <= 1<<25+77 || next > end-1 {
				t.Errorf("Next: %d, %d, %v", next, n, err)
			}
		})
	}
}

func BenchmarkOf(b *testing.B) {
	p := bytes.Repeat([]byte{1, 2, 3, 4}, 16<<10)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		sums.Of(p)
	}
}
