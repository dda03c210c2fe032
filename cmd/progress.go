package cmd

import (
	"cmp"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"sitrep/internal/progress"
)

// meter returns what shows the progress of work on a VM: a bar, lines, or nothing.
func (p *program) meter(vm string) *meter {
	return &meter{vm: vm, w: p.stderr, style: p.style(), narrow: p.opts.progress == "auto", theme: theme(p.getenv), now: p.now, tasks: map[string]*task{}}
}

// style is how progress is shown. Nothing is, unless asked for, where nobody looks.
func (p *program) style() string {
	switch {
	case p.opts.progress != "auto":
		return p.opts.progress
	case p.opts.quiet || p.opts.json || !isTerminal(p.stderr):
		return "none"
	case columns(p.stderr) < barColumns:
		return "lines" // a bar that wraps scrolls
	}
	return "bar"
}

// barColumns is how wide a terminal has to be for a bar with a short name, figureColumns what all but its name takes.
const (
	barColumns    = 62
	figureColumns = 44
	wide          = 1 << 10
)

// columns is how wide a terminal is; what cannot be told is wide enough.
func columns(w io.Writer) int {
	f, ok := fileOf(w)
	if !ok {
		return wide
	}
	n, _, err := term.GetSize(int(f.Fd()))
	if err != nil || n <= 0 {
		return wide
	}
	return n
}

// theme is what a bar is drawn with: blocks where the locale has them.
func theme(getenv func(string) string) progressbar.Theme {
	if runtime.GOOS == "windows" || isUTF8(getenv) {
		return progressbar.ThemeDefault
	}
	return progressbar.ThemeASCII
}

// isUTF8 says whether the locale's characters are written in UTF-8.
func isUTF8(getenv func(string) string) bool {
	locale := cmp.Or(getenv("LC_ALL"), getenv("LC_CTYPE"), getenv("LANG"))
	_, charset, _ := strings.Cut(strings.ToLower(locale), ".")
	return strings.HasPrefix(charset, "utf-8") || strings.HasPrefix(charset, "utf8")
}

func isTerminal(w io.Writer) bool {
	f, ok := fileOf(w)
	return ok && term.IsTerminal(int(f.Fd()))
}

// lineEvery is the time between two lines of one task.
const lineEvery = 5 * time.Second

// meter shows tasks one after the other: a bar for the disk at hand, with the share of the whole run beside its name.
// What it counts are acknowledged bytes. 100 % is shown only when a task has ended.
type meter struct {
	mu    sync.Mutex
	vm    string
	w     io.Writer
	style string
	theme progressbar.Theme // of bars
	// narrow says that lines take the place of a bar whose name leaves no room for it.
	narrow bool
	now    func() time.Time

	planned int64 // bytes of the whole run, 0 when not known
	done    int64 // bytes of the whole run, those of earlier runs included
	tasks   map[string]*task
}

var _ progress.Meter = (*meter)(nil)

// task is one piece of work in progress, in bytes.
type task struct {
	name               string
	total, done, begun int64 // begun is what an earlier run had done
	started, shown     time.Time
	bar                *progressbar.ProgressBar
}

// plan tells the bytes of the whole run.
func (m *meter) plan(total int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.planned = total
}

// progress is the bytes of the whole run that are done, and those that are planned, 0 when that is not known.
func (m *meter) progress() (done, planned int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.done, m.planned
}

// Begin opens a task.
func (m *meter) Begin(name string, total, done int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.tasks[name]; old != nil {
		m.done -= old.done
		m.close(old)
	}
	now := m.now()
	t := &task{name: name, total: total, done: done, begun: done, started: now, shown: now}
	m.tasks[name] = t
	m.done += done
	if m.narrow && columns(m.w) < figureColumns+len(m.label(t)) {
		m.style = "lines"
	}
	if m.style == "bar" && total > done {
		t.bar = m.newBar(t)
	}
}

// Add counts bytes that are done for good.
func (m *meter) Add(name string, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.tasks[name]
	if t == nil {
		return
	}
	t.done += n
	m.done += n
	m.show(t)
}

// End closes a task.
func (m *meter) End(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.tasks[name]; t != nil {
		m.close(t)
		delete(m.tasks, name)
	}
}

// stop ends whatever is still shown, for example after an error.
func (m *meter) stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, t := range m.tasks {
		m.close(t)
		delete(m.tasks, name)
	}
}

func (m *meter) show(t *task) {
	switch {
	case t.bar != nil:
		t.bar.Describe(m.label(t))
		_ = t.bar.Set64(t.shownBytes()) // a bar that cannot be drawn stops no replication
	case m.style == "lines" && m.now().Sub(t.shown) >= lineEvery:
		t.shown = m.now()
		fmt.Fprintln(m.w, m.line(t))
	}
}

// shownBytes is what of this run's bytes the bar shows: at most 99 % before the task has ended.
func (t *task) shownBytes() int64 {
	planned := t.total - t.begun
	return max(0, min(t.done-t.begun, planned-(planned+99)/100))
}

func (m *meter) close(t *task) {
	if t.bar != nil {
		if t.done >= t.total {
			_ = t.bar.Finish() // see show
		} else {
			_ = t.bar.Exit()
		}
		t.bar = nil
	}
	if m.style == "lines" && t.total > t.begun {
		fmt.Fprintln(m.w, m.endLine(t))
	}
}

func (m *meter) newBar(t *task) *progressbar.ProgressBar {
	w := m.w
	if f, ok := fileOf(w); ok { // which the width of the terminal can be asked of
		w = f
	}
	return progressbar.NewOptions64(t.total-t.begun,
		progressbar.OptionSetWriter(w),
		progressbar.OptionSetDescription(m.label(t)),
		progressbar.OptionShowBytes(true),
		progressbar.OptionShowCount(),
		progressbar.OptionShowTotalBytes(true),
		progressbar.OptionUseIECUnits(true),
		progressbar.OptionSetPredictTime(true),
		progressbar.OptionThrottle(100*time.Millisecond),
		progressbar.OptionFullWidth(),
		progressbar.OptionSetTheme(m.theme),
		progressbar.OptionSetRenderBlankState(true),
		progressbar.OptionOnCompletion(func() { fmt.Fprintln(m.w) }),
	)
}

// label names the task, and says how much of the whole run is done when that is known.
func (m *meter) label(t *task) string {
	s := m.vm + " " + t.name
	if t.begun > 0 {
		s += " (continued at " + size(t.begun) + ")"
	}
	if m.planned > t.total {
		s += fmt.Sprintf(" (total %d%%)", percent(m.done, m.planned))
	}
	return s
}

// percent is 99 at most: what is complete has ended and is not shown any more.
func percent(done, total int64) int {
	if total <= 0 {
		return 0
	}
	return int(max(0, min(99, float64(done)*100/float64(total))))
}

func (m *meter) line(t *task) string {
	s := fmt.Sprintf("%s: %s of %s (%d%%)", m.label(t), size(t.done), size(t.total), percent(t.done, t.total))
	rate := float64(t.done-t.begun) / m.now().Sub(t.started).Seconds()
	if rate > 0 {
		left := time.Duration(float64(max(0, t.total-t.done)) / rate * float64(time.Second))
		s += fmt.Sprintf(", %s/s, %s left", size(int64(rate)), span(left))
	}
	return s
}

func (m *meter) endLine(t *task) string {
	word := "ended at"
	if t.done >= t.total {
		word = "done,"
	}
	return fmt.Sprintf("%s %s: %s %s of %s in %s", m.vm, t.name, word, size(t.done), size(t.total),
		span(m.now().Sub(t.started)))
}
