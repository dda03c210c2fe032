package cmd

import (
	"sync"
	"time"

	"sitrep/internal/fault"
	"sitrep/internal/replica"
	"sitrep/internal/site"
)

// limited is a store that counts what it sends, and sends no faster than --bandwidth, or the policy of a VM, allows. --bandwidth holds for everything
// that this run sends; a policy's for all VMs of it, one Limiter each. Two runs know nothing of each other.
func (w *world) limited(s replica.Store) replica.Store {
	limiter := func(b site.Bandwidth) *replica.Limiter {
		if len(b.Steps) == 0 {
			return nil
		}
		return replica.NewLimiter(b.Limit, w.now, w.sleep)
	}
	if b := w.opts.bandwidth; b != nil {
		l := limiter(*b)
		return replica.Metered(s, func(string) *replica.Limiter { return l }, w.moved.add)
	}
	limiters := map[*site.Policy]*replica.Limiter{}
	for _, vm := range w.site.VMs() {
		if p := vm.Policy(); limiters[p] == nil {
			limiters[p] = limiter(w.bandwidth(vm))
		}
	}
	return replica.Metered(s, func(name string) *replica.Limiter {
		vm, err := w.site.VM(name)
		if err != nil {
			return nil // the store has it and the site file has not: nothing is said of it
		}
		return limiters[vm.Policy()]
	}, w.moved.add)
}

// bandwidth is the timetable that holds for what this run sends of a VM. That of the policy is about the line between the
// sites, so it is not obeyed where there is none, by an apply that runs beside the store, nor where people wait for the
// machine, in a failover or failback: these have --bandwidth.
func (w *world) bandwidth(vm *site.VM) site.Bandwidth {
	if b := w.opts.bandwidth; b != nil {
		return *b
	}
	p := vm.Policy()
	switch w.res.Command {
	case "protect", "replicate", "delta", "resync":
		return p.Bandwidth
	case "apply":
		if p.Apply != site.ApplyElsewhere {
			return p.Bandwidth
		}
	}
	return site.Bandwidth{}
}

// moved counts the bytes that were sent to replicas, by VM.
type moved struct {
	mu    sync.Mutex
	bytes map[string]int64
}

func (m *moved) add(vm string, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.bytes[vm] += n
}

func (m *moved) of(vm string) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.bytes[vm]
}

// setBandwidth reads --bandwidth.
func (o *options) setBandwidth(text string) error {
	b, ok := site.ParseBandwidth(text)
	if !ok {
		return fault.New(fault.UsageError,
			`--bandwidth is a rate such as "20Mbit" or "2MiB" (a second), a timetable such as "07:00,20Mbit 19:00,off", or "off", not %q`, text)
	}
	o.bandwidth = &b
	return nil
}

// sending is an estimate of work that sends bytes: no less than the limit of the bandwidth allows. seconds is what the work
// takes without one, nil when that is not known.
func (w *world) sending(vm *site.VM, seconds *float64, bytes int64) *float64 {
	least := w.bandwidth(vm).Time(w.now(), bytes)
	if least < time.Millisecond || seconds != nil && *seconds >= least.Seconds() {
		return seconds
	}
	s := least.Seconds()
	return &s
}
