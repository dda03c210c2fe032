package mem_test

import (
	"testing"

	"sitrep/internal/replica"
	"sitrep/internal/replica/mem"
	"sitrep/internal/replica/replicatest"
)

func TestContract(t *testing.T) {
	replicatest.TestStore(t, func(*testing.T) replicatest.Place {
		s := mem.New()
		return func() replica.Store { return s }
	})
}
