package qcow2

import (
	"bytes"
	"compress/flate"
	"errors"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
)

// unpacked keeps one cluster that was unpacked.
type unpacked struct {
	mu    sync.Mutex
	entry uint64 // of the table; 0: none
	data  []byte
}

// readPacked reads a part of a compressed cluster.
func (m *Image) readPacked(p []byte, r run) error {
	u := &m.unpacked[(r.Off>>m.bits)%keptUnpacked]
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.entry != r.entry {
		u.entry = 0
		if u.data == nil {
			u.data = make([]byte, m.cluster())
		}
		if err := m.unpack(u.data, r.entry); err != nil {
			return err
		}
		u.entry = r.entry
	}
	copy(p, u.data[r.Off&(m.cluster()-1):])
	return nil
}

// unpack fills p with the cluster of an entry: offset and number of sectors share its bits, by the size of clusters. The number
// is rounded up, and the file may end before.
func (m *Image) unpack(p []byte, entry uint64) error {
	split := 62 - (m.bits - 8)
	at := int64(entry & (1<<split - 1))
	sectors := int64(entry &^ (compressed | copied) >> split)
	n := min((sectors+1)*sectorSize-at%sectorSize, m.fileSize-at)
	if n <= 0 {
		return m.corrupt(at, "a compressed cluster does not lie in the file")
	}
	in := make([]byte, n)
	if err := durable.ReadFull(m.file, in, at); err != nil {
		return fault.FromOS(err)
	}
	if err := m.inflate(p, in); err != nil {
		return m.corrupt(at, "a compressed cluster cannot be unpacked: %v", err)
	}
	return nil
}

func (m *Image) inflate(p, in []byte) (err error) {
	if m.compression == deflated {
		r := flate.NewReader(bytes.NewReader(in))
		_, err = io.ReadFull(r, p)
		return errors.Join(err, r.Close())
	}
	r, err := zstd.NewReader(bytes.NewReader(in), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.ReadFull(r, p)
	return err
}
