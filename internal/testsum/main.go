// Command testsum reads the output of go test -json, shows what failed, names
// what was skipped, and ends with the counts.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

// event is one line of go test -json.
type event struct {
	Action, Package, Test, Output, ImportPath, FailedBuild string
}

func main() {
	if !summarize(os.Stdin, os.Stdout) {
		os.Exit(1)
	}
}

// summarize reports whether something was tested and nothing failed.
func summarize(in io.Reader, out io.Writer) bool {
	type key struct{ pkg, test string }
	output := map[key][]string{}
	var passed, failed, skipped int
	var skips []string
	sc := bufio.NewScanner(in)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var e event
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			fmt.Fprintln(out, sc.Text()) // not JSON: go itself complains
			continue
		}
		k := key{e.Package, e.Test}
		switch e.Action {
		case "output":
			output[k] = append(output[k], e.Output)
		case "build-output":
			fmt.Fprint(out, e.Output)
		case "pass":
			if e.Test != "" {
				passed++
			} else {
				fmt.Fprint(out, lastLine(output[k]))
			}
			delete(output, k)
		case "skip":
			if e.Test != "" {
				skipped++
				skips = append(skips, fmt.Sprintf("%s %s: %s", short(e.Package), e.Test, reason(output[k])))
			}
			delete(output, k)
		case "fail":
			failed++
			fmt.Fprintf(out, "FAIL %s %s\n%s", short(e.Package), e.Test, strings.Join(output[k], ""))
			delete(output, k)
		}
	}
	if err := sc.Err(); err != nil {
		fmt.Fprintln(out, "reading test output:", err)
		return false
	}
	if len(skips) > 0 {
		fmt.Fprintf(out, "\n%d skipped:\n", skipped)
		for _, s := range skips {
			fmt.Fprintln(out, "  "+s)
		}
	}
	fmt.Fprintf(out, "\n%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	return failed == 0 && passed > 0
}

func short(pkg string) string { return strings.TrimPrefix(pkg, "github.com/portbook/portbook/") }

func lastLine(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return lines[len(lines)-1]
}

// reason is what a skipped test gave as its reason.
func reason(lines []string) string {
	for _, l := range lines {
		l = strings.TrimSpace(l)
		if _, why, ok := strings.Cut(l, ": "); ok && !strings.HasPrefix(l, "---") && !strings.HasPrefix(l, "===") {
			return why
		}
	}
	return "no reason given"
}
