package site

import (
	"cmp"
	"path/filepath"
	"strings"
	"testing"
)

// azureSite is a small site file with a store in Azure.
func azureSite(store string) []byte {
	return []byte("vault: v\nstore:\n  azure: {" + store + `}
policies: [{name: gold}]
vmm:
  clouds:
    - {name: c, policy: gold, hosts: [{name: h, hypervisor: none, vms: [
        {name: v, generation: 1, os: linux, cpus: 1, memory: 1GiB, disks: [{name: d, path: d.raw}]}]}]}
`)
}

const azureURL = `account_url: "https://a.blob.core.windows.net", container: abc`

func TestAzureSecrets(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		store string
		want  AzureStore
	}{
		{azureURL, AzureStore{}},
		{azureURL + ", key_env: K", AzureStore{KeyEnv: "K"}},
		{azureURL + ", sas_env: S", AzureStore{SASEnv: "S"}},
		{azureURL + ", key_file: ./k", AzureStore{KeyFile: filepath.Join(dir, "k")}},
		{azureURL + `, sas_file: /etc/k, log_account_url: "https://b.blob.core.windows.net"`,
			AzureStore{SASFile: "/etc/k", LogAccountURL: "https://b.blob.core.windows.net"}},
		{`account_url: "https://127.0.0.1:10000/devstoreaccount1", container: abc, key_env: K`, // an emulator
			AzureStore{AccountURL: "https://127.0.0.1:10000/devstoreaccount1", KeyEnv: "K"}},
		{azureURL + `, blob_rate: "off", blob_requests: 7500, concurrency: 64`, AzureStore{BlobRequests: 7500, Concurrency: 64}},
		{azureURL + `, blob_rate: 2Gbit`, AzureStore{BlobRate: 250e6, BlobRequests: 500, Concurrency: 16}},
	} {
		s, err := Parse(filepath.Join(dir, "site.yaml"), azureSite(c.store))
		if err != nil {
			t.Errorf("%s: %v", c.store, err)
			continue
		}
		if c.want.BlobRequests == 0 {
			c.want.BlobRate, c.want.BlobRequests, c.want.Concurrency = 60<<20, 500, 16
		}
		c.want.AccountURL, c.want.Container = cmp.Or(c.want.AccountURL, "https://a.blob.core.windows.net"), "abc"
		if *s.Store.Azure != c.want {
			t.Errorf("%s: %+v", c.store, s.Store.Azure)
		}
	}
	s, err := Parse(filepath.Join(dir, "site.yaml"), azureSite("connection_string_file: c, container: abc"))
	if err != nil || s.Store.Azure.ConnectionStringFile != filepath.Join(dir, "c") {
		t.Error(err)
	}
}

func TestAzureSecretsRefused(t *testing.T) {
	for store, want := range map[string]string{
		azureURL + ", key_env: K, sas_env: S":                                 "give one secret only",
		azureURL + ", key_env: K, key_file: k":                                "give one secret only",
		"connection_string_env: C, key_env: K, container: abc":                "give one secret only",
		"connection_string_env: C, connection_string_file: c, container: abc": "give either account_url or connection_string_env",
		azureURL + ", connection_string_file: c":                              "give either account_url or connection_string_env",
		azureURL + `, key_env: "no name"`:                                     "key_env: want the name of an environment variable",
		azureURL + `, sas_file: "sv=2020&sig=hunter2"`:                        "sas_file: want the path of a file",
		azureURL + ", blob_rate: 60":                                          `blob_rate: want a rate such as "480Mbit" or "60MiB", or "off", got`,
		azureURL + ", blob_rate: 1PiB":                                        `blob_rate: want a rate`,
		azureURL + ", blob_requests: 0":                                       `blob_requests: want a whole number from 1 to 100000`,
		azureURL + ", concurrency: 65":                                        `concurrency: want a whole number from 1 to 64`,
		azureURL + ", log_account_url: x":                                     "log_account_url: want https://",
		`account_url: "https://a.blob.core.windows.net/x", container: abc`:    "account_url: want https://",
		`account_url: "http://a.blob.core.windows.net", container: abc`:       "account_url: want https://",
	} {
		_, err := Parse("site.yaml", azureSite(store))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", store, err)
		}
	}
}
