package block_test

import (
	"bytes"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"sitrep/internal/block"
)

func TestRange(t *testing.T) {
	const top = math.MaxInt64
	for _, tt := range []struct {
		a, b, want block.Range
	}{
		{block.Range{Off: 0, Len: 10}, block.Range{Off: 5, Len: 10}, block.Range{Off: 5, Len: 5}},
		{block.Range{Off: 0, Len: 10}, block.Range{Off: 10, Len: 10}, block.Range{Off: 10}},
		{block.Range{Off: 0, Len: 10}, block.Range{Off: 20, Len: 10}, block.Range{Off: 20}},
		{block.Range{Off: 3, Len: 2}, block.Range{Off: 0, Len: top}, block.Range{Off: 3, Len: 2}},
		{block.Range{Off: top - 1, Len: 1}, block.Range{Off: 0, Len: top}, block.Range{Off: top - 1, Len: 1}},
		{block.Range{Off: 7}, block.Range{Off: 0, Len: 10}, block.Range{Off: 7}},
	} {
		if got := tt.a.Intersect(tt.b); got != tt.want {
			t.Errorf("%v.Intersect(%v) = %v, want %v", tt.a, tt.b, got, tt.want)
		}
		if got := tt.b.Intersect(tt.a); got != tt.want {
			t.Errorf("%v.Intersect(%v) = %v, want %v", tt.b, tt.a, got, tt.want)
		}
	}
	for _, tt := range []struct {
		r    block.Range
		size int64
		want bool
	}{
		{block.Range{}, 0, true}, {block.Range{Off: 0, Len: 1}, 0, false}, {block.Range{Off: 5, Len: 5}, 10, true},
		{block.Range{Off: 5, Len: 6}, 10, false}, {block.Range{Off: 11}, 10, false}, {block.Range{Off: 10}, 10, true},
		{block.Range{Off: -1, Len: 1}, 10, false}, {block.Range{Off: 1, Len: -1}, 10, false},
		{block.Range{Off: top, Len: top}, top, false}, {block.Range{Off: 1, Len: top}, top, false},
		{block.Range{Off: 0, Len: top}, top, true}, {block.Range{Off: top, Len: 0}, top, true},
		{block.Range{Off: math.MinInt64, Len: top}, top, false}, {block.Range{Off: 0, Len: math.MinInt64}, 0, false},
	} {
		if got := tt.r.Within(tt.size); got != tt.want {
			t.Errorf("%v.Within(%d) = %v", tt.r, tt.size, got)
		}
	}
	for _, tt := range []struct {
		r    block.Range
		unit int64
		want block.Range
	}{
		{block.Range{Off: 5, Len: 1}, 4, block.Range{Off: 4, Len: 4}},
		{block.Range{Off: 4, Len: 4}, 4, block.Range{Off: 4, Len: 4}},
		{block.Range{Off: 3, Len: 2}, 4, block.Range{Off: 0, Len: 8}},
		{block.Range{Off: 3, Len: 2}, 1, block.Range{Off: 3, Len: 2}},
		{block.Range{Off: top - 1, Len: 1}, top, block.Range{Off: 0, Len: top}},
		{block.Range{Off: 1 << 62, Len: 1}, 4096, block.Range{Off: 1 << 62, Len: 4096}},
	} {
		if got := tt.r.Outward(tt.unit); got != tt.want {
			t.Errorf("%v.Outward(%d) = %v, want %v", tt.r, tt.unit, got, tt.want)
		}
	}
	if s := (block.Range{Off: 4096, Len: 512}).String(); s != "[4096,+512)" {
		t.Error(s)
	}
}

func TestRounding(t *testing.T) {
	const top = math.MaxInt64
	for _, tt := range []struct{ n, unit, up, count int64 }{
		{0, 4096, 0, 0}, {1, 4096, 4096, 1}, {4096, 4096, 4096, 1}, {4097, 4096, 8192, 2}, {7, 1, 7, 7},
		{top, 1, top, top}, {top, top, top, 1}, {top - 1, top, top, 1}, {1 << 62, 4096, 1 << 62, 1 << 50},
	} {
		if got := block.RoundUp(tt.n, tt.unit); got != tt.up {
			t.Errorf("RoundUp(%d, %d) = %d", tt.n, tt.unit, got)
		}
		if got := block.Count(tt.n, tt.unit); got != tt.count {
			t.Errorf("Count(%d, %d) = %d", tt.n, tt.unit, got)
		}
	}
	if got := block.Count(top, 4096); got != 1<<51 {
		t.Errorf("Count of the largest size = %d", got)
	}
}

// The blocks of a disk cover it without gap or overlap.
func TestNth(t *testing.T) {
	for _, size := range []int64{0, 1, 99, 100, 101, 1000, math.MaxInt64} {
		bs := int64(100)
		if size == math.MaxInt64 {
			bs = 1 << 60
		}
		var at int64
		for i := range block.Count(size, bs) {
			r := block.Nth(i, bs, size)
			if r.Off != at || r.Len <= 0 || r.Len > bs || !r.Within(size) {
				t.Fatalf("block %d of %d is %v", i, size, r)
			}
			at = r.End()
		}
		if at != size {
			t.Errorf("the blocks of %d end at %d", size, at)
		}
	}
}

// bitmap is the simplest thing that a Set can be compared with.
type bitmap []bool

func (b bitmap) set(r block.Range, to bool) {
	for i := r.Off; i < min(r.End(), int64(len(b))); i++ {
		b[i] = to
	}
}

func (b bitmap) ranges() []block.Range {
	var out []block.Range
	for i, in := range b {
		switch {
		case !in:
		case i > 0 && b[i-1]:
			out[len(out)-1].Len++
		default:
			out = append(out, block.Range{Off: int64(i), Len: 1})
		}
	}
	return out
}

func check(t *testing.T, s *block.Set, b bitmap, w block.Range, chunk int64) {
	t.Helper()
	want := b.ranges()
	got := slices.Collect(s.All())
	if !slices.Equal(got, want) || s.Runs() != len(want) {
		t.Fatalf("set %v, want %v", got, want)
	}
	var bytes int64
	for i, in := range b {
		if s.Contains(int64(i)) != in {
			t.Fatalf("Contains(%d) = %v in %v", i, !in, want)
		}
		if in {
			bytes++
		}
	}
	if s.Bytes() != bytes {
		t.Fatalf("%d bytes, want %d", s.Bytes(), bytes)
	}
	var inWindow block.Range
	for _, r := range want {
		if inWindow = r.Intersect(w); !inWindow.Empty() {
			break
		}
	}
	if run, ok := s.Next(w); ok == inWindow.Empty() || ok && run != inWindow {
		t.Fatalf("Next(%v) = %v, %v in %v", w, run, ok, want)
	}
	checkChunks(t, s, want, chunk)
}

func checkChunks(t *testing.T, s *block.Set, want []block.Range, n int64) {
	t.Helper()
	again := block.NewSet()
	for r := range s.Chunks(n) {
		if r.Len <= 0 || r.Len > n || again.Contains(r.Off) {
			t.Fatalf("chunk %v of at most %d", r, n)
		}
		again.Add(r)
	}
	if !slices.Equal(slices.Collect(again.All()), want) {
		t.Fatalf("chunks of %v are together %v", want, slices.Collect(again.All()))
	}
}

const space = 256

// play reads a history from p: three bytes each, what, from, length.
func play(t *testing.T, p []byte) {
	s, b := new(block.Set), make(bitmap, space+256)
	for ; len(p) >= 3; p = p[3:] {
		r := block.Range{Off: int64(p[1]), Len: int64(p[2]) % 64}
		if p[0]%8 == 7 {
			r.Len *= 4
		}
		add := p[0]%2 == 0
		if add {
			s.Add(r)
		} else {
			s.Remove(r)
		}
		b.set(r, add)
		check(t, s, b, block.Range{Off: int64(p[2]), Len: int64(p[0])}, 1+int64(p[1])%17)
	}
}

func TestSetAgainstBitmap(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		p := make([]byte, 3*60)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		play(t, p)
	}
}

func FuzzSet(f *testing.F) {
	f.Add([]byte{0, 10, 10, 0, 20, 10, 1, 15, 10})
	f.Fuzz(func(t *testing.T, p []byte) { play(t, p[:min(len(p), 300)]) })
}

// Every pair of small ranges, added and removed, so that each way in which two can touch is there.
func TestSetOfTwo(t *testing.T) {
	const n = 7
	for x := range int64(n) {
		for lx := range n - x {
			for y := range int64(n) {
				for ly := range n - y {
					a, c := block.Range{Off: x, Len: lx}, block.Range{Off: y, Len: ly}
					s, b := block.NewSet(a, c), make(bitmap, n+1)
					b.set(a, true)
					b.set(c, true)
					check(t, s, b, c, 2)
					s.Remove(c)
					b.set(c, false)
					check(t, s, b, a, 1)
				}
			}
		}
	}
}

func TestSetAtTheExtremes(t *testing.T) {
	const top = math.MaxInt64
	s := block.NewSet(block.Range{Off: 0, Len: 1}, block.Range{Off: top - 1, Len: 1})
	for off, want := range map[int64]bool{0: true, 1: false, top - 2: false, top - 1: true, top: false} {
		if s.Contains(off) != want {
			t.Errorf("Contains(%d) = %v", off, !want)
		}
	}
	if run, ok := s.Next(block.Range{Off: 1, Len: top - 1}); !ok || run.Off != top-1 {
		t.Errorf("%v, %v", run, ok)
	}
	s.Add(block.Range{Off: 0, Len: top})
	if s.Runs() != 1 || s.Bytes() != top {
		t.Errorf("%d runs, %d bytes", s.Runs(), s.Bytes())
	}
	s.Remove(block.Range{Off: 1, Len: top - 1})
	if s.Bytes() != 1 {
		t.Errorf("%d bytes", s.Bytes())
	}
	s.Add(block.Range{Off: 5, Len: -3})
	s.Remove(block.Range{Off: 0, Len: -3})
	if s.Bytes() != 1 {
		t.Errorf("an empty range changed the set: %d bytes", s.Bytes())
	}
}

// A loop over a set can be left early.
func TestChunksStop(t *testing.T) {
	for r := range block.NewSet(block.Range{Off: 0, Len: 10}, block.Range{Off: 20, Len: 10}).Chunks(3) {
		if r.Off != 0 {
			t.Fatal(r)
		}
		break
	}
}

func TestIsZero(t *testing.T) {
	for _, n := range []int{0, 1, 511, 16<<10 - 1, 16 << 10, 16<<10 + 1, 32 << 10, 100_001} {
		p := make([]byte, n)
		if !block.IsZero(p) {
			t.Errorf("%d zeros", n)
		}
		for _, i := range []int{0, 1, n / 2, 16<<10 - 1, 16 << 10, n - 1} {
			if i < 0 || i >= n {
				continue
			}
			p[i] = 1
			if block.IsZero(p) {
				t.Errorf("byte %d of %d is not seen", i, n)
			}
			p[i] = 0
		}
	}
	if block.IsZero(bytes.Repeat([]byte{0x80}, 4096)) {
		t.Error("0x80")
	}
}

func TestKindString(t *testing.T) {
	if block.Data.String() != "data" || block.Zero.String() != "zero" {
		t.Error(block.Data, block.Zero)
	}
}

func BenchmarkIsZero(b *testing.B) {
	p := make([]byte, 1<<20)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		block.IsZero(p)
	}
}

// TestSetOfManyRuns: a change in front of a million runs does not move them all, which would take an hour here; what is left is what a plain
// list of the runs is.
func TestSetOfManyRuns(t *testing.T) {
	const n = 1 << 20
	s := new(block.Set)
	for i := range int64(n) { // from the end to the beginning: each one lies before all others
		s.Add(block.Range{Off: (n - 1 - i) * 8, Len: 4})
	}
	for i := range int64(n) {
		if i%2 == 0 {
			s.Remove(block.Range{Off: i * 8, Len: 4})
		}
	}
	if s.Runs() != n/2 || s.Bytes() != n/2*4 {
		t.Fatalf("%d runs of %d bytes", s.Runs(), s.Bytes())
	}
	want := int64(8)
	for r := range s.All() {
		if r != (block.Range{Off: want, Len: 4}) {
			t.Fatalf("%v, want a run at %d", r, want)
		}
		want += 16
	}
	s.Add(block.Range{Off: 100, Len: n * 4}) // over many parts
	s.Remove(block.Range{Off: 0, Len: n * 2})
	first, _ := s.Next(block.Range{Off: 0, Len: n * 8})
	if first != (block.Range{Off: n * 2, Len: 100 + n*4 - n*2}) {
		t.Errorf("the first run is %v", first)
	}
	s.Remove(block.Range{Len: n * 8})
	if s.Runs() != 0 || s.Contains(8) {
		t.Errorf("%d runs are left", s.Runs())
	}
}
