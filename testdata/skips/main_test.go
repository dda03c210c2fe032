package main

import (
	"strings"
	"testing"
)

func TestSummary(t *testing.T) {
	const in = `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:5: azurite is not installed: npm ci\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:5: about B\n"}
{"Action":"output","Package":"p","Test":"TestB/sub","Output":"    b_test.go:7: azurite is not installed: npm ci\n"}
{"Action":"skip","Package":"p","Test":"TestB/sub"}
{"Action":"pass","Package":"p","Test":"TestB"}
{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}
{"Action":"output","Package":"q","Test":"TestC","Output":"    c_test.go:9: wrong\n"}
{"Action":"fail","Package":"q","Test":"TestC"}
{"Action":"output","Package":"q","Test":"TestD","Output":"panic: no\n"}
{"Action":"output","Package":"q","Test":"TestE","Output":"    e_test.go:1: needs root\n"}
{"Action":"skip","Package":"q","Test":"TestE"}
{"Action":"output","Package":"q","Output":"FAIL\tq\t0.1s\n"}
{"Action":"fail","Package":"q"}
{"ImportPath":"r","Action":"build-output","Output":"r.go:1: syntax error\n"}
not an event
`
	const want = "ok  \tp\t0.1s\n" + `    c_test.go:9: wrong
FAIL	q	0.1s
panic: no
r.go:1: syntax error
not an event

skipped tests: 3
     2  azurite is not installed: npm ci
     1  needs root
`
	var out strings.Builder
	if err := summary(strings.NewReader(in), &out); err != nil || out.String() != want {
		t.Errorf("error %v, summary\n%s\nwant\n%s", err, out.String(), want)
	}
	out.Reset()
	if err := summary(strings.NewReader(""), &out); err != nil || out.String() != "\nno test was skipped\n" {
		t.Errorf("error %v, summary %q", err, out.String())
	}
}
