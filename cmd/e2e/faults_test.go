package e2e_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"sitrep/internal/durable"
	"sitrep/internal/hrl"
)

// rich makes a site with one VM of two disks, of which the first is raw and full, protects it and lets it have a past.
func rich(t *testing.T, rnd *rand.Rand) (*rig, *machine) {
	t.Helper()
	return richIn(newRig(t), rnd)
}

func richIn(r *rig, rnd *rand.Rand) (*rig, *machine) {
	r.Helper()
	m := r.add("web01", map[string]guest{
		"os":   newQEMU(r.T, r.path("web01", "os.raw"), "raw", 12*mib),
		"data": newQEMU(r.T, r.path("web01", "data.vhdx"), "vhdx/dynamic", 8*mib),
	})
	m.disks["os"].put(r.T, []change{{off: 0, n: 12 * mib, data: noise(rnd, 12*mib)}})
	r.protect(m)
	r.scribble(m, rnd)
	r.up(m)
	return r, m
}

// scribble writes a little to all disks of a VM.
func (r *rig) scribble(m *machine, rnd *rand.Rand) {
	r.Helper()
	for _, name := range m.names() {
		g := m.disks[name]
		g.put(r.T, scattered(rnd, g.size(r.T), g.sector()))
	}
}

// commandAtEnd is the command that an advice ends with.
var commandAtEnd = regexp.MustCompile(`(?m)^  next:.*[Rr]un: sitrep (.*)$`)

// advised is the command that a run printed as the next one, without the flags that say where the site is.
func (r *rig) advised(o outcome) []string {
	r.Helper()
	found := commandAtEnd.FindStringSubmatch(o.stderr)
	if found == nil {
		r.Fatalf("no next command is named: %v", o)
	}
	return strings.Fields(strings.ReplaceAll(found[1], "--site "+r.path("site.yaml"), ""))
}

// mended runs what an error named as the next command, once its cause is out of the way, and proves that nothing was lost.
func (r *rig) mended(m *machine, o outcome) {
	r.Helper()
	r.ok(r.advised(o)...)
	r.ok("delta", m.name, "--now")
	r.same(m)
	if now := m.now(r.T); !equalMoments(now, m.past[len(m.past)-1]) {
		m.past = append(m.past, now)
	}
	r.pointsAre(m)
	r.proven(m)
}

// resynced leads a VM out of the state resynchronization-required, by the command that the error named. Recovery points
// may hold nothing but what the disks held.
func (r *rig) resynced(m *machine, o outcome) {
	r.Helper()
	// It may say besides what is wrong with the replica, and fail for that.
	if v := r.run("status", m.name, "--json").object(r.T).VMs[0]; v.State != "resynchronization-required" || v.Health != "Critical" {
		r.Fatalf("state %s, health %s", v.State, v.Health)
	}
	next := r.advised(o)
	if next[0] != "resync" {
		r.Fatalf("the next command is %q", next)
	}
	r.ok(next...)
	r.ok("delta", m.name, "--now")
	r.same(m)
	r.proven(m)
	if now := m.now(r.T); !equalMoments(now, m.past[len(m.past)-1]) {
		m.past = append(m.past, now)
	}
	r.pointsAmong(m)
}

// pointsAmong fails the test unless every recovery point is what the disks held, in order, and the last one is the present.
func (r *rig) pointsAmong(m *machine) {
	r.Helper()
	at := 0
	points := r.points(m)
	for i, p := range points {
		n := slices.IndexFunc(m.past[at:], func(x moment) bool { return equalMoments(x, p) })
		if n < 0 {
			r.Fatalf("recovery point %d of %d is nothing that the disks held after the one before it", i, len(points))
		}
		at += n
	}
	if at != len(m.past)-1 {
		r.Fatalf("the last of %d recovery points is moment %d of %d", len(points), at, len(m.past))
	}
}

func move(t *testing.T, from, to string) {
	t.Helper()
	check(t, os.Rename(from, to))
}

// edit changes bytes of a file in place.
func edit(t *testing.T, path string, off int64, f func(b []byte)) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	check(t, err)
	defer file.Close()
	if off < 0 {
		info, err := file.Stat()
		check(t, err)
		off += info.Size()
	}
	b := make([]byte, 16)
	_, err = file.ReadAt(b, off)
	check(t, err)
	f(b)
	_, err = file.WriteAt(b, off)
	check(t, err)
}

// firstData is where the data of the first record of a log lies that is not zeros: those have no bytes that count.
func firstData(t *testing.T, path string) int64 {
	t.Helper()
	f, err := durable.OS().Open(path)
	check(t, err)
	defer f.Close()
	l, err := hrl.Open(f)
	check(t, err)
	for rec, err := range l.Records(t.Context()) {
		check(t, err)
		if !rec.Zero {
			return rec.At
		}
	}
	t.Fatal("the log has no data")
	return 0
}

func flip(b []byte) { b[3] ^= 0x10 }

// replace gives a file new content, as a new file of the same name: what has the old one by another name stays.
func replace(t *testing.T, path string, data []byte) {
	t.Helper()
	check(t, os.Remove(path))
	check(t, os.WriteFile(path, data, 0o600))
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	check(t, err)
	return data
}

// logs lists the change logs of a disk in a folder, the oldest first.
func (r *rig) logs(folder, disk string) []string {
	r.Helper()
	list, err := filepath.Glob(filepath.Join(folder, "*"+disk+".*.hrl"))
	check(r.T, err)
	slices.Sort(list)
	return list
}

// untouched fails the test if f changes the pages of the replica, or what the recovery points hold.
func (r *rig) untouched(m *machine, f func()) {
	r.Helper()
	var before [][]byte
	for _, name := range m.names() {
		before = append(before, read(r.T, r.replica(m, name)))
	}
	f()
	for i, name := range m.names() {
		if !bytes.Equal(before[i], read(r.T, r.replica(m, name))) {
			r.Errorf("the pages of %s changed", name)
		}
	}
	r.pointsAre(m)
}

func TestVanishedSource(t *testing.T) {
	t.Parallel()
	rnd := random(t)
	r, m := rich(t, rnd)
	r.scribble(m, rnd)
	away := r.path("away")
	for _, name := range m.names() {
		file := m.disks[name].file()
		move(t, file, away)
		var o outcome
		r.untouched(m, func() { o = r.refused(4, "disk-missing", []string{"web01", name, file}, "delta", "web01") })
		r.ok("verify", "web01") // the replica needs no source
		move(t, away, file)
		r.mended(m, o)
	}
	folder := r.path("web01") // all of them, with their folder
	move(t, folder, away)
	o := r.refused(4, "disk-missing", []string{"web01", folder}, "delta", "web01")
	move(t, away, folder)
	r.mended(m, o)
}

func TestVanishedParent(t *testing.T) {
	t.Parallel()
	rnd := random(t)
	r := newRig(t)
	check(t, os.MkdirAll(r.path("web01"), 0o755))
	m := r.add("web01", map[string]guest{"os": vhdxChain(t, r.path("web01"), 16*mib, rnd)})
	r.protect(m)
	r.scribble(m, rnd)
	base := r.path("web01", "base.vhdx")
	move(t, base, r.path("away"))
	o := r.refused(4, "chain-broken", []string{"web01", "os", "base.vhdx"}, "delta", "web01")
	move(t, r.path("away"), base)
	r.mended(m, o)
}

func TestStoreNotMounted(t *testing.T) {
	t.Parallel()
	rnd := random(t)
	r, m := rich(t, rnd)
	other := r.add("db01", map[string]guest{"os": newQEMU(t, r.path("db01", "os.raw"), "raw", mib)})
	r.scribble(m, rnd)
	store, away := r.path("store"), r.path("away")
	move(t, store, away)
	var last outcome
	for _, is := range []string{"missing", "empty"} {
		if is == "empty" {
			check(t, os.Mkdir(store, 0o755))
		}
		for _, verb := range []string{"protect", "replicate", "apply", "verify", "points", "status", "unprotect", "delta"} {
			args := []string{verb, "web01"}
			if verb == "replicate" || verb == "apply" || verb == "delta" { // which would wait for the time of their next try
				args = append(args, "--now")
			}
			last = r.refused(1, "store-not-mounted", []string{"web01", store}, args...)
		}
		r.refused(1, "store-not-mounted", []string{"db01", store}, "protect", "db01") // no new store in its place either
		if entries, err := os.ReadDir(store); err == nil && len(entries) > 0 || err != nil && is == "empty" {
			t.Fatalf("the %s store now has %v (%v)", is, entries, err)
		}
	}
	r.ok("delta", "--capture-only", "web01") // changes are kept meanwhile
	captured := m.now(t)
	r.scribble(m, rnd)
	check(t, os.Remove(store))
	move(t, away, store)
	m.past = append(m.past, captured)
	r.mended(m, last)
	r.protect(other)
}

func TestReplicaEdited(t *testing.T) {
	t.Parallel()
	rnd := random(t)
	for name, spoil := range map[string]func(t *testing.T, r *rig, m *machine){
		"pages":  func(t *testing.T, r *rig, m *machine) { edit(t, r.replica(m, "os"), 9*mib, flip) },
		"footer": func(t *testing.T, r *rig, m *machine) { edit(t, r.replica(m, "os"), -512+68, flip) },
		"no sums": func(t *testing.T, r *rig, m *machine) {
			check(t, os.Remove(r.path("store", "web01", "data.sums")))
		},
		"sums": func(t *testing.T, r *rig, m *machine) { edit(t, r.path("store", "web01", "os.sums"), 64, flip) },
		"booted": func(t *testing.T, r *rig, m *machine) {
			tool(t, "qemu-io", "-f", "vpc", "-c", "write 0 512", r.replica(m, "data"))
		},
		"shorter": func(t *testing.T, r *rig, m *machine) { check(t, os.Truncate(r.replica(m, "os"), 10*mib)) },
	} {
		seed := rnd.Uint64()
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 0))
			r, m := rich(t, rnd)
			spoil(t, r, m)
			m.writeElsewhere(t, rnd)
			o := r.refused(5, "replica-changed", []string{"web01", r.path("store", "web01")}, "delta", "web01")
			r.resynced(m, o)
		})
	}
}

// TestReplicaCopied has a file of the replica copied, as moving a store does: its content proves that it is the same.
func TestReplicaCopied(t *testing.T) {
	t.Parallel()
	rnd := random(t)
	r, m := rich(t, rnd)
	replace(t, r.replica(m, "os"), read(t, r.replica(m, "os")))
	r.scribble(m, rnd)
	r.ok("delta", "web01")
	r.same(m)
	r.proven(m)
}

// TestReplicaRotten changes a byte of the replica in a way that only its content tells.
func TestReplicaRotten(t *testing.T) {
	t.Parallel()
	rnd := random(t)
	r, m := rich(t, rnd)
	info, err := os.Stat(r.replica(m, "os"))
	check(t, err)
	edit(t, r.replica(m, "os"), 9*mib, flip)
	check(t, os.Chtimes(r.replica(m, "os"), time.Time{}, info.ModTime()))
	o := r.refused(7, "difference", []string{"web01", "os"}, "verify", "web01")
	m.writeElsewhere(t, rnd)
	r.resynced(m, o)
}

// TestRottenOverwritten changes a byte of the replica, as a disk that rots does, in a block that the guest overwrites. The delta
// finds it before anything is overwritten.
func TestRottenOverwritten(t *testing.T) {
	t.Parallel()
	rnd := random(t)
	r, m := rich(t, rnd)
	info, err := os.Stat(r.replica(m, "os"))
	check(t, err)
	edit(t, r.replica(m, "os"), 9*mib, flip)
	check(t, os.Chtimes(r.replica(m, "os"), time.Time{}, info.ModTime()))
	rotten := read(t, r.replica(m, "os"))
	m.disks["os"].put(t, []change{{off: 9 * mib, n: 512, data: noise(rnd, 512)}})
	o := r.refused(5, "replica-corrupt", []string{"web01", "os", r.replica(m, "os"), fmt.Sprint(9 * mib)}, "delta", "web01", "--now")
	if !bytes.Equal(read(t, r.replica(m, "os")), rotten) {
		t.Error("pages were written to")
	}
	r.ok(r.advised(o)...)
	r.ok("delta", "web01", "--now")
	r.same(m)
	r.proven(m)
}

// TestExportRotten exports a recovery point, a block of which was changed in the replica: that fails, and leaves nothing that
// could be taken for the disk.
func TestExportRotten(t *testing.T) {
	t.Parallel()
	r, m := rich(t, random(t))
	newest := len(m.past) - 1
	info, err := os.Stat(r.replica(m, "os"))
	check(t, err)
	edit(t, r.replica(m, "os"), 9*mib, flip)
	check(t, os.Chtimes(r.replica(m, "os"), time.Time{}, info.ModTime()))
	r.refused(5, "replica-corrupt", []string{"web01", "os", r.replica(m, "os"), fmt.Sprint(9 * mib)},
		"points", "web01", "--export", "latest", "--to", r.path("out"))
	if list, err := filepath.Glob(r.path("out", "*os*")); err != nil || len(list) > 0 {
		t.Errorf("%q was left (error %v)", list, err)
	}
	edit(t, r.replica(m, "os"), 9*mib, flip)
	r.ok("points", "web01", "--export", "latest", "--to", r.path("out"))
	if got := r.points(m)[newest]; !equalMoments(got, m.past[newest]) {
		t.Errorf("the newest point holds %v, the disks held %v", got, m.past[newest])
	}
}

// writeElsewhere changes all disks, but not where the tests damage the replica: what was there before is still known, in
// the source.
func (m *machine) writeElsewhere(t *testing.T, rnd *rand.Rand) {
	t.Helper()
	const n = 70000 / 512 * 512
	for _, g := range m.disks {
		g.put(t, []change{{off: 2 * mib, n: n, data: noise(rnd, n)}})
	}
}

// TestReplicaLost changes a byte of the replica where the source has gone on too: what was there is nowhere any more. The
// resynchronization says so.
func TestReplicaLost(t *testing.T) {
	t.Parallel()
	rnd := random(t)
	r, m := rich(t, rnd)
	edit(t, r.replica(m, "os"), 9*mib, flip)
	m.disks["os"].put(t, []change{{off: 9 * mib, n: 512, data: noise(rnd, 512)}})
	o := r.refused(5, "replica-changed", []string{"web01", "os"}, "delta", "web01")
	o = r.ok(r.advised(o)...)
	if !strings.Contains(o.stderr, "recovery points from before") {
		t.Errorf("nothing is said of the recovery points: %v", o)
	}
	r.ok("delta", "web01", "--now")
	r.same(m)
	r.proven(m)
}

func TestLedger(t *testing.T) {
	t.Parallel()
	rnd := random(t)
	r, m := rich(t, rnd)
	other := r.add("db01", map[string]guest{"os": newQEMU(t, r.path("db01", "os.raw"), "raw", mib)})
	r.protect(other)
	r.scribble(m, rnd)
	ledger := r.path("store", "web01", "ledger.json")
	good := read(t, ledger)
	for name, c := range map[string]struct {
		code string
		data []byte
		word string
	}{
		"of another VM": {"replica-foreign", read(t, r.path("store", "db01", "ledger.json")), "db01"},
		"cut":           {"ledger-corrupt", good[:len(good)/2], ledger},
		"empty":         {"ledger-corrupt", nil, ledger},
		"zeros":         {"ledger-corrupt", make([]byte, len(good)), ledger},
		"newer":         {"ledger-version", bytes.Replace(good, []byte(`"format": 1`), []byte(`"format": 2`), 1), ledger},
		"repeated":      {"ledger-corrupt", append(slices.Clone(good), good...), ledger},
		"missing":       {"ledger-corrupt", nil, ledger},
	} {
		replace(t, ledger, c.data)
		if name == "missing" {
			check(t, os.Remove(ledger))
		}
		var o outcome
		for _, verb := range []string{"status", "verify", "apply", "protect", "delta"} {
			o = r.refused(4, c.code, []string{"web01", c.word}, verb, "web01")
		}
		_ = os.Remove(ledger)
		check(t, os.WriteFile(ledger, good, 0o600))
		r.mended(m, o)
		good = read(t, ledger)
		r.scribble(m, rnd)
	}
	r.up(other)
}

func TestPagesMissing(t *testing.T) {
	t.Parallel()
	rnd := random(t)
	r, m := rich(t, rnd)
	r.scribble(m, rnd)
	for _, name := range m.names() {
		file, away := r.replica(m, name), r.path("away")
		move(t, file, away)
		o := r.refused(4, "replica-missing", []string{"web01", name, file}, "delta", "web01")
		move(t, away, file)
		r.mended(m, o)
		r.scribble(m, rnd)
	}
}

// TestLocalLogs damages and takes away change logs that wait beside the disks.
func TestLocalLogs(t *testing.T) {
	t.Parallel()
	seeds := random(t)
	const disk = "os"
	for name, c := range map[string]struct {
		code  []string
		spoil func(t *testing.T, r *rig, folder string)
	}{
		"the middle one of three is missing": {[]string{"log-gap"}, func(t *testing.T, r *rig, folder string) {
			check(t, os.Remove(r.logs(folder, disk)[1]))
		}},
		"the last one is missing": {[]string{"log-gap"}, func(t *testing.T, r *rig, folder string) {
			check(t, os.Remove(r.logs(folder, disk)[2]))
		}},
		"of another disk": {[]string{"log-gap", "log-foreign"}, func(t *testing.T, r *rig, folder string) {
			replace(t, r.logs(folder, disk)[0], read(t, r.logs(folder, "data")[0]))
		}},
		"of another time": {[]string{"log-gap", "log-foreign"}, func(t *testing.T, r *rig, folder string) {
			replace(t, r.logs(folder, disk)[0], read(t, r.logs(folder, disk)[1]))
		}},
		"a bit of the header": {[]string{"log-gap", "log-corrupt"}, func(t *testing.T, r *rig, folder string) {
			edit(t, r.logs(folder, disk)[0], 16, flip)
		}},
		"a bit of the data": {[]string{"log-corrupt"}, func(t *testing.T, r *rig, folder string) {
			edit(t, r.logs(folder, disk)[1], firstData(t, r.logs(folder, disk)[1]), flip)
		}},
		"a bit of the end": {[]string{"log-gap", "log-corrupt"}, func(t *testing.T, r *rig, folder string) {
			edit(t, r.logs(folder, disk)[2], -100, flip)
		}},
		"shorter": {[]string{"log-gap", "log-corrupt", "log-torn"}, func(t *testing.T, r *rig, folder string) {
			path := r.logs(folder, disk)[2]
			info, err := os.Stat(path)
			check(t, err)
			check(t, os.Truncate(path, info.Size()-4096))
		}},
	} {
		seed := seeds.Uint64()
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 0))
			r, m := rich(t, rnd)
			var taken []moment
			for range 3 {
				r.scribble(m, rnd)
				r.ok("delta", "--capture-only", "web01")
				taken = append(taken, m.now(t))
			}
			c.spoil(t, r, r.path("web01"))
			o := r.run("delta", "web01", "--json")
			if o.code != 5 || !slices.Contains(c.code, o.object(t).Error.Code) {
				t.Fatalf("want exit code 5 and one of %v: %v", c.code, o)
			}
			for _, word := range []string{"web01", "os", r.dir} {
				if !strings.Contains(o.stderr, word) {
					t.Errorf("%q is not said: %v", word, o)
				}
			}
			// Every position that there is now is one that the disks had, and the pages are at the last of them.
			have := r.points(m)
			m.past = append(m.past, taken...)
			if len(have) > len(m.past) {
				t.Fatalf("%d recovery points of %d moments", len(have), len(m.past))
			}
			for i, p := range have {
				if !equalMoments(p, m.past[i]) {
					t.Errorf("recovery point %d is not what the disks held", i)
				}
			}
			r.ok("verify", "web01")
			if name == "of another disk" { // it is not ours to remove
				check(t, os.Remove(r.logs(r.path("web01"), disk)[0]))
			}
			r.resynced(m, o)
		})
	}
}

// TestShelf damages, exchanges and takes away change logs that have arrived and wait to be applied.
func TestShelf(t *testing.T) {
	t.Parallel()
	rnd := random(t)
	r := newRig(t)
	r.policy = ", apply: elsewhere"
	m := r.add("web01", map[string]guest{
		"os":   newQEMU(t, r.path("web01", "os.raw"), "raw", 24*mib),
		"data": newQEMU(t, r.path("web01", "data.vhdx"), "vhdx/dynamic", 16*mib),
	})
	r.scribble(m, rnd)
	r.protect(m)
	r.scribble(m, rnd)
	r.ok("delta", "web01")
	shelf := r.path("store", "web01", "shelf")
	log := r.logs(shelf, "os")[0]
	good := read(t, log)
	damage := map[string]struct {
		code string
		data []byte
	}{
		"of another disk": {"log-foreign", read(t, r.logs(shelf, "data")[0])},
		"missing":         {"log-gap", nil},
		"zeros":           {"log-corrupt", make([]byte, len(good))},
		"something else":  {"log-foreign", bytes.Repeat([]byte("something"), len(good)/9)},
	}
	for _, off := range []int{16, 600, int(firstData(t, log)) + 100, len(good) - 50} {
		spoiled := slices.Clone(good)
		spoiled[off] ^= 4
		damage[fmt.Sprintf("bit at %d of %d", off, len(good))] = struct {
			code string
			data []byte
		}{"log-corrupt", spoiled}
	}
	for name, d := range damage {
		check(t, os.Remove(log))
		if d.data != nil {
			check(t, os.WriteFile(log, d.data, 0o600))
		}
		r.untouched(m, func() {
			o := r.refused(5, d.code, []string{"web01", "os", log}, "apply", "web01")
			if strings.Contains(o.stderr, "panic") {
				t.Fatal(name, o)
			}
		})
		_ = os.Remove(log)
		check(t, os.WriteFile(log, good, 0o600))
	}
	r.ok("apply", "web01") // with the log back, nothing was lost
	m.remember(t)
	r.same(m)
	r.pointsAre(m)
	r.ok("verify", "web01")
}

func TestStateDeleted(t *testing.T) {
	t.Parallel()
	rnd := random(t)
	r, m := rich(t, rnd)
	r.scribble(m, rnd)
	check(t, os.RemoveAll(r.path(".sitrep")))
	r.ok("status", "web01")
	r.ok("verify", "web01")
	var o outcome
	r.untouched(m, func() { o = r.refused(5, "position-lost", []string{"web01"}, "delta", "web01") })
	r.resynced(m, o)
}

// TestLocked runs on a VM that another run works on, known by the lock in the site's memory or by the one in the store.
func TestLocked(t *testing.T) {
	t.Parallel()
	rnd := random(t)
	r, m := rich(t, rnd)
	r.scribble(m, rnd)
	for path, code := range map[string]string{r.path(".sitrep", "locks", "web01.lock"): "locked", r.path("store", "web01", "lock"): "replica-held"} {
		lock, err := durable.OS().Lock(path)
		check(t, err)
		for _, verb := range []string{"delta", "apply", "verify", "pause", "unprotect"} {
			r.refused(11, code, []string{"web01"}, verb, "web01")
		}
		r.ok("status", "web01") // looking is free
		r.ok("points", "web01")
		check(t, lock.Close())
	}
	r.up(m)
	r.proven(m)
}
