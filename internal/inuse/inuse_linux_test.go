package inuse

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func image(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func want(t *testing.T, path string, words ...string) {
	t.Helper()
	var u *User
	for end := time.Now().Add(20 * time.Second); u == nil && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var err error
		if u, err = Find(path); err != nil {
			t.Fatal(err)
		}
	}
	if u == nil {
		t.Fatal("nobody is found")
	}
	for _, w := range words {
		if !strings.Contains(u.String(), w) {
			t.Errorf("%q does not say %q", u, w)
		}
	}
}

// need skips a test whose tool is missing, but under CI.
func need(t *testing.T, tool, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is missing: apt-get install %s", tool, pkg)
		}
		t.Skipf("needs %s: apt-get install %s", tool, pkg)
	}
	return path
}

func TestNobody(t *testing.T) {
	path := image(t)
	f, err := os.OpenFile(path, os.O_RDWR, 0) // this process is nobody
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range []string{path, path + ".not-there"} {
		if u, err := Find(p); err != nil || u != nil {
			t.Errorf("%s: %v, %v", p, u, err)
		}
	}
}

func TestOpenByProcess(t *testing.T) {
	path := image(t)
	link := filepath.Join(t.TempDir(), "link.raw")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command("sleep", "1000")
	c.Stdin = f
	err = c.Start()
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { c.Process.Kill(); c.Wait() }()
	want(t, link, "sleep", "has it open")
}

func TestImageLock(t *testing.T) {
	qemu := need(t, "qemu-system-x86_64", "qemu-system-x86")
	path := image(t)
	c := exec.Command(qemu, "-S", "-accel", "tcg", "-nodefaults", "-display", "none", "-drive", "file="+path+",format=raw,if=virtio")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { c.Process.Kill(); c.Wait() }()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		locked, err := imageLocked(path)
		if err != nil {
			t.Fatal(err)
		}
		if locked {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the image lock is not seen by itself")
		}
	}
	want(t, path, "qemu", "image lock")
}

// TestLoop needs root and loop devices.
func TestLoop(t *testing.T) {
	losetup := need(t, "losetup", "mount")
	path := image(t)
	out, err := exec.Command(losetup, "--find", "--show", path).Output()
	if err != nil {
		t.Skipf("no loop device can be made here: %v", err)
	}
	dev := strings.TrimSpace(string(out))
	defer exec.Command(losetup, "--detach", dev).Run()
	want(t, path, dev)
	if u, err := Find(dev); err != nil || u != nil {
		t.Errorf("the loop device, which nobody uses: %v, %v", u, err)
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		return
	}
	at := t.TempDir()
	if exec.Command("mkfs.ext4", "-q", dev).Run() != nil || exec.Command("mount", dev, at).Run() != nil {
		t.Skip("nothing can be mounted here")
	}
	defer exec.Command("umount", at).Run()
	want(t, dev, "mounted at "+at)
	want(t, path, "mounted at "+at)
}

// TestMapped: a process that has mapped the file and closed it writes to it all the same.
func TestMapped(t *testing.T) {
	python := need(t, "python3", "python3")
	path := image(t)
	c := exec.Command(python, "-c", `import ctypes, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap(None, 4096, 3, 1, fd, ctypes.c_long(0))
os.close(fd)
print("mapped", flush=True)
sys.stdin.read()`, path)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); c.Wait() }()
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	want(t, path, "python", "has it mapped")
}

// TestReader: who only reads the file has no lease of it broken, and is found by its descriptor; who is gone is nobody.
func TestReader(t *testing.T) {
	path := image(t)
	if u, err := written(path); u != nil || err != nil {
		t.Errorf("nobody: %v %v", u, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if u, err := written(path); u != nil || err != nil {
		t.Errorf("this process: %v %v", u, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if u, err := Find(path); u != nil || err != nil {
		t.Errorf("afterwards: %v %v", u, err)
	}
}
