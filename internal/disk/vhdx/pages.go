package vhdx

import "sync"

const (
	pageSize = 64 * kib
	maxPages = 64 // kept in memory: 4 MiB
)

// page is a piece of a table in memory. dirty has a bit for each of its sectors that differs from the file.
type page struct {
	data  [pageSize]byte
	dirty uint16
}

// pages keeps the pages of the tables (BAT, sector bitmaps) that are in use. Pages are found by their place in the
// file, a multiple of pageSize.
type pages struct {
	v  *view
	mu sync.Mutex
	m  map[int64]*page
}

func newPages(v *view) *pages { return &pages{v: v, m: map[int64]*page{}} }

// at returns the page that holds the byte at off. Its content is not to be changed except by a Writer, which excludes
// its readers.
func (c *pages) at(off int64) (*page, error) {
	off -= off % pageSize
	c.mu.Lock()
	defer c.mu.Unlock()
	if p, ok := c.m[off]; ok {
		return p, nil
	}
	p := new(page)
	if err := c.v.read(p.data[:], off); err != nil {
		return nil, err
	}
	if len(c.m) >= maxPages {
		c.evict()
	}
	c.m[off] = p
	return p, nil
}

// evict forgets some page that can be read again: which one does not matter much.
func (c *pages) evict() {
	for off, p := range c.m {
		if p.dirty == 0 {
			delete(c.m, off)
			return
		}
	}
}

// tail returns what the page that holds off has from there on.
func (c *pages) tail(off int64) ([]byte, error) {
	p, err := c.at(off)
	if err != nil {
		return nil, err
	}
	return p.data[off%pageSize:], nil
}
