package vhdx

import (
	"encoding/binary"
	"hash/crc32"
)

// maxLogged is how many sectors one entry of the log may change. Two entries of that many fit into the smallest log, so
// that a torn entry never destroys the one before it.
const maxLogged = 100

// logged is one table sector that goes through the log.
type logged struct {
	at   int64 // place in the file
	data []byte
}

// logWriter appends entries to the ring of a file.
type logWriter struct {
	ring     ring
	next     int64 // place in the log of the next entry
	sequence uint64
}

// append writes an entry that is its own tail: what older entries changed has to be durable in its place by now. The
// entry is durable after the next Sync.
func (l *logWriter) append(sectors []logged, fileSize int64) error {
	entry := l.encode(sectors, fileSize)
	first := min(int64(len(entry)), l.ring.size-l.next)
	if _, err := l.ring.v.f.WriteAt(entry[:first], l.ring.off+l.next); err != nil {
		return err
	}
	if rest := entry[first:]; len(rest) > 0 {
		if _, err := l.ring.v.f.WriteAt(rest, l.ring.off); err != nil {
			return err
		}
	}
	l.next = (l.next + int64(len(entry))) % l.ring.size
	l.sequence++
	return nil
}

// encode makes an entry ([MS-VHDX] 2.3.1). FlushedFileOffset and LastFileOffset are the size of the file: it is durable,
// and everything lies in it.
func (l *logWriter) encode(sectors []logged, fileSize int64) []byte {
	e := logEntry{count: int64(len(sectors))}
	dataAt := e.descSectors() * sectorSize
	p := make([]byte, dataAt+int64(len(sectors))*sectorSize)
	le := binary.LittleEndian
	copy(p, logMagic)
	le.PutUint32(p[8:], uint32(len(p)))
	le.PutUint32(p[12:], uint32(l.next))
	le.PutUint64(p[16:], l.sequence)
	le.PutUint32(p[24:], uint32(len(sectors)))
	copy(p[32:], l.ring.guid[:])
	le.PutUint64(p[48:], uint64(fileSize))
	le.PutUint64(p[56:], uint64(fileSize))
	for i, s := range sectors {
		encodeSector(p[logHeaderSize+i*descSize:][:descSize], p[dataAt+int64(i)*sectorSize:][:sectorSize], s, l.sequence)
	}
	le.PutUint32(p[4:], crc32.Checksum(p, castagnoli()))
	return p
}

// encodeSector writes the descriptor and the data sector of one change (2.3.1.3, 2.3.1.4).
func encodeSector(desc, sector []byte, s logged, sequence uint64) {
	le := binary.LittleEndian
	copy(desc, "desc")
	copy(desc[4:], s.data[sectorSize-4:])
	copy(desc[8:], s.data[:8])
	le.PutUint64(desc[16:], uint64(s.at))
	le.PutUint64(desc[24:], sequence)
	copy(sector, s.data)
	copy(sector, "data")
	le.PutUint32(sector[4:], uint32(sequence>>32))
	le.PutUint32(sector[sectorSize-4:], uint32(sequence))
}
