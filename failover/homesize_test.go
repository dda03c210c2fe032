package failover_test

import (
	"bytes"
	"testing"
	"time"

	"sitrep/failover"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/replicate/replicatetest"
)

// grown makes a source disk larger, with data behind its old end.
func (w *world) grown(t *testing.T, name string, by int64) {
	t.Helper()
	f, err := w.FS.OpenRW(w.Path(name))
	must(t, err)
	size, err := f.Size()
	must(t, err)
	_, err = f.WriteAt(bytes.Repeat([]byte{0xEE}, int(by)), size)
	must(t, err)
	must(t, f.Sync())
	must(t, f.Close())
}

// TestHomeLarger: a VM comes home to a disk that is larger than the recovered one, because it grew after what was replicated, or after
// the point; what is behind the recovered disk's end is zero then. Replication goes on.
func TestHomeLarger(t *testing.T) {
	for _, how := range []string{"not replicated", "after the point", "after the point, and lost"} {
		for _, mode := range []failover.Mode{failover.MinimalDowntime, failover.DuringFailover} {
			t.Run(how+", "+string(mode), func(t *testing.T) {
				w, _ := edge(t)
				st := w.state(t)
				point := st.Points[len(st.Points)-1].ID
				w.grown(t, "os", 1<<20)
				if how != "not replicated" {
					w.Now = w.Now.Add(5 * time.Minute)
					_, err := w.Delta(t.Context())
					must(t, err)
				}
				must(t, w.run(t, failover.Unplanned, failover.Options{Point: point, NoShutdown: true}))
				must(t, w.job().Commit(t.Context()))
				must(t, w.source.Stop(t.Context(), "web01", 0))
				got, err := w.recovered("web01")
				must(t, err)
				got["os"][5] ^= 0xFF
				must(t, w.write("web01", got))
				if how == "after the point, and lost" {
					must(t, w.FS.Remove(w.Path("os")))
				}
				must(t, w.job().Failback(t.Context(), failover.FailbackOptions{Mode: mode}, ""))
				home, err := w.atHome()
				must(t, err)
				want := replicatetest.Guest{"data": got["data"], "os": append(bytes.Clone(got["os"]), make([]byte, 1<<20)...)}
				must(t, same("the VM at home", home, want))
				must(t, w.job().Commit(t.Context()))
				w.Now = w.Now.Add(5 * time.Minute)
				_, err = w.Delta(t.Context())
				must(t, err)
				points, err := w.Points(t.Context())
				must(t, err)
				must(t, same("the newest recovery point", points[w.state(t).Applied], want))
			})
		}
	}
}

// TestHomeIsSomethingElse: a failback is refused, before anything is begun, when a disk at home is a recovered disk, or one for two.
func TestHomeIsSomethingElse(t *testing.T) {
	w, _ := edge(t)
	must(t, w.run(t, failover.Planned, failover.Options{}))
	must(t, w.job().Commit(t.Context()))
	was := w.state(t)
	for name, change := range map[string]func(*failover.Job){
		"a recovered disk": func(j *failover.Job) { j.Home.Disks[0].Path = "/dr/web01/" + j.Home.Disks[0].Name + ".vhd" },
		"one for two":      func(j *failover.Job) { j.Home.Disks[0].Path = j.Home.Disks[1].Path },
		"another VM's":     func(j *failover.Job) { j.Home.Disks[0].Path = "/site/disks/other.raw" },
	} {
		for _, f := range []string{"/site/disks/other.raw"} {
			must(t, durable.WriteFile(w.FS, f, make([]byte, 4096)))
			must(t, durable.WriteFile(w.FS, f+".recovered.json", []byte(`{"id":"00112233445566778899aabbccddeeff","vm":"db01","disk":"os"}`)))
		}
		j := w.job()
		change(j)
		err := j.Failback(t.Context(), failover.FailbackOptions{Mode: failover.DuringFailover}, "")
		if !fault.Is(err, fault.PrerequisiteFail) {
			t.Errorf("%s: %v", name, err)
		}
		if st := w.state(t); st.Generation != was.Generation || st.Failover.Failback != nil {
			t.Fatalf("%s: something was begun", name)
		}
	}
}

// TestFailbackReadsItsOwn: a path in the ledger that is not of a disk that this failover has made is not read, and nothing is begun.
func TestFailbackReadsItsOwn(t *testing.T) {
	w, _ := edge(t)
	must(t, w.run(t, failover.Planned, failover.Options{}))
	must(t, w.job().Commit(t.Context()))
	home, err := w.atHome()
	must(t, err)
	secret := "/etc/secret"
	must(t, w.FS.MkdirAll("/etc"))
	must(t, durable.WriteFile(w.FS, secret, bytes.Repeat([]byte{7}, len(home["os"]))))
	w.editLedger(t, "/dr/web01/os.vhd", secret)
	wantCode(t, w.job().Failback(t.Context(), failover.FailbackOptions{Mode: failover.DuringFailover}, ""), fault.FailoverFailed)
	// not with the record of the real one beside it either
	rec, err := durable.ReadFile(w.FS, "/dr/web01/os.vhd.recovered.json", 1<<16)
	must(t, err)
	must(t, durable.WriteFile(w.FS, secret+".recovered.json", rec))
	wantCode(t, w.job().Failback(t.Context(), failover.FailbackOptions{Mode: failover.DuringFailover}, ""), fault.FailoverFailed)
	now, err := w.atHome()
	must(t, err)
	must(t, same("the disks at home", now, home))
	if w.state(t).Failover.Failback != nil {
		t.Fatal("something was begun")
	}
}
