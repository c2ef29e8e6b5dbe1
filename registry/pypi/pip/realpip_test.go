package pip

// Our reading of requirement files compared with pip's own parser, over many
// files: what passes here holds nothing that pip would take from elsewhere.

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// parser reads names of requirement files and prints, for each, what pip sees
// in it that is not from the index.
const parser = `
import json, sys
from pip._internal.req.req_file import parse_requirements
from pip._internal.req.constructors import install_req_from_line, install_req_from_editable
import logging; logging.disable(logging.CRITICAL)
class Scope: no_index = False
class Finder:
    def __init__(self):
        self.find_links, self.index_urls, self.search_scope, self.format_control = [], ["index"], Scope(), None
        self.release_control = None
    def set_allow_all_prereleases(self): pass
    def set_prefer_binary(self): pass
bad, read = [], 0
for name in json.load(sys.stdin):
    f = Finder()
    seen = []
    try:
        for r in parse_requirements(name, session=None, finder=f):
            seen.append(r)
        read += 1
    except BaseException: # pip would stop here and install nothing
        continue
    if f.find_links or f.index_urls != ["index"] or f.search_scope.no_index or getattr(f.search_scope, "find_links", []) or getattr(f.search_scope, "index_urls", ["index"]) != ["index"]:
        bad.append([name, "options"])
    for r in seen:
        try:
            q = (install_req_from_editable if r.is_editable else install_req_from_line)(r.requirement)
        except BaseException:
            continue
        if q.link is not None or (q.req is not None and getattr(q.req, "url", None)):
            bad.append([name, r.requirement])
json.dump({"bad": bad, "read": read}, sys.stdout)
`

func TestRealPipReadsTheSame(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"evil", "ile"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"lantern-9.9-py3-none-any.whl", "evil/setup.py", "lantern.zip"} {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "links.txt"), []byte("--find-links evil\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	var files []string
	locals := 0
	pass := func(text string) {
		name := filepath.Join(dir, fmt.Sprintf("r%d.txt", len(files)))
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		local, err := Check([]string{"install", "-r", name})
		switch {
		case err != nil:
		case len(local) > 0:
			locals++
		default:
			files = append(files, name)
		}
	}
	for _, text := range disguised {
		pass(text)
	}
	if len(files) > 0 {
		t.Errorf("%d of the known disguises pass", len(files))
	}
	parts := []string{"\n", "\n", "\n", "\r", "\r\n", " ", " ", "\t", "\\", "\\\n", " \\\n", "#", "# c", "-", "--", "-f", "-f evil", "--find-links", "--find-links evil", "--find-links=evil", "evil", "links.txt",
		"lantern", "lantern", "lantern==1.0", "lantern>=1 ; python_version > \"3\"", "lantern-9.9-py3-none-any.whl", "lantern.zip", "[foo]", "[", "]", ";", "; python_version>'3'", "@", " @ ", "file:", "file:///evil.whl",
		"-e", "-e evil", "-r", "-r links.txt", "-rlinks.txt", "-c", "--c", "--requirement", "=", "--pre", "--hash=sha256:00", "--no-binary", ":all:", "-C", "-C a=b", "--global-option", "\"", "'", "$", "{", "}",
		"${GIT_ALLOW_PROTOCOL}", "${GIT_ALLOW_", "PROTOCOL}", "-${GIT_ALLOW_PROTOCOL}", "# coding: utf-7\n", "# coding: utf-8\n", "coding=latin-1", "+AC0ALQ-find-links evil", "\u2028", "\u0085", "\f", "\v", "\x1f", "\x1c",
		"\ufeff", "é", "Å", "\u00a0", "git+https://e/x", "git:x#egg=x", "https://e/", "--trusted-host h", "--extra-index-url", "http://e", "-i", "--pre --no-index"}
	r := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		var b strings.Builder
		for range 1 + r.IntN(7) {
			b.WriteString(parts[r.IntN(len(parts))])
		}
		pass(b.String())
	}
	if len(files) < 1000 || locals < 100 {
		t.Errorf("only %d files passed, %d with local paths: this shows nothing", len(files), locals)
	}
	in, err := json.Marshal(files)
	if err != nil {
		t.Fatal(err)
	}
	pips := 0
	for _, python := range []string{"/usr/bin/python3", "python3"} {
		if exec.Command(python, "-m", "pip", "--version").Run() != nil {
			continue
		}
		for _, locale := range []string{"C.UTF-8", "C"} {
			pips++
			cmd := exec.Command(python, "-W", "ignore", "-c", parser)
			cmd.Env = []string{"GIT_ALLOW_PROTOCOL=file", "PATH=" + os.Getenv("PATH"), "LC_ALL=" + locale, "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0", "HOME=" + dir}
			cmd.Stdin = strings.NewReader(string(in))
			var errs strings.Builder
			cmd.Stderr = &errs
			out, err := cmd.Output()
			var got struct {
				Bad  [][2]string
				Read int
			}
			if err != nil || json.Unmarshal(out, &got) != nil {
				t.Fatalf("%s: %v\n%s", python, err, errs.String())
			}
			if got.Read < len(files)/10 {
				t.Errorf("pip read only %d of %d files: this shows nothing", got.Read, len(files))
			}
			for i, bad := range got.Bad {
				if i == 10 {
					t.Fatalf("and %d more", len(got.Bad)-i)
				}
				text, _ := os.ReadFile(bad[0])
				t.Errorf("%s: passes although pip sees %s: %q", python, bad[1], text)
			}
		}
	}
	if pips == 0 {
		t.Skip("needs pip (Debian: python3-pip)")
	}
}
