package pageblob

import (
	"context"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// The bytes of a Put Page lie in one piece of memory. net/http takes a body over in pieces of 32 KiB and copies each one on its
// way, which was a fifth of what an initial copy cost. So the transport is told where they lie, and a connection without TLS
// gives them to the kernel as they are; one with TLS copies what it encrypts anyway.
//
// It also makes sure of what net/http does not promise: that nobody looks at the bytes any more when the request has ended,
// because the memory is used again then. A service may answer before it has read a body.

// payloadKey is of a context that says what the body of its request is.
type payloadKey struct{}

// withPayload says of a context what the body of its requests is.
func withPayload(ctx context.Context, p []byte) context.Context {
	return context.WithValue(ctx, payloadKey{}, p)
}

// wire sends requests, in place of the SDK's own transport.
type wire struct{ client *http.Client }

// newWire returns a wire that keeps as many connections as requests may be under way at once.
func newWire(concurrency int) *wire {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = concurrency
	dial := t.DialContext
	t.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if tcp, ok := c.(*net.TCPConn); ok {
			return payloadConn{tcp}, nil
		}
		return c, err
	}
	return &wire{client: &http.Client{Transport: t}}
}

// Do sends a request.
func (w *wire) Do(r *http.Request) (*http.Response, error) {
	b, ok := r.Context().Value(payloadKey{}).([]byte)
	if !ok || r.ContentLength != int64(len(b)) {
		return w.client.Do(r)
	}
	bodies := &bodies{bytes: b}
	defer bodies.revoke()
	r.Body, r.GetBody = bodies.next(), func() (io.ReadCloser, error) { return bodies.next(), nil }
	return w.client.Do(r)
}

// bodies is the body of a request, and those that net/http asks for to send it again when a connection turns out to be closed.
type bodies struct {
	bytes []byte

	mu      sync.Mutex
	made    []*payload
	revoked bool
}

func (b *bodies) next() *payload {
	b.mu.Lock()
	defer b.mu.Unlock()
	p := &payload{rest: b.bytes, revoked: b.revoked}
	b.made = append(b.made, p)
	return p
}

// revoke returns when nobody looks at the bytes any more, and nobody will.
func (b *bodies) revoke() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.revoked = true
	for _, p := range b.made {
		p.revoke()
	}
}

// payload is the body of one request.
type payload struct {
	mu      sync.Mutex
	rest    []byte
	revoked bool
	conn    *net.TCPConn  // that rest is being written to; nil: none
	written chan struct{} // closed when that has ended
}

// Read copies the next bytes.
func (p *payload) Read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.revoked:
		return 0, http.ErrBodyReadAfterClose
	case len(p.rest) == 0:
		return 0, io.EOF
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// Close does nothing: revoke does.
func (p *payload) Close() error { return nil }

// writeTo writes the next bytes, up to n, to a connection.
func (p *payload) writeTo(c *net.TCPConn, n int64) (int64, error) {
	p.mu.Lock()
	if p.revoked {
		p.mu.Unlock()
		return 0, http.ErrBodyReadAfterClose
	}
	b := p.rest[:min(n, int64(len(p.rest)))]
	p.rest = p.rest[len(b):]
	p.conn, p.written = c, make(chan struct{})
	p.mu.Unlock()

	done, err := c.Write(b)

	p.mu.Lock()
	defer p.mu.Unlock()
	p.conn = nil
	close(p.written)
	if err == nil && p.revoked { // the answer was quicker than this; the connection is as good as before
		err = c.SetWriteDeadline(time.Time{})
	}
	return int64(done), err
}

// revoke returns when nobody looks at the bytes any more, and nobody will. A connection that is in the middle of them breaks off.
func (p *payload) revoke() {
	p.mu.Lock()
	p.revoked = true
	if p.conn == nil {
		p.mu.Unlock()
		return
	}
	_ = p.conn.SetWriteDeadline(time.Unix(1, 0)) // of a connection that is closed: its write ends as well
	written := p.written
	p.mu.Unlock()
	<-written
}

// payloadConn is a connection that takes payloads as they are.
type payloadConn struct{ *net.TCPConn }

// ReadFrom writes what can be read from r. A body of known length comes as a LimitedReader.
func (c payloadConn) ReadFrom(r io.Reader) (int64, error) {
	if l, ok := r.(*io.LimitedReader); ok {
		if p, ok := l.R.(*payload); ok {
			n, err := p.writeTo(c.TCPConn, l.N)
			l.N -= n
			return n, err
		}
	}
	return c.TCPConn.ReadFrom(r)
}
