package pageblob

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"slices"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"

	"sitrep/internal/hrl"
	"sitrep/internal/replica"
)

// tryBlobs tries what the ledger, the logs and the lock rely on.
func (p *probe) tryBlobs() {
	p.try("a blob is read as it was written", replica.Needed, func() (string, error) {
		if _, err := p.put("read", bytesOf(1), nil); err != nil {
			return "", err
		}
		props, err := p.block("read").GetProperties(p.ctx, nil)
		if err == nil && lower(props.Metadata)["probe"] != "read" {
			err = plain("its metadata is not what was written")
		}
		return "", cmp.Or(err, p.want(p.block("read"), 0, bytesOf(1)))
	})
	p.try("a blob that is there is not made again", replica.Needed, func() (string, error) {
		_, err := p.put("once", []byte("first"), ifAbsent())
		if err != nil {
			return "", err
		}
		_, err = p.put("once", []byte("other"), ifAbsent())
		if err := refused(err, bloberror.BlobAlreadyExists, bloberror.ConditionNotMet); err != nil {
			return "", err
		}
		return "", p.want(p.block("once"), 0, []byte("first"))
	})
	p.try("a blob is replaced only if it is the one that was read", replica.Needed, p.replaced)
	p.try("a blob is read only if it is the one that was looked at", replica.Needed, func() (string, error) {
		stale, err := p.stale("reread")
		if err == nil {
			_, err = p.get(p.block("reread"), 0, 5, ifMatch(stale))
			err = refused(err, bloberror.ConditionNotMet)
		}
		return "", err
	})
	p.try("a blob is removed only if it is the one that was looked at", replica.Needed, func() (string, error) {
		stale, err := p.stale("removed")
		if err == nil {
			_, err = p.block("removed").Delete(p.ctx, &blob.DeleteOptions{AccessConditions: ifMatch(stale)})
			err = refused(err, bloberror.ConditionNotMet)
		}
		if err != nil {
			return "", err
		}
		return "", p.want(p.block("removed"), 0, []byte("newer"))
	})
	p.try("a blob is put together from blocks", replica.Needed, p.staged)
	p.try("a lease keeps others out", replica.Needed, p.leased)
	p.try("lists show what is there", replica.Needed, p.listed)
}

// stale makes a blob and replaces it: the ETag of the first is returned.
func (p *probe) stale(name string) (etag string, err error) {
	etag, err = p.put(name, []byte("older"), nil)
	if err == nil {
		_, err = p.put(name, []byte("newer"), ifMatch(etag))
	}
	return etag, err
}

func (p *probe) replaced() (string, error) {
	stale, err := p.stale("replaced")
	if err == nil {
		_, err = p.put("replaced", []byte("wrong"), ifMatch(stale))
		err = refused(err, bloberror.ConditionNotMet)
	}
	if err != nil {
		return "", err
	}
	return "", p.want(p.block("replaced"), 0, []byte("newer"))
}

func (p *probe) staged() (string, error) {
	c := p.s.blocks.NewBlockBlobClient(p.folder + "staged")
	var ids []string
	for _, part := range []byte{1, 2} {
		id := base64.StdEncoding.EncodeToString([]byte{part})
		ids = append(ids, id)
		if _, err := c.StageBlock(p.ctx, id, body(bytesOf(part)), nil); err != nil {
			return "", err
		}
	}
	if _, err := c.GetProperties(p.ctx, nil); !isMissing(err) {
		return "", cmp.Or(err, plain("it is there before it was put together"))
	}
	if _, err := c.CommitBlockList(p.ctx, ids, nil); err != nil {
		return "", err
	}
	return "", p.want(p.block("staged"), 0, append(bytesOf(1), bytesOf(2)...))
}

func (p *probe) leased() (detail string, err error) {
	if _, err := p.put("leased", nil, nil); err != nil {
		return "", err
	}
	mine, err := p.leaseOf("leased")
	if err != nil {
		return "", err
	}
	other, err := p.leaseOf("leased")
	if err != nil {
		return "", err
	}
	for range 2 { // the same one may come again: a run that was killed has left it
		if _, err := mine.AcquireLease(p.ctx, -1, nil); err != nil {
			return "", err
		}
	}
	defer func() {
		if _, rerr := mine.ReleaseLease(p.ctx, nil); err == nil {
			err = rerr
		}
	}()
	_, err = other.AcquireLease(p.ctx, -1, nil)
	return "", refused(err, bloberror.LeaseAlreadyPresent)
}

func (p *probe) leaseOf(name string) (*lease.BlobClient, error) {
	b := hrl.NewID()
	id := fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
	return lease.NewBlobClient(p.block(name), &lease.BlobClientOptions{LeaseID: &id})
}

func (p *probe) listed() (string, error) {
	if _, err := p.put("listed", nil, nil); err != nil {
		return "", err
	}
	there, err := p.lists("listed")
	if err == nil && !there {
		err = plain("a blob was made, and the list does not have it")
	}
	if err == nil {
		_, err = p.block("listed").Delete(p.ctx, nil)
	}
	if err != nil {
		return "", err
	}
	if there, err = p.lists("listed"); err == nil && there {
		err = plain("a blob was removed, and the list still has it")
	}
	return "", err
}

func (p *probe) lists(name string) (bool, error) {
	all, err := p.s.list(p.ctx, p.s.blocks, p.folder[:len(p.folder)-1], "", container.ListBlobsInclude{})
	return slices.ContainsFunc(all, func(e entry) bool { return e.name == name }), err
}
