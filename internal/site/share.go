package site

import (
	"math"
	"strings"
)

// off is the word for a limit that is none. YAML takes the bare word for a boolean.
func (v value) off() bool {
	return v.n != nil && (v.n.Value == "off" || v.n.Value == "0") && contains([]string{"!!str", "!!bool", "!!int"}, v.n.ShortTag())
}

// percent reads a share such as 50%, or "off", which is 0.
func (v value) percent(def int) int {
	const what = `a share from 1% to 100%, or "off"`
	if v.off() {
		return 0
	}
	s, ok := v.scalar(what, "!!str")
	if !ok {
		return def
	}
	if n, ok := parsePercent(s); ok {
		return n
	}
	v.want(what)
	return def
}

func parsePercent(s string) (int, bool) {
	s, ok := strings.CutSuffix(s, "%")
	n, isNumber := digits(s)
	return int(n), ok && isNumber && n >= 1 && n <= 100
}

// share reads a part of a volume: a share of it, a size, or "off".
func (v value) share(def Share) Share {
	const what = `a share such as 10%, a size such as 5GiB, or "off"`
	if v.off() {
		return Share{}
	}
	s, ok := v.scalar(what, "!!str", "!!int")
	if !ok {
		return def
	}
	if n, ok := parsePercent(s); ok {
		return Share{Percent: n}
	}
	if n, ok := parseSize(s); ok && n > 0 && n < math.MaxInt64 {
		return Share{Bytes: n}
	}
	v.want(what)
	return def
}
