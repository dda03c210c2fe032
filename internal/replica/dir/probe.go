package dir

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/replica"
)

// probePrefix begins the names of the folders in which probes are made. They have no ledger, so no List shows them.
const probePrefix = "sitrep-probe-"

// probeMark is the first file of a probe, and the last that is removed. It holds the name of its folder: what has that name by chance, or was
// copied there, is somebody else's and stays.
const probeMark = "probe"

// probeFiles are the other files that a probe makes.
func probeFiles() []string {
	return append([]string{"first", "once", "target", "Case", "cASE", "linked", "second", firstLock, "lock.2", "synced", "shared", "zeroed", "extents",
		"modified", "speed", "sparse", "far", "original", "clone"}, oddNames()...)
}

// oddNames have every kind of character that names of VMs, disks and logs can have.
func oddNames() []string {
	return []string{"a b.1-2_3 (4)+5,6=7~8@9#.vhd", "Größe-日本.sums", strings.Repeat("n", 200)}
}

// madeByProbe says whether a file's name is that of one of a probe, whole or half made.
func madeByProbe(name string) bool {
	if base, ok := durable.TempBase(name); ok {
		name = base
	}
	return slices.Contains(probeFiles(), name) || name == strings.Repeat("m", 200)
}

const (
	probeSpeed  = 16 << 20    // bytes that are written and read for a measurement
	probeUnit   = 1 << 20     // bytes of one transfer
	probeRename = 64          // replacements of a file while it is read
	probeFar    = 1 << 40     // offset of a write to a sparse file
	probeMove   = 1 << 16     // bytes of data in a sparse file
	probeClock  = time.Minute // between two clocks that are taken for one
	// probeTicks is how long the clock of a filesystem may stand still: FAT counts two seconds.
	probeTicks = 5 * time.Second
)

var _ replica.Prober = (*Store)(nil)

// Probe tries the folder; see replica.Prober. A folder that is not there is made for the time of the probe.
func (s *Store) Probe(ctx context.Context) ([]replica.Check, error) {
	return newProbe(s.all, s.root, probeTicks).run(ctx)
}

func newProbe(fsys durable.FS, root string, patience time.Duration) *probe {
	return &probe{fs: durable.Within(fsys, root), all: fsys, root: root, patience: patience}
}

// probe is one trial of a folder.
type probe struct {
	fs       durable.FS // within root
	all      durable.FS // for the folders above root
	root     string
	patience time.Duration // how long to wait for the filesystem's clock

	folder string        // in which everything happens
	made   []string      // folders above it that were not there, the lowest first
	lock   io.Closer     // held as long as the folder is in use
	ahead  time.Duration // of its clock, before the one here; set with the time of modification
}

func (p *probe) run(ctx context.Context) ([]replica.Check, error) {
	t := replica.NewTrial(ctx)
	if t.Try("folders and files can be made", replica.Needed, func() (string, error) { return "", p.begin() }) {
		p.tryNames(t)
		p.tryLocks(t)
		p.tryContent(t)
		p.tryInformation(t)
	}
	checks, err := t.End()
	t = replica.NewTrial(context.WithoutCancel(ctx))
	t.Try("what was made can be removed", replica.Needed, func() (string, error) { return "", p.end() })
	last, _ := t.End() // its context does not end
	return append(checks, last...), err
}

// begin makes the folder of the probe, and a file in it.
func (p *probe) begin() error {
	for dir := p.root; ; dir = filepath.Dir(dir) {
		if _, err := p.all.Stat(dir); !errors.Is(err, fs.ErrNotExist) || filepath.Dir(dir) == dir {
			break
		}
		p.made = append(p.made, dir)
	}
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	p.folder = filepath.Join(p.root, probePrefix+hex.EncodeToString(b[:]))
	if err := p.fs.MkdirAll(p.folder); err != nil {
		return err
	}
	if err := p.file(probeMark, []byte(filepath.Base(p.folder)), nil); err != nil {
		return err
	}
	if err := p.file("first", []byte("first"), nil); err != nil {
		return err
	}
	return p.want("first", []byte("first"))
}

// sweepOld removes the folders of probes that were killed: nobody holds their locks any more.
func (p *probe) sweepOld() error {
	entries, err := p.fs.ReadDir(p.root)
	for _, e := range entries {
		if old := filepath.Join(p.root, e.Name); e.Dir && strings.HasPrefix(e.Name, probePrefix) && old != p.folder {
			err = errors.Join(err, p.sweep(old))
		}
	}
	return err
}

// sweep removes the folder of an earlier probe, unless that still runs, or it is none.
func (p *probe) sweep(folder string) error {
	mark, err := durable.ReadFile(p.fs, filepath.Join(folder, probeMark), probeUnit)
	if err != nil || string(mark) != filepath.Base(folder) {
		return nil
	}
	path := filepath.Join(folder, firstLock)
	if _, err := p.fs.Stat(path); err != nil {
		return nil // it may be about to make one
	}
	lock, err := p.fs.Lock(path)
	if errors.Is(err, durable.ErrLocked) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := lock.Close(); err != nil {
		return err
	}
	_ = p.removeAll(folder) // what stays is in nobody's way
	return nil
}

// removeAll removes what a probe has made, its mark last. In an older folder with anything else nothing is touched. This probe's own is its
// own whatever it holds, because a filesystem may have changed the names; but never a replica.
func (p *probe) removeAll(folder string) error {
	entries, err := p.fs.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.Name != probeMark && (e.Dir || e.Name == ledgerName || folder != p.folder && !madeByProbe(e.Name)) {
			return fmt.Errorf("%s holds %s, which no probe has made: it is left as it is", folder, e.Name)
		}
	}
	for _, e := range entries {
		if e.Name != probeMark {
			err = errors.Join(err, durable.RemoveIfThere(p.fs, filepath.Join(folder, e.Name)))
		}
	}
	if err == nil {
		err = durable.RemoveIfThere(p.fs, filepath.Join(folder, probeMark))
	}
	return errors.Join(err, durable.RemoveIfThere(p.fs, folder))
}

// end removes everything that was made.
func (p *probe) end() (err error) {
	if p.lock != nil {
		err = p.lock.Close()
	}
	err = errors.Join(err, p.removeAll(p.folder))
	for _, dir := range p.made {
		err = errors.Join(err, durable.RemoveIfThere(p.all, dir))
	}
	return err
}

func (p *probe) path(name string) string { return filepath.Join(p.folder, name) }

// file makes a file with content, does f with it, and closes it.
func (p *probe) file(name string, content []byte, f func(durable.File) error) (err error) {
	h, err := p.fs.Create(p.path(name))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	if len(content) > 0 {
		if _, err := h.WriteAt(content, 0); err != nil {
			return err
		}
	}
	if f == nil {
		return nil
	}
	return f(h)
}

// read opens a file anew and reads it.
func (p *probe) read(name string) ([]byte, error) {
	return durable.ReadFile(p.fs, p.path(name), probeUnit)
}

func (p *probe) want(name string, content []byte) error {
	got, err := p.read(name)
	if err == nil && !bytes.Equal(got, content) {
		err = fmt.Errorf("%s has other content than was written to it", name)
	}
	return err
}

func (p *probe) tryNames(t *replica.Trial) {
	t.Try("a file that is there is not made again", replica.Needed, func() (string, error) {
		err := p.file("once", []byte("first"), nil)
		if err != nil {
			return "", err
		}
		err = p.file("once", nil, nil)
		if err == nil {
			return "", errors.New("it was made a second time")
		}
		if !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		return "", p.want("once", []byte("first"))
	})
	t.Try("names stay as they were given", replica.Needed, func() (string, error) { return "", p.names() })
	t.Try("a rename replaces in one step", replica.Needed, p.replace)
	t.Try("names of either case are different", replica.ForInformation, func() (string, error) {
		err := p.file("Case", nil, nil)
		if err == nil {
			err = p.file("cASE", nil, nil)
		}
		if errors.Is(err, fs.ErrExist) {
			return "", errors.New("they are one file: VMs and disks must differ in more than case")
		}
		return "", err
	})
	t.Try("a file can have two names", replica.ForInformation, func() (string, error) {
		err := p.file("linked", []byte("linked"), nil)
		if err == nil {
			err = p.fs.Link(p.path("linked"), p.path("second"))
		}
		if errors.Is(err, errors.ErrUnsupported) {
			return "", errors.New("not here: logs are copied to the shelf")
		}
		if err != nil {
			return "", err
		}
		return "logs in the same filesystem are not copied", p.want("second", []byte("linked"))
	})
}

// names makes files of odd names, and looks for them in the list of the folder, before and after they are removed.
func (p *probe) names() error {
	names := append(oddNames(), durable.TempName(strings.Repeat("m", 200)))
	for i, name := range names {
		names[i] = filepath.Base(name)
		if err := p.file(names[i], nil, nil); err != nil {
			return err
		}
	}
	listed := func(name string) (bool, error) {
		entries, err := p.fs.ReadDir(p.folder)
		return slices.ContainsFunc(entries, func(e durable.Entry) bool { return e.Name == name && !e.Dir }), err
	}
	for _, name := range names {
		there, err := listed(name)
		if err == nil && !there {
			err = fmt.Errorf("%q was made, and the folder's list does not have it", name)
		}
		if err == nil {
			err = p.fs.Remove(p.path(name))
		}
		if err != nil {
			return err
		}
		if there, err = listed(name); err == nil && there {
			err = fmt.Errorf("%q was removed, and the folder's list still has it", name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// replace replaces a file again and again, while it is read: at every moment it has to be one of its contents, whole.
func (p *probe) replace() (string, error) {
	content := func(i int) []byte { return bytes.Repeat([]byte{byte(i)}, 4096) }
	if err := p.file("target", content(0), nil); err != nil {
		return "", err
	}
	stop, seen := make(chan struct{}), make(chan error, 1)
	go func() { seen <- p.watch("target", stop) }()
	var err error
	for i := 1; i <= probeRename && err == nil; i++ {
		err = durable.Replace(p.fs, p.path("target"), func(f durable.File) error {
			_, err := f.WriteAt(content(i), 0)
			return err
		})
		if err == nil {
			err = p.want("target", content(i))
		}
	}
	close(stop)
	return "", errors.Join(err, <-seen)
}

// watch reads a file of 4096 equal bytes until stop is closed.
func (p *probe) watch(name string, stop <-chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		data, err := p.read(name)
		if err != nil && fault.FromOS(err).Code == fault.Busy {
			continue // Windows: it is being replaced
		}
		if err != nil {
			return fmt.Errorf("while it is replaced, it cannot be read: %w", err)
		}
		if len(data) != 4096 || bytes.Count(data, data[:1]) != len(data) {
			return errors.New("while it is replaced, it is read as a mixture")
		}
	}
}

// tryLocks has this probe's own lock held meanwhile; see sweepOld.
func (p *probe) tryLocks(t *replica.Trial) {
	t.Try("a lock keeps others out", replica.Needed, func() (_ string, err error) {
		lock, err := p.fs.Lock(p.path(firstLock))
		if err != nil {
			return "", err
		}
		p.lock = lock
		other, err := p.fs.Lock(p.path(firstLock))
		if err == nil {
			return "", errors.Join(errors.New("it was taken twice"), other.Close())
		}
		if !errors.Is(err, durable.ErrLocked) {
			return "", err
		}
		return "tried on this machine only", p.sweepOld() // where locks do nothing, nobody knows who is still there
	})
	t.Try("a lock that is released can be taken", replica.Needed, func() (string, error) {
		for range 2 {
			lock, err := p.fs.Lock(p.path("lock.2"))
			if err == nil {
				err = lock.Close()
			}
			if err != nil {
				return "", err
			}
		}
		return "", nil
	})
}

func (p *probe) tryContent(t *replica.Trial) {
	t.Try("files and folders can be made durable", replica.Needed, func() (string, error) {
		var took time.Duration
		err := p.file("synced", []byte("synced"), func(f durable.File) error {
			began := time.Now()
			err := f.Sync()
			took = time.Since(began)
			return err
		})
		return fmt.Sprintf("%s for a small file", took.Round(10*time.Microsecond)), errors.Join(err, p.fs.SyncDir(p.folder))
	})
	t.Try("what was written is read by others", replica.Needed, func() (string, error) { return "", p.readElsewhere() })
	t.Try("zeroed ranges read as zero", replica.Needed, func() (string, error) { return "", p.zeroed() })
	t.Try("data is not taken for a hole", replica.Needed, func() (string, error) { return "", p.extents() })
	t.Try("a write changes the time of modification", replica.Needed, p.modified)
	t.Try("large transfers arrive", replica.Needed, p.speed)
}

// readElsewhere writes through one handle and reads through another that was opened before.
func (p *probe) readElsewhere() error {
	return p.file("shared", bytes.Repeat([]byte{1}, 8192), func(w durable.File) (err error) {
		r, err := p.fs.Open(p.path("shared"))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.Close()) }()
		got := make([]byte, 8192)
		for i := range byte(8) {
			want := bytes.Repeat([]byte{i}, len(got))
			if _, err := w.WriteAt(want, 0); err != nil {
				return err
			}
			if err := durable.ReadFull(r, got, 0); err != nil {
				return err
			}
			if !bytes.Equal(got, want) {
				return errors.New("another handle reads what was there before")
			}
		}
		return nil
	})
}

// zeroed zeroes the middle of a file, and makes it longer.
func (p *probe) zeroed() error {
	return p.file("zeroed", bytes.Repeat([]byte{7}, 4*probeMove), func(f durable.File) error {
		if err := f.ZeroAt(probeMove, 2*probeMove); err != nil {
			return err
		}
		if err := f.Truncate(5 * probeMove); err != nil {
			return err
		}
		got := make([]byte, 5*probeMove)
		if err := durable.ReadFull(f, got, 0); err != nil {
			return err
		}
		for i, b := range got {
			part := i / probeMove
			if want := part == 0 || part == 3; want != (b == 7) || !want && b != 0 {
				return fmt.Errorf("byte %d is %d", i, b)
			}
		}
		return nil
	})
}

// extents makes a file that is mostly hole, and asks where its data is.
func (p *probe) extents() error {
	data := block.Range{Off: 16 * probeMove, Len: probeMove}
	return p.file("extents", nil, func(f durable.File) error {
		if err := f.Truncate(64 * probeMove); err != nil {
			return err
		}
		if _, err := f.WriteAt(bytes.Repeat([]byte{7}, int(data.Len)), data.Off); err != nil {
			return err
		}
		return eachHole(f, 64*probeMove, func(r block.Range) error {
			if r.Intersect(data).Len > 0 {
				return fmt.Errorf("%v is called a hole, and was written to", r)
			}
			return nil
		})
	})
}

// eachHole calls do for every run before size that is said to be zero.
func eachHole(f durable.File, size int64, do func(block.Range) error) error {
	at := int64(0)
	err := eachData(f, size, func(r block.Range) error {
		hole := block.Range{Off: at, Len: r.Off - at}
		at = r.End()
		if hole.Len == 0 {
			return nil
		}
		return do(hole)
	})
	if err != nil || at >= size {
		return err
	}
	return do(block.Range{Off: at, Len: size - at})
}

// modified writes until the time of modification is another one.
func (p *probe) modified() (detail string, err error) {
	err = p.file("modified", []byte{0}, func(f durable.File) error {
		first, err := f.Stamp()
		if err != nil {
			return err
		}
		began := time.Now()
		for i := byte(1); ; i++ {
			if _, err := f.WriteAt([]byte{i}, 0); err != nil {
				return err
			}
			now, err := f.Stamp()
			if err != nil {
				return err
			}
			waited := time.Since(began)
			if now.ModTime != first.ModTime {
				p.ahead = time.Until(time.Unix(0, now.ModTime))
				detail = fmt.Sprintf("after at most %s", waited.Round(time.Microsecond))
				return nil
			}
			if waited > p.patience {
				return fmt.Errorf("it is the same after %s of writes", waited.Round(time.Millisecond))
			}
			time.Sleep(min(waited/8, 50*time.Millisecond))
		}
	})
	return detail, err
}

// speed writes and reads megabytes, by the way that large transfers take.
func (p *probe) speed() (detail string, err error) {
	err = p.file("speed", nil, func(f durable.File) error {
		buf, got := durable.AlignedBuffer(probeUnit), durable.AlignedBuffer(probeUnit)
		rand.Read(buf) // never fails (crypto/rand); what can be compressed would flatter
		began := time.Now()
		for off := int64(0); off < probeSpeed; off += probeUnit {
			buf[0] = byte(off / probeUnit)
			if _, err := f.WriteAt(buf, off); err != nil {
				return err
			}
		}
		if err := f.Sync(); err != nil {
			return err
		}
		written := time.Since(began)
		began = time.Now()
		for off := int64(0); off < probeSpeed; off += probeUnit {
			if err := durable.ReadFull(f, got, off); err != nil {
				return err
			}
			if buf[0] = byte(off / probeUnit); !bytes.Equal(got, buf) {
				return fmt.Errorf("what is read at %d is not what was written", off)
			}
		}
		detail = fmt.Sprintf("written and synced at %s, read at %s", perSecond(written), perSecond(time.Since(began)))
		return nil
	})
	return detail, err
}

func perSecond(took time.Duration) string {
	return fmt.Sprintf("%.0f MiB/s", float64(probeSpeed>>20)/max(took, time.Microsecond).Seconds())
}

func (p *probe) tryInformation(t *replica.Trial) {
	t.Try("files can be sparse", replica.ForInformation, p.sparse)
	t.Try("files can be of a terabyte", replica.ForInformation, func() (string, error) {
		return "", p.file("far", nil, func(f durable.File) error {
			if _, err := f.WriteAt([]byte("far"), probeFar); err != nil {
				return err
			}
			got := make([]byte, 3)
			if err := durable.ReadFull(f, got, probeFar); err != nil || string(got) != "far" {
				return errors.Join(errors.New("what was written at 1 TiB cannot be read"), err)
			}
			return nil
		})
	})
	p.tryClone(t)
	t.Try("its clock is the one of this machine", replica.ForInformation, func() (string, error) {
		detail := fmt.Sprintf("%+.1f s", p.ahead.Seconds())
		if p.ahead.Abs() > probeClock {
			return "", errors.New(detail + ": the times of its files are not those of the logs")
		}
		return detail, nil
	})
	t.Try("free space is known", replica.ForInformation, func() (string, error) {
		n, ok := durable.Free(p.fs, p.folder)
		if !ok {
			return "", errors.New("it is not")
		}
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30)), nil
	})
}

// sparse asks whether holes are known as such.
func (p *probe) sparse() (string, error) {
	var hole int64
	err := p.file("sparse", nil, func(f durable.File) error {
		if err := f.Truncate(64 * probeMove); err != nil {
			return err
		}
		return eachHole(f, 64*probeMove, func(r block.Range) error { hole += r.Len; return nil })
	})
	if err == nil && hole == 0 {
		err = errors.New("they cannot: zeros take as much space as data")
	}
	return "", err
}

// tryClone makes a clone and writes to its original. One that changes with it would be a recovery point that does not stay.
func (p *probe) tryClone(t *replica.Trial) {
	before := bytes.Repeat([]byte{1}, probeMove)
	cloned := false
	t.Try("files can be cloned", replica.ForInformation, func() (string, error) {
		err := p.file("original", before, durable.File.Sync)
		if err == nil {
			err = p.fs.Clone(p.path("original"), p.path("clone"))
		}
		if errors.Is(err, errors.ErrUnsupported) {
			return "", errors.New("not here: what a recovery point needs is copied before it is overwritten")
		}
		cloned = err == nil
		return "recovery points share what does not change", err
	})
	if !cloned {
		return
	}
	t.Try("a clone stays as it was", replica.Needed, func() (string, error) {
		f, err := p.fs.OpenRW(p.path("original"))
		if err == nil {
			_, err = f.WriteAt(bytes.Repeat([]byte{2}, probeMove), 0)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			return "", err
		}
		return "", p.want("clone", before)
	})
}
