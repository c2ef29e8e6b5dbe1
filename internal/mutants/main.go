// Command mutants breaks Portbook's own code on purpose, one line at a time, and
// runs the tests that are there to notice. FAULTS a5.
//
//	go run ./internal/mutants            all, some ten minutes; nothing else may run tests meanwhile
//	go run ./internal/mutants -run NAME  those whose name matches a regular expression
//
// A mutant is killed if it compiles and its tests fail. The command exits with 1
// if one survives, does not compile, or no longer applies to the code: then the
// table (table.go) follows the code, or a test is missing. The tree is not
// changed: the go command is given an overlay.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// mutant is one change for the worse.
type mutant struct {
	name string
	file string // from the root of the module
	old  string // stands in the file exactly once
	new  string
	test string // -run EXPRESSION, or nothing for all tests, and the package
}

// apply returns the file as the mutant has it.
func (m mutant) apply(src string) (string, error) {
	if n := strings.Count(src, m.old); n != 1 {
		return "", fmt.Errorf("%s: %q stands %d times in %s, not once: the table must follow the code", m.name, m.old, n, m.file)
	}
	return strings.Replace(src, m.old, m.new, 1), nil
}

// goTool runs the go command in root, on the files of overlay (path: content)
// instead of those that are there.
func goTool(root, temp string, overlay map[string]string, args ...string) ([]byte, error) {
	replace := map[string]string{}
	for file, content := range overlay {
		path := filepath.Join(temp, strings.ReplaceAll(file, "/", "_"))
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			return nil, err
		}
		replace[filepath.Join(root, filepath.FromSlash(file))] = path
	}
	raw, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return nil, err
	}
	list := filepath.Join(temp, "overlay.json")
	if err := os.WriteFile(list, raw, 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command("go", append([]string{args[0], "-overlay", list}, args[1:]...)...)
	cmd.Dir = root
	return cmd.CombinedOutput()
}

// try reports whether the mutant's tests fail; an error says that they could not
// tell.
func (m mutant) try(root, temp string) (killed bool, out []byte, err error) {
	src, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(m.file)))
	if err != nil {
		return false, nil, err
	}
	changed, err := m.apply(string(src))
	if err != nil {
		return false, nil, err
	}
	args := strings.Fields(m.test)
	pkg, args := args[len(args)-1], args[:len(args)-1]
	program := filepath.Join(temp, "test")
	if out, err := goTool(root, temp, map[string]string{m.file: changed}, "test", "-c", "-o", program, pkg); err != nil {
		return false, out, fmt.Errorf("%s: it does not compile", m.name)
	}
	for i := range args {
		args[i] = strings.Replace(args[i], "-run", "-test.run", 1)
	}
	cmd := exec.Command(program, append(args, "-test.v", "-test.failfast", "-test.timeout=3m")...)
	cmd.Dir = filepath.Join(root, pkg)
	out, err = cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return true, out, nil
	case err != nil:
		return false, out, err
	case !strings.Contains(string(out), "--- PASS"):
		return false, out, fmt.Errorf("%s: there is no such test: %s", m.name, m.test)
	}
	return false, out, nil
}

func main() {
	only := flag.String("run", "", "regular `expression` of the names of those to run")
	flag.Parse()
	if err := run(*only); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(only string) error {
	match, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return fmt.Errorf("go list: %w", err)
	}
	root := strings.TrimSpace(string(out))
	temp, err := os.MkdirTemp("", "mutants-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	killed, bad := 0, 0
	for _, m := range mutants {
		if !match.MatchString(m.name) {
			continue
		}
		start := time.Now()
		dead, out, err := m.try(root, temp)
		switch {
		case err != nil:
			bad++
			fmt.Printf("BROKEN    %s: %v\n%s", m.name, err, out)
		case !dead:
			bad++
			fmt.Printf("SURVIVED  %s (%s): go test %s\n", m.name, m.file, m.test)
		default:
			killed++
			fmt.Printf("killed    %s, %.0f s\n", m.name, time.Since(start).Seconds())
		}
	}
	fmt.Printf("%d mutants, %d killed\n", killed+bad, killed)
	if bad > 0 || killed == 0 {
		return fmt.Errorf("%d were not killed", bad)
	}
	return nil
}
