package site

import "testing"

func TestShareOf(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		share        Share
		volume, want int64
	}{
		{DefaultSourceReserve(), 20 * gib, 2 * gib}, {DefaultSourceReserve(), 1000 * gib, 5 * gib}, {Share{}, gib, 0},
		{Share{Percent: 25}, 100 * gib, 25 * gib}, {Share{Bytes: gib}, 2 * gib, gib},
	} {
		if got := c.share.Of(c.volume); (got-c.want)*100 > c.want || (c.want-got)*100 > c.want {
			t.Errorf("%+v of %d is %d, want %d", c.share, c.volume, got, c.want)
		}
	}
}
