// Package hrl is the change log: the writes to one disk that lead from one position to the next, in a file that is
// written beside the disk, sealed, shipped to the store and applied to the replica.
//
// The format is that of [MS-HRL], the Hyper-V Replica Log, version 2. A reader that knows nothing but that specification
// reads our sealed logs and gets the same writes; we read any log of version 1 or 2. What the specification lacks for us
// lies in bytes that it reserves, and in the unused tails of its metadata blocks. This comment is the specification of that.
//
// # The file
//
// All numbers are little-endian, nothing is padded. A header of 4096 bytes is followed by batches: the data of some writes,
// back to back in the order of their entries, then one metadata block of MetadataSize bytes (4096 in ours; we read any
// multiple of 512 up to 1 MiB) that describes them. A log begins with a batch of nothing, as those of Microsoft's writer
// do, so that there always is a last metadata block. The file ends after the last one.
//
//	header, [MS-HRL] 2.2
//	  0   8  Cookie                "msctlog " (we also read NUL as the eighth)
//	  8   4  LogFormatVersion      0x00020000; 0x00010000 is read too
//	 12   4  TimeStamp             seconds since 2000-01-01 UTC; ours: of the cut, here and everywhere
//	 16   4  CreatorApplication    "sitr"; not checked
//	 20   4  CreatorVersion        0x00010000; not checked
//	 24   8  OriginalSize          8192; not checked
//	 32   8  CurrentSize           in an unsealed log of ours: what is committed; else the size of the file
//	 40   4  Checksum              of the 4096 bytes, this field left out: one's complement of the sum of all bytes
//	 44   8  EOLLocation           the end of the last metadata block; 0 until the log is sealed
//	 52   4  ErrorCode             0
//	 56   4  MetadataSize          4096
//	 60  16  UniqueId              LogID of To
//	 76  16  PreviousUniqueId      LogID of From, 0 when From is the beginning
//	 92   4  LastModifiedTimeStamp
//	 96   8  TotalMetadataEntries
//	104   4  FileType              0
//	108   2  Flags                 0
//	110  16  Vhd2DataWriteGuid     not in version 1; ours: 0 when the disk is no VHDX
//	126 3970 Reserved              ours: see below
//
//	ours, in the header's Reserved
//	126   6  "SITREP"
//	132   2  format                1; another number is LogVersion
//	134   1  kind                  1 redo, 2 undo
//	135   1  flags                 bit 0: To is application-consistent
//	136  16  digest of the header
//	152   8  bytes of data in all records
//	160   8  bytes of zeros in all records
//	168  16  replica
//	184  24  From                  number (8), ID (16)
//	208  24  To                    number (8), ID (16)
//	232   8  size of the disk at From
//	240   8  size of the disk at To
//	248   8  block size            a power of two from 512 to 1 MiB
//	256   8  time of the cut       nanoseconds since 1970 UTC
//	264   2  length of the VM's name, 1 to 255
//	266   2  length of the disk's name, 1 to 255
//	268      both names, UTF-8; the rest is zero
//
//	metadata header, [MS-HRL] 2.3
//	  0   8  PreviousMetadataLocation  how far before this block the one before it lies; 0 in the first
//	  8   4  ValidMetadataEntries
//	 12   4  Checksum              of these 32 bytes
//	 16  16  Reserved              ours: digest of the batch
//
//	metadata entry, [MS-HRL] 2.4, one after the other
//	  0   8  ByteOffset            on the disk
//	  8   4  Checksum              of these 32 bytes
//	 12   4  DataLength
//	 16   4  TimeStamp
//	 20   1  MetaOperation         1, write: the only one
//	 21   4  DataChecksum          0, which means none, as Microsoft's writer leaves it; others are checked
//	 25   1  Location              0; not checked
//	 26   6  Reserved              ours: bit 0 of the first byte says that the data is all zeros
//
// Right after its last entry, a metadata block of ours holds the sums (package sums, 16 bytes each) of the blocks of its
// data entries, in their order. To a plain reader that is the unused part of the block. So sums travel with what they
// prove, no table has to be kept while the log is written, and as many entries go into a metadata block as fit with
// their sums: 84 single blocks, or one run of 252.
//
// # Records
//
// All records of ours are whole blocks, the last block of the disk clipped to its size, and no two of one log overlap: the
// Writer refuses that. A data record has at most 1 MiB and no block of zeros; zeros are records of their own, up to
// 4095 MiB each, whose data is a hole in the file: never written, never read, no space (on a filesystem with sparse
// files), but there for a plain reader. The longest run of zeros that a log can hold is therefore bounded by the
// filesystem's longest file: 16 TiB on ext4.
//
// As long as the disk's size is a multiple of 4096 and blocks are not smaller, everything in the file is aligned to 4096.
// Nothing relies on it, but transfers can then go around the page cache.
//
// # What proves what
//
// [MS-HRL]'s own checksum sees no reordering and covers no data. Ours are xxh3-128, against damage and mix-ups, not against
// an adversary:
//
//   - the sum of a block proves its data;
//   - the digest of a batch is taken over UniqueId (16), the metadata block's offset in the file (8), the digest of the
//     batch before it (16, zero for the first), bytes 0 to 11 of the metadata block, and the xxh3-128 of its bytes from 32
//     on: all entries and sums. Each batch can be verified on its own, several at a time, and none can be replaced, moved
//     or left out;
//   - the digest of the header is taken over the digest of the last batch (16), the header's bytes 0 to 39 and 44 to 135, and
//     the xxh3-128 of its bytes from 152 on.
//
// An xxh3-128 is written as xxh3 prints it, most significant byte first.
//
// # Commit and seal
//
// A commit writes data and metadata, syncs, then writes the first 512 bytes of the header with CurrentSize, the totals,
// digest and checksum, and syncs. Everything that changes in a header lies in these 512 bytes, and a disk writes a sector
// whole or not at all (package durable). Sealing is the same with EOLLocation and CurrentSize both the end of the file. A
// log gets its name only when it has a durable header.
//
// So a crash leaves a header that speaks of the last commit, and after it a torn tail, which does not count and is
// reported by Info. What the header speaks of has to be there and verify: anything else is damage, LogCorrupt with file and
// offset, in an unsealed log as in a sealed one. A foreign log with EOLLocation 0 was not closed properly, and nothing says
// up to where it can be trusted: LogTorn.
//
// [MS-HRL] 2.5 read literally never stops at the first metadata block, the PreviousMetadataLocation of which is 0. We stop there.
package hrl
