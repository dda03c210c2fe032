package pageblob

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"sitrep/internal/wait"
)

// gate lets a number of requests through at once: fewer after the service said that it is busy, and slowly more while it
// does not. It is shared by everything that one Store does.
type gate struct {
	mu      sync.Mutex
	limit   float64
	max     float64
	busy    int
	waiting []chan struct{}
	slowed  time.Time // when limit was lowered last: requests that were under way together count once
	now     func() time.Time
}

// calm is for how long after a lowered limit further refusals change nothing: they are of requests that were sent before.
const calm = time.Second

func newGate(most int, now func() time.Time) *gate {
	return &gate{limit: max(1, float64(most)/2), max: float64(most), now: now}
}

// enter waits for a place; leave has to be called after it.
func (g *gate) enter(ctx context.Context) error {
	g.mu.Lock()
	if float64(g.busy+1) <= g.limit && len(g.waiting) == 0 {
		g.busy++
		g.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	g.waiting = append(g.waiting, turn)
	g.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, w := range g.waiting {
		if w == turn {
			g.waiting = append(g.waiting[:i], g.waiting[i+1:]...)
			return ctx.Err()
		}
	}
	g.busy-- // the turn came meanwhile
	g.next()
	return ctx.Err()
}

// places is how many requests may be under way at once, now.
func (g *gate) places() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return int(g.limit)
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.busy--
	g.next()
}

// next lets in who may enter. One is always let in.
func (g *gate) next() {
	for len(g.waiting) > 0 && (g.busy == 0 || float64(g.busy+1) <= g.limit) {
		close(g.waiting[0])
		g.waiting = g.waiting[1:]
		g.busy++
	}
}

// answered takes notice of a status.
func (g *gate) answered(status int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch status {
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		if now := g.now(); now.Sub(g.slowed) >= calm {
			g.limit, g.slowed = max(1, g.limit/2), now
		}
	case http.StatusCreated, http.StatusPartialContent, http.StatusOK:
		g.limit = min(g.max, g.limit+1/(4*g.limit))
		g.next()
	}
}

// Do makes a gate a policy of the client: it sees every answer, those that are tried again included.
func (g *gate) Do(req *policy.Request) (*http.Response, error) {
	resp, err := req.Next()
	if err == nil {
		g.answered(resp.StatusCode)
	}
	return resp, err
}

// pacer spreads the requests to one blob over time, because the service refuses what goes beyond a blob's limits. A rate of
// zero or less is none. What was not used within a second is lost.
type pacer struct {
	bytes, requests float64 // per second

	mu   sync.Mutex
	free time.Time // when the next request may start
}

// wait waits until a request of n bytes may start.
func (p *pacer) wait(ctx context.Context, n int64) error {
	var cost time.Duration
	if p.requests > 0 {
		cost = time.Duration(float64(time.Second) / p.requests)
	}
	if p.bytes > 0 {
		cost = max(cost, time.Duration(float64(n)/p.bytes*float64(time.Second)))
	}
	if cost == 0 {
		return ctx.Err()
	}
	p.mu.Lock()
	now := time.Now()
	if oldest := now.Add(-burst); p.free.Before(oldest) {
		p.free = oldest
	}
	pause := p.free.Sub(now)
	p.free = p.free.Add(cost)
	p.mu.Unlock()
	return wait.For(ctx, pause)
}

// burst is for how much time requests may be made up for.
const burst = time.Second
