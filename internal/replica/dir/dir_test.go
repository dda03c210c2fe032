package dir_test

import (
	"path/filepath"
	"testing"

	"sitrep/internal/durable"
	"sitrep/internal/durable/crashfs"
	"sitrep/internal/replica"
	"sitrep/internal/replica/dir"
	"sitrep/internal/replica/replicatest"
)

func TestContractOS(t *testing.T) {
	replicatest.TestStore(t, func(t *testing.T) replicatest.Place {
		root := filepath.Join(t.TempDir(), "deep", "store")
		return func() replica.Store { return dir.New(durable.OS(), root) }
	})
}

func TestContractInMemory(t *testing.T) {
	for name, clone := range map[string]bool{"undo logs": false, "clones": true} {
		t.Run(name, func(t *testing.T) {
			replicatest.TestStore(t, func(*testing.T) replicatest.Place {
				fs := crashfs.New()
				fs.SetClone(clone)
				return func() replica.Store { return dir.New(fs, "/store") }
			})
		})
	}
}
