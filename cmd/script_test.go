package cmd_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"sitrep/cmd"
	"sitrep/internal/disk"
	"sitrep/internal/disk/vhdx"
	"sitrep/internal/durable"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"sitrep": func() { os.Exit(cmd.Run(context.Background(), os.Args, os.Stdin, os.Stdout, os.Stderr)) },
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "../testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("TZ", "UTC")
			e.Setenv("SITREP_SITE", "")
			e.Defer(func() { _ = exec.Command("umount", "-l", filepath.Join(e.WorkDir, "ro")).Run() }) // what a failed script left
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond != "mount" {
				return false, fmt.Errorf("there is no condition %q", cond)
			}
			folder := t.TempDir()
			if exec.Command("mount", "--bind", folder, folder).Run() != nil {
				return false, nil
			}
			return true, exec.Command("umount", folder).Run()
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": code, "json": jsonField, "disk": makeDisk, "poke": poke, "tree": tree, "sametree": sameTree,
			"hold": hold, "empty": empty, "same": same, "vhdx": makeVHDX, "sectors": sectors, "stamp": stampDisk, "child": makeChild,
			"gpt": gpt, "writevhdx": writeVHDX, "glob": glob,
		},
	})
}

// code N COMMAND... runs a command that must exit with N.
func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N COMMAND [ARGS]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	got := 0
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// json PATH VALUE checks a field of the JSON object on stdout; json PATH checks that it is there; with ! that it
// is not so. PATH is keys and indexes with dots between them, and ends with len for the number of elements.
func jsonField(ts *testscript.TestScript, neg bool, args []string) {
	var v any
	dec := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	dec.UseNumber()
	ts.Check(dec.Decode(&v))
	if dec.More() {
		ts.Fatalf("stdout holds more than one JSON object")
	}
	got, ok := dig(v, strings.Split(args[0], "."))
	switch {
	case neg && len(args) == 1 && ok, neg && len(args) == 2 && fmt.Sprint(got) == args[1]:
		ts.Fatalf("%s is there: %v", args[0], got)
	case neg:
	case !ok:
		ts.Fatalf("%s is not there", args[0])
	case len(args) == 2 && fmt.Sprint(got) != args[1]:
		ts.Fatalf("%s is %v, want %s", args[0], got, args[1])
	}
}

func dig(v any, path []string) (any, bool) {
	for _, key := range path {
		switch x := v.(type) {
		case map[string]any:
			next, ok := x[key]
			if !ok {
				return nil, false
			}
			v = next
		case []any:
			if key == "len" {
				v = len(x)
				continue
			}
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(x) {
				return nil, false
			}
			v = x[i]
		default:
			return nil, false
		}
	}
	return v, true
}

// disk FILE SIZE [OFF LEN SEED]... makes a sparse raw disk; sizes in KiB.
func makeDisk(ts *testscript.TestScript, neg bool, args []string) {
	name := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(filepath.Dir(name), 0o755))
	f, err := os.Create(name)
	ts.Check(err)
	ts.Check(f.Truncate(kib(ts, args[1])))
	ts.Check(f.Close())
	for rest := args[2:]; len(rest) >= 3; rest = rest[3:] {
		poke(ts, neg, append([]string{args[0]}, rest[:3]...))
	}
}

// vhdx FILE SIZE SECTOR makes a dynamic VHDX; size in KiB, the logical sector in bytes.
func makeVHDX(ts *testscript.TestScript, _ bool, args []string) {
	sector, err := strconv.Atoi(args[2])
	ts.Check(err)
	w, err := disk.Create(durable.OS(), ts.MkAbs(args[0]), disk.Spec{Format: disk.VHDX, Kind: disk.Dynamic, Size: kib(ts, args[1]), SectorSize: sector})
	ts.Check(err)
	_, err = w.WriteAt(randomBytes(uint64(sector), 64<<10), 0)
	ts.Check(errors.Join(err, w.Flush(), w.Close()))
}

// child FILE PARENT makes a differencing VHDX that names its parent by its absolute path.
func makeChild(ts *testscript.TestScript, _ bool, args []string) {
	parent, err := durable.OS().Open(ts.MkAbs(args[1]))
	ts.Check(err)
	p, err := vhdx.Open(parent, vhdx.Options{})
	ts.Check(err)
	f, err := durable.OS().Create(ts.MkAbs(args[0]))
	ts.Check(err)
	w, err := vhdx.Create(f, vhdx.Spec{Kind: vhdx.Differencing, Parent: p, AbsolutePath: ts.MkAbs(args[1])})
	ts.Check(err)
	ts.Check(w.Close())
}

// gpt FILE N gives a raw disk the header of a partition table whose GUID is made of N.
func gpt(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR, 0)
	ts.Check(err)
	n, err := strconv.ParseUint(args[1], 10, 8)
	ts.Check(err)
	_, err = f.WriteAt(append([]byte("EFI PART"), bytes.Repeat([]byte{byte(n)}, 80)...), 512)
	ts.Check(errors.Join(err, f.Close()))
}

// writevhdx FILE SEED writes 64 KiB at the beginning of a VHDX.
func writeVHDX(ts *testscript.TestScript, _ bool, args []string) {
	w, err := disk.OpenRW(durable.OS(), ts.MkAbs(args[0]), disk.VHDX)
	ts.Check(err)
	seed, err := strconv.ParseUint(args[1], 10, 64)
	ts.Check(err)
	_, err = w.WriteAt(randomBytes(seed, 64<<10), 0)
	ts.Check(errors.Join(err, w.Close()))
}

// glob PATTERN checks that there is a file of such a name; with ! that there is none.
func glob(ts *testscript.TestScript, neg bool, args []string) {
	found, err := filepath.Glob(ts.MkAbs(args[0]))
	ts.Check(err)
	if neg == (len(found) > 0) {
		ts.Fatalf("%s: %v", args[0], found)
	}
}

// stamp FILE TEXT writes bytes at the beginning of a raw disk, as its guest could.
func stampDisk(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR, 0)
	ts.Check(err)
	_, err = f.WriteAt([]byte(args[1]), 0)
	ts.Check(errors.Join(err, f.Close()))
}

// sectors FILE SECTOR fails unless the logical sectors of a disk have so many bytes.
func sectors(ts *testscript.TestScript, _ bool, args []string) {
	d, err := disk.Open(durable.OS(), ts.MkAbs(args[0]), disk.Auto)
	ts.Check(err)
	defer d.Close()
	if got := strconv.Itoa(d.SectorSize()); got != args[1] {
		ts.Fatalf("%s has sectors of %s bytes, want %s", args[0], got, args[1])
	}
}

// poke FILE OFF LEN SEED writes bytes that the seed decides; sizes in KiB.
func poke(ts *testscript.TestScript, _ bool, args []string) {
	f, err := os.OpenFile(ts.MkAbs(args[0]), os.O_RDWR, 0)
	ts.Check(err)
	seed, err := strconv.ParseUint(args[3], 10, 64)
	ts.Check(err)
	_, err = f.WriteAt(randomBytes(seed, kib(ts, args[2])), kib(ts, args[1]))
	ts.Check(errors.Join(err, f.Close()))
}

func randomBytes(seed uint64, n int64) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	p := make([]byte, n)
	rand.NewChaCha8(key).Read(p)
	return p
}

func kib(ts *testscript.TestScript, s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	ts.Check(err)
	return n << 10
}

// same RAW VHD compares the guest bytes of a raw disk with those of a fixed VHD.
func same(ts *testscript.TestScript, neg bool, args []string) {
	a, b := []byte(ts.ReadFile(args[0])), []byte(ts.ReadFile(args[1]))
	const footer = 512
	equal := len(b) >= footer && bytes.Equal(a, b[:len(b)-footer])
	if equal == neg {
		ts.Fatalf("%s and %s: equal is %v", args[0], args[1], equal)
	}
}

// tree NAME keeps what the working directory holds; sametree NAME fails if it holds something else.
func tree(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv("tree_"+args[0], listing(ts))
}

func sameTree(ts *testscript.TestScript, neg bool, args []string) {
	before, now := ts.Getenv("tree_"+args[0]), listing(ts)
	if neg == (before == now) {
		ts.Fatalf("before:\n%s\nnow:\n%s", before, now)
	}
}

// listing is every name below the working directory with its size, time of change and hash.
func listing(ts *testscript.TestScript) string {
	var lines []string
	root := ts.MkAbs(".")
	ts.Check(filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == filepath.Join(root, ".tmp") {
			return fs.SkipDir // the test's own
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			lines = append(lines, rel+"/")
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		lines = append(lines, fmt.Sprintf("%s %d %x", rel, len(data), sha256.Sum256(data)))
		return nil
	}))
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

// hold FILE takes a lock, as another run would, until the script ends.
func hold(ts *testscript.TestScript, _ bool, args []string) {
	name := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(filepath.Dir(name), 0o755))
	lock, err := durable.OS().Lock(name)
	ts.Check(err)
	ts.Defer(func() { lock.Close() })
}

// empty stdout|stderr|FOLDER checks that there is nothing.
func empty(ts *testscript.TestScript, neg bool, args []string) {
	var n int
	switch args[0] {
	case "stdout", "stderr":
		n = len(ts.ReadFile(args[0]))
	default:
		list, err := os.ReadDir(ts.MkAbs(args[0]))
		ts.Check(err)
		n = len(list)
	}
	if neg == (n == 0) {
		ts.Fatalf("%s has %d bytes or names", args[0], n)
	}
}
