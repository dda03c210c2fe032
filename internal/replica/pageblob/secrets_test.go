package pageblob_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/service"

	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/replica/pageblob"
	"sitrep/internal/replica/pageblob/azuritetest"
	"sitrep/internal/replica/replicatest"
)

// accountSAS is a SAS of the whole account. (With one of a container, the emulator refuses to read snapshots.)
func accountSAS(t *testing.T) string {
	t.Helper()
	c, err := service.NewClientFromConnectionString(azurite.Server(t).ConnectionString(), nil)
	if err != nil {
		t.Fatal(err)
	}
	address, err := c.GetSASURL(sas.AccountResourceTypes{Service: true, Container: true, Object: true},
		sas.AccountPermissions{Read: true, Write: true, Delete: true, List: true, Create: true, Update: true, Add: true, Tag: true, FilterByTags: true,
			DeletePreviousVersion: true, PermanentDelete: true}, time.Now().Add(time.Hour), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, query, _ := strings.Cut(address, "?")
	return query
}

// TestWaysToSignIn: each of them reaches the same replica.
func TestWaysToSignIn(t *testing.T) {
	server, name, dir := azurite.Server(t), azuritetest.Container(t), t.TempDir()
	secret := func(file, text string) string {
		path := filepath.Join(dir, file)
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	signature := accountSAS(t)
	env := func(k string) string {
		return map[string]string{"C": server.ConnectionString(), "K": azuritetest.Key, "S": "?" + signature}[k]
	}
	for i, cfg := range []pageblob.Config{
		{ConnectionStringEnv: "C"}, {AccountURL: server.URL, KeyEnv: "K"}, {AccountURL: server.URL + "/", SASEnv: "S"},
		{ConnectionStringFile: secret("c", server.ConnectionString())}, {AccountURL: server.URL, KeyFile: secret("k", azuritetest.Key)},
		{AccountURL: server.URL, SASFile: secret("s", signature)},
		{AccountURL: server.URL, KeyEnv: "K", LogAccountURL: server.URL}, {ConnectionStringEnv: "C", LogAccountURL: server.URL},
	} {
		cfg.Container, cfg.Getenv = name, env
		store, err := pageblob.Open(cfg, quick())
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(store.Describe(), "devstoreaccount1/"+name) || strings.Contains(store.Describe(), "?") {
			t.Errorf("the store is %s", store.Describe())
		}
		h := replicatest.NewHistory(fmt.Sprint("vm", i), 12, replicatest.OSLogs(t))
		if err := errors.Join(h.Begin(t.Context(), store), h.Step(t.Context(), false), h.Check(t.Context()), h.Close()); err != nil {
			t.Errorf("%+v: %v", i, err)
		}
	}
}

func TestSecretsThatCannotBe(t *testing.T) {
	open := filepath.Join(t.TempDir(), "open")
	if err := os.WriteFile(open, []byte("hunter2"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o640); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const account = "https://a.blob.core.windows.net"
	for what, cfg := range map[string]pageblob.Config{
		"a file that others read":  {AccountURL: account, KeyFile: open},
		"a file that is not there": {AccountURL: account, SASFile: open + "x"},
		"an empty file":            {ConnectionStringFile: empty},
		"a folder":                 {ConnectionStringFile: filepath.Dir(open)},
		"a variable that is not":   {AccountURL: account, KeyEnv: "NONE"},
		"no key":                   {AccountURL: account, KeyEnv: "HUNTER"},
		"no connection string":     {ConnectionStringEnv: "HUNTER"},
	} {
		cfg.Container, cfg.Getenv = "abc", func(k string) string { return map[string]string{"HUNTER": "hunter2 !"}[k] }
		_, err := pageblob.Open(cfg, quick())
		wantCode(t, what, err, fault.SiteInvalid)
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error repeats the secret: %v", what, err)
		}
	}
}

// TestSecretsAreNotWritten makes requests fail in many ways, with a SAS and with a key, and looks for these in everything that
// anybody could write: errors in every form, and the log.
func TestSecretsAreNotWritten(t *testing.T) {
	t.Parallel()
	server, signature := azurite.Server(t), accountSAS(t)
	values, err := url.ParseQuery(signature)
	if err != nil {
		t.Fatal(err)
	}
	secrets := []string{values.Get("sig"), url.QueryEscape(values.Get("sig")), azuritetest.Key, "hunter2"}
	var log bytes.Buffer
	next := wire(t)
	ways := map[string]roundTrip{
		"refused":   func(*http.Request) (*http.Response, error) { return nil, errReset },
		"with text": func(r *http.Request) (*http.Response, error) { return nil, fmt.Errorf("proxy of %s says no", r.URL) },
		"busy": func(r *http.Request) (*http.Response, error) {
			return answer(r, 503, "ServerBusy", r.URL.String()), nil
		},
		"html": func(r *http.Request) (*http.Response, error) {
			return answer(r, 403, "", "<a href="+r.URL.String()), nil
		},
		"denied": func(r *http.Request) (*http.Response, error) {
			return answer(r, 403, "AuthenticationFailed", r.URL.String()), nil
		},
		"elsewhere": func(r *http.Request) (*http.Response, error) {
			resp := answer(r, 302, "", "")
			resp.Header.Set("Location", r.URL.String()+"&again=1")
			return resp, nil
		},
		"garbage": func(r *http.Request) (*http.Response, error) { return answer(r, 200, "", r.URL.String()), nil },
		"short": func(r *http.Request) (*http.Response, error) {
			resp, err := next.RoundTrip(r)
			if err == nil {
				resp.Body.Close()
				resp.Body = http.NoBody
			}
			return resp, err
		},
		"hangs": func(r *http.Request) (*http.Response, error) { <-r.Context().Done(); return nil, r.Context().Err() },
	}
	name := azuritetest.Container(t)
	h := replicatest.NewHistory("vm", 13, replicatest.OSLogs(t))
	if err := errors.Join(h.Begin(t.Context(), open(t, name, quick())), h.Close()); err != nil {
		t.Fatal(err)
	}
	errs := 0
	for way, f := range ways {
		for _, cfg := range []pageblob.Config{{AccountURL: server.URL, SASEnv: "S"}, {AccountURL: server.URL, KeyEnv: "K"}} {
			cfg.Container, cfg.Getenv = name, func(k string) string { return map[string]string{"S": signature, "K": azuritetest.Key}[k] }
			opts := quick()
			opts.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
			failing := false
			opts.Retry = policy.RetryOptions{MaxRetries: 1, TryTimeout: 2 * time.Second, RetryDelay: time.Millisecond}
			if way == "hangs" {
				opts.Retry.MaxRetries, opts.Retry.TryTimeout = -1, 300*time.Millisecond
			}
			opts.Transport = over(func(r *http.Request) (*http.Response, error) {
				if failing {
					return f(r)
				}
				return next.RoundTrip(r)
			})
			for _, err := range failAll(t, cfg, opts, &failing) {
				if err == nil {
					continue
				}
				errs++
				text := fmt.Sprintf("%v %+v %q %s", err, err, err.Error(), fault.Find(err).Error())
				for _, s := range secrets {
					if strings.Contains(text, s) {
						t.Errorf("%s: %s", way, text)
					}
				}
				if strings.Contains(text, "sig=") || strings.Contains(text, "<a href") {
					t.Errorf("%s: %s", way, text)
				}
			}
		}
	}
	if errs < 100 {
		t.Errorf("only %d errors", errs)
	}
	for _, s := range secrets {
		if strings.Contains(log.String(), s) {
			t.Error("the log has the secret")
		}
	}
}

// failAll does everything that there is on a store whose requests fail.
func failAll(t *testing.T, cfg pageblob.Config, opts pageblob.Options, failing *bool) []error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	store, err := pageblob.Open(cfg, opts)
	if err != nil {
		t.Fatal(err)
	}
	*failing = false
	r, err := store.Open(ctx, "vm")
	if err != nil {
		t.Fatal(err)
	}
	st, err := r.Ledger().Load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	p, err := r.Disk(ctx, st.Disks[0])
	if err != nil {
		t.Fatal(err)
	}
	*failing = true
	_, prepare := store.Prepare(ctx, hrl.NewID())
	_, create := store.Create(ctx, replicatest.FirstState("new"))
	_, view := store.View(ctx, "vm")
	var list error
	for _, err := range store.List(ctx) {
		list = errors.Join(list, err)
	}
	_, put := r.Shelf().Put(ctx, "x.hrl", logOf(t, "x"))
	_, shelf := r.Shelf().Open(ctx, "x.hrl")
	_, names := r.Shelf().Names(ctx)
	_, load := r.Ledger().Load(ctx)
	_, save := r.Ledger().Save(ctx, st)
	_, point := r.Points().Open(ctx, st, st.Points[0].ID)
	_, stamp := p.Stamp(ctx)
	_, promote := r.(replica.Promoter).Promote(ctx, st, replica.Promotion{Point: st.Points[0].ID, Disk: "os", Name: "x"})
	_, promoted := r.(replica.Promoter).OpenPromoted(ctx, "x", 512)
	_, promotions := r.(replica.Promoter).Promoted(ctx)
	errs := []error{prepare, create, view, list, put, shelf, names, load, save, point, stamp, promote, promoted, promotions,
		r.Points().Preserve(ctx, st, st.Applied.Next(), nil, false), r.Points().Sweep(ctx, st),
		p.ReadAt(ctx, make([]byte, 512), 0), p.WriteAt(ctx, make([]byte, 512), 0), p.Flush(ctx), p.Close(),
		r.(replica.Promoter).RemovePromoted(ctx, "x"), r.Close()}
	*failing = false
	return errs
}
