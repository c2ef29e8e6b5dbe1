package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
)

// Two parties who exchange two lines and nothing else: the log's invitation, and
// the witness's answer, of which the log makes its policy. Then it publishes.
func TestTwoPartiesTwoLines(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it is about other processes, which the race detector does not see")
	}
	dir := t.TempDir()
	theirs := filepath.Join(dir, "portbook-log")
	do := func(stdin, name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.Stdin, cmd.Stderr = dir, strings.NewReader(stdin), t.Output()
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s %v: %v\n%s", filepath.Base(name), args, err, out)
		}
		return string(out)
	}
	build := exec.Command("go", "build", "-o", theirs, "github.com/portbook/portbook/cmd/portbook-log")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	witnessAt, httpAt, grpcAt := mustFree(t), mustFree(t), mustFree(t)

	// The log's operator.
	do("", theirs, "init", "--origin", "log.example/two", "--dir", "log", "--anchor", "anchor")
	invitation := do("", theirs, "invite-witness", "--dir", "log", "--url", "http://"+httpAt)
	// The witness's operator, with that line alone.
	do("", "portbook-witness", "init", "--name", "witness.example/w1", "--dir", "w")
	refused := exec.Command("portbook-witness", "add-log", "--dir", "w", invitation)
	refused.Dir, refused.Stdin = dir, strings.NewReader("n\n")
	if out, err := refused.CombinedOutput(); err == nil || !strings.Contains(string(out), "nobody said yes") {
		t.Errorf("added without a yes: %v\n%s", err, out)
	}
	answer := do("y\n", "portbook-witness", "add-log", "--dir", "w", "--url", "http://"+witnessAt, invitation)
	for _, want := range []string{"Log:          log.example/two\n", "Fingerprint:  ", "Checkpoint:   none yet\n", "Read at:      http://" + httpAt + "\n"} {
		if !strings.Contains(answer, want) {
			t.Errorf("the operator is not shown %q:\n%s", want, answer)
		}
	}
	// The log's operator again, with the answer alone.
	policy := ""
	for line := range strings.Lines(answer) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "witness ") {
			policy += line + "\n"
		}
	}
	policy += "group w1 all witness.example/w1 witness.example/w1-mldsa\nquorum w1\n"
	if err := os.WriteFile(filepath.Join(dir, "policy"), []byte(policy), 0o600); err != nil {
		t.Fatal(err)
	}
	serve := func(name string, args ...string) {
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.Stderr = dir, t.Output()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Signal(syscall.SIGTERM)
			if err := cmd.Wait(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	serve("portbook-witness", "serve", "--dir", "w", "--mark-beside", "--listen", witnessAt)
	serve(theirs, "serve", "--dir", "log", "--policy", "policy", "--anchor-beside", "--http", httpAt, "--grpc", grpcAt)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		res, err := http.Get("http://" + httpAt + "/readyz")
		if err == nil {
			res.Body.Close()
			if res.StatusCode == 200 {
				break
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("the log does not publish: %v", err)
		}
	}
	res, err := http.Get("http://" + httpAt + "/checkpoint")
	if err != nil {
		t.Fatal(err)
	}
	note, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	// A second invitation carries the checkpoint, verified.
	i, err := c2sp.ParseInvite(do("", theirs, "invite-witness", "--dir", "log", "--url", "http://"+httpAt))
	if err != nil || i.Checkpoint == nil {
		t.Fatalf("%+v: %v", i, err)
	}
	p, err := c2sp.ParsePolicy([]byte("log " + i.Keys[0].String() + "\n" + policy))
	if err != nil {
		t.Fatal(err)
	}
	if v, err := p.Verify(note); err != nil || len(v.Cosignatures) != 2 {
		t.Errorf("%+v: %v", v, err)
	}
	do("", "portbook-witness", "init", "--name", "witness.example/w2", "--dir", "w2")
	if out := do("y\n", "portbook-witness", "add-log", "--dir", "w2", i.String()); !strings.Contains(out, "Checkpoint:   0 entries, root e3b0c44298fc") {
		t.Errorf("%s", out)
	}
}

func mustFree(t *testing.T) string {
	t.Helper()
	a, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprint(a)
}
