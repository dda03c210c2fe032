package vhdx

import (
	"encoding/binary"
	"unicode/utf16"
)

// ParentLocator says which file the parent of a differencing disk is.
type ParentLocator struct {
	// Linkage is the DataWriteGuid that the parent has to have.
	Linkage GUID
	// Linkage2 is a second one, which is right as well, while a merge is under way; zero when there is none. Windows
	// writes zeros.
	Linkage2 GUID
	// Paths are the places where the parent may be, in the order in which they are to be tried, as they are written:
	// relative to the folder of the child, on a volume, absolute. They are Windows paths, with backslashes.
	Paths []string
}

// matches says whether the linkage allows a parent with that DataWriteGuid.
func (l ParentLocator) matches(g GUID) bool {
	return g == l.Linkage || (!l.Linkage2.IsZero() && g == l.Linkage2)
}

// Keys of a locator ([MS-VHDX] 2.6.2.6.3).
const (
	keyLinkage  = "parent_linkage"
	keyLinkage2 = "parent_linkage2"
	keyRelative = "relative_path"
	keyVolume   = "volume_path"
	keyAbsolute = "absolute_win32_path"
)

// readLocator reads the parent locator of a differencing disk.
func (v *view) readLocator(it item, regionOff int64) (l ParentLocator, err error) {
	if it.Len < 20 {
		return l, v.corrupt(regionOff, "the disk has a parent but no parent locator")
	}
	p := make([]byte, it.Len)
	if err := v.read(p, it.Off); err != nil {
		return l, err
	}
	if t := GUID(p[:16]); t != locatorVHDX() {
		return l, v.unsupported(it.Off, "the parent is of the unknown type %s", t)
	}
	values, err := v.locatorValues(p, it.Off)
	if err != nil {
		return l, err
	}
	if l.Linkage, err = ParseGUID(values[keyLinkage]); err != nil {
		return l, v.corrupt(it.Off, "the parent locator names no parent: %v", err)
	}
	if s := values[keyLinkage2]; s != "" {
		if l.Linkage2, err = ParseGUID(s); err != nil {
			return l, v.corrupt(it.Off, "the parent locator: %v", err)
		}
	}
	for _, k := range []string{keyRelative, keyVolume, keyAbsolute} {
		if values[k] != "" {
			l.Paths = append(l.Paths, values[k])
		}
	}
	return l, nil
}

// locatorValues decodes the keys that are known, and none other: a hostile table can name the same long text often.
func (v *view) locatorValues(p []byte, at int64) (map[string]string, error) {
	le := binary.LittleEndian
	count := int64(le.Uint16(p[18:]))
	if 20+12*count > int64(len(p)) {
		return nil, v.corrupt(at, "the parent locator is too short for its %d entries", count)
	}
	values := map[string]string{}
	for i := range count {
		e := p[20+12*i:]
		key, ok1 := part(p, le.Uint32(e[0:]), le.Uint16(e[8:]))
		value, ok2 := part(p, le.Uint32(e[4:]), le.Uint16(e[10:]))
		if !ok1 || !ok2 {
			return nil, v.corrupt(at+20+12*i, "an entry of the parent locator points outside of it")
		}
		if len(key) > 2*len(keyAbsolute) {
			continue
		}
		k := decodeUTF16(key)
		switch k {
		case keyLinkage, keyLinkage2, keyRelative, keyVolume, keyAbsolute:
		default:
			continue
		}
		if _, twice := values[k]; twice {
			return nil, v.corrupt(at+20+12*i, "the parent locator has %s twice", k)
		}
		values[k] = decodeUTF16(value)
	}
	return values, nil
}

func part(p []byte, off uint32, n uint16) ([]byte, bool) {
	if int64(off)+int64(n) > int64(len(p)) || n%2 != 0 {
		return nil, false
	}
	return p[off:][:n], true
}

func decodeUTF16(p []byte) string {
	u := make([]uint16, len(p)/2)
	for i := range u {
		u[i] = binary.LittleEndian.Uint16(p[2*i:])
	}
	return string(utf16.Decode(u))
}

func encodeUTF16(s string) []byte {
	var p []byte
	for _, u := range utf16.Encode([]rune(s)) {
		p = binary.LittleEndian.AppendUint16(p, u)
	}
	return p
}

// encodeLocator writes a parent locator; a path that is "" is left out.
func encodeLocator(linkage GUID, relative, absolute string) []byte {
	pairs := [][2]string{{keyLinkage, "{" + linkage.String() + "}"}}
	for _, kv := range [][2]string{{keyRelative, relative}, {keyAbsolute, absolute}} {
		if kv[1] != "" {
			pairs = append(pairs, kv)
		}
	}
	le := binary.LittleEndian
	head := make([]byte, 20+12*len(pairs))
	typ := locatorVHDX()
	copy(head, typ[:])
	le.PutUint16(head[18:], uint16(len(pairs)))
	var texts []byte
	for i, kv := range pairs {
		e := head[20+12*i:]
		for j, s := range kv {
			text := encodeUTF16(s)
			le.PutUint32(e[4*j:], uint32(len(head)+len(texts)))
			le.PutUint16(e[8+2*j:], uint16(len(text)))
			texts = append(texts, text...)
		}
	}
	return append(head, texts...)
}
