package pageblob

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"
)

func send(t *testing.T, w *wire, ctx context.Context, url string, p []byte) (string, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(withPayload(ctx, p), http.MethodPut, url, bytes.NewReader(p))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := w.Do(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func sumHandler(w http.ResponseWriter, r *http.Request) {
	h := sha256.New()
	n, err := io.Copy(h, r.Body)
	if err != nil || n != r.ContentLength {
		w.WriteHeader(http.StatusBadRequest)
	}
	fmt.Fprintf(w, "%x", h.Sum(nil))
}

// TestWire sends bodies of many lengths from memory that is overwritten as soon as the request has ended, over kept connections.
func TestWire(t *testing.T) {
	for name, start := range map[string]func(http.Handler) *httptest.Server{"plain": httptest.NewServer, "tls": httptest.NewTLSServer} {
		t.Run(name, func(t *testing.T) {
			var mu sync.Mutex
			conns := map[string]bool{}
			s := start(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				mu.Lock()
				conns[r.RemoteAddr] = true
				mu.Unlock()
				sumHandler(w, r)
			}))
			defer s.Close()
			w := newWire(4)
			defer w.client.CloseIdleConnections()
			w.client.Transport.(*http.Transport).TLSClientConfig = &tls.Config{InsecureSkipVerify: true} // a server of this test
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d", seed)
			var wg sync.WaitGroup
			for worker := range uint64(4) {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(seed, worker))
					buf := make([]byte, maxPut)
					for i := range 24 {
						p := buf[:1+rng.IntN(maxPut)]
						for j := 0; j < len(p); j += 1 + rng.IntN(4096) {
							p[j] = byte(rng.Uint32())
						}
						got, err := send(t, w, context.Background(), s.URL, p)
						if want := fmt.Sprintf("%x", sha256.Sum256(p)); err != nil || got != want {
							t.Errorf("request %d of %d bytes: %v, %s instead of %s", i, len(p), err, got, want)
						}
					}
				})
			}
			wg.Wait()
			if len(conns) > 24 { // net/http may make one more while another becomes free
				t.Errorf("%d connections were made for 96 requests of 4 workers: they were not kept", len(conns))
			}
		})
	}
}

// TestWireEarlyAnswer answers before the body was read, and never reads it: the request ends, and nobody looks at the memory then,
// which the race detector would see. The next request gets another connection.
func TestWireEarlyAnswer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = c.Read(make([]byte, 4096))
				_, _ = io.WriteString(c, "HTTP/1.1 503 busy\r\nContent-Length: 4\r\n\r\nbusy")
				_, _ = c.Read(make([]byte, 1)) // no more than that is taken
				<-t.Context().Done()
			}()
		}
	}()
	w := newWire(4)
	defer w.client.CloseIdleConnections()
	p := make([]byte, 64<<20) // more than the kernel takes
	for range 3 {
		got, err := send(t, w, context.Background(), "http://"+l.Addr().String(), p)
		if err != nil || got != "busy" {
			t.Fatalf("%q, %v", got, err)
		}
		clear(p)
	}
}

// TestWireCancelled gives up in the middle of a body.
func TestWireCancelled(t *testing.T) {
	begun, end := make(chan struct{}, 1), make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		<-end // and never reads the body
	}))
	defer s.Close()
	defer close(end)
	w := newWire(4)
	defer w.client.CloseIdleConnections()
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-begun
		cancel()
	}()
	p := make([]byte, 64<<20)
	if _, err := send(t, w, ctx, s.URL, p); err == nil {
		t.Fatal("the request did not end")
	}
	clear(p)
}

// roundTrip is a transport.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestWireSentAgain: a body that net/http asks for once more, because a connection was closed, is the same bytes, and like the first
// one nobody reads it when the request has ended.
func TestWireSentAgain(t *testing.T) {
	p := []byte("four pages")
	var again io.ReadCloser
	w := &wire{client: &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		if _, err := io.ReadFull(r.Body, make([]byte, 4)); err != nil {
			t.Error(err)
		}
		var err error
		if again, err = r.GetBody(); err != nil {
			t.Fatal(err)
		}
		head := make([]byte, 4)
		if _, err := io.ReadFull(again, head); err != nil || string(head) != "four" {
			t.Errorf("sent again: %q, %v", head, err)
		}
		return &http.Response{StatusCode: http.StatusCreated, Body: io.NopCloser(bytes.NewReader(nil)), Request: r}, nil
	})}}
	if _, err := send(t, w, t.Context(), "http://127.0.0.1/", p); err != nil {
		t.Fatal(err)
	}
	if n, err := again.Read(make([]byte, 4)); n != 0 || err != http.ErrBodyReadAfterClose {
		t.Errorf("after the request %d bytes are read, %v", n, err)
	}
}
