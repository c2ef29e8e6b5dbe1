// Package deploy_test runs what this directory says: it builds the programs as
// the Dockerfile does, makes a system with setup.sh, starts the services of
// compose.yaml as plain processes, and holds every key and flag in an example
// against the programs' own help. It needs no container engine.
package deploy_test

// This file: the Dockerfile.

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

var programs = []string{"portbook", "portbook-log", "portbook-monitor", "portbook-witness"}

var built = sync.OnceValues(buildAll)

var scratch string // what the tests of this package share, gone when they end

func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("", "portbook-deploy"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(scratch)
	os.Exit(code)
}

// binaries returns the directory of the programs, built once.
func binaries(t *testing.T) string {
	t.Helper()
	dir, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// buildAll runs the Dockerfile's build line, with another /out.
func buildAll() (string, error) {
	lines, err := dockerfile()
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "RUN ") && strings.Contains(l, "go build") })
	if i < 0 || !strings.Contains(lines[i], " -o /out/ ") {
		return "", fmt.Errorf("Dockerfile: no line RUN … go build … -o /out/ …")
	}
	out := filepath.Join(scratch, "bin")
	cmd := exec.Command("sh", "-c", strings.Replace(strings.TrimPrefix(lines[i], "RUN "), " -o /out/ ", " -o '"+out+"/' ", 1))
	cmd.Dir = ".."
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s", lines[i], err, text)
	}
	return out, nil
}

// dockerfile returns the Dockerfile's instructions, one a line.
func dockerfile() ([]string, error) {
	raw, err := os.ReadFile("Dockerfile")
	if err != nil {
		return nil, err
	}
	var list []string
	for line := range strings.Lines(strings.ReplaceAll(string(raw), "\\\n", "")) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			list = append(list, line)
		}
	}
	return list, nil
}

func TestImage(t *testing.T) {
	bin := binaries(t)
	var names []string
	entries, err := os.ReadDir(bin)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
		f, err := elf.Open(filepath.Join(bin, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP {
				t.Errorf("%s is not static: the image has no dynamic loader", e.Name())
			}
		}
		f.Close()
	}
	if !slices.Equal(names, programs) {
		t.Errorf("the image has %q, want %q", names, programs)
	}

	lines, err := dockerfile()
	if err != nil {
		t.Fatal(err)
	}
	last := 0
	for i, l := range lines {
		if strings.HasPrefix(l, "FROM ") {
			last = i
		}
	}
	final := lines[last:]
	if !slices.ContainsFunc(final, func(l string) bool { return regexp.MustCompile(`^USER [1-9]\d*:[1-9]\d*$`).MatchString(l) }) {
		t.Errorf("the last stage does not run as a numbered user other than root:\n%s", strings.Join(final, "\n"))
	}
	for _, l := range final {
		if strings.HasPrefix(l, "RUN ") {
			t.Errorf("%s: there is no shell in the last stage", l)
		}
	}
	version, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	goVersion := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindSubmatch(version)
	if !strings.HasPrefix(lines[0], fmt.Sprintf("FROM golang:%s-", goVersion[1])) {
		t.Errorf("%s, and go.mod says %s", lines[0], goVersion[0])
	}
}
