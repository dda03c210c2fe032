package dir_test

import (
	"testing"

	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/hrl"
	"sitrep/internal/replica/dir"
)

// TestFoundAfterKill makes a store where a run was killed that was making it. What that run had half made is gone, what
// somebody else keeps in the folder is not.
func TestFoundAfterKill(t *testing.T) {
	fs := crashfs.New()
	check(t, fs.MkdirAll("/store"))
	half := durable.TempName("/store/sitrep-store.json")
	write(t, fs, half, []byte(`{"format": 1`))
	write(t, fs, "/store/.notes", []byte("of an operator"))
	_, err := dir.New(fs, "/store").Prepare(t.Context(), hrl.ID{})
	check(t, err)
	if _, err := fs.Stat(half); err == nil {
		t.Error("the half-made identity was left")
	}
	if _, err := fs.Stat("/store/.notes"); err != nil {
		t.Error(err)
	}
}
