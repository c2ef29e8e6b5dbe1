package main

// The commands of docs/keys.md, run as they stand there.

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

var rotationBlock = regexp.MustCompile("(?ms)^```sh rotation\n(.*?)^```$")

// asInScript turns a command of the page into one of the script: no sudo, and
// everything in one directory.
var asInScript = strings.NewReplacer(
	"sudo systemctl stop portbook-log", "kill -INT log",
	"sudo systemctl start portbook-log", "exec portbook-log serve --config etc/log.yaml &log&",
	"sudo -u portbook-log ", "exec ", "sudo -u portbook-witness ", "exec ", "portbook policy", "exec portbook policy",
	"/var/lib/portbook-log", "log", "/var/lib/portbook-witness/", "", "/etc/portbook/", "etc/",
	"--another-key VKEY", "--another-key --yes $VKEY",
)

// TestRunbook runs the script of the runbook with the real programs, and sees
// that it has every command of the page, in the page's order.
func TestRunbook(t *testing.T) {
	const script = "testdata/runbook/rotate_key.txt"
	page, err := os.ReadFile("../../docs/keys.md")
	if err != nil {
		t.Fatal(err)
	}
	rest, err := os.ReadFile(script)
	if err != nil {
		t.Fatal(err)
	}
	commands := 0
	for _, block := range rotationBlock.FindAllStringSubmatch(string(page), -1) {
		for line := range strings.Lines(block[1]) {
			want := asInScript.Replace(strings.TrimSpace(line))
			_, after, ok := strings.Cut("\n"+string(rest), "\n"+want+"\n")
			if !ok {
				t.Fatalf("docs/keys.md says\n  %sthe script has no\n  %s\nat its place", line, want)
			}
			rest = []byte(after)
			commands++
		}
	}
	if commands < 12 {
		t.Fatalf("only %d commands found in docs/keys.md", commands)
	}

	if testing.Short() {
		t.Skip("builds two programs")
	}
	bin := t.TempDir()
	if out, err := exec.Command("go", "build", "-o", bin, "../portbook", "../portbook-witness").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	names := []string{"w1", "w2", "w3"}
	testscript.Run(t, testscript.Params{
		Files: []string{script},
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", bin+string(os.PathListSeparator)+e.Getenv("PATH"))
			for _, name := range append([]string{"HTTP", "GRPC"}, names...) {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					return err
				}
				e.Setenv(name, l.Addr().String())
				if err := l.Close(); err != nil {
					return err
				}
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code": code, "ready": ready, "vkey": vkey, "write": write,
			"chmod-private": func(ts *testscript.TestScript, _ bool, args []string) { ts.Check(os.Chmod(ts.MkAbs(args[0]), 0o600)) },
			"for-each-witness": func(ts *testscript.TestScript, _ bool, args []string) { // exec COMMAND with @ for its name
				for _, name := range names {
					var words []string
					for _, a := range args[1:] {
						words = append(words, strings.ReplaceAll(strings.ReplaceAll(a, "@address", ts.Getenv(name)), "@", name))
					}
					ts.Check(ts.Exec(words[0], words[1:]...))
				}
			},
			"policy": func(ts *testscript.TestScript, _ bool, args []string) { // policy FILE LINE...
				text := os.Expand(strings.Join(args[1:], "\n"), ts.Getenv) + "\n"
				for _, name := range names {
					out, err := exec.Command(filepath.Join(bin, "portbook-witness"), "show", "--dir", ts.MkAbs(name), "--json").Output()
					ts.Check(err)
					var shown struct {
						VKey string `json:"vkey"`
					}
					ts.Check(json.Unmarshal(out, &shown))
					text += fmt.Sprintf("witness %s %s http://%s\n", name, shown.VKey, ts.Getenv(name))
				}
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text+"group two 2 w1 w2 w3\nquorum two\n"), 0o644))
			},
		},
	})
}
