package pageblob

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/klauspost/compress/zstd"
	"github.com/zeebo/xxh3"
	"golang.org/x/sync/errgroup"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
)

const (
	stageSize  = 4 << 20 // bytes of a staged block; a log that compresses to less is sent in one request
	stageTasks = 4
	swapTries  = 4 // of a change of a blob that something else changes at the same time
)

// shelf is the block blobs under VM/shelf/.
type shelf struct{ r *vmReplica }

func (s *shelf) blob(name string) string { return s.r.vm + "/" + shelfFolder + name }

// Path tells where a log is.
func (s *shelf) Path(name string) string { return "https://" + s.r.s.whereBlock(s.blob(name)) }

// Put lays a log on the shelf; see replica.Shelf. It returns the bytes that it has compressed to.
func (s *shelf) Put(ctx context.Context, name string, f durable.File) (int64, error) {
	if err := replica.CheckName(name); err != nil {
		return 0, fault.Wrap(fault.UsageError, err, "the name of a log").Of(s.r.vm, "")
	}
	err := s.r.writable(ctx)
	if err == nil {
		err = s.r.current(ctx)
	}
	if err != nil {
		return 0, in(err, s.r.vm, "")
	}
	u := &upload{shelf: s, name: name, write: hrl.NewID()}
	err = u.run(ctx, f)
	return u.sent, in(err, s.r.vm, "")
}

// upload is one Put.
type upload struct {
	*shelf
	name   string
	write  hrl.ID // names this upload and its blocks
	sum    xxh3.Hasher
	frames []frame
	sent   int64
	body   []byte   // not staged yet
	blocks []string // ids of the staged ones
	enc    *zstd.Encoder
	zeros  []byte // a frame of zeros, compressed
}

func (u *upload) run(ctx context.Context, f durable.File) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	if u.enc, err = newEncoder(); err != nil {
		return err
	}
	defer u.enc.Close()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(stageTasks)
	buf := durable.AlignedBuffer(frameSize)
	for off := int64(0); off < size && err == nil; off += frameSize {
		err = u.addFrame(f, buf[:min(frameSize, size-off)], off)
		if err == nil && len(u.body) >= stageSize {
			err = u.stage(gctx, g)
		}
	}
	u.body = append(u.body, tableOf(u.frames)...)
	if err == nil && len(u.blocks) > 0 {
		err = u.stage(gctx, g)
	}
	if werr := g.Wait(); werr != nil {
		return werr
	}
	if err != nil {
		return err
	}
	u.sent += int64(len(u.body))
	sum := u.sum.Sum128().Bytes()
	return u.commit(ctx, map[string]string{
		metaGeneration: strconv.FormatUint(u.r.generation.Load(), 10), metaWrite: u.write.String(),
		metaPlain: strconv.FormatInt(size, 10), metaSum: hex.EncodeToString(sum[:]),
	})
}

// addFrame compresses a part of the log. Holes are not read.
func (u *upload) addFrame(f durable.File, buf []byte, off int64) error {
	n := int64(len(buf))
	e, err := f.Extent(off, n)
	if err != nil {
		return err
	}
	at := len(u.body)
	if e.Kind == block.Zero && e.Len == n {
		clear(buf)
	} else if err := durable.ReadFull(f, buf, off); err != nil {
		return err
	}
	u.sum.Write(buf)
	switch zero := e.Kind == block.Zero && n == frameSize && e.Len == n; {
	case zero && u.zeros != nil:
		u.body = append(u.body, u.zeros...)
	case zero:
		u.zeros = u.enc.EncodeAll(buf, nil)
		u.body = append(u.body, u.zeros...)
	default:
		u.body = u.enc.EncodeAll(buf, u.body)
	}
	u.frames = append(u.frames, frame{length: int64(len(u.body) - at), plain: n})
	return nil
}

// stage sends what was collected as a block, which is part of no blob yet. Its id is this upload's, so that blocks of another
// one, interrupted before, are not taken for it.
func (u *upload) stage(ctx context.Context, g *errgroup.Group) error {
	body := u.body
	u.body, u.sent = nil, u.sent+int64(len(body))
	id := base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(u.write[:], uint32(len(u.blocks))))
	u.blocks = append(u.blocks, id)
	g.Go(func() error {
		sum := checksum(body)
		for try := 1; ; try++ {
			if err := u.r.s.gate.enter(ctx); err != nil {
				return err
			}
			_, err := u.r.s.blocks.NewBlockBlobClient(u.blob(u.name)).StageBlock(ctx, id, streaming.NopCloser(bytes.NewReader(body)),
				&blockblob.StageBlockOptions{TransactionalValidation: sum})
			u.r.s.gate.leave()
			if err = classify(err, u.r.s.whereBlock(u.blob(u.name))); err == nil || try == crcTries || !fault.Is(err, fault.StoreCorrupted) {
				return err
			}
		}
	})
	return ctx.Err()
}

// commit makes the blob, in one step. What is there is replaced only when it is what was looked at.
func (u *upload) commit(ctx context.Context, meta map[string]string) error {
	cond := ifAbsent()
	for range swapTries {
		err := u.send(ctx, meta, cond)
		if err == nil {
			return nil
		}
		if !hasCode(err, bloberror.BlobAlreadyExists, bloberror.ConditionNotMet) {
			return classify(err, u.r.s.whereBlock(u.blob(u.name)))
		}
		at, err := u.look(ctx, u.name)
		switch {
		case err != nil:
			return err
		case at == nil:
			cond = ifAbsent()
		case at.meta[metaWrite] == u.write.String():
			return nil // it was done, and the answer lost
		default:
			cond = ifMatch(at.etag)
		}
	}
	return fault.New(fault.Busy, "something else changes the log at the same time").At(u.r.s.whereBlock(u.blob(u.name)))
}

func (u *upload) send(ctx context.Context, meta map[string]string, cond *blob.AccessConditions) error {
	if len(u.blocks) == 0 {
		_, err := u.r.s.putBlock(ctx, u.blob(u.name), u.body, meta, cond)
		return err
	}
	m, err := metadata(meta)
	if err != nil {
		return err
	}
	_, err = u.r.s.blocks.NewBlockBlobClient(u.blob(u.name)).CommitBlockList(ctx, u.blocks,
		&blockblob.CommitBlockListOptions{Metadata: m, AccessConditions: cond})
	return err
}

// look looks at a log that this run wants to change. One that was put, or taken over, by a newer generation is not its own.
func (s *shelf) look(ctx context.Context, name string) (*properties, error) {
	props, err := s.r.s.blocks.NewBlobClient(s.blob(name)).GetProperties(ctx, nil)
	if isMissing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, classify(err, s.r.s.whereBlock(s.blob(name)))
	}
	if props.ETag == nil {
		return nil, notTheService(s.r.s.whereBlock(s.blob(name)))
	}
	p := &properties{etag: etagOf(props.ETag), meta: lower(props.Metadata)}
	if g, err := strconv.ParseUint(p.meta[metaGeneration], 10, 64); err == nil && g > s.r.generation.Load() {
		return nil, s.r.fenced(ctx)
	}
	return p, nil
}

// Names lists the shelf; see replica.Shelf.
func (s *shelf) Names(ctx context.Context) ([]string, error) {
	all, err := s.r.s.list(ctx, s.r.s.blocks, s.r.vm, shelfFolder, container.ListBlobsInclude{})
	if err != nil {
		return nil, in(err, s.r.vm, "")
	}
	names := []string{}
	for _, e := range all {
		if name := strings.TrimPrefix(e.name, shelfFolder); replica.CheckName(name) == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Remove removes a log; see replica.Shelf.
func (s *shelf) Remove(ctx context.Context, name string) error {
	err := s.r.writable(ctx)
	if err == nil {
		err = s.remove(ctx, name)
	}
	return in(err, s.r.vm, "")
}

func (s *shelf) remove(ctx context.Context, name string) error {
	if err := replica.CheckName(name); err != nil {
		return fault.Wrap(fault.UsageError, err, "the name of a log")
	}
	for range swapTries {
		at, err := s.look(ctx, name)
		if err != nil {
			return err
		}
		if at == nil {
			return s.r.current(ctx)
		}
		err = s.r.s.deleteBlob(ctx, s.r.s.blocks, s.blob(name), ifMatch(at.etag))
		if !fault.Is(err, fault.LedgerConflict) {
			return err
		}
	}
	return fault.New(fault.Busy, "something else changes the log at the same time").At(s.r.s.whereBlock(s.blob(name)))
}

// adopt makes the logs on the shelf those of this run's generation: what an older writer has under way to replace or remove
// them is refused.
func (s *shelf) adopt(ctx context.Context) error {
	names, err := s.Names(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := s.adoptOne(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func (s *shelf) adoptOne(ctx context.Context, name string) error {
	mine := strconv.FormatUint(s.r.generation.Load(), 10)
	for range swapTries {
		at, err := s.look(ctx, name)
		if err != nil || at == nil || at.meta[metaGeneration] == mine {
			return err
		}
		at.meta[metaGeneration] = mine
		m, err := metadata(at.meta)
		if err != nil {
			return err
		}
		_, err = s.r.s.blocks.NewBlobClient(s.blob(name)).SetMetadata(ctx, m, &blob.SetMetadataOptions{AccessConditions: ifMatch(at.etag)})
		if err == nil || isMissing(err) {
			return nil
		}
		if !hasCode(err, bloberror.ConditionNotMet) {
			return classify(err, s.r.s.whereBlock(s.blob(name)))
		}
	}
	return fault.New(fault.Busy, "something else changes the log at the same time").At(s.r.s.whereBlock(s.blob(name)))
}

// Open opens a log for reading; see replica.Shelf.
func (s *shelf) Open(ctx context.Context, name string) (durable.File, error) {
	if err := replica.CheckName(name); err != nil {
		return nil, fault.Wrap(fault.UsageError, err, "the name of a log").Of(s.r.vm, "")
	}
	l, err := openLog(ctx, s, name)
	if fault.Is(err, fault.NotFound) {
		err = &fs.PathError{Op: "open", Path: s.Path(name), Err: fs.ErrNotExist}
	}
	if err != nil {
		return nil, in(err, s.r.vm, "")
	}
	return l, nil
}
