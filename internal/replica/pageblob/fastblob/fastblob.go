// Package fastblob is a blob service that costs next to nothing, for measuring what its clients cost: it reads the body of every
// write, checks its CRC64, and forgets it. It keeps what a client looks at again: block blobs, small page blobs, small writes,
// and which ranges of a page blob have pages.
//
// It knows the requests of an initial copy and no others, and tells nobody who may do what.
package fastblob

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/minio/crc64nvme"

	"sitrep/internal/block"
)

// Account is the first part of every path.
const Account = "fast"

const (
	maxBody   = 4 << 20  // bytes of a write
	maxKept   = 16 << 20 // size of a page blob that is kept whole
	smallPut  = 4 << 10  // a write of so many bytes is kept whatever the blob's size: a footer
	apiFormat = http.TimeFormat
)

// Server is an http.Handler. Its fields are for reading, by Counts.
type Server struct {
	mu      sync.Mutex
	blobs   map[string]*stored
	etags   uint64
	counts  Counts
	now     int
	bodies  sync.Pool
	arrived func(total int64)
}

// Counts is what a server has seen.
type Counts struct {
	Requests  int64
	Puts      int64 // writes of pages
	DataBytes int64 // of their bodies, for blobs whose name ends in .vhd
	MostPuts  int   // under way at once
}

type stored struct {
	pages bool
	size  int64
	data  []byte           // nil: a large page blob
	small map[int64][]byte // small writes to a large page blob
	has   block.Set
	seq   int64
	etag  string
	meta  http.Header
	lease string
}

// New returns a server. arrived, which may be nil, is called with Counts.DataBytes after every write of pages; it must be short.
func New(arrived func(total int64)) *Server {
	s := &Server{blobs: map[string]*stored{}, arrived: arrived}
	s.bodies.New = func() any { return new([maxBody]byte) }
	return s
}

// ConnectionString is for a client of a server that listens at an address.
func ConnectionString(addr string) string {
	return fmt.Sprintf("DefaultEndpointsProtocol=http;AccountName=%s;AccountKey=%s;BlobEndpoint=http://%s/%s;", Account,
		base64.StdEncoding.EncodeToString([]byte("a key that nobody checks")), addr, Account)
}

// Counts returns what was seen until now.
func (s *Server) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts
}

// answer is a status with, for errors, a code.
type answer struct {
	status int
	code   string
	body   []byte
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/"+Account+"/")
	s.mu.Lock()
	s.counts.Requests++
	s.mu.Unlock()
	w.Header().Set("x-ms-request-id", "fast")
	w.Header().Set("Date", time.Now().UTC().Format(apiFormat))
	var a answer
	switch q := r.URL.Query(); {
	case q.Get("restype") == "container":
		a = s.container(r, name)
	case q.Get("comp") == "page":
		a = s.putPage(w, r, name)
	default:
		a = s.blob(w, r, name)
	}
	if a.code != "" {
		w.Header().Set("x-ms-error-code", a.code)
	}
	w.WriteHeader(a.status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(a.body)
	}
}

// container answers all there is to ask about a container: it is always there.
func (s *Server) container(r *http.Request, name string) answer {
	q := r.URL.Query()
	switch {
	case q.Get("comp") == "list":
		return answer{status: http.StatusOK, body: s.list(name+"/", q.Get("prefix"), q.Get("delimiter"))}
	case r.Method == http.MethodPut:
		return answer{status: http.StatusCreated}
	}
	return answer{status: http.StatusOK}
}

func (s *Server) list(container, prefix, delimiter string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	b.WriteString(`<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>`)
	folders := map[string]bool{}
	for path, at := range s.blobs {
		name, ok := strings.CutPrefix(path, container)
		if !ok || !strings.HasPrefix(name, prefix) {
			continue
		}
		if i := strings.Index(name[len(prefix):], "/"); delimiter == "/" && i >= 0 {
			folders[name[:len(prefix)+i+1]] = true
			continue
		}
		fmt.Fprintf(&b, "<Blob><Name>%s</Name><Properties><Etag>%s</Etag></Properties></Blob>", name, at.etag)
	}
	for f := range folders {
		fmt.Fprintf(&b, "<BlobPrefix><Name>%s</Name></BlobPrefix>", f)
	}
	b.WriteString(`</Blobs><NextMarker/></EnumerationResults>`)
	return []byte(b.String())
}

// blob answers what is not a write of pages. All of it is small, and done under the lock.
func (s *Server) blob(w http.ResponseWriter, r *http.Request, name string) answer {
	body, a := s.small(r)
	if a.status != 0 {
		return a
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.blobs[name]
	comp := r.URL.Query().Get("comp")
	create := r.Method == http.MethodPut && comp == ""
	switch match := strings.Trim(r.Header.Get("If-Match"), `"`); {
	case at == nil && !create:
		return answer{status: http.StatusNotFound, code: "BlobNotFound"}
	case at != nil && r.Header.Get("If-None-Match") == "*":
		return answer{status: http.StatusConflict, code: "BlobAlreadyExists"}
	case match != "" && (at == nil || at.etag != match):
		return answer{status: http.StatusPreconditionFailed, code: "ConditionNotMet"}
	}
	switch {
	case create:
		at = s.create(r, name, body)
		a = answer{status: http.StatusCreated}
	case comp == "lease":
		a = at.leased(w, r)
	case comp == "pagelist":
		a = answer{status: http.StatusOK, body: at.pageList(r)}
	case comp == "metadata":
		at.meta, at.etag = metaOf(r.Header), s.etag()
		a = answer{status: http.StatusOK}
	case r.Method == http.MethodGet || r.Method == http.MethodHead:
		a = at.get(w, r)
	default:
		return answer{status: http.StatusNotImplemented, code: "NotImplemented"}
	}
	at.describe(w)
	return a
}

// small reads the body of a request that has no pages.
func (s *Server) small(r *http.Request) ([]byte, answer) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil || len(body) > maxBody {
		return nil, answer{status: http.StatusBadRequest, code: "InvalidInput"}
	}
	return body, checked(r, body)
}

// checked is an error when the body is not what its CRC64 says.
func checked(r *http.Request, body []byte) answer {
	said := r.Header.Get("x-ms-content-crc64")
	if said == "" && len(body) > 0 {
		return answer{status: http.StatusBadRequest, code: "MissingRequiredHeader"}
	}
	sum := binary.LittleEndian.AppendUint64(nil, crc64nvme.Checksum(body))
	if said != "" && said != base64.StdEncoding.EncodeToString(sum) {
		return answer{status: http.StatusBadRequest, code: "Crc64Mismatch"}
	}
	return answer{}
}

func (s *Server) etag() string {
	s.etags++
	return fmt.Sprintf("0x%X", s.etags)
}

func (s *Server) create(r *http.Request, name string, body []byte) *stored {
	at := &stored{meta: metaOf(r.Header), etag: s.etag(), data: body, size: int64(len(body))}
	if strings.EqualFold(r.Header.Get("x-ms-blob-type"), "PageBlob") {
		at.pages = true
		at.size, _ = strconv.ParseInt(r.Header.Get("x-ms-blob-content-length"), 10, 64)
		at.seq, _ = strconv.ParseInt(r.Header.Get("x-ms-blob-sequence-number"), 10, 64)
		if at.small = map[int64][]byte{}; at.size <= maxKept {
			at.data = make([]byte, at.size)
		} else {
			at.data = nil
		}
	}
	s.blobs[name] = at
	return at
}

func metaOf(h http.Header) http.Header {
	out := http.Header{}
	for k, v := range h {
		if strings.HasPrefix(strings.ToLower(k), "x-ms-meta-") {
			out[k] = v
		}
	}
	return out
}

// describe puts the properties into an answer.
func (b *stored) describe(w http.ResponseWriter) {
	h := w.Header()
	for k, v := range b.meta {
		h[k] = v
	}
	h.Set("ETag", `"`+b.etag+`"`)
	h.Set("Last-Modified", time.Now().UTC().Format(apiFormat))
	h.Set("x-ms-blob-type", "BlockBlob")
	if b.pages {
		h.Set("x-ms-blob-type", "PageBlob")
		h.Set("x-ms-blob-sequence-number", strconv.FormatInt(b.seq, 10))
	}
}

func (b *stored) leased(w http.ResponseWriter, r *http.Request) answer {
	id := r.Header.Get("x-ms-proposed-lease-id")
	if r.Header.Get("x-ms-lease-action") == "release" {
		b.lease = ""
		return answer{status: http.StatusOK}
	}
	if b.lease != "" && b.lease != id {
		return answer{status: http.StatusConflict, code: "LeaseAlreadyPresent"}
	}
	b.lease = id
	w.Header().Set("x-ms-lease-id", id)
	return answer{status: http.StatusCreated}
}

// span is the range that a request is about; all of the blob when it says none.
func (b *stored) span(r *http.Request) block.Range {
	said := r.Header.Get("x-ms-range")
	if said == "" {
		said = r.Header.Get("Range")
	}
	var first, last int64
	if n, _ := fmt.Sscanf(said, "bytes=%d-%d", &first, &last); n != 2 {
		return block.Range{Len: b.size}
	}
	return block.Range{Off: first, Len: last + 1 - first}.Intersect(block.Range{Len: b.size})
}

func (b *stored) get(w http.ResponseWriter, r *http.Request) answer {
	if r.Method == http.MethodHead {
		w.Header().Set("Content-Length", strconv.FormatInt(b.size, 10))
		return answer{status: http.StatusOK}
	}
	span := b.span(r)
	w.Header().Set("Content-Length", strconv.FormatInt(span.Len, 10))
	a := answer{status: http.StatusOK}
	if span.Len != b.size {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", span.Off, span.End()-1, b.size))
		a.status = http.StatusPartialContent
	}
	switch small, ok := b.small[span.Off]; {
	case b.data != nil || b.size == 0:
		a.body = append(a.body, b.data[span.Off:span.End()]...)
	case ok && int64(len(small)) == span.Len:
		a.body = small
	default:
		w.Header().Del("Content-Length")
		return answer{status: http.StatusNotImplemented, code: "NotKept"}
	}
	return a
}

func (b *stored) pageList(r *http.Request) []byte {
	var out strings.Builder
	out.WriteString(`<?xml version="1.0" encoding="utf-8"?><PageList>`)
	span := b.span(r)
	for run := range b.has.All() {
		if run = run.Intersect(span); !run.Empty() {
			fmt.Fprintf(&out, "<PageRange><Start>%d</Start><End>%d</End></PageRange>", run.Off, run.End()-1)
		}
	}
	out.WriteString(`</PageList>`)
	return []byte(out.String())
}

// putPage takes pages, or clears them.
func (s *Server) putPage(w http.ResponseWriter, r *http.Request, name string) answer {
	buf := s.bodies.Get().(*[maxBody]byte)
	defer s.bodies.Put(buf)
	s.putting(1)
	defer s.putting(-1)
	if r.ContentLength < 0 || r.ContentLength > maxBody {
		return answer{status: http.StatusRequestEntityTooLarge, code: "RequestBodyTooLarge"}
	}
	body := buf[:r.ContentLength]
	if _, err := io.ReadFull(r.Body, body); err != nil {
		return answer{status: http.StatusBadRequest, code: "IncompleteBody"}
	}
	if a := checked(r, body); a.status != 0 {
		return a
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.blobs[name]
	if at == nil {
		return answer{status: http.StatusNotFound, code: "BlobNotFound"}
	}
	if want := r.Header.Get("x-ms-if-sequence-number-eq"); want != "" && want != strconv.FormatInt(at.seq, 10) {
		return answer{status: http.StatusPreconditionFailed, code: "SequenceNumberConditionNotMet"}
	}
	span := at.span(r)
	if r.Header.Get("x-ms-page-write") == "clear" {
		at.clear(span)
	} else if span.Len != int64(len(body)) {
		return answer{status: http.StatusBadRequest, code: "InvalidPageRange"}
	} else {
		at.put(span, body)
		s.count(name, int64(len(body)))
	}
	at.etag = s.etag()
	at.describe(w)
	return answer{status: http.StatusCreated}
}

func (s *Server) putting(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now += n
	s.counts.MostPuts = max(s.counts.MostPuts, s.now)
}

func (s *Server) count(name string, n int64) {
	s.counts.Puts++
	if strings.HasSuffix(name, ".vhd") {
		s.counts.DataBytes += n
	}
	if s.arrived != nil {
		s.arrived(s.counts.DataBytes)
	}
}

func (b *stored) put(span block.Range, body []byte) {
	b.has.Add(span)
	if b.data != nil {
		copy(b.data[span.Off:], body)
	} else if len(body) <= smallPut {
		b.small[span.Off] = append([]byte(nil), body...)
	}
}

func (b *stored) clear(span block.Range) {
	b.has.Remove(span)
	if b.data != nil {
		clear(b.data[span.Off:span.End()])
	}
	for off := range b.small {
		if off >= span.Off && off < span.End() {
			delete(b.small, off)
		}
	}
}
