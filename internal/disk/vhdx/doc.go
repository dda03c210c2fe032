// Package vhdx reads, creates and changes in place virtual disks in the VHDX format of [MS-VHDX]: fixed, dynamic and
// differencing, with logical sectors of 512 and of 4096 bytes.
//
// A VHDX file is a row of structures, each at a multiple of 1 MiB:
//
//	0      file identifier (64 KiB), two headers (at 64 and 128 KiB), two region tables (at 192 and 256 KiB)
//	log    a ring of entries; each entry says what some 4 KiB sectors of the tables below are to contain
//	meta   the metadata: size of the disk, of its blocks and sectors, where its parent is
//	BAT    the block allocation table: for every block of the disk its state and its place in the file
//	...    payload blocks and, in a differencing disk, sector bitmaps, in any order
//
// The disk is cut into payload blocks of 1 to 256 MiB. Payload is written in place, without the log. Tables are changed
// through the log only: the entry is made durable first, then the table is written. A reader that finds a log in use
// (a header with a LogGuid) has to replay it before it believes any table. Open does so in memory and never writes to
// the file; OpenRW does so in the file.
//
// A differencing disk holds what was changed since its parent was frozen. A block that it does not have, or a sector
// whose bit is clear in the bitmap of a block that it has in part, is the parent's. The child remembers the
// DataWriteGuid of the parent; a parent with another one was written to, and the chain can no longer be read.
//
// Nothing here trusts the file: every length is checked before memory is taken for it, every offset before it is used,
// and structures that overlap are an error. Tables are read in pages on demand, so that memory does not grow with the
// size of the disk, except for one bit per MiB of the file.
package vhdx
