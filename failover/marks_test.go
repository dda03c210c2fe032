package failover_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"sitrep/failover"
	"sitrep/internal/durable"
	"sitrep/internal/fault"
	"sitrep/internal/host"
	"sitrep/internal/replica"
)

const ledgerPath = "/store/web01/ledger.json"

// editLedger replaces text in the ledger, as somebody does who can write to the store.
func (w *world) editLedger(t *testing.T, from, to string) {
	t.Helper()
	data, err := durable.ReadFile(w.FS, ledgerPath, 1<<24)
	must(t, err)
	if !bytes.Contains(data, []byte(from)) {
		t.Fatalf("the ledger does not hold %s", from)
	}
	must(t, durable.WriteFile(w.FS, ledgerPath, bytes.ReplaceAll(data, []byte(from), []byte(to))))
}

func (w *world) there(t *testing.T, path string) bool {
	t.Helper()
	_, err := w.FS.Stat(path)
	return err == nil
}

// TestSomebodyElsesFolder: two sites with a VM of one name share a recovery folder. The second failover is refused before its source is
// stopped, and nothing that the second one does, undo above all, removes what the first has made.
func TestSomebodyElsesFolder(t *testing.T) {
	w, _ := edge(t)
	claim := `{"id":"00112233445566778899aabbccddeeff","vm":"web01","site":"other","host":"dr1","at":"2026-01-02T03:04:05Z"}`
	for what, files := range map[string]map[string]string{
		"a claim":                       {".recovered.json": claim},
		"a claim that cannot be read":   {".recovered.json": "{"},
		"a disk without a record":       {"os.vhd": "precious"},
		"a disk of another name":        {"production.vhdx": "precious"},
		"a disk with another's record":  {"os.vhd": "precious", "os.vhd.recovered.json": claim},
		"a disk, and another's record":  {"data.qcow2": "precious", "data.qcow2.recovered.json": claim},
		"another's disk, half finished": {".recovered.json": claim, ".os.vhd.sitrep-tmp-0011223344556677": "precious"},
	} {
		// A failover that was begun before the other one put its files there is refused too, and undone.
		must(t, w.job().Run(t.Context(), failover.Unplanned, failover.Options{NoShutdown: true}, failover.StepBegin))
		must(t, w.FS.MkdirAll("/dr/web01"))
		for name, text := range files {
			must(t, durable.WriteFile(w.FS, "/dr/web01/"+name, []byte(text)))
		}
		wantCode(t, w.run(t, failover.Unplanned, failover.Options{NoShutdown: true}), fault.Exists)
		must(t, w.job().Undo(t.Context()))
		for _, k := range []failover.Kind{failover.Planned, failover.Unplanned} {
			wantCode(t, w.run(t, k, failover.Options{}), fault.Exists)
			if st := w.state(t); st.Failover != nil || w.source.vms["web01"].power != host.Running {
				t.Fatalf("%s: something was begun", what)
			}
		}
		for name := range files {
			if !w.there(t, "/dr/web01/"+name) {
				t.Fatalf("%s: undo has removed %s", what, name)
			}
			must(t, w.FS.Remove("/dr/web01/"+name))
		}
	}
}

// TestFolderOfTheSource: disks are not made in the folder in which those of the source lie.
func TestFolderOfTheSource(t *testing.T) {
	w, _ := edge(t)
	j := w.job()
	j.Folder = "/site/disks"
	j.Format = "vhdx"
	wantCode(t, j.Run(t.Context(), failover.Planned, failover.Options{}, ""), fault.PrerequisiteFail)
	if w.state(t).Failover != nil || w.source.vms["web01"].power != host.Running {
		t.Fatal("something was begun")
	}
}

// TestEditedPlaces: undo and clean-up remove what they have made, wherever the site file and the ledger point by now, and nothing else.
func TestEditedPlaces(t *testing.T) {
	w, _ := edge(t)
	must(t, w.FS.MkdirAll("/prod/web01"))
	for _, name := range []string{"os.vhd", "data.vhd"} {
		must(t, durable.WriteFile(w.FS, "/prod/web01/"+name, []byte("precious")))
	}
	must(t, w.run(t, failover.Unplanned, failover.Options{}))
	j := w.job()
	j.Folder = "/prod/web01" // the site file was edited
	must(t, j.Undo(t.Context()))
	if w.there(t, "/dr/web01") || !w.there(t, "/prod/web01/os.vhd") || !w.there(t, "/prod/web01/data.vhd") {
		t.Fatal("undo went by the names of the site file")
	}
	must(t, w.run(t, failover.Test, failover.Options{}))
	w.editLedger(t, "/dr/web01-test/os.vhd", "/prod/web01/os.vhd") // the store was edited
	must(t, w.job().Cleanup(t.Context(), ""))
	if w.there(t, "/dr/web01-test") || !w.there(t, "/prod/web01/os.vhd") {
		t.Fatal("cleanup went by the names of the ledger")
	}
}

// TestReplacedFile: a file that took the place of a recovered disk, beside its record, is somebody's.
func TestReplacedFile(t *testing.T) {
	w, _ := edge(t)
	must(t, w.run(t, failover.Unplanned, failover.Options{}))
	must(t, durable.WriteFile(w.FS, "/dr/web01/os.vhd", []byte("precious")))
	must(t, w.job().Undo(t.Context()))
	if !w.there(t, "/dr/web01/os.vhd") || w.there(t, "/dr/web01/data.vhd") {
		t.Fatal("undo has removed what it has not made, or left what it has")
	}
}

// TestBeforeMarks: what the version before claims and identities has made is cleaned up, brought home from and committed as it was.
func TestBeforeMarks(t *testing.T) {
	old := func(w *world, dir string) {
		must(t, w.FS.Remove(dir+"/.recovered.json"))
		for _, name := range w.Disks {
			path := dir + "/" + name + ".vhd.recovered.json"
			data, err := durable.ReadFile(w.FS, path, 1<<16)
			must(t, err)
			var kept []string
			for line := range strings.Lines(string(data)) {
				if !strings.Contains(line, "device") && !strings.Contains(line, "inode") {
					kept = append(kept, line)
				}
			}
			must(t, durable.WriteFile(w.FS, path, []byte(strings.ReplaceAll(strings.Join(kept, ""), ",\n}", "\n}"))))
		}
		must(t, w.forget(func(rec *replica.Failover) { rec.Creating = false }))
	}
	w, g := edge(t)
	must(t, w.run(t, failover.Test, failover.Options{}))
	old(w, "/dr/web01-test")
	must(t, w.job().Cleanup(t.Context(), ""))
	must(t, w.run(t, failover.Planned, failover.Options{}))
	old(w, "/dr/web01")
	must(t, w.job().Undo(t.Context()))
	must(t, w.run(t, failover.Planned, failover.Options{}))
	old(w, "/dr/web01")
	must(t, w.job().Commit(t.Context()))
	must(t, w.job().Failback(t.Context(), failover.FailbackOptions{Mode: failover.DuringFailover}, ""))
	must(t, w.job().Commit(t.Context()))
	got, err := w.atHome()
	must(t, err)
	must(t, same("the VM at home", got, g))
	if w.there(t, "/dr/web01") || w.there(t, "/dr/web01-test") || len(w.recovery.vms) != 0 {
		t.Fatal("something is left")
	}
}

// forget changes the records of failovers in the ledger.
func (w *world) forget(f func(*replica.Failover)) error {
	ctx := context.Background()
	r, err := w.job().Store.Open(ctx, "web01")
	if err != nil {
		return err
	}
	st, err := r.Ledger().Load(ctx)
	if err == nil {
		for _, rec := range []*replica.Failover{st.Failover, st.Test} {
			if rec != nil {
				f(rec)
			}
		}
		_, err = r.Ledger().Save(ctx, st)
	}
	return errors.Join(err, r.Close())
}

// TestStrangerAfterDisks: a VM of this name that came to the host after the disks were made is neither made over nor deleted.
func TestStrangerAfterDisks(t *testing.T) {
	w, _ := edge(t)
	must(t, w.job().Run(t.Context(), failover.Unplanned, failover.Options{}, failover.StepDisks))
	w.recovery.vms["web01"] = machine{host.Definition{Name: "web01", OS: "other"}, host.Off}
	wantCode(t, w.run(t, failover.Unplanned, failover.Options{}), fault.HostRefused)
	must(t, w.job().Undo(t.Context()))
	if w.recovery.vms["web01"].def.OS != "other" {
		t.Fatal("a VM of somebody else was made over, or deleted")
	}
}
