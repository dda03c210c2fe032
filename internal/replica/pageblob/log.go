package pageblob

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"sync"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/xxh3"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

const (
	headSize   = 4 << 20 // bytes of a log that are asked for at first: most logs are no longer
	maxCached  = 6       // frames that are kept decoded
	fetchAhead = 4       // frames that are asked for in one request
)

// logFile is a log on the shelf, opened for reading. It is read by frames; the ones used last are kept.
type logFile struct {
	ctx    context.Context // of the call that opened it: its methods have none
	name   string
	where  string
	c      *blob.Client
	s      *Store
	etag   string // the log is replaced as a whole: what was opened is read to its end, or not at all
	size   int64  // plain bytes
	frames []frame
	head   []byte // the first bytes of the blob

	mu     sync.Mutex
	closed bool
	dec    *zstd.Decoder
	cache  map[int][]byte
	used   []int // of cache, the latest last
}

var _ durable.File = (*logFile)(nil)

// openLog reads the beginning of the blob, and with it, mostly, all of it; then the content is proved by its checksum.
func openLog(ctx context.Context, s *shelf, name string) (*logFile, error) {
	l := &logFile{ctx: ctx, name: s.Path(name), where: s.r.s.whereBlock(s.blob(name)), s: s.r.s,
		c: s.r.s.blocks.NewBlobClient(s.blob(name)), cache: map[int][]byte{}}
	var err error
	if l.dec, err = newDecoder(); err != nil {
		return nil, err
	}
	if err := l.open(); err != nil {
		l.dec.Close()
		return nil, err
	}
	return l, nil
}

func (l *logFile) open() error {
	resp, err := l.c.DownloadStream(l.ctx, &blob.DownloadStreamOptions{Range: blob.HTTPRange{Count: headSize}})
	if err != nil {
		return classify(err, l.where)
	}
	total := int64(-1)
	if resp.ContentRange != nil {
		if _, after, ok := strings.Cut(*resp.ContentRange, "/"); ok {
			total, err = strconv.ParseInt(after, 10, 64)
		}
	} else if resp.ContentLength != nil {
		total = *resp.ContentLength
	}
	body := resp.NewRetryReader(l.ctx, &blob.RetryReaderOptions{MaxRetries: bodyTries})
	defer body.Close()
	if err != nil || total < 0 {
		return fault.New(fault.StoreUnreachable, "the answer does not say how long the log is").At(l.where)
	}
	l.etag = etagOf(resp.ETag)
	l.head = make([]byte, min(total, headSize))
	if _, err := io.ReadFull(body, l.head); err != nil {
		return classify(err, l.where)
	}
	if err := l.readTable(total); err != nil {
		return err
	}
	meta := lower(resp.Metadata)
	if meta[metaPlain] != strconv.FormatInt(l.size, 10) {
		return l.damaged(errors.New("its length is not the one that was noted"), 0)
	}
	if total == int64(len(l.head)) {
		return l.prove(meta[metaSum])
	}
	return nil
}

func (l *logFile) damaged(err error, off int64) error {
	return fault.Wrap(fault.LogCorrupt, err, "the log on the shelf is damaged").AtOff(l.where, off)
}

// readTable reads where the frames of a blob of total bytes are.
func (l *logFile) readTable(total int64) error {
	tail, err := l.blobRange(max(0, total-tableFooter), min(total, tableFooter))
	if err != nil {
		return err
	}
	n, err := tableLength(tail)
	if err != nil || n > total {
		return l.damaged(errTable, total)
	}
	table, err := l.blobRange(total-n, n)
	if err != nil {
		return err
	}
	if l.frames, l.size, err = parseTable(table, total); err != nil {
		return l.damaged(err, total-n)
	}
	return nil
}

// prove compares the plain bytes of a log that is there as a whole with its checksum.
func (l *logFile) prove(want string) error {
	var h xxh3.Hasher
	for i := range l.frames {
		plain, err := l.frame(i)
		if err != nil {
			return err
		}
		h.Write(plain)
	}
	sum := h.Sum128().Bytes()
	if hex.EncodeToString(sum[:]) != want {
		return l.damaged(errors.New("its content is not the one that was noted"), 0)
	}
	return nil
}

// blobRange returns n bytes of the blob.
func (l *logFile) blobRange(off, n int64) ([]byte, error) {
	if off+n <= int64(len(l.head)) {
		return l.head[off : off+n], nil
	}
	if err := l.s.gate.enter(l.ctx); err != nil {
		return nil, classify(err, l.where)
	}
	defer l.s.gate.leave()
	resp, err := l.c.DownloadStream(l.ctx, &blob.DownloadStreamOptions{
		Range: blob.HTTPRange{Offset: off, Count: n}, AccessConditions: ifMatch(l.etag),
	})
	if err != nil {
		return nil, classify(err, l.where)
	}
	body := resp.NewRetryReader(l.ctx, &blob.RetryReaderOptions{MaxRetries: bodyTries})
	defer body.Close()
	out := make([]byte, n)
	if _, err := io.ReadFull(body, out); err != nil {
		return nil, classify(err, l.where)
	}
	return out, nil
}

// frame returns a decoded frame; l.mu is held, or l is not shared yet.
func (l *logFile) frame(i int) ([]byte, error) {
	if plain := l.cache[i]; plain != nil {
		return plain, nil
	}
	last := min(i+fetchAhead, len(l.frames)) - 1
	first := l.frames[i]
	data, err := l.blobRange(first.at, l.frames[last].at+l.frames[last].length-first.at)
	if err != nil {
		return nil, err
	}
	for j := i; j <= last; j++ {
		f := l.frames[j]
		plain, err := decode(l.dec, data[f.at-first.at:][:f.length], f.plain)
		if err != nil {
			return nil, l.damaged(err, f.at)
		}
		l.keep(j, plain)
	}
	return l.cache[i], nil
}

func (l *logFile) keep(i int, plain []byte) {
	if l.cache[i] != nil {
		return
	}
	if len(l.used) >= maxCached {
		delete(l.cache, l.used[0])
		l.used = l.used[1:]
	}
	l.cache[i], l.used = plain, append(l.used, i)
}

// ReadAt reads plain bytes; see io.ReaderAt.
func (l *logFile) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fault.New(fault.IO, "offset %d", off).At(l.where)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, fs.ErrClosed
	}
	want := int(min(int64(len(p)), max(l.size-off, 0)))
	for n := 0; n < want; {
		at := off + int64(n)
		plain, err := l.frame(int(at / frameSize))
		if err != nil {
			return n, err
		}
		n += copy(p[n:want], plain[at%frameSize:])
	}
	if want < len(p) {
		return want, io.EOF
	}
	return want, nil
}

// Extent says of everything that it is data: what lies on the shelf has no holes.
func (l *logFile) Extent(off, n int64) (block.Extent, error) {
	if off >= l.size {
		return block.Extent{Range: block.Range{Off: off, Len: n}, Kind: block.Zero}, nil
	}
	return block.Extent{Range: block.Range{Off: off, Len: min(n, l.size-off)}}, nil
}

func (l *logFile) Name() string         { return l.name }
func (l *logFile) Size() (int64, error) { return l.size, nil }
func (l *logFile) Sync() error          { return nil }

func (l *logFile) Stamp() (durable.Stamp, error) { return durable.Stamp{Size: l.size}, nil }

func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fs.ErrClosed
	}
	l.closed, l.cache, l.head = true, nil, nil
	l.dec.Close()
	return nil
}

func (l *logFile) WriteAt([]byte, int64) (int, error) { return 0, l.readOnly() }
func (l *logFile) Truncate(int64) error               { return l.readOnly() }
func (l *logFile) ZeroAt(int64, int64) error          { return l.readOnly() }

func (l *logFile) readOnly() error {
	return &fs.PathError{Op: "write", Path: l.name, Err: fs.ErrPermission}
}
