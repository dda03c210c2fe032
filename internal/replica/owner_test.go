package replica

import (
	"testing"

	"sitrep/internal/fault"
	"sitrep/internal/hrl"
)

// TestForeign: who is the writer of a replica, whatever of its surroundings has another name, and who is not.
func TestForeign(t *testing.T) {
	id, run := hrl.NewID(), hrl.NewID()
	owner := Owner{Site: "v", Host: "h1", Writer: id, State: "/s/.sitrep", Machine: "m1", Run: run}
	old := Owner{Site: "v", Host: "h1"}
	me := func(change func(*Writer)) Writer {
		w := Writer{Owner: owner, Runs: []hrl.ID{hrl.NewID(), run}}
		w.Run = hrl.ID{}
		change(&w)
		return w
	}
	lives := func(string) bool { return true }
	for name, c := range map[string]struct {
		owner   Owner
		writer  Writer
		foreign bool
	}{
		"the same":                   {owner, me(func(*Writer) {}), false},
		"renamed host":               {owner, me(func(w *Writer) { w.Host = "h2" }), false},
		"renamed VMM server":         {owner, me(func(w *Writer) { w.Site = "v/x" }), false},
		"moved folder":               {owner, me(func(w *Writer) { w.State = "/t/.sitrep" }), false},
		"copied folder":              {owner, me(func(w *Writer) { w.State, w.Lives = "/t/.sitrep", lives }), true},
		"moved, on a renamed host":   {owner, me(func(w *Writer) { w.State, w.Host = "/t/.sitrep", "h2" }), true},
		"copied to another machine":  {owner, me(func(w *Writer) { w.Machine = "m2" }), true},
		"exact clone, went on":       {owner, me(func(w *Writer) { w.Runs = []hrl.ID{hrl.NewID()} }), true},
		"lost folder":                {owner, me(func(w *Writer) { w.Writer, w.Runs = hrl.NewID(), nil }), false},
		"lost folder, never written": {owner, me(func(w *Writer) { w.Writer, w.Runs = hrl.ID{}, nil }), false},
		"lost folder, other host":    {owner, me(func(w *Writer) { w.Writer, w.Runs, w.Host = hrl.ID{}, nil, "h2" }), true},
		"lost folder, other machine": {owner, me(func(w *Writer) { w.Writer, w.Runs, w.Machine = hrl.ID{}, nil, "m2" }), true},
		"another folder":             {owner, me(func(w *Writer) { w.Writer, w.Runs, w.State = hrl.NewID(), nil, "/s/other" }), true},
		"old ledger, same host":      {old, me(func(w *Writer) { w.Runs = nil }), false},
		"old ledger, other host":     {old, me(func(w *Writer) { w.Runs, w.Host = nil, "h2" }), true},
		"old ledger, known":          {old, me(func(w *Writer) { w.Runs, w.Host, w.Knows = nil, "h2", true }), false},
	} {
		st := State{VM: "a", Phase: Replicating, Owner: c.owner}
		if err := st.CheckWriter(c.writer); fault.Is(err, fault.NotOwner) != c.foreign || (err != nil) != c.foreign {
			t.Errorf("%s: %v, want foreign %v", name, err, c.foreign)
		}
		st.Phase = FailedOver // its phase refuses more than this
		if err := st.CheckWriter(c.writer); err != nil {
			t.Errorf("%s, failed over: %v", name, err)
		}
	}
}
