package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestSummarize(t *testing.T) {
	const skip = `{"Action":"output","Package":"p","Test":"TestPip","Output":"    x_test.go:3: needs pip\n"}
{"Action":"skip","Package":"p","Test":"TestPip"}
`
	for _, tc := range []struct {
		name, in string
		ok       bool
		says     []string
	}{
		{"passes, and names what was skipped", `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n" + skip, true, []string{"1 passed, 0 failed, 1 skipped", "p TestPip: needs pip"}},
		{"a failure is shown with its output", `{"Action":"output","Package":"p","Test":"TestA","Output":"boom\n"}
{"Action":"fail","Package":"p","Test":"TestA"}`, false, []string{"FAIL p TestA", "boom", "0 passed, 1 failed"}},
		{"nothing tested is no success", skip, false, []string{"0 passed"}},
		{"a build that fails", `{"Action":"build-output","ImportPath":"p","Output":"p.go:1: no\n"}
{"Action":"fail","Package":"p"}`, false, []string{"p.go:1: no", "1 failed"}},
		{"empty", "", false, []string{"0 passed, 0 failed, 0 skipped"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			if ok := summarize(strings.NewReader(tc.in), &out); ok != tc.ok {
				t.Errorf("summarize says %v, want %v", ok, tc.ok)
			}
			for _, s := range tc.says {
				if !strings.Contains(out.String(), s) {
					t.Errorf("output lacks %q:\n%s", s, &out)
				}
			}
		})
	}
}
