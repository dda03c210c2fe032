package hrl

import "time"

// Info says what a log is, as far as its header tells.
type Info struct {
	Identity         *Identity // nil: not one of our logs
	Version          int       // 1 or 2, of [MS-HRL]
	UniqueID         ID
	PreviousUniqueID ID // zero: there is no log before it
	DataWriteGUID    [16]byte
	// Sealed says that the log was closed by its writer: it is complete.
	Sealed bool
	// Size is the length of the file, End where the content ends: what was sealed, or last committed. Torn is what
	// comes after End, in bytes: a tail that was never committed and does not count.
	Size, End, Torn int64
	MetadataSize    int64
	Entries         int64 // TotalMetadataEntries
	// DataBytes and ZeroBytes are what the records hold, -1 when the header does not say (a foreign log).
	DataBytes, ZeroBytes int64
	Created, Modified    time.Time // to the second
}

// info describes the log whose file has size bytes.
func (h *header) info(size int64) Info {
	i := Info{
		Version: int(h.version >> 16), UniqueID: h.uniqueID, PreviousUniqueID: h.previousID, DataWriteGUID: h.dataWrite,
		Sealed: h.eol != 0, Size: size, End: int64(h.eol), MetadataSize: int64(h.metadataSize),
		Entries: int64(h.entries), DataBytes: -1, ZeroBytes: -1,
		Created: stampTime(h.created), Modified: stampTime(h.modified),
	}
	if !i.Sealed {
		i.End = int64(h.currentSize)
	}
	if h.ours != nil {
		id := h.ours.id
		i.Identity = &id
		i.DataBytes, i.ZeroBytes = int64(h.ours.dataBytes), int64(h.ours.zeroBytes)
	}
	i.Torn = max(size-i.End, 0)
	return i
}
