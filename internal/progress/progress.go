// Package progress is what an engine tells about its way: how much there is to do and how much is acknowledged. It knows
// no terminal. Bytes are counted when they are done for good, not when they were begun.
package progress

// Meter takes an engine's reports. It may be called from several goroutines.
type Meter interface {
	// Begin opens a task, for example the copy of one disk, with the bytes that it is about and the bytes that an
	// earlier run has done already. Beginning a task again replaces its numbers.
	Begin(task string, total, done int64)
	// Add says that n more bytes of a task are done.
	Add(task string, n int64)
	// End closes a task, at whatever it has reached.
	End(task string)
}

// None returns a Meter that nobody looks at.
func None() Meter { return none{} }

type none struct{}

func (none) Begin(string, int64, int64) {}
func (none) Add(string, int64)          {}
func (none) End(string)                 {}
