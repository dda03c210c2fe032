package replicate

import (
	"context"
	"errors"
	"math"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/sums"
)

// A cut that changes nearly all that a disk holds, or that makes noise of what was none, may be the work of an attacker or of a mistake,
// and a retention by number would push out the last good recovery points before anybody has looked. So each cut is looked at before
// it is applied: only blocks that held data count, so that a disk that is being filled is none. What is found goes into the ledger
// together with the hold on the last point before it, in the same step that begins to apply.

const (
	// massiveFloor is how many bytes of data have to change in one cut before their share means anything.
	massiveFloor = 4 << 20
	// noiseShare: when nearly all samples of what changed became noise, this part of the policy's share is massive.
	noiseShare = 5
	// noisePercent of the samples have to have become noise.
	noisePercent = 80
	// samples is how many blocks of a disk are looked at, before and after.
	samples = 64
	// sampleSize is the bytes of a block that are looked at, and noiseBits the entropy of a byte of them, in bits, that only compressed
	// or encrypted data has: random bytes have 7.95.
	sampleSize = 4096
	noiseBits  = 7.8
)

// assess says what a cut that is about to be applied changes, nil when that is nothing unusual.
func (j *Job) assess(ctx context.Context, st replica.State, seg replica.Segment, steps []*diskStep) (*replica.Massive, error) {
	if j.Massive == 0 || len(st.Points) == 0 || st.Phase != replica.Replicating && st.Phase != replica.Paused {
		return nil, nil
	}
	for _, s := range steps {
		c, err := j.change(ctx, s)
		if err != nil {
			return nil, fault.In(err, j.VM, s.disk.Name)
		}
		if c == nil {
			continue
		}
		c.Disk, c.At, c.CutAt, c.Since = s.disk.Name, seg.To, seg.CutAt, j.Now().UTC()
		return c, nil
	}
	return nil, nil
}

// change is the massive change of one disk, nil when it is none.
func (j *Job) change(ctx context.Context, s *diskStep) (*replica.Massive, error) {
	set, err := overwrites(ctx, s)
	if err != nil {
		return nil, err
	}
	var length int64
	for r := range set.All() {
		length += r.Len
	}
	if length < massiveFloor {
		return nil, nil
	}
	m := &replica.Massive{}
	if m.Changed, err = s.held(ctx, set); err != nil || m.Changed < massiveFloor {
		return nil, err
	}
	// What the disk holds is counted no further than to where the change is no share of it any more.
	enough := m.Changed * 100 * noiseShare / int64(j.Massive)
	if m.Data, err = s.data(ctx, enough); err != nil || m.Data > enough {
		return nil, err
	}
	if m.Noise, err = s.noise(ctx, m.Changed); err != nil {
		return nil, err
	}
	share := 100 * m.Changed / max(m.Data, 1)
	if share >= int64(j.Massive) || m.Noise >= noisePercent {
		return m, nil
	}
	return nil, nil
}

func (s *diskStep) sums() replica.DiskSums { return replica.DiskSums{Pages: s.pages, Of: *s.disk} }

// held is the bytes of a set in blocks that hold data before the step.
func (s *diskStep) held(ctx context.Context, set *block.Set) (n int64, err error) {
	bs := s.disk.BlockSize
	for r := range set.All() {
		err := s.sums().In(ctx, r.Off/bs, block.Count(r.End(), bs), func(int64, sums.Sum) error { n += bs; return nil })
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// data is the bytes of the disk in blocks that hold data, counted until they are more than enough.
func (s *diskStep) data(ctx context.Context, enough int64) (n int64, err error) {
	errEnough := errors.New("enough was counted")
	err = s.sums().All(ctx, func(int64, sums.Sum) error {
		if n += s.disk.BlockSize; n > enough {
			return errEnough
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return n, err
}

// noise is how many percent of the changed blocks, by samples, look like compressed or encrypted data now and did not before. Blocks
// that are too small tell nothing.
func (s *diskStep) noise(ctx context.Context, changed int64) (int, error) {
	bs := s.disk.BlockSize
	if bs < sampleSize {
		return 0, nil
	}
	stride := max(changed/bs/samples, 1)
	var seen, looked, noisy int64
	buf := durable.AlignedBuffer(sampleSize)
	for rec, err := range s.log.Records(ctx) {
		if err != nil {
			return 0, err
		}
		err = s.sums().In(ctx, rec.Off/bs, min(block.Count(rec.End(), bs), s.sums().Blocks()), func(i int64, _ sums.Sum) error {
			seen++
			if seen%stride != 0 || i*bs+sampleSize > s.disk.Size {
				return nil
			}
			looked++
			became, err := s.becameNoise(ctx, rec, i, buf)
			if became {
				noisy++
			}
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	return int(100 * noisy / max(looked, 1)), nil
}

// becameNoise says whether block i, which a record writes, is noise and was none.
func (s *diskStep) becameNoise(ctx context.Context, rec hrl.Record, i int64, buf []byte) (bool, error) {
	off := i * s.disk.BlockSize
	if rec.Zero || off+sampleSize > rec.End() {
		return false, nil
	}
	if err := durable.ReadFull(s.log.file, buf, rec.At+off-rec.Off); err != nil || !isNoise(buf) {
		return false, err
	}
	if err := s.pages.ReadAt(ctx, buf, off); err != nil {
		return false, err
	}
	return !isNoise(buf), nil
}

// isNoise says whether bytes have the entropy of compressed or encrypted data.
func isNoise(p []byte) bool {
	var count [256]int
	for _, b := range p {
		count[b]++
	}
	var bits float64
	for _, n := range count {
		if n > 0 {
			share := float64(n) / float64(len(p))
			bits -= share * math.Log2(share)
		}
	}
	return bits >= noiseBits
}
