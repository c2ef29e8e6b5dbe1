package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTableFollowsTheCode: each mutant applies, and all of them compile, as many
// at a time as touch different places.
func TestTableFollowsTheCode(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	var overlays []map[string]string
	for _, m := range mutants {
		src, err := os.ReadFile(filepath.Join(root, m.file))
		if err != nil {
			t.Fatal(err)
		}
		changed, err := m.apply(string(src))
		if err != nil {
			t.Error(err)
			continue
		}
		if names[m.name] || changed == string(src) || !strings.HasPrefix(m.test[strings.LastIndex(m.test, " ")+1:], "./") {
			t.Errorf("%s: its name is taken, it changes nothing, or its test ends with no package", m.name)
		}
		names[m.name] = true
		for i := 0; ; i++ {
			if i == len(overlays) {
				overlays = append(overlays, map[string]string{})
			}
			if overlays[i][m.file] == "" {
				overlays[i][m.file] = changed
				break
			}
			if both, err := m.apply(overlays[i][m.file]); err == nil {
				overlays[i][m.file] = both
				break
			}
		}
	}
	if len(names) < 50 {
		t.Errorf("only %d mutants", len(names))
	}
	for _, overlay := range overlays {
		if out, err := goTool(root, t.TempDir(), overlay, "build", "./logserver/...", "./witness"); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	}
}

// TestOutcomes: killed, survived, and the ways of not being a mutant at all.
func TestOutcomes(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": "module example.com/m\n\ngo 1.26\n",
		"m.go":   "package m\n\nfunc Less(a, b int) bool { return a < b }\n\nfunc Unused() int { return 1 }\n",
		"m_test.go": "package m\n\nimport \"testing\"\n\n" +
			"func TestLess(t *testing.T) {\n\tif Less(1, 1) {\n\t\tt.Error()\n\t}\n}\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, row := range []struct {
		m    mutant
		dead bool
		err  string
	}{
		{mutant{"killed", "m.go", "a < b", "a <= b", "-run TestLess ."}, true, ""},
		{mutant{"survives", "m.go", "return 1", "return 2", "-run TestLess ."}, false, ""},
		{mutant{"rotten", "m.go", "a > b", "a >= b", "-run TestLess ."}, false, "stands 0 times"},
		{mutant{"twice", "m.go", "return", "", "-run TestLess ."}, false, "stands 2 times"},
		{mutant{"no go", "m.go", "a < b", "a <", "-run TestLess ."}, false, "does not compile"},
		{mutant{"no test", "m.go", "a < b", "a <= b", "-run TestMore ."}, false, "no such test"},
	} {
		dead, out, err := row.m.try(root, t.TempDir())
		if dead != row.dead || (err == nil) != (row.err == "") || err != nil && !strings.Contains(err.Error(), row.err) {
			t.Errorf("%s: %v, %v\n%s", row.m.name, dead, err, out)
		}
	}
}
