package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// TestWitnessPage: the commands of docs/witness.md that set up a witness and end
// it, as they are printed, one after the other; only the places are others.
func TestWitnessPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/witness.md")
	if err != nil {
		t.Fatal(err)
	}
	work, addr := t.TempDir(), mustFree(t)
	log := newTestLog("log.example/docs", false, 9)
	invite := c2sp.Invite{Keys: []*c2sp.Key{log.signer.Key()}, URL: "https://log.example/docs"}
	places := strings.NewReplacer("/var/lib/portbook-witness", filepath.Join(work, "w"), "/mnt/other-disk", work, "127.0.0.1:7380", addr,
		"portbook-invite/v1 ...", invite.String(), "--out retired.txt", "--yes --out "+filepath.Join(work, "retired.txt"))
	var serving *exec.Cmd
	stop := func() {
		if serving != nil {
			serving.Process.Signal(syscall.SIGTERM)
			if err := serving.Wait(); err != nil {
				t.Errorf("serve: %v", err)
			}
			serving = nil
		}
	}
	defer stop()
	var ran []string
	for _, m := range regexp.MustCompile(`(?m)^    portbook-witness ([a-z-]+) .*$`).FindAllStringSubmatch(string(page), -1) {
		line, verb := places.Replace(strings.TrimSpace(m[0])), m[1]
		switch {
		case verb == "audit", strings.Contains(line, "--bastion"), strings.HasSuffix(line, `\`):
			continue // with tests of their own: they need a log to read, a bastion, a PostgreSQL
		case verb == "serve": // here mark and directory are on one file system
			serving = exec.Command("sh", "-c", "exec "+line+" --mark-beside")
			serving.Stderr = t.Output()
			if err := serving.Start(); err != nil {
				t.Fatal(err)
			}
			if status, text, err := exchange(time.Minute, "POST", "http://"+addr+"/add-checkpoint", log.request(0, 9)); err != nil || status != 200 {
				t.Fatalf("the log asks: %d %s %v", status, text, err)
			}
		default:
			if verb == "retire" {
				stop() // as the page says
			}
			cmd := exec.Command("sh", "-c", line)
			cmd.Stdin = strings.NewReader("y\n")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", line, err, out)
			}
		}
		ran = append(ran, verb)
	}
	if got := strings.Join(ran, " "); got != "init add-log serve bastion-key retire" {
		t.Errorf("the page's commands are %q", got)
	}
	if b, err := os.ReadFile(filepath.Join(work, "retired.txt")); err != nil || !strings.Contains(string(b), "\n| log.example/docs\n| 9\n") {
		t.Errorf("%s %v", b, err)
	}
}
