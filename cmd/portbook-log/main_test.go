package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/entry"
	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"portbook-log": func() { testWorkFactor = 10; main() },
		"fault-client": faultClientMain,
	})
}

// The scripts run the real program.
func TestScripts(t *testing.T) { testscript.Run(t, scripts()) }

// scripts is what all scripts have.
func scripts() testscript.Params {
	return testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			for _, name := range []string{"HTTP", "GRPC", "HTTP2", "GRPC2", "HTTP3", "GRPC3", "ADMIN"} {
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					return err
				}
				e.Setenv(name, l.Addr().String())
				if err := l.Close(); err != nil {
					return err
				}
			}
			e.Setenv("SOFTHSM", softHSM())
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond == "softhsm" {
				return softHSM() != "", nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"witness":      startWitness,
			"bring":        bring,
			"thief":        thief,
			"admin":        admin,
			"certificates": certificates,
			"mtls":         mtls,
			"issuer":       issuer,
			"flood":        flood,
			"token-id":     tokenID,
			// sleep-a-second is how long a running server may take to see a change.
			"sleep-a-second": func(*testscript.TestScript, bool, []string) { time.Sleep(time.Second) },
			"code":           code,
			"env-from":       envFrom,
			"hangup":         hangup,
			"ready":          ready,
			"request":        request,
			"up":             func(ts *testscript.TestScript, _ bool, _ []string) { await(ts, "/healthz") },
			"notready":       func(ts *testscript.TestScript, _ bool, _ []string) { awaitStatus(ts, "/readyz", 503) },
			"vkey":           vkey,
			"submit":         submitOne,
			"age-identity":   ageIdentity,
			"dearmor":        dearmor,
			"chmod-private": func(ts *testscript.TestScript, _ bool, args []string) { // chmod-private FILE
				ts.Check(os.Chmod(ts.MkAbs(args[0]), 0o600))
			},
			"chmod-file": func(ts *testscript.TestScript, _ bool, args []string) { // chmod-file FILE: for all to read
				ts.Check(os.Chmod(ts.MkAbs(args[0]), 0o644))
			},
			"write": write,
			"replace": func(ts *testscript.TestScript, _ bool, args []string) { // replace FILE OLD NEW
				raw := ts.ReadFile(args[0])
				if strings.Count(raw, args[1]) != 1 {
					ts.Fatalf("%s does not hold %q once:\n%s", args[0], args[1], raw)
				}
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Replace(raw, args[1], args[2], 1)), 0o644))
			},
			"spoil": func(ts *testscript.TestScript, _ bool, args []string) { // spoil FILE: one bit
				raw := []byte(ts.ReadFile(args[0]))
				raw[len(raw)/2] ^= 1
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), raw, 0o600))
			},
		},
	}
}

// vkey FILE: of init, key generate or key show, as JSON; sets $VKEY and $ID.
func vkey(ts *testscript.TestScript, _ bool, args []string) {
	var made struct {
		VKey string `json:"vkey"`
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &made))
	ts.Setenv("VKEY", made.VKey)
	key, err := c2sp.ParseVKey(made.VKey)
	ts.Check(err)
	ts.Setenv("ID", fmt.Sprintf("%08x", key.ID()))
}

// write FILE LINE...
func write(ts *testscript.TestScript, _ bool, args []string) {
	text := os.Expand(strings.Join(args[1:], "\n"), ts.Getenv) + "\n"
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(text), 0o600))
}

// code WANT PROGRAM ARGS... checks the exit code.
func code(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		got = fmt.Sprint(exit.ExitCode())
	} else {
		ts.Check(err)
	}
	if got != args[0] {
		ts.Fatalf("exit code %s, want %s", got, args[0])
	}
}

// env-from NAME FILE
func envFrom(ts *testscript.TestScript, _ bool, args []string) {
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile(args[1])))
}

// ready waits until the log takes submissions.
func ready(ts *testscript.TestScript, _ bool, _ []string) { await(ts, "/readyz") }

func await(ts *testscript.TestScript, path string) { awaitStatus(ts, path, 200) }

func awaitStatus(ts *testscript.TestScript, path string, want int) {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		res, err := http.Get("http://" + ts.Getenv("HTTP") + path)
		if err == nil {
			res.Body.Close()
			if res.StatusCode == want {
				return
			}
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s: not %d after 30 s: %v", path, want, err)
		}
	}
}

// admin STATUS PATH asks the private address and prints the answer.
func admin(ts *testscript.TestScript, _ bool, args []string) {
	res, err := http.Get("http://" + ts.Getenv("ADMIN") + args[1])
	ts.Check(err)
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	ts.Check(err)
	fmt.Fprintf(ts.Stdout(), "%s\n", raw)
	if fmt.Sprint(res.StatusCode) != args[0] {
		ts.Fatalf("%d, want %s: %s", res.StatusCode, args[0], raw)
	}
}

// hangup sends SIGHUP to the program in the background and gives it time to act.
func hangup(ts *testscript.TestScript, _ bool, _ []string) {
	for _, c := range ts.BackgroundCmds() {
		ts.Check(c.Process.Signal(syscall.SIGHUP))
	}
	time.Sleep(500 * time.Millisecond) // its answer is in the journal, which a script sees at the end only
}

// request STATUS METHOD PATH TOKEN [BODY] makes a REST call and prints the answer.
func request(ts *testscript.TestScript, _ bool, args []string) {
	var body io.Reader = http.NoBody
	if len(args) > 4 {
		body = bytes.NewReader([]byte(ts.ReadFile(args[4])))
	}
	req, err := http.NewRequest(args[1], "http://"+ts.Getenv("HTTP")+args[2], body)
	ts.Check(err)
	req.Header.Set("Authorization", "Bearer "+args[3])
	res, err := http.DefaultClient.Do(req)
	ts.Check(err)
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	ts.Check(err)
	fmt.Fprintf(ts.Stdout(), "%s\n", raw)
	if fmt.Sprint(res.StatusCode) != args[0] {
		ts.Fatalf("%d, want %s: %s", res.StatusCode, args[0], raw)
	}
}

// submit TOKEN VKEY INDEX logs a file over gRPC and verifies the proof.
func submitOne(ts *testscript.TestScript, _ bool, args []string) {
	c, err := submit.Dial("http://"+ts.Getenv("GRPC"), args[0])
	ts.Check(err)
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ack, err := c.Submit(ctx, &entry.Entry{
		Kind: entry.KindUpload, Ecosystem: entry.PyPI, Project: "demo", Version: "1.0", File: "demo-1.0.tar.gz",
		Size: entry.Uint(3), SHA256: strings.Repeat("ab", 32), Time: "2026-11-21T05:00:00Z",
	})
	ts.Check(err)
	if fmt.Sprint(ack.Index) != args[2] {
		ts.Fatalf("index %d, want %s", ack.Index, args[2])
	}
	policy, err := c2sp.ParsePolicy([]byte("log " + args[1] + "\nquorum none\n"))
	ts.Check(err)
	proof, err := c2sp.ParseProof(ack.Proof)
	ts.Check(err)
	v, err := policy.Verify(proof.Checkpoint)
	ts.Check(err)
	ts.Check(c2sp.VerifyInclusion(proof.Index, v.Size, entry.LeafHash(proof.Extra), proof.Hashes, v.Root))
}
