package pageblob_test

import (
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"sitrep/internal/durable"
	"sitrep/internal/replica"
	"sitrep/internal/replica/pageblob"
	"sitrep/internal/replica/pageblob/azuritetest"
	"sitrep/internal/replica/replicatest"
	"sitrep/internal/sums"
)

// azurite is the server of all tests of this package. (Tests have no other way to share a process.)
var azurite azuritetest.Pool

func TestMain(m *testing.M) { os.Exit(azuritetest.Main(m, &azurite)) }

func quick() pageblob.Options {
	return pageblob.Options{
		Holder: "site", BytesPerSecond: -1, RequestsPerSecond: -1, CopyPoll: time.Millisecond,
		Retry: policy.RetryOptions{MaxRetries: 5, TryTimeout: 20 * time.Second, RetryDelay: time.Millisecond, MaxRetryDelay: 20 * time.Millisecond},
	}
}

// open returns the store in a container.
func open(t testing.TB, container string, opts pageblob.Options) *pageblob.Store {
	t.Helper()
	s := azurite.Server(t)
	store, err := pageblob.Open(pageblob.Config{
		Container: container, ConnectionStringEnv: "X", Getenv: func(string) string { return s.ConnectionString() },
	}, opts)
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func TestContract(t *testing.T) {
	replicatest.TestStore(t, func(t *testing.T) replicatest.Place {
		container := azuritetest.Container(t)
		var holders atomic.Int64
		return func() replica.Store {
			opts := quick()
			opts.Holder = string(rune('a' + holders.Add(1))) // each Store is another site's: only then is there something to lock out
			return open(t, container, opts)
		}
	})
}

// logOf is a sealed log with the given content.
func logOf(t testing.TB, content string) durable.File {
	t.Helper()
	f, err := replicatest.OSLogs(t)("log", []byte(content))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// sumsOfOnes is n sums that are not zero.
func sumsOfOnes(n int) []sums.Sum {
	out := make([]sums.Sum, n)
	for i := range out {
		out[i] = sums.Of([]byte{byte(i + 1)})
	}
	return out
}
