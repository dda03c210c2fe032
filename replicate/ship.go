package replicate

import (
	"context"
	"io/fs"

	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
)

// step is one cut that waits beside the disks: a log for each disk.
type step struct {
	span replica.Span
	logs map[string]localLog
}

// Ship puts the sealed logs that wait beside the disks on the shelf and records them as received, cut after cut. It
// returns how many cuts were shipped.
func (j *Job) Ship(ctx context.Context) (int, error) {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil {
		return 0, err
	}
	if err := replicating(st, "ship"); err != nil {
		return 0, err
	}
	var d Delta
	err = j.ship(ctx, &d)
	return d.Shipped, j.mark(ctx, err)
}

// ship counts in d what it does.
func (j *Job) ship(ctx context.Context, d *Delta) error {
	st, err := j.Replica.Ledger().Load(ctx)
	if err != nil {
		return err
	}
	steps, err := j.queue(st)
	if err != nil {
		return err
	}
	for _, s := range steps {
		if st, err = j.shipStep(ctx, st, s, d); err != nil {
			return err
		}
		d.Shipped++
	}
	return nil
}

// queue lists the cuts that lead from what the replica has received to where the tracker stands. Anything that does not
// lead there is an error that names the log that is missing.
func (j *Job) queue(st replica.State) ([]step, error) {
	return j.steps(st, st.Received, j.Tracker.Position())
}

// steps lists the cuts beside the disks that lead from a position that the replica has to a goal.
func (j *Job) steps(st replica.State, at, goal hrl.Pos) ([]step, error) {
	if at == goal {
		return nil, nil
	}
	if goal.Seq <= at.Seq {
		return nil, fault.New(fault.PositionLost,
			"this site stands at position %s, but the replica has received %s", goal, at).Of(j.VM, "")
	}
	from := make(map[string]map[hrl.Pos]localLog, len(st.Disks))
	for _, d := range st.Disks {
		logs, err := j.localLogs(d.Name)
		if err != nil {
			return nil, fault.In(err, j.VM, d.Name)
		}
		from[d.Name] = make(map[hrl.Pos]localLog, len(logs))
		for _, l := range logs {
			from[d.Name][l.id.From] = l
		}
	}
	var steps []step
	for at != goal {
		s, err := j.stepFrom(st, at, goal, from)
		if err != nil {
			return nil, err
		}
		steps = append(steps, s)
		at = s.span.To
	}
	return steps, nil
}

// stepFrom finds the logs of all disks that begin at a position and end at the same one.
func (j *Job) stepFrom(st replica.State, at, goal hrl.Pos, from map[string]map[hrl.Pos]localLog) (step, error) {
	s := step{span: replica.Span{From: at}, logs: map[string]localLog{}}
	for _, d := range st.Disks {
		l, ok := from[d.Name][at]
		if !ok || at.Seq >= goal.Seq {
			return s, fault.New(fault.LogGap, "no change log in %s continues position %d (expected number %d)",
				j.LogDir[d.Name], at.Seq, at.Seq+1).Of(j.VM, d.Name).At(j.LogDir[d.Name])
		}
		if s.span.To.IsZero() {
			s.span.To = l.id.To
		}
		if l.id.To != s.span.To {
			return s, fault.New(fault.LogGap, "the log leads to position %s, the other disks' to %s", l.id.To, s.span.To).
				Of(j.VM, d.Name).At(l.path)
		}
		s.logs[d.Name] = l
	}
	return s, nil
}

func (j *Job) shipStep(ctx context.Context, st replica.State, s step, done *Delta) (replica.State, error) {
	seg := replica.Segment{Span: s.span, Sizes: map[string]int64{}, Bytes: map[string]int64{}}
	for _, d := range st.Disks {
		l := s.logs[d.Name]
		sent, err := j.put(ctx, d.Name, l)
		done.sent(d.Name, sent)
		if err != nil {
			return st, fault.In(err, j.VM, d.Name)
		}
		seg.CutAt, seg.AppConsistent = l.id.CutAt, l.id.AppConsistent
		seg.Sizes[d.Name], seg.Bytes[d.Name] = l.id.Size, l.size
	}
	st.Received, st.Pending, st.Joined = s.span.To, append(st.Pending, seg), nil
	return j.Replica.Ledger().Save(ctx, st)
}

func (j *Job) put(ctx context.Context, disk string, l localLog) (int64, error) {
	task := "ship " + disk
	j.Meter.Begin(task, l.size, 0)
	defer j.Meter.End(task)
	f, err := j.FS.Open(l.path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	log, err := hrl.Open(f)
	if err != nil {
		return 0, err
	}
	if !log.Info().Sealed {
		return 0, fault.New(fault.LogTorn, "the tracker counts on this log, but it was never sealed").At(l.path)
	}
	sent, err := j.Replica.Shelf().Put(ctx, hrl.ShelfName(disk, l.id.To), f)
	if err == nil {
		j.Meter.Add(task, l.size)
	}
	return sent, err
}

// openShelf opens one log of the shelf and makes sure that it is the one the ledger speaks of.
func openShelf(ctx context.Context, r replica.Replica, st replica.State, disk string, span replica.Span) (*shelfLog, error) {
	name := hrl.ShelfName(disk, span.To)
	path := r.Shelf().Path(name)
	f, err := r.Shelf().Open(ctx, name)
	if err != nil {
		if isNotExist(err) {
			return nil, fault.Wrap(fault.LogGap, fs.ErrNotExist, "the ledger lists this log as received").
				Of(st.VM, disk).At(path)
		}
		return nil, fault.In(err, st.VM, disk)
	}
	log, err := hrl.Open(f)
	if err == nil {
		err = sameLog(path, log.Info(), st, disk, span)
	}
	if err != nil {
		f.Close()
		return nil, fault.In(err, st.VM, disk)
	}
	return &shelfLog{file: f, Log: log, path: path}, nil
}

// shelfLog is a log on the shelf, open.
type shelfLog struct {
	*hrl.Log
	file durable.File
	path string
}

// sameLog refuses a log that is not what its name says.
func sameLog(path string, info hrl.Info, st replica.State, disk string, span replica.Span) error {
	id := info.Identity
	switch {
	case id == nil:
		return fault.New(fault.LogForeign, "the log carries no identity of sitrep").At(path)
	case id.Replica != st.Replica || id.VM != st.VM || id.Disk != disk || id.Kind != hrl.Redo:
		return fault.New(fault.LogForeign, "the log is of VM %s, disk %s, replica %s", id.VM, id.Disk, id.Replica).At(path)
	case id.From != span.From || id.To != span.To:
		return fault.New(fault.LogForeign, "the log leads from %s to %s, the ledger expects %s to %s",
			id.From, id.To, span.From, span.To).At(path)
	case !info.Sealed:
		return fault.New(fault.LogTorn, "the log was never sealed").At(path)
	}
	return nil
}
