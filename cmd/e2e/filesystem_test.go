package e2e_test

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestFilesystem protects a dynamic VHDX with a filesystem full of real files. Between the deltas files come, go and
// change; what that writes to the disk is found on a raw shadow of it and written to the VHDX by QEMU. The replica, and
// every recovery point, has to be the disk, and a filesystem without faults.
func TestFilesystem(t *testing.T) {
	t.Parallel()
	needQEMU(t)
	need(t, "mke2fs", "e2fsprogs")
	need(t, "debugfs", "e2fsprogs")
	size, fill := int64(64*mib), int64(30*mib)
	if long() {
		size, fill = 2048*mib, 1300*mib
	}
	rnd := random(t)
	r := newRig(t)
	files := realFiles(t, r.path("files"), fill)
	v := &volume{T: t, rnd: rnd, shadow: r.path("shadow.raw"), files: files, dir: r.dir}
	tool(t, "mke2fs", "-q", "-t", "ext4", "-d", r.path("files"), v.shadow, strconv.FormatInt(size>>10, 10)+"k")
	disk := &qemuGuest{path: r.path("web01", "os.vhdx"), qemu: "vhdx", asSite: "vhdx"}
	check(t, os.MkdirAll(r.path("web01"), 0o755))
	tool(t, "qemu-img", "convert", "-f", "raw", "-O", "vhdx", "-o", "subformat=dynamic", v.shadow, disk.path)
	m := r.add("web01", map[string]guest{"os": disk})
	v.disk = disk

	r.protect(m)
	for i := range 3 {
		v.change(i)
		o := r.up(m)
		t.Logf("round %d: %d bytes changed, %d sent", i, o.Disks[0].Changed, o.Sent)
		v.whole(r.replica(m, "os"))
	}
	r.proven(m)
	for i := range r.points(m) {
		point := r.path("point.raw")
		r.export(m, i, "os", point)
		tool(t, "e2fsck", "-fn", point)
	}
}

// realFiles copies files of this machine until there are enough bytes, and returns their paths in the new folder.
func realFiles(t *testing.T, to string, enough int64) (names []string) {
	t.Helper()
	check(t, os.MkdirAll(to, 0o755))
	var have int64
	check(t, filepath.WalkDir("/usr", func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil // of a folder that cannot be read there is no need
		}
		info, err := e.Info()
		if err != nil || have+info.Size() > enough || info.Size() > enough/4 {
			return nil
		}
		name := strings.TrimPrefix(path, "/usr/")
		if strings.ContainsAny(name, " \"'\\") {
			return nil // debugfs would need quotes
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		check(t, os.MkdirAll(filepath.Join(to, filepath.Dir(name)), 0o755))
		check(t, os.WriteFile(filepath.Join(to, name), data, 0o644))
		names, have = append(names, name), have+info.Size()
		if have > enough*9/10 {
			return fs.SkipAll
		}
		return nil
	}))
	if have < enough/2 {
		t.Skipf("/usr has only %d bytes that can be used", have)
	}
	return names
}

// volume is a filesystem on a disk.
type volume struct {
	*testing.T
	rnd    *rand.Rand
	dir    string
	shadow string     // raw, of the same content as disk
	disk   *qemuGuest // nothing else writes to it
	files  []string   // paths in the filesystem
}

// change removes files, adds files, writes into one, and brings all of it to the disk.
func (v *volume) change(round int) {
	v.Helper()
	before := filepath.Join(v.dir, "before.raw")
	tool(v.T, "cp", "--sparse=always", v.shadow, before)
	var script strings.Builder
	for range 1 + len(v.files)/50 {
		i := v.rnd.IntN(len(v.files) - 1)
		fmt.Fprintf(&script, "rm /%s\n", v.files[i])
		v.files = append(v.files[:i], v.files[i+1:]...)
	}
	fmt.Fprintf(&script, "mkdir /new%d\n", round)
	for i := range 5 {
		local := filepath.Join(v.dir, "new file")
		local = strings.ReplaceAll(local, " ", strconv.Itoa(round*10+i))
		check(v.T, os.WriteFile(local, noise(v.rnd, 1+v.rnd.Int64N(300<<10)), 0o644))
		name := fmt.Sprintf("new%d/file%d", round, i)
		fmt.Fprintf(&script, "write %s /%s\n", local, name)
		v.files = append(v.files, name)
	}
	v.debugfs("-w", script.String())
	v.overwrite(v.files[v.rnd.IntN(len(v.files))])
	v.disk.put(v.T, differences(v.T, before, v.shadow))
	tool(v.T, "qemu-img", "compare", "-f", "raw", "-F", "vhdx", v.shadow, v.disk.path)
}

// debugfs runs commands on the shadow. They fail without an exit code, but not without a word.
func (v *volume) debugfs(mode, script string) string {
	v.Helper()
	name := filepath.Join(v.dir, "debugfs.script")
	check(v.T, os.WriteFile(name, []byte(script), 0o644))
	out := tool(v.T, "debugfs", mode, "-f", name, v.shadow)
	for _, bad := range []string{"File not found", "while ", "Usage:", "unknown"} {
		if strings.Contains(out, bad) {
			v.Fatalf("debugfs: %s", out)
		}
	}
	return out
}

// overwrite writes to the first data block of a file, in place, with qemu-io.
func (v *volume) overwrite(file string) {
	v.Helper()
	// Not "blocks": that lists those of the extent tree too, and they are not the file's.
	fields := strings.Fields(v.debugfs("-c", "bmap /"+file+" 0\n"))
	at, err := strconv.ParseInt(fields[len(fields)-1], 10, 64)
	check(v.T, err)
	if at == 0 {
		return // an empty file, or a hole
	}
	unit := v.blockSize()
	raw := &qemuGuest{path: v.shadow, qemu: "raw"}
	raw.put(v.T, []change{{off: at * unit, n: 512, data: noise(v.rnd, 512)}})
}

func (v *volume) blockSize() int64 {
	v.Helper()
	_, out, _ := strings.Cut(tool(v.T, "debugfs", "-R", "stats -h", v.shadow), "Block size:")
	n, err := strconv.ParseInt(strings.Fields(out)[0], 10, 64)
	check(v.T, err)
	return n
}

// whole fails the test unless a replica, of which the guest's bytes come first, is a filesystem without faults that has
// what the shadow has.
func (v *volume) whole(replica string) {
	v.Helper()
	tool(v.T, "e2fsck", "-fn", replica)
	file := v.files[len(v.files)-1]
	var got [2][]byte
	for i, image := range []string{v.shadow, replica} {
		to := filepath.Join(v.dir, "dumped")
		tool(v.T, "debugfs", "-R", "dump /"+file+" "+to, image)
		var err error
		got[i], err = os.ReadFile(to)
		check(v.T, err)
		check(v.T, os.Remove(to))
	}
	if len(got[0]) == 0 || !bytes.Equal(got[0], got[1]) {
		v.Fatalf("%s differs in the replica", file)
	}
}

// differences is what has to be written to a disk of the content before, to make it the content after.
func differences(t *testing.T, before, after string) (list []change) {
	t.Helper()
	const unit = 4096
	a, err := os.Open(before)
	check(t, err)
	defer a.Close()
	b, err := os.Open(after)
	check(t, err)
	defer b.Close()
	was, is := make([]byte, mib), make([]byte, mib)
	for off := int64(0); ; off += mib {
		n, err := io.ReadFull(b, is)
		if n == 0 {
			return list
		}
		if err != nil && err != io.ErrUnexpectedEOF {
			t.Fatal(err)
		}
		_, err = io.ReadFull(a, was[:n])
		check(t, err)
		for i := 0; i < n; i += unit {
			now := is[i:min(i+unit, n)]
			if bytes.Equal(was[i:i+len(now)], now) {
				continue
			}
			if k := len(list) - 1; k >= 0 && list[k].off+list[k].n == off+int64(i) {
				list[k].data = append(list[k].data, now...)
				list[k].n += int64(len(now))
				continue
			}
			list = append(list, change{off: off + int64(i), n: int64(len(now)), data: bytes.Clone(now)})
		}
	}
}
