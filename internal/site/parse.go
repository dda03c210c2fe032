package site

import (
	"net"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// refs is what references in the file can mean.
type refs struct {
	policies *names[*Policy]
	networks *names[string]
	recovery *names[string]
	clouds   *names[struct{}]
	hosts    *names[struct{}]
	vms      *names[*VM]
	paths    map[string]int // of disks: line of the first one
	store    string         // the directory of the store, "" = none

	recovered string         // the folder of recovered VMs, "" = none
	ips, macs map[string]int // of NICs at the recovery site: line of the first one
	target    func(NIC) (*RecoveryNetwork, *Subnet)
}

// siteKeys are the keys of a site file.
var siteKeys = []string{"vault", "store", "policies", "networks", "recovery", "network_mapping", "vmm", "recovery_plans"}

// site reads the whole document, what is referred to before what refers to it, wherever it stands in the file.
func (d *doc) site(s *Site, root value) {
	r := &refs{
		policies: newNames[*Policy]("policy"),
		networks: newNames[string]("network"),
		recovery: newNames[string]("recovery network"),
		clouds:   newNames[struct{}]("cloud"),
		hosts:    newNames[struct{}]("host"),
		vms:      newNames[*VM]("VM"),
		paths:    map[string]int{},
		ips:      map[string]int{},
		macs:     map[string]int{},
		target:   s.Target,
	}
	o := root.object(siteKeys...)
	s.Vault = o.need("vault").name(maxName)
	s.Store = parseStore(o.need("store"))
	r.store = s.Store.Directory
	for _, v := range o.need("policies").list() {
		s.Policies = append(s.Policies, parsePolicy(v, r))
	}
	for _, v := range o.get("networks").list() {
		s.Networks = append(s.Networks, parseNetwork(v, r))
	}
	s.Recovery = parseRecovery(o.get("recovery"), r)
	r.recovered = s.Recovery.Folder
	s.NetworkMapping = parseMappings(o.get("network_mapping"), r)
	s.VMM = parseVMM(o.need("vmm"), r)
	plans := newNames[struct{}]("recovery plan")
	for _, v := range o.get("recovery_plans").list() {
		s.RecoveryPlans = append(s.RecoveryPlans, parsePlan(v, r, plans))
	}
	s.vms = r.vms.byKey
}

func parseStore(v value) Store {
	o := v.object("directory", "azure")
	if o.v.n == nil {
		return Store{}
	}
	var s Store
	switch dir, az := o.has("directory"), o.has("azure"); {
	case dir && az:
		v.fail("store: give either directory or azure, not both")
	case az:
		s.Azure = parseAzureStore(o.get("azure"))
	case dir:
		s.Directory = o.get("directory").file()
	default:
		v.fail("store: give directory or azure")
	}
	return s
}

var (
	envText = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
	// accountText is the rule for names of storage accounts.
	accountText = regexp.MustCompile(`^[a-z0-9]{3,24}$`)
	// containerText is the rule for names of containers (Microsoft, "Naming and Referencing Containers, Blobs, and
	// Metadata"), without its length of 3 to 63.
	containerText = regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`)
)

// parseAzureStore never repeats a value: any of them could be a secret in the wrong place.
func parseAzureStore(v value) *AzureStore {
	o := v.object("account_url", "account_name", "container", "log_account_url",
		"connection_string_env", "key_env", "sas_env", "connection_string_file", "key_file", "sas_file",
		"blob_rate", "blob_requests", "concurrency")
	a := &AzureStore{}
	if o.v.n == nil {
		return a
	}
	checkSecretSource(v, o)
	a.AccountURL = accountURL(o.get("account_url"))
	if s, ok := o.get("account_name").hiddenText(); ok {
		a.AccountName = s
		if !accountText.MatchString(s) {
			o.get("account_name").fail("account_name: want 3 to 24 lower-case letters and digits (value not shown)")
		}
	}
	a.LogAccountURL = accountURL(o.get("log_account_url"))
	a.ConnectionStringEnv = envName(o.get("connection_string_env"))
	a.KeyEnv, a.SASEnv = envName(o.get("key_env")), envName(o.get("sas_env"))
	a.ConnectionStringFile = secretFile(o.get("connection_string_file"))
	a.KeyFile, a.SASFile = secretFile(o.get("key_file")), secretFile(o.get("sas_file"))
	a.BlobRate = o.get("blob_rate").rate(DefaultBlobRate)
	a.BlobRequests = o.get("blob_requests").integer(DefaultBlobRequests, 1, 100_000)
	a.Concurrency = o.get("concurrency").integer(DefaultConcurrency, 1, 64)
	if s, ok := o.need("container").hiddenText(); ok {
		a.Container = s
		if len(s) < 3 || len(s) > 63 || !containerText.MatchString(s) {
			o.get("container").fail("container: want 3 to 63 lower-case letters, digits and single dashes (value not shown)")
		}
	}
	return a
}

// checkSecretSource wants one way to sign in.
func checkSecretSource(v value, o object) {
	connections, others := 0, 0
	for _, suffix := range []string{"_env", "_file"} {
		if o.has("connection_string" + suffix) {
			connections++
		}
		for _, kind := range []string{"key", "sas"} {
			if o.has(kind + suffix) {
				others++
			}
		}
	}
	switch {
	case o.has("account_url") == (connections > 0), connections > 1:
		v.fail("azure: give either account_url or connection_string_env")
	case connections > 0 && others > 0, others > 1:
		v.fail("azure: give one secret only")
	}
}

func accountURL(v value) string {
	s, ok := v.hiddenText()
	if ok && !isAccountURL(s) {
		v.fail("%s: want https://ACCOUNT.blob.core.windows.net or the like, without a user, query or fragment (value not shown)", v.label())
	}
	return s
}

func envName(v value) string {
	s, ok := v.hiddenText()
	if ok && !envText.MatchString(s) {
		v.fail("%s: want the name of an environment variable: letters, digits and '_' (value not shown)", v.label())
	}
	return s
}

// secretFile reads the path of a file with a secret. A secret in the place of its path is not repeated either.
func secretFile(v value) string {
	s, ok := v.hiddenText()
	switch {
	case !ok:
		return ""
	case s == "" || len(s) > 4096 || strings.ContainsFunc(s, isControl) || strings.ContainsAny(s, ";?&"):
		v.fail("%s: want the path of a file (value not shown)", v.label())
		return ""
	}
	return v.file()
}

// hiddenText reads text whose value must not be in a message.
func (v value) hiddenText() (string, bool) {
	if v.n == nil {
		return "", false
	}
	s, ok := v.n.Value, v.n.ShortTag() == "!!str"
	if !ok {
		v.fail("%s: want text (value not shown)", v.label())
	}
	return s, ok && !v.d.dead[v.n]
}

// isAccountURL wants https and no path, except for an emulator, whose accounts are told apart by the path.
func isAccountURL(s string) bool {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	if u.Hostname() == "localhost" || ip != nil && ip.IsLoopback() { // its accounts are told apart by the path
		return u.Scheme == "https" || u.Scheme == "http"
	}
	path := strings.Trim(u.Path, "/")
	service := strings.Contains(strings.ToLower(u.Hostname()), ".blob.")
	return u.Scheme == "https" && (path == "" || !service && !strings.Contains(path, "/"))
}

func parsePolicy(v value, r *refs) *Policy {
	o := v.object("name", "copy_frequency", "recovery_points", "app_consistent_every", "log_limit_percent",
		"resync_window", "auto_resync", "block_size", "bandwidth", "apply", "job_retention", "massive_change", "source_reserve", "max_pause")
	p := &Policy{Name: o.need("name").name(maxName)}
	r.policies.declare(o.get("name"), p.Name, p)
	p.CopyFrequency = o.get("copy_frequency").duration(DefaultCopyFrequency, "30s, 5m or 15m", func(t time.Duration) bool {
		return t == 30*time.Second || t == 5*time.Minute || t == 15*time.Minute
	})
	p.RecoveryPoints = o.get("recovery_points").integer(DefaultRecoveryPoints, 1, 10000)
	p.AppConsistentEvery = o.get("app_consistent_every").duration(0, "0 or a duration from copy_frequency to 12h", func(t time.Duration) bool {
		return t == 0 || t >= p.CopyFrequency && t <= 12*time.Hour
	})
	p.LogLimitPercent = o.get("log_limit_percent").integer(DefaultLogLimitPercent, 1, 100)
	p.ResyncWindow = o.get("resync_window").window(DefaultResyncWindow())
	p.AutoResync = o.get("auto_resync").boolean(true)
	p.BlockSize = o.get("block_size").blockSize()
	p.Bandwidth = o.get("bandwidth").bandwidth()
	p.Apply = choice(o.get("apply"), ApplyHere, ApplyHere, ApplyElsewhere)
	p.JobRetention = o.get("job_retention").duration(DefaultJobRetention, "a duration such as 720h", func(t time.Duration) bool {
		return t > 0
	})
	p.MassiveChange = o.get("massive_change").percent(DefaultMassiveChange)
	p.SourceReserve = o.get("source_reserve").share(DefaultSourceReserve())
	p.MaxPause = o.get("max_pause").duration(0, "0 (no limit) or a duration from 1s", func(t time.Duration) bool { return t == 0 || t >= time.Second })
	return p
}

func (v value) window(def Window) Window {
	o := v.object("from", "to")
	if o.v.n == nil {
		return def
	}
	from, fromOK := o.need("from").clock()
	to, toOK := o.need("to").clock()
	if from == to && fromOK && toOK {
		v.fail("resync_window: from and to are the same time")
	}
	return Window{From: from, To: to}
}

func (v value) clock() (Clock, bool) {
	what := `a time of day such as "18:30"`
	s, ok := v.scalar(what, "!!str")
	if !ok {
		return 0, false
	}
	c, ok := parseClock(s)
	if !ok {
		v.want(what)
	}
	return c, ok
}

func (v value) blockSize() int64 {
	n := v.size(DefaultBlockSize, MinBlockSize, MaxBlockSize)
	if n&(n-1) != 0 {
		v.want("a power of two")
	}
	return n
}

// rate reads bytes per second; 0 is no limit.
func (v value) rate(def int64) int64 {
	what := `a rate such as "480Mbit" or "60MiB", or "off"`
	s, ok := v.scalar(what, "!!str")
	if !ok {
		return def
	}
	n, ok := parseRate(s)
	if !ok {
		v.want(what)
	}
	return n
}

func (v value) bandwidth() Bandwidth {
	what := `a rate such as "20Mbit", or a timetable in ascending order such as "07:00,20Mbit 19:00,off"`
	s, ok := v.scalar(what, "!!str")
	if !ok {
		return Bandwidth{}
	}
	b, ok := ParseBandwidth(s)
	if !ok {
		v.want(what)
	}
	return b
}

func parseNetwork(v value, r *refs) Network {
	o := v.object("name", "vlan")
	n := Network{Name: o.need("name").title(), VLAN: o.get("vlan").integer(0, 1, 4094)}
	r.networks.declare(o.get("name"), n.Name, n.Name)
	return n
}

func parseMappings(v value, r *refs) []Mapping {
	var out []Mapping
	lines := map[string]int{}
	for _, mv := range v.list() {
		o := mv.object("from", "to")
		from, ok := r.networks.refer(o.need("from"))
		to, _ := r.recovery.refer(o.need("to"))
		if line, twice := lines[from]; ok && twice {
			o.get("from").fail("from: %s is mapped already, on line %d", quote(from), line)
		} else if ok {
			lines[from] = mv.n.Line
		}
		out = append(out, Mapping{From: from, To: to})
	}
	return out
}
