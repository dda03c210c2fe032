package pageblob

import (
	"context"
	"strings"

	"sitrep/internal/fault"
)

// stampChanged is the stamp, in the ledger, of a disk that something wrote to before it was taken over. It is no ETag.
const stampChanged = "changed"

// stamp is what the ledger knows a disk's content by: the ETags of both blobs, which are others after every write, whoever wrote.
// Sums that something else wrote to are no less a loss than pages: a snapshot of them proves nothing that it should.
type stamp struct {
	pages string
	sums  string // "": not known; ledgers of older versions have the ETag of the pages only
}

func parseStamp(s string) stamp {
	pages, sums, _ := strings.Cut(s, " ")
	return stamp{pages, sums}
}

func (s stamp) String() string {
	if s.sums == "" {
		return s.pages
	}
	return s.pages + " " + s.sums
}

// tells says whether the content can be judged by it.
func (s stamp) tells() bool { return s.pages != "" && s.pages != stampChanged }

// Stamp is made of the ETags of both blobs; see replica.Pages and stamp. That of the sums is asked for when this run has written
// some: it is known from opening the disk otherwise. A disk whose ledger has an older version's stamp, which fits, keeps that one
// until the next Flush.
func (p *pages) Stamp(ctx context.Context) (string, error) {
	at, err := p.f.look(ctx)
	if err == nil && at == nil {
		err = fault.New(fault.ReplicaMissing, "the pages are missing").At(p.f.where())
	}
	if err != nil {
		return "", p.fail(err)
	}
	if s := parseStamp(p.stamped); s.sums == "" && s.pages == at.etag && !p.flushed.Load() {
		return p.stamped, nil
	}
	tag, err := p.table.stamp(ctx)
	if err != nil {
		return "", p.fail(err)
	}
	return stamp{at.etag, tag}.String(), nil
}

// stamp is the ETag of the sums.
func (t *sumTable) stamp(ctx context.Context) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.tag != "" {
		return t.tag, nil
	}
	at, err := t.f.look(ctx)
	if err != nil {
		return "", err
	}
	if at == nil {
		return "", fault.New(fault.ReplicaChanged, "the block sums are missing").At(t.f.where())
	}
	t.tag = at.etag
	return t.tag, nil
}
