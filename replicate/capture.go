package replicate

import (
	"context"
	"errors"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sitrep/internal/block"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/track"
)

// Capture takes a cut and writes its change logs beside the disks, without the store. They count from the moment at
// which the tracker stands at the new position; what an interrupted Capture left before it is removed by the next one.
func (j *Job) Capture(ctx context.Context) (Captured, error) {
	return j.capture(ctx, j.LogLimit)
}

func (j *Job) capture(ctx context.Context, limit int) (c Captured, err error) {
	from := j.Tracker.Position()
	if from.IsZero() {
		return c, fault.New(fault.PositionLost, "this site does not know the position of its disks any more").Of(j.VM, "")
	}
	if err := j.dropUncommitted(from); err != nil {
		return c, err
	}
	cut, err := j.Tracker.Cut(ctx, from)
	if err != nil {
		return c, fault.In(err, j.VM, "")
	}
	defer func() { err = errors.Join(err, cut.Close()) }()
	c = Captured{From: from, To: from, At: cut.At(), AppConsistent: cut.AppConsistent(), Sizes: map[string]int64{}}

	logs := &cutLogs{job: j, cut: cut, to: from.Next(), writers: map[string]*hrl.Writer{}, rooms: map[string]*volumeRoom{}}
	defer logs.abort()
	for _, d := range cut.Disks() {
		r, err := j.captureDisk(ctx, d, logs, limit)
		c.Disks, c.Sizes[d.Name()] = append(c.Disks, r), d.Size()
		if err != nil {
			return c, fault.In(err, j.VM, d.Name())
		}
	}
	if err := cut.Check(ctx); err != nil {
		return c, fault.In(err, j.VM, "")
	}
	if !logs.needed() && !j.whole {
		return c, cut.Confirm(ctx)
	}
	if err := logs.seal(); err != nil {
		return c, fault.In(err, j.VM, "")
	}
	if err := cut.Advance(ctx, logs.to); err != nil {
		return c, fault.In(err, j.VM, "")
	}
	logs.keep()
	c.To, j.whole = logs.to, false
	return c, nil
}

func (j *Job) captureDisk(ctx context.Context, d track.CutDisk, logs *cutLogs, limit int) (DiskResult, error) {
	r := DiskResult{Name: d.Name(), Identity: d.Identity().String()}
	if d.Untouched() {
		return r, nil
	}
	began := time.Now()
	task := "read " + d.Name()
	j.Meter.Begin(task, d.Size(), 0)
	defer j.Meter.End(task)
	tally := newTally(d.BlockSize())
	room, err := j.logRoom(d, limit)
	if err != nil {
		return r, err
	}
	var over atomic.Bool
	stats, err := d.Scan(ctx, j.scanOptions(task), func(_ context.Context, ch track.Change) error {
		tally.add(ch)
		if tally.data.Load() > room {
			over.Store(true) // read on: that it is another disk is worse
			return nil
		}
		n := int64(len(ch.Data))
		if err := logs.leave(d.Name(), n); err != nil {
			return err
		}
		defer logs.wrote(d.Name(), n)
		w, err := logs.writer(d)
		if err != nil {
			return err
		}
		if ch.Zero {
			return w.Zero(ch.Range)
		}
		return w.Append(ch.Off, ch.Data, ch.Sums)
	})
	if err == nil && over.Load() {
		err = j.overLimit(d, limit)
	}
	r.Scanned, r.Changed, r.Took = stats.Scanned, stats.Changed, time.Since(began)
	r.Blocks = tally.blocks.Load()
	return r, err
}

// logRoom is how many more bytes of change logs a disk may have waiting. There being none is an error.
func (j *Job) logRoom(d track.CutDisk, limit int) (int64, error) {
	if limit == 0 {
		return math.MaxInt64, nil
	}
	logs, err := j.localLogs(d.Name())
	if err != nil {
		return 0, err
	}
	room := d.Size() / 100 * int64(limit)
	for _, l := range logs {
		if l.id.To.Seq > j.Applied {
			room -= l.size
		}
	}
	if room <= 0 {
		return 0, j.overLimit(d, limit)
	}
	return room, nil
}

func (j *Job) overLimit(d track.CutDisk, limit int) error {
	return fault.New(fault.LogLimit, "the change logs that wait would take more than %d %% of the disk's %d bytes",
		limit, d.Size()).At(j.LogDir[d.Name()])
}

// tally counts changes. It may be used concurrently.
type tally struct {
	blockSize    int64
	blocks, data atomic.Int64 // data: bytes that are not zeros
}

func newTally(blockSize int64) *tally { return &tally{blockSize: blockSize} }

func (t *tally) add(ch track.Change) {
	t.blocks.Add(block.Count(ch.Len, t.blockSize))
	t.data.Add(int64(len(ch.Data)))
}

// cutLogs is the logs of one cut, made when the first change turns up.
type cutLogs struct {
	job *Job
	cut track.Cut
	to  hrl.Pos

	mu      sync.Mutex
	writers map[string]*hrl.Writer
	kept    bool
	rooms   map[string]*volumeRoom // of the disks
}

// volumeRoom is what the change log of a disk takes, and may take, of its volume: bytes.
type volumeRoom struct {
	allowed int64 // may still be let through before the volume is asked again
	flying  int64 // was let through, and the log does not have it yet
	granted int64 // was let through, ever
}

// reserveEvery is how many bytes of logs are written between two looks at the room on their volume.
const reserveEvery = 4 << 20

// leave makes sure that n bytes more beside a disk leave the reserve of its volume alone; wrote says afterwards that the log has them.
// It may be called concurrently.
func (l *cutLogs) leave(disk string, n int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.rooms[disk]
	if r == nil {
		r = &volumeRoom{}
		l.rooms[disk] = r
	}
	if r.allowed < n && l.job.Reserve != nil {
		if err := l.allow(l.job.LogDir[disk], r, n); err != nil {
			return err
		}
	}
	r.allowed -= n
	r.flying += n
	r.granted += n
	return nil
}

func (l *cutLogs) wrote(disk string, n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rooms[disk].flying -= n
}

// allow asks the volume of dir whether n bytes more leave its reserve alone, and how many more may follow them unasked.
func (l *cutLogs) allow(dir string, r *volumeRoom, n int64) error {
	free, volume, ok := durable.Room(l.job.FS, dir)
	if !ok {
		r.allowed = n
		return nil
	}
	r.allowed = 0
	reserve := l.job.Reserve(volume)
	left := free - l.unwritten() - n - reserve
	if reserve > 0 && left < 0 {
		return fault.New(fault.SourceReserve, "the volume has %d bytes free, and %d are kept for the VM: the change logs of this delta are given up",
			free, reserve).At(dir)
	}
	r.allowed = n + min(reserveEvery, max(left, 0)/2)
	return nil
}

// unwritten is how many bytes at most were let through, or may be without asking, and take no room on a volume yet. Disks of other volumes
// are counted too.
func (l *cutLogs) unwritten() (n int64) {
	for _, r := range l.rooms {
		n += r.allowed + r.flying + min(r.granted-r.flying, hrl.Buffered)
	}
	return n
}

// writer returns the log of a disk. It may be called concurrently.
func (l *cutLogs) writer(d track.CutDisk) (*hrl.Writer, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if w := l.writers[d.Name()]; w != nil {
		return w, nil
	}
	w, err := hrl.Create(l.job.FS, l.job.logPath(d.Name(), l.to), hrl.Identity{
		Replica: l.job.ReplicaID, VM: l.job.VM, Disk: d.Name(), Kind: hrl.Redo,
		From: l.cut.From(), To: l.to, SizeBefore: d.SizeBefore(), Size: d.Size(), BlockSize: d.BlockSize(),
		CutAt: l.cut.At(), AppConsistent: l.cut.AppConsistent(), DataWriteGUID: d.DataWriteGUID(),
	})
	if err == nil {
		l.writers[d.Name()] = w
	}
	return w, err
}

// needed says whether anything changed: a block, or the size of a disk.
func (l *cutLogs) needed() bool {
	return len(l.writers) > 0 || slices.ContainsFunc(l.cut.Disks(), func(d track.CutDisk) bool {
		return d.Size() != d.SizeBefore()
	})
}

// seal closes the logs of all disks: a disk without changes gets an empty one, because all disks move together.
func (l *cutLogs) seal() error {
	for _, d := range l.cut.Disks() {
		w, err := l.writer(d)
		if err != nil {
			return err
		}
		if _, err := w.Seal(); err != nil {
			return fault.In(err, "", d.Name())
		}
	}
	return nil
}

func (l *cutLogs) keep() { l.kept = true }

// abort removes the logs of a cut that came to nothing. What cannot be removed now is removed by the next Capture.
func (l *cutLogs) abort() {
	if l.kept {
		return
	}
	for name, w := range l.writers {
		if err := w.Abort(); err != nil {
			l.job.Log.Warn("an unfinished change log stays until the next run",
				"vm", l.job.VM, "disk", name, "error", err)
		}
	}
}

func (j *Job) logPath(disk string, to hrl.Pos) string {
	return filepath.Join(j.LogDir[disk], hrl.FileName(j.VM, disk, to))
}

func isLogOf(name, vm, disk string) bool {
	_, ok := hrl.ParseFileName(name, vm, disk)
	return ok
}

// localLog is one change log of this relationship beside a disk.
type localLog struct {
	path string
	id   hrl.Identity
	size int64
}

// logFolder lists the folder of a disk's logs. That of a device is made when its disk is opened for the first time, and there
// are no logs before.
func (j *Job) logFolder(disk string) ([]durable.Entry, error) {
	entries, err := j.FS.ReadDir(j.LogDir[disk])
	if isNotExist(err) {
		return nil, nil
	}
	return entries, err
}

// localLogs lists the logs of a disk that lie beside it and belong to this relationship, in order of their positions.
func (j *Job) localLogs(disk string) ([]localLog, error) {
	dir := j.LogDir[disk]
	entries, err := j.logFolder(disk)
	if err != nil {
		return nil, err
	}
	var logs []localLog
	for _, e := range entries {
		if e.Dir || !isLogOf(e.Name, j.VM, disk) {
			continue
		}
		l, ours, err := j.readLocal(filepath.Join(dir, e.Name), disk)
		if err != nil {
			return nil, err
		}
		if ours {
			logs = append(logs, l)
		}
	}
	slices.SortFunc(logs, func(a, b localLog) int { return strings.Compare(a.path, b.path) })
	return logs, nil
}

// readLocal reads the head of a log. One that cannot be read is not ours to judge here: if a position needs it, the gap
// is noticed by ship.
func (j *Job) readLocal(path, disk string) (l localLog, ours bool, err error) {
	f, err := j.FS.Open(path)
	if err != nil {
		return l, false, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return l, false, err
	}
	log, err := hrl.Open(f)
	if err != nil {
		j.Log.Warn("a change log cannot be read", "vm", j.VM, "disk", disk, "file", path, "error", err)
		return l, false, nil
	}
	id := log.Info().Identity
	if id == nil || id.Replica != j.ReplicaID || id.VM != j.VM || id.Disk != disk || id.Kind != hrl.Redo {
		j.Log.Warn("a change log belongs to something else and is left alone", "vm", j.VM, "disk", disk, "file", path)
		return l, false, nil
	}
	return localLog{path: path, id: *id, size: size}, true, nil
}

// dropUncommitted removes logs that lead past the tracker's position: their cut was interrupted before it counted, and
// the disks still hold what they say.
func (j *Job) dropUncommitted(at hrl.Pos) error {
	for disk := range j.LogDir {
		if err := j.dropTemps(disk); err != nil {
			return fault.In(err, j.VM, disk)
		}
	}
	return j.dropLogs(func(l localLog) bool { return l.id.To.Seq > at.Seq })
}

// dropTemps removes what is left of logs that were being begun.
func (j *Job) dropTemps(disk string) error {
	entries, err := j.logFolder(disk)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if base, ok := durable.TempBase(e.Name); ok && !e.Dir && isLogOf(base, j.VM, disk) {
			if err := durable.RemoveIfThere(j.FS, filepath.Join(j.LogDir[disk], e.Name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// release removes the logs that the replica has applied.
func (j *Job) release(_ context.Context, st replica.State) error {
	return j.dropLogs(func(l localLog) bool { return l.id.To.Seq <= st.Applied.Seq })
}

func (j *Job) dropLogs(drop func(localLog) bool) error {
	for disk := range j.LogDir {
		logs, err := j.localLogs(disk)
		if err != nil {
			return fault.In(err, j.VM, disk)
		}
		for _, l := range logs {
			if !drop(l) {
				continue
			}
			if err := durable.RemoveIfThere(j.FS, l.path); err != nil {
				return fault.In(err, j.VM, disk)
			}
		}
	}
	return nil
}

// PendingBytes is the length of the change logs of each disk that the replica has not applied.
func (j *Job) PendingBytes(applied hrl.Pos) (map[string]int64, error) {
	pending := map[string]int64{}
	for disk := range j.LogDir {
		logs, err := j.localLogs(disk)
		if err != nil {
			return nil, fault.In(err, j.VM, disk)
		}
		for _, l := range logs {
			if l.id.To.Seq > applied.Seq {
				pending[disk] += l.size
			}
		}
	}
	return pending, nil
}
