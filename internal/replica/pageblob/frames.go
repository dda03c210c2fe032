package pageblob

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// A log lies on the shelf as frames of zstd, each of a MiB of the log (the last may be shorter), followed by a table of their
// lengths in the "seekable format" of the zstd project, in a frame that decoders skip: zstd -d makes the log of it, and any part
// of the log can be read without the rest.
const (
	frameSize    = 1 << 20
	skipMagic    = 0x184D2A5E
	tableMagic   = 0x8F92EAB1
	tableHeader  = 8 // of the skippable frame
	tableFooter  = 9
	tableEntry   = 8
	maxFrames    = 1 << 24
	mostOfFrame  = frameSize + frameSize/2 // what a frame can have compressed
	entrySumFlag = 0x80
)

// frame is where one is in the blob.
type frame struct {
	at, length int64 // compressed
	plain      int64 // bytes
}

// tableOf writes the table of frames.
func tableOf(frames []frame) []byte {
	le := binary.LittleEndian
	out := le.AppendUint32(nil, skipMagic)
	out = le.AppendUint32(out, uint32(len(frames)*tableEntry+tableFooter))
	for _, f := range frames {
		out = le.AppendUint32(out, uint32(f.length))
		out = le.AppendUint32(out, uint32(f.plain))
	}
	out = le.AppendUint32(out, uint32(len(frames)))
	out = append(out, 0)
	return le.AppendUint32(out, tableMagic)
}

var errTable = errors.New("the table of frames is damaged")

// tableLength is the length of the table, from its last bytes.
func tableLength(tail []byte) (int64, error) {
	if len(tail) < tableFooter {
		return 0, errTable
	}
	tail = tail[len(tail)-tableFooter:]
	n := binary.LittleEndian.Uint32(tail)
	if binary.LittleEndian.Uint32(tail[5:]) != tableMagic || n > maxFrames || tail[4]&entrySumFlag != 0 {
		return 0, errTable
	}
	return tableHeader + int64(n)*tableEntry + tableFooter, nil
}

// parseTable reads the table of a blob of size bytes; all of it has to be there, and to fit.
func parseTable(table []byte, size int64) (frames []frame, plain int64, err error) {
	le := binary.LittleEndian
	if n, err := tableLength(table); err != nil || n != int64(len(table)) || le.Uint32(table) != skipMagic ||
		int64(le.Uint32(table[4:])) != n-tableHeader {
		return nil, 0, errTable
	}
	at := int64(0)
	for e := table[tableHeader : len(table)-tableFooter]; len(e) > 0; e = e[tableEntry:] {
		f := frame{at: at, length: int64(le.Uint32(e)), plain: int64(le.Uint32(e[4:]))}
		short := f.plain != frameSize && len(e) > tableEntry
		if f.length <= 0 || f.length > mostOfFrame || f.plain <= 0 || f.plain > frameSize || short {
			return nil, 0, errTable
		}
		frames = append(frames, f)
		at, plain = at+f.length, plain+f.plain
	}
	if at+int64(len(table)) != size {
		return nil, 0, errTable
	}
	return frames, plain, nil
}

func newEncoder() (*zstd.Encoder, error) {
	return zstd.NewWriter(nil, zstd.WithEncoderCRC(true), zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true))
}

func newDecoder() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(4*frameSize))
}

// decode decodes one frame, which has a checksum of its content.
func decode(d *zstd.Decoder, in []byte, plain int64) ([]byte, error) {
	out, err := d.DecodeAll(in, make([]byte, 0, plain))
	if err == nil && int64(len(out)) != plain {
		err = fmt.Errorf("a frame has %d bytes instead of %d", len(out), plain)
	}
	return out, err
}
