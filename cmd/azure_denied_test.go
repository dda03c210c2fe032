package cmd_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sitrep/internal/replica/pageblob/azuritetest"
)

// TestAzureDenied: a refusal of the account, of whatever kind, stops a run and not the replication: changes are captured beside the disks, the
// health is Critical with the cause, and the schedule goes on by itself when it is mended.
func TestAzureDenied(t *testing.T) {
	var pool azuritetest.Pool // the server ends with this process
	front := azuritetest.NewFront(t, pool.Server(t))
	var refuse atomic.Pointer[string]
	front.Before(func(w http.ResponseWriter, _ *http.Request) bool {
		code := refuse.Load()
		if code == nil {
			return false
		}
		w.Header().Set("x-ms-error-code", *code)
		w.Header().Set("Date", time.Now().UTC().Format(http.TimeFormat))
		w.WriteHeader(http.StatusForbidden)
		return true
	})
	t.Setenv("SITREP_TEST_AZURE", front.ConnectionString())
	s := newAzureSite(t, azuritetest.Container(t), "")
	disk := randomBytes(1, 1<<20)
	s.write("os.raw", disk)
	s.run(0, "protect", "web01")
	for code, want := range map[string]string{
		"AuthenticationFailed": "credentials", "AuthorizationPermissionMismatch": "permission", "AuthorizationSourceIPMismatch": "addresses",
		"AuthorizationFailure": "network rules", "KeyBasedAuthenticationNotPermitted": "takes no keys",
	} {
		disk[0]++
		s.write("os.raw", disk)
		refuse.Store(&code)
		got, out, stderr := s.result("delta", "--all")
		if got != 4 || !strings.Contains(stderr, want) || !strings.Contains(stderr, "retry: yes, at") || !strings.Contains(out, "captured beside the disks") {
			t.Fatalf("%s: exit code %d\n%s%s", code, got, out, stderr)
		}
		if _, out, _ := s.result("status", "--check"); !strings.Contains(out, "CRITICAL") || !strings.Contains(out, want) {
			t.Errorf("%s: %s", code, out)
		}
		refuse.Store(nil)
		if out := s.run(0, "status", "web01"); !strings.Contains(out, "Critical") || !strings.Contains(out, want) || !strings.Contains(out, "; tried again at ") {
			t.Errorf("%s: %s", code, out)
		}
		if out := s.run(0, "why", "web01"); !strings.Contains(out, want) {
			t.Errorf("%s: %s", code, out)
		}
		s.run(4, "delta", "--all")
		s.later(time.Minute)
		s.run(0, "delta", "--all")
		s.run(0, "verify", "web01", "--against-source")
	}
}

// later makes the next attempt due as if some time had passed.
func (s *azureSite) later(d time.Duration) {
	s.t.Helper()
	const file = ".sitrep/vms/web01.json"
	var mem map[string]any
	if err := json.Unmarshal(s.read(file), &mem); err != nil {
		s.t.Fatal(err)
	}
	retry := mem["retry"].(map[string]any)
	for _, key := range []string{"first_attempt", "next_at"} {
		at, err := time.Parse(time.RFC3339Nano, retry[key].(string))
		if err != nil {
			s.t.Fatal(err)
		}
		retry[key] = at.Add(-d)
	}
	data, err := json.Marshal(mem)
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(file, data)
}
