package cmd

import (
	"context"

	"github.com/urfave/cli/v2"

	"sitrep/internal/fault"
	"sitrep/internal/site"
)

// holdObject is what points --hold and --release say of a VM.
type holdObject struct {
	vmHead
	Point string `json:"point"`
	Held  string `json:"held,omitempty"`
	// Changed says that it was otherwise before.
	Changed bool `json:"changed"`
}

// holdOptions are a point, and whether it is held from now on.
type holdOptions struct {
	point   string // an ID, or "latest"
	release bool
}

// holdOf reads --hold and --release.
func holdOf(c *cli.Context) (h holdOptions, err error) {
	h = holdOptions{point: c.String("hold")}
	if c.IsSet("release") {
		h = holdOptions{c.String("release"), true}
	}
	switch {
	case !c.IsSet("hold") && !c.IsSet("release"):
		return h, nil
	case h.point == "":
		return h, fault.New(fault.UsageError, "--hold and --release take the ID of a recovery point")
	case c.IsSet("hold") && c.IsSet("release"), c.IsSet("export"), c.IsSet("promote"), c.IsSet("demote"):
		return h, fault.New(fault.UsageError, "--hold and --release exclude each other, --export, --promote and --demote")
	}
	return h, nil
}

// holdPoint holds a recovery point against retention, or releases it. What is so already is no error.
func (w *world) holdPoint(ctx context.Context, vm *site.VM, h holdOptions, o *holdObject) error {
	return w.locked(ctx, vm, func(ctx context.Context) error {
		return w.onReplica(ctx, vm, forWriting, &o.vmHead, func(s *session) error { return s.setHold(ctx, h, o) })
	})
}

func (s *session) setHold(ctx context.Context, h holdOptions, o *holdObject) error {
	st := s.state
	o.Point = h.point
	point, err := choosePoint(st, h.point)
	if err == nil {
		o.Point = point.ID
	}
	acknowledged := h.release && st.Massive != nil && st.Massive.Point == o.Point
	if err != nil && !acknowledged { // that point may be lost, or have gone with a commit of a version that kept the warning
		return err
	}
	if h.release {
		o.Changed = st.Release(o.Point) || acknowledged
	} else {
		o.Changed = st.Hold(o.Point)
	}
	if p := st.Point(o.Point); p != nil {
		o.Held = p.Held
	}
	text := "is held: no retention drops it, until \"sitrep points " + s.vm.Name + " --release " + o.Point + "\""
	switch {
	case acknowledged && st.Point(o.Point) == nil:
		text = "is there no more; the massive change after it is acknowledged"
	case acknowledged:
		text = "is released, and the massive change after it is acknowledged"
	case h.release && o.Changed:
		text = "is released: the next recovery points may push it out"
	case h.release:
		text = "is not held"
	}
	if s.opts.dryRun {
		s.planned(s.vm, "recovery point %s %s", o.Point, text)
		return nil
	}
	if o.Changed {
		if _, err := s.engine.Replica.Ledger().Save(ctx, st); err != nil {
			return err
		}
	}
	s.say("%s: recovery point %s %s", s.vm.Name, o.Point, text)
	return nil
}
