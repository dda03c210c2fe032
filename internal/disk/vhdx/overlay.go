package vhdx

import (
	"encoding/binary"
	"slices"
	"sort"

	"sitrep/internal/block"
)

// change is one descriptor of the log: what some 4 KiB sectors of the file are to contain. Data stays in the log and is
// read from there, so that a long log takes little memory.
type change struct {
	block.Range
	zero     bool
	at       int64   // place in the file of the data sector, when not zero
	leading  [8]byte // first bytes of the sector, kept in the descriptor
	trailing [4]byte // last bytes of the sector
}

// apply turns the data sector, as it lies in the log, into the sector that it stands for.
func (c *change) apply(p []byte) {
	copy(p, c.leading[:])
	copy(p[sectorSize-4:], c.trailing[:])
}

// overlay is a set of changes as disjoint ranges in ascending order: what the file would contain after the replay.
type overlay []change

// newOverlay flattens changes that are given oldest first: of those that meet, the newest wins. It takes time
// proportional to n log n, whatever the changes are.
func newOverlay(changes []change) overlay {
	edges := make([]int64, 0, 2*len(changes))
	for _, c := range changes {
		edges = append(edges, c.Off, c.End())
	}
	slices.Sort(edges)
	edges = slices.Compact(edges)
	owner := paint(edges, changes)
	var out overlay
	for i, k := range owner {
		if k < 0 {
			continue
		}
		c := changes[k]
		c.Range = block.Range{Off: edges[i], Len: edges[i+1] - edges[i]}
		if last := len(out) - 1; c.zero && last >= 0 && out[last].zero && out[last].End() == c.Off {
			out[last].Len += c.Len
			continue
		}
		out = append(out, c)
	}
	return out
}

// paint says which change owns each cell between two neighbouring edges, or -1. It goes from the newest change to the
// oldest and jumps over the cells that are taken, so that each cell is visited once.
func paint(edges []int64, changes []change) []int32 {
	if len(edges) == 0 {
		return nil
	}
	owner := make([]int32, len(edges)-1)
	next := make([]int32, len(edges)) // first free cell at or after i
	for i := range next {
		next[i] = int32(i)
		if i < len(owner) {
			owner[i] = -1
		}
	}
	free := func(i int32) int32 {
		for next[i] != i {
			next[i] = next[next[i]]
			i = next[i]
		}
		return i
	}
	for k := len(changes) - 1; k >= 0; k-- {
		from, _ := slices.BinarySearch(edges, changes[k].Off)
		to, _ := slices.BinarySearch(edges, changes[k].End())
		for i := free(int32(from)); int(i) < to; i = free(i) {
			owner[i] = int32(k)
			next[i] = i + 1
		}
	}
	return owner
}

// find returns the index of the first change that ends after off.
func (o overlay) find(off int64) int {
	return sort.Search(len(o), func(i int) bool { return o[i].End() > off })
}

// end is the first byte after the last change.
func (o overlay) end() int64 {
	if len(o) == 0 {
		return 0
	}
	return o[len(o)-1].End()
}

// decodeChange reads one descriptor; ok is false when it does not belong to the entry of that sequence number.
func decodeChange(p []byte, sequence uint64) (c change, ok bool) {
	le := binary.LittleEndian
	if le.Uint64(p[24:]) != sequence {
		return change{}, false
	}
	off, length := le.Uint64(p[16:]), uint64(sectorSize)
	switch string(p[:4]) {
	case "zero":
		c.zero, length = true, le.Uint64(p[8:])
	case "desc":
		copy(c.trailing[:], p[4:8])
		copy(c.leading[:], p[8:16])
	default:
		return change{}, false
	}
	if off%sectorSize != 0 || length%sectorSize != 0 || off > maxFile || length > maxFile-off {
		return change{}, false
	}
	c.Range = block.Range{Off: int64(off), Len: int64(length)}
	return c, true
}
