// Package disk shows a virtual disk as its guest sees it, whatever the format of the file: raw, VHD (fixed, dynamic,
// differencing), VHDX (the same), qcow2 (reading only) and block devices.
package disk

import (
	"io"

	"sitrep/internal/block"
)

// Format names how a disk lies in its file.
type Format string

// The formats. They are also the words of the site file and of recovery settings.
const (
	Auto Format = ""     // by signature
	Raw  Format = "raw"  // the guest's bytes and nothing else, also a block device
	VHD  Format = "vhd"  // fixed, dynamic or differencing
	VHDX Format = "vhdx" // fixed, dynamic or differencing
	// QCOW2 is what a VM is recovered to and brought home from: it is read only when it is named, is never written to in
	// place, and is no format of a disk that is protected.
	QCOW2 Format = "qcow2"
)

// Image is a guest's view of a virtual disk. It may be read concurrently.
type Image interface {
	// ReadAt reads guest bytes. Memory and offsets that are multiples of 4096 bytes are passed on to the file as they
	// are, so that large reads are not copied.
	io.ReaderAt
	// Size is the number of guest bytes, a multiple of 512.
	Size() int64
	// Extent returns the first run of one kind at off, clipped to n bytes (n > 0, off+n <= Size). It reads no data.
	// Zero is said only of bytes that are certain to be zero, through the whole chain of parents.
	Extent(off, n int64) (block.Extent, error)
	Close() error
}

// Writable is an image that can be changed in place. Writes are not concurrent with each other. A kill or a power cut
// at any time leaves a valid image in which each 512-byte sector written since the last Flush is the old or the new one.
type Writable interface {
	Image
	io.WriterAt
	// ZeroAt makes a range read as zero, giving space back where the format can.
	ZeroAt(off, n int64) error
	// Flush returns when everything written before it survives a power cut.
	Flush() error
}
