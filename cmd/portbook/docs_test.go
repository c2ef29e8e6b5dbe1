package main

// The pages that people follow are tested like code.

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/internal/cli"
)

const docs = "../../docs"

var (
	fence = regexp.MustCompile("(?ms)^```([a-z-]*)\n(.*?)^```$")
	// `package: TestName`, or a script's path.
	testName   = regexp.MustCompile("`([a-z0-9/-]+): (Test\\w+)`")
	scriptName = regexp.MustCompile("`([a-z/-]+/testdata/[\\w/-]+\\.txt(?:ar)?)`")
)

// Every ```policy block of every page is a policy; if what policy check says
// about it stands below, that is what it says; a ```policy-refused block is
// refused as its first line tells.
func TestPolicyExamples(t *testing.T) {
	pages, err := filepath.Glob(docs + "/*.md")
	if err != nil {
		t.Fatal(err)
	}
	pages = append(pages, "../../README.md")
	for i := range pages { // the test changes its directory
		if pages[i], err = filepath.Abs(pages[i]); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		policy := ""
		for _, m := range fence.FindAllStringSubmatch(string(b), -1) {
			lang, text := m[1], m[2]
			switch {
			case lang == "policy":
				n++
				policy = text
				if _, err := c2sp.ParsePolicy([]byte(text)); err != nil {
					t.Errorf("%s: %v in\n%s", page, err, text)
				}
			case lang == "policy-refused":
				n++
				first, _, _ := strings.Cut(text, "\n")
				_, err := c2sp.ParsePolicy([]byte(text))
				if want := strings.TrimPrefix(first, "# "); err == nil || err.Error() != "policy, "+want {
					t.Errorf("%s: %v, want %s", page, err, want)
				}
			case lang == "console" && strings.HasPrefix(text, "$ portbook policy check policy\n"):
				t.Chdir(t.TempDir())
				if err := os.WriteFile("policy", []byte(policy), 0o644); err != nil {
					t.Fatal(err)
				}
				root := rootCmd()
				var out bytes.Buffer
				root.SetOut(&out)
				root.SetErr(&out)
				root.SetArgs([]string{"policy", "check", "policy"})
				cli.Run(context.Background(), root)
				if want := strings.TrimPrefix(text, "$ portbook policy check policy\n"); out.String() != want {
					t.Errorf("%s: policy check says\n%s\nthe page says\n%s", page, out.String(), want)
				}
			}
		}
	}
	if n < 9 {
		t.Errorf("only %d policies found: did the pages move?", n)
	}
}

// Every test that the threat model names exists.
func TestThreatModelNamesRealTests(t *testing.T) {
	b, err := os.ReadFile(docs + "/threat-model.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := testName.FindAllStringSubmatch(string(b), -1)
	for _, m := range tests {
		files, err := filepath.Glob(filepath.Join("../..", m[1], "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, f := range files {
			src, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			found = found || bytes.Contains(src, []byte("\nfunc "+m[2]+"("))
		}
		if !found {
			t.Errorf("there is no test %s in %s", m[2], m[1])
		}
	}
	scripts := scriptName.FindAllStringSubmatch(string(b), -1)
	for _, m := range scripts {
		if _, err := os.Stat(filepath.Join("../..", m[1])); err != nil {
			t.Error(err)
		}
	}
	if len(tests) < 40 || len(scripts) < 8 {
		t.Errorf("%d tests and %d scripts named: did the form of the page change?", len(tests), len(scripts))
	}
	// A row without a test is a claim without a proof.
	for _, line := range strings.Split(string(b), "\n") {
		cells := strings.Split(line, "|")
		if strings.HasPrefix(line, "| ") && len(cells) == 5 && !strings.HasPrefix(cells[1], " threat") &&
			!testName.MatchString(cells[3]) && !scriptName.MatchString(cells[3]) {
			t.Errorf("no test shows this row: %s", line)
		}
	}
}
