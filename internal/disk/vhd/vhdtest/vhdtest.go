// Package vhdtest puts VHD files together byte by byte for tests, after the specification and with no code of the product,
// so that the two check each other. It can make what no writer here makes: differencing disks, and damaged ones.
package vhdtest

import (
	"bytes"
	"encoding/binary"
	"unicode/utf16"
)

// The types of disks.
const (
	Dynamic      = 3
	Differencing = 4
)

// File describes a dynamic or differencing disk.
type File struct {
	Type      uint32
	ID        [16]byte
	Size      int64 // guest bytes
	BlockSize int64 // guest bytes
	Parent    [16]byte
	Name      string            // Parent Unicode Name
	Locators  map[string]string // by platform code
	Blocks    map[int]Block
	Order     []int // of the blocks in the file
	More      int   // table entries that the disk does not need
}

// Block is one block of a disk.
type Block struct {
	Set  []int  // the sectors whose bit is set
	Data []byte // all its guest bytes
}

func (x File) footer() []byte {
	b := make([]byte, 512)
	copy(b, "conectix\x00\x00\x00\x02\x00\x01\x00\x00")
	binary.BigEndian.PutUint64(b[16:], 512)
	copy(b[28:], "vpc \x00\x05\x00\x03Wi2k")
	binary.BigEndian.PutUint64(b[40:], uint64(x.Size))
	binary.BigEndian.PutUint64(b[48:], uint64(x.Size))
	copy(b[56:], "\x00\x01\x04\x11") // a geometry that says much less
	binary.BigEndian.PutUint32(b[60:], x.Type)
	copy(b[68:], x.ID[:])
	Seal(b, 64)
	return b
}

// Seal writes the checksum of b into the field at off.
func Seal(b []byte, off int) {
	clear(b[off : off+4])
	var n uint32
	for _, c := range b {
		n += uint32(c)
	}
	binary.BigEndian.PutUint32(b[off:], ^n)
}

func units(s string, order binary.AppendByteOrder) (out []byte) {
	for _, u := range utf16.Encode([]rune(s)) {
		out = order.AppendUint16(out, u)
	}
	return out
}

// Bytes lays the file out: copy, header, names of the parent, table, blocks, footer.
func (x File) Bytes() []byte {
	head := make([]byte, 1024)
	be := binary.BigEndian
	copy(head, "cxsparse\xff\xff\xff\xff\xff\xff\xff\xff")
	count := int((x.Size + x.BlockSize - 1) / x.BlockSize)
	copy(head[24:], "\x00\x01\x00\x00")
	be.PutUint32(head[28:], uint32(count+x.More))
	be.PutUint32(head[32:], uint32(x.BlockSize))
	copy(head[40:], x.Parent[:])
	copy(head[64:], units(x.Name, binary.BigEndian))
	var names []byte
	k := 0
	for _, code := range []string{"W2ku", "W2ru", "MacX", "Wi2r"} {
		path, ok := x.Locators[code]
		if !ok {
			continue
		}
		text := units(path, binary.LittleEndian)
		if code == "MacX" {
			text = []byte(path)
		}
		l := head[576+24*k:]
		copy(l, code)
		be.PutUint32(l[4:], 1) // sectors, where Windows writes bytes
		be.PutUint32(l[8:], uint32(len(text)))
		be.PutUint64(l[16:], uint64(1536+len(names)))
		names = append(names, text...)
		names = append(names, make([]byte, 512-len(text)%512)...)
		k++
	}
	table := bytes.Repeat([]byte{0xff}, (4*(count+x.More)+511)/512*512)
	be.PutUint64(head[16:], uint64(1536+len(names)))
	var body []byte
	at := 1536 + len(names) + len(table)
	for _, i := range x.Order {
		be.PutUint32(table[4*i:], uint32((at+len(body))/512))
		bits := make([]byte, (x.BlockSize/512/8+511)/512*512)
		for _, s := range x.Blocks[i].Set {
			bits[s/8] |= 1 << (7 - s%8)
		}
		body = append(append(body, bits...), x.Blocks[i].Data...)
	}
	Seal(head, 36)
	f := x.footer()
	return bytes.Join([][]byte{f, head, names, table, body, f}, nil)
}
