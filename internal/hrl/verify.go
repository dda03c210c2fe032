package hrl

import (
	"context"
	"sync"
	"sync/atomic"

	"sitrep/internal/block"
	"sitrep/internal/fault"
	"sitrep/internal/sums"
)

const (
	verifiers    = 2       // batches verified at a time
	verifyBuffer = 2 << 20 // bytes that each reads at once, at least MaxRecord
)

// Verify checks the whole content: of our logs every byte up to Info().End, each metadata block by its digest and each
// block of data by its sum; of foreign ones the checksums that they have. It reads each byte of data once, and no zeros.
// The error is the first one in the order of the file among those found. Codes: LogCorrupt; LogTorn for a foreign log
// that was not closed. Memory: two buffers of 2 MiB, and 8 bytes for each metadata block.
func (l *Log) Verify(ctx context.Context) error {
	locs, err := l.blocks(ctx)
	if err != nil {
		return err
	}
	v := verification{l: l, locs: locs}
	var wg sync.WaitGroup
	for range min(verifiers, len(locs)) {
		wg.Go(func() { v.work(ctx) })
	}
	wg.Wait()
	if v.err != nil {
		return v.err
	}
	return v.checkTotals()
}

// verification is the state that the verifiers share.
type verification struct {
	l    *Log
	locs []int64
	next atomic.Int64 // the batch to take
	stop atomic.Bool  // a batch has failed: take no more

	mu       sync.Mutex
	entries  int64
	data     int64 // bytes
	zero     int64 // bytes
	err      error
	errBatch int64
}

// work verifies batches until there are no more, or one has failed. Batches are taken in order, so that all before a
// failed one are verified too and the first error is the same every time.
func (v *verification) work(ctx context.Context) {
	// No record is longer than what lies between the header and the end.
	buf := make([]byte, min(verifyBuffer, v.l.Info().End-headerSize))
	for !v.stop.Load() {
		i := v.next.Add(1) - 1
		if i >= int64(len(v.locs)) {
			return
		}
		list, err := v.l.batchOf(ctx, v.locs, int(i))
		if err == nil {
			err = v.l.verifyData(ctx, list, buf)
		}
		v.done(i, list, err)
	}
}

func (v *verification) done(i int64, list []Record, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err != nil {
		if v.err == nil || i < v.errBatch {
			v.err, v.errBatch = err, i
		}
		v.stop.Store(true)
		return
	}
	v.entries += int64(len(list))
	for _, r := range list {
		if r.Zero {
			v.zero += r.Len
		} else {
			v.data += r.Len
		}
	}
}

// checkTotals compares with the header of our logs. [MS-HRL] does not say what exactly its number of entries counts, so
// that of a foreign log decides nothing.
func (v *verification) checkTotals() error {
	i := v.l.Info()
	if i.Identity == nil || v.entries == i.Entries && v.data == i.DataBytes && v.zero == i.ZeroBytes {
		return nil
	}
	return fault.New(fault.LogCorrupt, "the header speaks of %d records, %d bytes of data and %d of zeros; there are %d, %d and %d",
		i.Entries, i.DataBytes, i.ZeroBytes, v.entries, v.data, v.zero).AtOff(v.l.f.Name(), 0)
}

// verifyData checks the data of one batch.
func (l *Log) verifyData(ctx context.Context, list []Record, buf []byte) error {
	if l.h.ours == nil {
		return l.verifyForeign(ctx, list, buf)
	}
	c := collector{l: l, buf: buf}
	bs := l.h.ours.id.BlockSize
	for _, r := range list {
		if err := interrupted(ctx); err != nil {
			return err
		}
		for i, s := range r.Sums {
			b := block.Nth(int64(i), bs, r.Len)
			if err := c.add(r.At+b.Off, b.Len, s); err != nil {
				return err
			}
		}
	}
	return c.check()
}

// collector gathers blocks that lie side by side in the file, so that they are read at once.
type collector struct {
	l      *Log
	buf    []byte
	at, n  int64
	blocks []int64 // lengths
	sums   []sums.Sum
}

// add takes the block at off of n bytes, n <= MaxRecord; what does not fit with those before it is checked first.
func (c *collector) add(off, n int64, s sums.Sum) error {
	if off != c.at+c.n || c.n+n > int64(len(c.buf)) {
		if err := c.check(); err != nil {
			return err
		}
		c.at = off
	}
	c.n += n
	c.blocks = append(c.blocks, n)
	c.sums = append(c.sums, s)
	return nil
}

// check reads what was gathered, compares it with its sums and forgets it.
func (c *collector) check() error {
	if c.n == 0 {
		return nil
	}
	p := c.buf[:c.n]
	if err := c.l.readAt(p, c.at); err != nil {
		return err
	}
	off := int64(0)
	for i, n := range c.blocks {
		if sums.Of(p[off:off+n]) != c.sums[i] {
			return c.l.corrupt(c.at+off, "the data of a block does not match its sum")
		}
		off += n
	}
	c.at, c.n, c.blocks, c.sums = c.at+c.n, 0, c.blocks[:0], c.sums[:0]
	return nil
}

// verifyForeign checks the checksum of each record that has one. Microsoft's own writer leaves it 0.
func (l *Log) verifyForeign(ctx context.Context, list []Record, buf []byte) error {
	for _, r := range list {
		if r.dataChecksum == 0 {
			continue
		}
		var sum uint32
		for off := int64(0); off < r.Len; {
			if err := interrupted(ctx); err != nil {
				return err
			}
			p := buf[:min(int64(len(buf)), r.Len-off)]
			if err := l.Read(r, p, off); err != nil {
				return err
			}
			sum += byteSum(p)
			off += int64(len(p))
		}
		if ^sum != r.dataChecksum {
			return l.corrupt(r.At, "the checksum of the data is %#x, its content gives %#x", r.dataChecksum, ^sum)
		}
	}
	return nil
}
