package site

// The limits of a recovery plan are those of the system that sitrep re-implements: the first group and up to seven more.
const (
	MaxGroups  = 8
	MaxPlanVMs = 100
)

func parsePlan(v value, r *refs, plans *names[struct{}]) *Plan {
	o := v.object("name", "groups")
	p := &Plan{Name: o.need("name").name(maxName)}
	plans.declare(o.get("name"), p.Name, struct{}{})
	seen := map[*VM]int{}
	for i, gv := range o.need("groups").list() {
		if i == MaxGroups {
			gv.fail("%s: a recovery plan has at most %d groups", gv.label(), MaxGroups)
		}
		p.Groups = append(p.Groups, parseGroup(gv, r, seen))
	}
	return p
}

func parseGroup(v value, r *refs, seen map[*VM]int) Group {
	o := v.object("pre", "vms", "post")
	g := Group{Pre: parseActions(o.get("pre")), Post: parseActions(o.get("post"))}
	for _, nv := range o.need("vms").list() {
		vm, ok := r.vms.refer(nv)
		if !ok {
			continue
		}
		if line, twice := seen[vm]; twice {
			nv.fail("%s: VM %s is in this plan already, on line %d", nv.label(), quote(vm.Name), line)
			continue
		}
		seen[vm] = nv.n.Line
		if len(seen) == MaxPlanVMs+1 {
			nv.fail("%s: a recovery plan has at most %d VMs", nv.label(), MaxPlanVMs)
		}
		g.VMs = append(g.VMs, vm)
	}
	return g
}

// both is the word for OnBoth.
const both On = "both"

func parseActions(v value) []Action {
	var out []Action
	for _, av := range v.list() {
		o := av.object("script", "timeout", "manual", "on")
		if o.v.n == nil {
			continue
		}
		if o.has("script") == o.has("manual") {
			av.fail("an action is either a script or manual")
		}
		if o.has("timeout") && !o.has("script") {
			o.get("timeout").fail("timeout: only a script has one")
		}
		a := Action{Script: o.get("script").program(), On: choice(o.get("on"), both, both, OnFailover, OnReal, OnFailback)}
		if a.On == both {
			a.On = OnBoth
		}
		a.Manual, _ = o.get("manual").text()
		if o.has("script") {
			a.Timeout = o.get("timeout").limit(DefaultScriptTimeout)
		}
		out = append(out, a)
	}
	return out
}
