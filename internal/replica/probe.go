package replica

import (
	"context"
	"strings"
	"time"

	"sitrep/internal/fault"
)

// Check is one thing that was tried of a store.
type Check struct {
	// Name says what should hold, in few words that stay the same from version to version.
	Name  string
	Holds bool
	// Needed says that replicas are not safe in a store of which this does not hold. The others are for information: the
	// product does without them, more slowly or with more space.
	Needed bool
	// Detail is what was found: why it does not hold, or what was measured.
	Detail string
	Took   time.Duration
}

// Prober is a store that can try whether it does what the product relies on.
type Prober interface {
	// Probe tries it in a place of its own, which is no replica, and removes that place afterwards, also when ctx ends. A
	// check that does not hold is no error; what was tried before an error is returned with it.
	Probe(ctx context.Context) ([]Check, error)
}

// ProberOf returns the store that can be probed inside the wrappers of s; ok is false when there is none. A probe is not
// wrapped: what a store does at the second attempt only is worth knowing.
func ProberOf(s Store) (p Prober, ok bool) { return inside[Prober](s) }

// Clocked is a Store that refuses requests when the clock of this machine is too far from its own.
type Clocked interface {
	// Clock says how far the store's clock was ahead of this machine's at the last answer, ok whether there was one, and remark
	// what an operator should know of it, "" when the clocks agree well enough.
	Clock() (ahead time.Duration, remark string, ok bool)
}

// ClockedOf returns the store with a clock inside the wrappers of s; ok is false when there is none.
func ClockedOf(s Store) (c Clocked, ok bool) { return inside[Clocked](s) }

// inside looks for a T in x, a Store or a Replica, and inside its wrappers.
func inside[T, X any](x X) (found T, ok bool) {
	for {
		if found, ok = any(x).(T); ok {
			return found, true
		}
		w, ok := any(x).(interface{ unwrap() X })
		if !ok {
			return found, false
		}
		x = w.unwrap()
	}
}

func (s *retryStore) unwrap() Store { return s.in }
func (s *limitStore) unwrap() Store { return s.in }

// Need says whether a check is needed.
type Need bool

const (
	Needed         Need = true
	ForInformation Need = false
)

// Trial collects the checks of one Probe. It may not be used concurrently.
type Trial struct {
	ctx    context.Context
	checks []Check
}

// NewTrial begins a probe that ends with ctx.
func NewTrial(ctx context.Context) *Trial { return &Trial{ctx: ctx} }

// Try does f, which returns what it found, or as an error why name does not hold. It returns whether it holds. When the
// context has ended nothing is tried, and nothing is said of what it interrupted.
func (t *Trial) Try(name string, need Need, f func() (detail string, err error)) bool {
	if t.ctx.Err() != nil {
		return false
	}
	began := time.Now()
	detail, err := f()
	if err != nil {
		if t.ctx.Err() != nil {
			return false
		}
		detail = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	t.checks = append(t.checks, Check{Name: name, Holds: err == nil, Needed: bool(need), Detail: detail, Took: time.Since(began)})
	return err == nil
}

// End returns the checks, with an error when the context has ended before all were made.
func (t *Trial) End() ([]Check, error) {
	return t.checks, fault.In(t.ctx.Err(), "", "")
}

// Unfit returns the names of the needed checks that do not hold.
func Unfit(checks []Check) (names []string) {
	for _, c := range checks {
		if c.Needed && !c.Holds {
			names = append(names, c.Name)
		}
	}
	return names
}
