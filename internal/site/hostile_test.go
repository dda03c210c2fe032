package site

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"sitrep/internal/fault"
)

func errorsOf(t *testing.T, text string) *Errors {
	t.Helper()
	_, err := Parse("site.yaml", []byte(text))
	var all *Errors
	if !errors.As(err, &all) {
		t.Fatalf("want *Errors, got %v", err)
	}
	return all
}

func TestErrorPaths(t *testing.T) {
	all := errorsOf(t, `vault: v
store: {directory: s}
policies: [{name: p, recoverypoints: 3}]
vmm:
  clouds:
    - name: c
      policy: p
      hosts:
        - name: h
          hypervisor: none
          vms:
            - {name: a, generation: 1, os: linux, cpus: 1, memory: 1GiB, disks: [{name: d, path: x}]}
            - {name: b, generation: 1, os: linux, cpus: 1, disks: [{name: d, path: x}, !tag y]}
`)
	want := []Error{
		{3, 22, "policies[0].recoverypoints", "unknown key 'recoverypoints', did you mean 'recovery_points'?"},
		{13, 15, "vmm.clouds[0].hosts[0].vms[1].memory", "missing key 'memory'"},
		{13, 67, "vmm.clouds[0].hosts[0].vms[1].disks", `disks: mark the disk with the operating system with "os: true"`},
		{13, 84, "vmm.clouds[0].hosts[0].vms[1].disks[0].path", "path: another disk has the path 'x', on line 12"},
		{13, 88, "vmm.clouds[0].hosts[0].vms[1].disks[1]", "tags (!name) are not supported"},
	}
	if !reflect.DeepEqual(all.List, want) {
		t.Errorf("got %+v", all.List)
	}
	if f := fault.Find(all); f == nil || f.Code != fault.SiteInvalid || f.Error() != "site.yaml: the site file has 5 errors" {
		t.Errorf("fault %v", f)
	}
}

func TestErrorsAreCapped(t *testing.T) {
	all := errorsOf(t, "vault: y\n"+strings.Repeat("k: v\n", 1000))
	// k, 999 duplicates of k, and three missing keys
	if len(all.List) != maxErrors || all.More != 1000+3-maxErrors {
		t.Errorf("%d and %d more", len(all.List), all.More)
	}
	if !strings.HasSuffix(all.Error(), fmt.Sprintf("site.yaml: and %d more errors", all.More)) {
		t.Error(all.Error()[len(all.Error())-80:])
	}
}

// TestFileOfAnotherProgram: who may run sitrep as root must not read with it what root may read.
func TestFileOfAnotherProgram(t *testing.T) {
	for what, text := range map[string]string{
		"shadow": "root:$y$j9T$topsecret:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\n", "scalar": "topsecret\n",
		"keys": "topsecret: x\nb: topsecret\n", "mixed": "vault: v\n\"root:$6$topsecret\": x\n\"root:$6$topsecret2\": x\n",
	} {
		if all := errorsOf(t, text); strings.Contains(all.Error(), "secret") || what != "mixed" && len(all.List) != 1 {
			t.Errorf("%s: %v", what, all)
		}
	}
}

// No message, path or summary repeats what could be a secret, wherever it stands.
func TestSecretsAreNotRepeated(t *testing.T) {
	key := strings.Repeat("A1b2C3d4E5", 9)[:86] + "=="
	secrets := []string{
		"DefaultEndpointsProtocol=https;AccountName=a;AccountKey=" + key,
		"AccountKey=" + key, key, "https://a.blob.core.windows.net/?sv=2020&sig=A1b2C3d4E5A1b2C3d4E5%3D",
		"SharedAccessSignature=sv=2020&sig=A1b2C3d4E5A1b2C3d4E5", "-----BEGIN RSA PRIVATE KEY----- A1b2C3d4E5",
	}
	places := []string{
		"vault: %s\n", "%s: x\n", "store: %s\n", "store: {directory: [%s]}\n", "store: {%s: x}\n",
		"store: {azure: {connection_string_env: %s, container: abc}}\n", "store: {azure: {account_url: %s, container: abc}}\n",
		"store: {azure: {account_url: x, container: %s}}\n", "store: {azure: {connection_string: %s}}\n", "store: {azure: {%s: {%[1]s: 1}}}\n",
		"policies: [{name: %s}]\n", "policies: [{name: p, bandwidth: %s, block_size: %[1]s, recovery_points: %[1]s, apply: %[1]s}]\n",
		"vmm: {clouds: [{name: c, policy: %s}]}\n", "recovery_plans: [{name: p, groups: [{vms: [%s]}]}]\n", "? [%s]\n: y\n",
		"vault: %s\nstore: directory: x\n", "%s: x\n%[1]s: y\n", "vault: !!binary %s\n", "recovery: {networks: [{name: n, subnets: [{name: s, cidr: %s}]}]}\n",
		"recovery: {host: %s, folder: %[1]s, format: %[1]s, hypervisor: qemu, qemu: {binary: %[1]s, machine: %[1]s, cpu: %[1]s, accel: %[1]s, args: [%[1]s]}}\n",
		"recovery: {host: h, hypervisor: hyperv, hyperv: {ssh: %s, switch: %[1]s, timeout: %[1]s, %[1]s: 1}}\n",
		"recovery: {host: h, hypervisor: script, script: {create: %s, start: %[1]s, %[1]s: x}}\n",
		"vmm: {clouds: [{name: c, policy: p, hosts: [{name: h, hypervisor: qemu, vms: [{name: v, hooks: {freeze: %s}, boot_check: {console: %[1]s, command: %[1]s}, " +
			"qmp: %[1]s, nics: [{network: %[1]s, recovery_ip: %[1]s, mac: %[1]s}]}]}]}]}\n",
	}
	for _, secret := range secrets {
		for _, place := range places {
			all := errorsOf(t, fmt.Sprintf(place, `"`+secret+`"`))
			for _, text := range []string{fmt.Sprintf("%+v", all), fmt.Sprintf("%#v", *all), fault.Find(all).Error(), mustJSON(t, all.List)} {
				if strings.Contains(text, "A1b2C3") || strings.Contains(text, "QTFiMkMz") {
					t.Errorf("%s: %s", place, text)
				}
			}
		}
	}
}

// In the description of an Azure store even text that does not look like a secret is not repeated.
func TestAzureValuesAreNotRepeated(t *testing.T) {
	for _, key := range []string{"account_url", "connection_string_env", "container", "account_key", "sas",
		"key_env", "sas_env", "log_account_url", "connection_string_file", "key_file", "sas_file"} {
		all := errorsOf(t, "store: {azure: {"+key+": 'Hunter2 !'}}\n")
		if strings.Contains(all.Error(), "Hunter2") {
			t.Error(all)
		}
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSecretType(t *testing.T) {
	s := NewSecret("X-hunter2")
	if s.Reveal() != "X-hunter2" {
		t.Fatal("another secret")
	}
	type holder struct {
		S Secret
		P *Secret
		M map[string]Secret
	}
	h := holder{s, &s, map[string]Secret{"a": s}}
	var log strings.Builder
	logger := slog.New(slog.NewTextHandler(&log, nil))
	logger.Info("x", "secret", s, "holder", h)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", s, "holder", h)
	shown := []string{log.String(), mustJSON(t, h), fmt.Errorf("wrapped: %w, %v", errors.New("x"), s).Error()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T"} {
		shown = append(shown, fmt.Sprintf(verb, s), fmt.Sprintf(verb, h), fmt.Sprintf(verb, &s))
	}
	for _, text := range shown {
		if strings.Contains(text, "hunter2") || strings.Contains(text, fmt.Sprintf("%x", "hunter2")) {
			t.Error(text)
		}
	}
}

// hostile inputs are a quarter as long as a site file can be: long enough to tell a reader that takes quadratic time.
func hostile() map[string]string {
	const n = MaxFileSize / 4
	indent := func() string {
		var b strings.Builder
		for i := 0; b.Len() < n; i++ {
			b.WriteString(strings.Repeat(" ", i) + "a:\n")
		}
		return b.String()[:n]
	}
	return map[string]string{
		"open lists":      strings.Repeat("[", n),
		"nested lists":    strings.Repeat("[", 9000) + strings.Repeat("]", 9000),
		"nested mappings": strings.Repeat("- ", 9000) + "x",
		"indent":          indent(),
		"keys":            strings.Repeat("a: b\n", n/5),
		"aliases":         "a: &a x\nb: [" + strings.Repeat("*a,", n/3-10) + "]",
		"long value":      "vault: " + strings.Repeat("a", n-10),
		"escapes":         "vault: \"" + strings.Repeat(`\n`, n/2-10) + "\"",
		"open quote":      "vault: \"" + strings.Repeat("a", n-10),
		"comments":        strings.Repeat("a: b # x\n#\n", n/11),
		"references": "vmm: {clouds: [{name: c, hosts: [{name: h, hypervisor: none, vms: [" + strings.Repeat("{name: v},", n/20) +
			"]}]}]}\nrecovery_plans: [{name: p, groups: [{vms: [" + strings.Repeat("xx,", n/8) + "]}]}]\n",
		"zeros":     strings.Repeat("\x00", n),
		"not UTF-8": strings.Repeat("\xff", n),
		"documents": strings.Repeat("---\n", n/4),
	}
}

// The limit is a multiple of what these take on a slow machine, and a small part of what a quadratic reader would.
func TestHostileInputIsBounded(t *testing.T) {
	for name, text := range hostile() {
		start := time.Now()
		all := errorsOf(t, text)
		if took := time.Since(start); took > 10*time.Second {
			t.Errorf("%s: %s", name, took)
		}
		if len(all.List) == 0 || len(all.Error()) > 200<<10 {
			t.Errorf("%s: %d errors in %d bytes", name, len(all.List), len(all.Error()))
		}
	}
}

// Every prefix of a valid file is read without a panic, and is valid only when nothing but comments is missing.
func TestTruncation(t *testing.T) {
	data, err := os.ReadFile(filepath.Join(samples, "valid", "minimal.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	whole := len(strings.TrimRight(string(data), "\n"))
	for n := range data {
		if _, err := Parse("site.yaml", data[:n]); (err == nil) != (n >= whole) {
			t.Errorf("%d of %d bytes: %v", n, len(data), err)
		}
	}
}

// A valid file with one line less, one line twice, or one character changed never makes a Site that breaks a promise.
func TestMutations(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	const alphabet = " ./\\:-\x00\"'{}[]&*!#|>%@`,?aA0\n\t\xff"
	rnd := rand.New(rand.NewSource(seed))
	for _, name := range []string{"contoso.yaml", "azure.yaml", "failover.yaml"} {
		data, err := os.ReadFile(filepath.Join(samples, "valid", name))
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.SplitAfter(string(data), "\n")
		for i := range lines {
			checkParse(t, []byte(strings.Join(lines[:i], "")+strings.Join(lines[i+1:], "")))
			checkParse(t, []byte(strings.Join(lines[:i+1], "")+strings.Join(lines[i:], "")))
		}
		for range 1500 {
			b := []byte(string(data))
			b[rnd.Intn(len(b))] = alphabet[rnd.Intn(len(alphabet))]
			checkParse(t, b)
		}
	}
}

// checkParse reads data and checks what holds of every result.
func checkParse(t *testing.T, data []byte) {
	t.Helper()
	s, err := Parse("site.yaml", data)
	if err != nil {
		checkError(t, err)
		return
	}
	if (s.Store.Directory == "") == (s.Store.Azure == nil) || len(s.VMs()) == 0 || len(s.Policies) == 0 {
		t.Fatalf("an incomplete site: %+v", s)
	}
	vms, paths := map[string]bool{}, map[string]bool{}
	for _, vm := range s.VMs() {
		if got, err := s.VM(vm.Name); got != vm || err != nil || vms[strings.ToLower(vm.Name)] || vm.Policy() == nil {
			t.Fatalf("VM %q", vm.Name)
		}
		vms[strings.ToLower(vm.Name)] = true
		checkName(t, vm.Name)
		disks, systems := map[string]bool{}, 0
		for _, d := range vm.Disks {
			checkName(t, d.Name)
			if disks[strings.ToLower(d.Name)] || paths[d.Path] || !filepath.IsAbs(d.Path) || filepath.Clean(d.Path) != d.Path {
				t.Fatalf("disk %+v", d)
			}
			disks[strings.ToLower(d.Name)], paths[d.Path] = true, true
			if d.OS {
				systems++
			}
		}
		if systems != 1 {
			t.Fatalf("VM %s has %d OS disks", vm.Name, systems)
		}
		for _, nic := range vm.NICs {
			s.Target(nic)
		}
	}
	checkFailover(t, s)
	for _, p := range s.Policies {
		if p.BlockSize < MinBlockSize || p.BlockSize > MaxBlockSize || p.BlockSize&(p.BlockSize-1) != 0 || p.RecoveryPoints < 1 {
			t.Fatalf("policy %+v", p)
		}
	}
}

var wellNamed = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

func checkName(t *testing.T, name string) {
	t.Helper()
	if !wellNamed.MatchString(name) || strings.HasSuffix(name, ".") || !filepath.IsLocal(name) || filepath.Base(name) != name {
		t.Fatalf("name %q", name)
	}
}

func checkError(t *testing.T, err error) {
	t.Helper()
	if !fault.Is(err, fault.SiteInvalid) {
		t.Fatalf("code of %v", err)
	}
	var all *Errors
	if !errors.As(err, &all) {
		return // longer than MaxFileSize
	}
	if len(all.List) == 0 || len(all.List) > maxErrors {
		t.Fatalf("%d errors", len(all.List))
	}
	for _, e := range all.List {
		if e.Line < 1 || e.Column < 1 || e.Msg == "" || len(e.Msg) > 4000 || strings.ContainsFunc(e.Msg, isControl) {
			t.Fatalf("error %+v", e)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, kind := range []string{"valid", "invalid"} {
		list, err := filepath.Glob(filepath.Join(samples, kind, "*.yaml"))
		if err != nil {
			f.Fatal(err)
		}
		for _, name := range list {
			data, err := os.ReadFile(name)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(data)
		}
	}
	f.Add(Starter())
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 64<<10 {
			return
		}
		checkParse(t, data)
	})
}
