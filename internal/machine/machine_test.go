package machine

import (
	"os"
	"path/filepath"
	"testing"
)

func TestID(t *testing.T) {
	id := ID()
	if systemID() == "" {
		t.Skip("this system keeps no identity: systemd-machine-id-setup")
	}
	if len(id) != 32 || id != ID() {
		t.Fatalf("the id is %q, then %q", id, ID())
	}
}

// TestReal: a folder has one name, however it is reached, before it exists and afterwards.
func TestReal(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "site"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(root, "site"), filepath.Join(root, "link")); err != nil {
		t.Skip("no symbolic links here")
	}
	t.Chdir(filepath.Join(root, "site"))
	want := filepath.Join(root, "site", "a", "b")
	for _, path := range []string{filepath.Join(root, "link", "a", "b"), filepath.Join("a", "b"), filepath.Join("..", "link", "a", ".", "b")} {
		for _, exists := range []bool{false, true} {
			if exists {
				if err := os.MkdirAll(want, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := Real(path); err != nil || got != want {
				t.Errorf("%s (there: %v) is %s, %v, want %s", path, exists, got, err, want)
			}
		}
		os.RemoveAll(filepath.Join(root, "site", "a"))
	}
}
