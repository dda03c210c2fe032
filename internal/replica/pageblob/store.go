// Package pageblob keeps replicas in an Azure storage account.
//
//	CONTAINER/sitrep-store.json       the identity of the store
//	CONTAINER/VM/ledger.json          the ledger: a block blob, changed only if its ETag is the one that was read
//	CONTAINER/VM/lock                 leased, without end, by the site that works on the VM
//	CONTAINER/VM/DISK.vhd             pages: a page blob, a fixed VHD of whole MiB, the footer in its last 512 bytes. Azure
//	                                  makes a managed disk of it as it is
//	CONTAINER/VM/DISK.sums            block sums: a page blob, 16 bytes for each block, without pages where they are zero
//	CONTAINER/VM/shelf/NAME.hrl       change logs that have arrived, compressed (see shelf.go)
//	CONTAINER/VM/promoted/NAME.vhd    copies of recovery points that machines run from
//	snapshots of DISK.vhd, DISK.sums  recovery points
//
// An account for premium page blobs has no block blobs: then ledger, lock, logs and identity are in a second account.
//
// # Who may write
//
// Nothing here asks a lock service, and nothing has to be renewed while a run lasts. Three things of the service do it:
//
//   - The sequence number of every page blob is the generation of the replica. Every write of pages and sums is conditional
//     on it (if-sequence-number-eq), so a writer that was left behind by a failover is refused by the service, in the middle
//     of whatever it did. Seize saves the ledger first, and then raises the number of every blob, by "update" and never by
//     "increment", which could be done twice. To make a blob there is no condition on its number: it is made where there is
//     none, and replaced only as the one that was looked at, which a blob is no more whose number was raised.
//   - The ledger is replaced only if its ETag is the one that was read. Logs on the shelf are created only if they are not
//     there, and replaced or removed only if they are what was looked at.
//   - Promoted disks are changed and deleted only if they are what was looked at: a machine's first write ends that.
//   - The lock is a lease without end on an empty blob. Its id is made from Options.Holder, who a writer is: a run that was
//     killed leaves the lease, and the next run of the same site takes it again, because it has the same id. That no other
//     run of this site is under way is for the site's own lock to say. Another site is refused, until it seizes the replica.
//     When a site is gone for good and no failover is wanted, an operator breaks the lease of VM/lock.
//
// # What is durable, and what is not known
//
// What the service has acknowledged is durable. Writes are collected and merged before they are sent (see buffers.go), and
// acknowledged to the caller by Flush. An answer that is lost leaves it open whether something was done: writes of pages are
// done again, because that changes nothing; a change with a condition is followed by a look; snapshots, which would be made
// twice, are asked for one time and looked for by the position in their metadata.
package pageblob

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"sitrep/internal/fault"
	"sitrep/internal/hrl"
	"sitrep/internal/replica"
	"sitrep/internal/wait"
)

// Options are what is the same for every way to sign in. The zero Options have defaults for everything but Holder.
type Options struct {
	// Holder names who opens replicas for writing: a site on a machine. Two Stores of one Holder do not lock each other out.
	Holder string
	// HolderOf is asked for Holder, when it is "", the first time that a replica is opened for writing.
	HolderOf func() (string, error)
	// Concurrency is the most requests that are under way at once. Default 16.
	Concurrency int
	// BytesPerSecond and RequestsPerSecond pace what is sent to one blob. Default: what a standard account allows, 60 MiB and
	// 500 requests; less than zero: no pacing.
	BytesPerSecond, RequestsPerSecond int64
	// Retry is how often the SDK sends a request, and how long one may take. Default: 6 tries, of 90 seconds each.
	Retry policy.RetryOptions
	// Transport sends requests. Default: that of the SDK.
	Transport policy.Transporter
	// CopyPoll is how long is waited between two looks at a copy that the service makes. Default one second.
	CopyPoll time.Duration
	// Log is told what is worth knowing; nil: nobody.
	Log *slog.Logger
}

func (o Options) complete() Options {
	if o.Concurrency <= 0 {
		o.Concurrency = 16
	}
	if o.BytesPerSecond == 0 {
		o.BytesPerSecond = 60 << 20
	}
	if o.RequestsPerSecond == 0 {
		o.RequestsPerSecond = 500
	}
	if o.Retry.MaxRetries == 0 {
		o.Retry.MaxRetries = 5
	}
	if o.Retry.TryTimeout == 0 { // without one, a server that hangs hangs the run
		o.Retry.TryTimeout = 90 * time.Second
	}
	if o.Retry.RetryDelay == 0 {
		o.Retry.RetryDelay = 500 * time.Millisecond
	}
	if o.Retry.MaxRetryDelay == 0 {
		o.Retry.MaxRetryDelay = 20 * time.Second
	}
	if o.HolderOf == nil {
		o.HolderOf = func() (string, error) { return o.Holder, nil }
	}
	o.HolderOf = sync.OnceValues(o.HolderOf)
	if o.CopyPoll <= 0 {
		o.CopyPoll = time.Second
	}
	if o.Transport == nil {
		o.Transport = newWire(o.Concurrency)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// client is what the clients of both accounts are made with.
func (o Options) client(watching ...policy.Policy) azcore.ClientOptions {
	return azcore.ClientOptions{
		Retry: o.Retry, Transport: o.Transport, PerRetryPolicies: watching,
		Telemetry: policy.TelemetryOptions{ApplicationID: "sitrep"},
	}
}

// Store is a container of replicas.
type Store struct {
	pages  *container.Client
	blocks *container.Client // the same one, but for premium accounts
	opts   Options
	gate   *gate
	clock  clockWatch
	copy   readOnly
}

var _ replica.Store = (*Store)(nil)

// Describe returns the address of the container, without secrets.
func (s *Store) Describe() string { return "https://" + s.where("") }

// where names a blob of the store: the address of the container without its scheme and without a query, which may be a secret.
func (s *Store) where(name string) string { return whereIn(s.pages, name) }

func (s *Store) whereBlock(name string) string { return whereIn(s.blocks, name) }

func whereIn(c *container.Client, name string) string {
	u, err := url.Parse(c.URL())
	if err != nil {
		return name // of an address that the client took: not reached
	}
	return strings.TrimSuffix(u.Host+strings.TrimSuffix(u.Path, "/")+"/"+name, "/")
}

const (
	identityName   = "sitrep-store.json"
	identityFormat = 1
	maxIdentity    = 64 << 10 // bytes
	ledgerName     = "ledger.json"
	lockName       = "lock"
	shelfFolder    = "shelf/"
	promotedFolder = "promoted/"
	pagesSuffix    = ".vhd"
	sumsSuffix     = ".sums"
)

type identity struct {
	Format  int       `json:"format"`
	ID      hrl.ID    `json:"id"`
	Created time.Time `json:"created"`
}

// Prepare checks or creates the store's identity, and creates the container when it is not there; see replica.Store.
func (s *Store) Prepare(ctx context.Context, want hrl.ID) (hrl.ID, error) {
	if err := ctx.Err(); err != nil {
		return hrl.ID{}, fault.In(err, "", "")
	}
	have, err := s.identity(ctx)
	if err == nil && !want.IsZero() && have.ID != want {
		return hrl.ID{}, fault.New(fault.StoreForeign, "the store has the id %s, not %s", have.ID, want).At(s.whereBlock(identityName))
	}
	if err == nil || !want.IsZero() || !fault.Is(err, fault.StoreNotMounted) {
		return have.ID, err
	}
	if err := s.found(ctx); err != nil {
		return hrl.ID{}, err
	}
	have, err = s.identity(ctx) // ours, or that of a run that did the same
	return have.ID, err
}

func (s *Store) identity(ctx context.Context) (identity, error) {
	where := s.whereBlock(identityName)
	data, _, err := s.getBlock(ctx, identityName, maxIdentity)
	if fault.Is(err, fault.NotFound) {
		return identity{}, s.unnamed(ctx, "missing", fault.New(fault.StoreNotMounted, "the container has no %s", identityName).At(s.whereBlock("")))
	}
	if fault.Is(err, fault.StoreArchived) {
		return identity{}, s.unnamed(ctx, "in the archive tier", err)
	}
	if err != nil {
		return identity{}, err
	}
	var id identity
	switch err := json.Unmarshal(data, &id); {
	case err != nil:
		return identity{}, s.unnamed(ctx, "damaged", fault.Wrap(fault.StoreForeign, err, "the store's identity is damaged").At(where))
	case id.Format > identityFormat:
		return identity{}, fault.New(fault.LedgerVersion, "the store has format %d; this version knows formats up to %d",
			id.Format, identityFormat).At(where)
	case id.Format < 1 || id.ID.IsZero():
		return identity{}, s.unnamed(ctx, "damaged", fault.New(fault.StoreForeign, "the store's identity is damaged").At(where))
	}
	return id, nil
}

// unnamed is the error of a container whose identity cannot be read: other where there are no replicas either.
func (s *Store) unnamed(ctx context.Context, how string, other error) error {
	for name, err := range s.vms(ctx) {
		if err != nil {
			return err
		}
		return fault.New(fault.StoreUnnamed, "the container holds replicas (%s), but its %s is %s", name, identityName, how).At(s.whereBlock(""))
	}
	return other
}

// Ledgers yields the ledgers that are there; see replica.Mender.
func (s *Store) Ledgers(ctx context.Context) iter.Seq2[replica.State, error] {
	return func(yield func(replica.State, error) bool) {
		for name, err := range s.vms(ctx) {
			var st replica.State
			if err == nil {
				var k *known
				if k, err = (&vmReplica{s: s, vm: name}).loadLedger(ctx); err == nil {
					st = k.state
				}
				err = fault.In(err, name, "")
			}
			if !yield(st, err) {
				return
			}
		}
	}
}

// Identify writes the identity anew; see replica.Mender.
func (s *Store) Identify(ctx context.Context, id hrl.ID) error {
	have, err := s.identity(ctx)
	if err == nil {
		return fault.New(fault.Exists, "the store has the id %s", have.ID).At(s.whereBlock(identityName))
	}
	if !fault.Is(err, fault.StoreUnnamed) {
		return err
	}
	// One that cannot be read goes first: what is in the archive tier can be deleted, and not replaced.
	if err := s.deleteBlob(ctx, s.blocks, identityName, nil); err != nil {
		return err
	}
	err = s.writeIdentity(ctx, id, ifAbsent())
	if hasCode(err, bloberror.BlobAlreadyExists, bloberror.ConditionNotMet) {
		return fault.New(fault.Exists, "another run has just written it").At(s.whereBlock(identityName))
	}
	return classify(err, s.whereBlock(identityName))
}

func (s *Store) writeIdentity(ctx context.Context, id hrl.ID, cond *blob.AccessConditions) error {
	data, err := json.MarshalIndent(identity{Format: identityFormat, ID: id, Created: time.Now().UTC().Truncate(time.Second)}, "", "  ")
	if err == nil {
		_, err = s.putBlock(ctx, identityName, append(data, '\n'), nil, cond)
	}
	return err
}

// found makes the container a new store, unless it is one by then.
func (s *Store) found(ctx context.Context) error {
	if err := s.makeContainers(ctx); err != nil {
		return err
	}
	err := s.writeIdentity(ctx, hrl.NewID(), ifAbsent())
	if hasCode(err, bloberror.BlobAlreadyExists, bloberror.ConditionNotMet) {
		return nil
	}
	return classify(err, s.whereBlock(identityName))
}

func (s *Store) makeContainers(ctx context.Context) error {
	for _, c := range []*container.Client{s.pages, s.blocks} {
		_, err := c.GetProperties(ctx, nil)
		if err == nil {
			continue
		}
		if hasCode(err, bloberror.ContainerNotFound) {
			_, err = c.Create(ctx, nil)
		} else if fault.Is(classify(err, ""), fault.StoreDenied) {
			continue // a SAS of a container may do everything in it and not ask for its properties
		}
		if err != nil && !hasCode(err, bloberror.ContainerAlreadyExists) {
			return classify(err, whereIn(c, ""))
		}
	}
	return nil
}

// vms yields the first part of the names in the container that have a ledger, sorted.
func (s *Store) vms(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		var names []string
		pager := s.blocks.NewListBlobsHierarchyPager("/", nil)
		for pager.More() {
			page, err := pager.NextPage(ctx)
			if err != nil {
				yield("", classify(err, s.whereBlock("")))
				return
			}
			if page.Segment == nil {
				yield("", notTheService(s.whereBlock("")))
				return
			}
			for _, p := range page.Segment.BlobPrefixes {
				if p.Name != nil {
					names = append(names, strings.TrimSuffix(*p.Name, "/"))
				}
			}
		}
		slices.Sort(names)
		for _, name := range slices.Compact(names) {
			if replica.CheckName(name) != nil {
				continue
			}
			_, err := s.blocks.NewBlobClient(name+"/"+ledgerName).GetProperties(ctx, nil)
			if isMissing(err) {
				continue
			}
			if !yield(name, fault.In(classify(err, s.whereBlock(name+"/"+ledgerName)), name, "")) {
				return
			}
		}
	}
}

// List yields the VMs that have a replica; see replica.Store.
func (s *Store) List(ctx context.Context) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		if _, err := s.identity(ctx); err != nil {
			yield("", err)
			return
		}
		for name, err := range s.vms(ctx) {
			if !yield(name, err) {
				return
			}
		}
	}
}

// entry is a blob, or a snapshot of one, in a list.
type entry struct {
	name     string // without the folder of the VM
	snapshot string // "" for the blob itself
	etag     string
	meta     map[string]string
	modified time.Time // zero: not known
}

// list lists the blobs of a VM in one of the containers, with their snapshots when these are asked for.
func (s *Store) list(ctx context.Context, c *container.Client, vm, folder string, include container.ListBlobsInclude) ([]entry, error) {
	prefix := vm + "/" + folder
	var out []entry
	pager := c.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: &prefix, Include: include})
	for pager.More() {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return nil, classify(err, whereIn(c, prefix))
		}
		if page.Segment == nil {
			return nil, notTheService(whereIn(c, prefix))
		}
		for _, item := range page.Segment.BlobItems {
			if item.Name == nil || !strings.HasPrefix(*item.Name, prefix) {
				continue
			}
			e := entry{name: strings.TrimPrefix(*item.Name, vm+"/"), meta: lower(item.Metadata)}
			if item.Snapshot != nil {
				e.snapshot = *item.Snapshot
			}
			if item.Properties != nil {
				e.etag = etagOf(item.Properties.ETag)
				if item.Properties.LastModified != nil {
					e.modified = *item.Properties.LastModified
				}
			}
			out = append(out, e)
		}
	}
	slices.SortStableFunc(out, func(a, b entry) int {
		return strings.Compare(a.name+"\x00"+a.snapshot, b.name+"\x00"+b.snapshot)
	})
	return out, nil
}

// Remove deletes a replica with everything that belongs to it; see replica.Store. The lock goes last: it says, from before
// the ledger goes, that a removal was begun.
func (s *Store) Remove(ctx context.Context, vm string) error {
	r, err := s.replica(ctx, vm)
	if err == nil {
		err = r.remove(ctx)
	}
	return fault.In(err, vm, "")
}

func (r *vmReplica) remove(ctx context.Context) error {
	if _, err := r.s.identity(ctx); err != nil {
		return err
	}
	present, err := r.present(ctx)
	if err != nil {
		return err
	}
	if !present {
		left, err := r.leftovers(ctx)
		if err != nil || !left {
			return err
		}
	}
	if err := r.takeLock(ctx); err != nil {
		return err
	}
	err = r.markRemoved(ctx)
	if err == nil {
		err = r.s.deleteBlob(ctx, r.s.blocks, r.vm+"/"+ledgerName, nil)
	}
	if err == nil {
		err = r.clear(ctx)
	}
	if err != nil {
		return errors.Join(err, r.dropLock(context.WithoutCancel(ctx)))
	}
	err = r.s.deleteBlob(ctx, r.s.blocks, r.lockBlob(), r.leased())
	r.locked = false
	return err
}

// leftovers says whether the VM has blobs although it has no ledger. Disks without one are no leftovers, unless a removal was
// begun: they may be the last copy of somebody's data.
func (r *vmReplica) leftovers(ctx context.Context) (bool, error) {
	disks, err := r.s.list(ctx, r.s.pages, r.vm, "", container.ListBlobsInclude{})
	if err != nil {
		return false, err
	}
	for _, e := range disks {
		if !strings.HasSuffix(e.name, pagesSuffix) {
			continue
		}
		props, err := r.s.blocks.NewBlobClient(r.lockBlob()).GetProperties(ctx, nil)
		if err != nil && !isMissing(err) {
			return false, classify(err, r.s.whereBlock(r.lockBlob()))
		}
		if lower(props.Metadata)[metaRemoving] == "" {
			return false, fault.New(fault.LedgerCorrupt, "the ledger is missing, but the container holds %s", e.name).
				At(r.s.whereBlock(r.vm + "/" + ledgerName))
		}
	}
	if len(disks) > 0 {
		return true, nil
	}
	rest, err := r.s.list(ctx, r.s.blocks, r.vm, "", container.ListBlobsInclude{})
	return len(rest) > 0, err
}

// clear deletes every blob of the VM but its lock, with their snapshots.
func (r *vmReplica) clear(ctx context.Context) error {
	for _, c := range []*container.Client{r.s.pages, r.s.blocks} {
		all, err := r.s.list(ctx, c, r.vm, "", container.ListBlobsInclude{})
		if err != nil {
			return err
		}
		for _, e := range all {
			if e.name == lockName {
				continue
			}
			if err := r.s.deleteBlob(ctx, c, r.vm+"/"+e.name, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// deleteBlob deletes a blob with its snapshots; one that is not there is no error.
func (s *Store) deleteBlob(ctx context.Context, c *container.Client, name string, cond *blob.AccessConditions) error {
	include := blob.DeleteSnapshotsOptionTypeInclude
	_, err := c.NewBlobClient(name).Delete(ctx, &blob.DeleteOptions{DeleteSnapshots: &include, AccessConditions: cond})
	if isMissing(err) {
		return nil
	}
	return classify(err, whereIn(c, name))
}

// getBlock reads a small block blob as a whole, with its ETag and metadata.
func (s *Store) getBlock(ctx context.Context, name string, most int64) ([]byte, *properties, error) {
	where := s.whereBlock(name)
	resp, err := s.blocks.NewBlobClient(name).DownloadStream(ctx, nil)
	if err != nil {
		return nil, nil, classify(err, where)
	}
	body := resp.NewRetryReader(ctx, &blob.RetryReaderOptions{MaxRetries: bodyTries})
	defer body.Close()
	if resp.ETag == nil {
		return nil, nil, notTheService(where)
	}
	if resp.ContentLength != nil && *resp.ContentLength > most {
		return nil, nil, fault.New(fault.LedgerCorrupt, "the blob has %d bytes, which are too many", *resp.ContentLength).At(where)
	}
	data, err := readAll(body, resp.ContentLength)
	if err != nil {
		return nil, nil, classify(err, where)
	}
	return data, &properties{etag: etagOf(resp.ETag), meta: lower(resp.Metadata)}, nil
}

// errShort is a body that is not as long as was announced.
var errShort = fmt.Errorf("the body ended early")

// pause waits before a request is made again by us, not by the SDK.
func (s *Store) pause(ctx context.Context, try int) error {
	return wait.For(ctx, min(s.opts.Retry.RetryDelay*time.Duration(try), s.opts.Retry.MaxRetryDelay))
}
