package dir

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
)

// An undo log is sealed with sums of its own: what it holds is taken for proved from then on. So what goes into it is proved first,
// by the sums of the pages. A delta that finds a block that is not what its sum says is refused, as long as a resynchronization
// can make it right. Where the pages have to be overwritten all the same, by that resynchronization, or by a failover whose logs are
// better than what they replace, the block is listed beside the log, and no recovery point shows it.

const rottenSuffix = ".rotten.json"

// maxRotten is the longest list of rotten blocks that is read, in bytes.
const maxRotten = 64 << 20

// proof is what is done with a block that is not what its sum says.
type proof uint8

const (
	refuse proof = iota
	list         // the log holds it, and says so
	leave        // the sums are in doubt themselves
)

// proofOf is how the blocks of a disk are proved that are about to be overwritten.
func proofOf(s *replica.State, disk string) proof {
	switch {
	case s.Resync != nil && s.Resync.Deep && !s.Resync.Sealed[disk]:
		return leave
	case s.Resync != nil, s.Phase == replica.FailoverStarted:
		return list
	}
	return refuse
}

// saving is one disk of a step that is being made.
type saving struct {
	*step
	disk  *replica.Disk
	proof proof
	log   *hrl.Writer
	pages durable.File
	sums  *sums.Table // nil: leave

	mu     sync.Mutex
	rotten block.Set
	should []rottenBlock // of rotten, with their sums, as long as there are not too many
}

// maxSums is how many rotten blocks are listed with the sums of what they should have held. Where there are more, the point cannot be
// proved, and is not shown at all.
const maxSums = 1 << 18

// rottenBlock is a range that was rotten before it was preserved: one block, or, when Sum is "", of a longer list or an older version, any.
type rottenBlock struct {
	block.Range
	Sum string `json:"sum,omitempty"` // of what the block should have held, in hexadecimal digits
}

// saveOld writes the undo log of one disk into folder.
func (t *step) saveOld(ctx context.Context, d *replica.Disk, folder string) (err error) {
	s := &saving{step: t, disk: d, proof: proofOf(t.s, d.Name)}
	if s.pages, err = t.r.fs.Open(t.r.pagesPath(d.Name)); err != nil {
		return err
	}
	defer s.pages.Close()
	if s.proof != leave {
		f, err := t.r.fs.Open(t.r.sumsPath(d.Name))
		if errors.Is(err, fs.ErrNotExist) {
			return fault.New(fault.ReplicaChanged, "the block sums are missing, without which nothing that is overwritten can be proved").At(t.r.sumsPath(d.Name))
		}
		if err != nil {
			return err
		}
		defer f.Close()
		s.sums = sums.NewTable(f)
	}
	if s.log, err = hrl.Create(t.r.fs, filepath.Join(folder, d.Name+undoSuffix), t.identity(d)); err != nil {
		return err
	}
	err = s.copyOld(ctx)
	if err == nil {
		_, err = s.log.Seal()
	}
	if err != nil {
		return errors.Join(err, s.log.Abort())
	}
	return s.listRotten(filepath.Join(folder, d.Name+rottenSuffix))
}

func (t *step) identity(d *replica.Disk) hrl.Identity {
	id := hrl.Identity{
		Replica: t.s.Replica, VM: t.s.VM, Disk: d.Name, Kind: hrl.Undo, From: t.to, To: t.s.Applied,
		SizeBefore: d.Size, Size: d.Size, BlockSize: d.BlockSize, CutAt: t.s.AsOf,
	}
	for _, seg := range t.s.Pending {
		if n, ok := seg.Sizes[d.Name]; ok && seg.To == t.to {
			id.SizeBefore = n
		}
	}
	for _, p := range t.s.Points {
		if p.At == t.s.Applied {
			id.CutAt, id.AppConsistent = p.CutAt, p.AppConsistent
		}
	}
	if id.CutAt.Year() < 1970 {
		id.CutAt = time.Unix(0, 0).UTC() // not known
	}
	return id
}

// copyOld puts the blocks that will be overwritten into the log. Holes are recorded without being read.
func (s *saving) copyOld(ctx context.Context) error {
	var data block.Set
	for r := range s.blocks(s.disk).All() {
		for !r.Empty() {
			e, err := s.pages.Extent(r.Off, r.Len)
			if err != nil {
				return err
			}
			n, zero := wholeBlocks(e, r, s.disk.BlockSize)
			part := block.Range{Off: r.Off, Len: n}
			if !zero {
				data.Add(part)
			} else if err := s.saveHole(part); err != nil {
				return err
			}
			r.Off, r.Len = part.End(), r.Len-n
		}
	}
	_, err := s.r.eachPiece(ctx, &data, func(buf []byte, off int64) error {
		if err := readPages(s.pages, buf, off); err != nil {
			return err
		}
		bs := s.disk.BlockSize
		got := make([]sums.Sum, block.Count(int64(len(buf)), bs))
		for i := range got {
			b := block.Nth(int64(i), bs, int64(len(buf)))
			got[i] = sums.Of(buf[b.Off:b.End()])
		}
		if err := s.prove(block.Range{Off: off, Len: int64(len(buf))}, got); err != nil {
			return err
		}
		return s.log.Append(off, buf, got)
	})
	return err
}

// saveHole records zeros, of which the sums have to say that they are some.
func (s *saving) saveHole(r block.Range) error {
	const atOnce = 4096 // sums
	zeros := make([]sums.Sum, min(block.Count(r.Len, s.disk.BlockSize), atOnce))
	for at := r; !at.Empty(); {
		n := min(at.Len, atOnce*s.disk.BlockSize)
		if err := s.prove(block.Range{Off: at.Off, Len: n}, zeros[:block.Count(n, s.disk.BlockSize)]); err != nil {
			return err
		}
		at.Off, at.Len = at.Off+n, at.Len-n
	}
	return s.log.Zero(r)
}

// prove compares the sums of what was read of whole blocks with those of the pages.
func (s *saving) prove(r block.Range, got []sums.Sum) error {
	if s.sums == nil {
		return nil
	}
	want := make([]sums.Sum, len(got))
	if err := s.sums.Load(r.Off/s.disk.BlockSize, want); err != nil {
		return err
	}
	for i := range got {
		if got[i] == want[i] {
			continue
		}
		b := block.Nth(int64(i), s.disk.BlockSize, r.Len)
		b.Off += r.Off
		if s.proof == refuse {
			return fault.New(fault.ReplicaCorrupt, "the block of %d bytes is not what its sum says; it was about to be overwritten, and was not", b.Len).
				AtOff(s.pages.Name(), b.Off)
		}
		s.mu.Lock()
		s.rotten.Add(b)
		if len(s.should) <= maxSums {
			s.should = append(s.should, rottenBlock{b, want[i].String()})
		}
		s.mu.Unlock()
	}
	return nil
}

// listRotten writes the list of the rotten blocks that the log holds, if it holds some.
func (s *saving) listRotten(path string) error {
	if s.rotten.Bytes() == 0 {
		return nil
	}
	list := s.should
	if len(list) > maxSums {
		list = nil
		for r := range s.rotten.All() {
			list = append(list, rottenBlock{Range: r})
		}
	}
	slices.SortFunc(list, func(a, b rottenBlock) int { return cmp.Compare(a.Off, b.Off) })
	data, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return durable.WriteFile(s.r.fs, path, append(data, '\n'))
}

// rottenBlocks is the list beside an undo log. A nil one is empty.
type rottenBlocks struct {
	set  *block.Set
	sums map[int64]sums.Sum // by number of the block
}

// sum is what a rotten block should have held.
func (r *rottenBlocks) sum(i int64) (sums.Sum, bool) {
	if r == nil {
		return sums.Sum{}, false
	}
	sum, ok := r.sums[i]
	return sum, ok
}

// hits says whether some of a range is rotten.
func (r *rottenBlocks) hits(in block.Range) bool {
	if r == nil {
		return false
	}
	_, hit := r.set.Next(in)
	return hit
}

// rottenOf reads the list beside the undo log that leads back to a position; nil when there is none.
func (p *points) rottenOf(at hrl.Pos, disk string, blockSize int64) (*rottenBlocks, error) {
	path := filepath.Join(p.stepPath(at), disk+rottenSuffix)
	data, err := durable.ReadFile(p.r.fs, path, maxRotten)
	var long *durable.TooLargeError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil && !errors.As(err, &long):
		return nil, err
	}
	var list []rottenBlock
	if err == nil {
		err = json.Unmarshal(data, &list)
	}
	if err != nil {
		return nil, replica.Unseen(fault.Wrap(fault.PointMissing, err, "the list of the rotten blocks of the recovery point cannot be read").At(path))
	}
	out := &rottenBlocks{set: new(block.Set), sums: map[int64]sums.Sum{}}
	for _, b := range list {
		if b.Off < 0 || b.Len < 0 || !b.Within(hrl.MaxDisk) {
			return nil, replica.Unseen(fault.New(fault.PointMissing, "the list of the rotten blocks of the recovery point names %v", b.Range).At(path))
		}
		out.set.Add(b.Range)
		if sum, err := hex.DecodeString(b.Sum); err == nil && len(sum) == sums.Size {
			out.sums[b.Off/blockSize] = sums.Sum(sum)
		}
	}
	return out, nil
}

// wholeBlocks rounds the extent e, with which r begins, to whole blocks: a block that is partly data is data.
func wholeBlocks(e block.Extent, r block.Range, blockSize int64) (n int64, zero bool) {
	if e.Len >= r.Len {
		return r.Len, e.Kind == block.Zero
	}
	if n = e.Len - e.Len%blockSize; n > 0 && e.Kind == block.Zero {
		return n, true
	}
	return min(block.RoundUp(max(e.Len, 1), blockSize), r.Len), false
}
