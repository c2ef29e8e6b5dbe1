package client

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
)

// met collects every code that a test has really met.
var met = struct {
	sync.Mutex
	codes map[string]bool
}{codes: map[string]bool{}}

// forCallers are codes that this package only defines.
var forCallers = []string{CodeNoProof, CodeStale, CodeClock}

// TestMain fails a whole run in which some refusal never happened.
func TestMain(m *testing.M) {
	if os.Getenv(childState) != "" {
		os.Exit(updateInChild())
	}
	code := m.Run()
	whole := flag.Lookup("test.run").Value.String() == "" && flag.Lookup("test.skip").Value.String() == "" && flag.Lookup("test.fuzz").Value.String() == "" && flag.Lookup("test.list").Value.String() == ""
	if code == 0 && whole {
		for c := range explanations {
			if !met.codes[c] && !slices.Contains(forCallers, c) {
				fmt.Printf("FAIL: no test met the code %s\n", c)
				code = 1
			}
		}
	}
	os.Exit(code)
}

// wantRefusal checks that err is a *Refusal with this code.
func wantRefusal(t testing.TB, err error, code string) *Refusal {
	t.Helper()
	var r *Refusal
	if !errors.As(err, &r) || r.Code != code {
		t.Fatalf("got %v, want a refusal %s", err, code)
	}
	if r.Check == "" || r.Detail == "" || !strings.Contains(r.Error(), code) {
		t.Errorf("a refusal that does not say why: %+v", r)
	}
	if r.Tampering() != (code >= "PB200" && code < "PB300") {
		t.Errorf("%s: tampering is %v", code, r.Tampering())
	}
	met.Lock()
	met.codes[code] = true
	met.Unlock()
	return r
}

// wantCannot checks that err is a *CannotCheck with this code, in words that
// accuse nobody.
func wantCannot(t testing.TB, err error, code string) *CannotCheck {
	t.Helper()
	var r *Refusal
	if errors.As(err, &r) {
		t.Fatalf("got the refusal %v, want %s", err, code)
	}
	var c *CannotCheck
	if !errors.As(err, &c) || c.Code != code {
		t.Fatalf("got %v, want %s", err, code)
	}
	for _, word := range []string{": refused", "tamper", "attack", "forged", "fork"} {
		if strings.Contains(strings.ToLower(c.Error()), word) {
			t.Errorf("worded like an attack: %v", c)
		}
	}
	met.Lock()
	met.codes[code] = true
	met.Unlock()
	return c
}

// TestExplanations: one paragraph a code, of at least two whole sentences.
func TestExplanations(t *testing.T) {
	for code, s := range explanations {
		if len(code) != 5 || code[:2] != "PB" || !strings.Contains("123", code[2:3]) {
			t.Errorf("code %q", code)
		}
		if strings.Count(s, ". ") < 1 || !strings.HasSuffix(s, ".") || strings.Contains(s, "\n") || strings.Contains(s, "  ") {
			t.Errorf("%s: not a paragraph: %s", code, s)
		}
		if code[2] == '3' {
			for _, word := range []string{"attack", "forged", "tamper", "swapped", "false"} {
				if strings.Contains(strings.ToLower(s), word) {
					t.Errorf("%s is about infrastructure and says %q", code, word)
				}
			}
		}
		if got, ok := Explain(code); !ok || got != s {
			t.Errorf("Explain(%s) = %q, %v", code, got, ok)
		}
	}
	if _, ok := Explain("PB999"); ok {
		t.Error("PB999 is explained")
	}
}
