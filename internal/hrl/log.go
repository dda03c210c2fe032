package hrl

import (
	"context"
	"errors"
	"io"
	"iter"
	"slices"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/sums"
)

// Log is a log that is read. Its methods may be called concurrently. It keeps nothing of the content in memory.
type Log struct {
	f    durable.File
	h    *header
	size int64
}

// Record is one write.
type Record struct {
	block.Range            // where on the disk
	Zero        bool       // zeros: there is nothing to read
	At          int64      // where the data is in the file
	Sums        []sums.Sum // of the blocks of a data record of ours, else nil
	Time        time.Time  // of the write, to the second

	dataChecksum uint32 // foreign logs only, 0: none
}

// Open reads the header of a log and checks it, with, in one of our logs, the end of the content. The file stays the
// caller's to close, and must not change while the Log is in use. A log of ours that is not sealed is readable up to its
// last Commit; Info tells. Codes: LogForeign (no log at all), LogVersion, LogCorrupt.
func Open(f durable.File) (*Log, error) {
	size, err := f.Size()
	if err != nil {
		return nil, ioError(f.Name(), err)
	}
	l := &Log{f: f, size: size}
	p := make([]byte, min(size, headerSize))
	if err := l.readAt(p, 0); err != nil {
		return nil, err
	}
	if l.h, err = decodeHeader(f.Name(), p); err != nil {
		return nil, err
	}
	if err := l.checkEnd(); err != nil {
		return nil, err
	}
	if l.h.ours != nil {
		return l, l.checkHeaderDigest(p)
	}
	return l, nil
}

// checkEnd proves that the content that the header claims is there.
func (l *Log) checkEnd() error {
	i := l.Info()
	switch {
	case !i.Sealed && i.Identity == nil:
		return nil // there is no saying where its content ends; see start
	case i.End > l.size:
		return l.corrupt(l.size, "the file ends here, its header says %d", i.End)
	case i.End < headerSize+i.MetadataSize:
		return l.corrupt(0, "the header says that the log ends at %d, before its first metadata", i.End)
	case i.Identity != nil && i.Sealed && (i.End != l.size || l.h.currentSize != l.h.eol):
		return l.corrupt(i.End, "the file goes on after its end")
	}
	return nil
}

func (l *Log) checkHeaderDigest(p []byte) error {
	last, err := l.digestAt(l.Info().End - metadataSize)
	if err != nil {
		return err
	}
	if headerDigest(p, last) != l.h.ours.digest {
		return l.corrupt(0, "the header is damaged, or the last metadata is: its digest does not match")
	}
	return nil
}

// digestAt returns the digest in the metadata block at loc.
func (l *Log) digestAt(loc int64) (d digest, err error) {
	return d, l.readAt(d[:], loc+mDigest)
}

// Info describes the log.
func (l *Log) Info() Info { return l.h.info(l.size) }

func (l *Log) corrupt(off int64, format string, args ...any) error {
	return fault.New(fault.LogCorrupt, format, args...).AtOff(l.f.Name(), off)
}

// readAt reads all of p; that the file is too short is damage.
func (l *Log) readAt(p []byte, off int64) error {
	n, err := l.f.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case errors.Is(err, io.EOF):
		return l.corrupt(off+int64(n), "the file ends early")
	}
	e := fault.FromOS(err)
	return e.AtOff(l.f.Name(), off)
}

// Read reads the len(p) bytes of r that begin off bytes after its begin. It checks nothing: Verify does, and whoever
// computes the sums of what was read can compare them with those of the record.
func (l *Log) Read(r Record, p []byte, off int64) error {
	if !(block.Range{Off: off, Len: int64(len(p))}).Within(r.Len) {
		return l.corrupt(r.At, "a read of %d bytes at %d leaves the record of %d", len(p), off, r.Len)
	}
	if r.Zero {
		clear(p)
		return nil
	}
	return l.readAt(p, r.At+off)
}

// Records yields the writes in the order of the file: a later one counts. Each is within the disk, or in a foreign
// log within MaxDisk, and of ours the metadata is proved by its digest before it is yielded; the data is not. After an
// error nothing more is yielded. Memory: 8 bytes for each metadata block.
func (l *Log) Records(ctx context.Context) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		locs, err := l.blocks(ctx)
		for i := 0; i < len(locs) && err == nil; i++ {
			var list []Record
			if list, err = l.batchOf(ctx, locs, i); err != nil {
				break
			}
			for _, r := range list {
				if !yield(r, nil) {
					return
				}
			}
		}
		if err != nil {
			yield(Record{}, err)
		}
	}
}

// blocks returns the offsets of the metadata blocks, in the order of the file: [MS-HRL] 2.5, first pass.
func (l *Log) blocks(ctx context.Context) ([]int64, error) {
	i := l.Info()
	if !i.Sealed && i.Identity == nil {
		return nil, fault.New(fault.LogTorn, "the log was not closed by its writer").At(l.f.Name())
	}
	var locs []int64
	var p [8]byte
	for loc := i.End - i.MetadataSize; ; {
		if err := interrupted(ctx); err != nil {
			return nil, err
		}
		if err := l.readAt(p[:], loc); err != nil {
			return nil, err
		}
		locs = append(locs, loc)
		back := le.Uint64(p[:])
		if back == 0 { // the first one; the text, read literally, would never end
			break
		}
		if back < uint64(i.MetadataSize) || back > uint64(loc-headerSize) {
			return nil, l.corrupt(loc, "the metadata before this lies %d bytes before it", back)
		}
		loc -= int64(back)
	}
	slices.Reverse(locs)
	return locs, nil
}

func interrupted(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fault.Wrap(fault.Interrupted, err, "reading a change log")
	}
	return nil
}

// batchOf reads and checks the metadata block number i: [MS-HRL] 2.5, second pass.
func (l *Log) batchOf(ctx context.Context, locs []int64, i int) ([]Record, error) {
	if err := interrupted(ctx); err != nil {
		return nil, err
	}
	start, previous := int64(headerSize), digest{}
	if i > 0 {
		start = locs[i-1] + int64(l.h.metadataSize)
		if l.h.ours != nil {
			var err error
			if previous, err = l.digestAt(locs[i-1]); err != nil {
				return nil, err
			}
		}
	}
	p := make([]byte, l.h.metadataSize)
	if err := l.readAt(p, locs[i]); err != nil {
		return nil, err
	}
	return l.decodeBatch(p, start, locs[i], previous)
}

// decodeBatch decodes the metadata block p at loc, the data of which begins at start.
func (l *Log) decodeBatch(p []byte, start, loc int64, previous digest) ([]Record, error) {
	if want, got := checksum(p[:metaHeaderSize], mChecksum), le.Uint32(p[mChecksum:]); want != got {
		return nil, l.corrupt(loc, "the checksum of the metadata is %#x, its content gives %#x", got, want)
	}
	if l.h.ours != nil && blockDigest(l.h.uniqueID, loc, previous, p) != digest(p[mDigest:]) {
		return nil, l.corrupt(loc, "the digest of the metadata does not match it")
	}
	n := le.Uint32(p[mEntries:])
	if int64(n) > int64(len(p)-metaHeaderSize)/entrySize {
		return nil, l.corrupt(loc, "%d entries do not fit into the metadata", n)
	}
	known := l.sumsIn(p[metaHeaderSize+int(n)*entrySize:])
	list := make([]Record, 0, n)
	at := start
	for i := range int(n) {
		off := metaHeaderSize + i*entrySize
		r, err := l.decodeEntry(p[off:off+entrySize], loc+int64(off), at)
		if err != nil {
			return nil, err
		}
		if r.Len > loc-at {
			return nil, l.corrupt(loc+int64(off), "the data of the entry does not fit before its metadata")
		}
		at += r.Len
		if known, err = l.takeSums(&r, known, loc); err != nil {
			return nil, err
		}
		if !r.Empty() {
			list = append(list, r)
		}
	}
	if l.h.ours != nil && at != loc {
		return nil, l.corrupt(at, "%d bytes before the metadata belong to no entry", loc-at)
	}
	return list, nil
}

// decodeEntry decodes the entry p at offset off of the file, the data of which is at offset at.
func (l *Log) decodeEntry(p []byte, off, at int64) (Record, error) {
	if want, got := checksum(p, eChecksum), le.Uint32(p[eChecksum:]); want != got {
		return Record{}, l.corrupt(off, "the checksum of the entry is %#x, its content gives %#x", got, want)
	}
	if p[eOperation] != opWrite {
		return Record{}, l.corrupt(off, "operation %d is not known", p[eOperation])
	}
	to := le.Uint64(p[eByteOffset:])
	r := Record{
		Range: block.Range{Off: int64(to & (1<<62 - 1)), Len: int64(le.Uint32(p[eDataLength:]))},
		At:    at, Time: stampTime(le.Uint32(p[eTimeStamp:])),
	}
	if to > MaxDisk || !r.Within(MaxDisk) {
		return Record{}, l.corrupt(off, "the entry writes to %d, after the end of any disk", to)
	}
	if l.h.ours == nil {
		r.dataChecksum = le.Uint32(p[eDataChecksum:])
		return r, nil
	}
	r.Zero = p[eFlags]&flagZero != 0
	if err := checkBlocks(r.Range, &l.h.ours.id); err != nil {
		return Record{}, l.corrupt(off, "%s", err)
	}
	return r, nil
}

// sumsIn decodes all sums that the tail of a metadata block of ours has room for.
func (l *Log) sumsIn(tail []byte) []sums.Sum {
	if l.h.ours == nil {
		return nil
	}
	all := make([]sums.Sum, len(tail)/sums.Size)
	for i := range all {
		all[i] = sums.Sum(tail[i*sums.Size:])
	}
	return all
}

// takeSums gives a data record of ours its sums, the first of known, and returns the others.
func (l *Log) takeSums(r *Record, known []sums.Sum, loc int64) ([]sums.Sum, error) {
	if l.h.ours == nil || r.Zero {
		return known, nil
	}
	n := block.Count(r.Len, l.h.ours.id.BlockSize)
	if r.Len > MaxRecord || n > int64(len(known)) {
		return nil, l.corrupt(loc, "the sums of a record do not fit into the metadata")
	}
	r.Sums = known[:n:n]
	if slices.Contains(r.Sums, sums.Sum{}) {
		return nil, l.corrupt(loc, "a block of zeros is recorded as data")
	}
	return known[n:], nil
}
