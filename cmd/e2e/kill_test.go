package e2e_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"
)

// TestKill ends the program with kill -9 at random moments of protect, delta and unprotect, and does what cron does: the
// same again.
func TestKill(t *testing.T) {
	t.Parallel()
	k := newKiller(newRig(t), 104*mib)
	k.live(times(10, 100, 3))
}

// times chooses how often something is done.
func times(normal, longer, short int) int {
	switch {
	case long():
		return longer
	case testing.Short():
		return short
	}
	return normal
}

// killer is a VM whose runs are killed. Its past is everything that the disks held between two writes: any of it may have
// become a recovery point.
type killer struct {
	*rig
	rnd    *rand.Rand
	m      *machine
	took   map[string]time.Duration // of the last run of a verb that came to its end
	kills  int
	states map[string]int // of the jobs that were killed
}

func newKiller(r *rig, size int64) *killer {
	k := &killer{rig: r, rnd: random(r.T), took: map[string]time.Duration{}, states: map[string]int{}}
	r.keep = 4
	k.m = r.add("web01", map[string]guest{
		"os":   newQEMU(r.T, r.path("web01", "os.raw"), "raw", size),
		"data": newQEMU(r.T, r.path("web01", "data.vhdx"), "vhdx/dynamic", size/4),
	})
	return k
}

// live protects the VM, lets it write, and kills every run a few times before it may end.
func (k *killer) live(rounds int) {
	k.Helper()
	k.write(60)
	k.insist("protect")
	for i := range rounds {
		if i%5 == 4 {
			k.insist("unprotect")
			k.write(10)
			k.insist("protect")
		} else {
			k.write(1 + k.rnd.IntN(60))
			k.insist("delta")
		}
		k.proof()
	}
	k.Logf("%d kills, jobs then: %v", k.kills, k.states)
	if k.states["Interrupted"] == 0 {
		k.Error("no job was ever interrupted: the test has tested nothing")
	}
}

// write changes the disks.
func (k *killer) write(n int) {
	k.Helper()
	for _, name := range k.m.names() {
		g := k.m.disks[name]
		size := g.size(k.T)
		list := scattered(k.rnd, size, g.sector())
		for range n {
			most := size / 512 / 128
			c := change{off: k.rnd.Int64N(size/512-most) * 512, n: (1 + k.rnd.Int64N(most)) * 512}
			if k.rnd.IntN(8) > 0 {
				c.data = noise(k.rnd, c.n)
			}
			list = append(list, c)
		}
		g.put(k.T, list)
	}
	k.m.past = append(k.m.past, k.m.now(k.T))
}

// insist runs a verb until it comes to its end, and kills it a few times before.
func (k *killer) insist(verb string) {
	k.Helper()
	for range k.rnd.IntN(4) {
		limit := max(k.took[verb], 20*time.Millisecond) * 11 / 10
		if k.killed(verb, time.Duration(k.rnd.Int64N(int64(limit)))) {
			return
		}
		if verb == "delta" && k.rnd.IntN(4) == 0 {
			k.write(1)
		}
	}
	began := time.Now()
	o := k.run(verb, "web01")
	if o.code != 0 && !k.wasDone(verb, o) {
		k.Fatal(o)
	}
	k.took[verb] = time.Since(began)
}

// wasDone says whether a run was refused because the one that was killed had done everything.
func (k *killer) wasDone(verb string, o outcome) bool {
	return o.code == 6 && (verb == "protect" || verb == "unprotect") && k.vm("status", "web01").State ==
		map[string]string{"protect": "replicating", "unprotect": "not-protected"}[verb]
}

// killed runs a verb and kills it after a while. It returns true when the run was at its end before.
func (k *killer) killed(verb string, after time.Duration) (done bool) {
	k.Helper()
	before := k.jobs()
	var out, errs bytes.Buffer
	c := k.command(verb, "web01")
	c.Stdout, c.Stderr = &out, &errs
	check(k.T, c.Start())
	timer := time.AfterFunc(after, func() { c.Process.Kill() })
	o := k.wait(c, &out, &errs)
	timer.Stop()
	switch {
	case o.code == 0, o.code > 0 && k.wasDone(verb, o):
		return true
	case o.code > 0:
		k.Fatalf("after %d kills: %v", k.kills, o)
	}
	k.kills++
	k.judgeJobs(before, verb != "delta")
	return false
}

// jobs lists the jobs there are, the oldest first.
func (k *killer) jobs() []jobObject {
	k.Helper()
	list := k.json("jobs", "--limit", "0").Jobs
	slices.Reverse(list)
	return list
}

// judgeJobs looks at the jobs of a run that was killed: the last one was interrupted, unless the kill came after its end;
// those before it had ended. A run may also have found that all was done, and so refused to do it again.
func (k *killer) judgeJobs(before []jobObject, mayRefuse bool) {
	k.Helper()
	list := k.jobs()
	fresh := list[len(before):]
	if !slices.Equal(list[:len(before)], before) {
		k.Fatalf("the list of jobs changed: %v, it was %v", list, before)
	}
	for i, j := range fresh {
		last := i == len(fresh)-1
		if j.State != "Succeeded" && !(last && (j.State == "Interrupted" || mayRefuse && j.State == "Failed")) {
			k.Fatalf("job %v after a kill", j)
		}
		k.states[j.State]++
	}
	if len(fresh) == 0 {
		k.states["not begun"]++
	}
}

// proof holds the replica against the source, and the recovery points against what the disks held.
func (k *killer) proof() {
	k.Helper()
	k.same(k.m)
	k.ok("verify", "web01")
	k.clean(k.m)
	k.pointsAmong(k.m)
	if n := len(k.points(k.m)); n > k.keep {
		k.Fatalf("%d recovery points", n)
	}
	if entries, err := os.ReadDir(k.path("web01")); err != nil || len(entries) != len(k.m.disks) {
		k.Fatal(fmt.Sprint("beside the disks: ", entries, err))
	}
}
