package scan

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/zeebo/xxh3"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/sums"
)

// formatVersion is the version of position.json and of the files that it names.
const formatVersion = 1

// recordLimit bounds position.json: some hundred bytes for each file of each disk.
const recordLimit = 16 << 20

// record is what position.json says.
type record struct {
	Format   int          `json:"format"`
	VM       string       `json:"vm"`
	Position hrl.Pos      `json:"position"`
	Disks    []diskRecord `json:"disks"`
}

type diskRecord struct {
	Name      string    `json:"name"`
	Size      int64     `json:"size"`       // guest bytes
	BlockSize int64     `json:"block_size"` // bytes
	Sums      uint64    `json:"sums"`       // the number of the sums file
	Seal      sums.Seal `json:"seal"`       // of the sums, the redo file included
	Redo      *redo     `json:"redo,omitempty"`
	// Stamps are of the files of the disk when it was last read, the image itself first. Certain says that they would
	// have changed with any write since, as long as the machine runs (Boot): a power cut may leave a file with bytes that a
	// guest wrote last and with times from before.
	Stamps  []stamp `json:"stamps,omitempty"`
	Certain bool    `json:"certain"`
	Boot    string  `json:"boot,omitempty"`
}

func (r diskRecord) blocks() int64 { return block.Count(r.Size, r.BlockSize) }

func (r *record) disk(name string) *diskRecord {
	for i := range r.Disks {
		if r.Disks[i].Name == name {
			return &r.Disks[i]
		}
	}
	return nil
}

// clone returns a copy whose disks can be changed.
func (r *record) clone() *record {
	c := *r
	c.Disks = slices.Clone(r.Disks)
	return &c
}

// envelope is position.json: the record, and the xxh3-128 of its bytes.
type envelope struct {
	Sum    string          `json:"xxh3_128"`
	Record json.RawMessage `json:"record"`
}

func sumOf(p []byte) string {
	b := xxh3.Hash128(p).Bytes()
	return fmt.Sprintf("%x", b)
}

// errDamaged is wrapped by errors that mean: what is remembered cannot be believed. Others are errors of reading.
var errDamaged = errors.New("what was remembered cannot be used")

func damaged(path, format string, args ...any) error {
	return fault.Wrap(fault.PositionLost, errDamaged, format, args...).At(path)
}

func parseRecord(path string, data []byte) (*record, error) {
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return nil, damaged(path, "not a position record (%v)", err)
	}
	if e.Sum != sumOf(e.Record) {
		return nil, damaged(path, "its checksum does not match")
	}
	var r record
	if err := json.Unmarshal(e.Record, &r); err != nil {
		return nil, damaged(path, "not a position record (%v)", err)
	}
	if r.Format != formatVersion {
		return nil, damaged(path, "has format %d, this version knows %d", r.Format, formatVersion)
	}
	for _, d := range r.Disks {
		if d.Size < 0 || d.BlockSize <= 0 || d.Size > 1<<62 || d.BlockSize > 1<<40 {
			return nil, damaged(path, "disk %s has size %d and block size %d", d.Name, d.Size, d.BlockSize)
		}
	}
	return &r, nil
}

func (t *Tracker) save(r *record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	data, err := json.Marshal(envelope{Sum: sumOf(raw), Record: raw})
	if err != nil {
		return err
	}
	return durable.WriteFile(t.fs, t.recordPath(), append(data, '\n'))
}

// load makes memory say what the files say.
func (t *Tracker) load() error {
	t.rec, t.why = nil, nil
	if err := t.numberFiles(); err != nil {
		return err
	}
	rec, err := t.read()
	if err == nil && rec != nil && !t.looking {
		// A run that was killed may have given it its name a moment ago. Nothing may rest on that, no file be removed and no position be
		// told, before the power can be cut.
		if err = t.fs.SyncDir(t.c.Dir); err == nil {
			err = t.replayAll(rec)
		}
	}
	if errors.Is(err, errDamaged) {
		t.why = err
		return nil
	}
	if err != nil {
		return err
	}
	if rec != nil {
		if err := t.fits(rec); err != nil {
			t.why = err // the files stay: the site file may be put right
			return nil
		}
	}
	t.rec = rec
	if t.looking {
		return nil
	}
	return t.sweep(rec)
}

// read returns the stored record, nil when there is none.
func (t *Tracker) read() (*record, error) {
	data, err := durable.ReadFile(t.fs, t.recordPath(), recordLimit)
	var large *durable.TooLargeError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.As(err, &large):
		return nil, damaged(t.recordPath(), "is %d bytes long", large.Size)
	case err != nil:
		return nil, err
	}
	rec, err := parseRecord(t.recordPath(), data)
	if err != nil {
		return nil, err
	}
	if rec.VM != t.c.VM {
		return nil, damaged(t.recordPath(), "is of VM %s", rec.VM)
	}
	for _, d := range rec.Disks {
		path := t.sumsPath(d.Name, d.Sums)
		if _, err := t.fs.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return nil, damaged(path, "the block sums are missing")
		} else if err != nil {
			return nil, err
		}
	}
	return rec, nil
}

// fits says whether the record is of the disks that the site file has now.
func (t *Tracker) fits(r *record) error {
	if len(r.Disks) != len(t.c.Disks) {
		return fault.New(fault.PositionLost, "the VM had %d disks when they were last read and has %d now",
			len(r.Disks), len(t.c.Disks))
	}
	for _, d := range t.c.Disks {
		old := r.disk(d.Name)
		if old == nil {
			return fault.New(fault.PositionLost, "the disk was not there when the VM was last read").Of("", d.Name)
		}
		if old.BlockSize != d.BlockSize {
			return fault.New(fault.PositionLost, "the block size was %d and is %d now", old.BlockSize, d.BlockSize).Of("", d.Name)
		}
	}
	return nil
}

// replayAll completes the Advance that made rec, when it was interrupted.
func (t *Tracker) replayAll(rec *record) error {
	pending := false
	for i := range rec.Disks {
		d := &rec.Disks[i]
		if d.Redo == nil {
			continue
		}
		pending = true
		if err := t.replay(*d); err != nil {
			return err
		}
		d.Redo = nil
	}
	if !pending {
		return nil
	}
	return t.save(rec)
}

// commit makes rec the position of the tracker: when it returns an error, memory says what the files say.
func (t *Tracker) commit(rec *record) error {
	err := t.fs.SyncDir(t.c.Dir) // the files that rec names
	if err == nil {
		err = t.save(rec)
	}
	if err == nil {
		err = t.replayAll(rec)
	}
	if err != nil {
		return t.undone(fault.In(err, t.c.VM, ""))
	}
	t.rec, t.why = rec, nil
	return fault.In(t.sweep(rec), t.c.VM, "")
}

// undone reads again what the tracker stands at after a step that failed.
func (t *Tracker) undone(err error) error {
	return errors.Join(err, t.load())
}

// numberFiles makes sure that no number is given to two files.
func (t *Tracker) numberFiles() error {
	return t.eachFile(func(_ string, n uint64) error {
		t.next = max(t.next, n)
		return nil
	})
}

// sweep removes the files that rec does not name.
func (t *Tracker) sweep(rec *record) error {
	keep := map[string]bool{}
	if rec != nil {
		for _, d := range rec.Disks {
			keep[filepath.Base(t.sumsPath(d.Name, d.Sums))] = true
		}
	}
	return t.eachFile(func(name string, _ uint64) error {
		if keep[name] {
			return nil
		}
		return durable.RemoveIfThere(t.fs, filepath.Join(t.c.Dir, name))
	})
}

// eachFile calls f for the tracker's files in its folder, but for position.json. n is 0 for temporary ones.
func (t *Tracker) eachFile(f func(name string, n uint64) error) error {
	entries, err := t.fs.ReadDir(t.c.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		n, ours := fileNumber(e.Name)
		if e.Dir || !ours {
			continue
		}
		if err := f(e.Name, n); err != nil {
			return err
		}
	}
	return nil
}

// fileNumber takes N from DISK.N.sums and DISK.N.redo.
func fileNumber(name string) (n uint64, ours bool) {
	if durable.IsTemp(name) {
		return 0, true
	}
	rest, ok := strings.CutSuffix(name, ".sums")
	if !ok {
		rest, ok = strings.CutSuffix(name, ".redo")
	}
	i := strings.LastIndexByte(rest, '.')
	if !ok || i < 1 {
		return 0, false
	}
	n, err := strconv.ParseUint(rest[i+1:], 10, 64)
	return n, err == nil
}
