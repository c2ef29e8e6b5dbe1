package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/merkle/testonly"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"portbook-witness": main, "testlog": testlog})
}

// The scripts run the real program; testlog is a log that signs anything.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			addr, err := freeAddress()
			e.Setenv("ADDR", addr)
			second, err2 := freeAddress()
			e.Setenv("ADDR2", second)
			return errors.Join(err, err2)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"chmod-file": func(ts *testscript.TestScript, _ bool, args []string) { // chmod-file MODE FILE
				mode, err := strconv.ParseUint(args[0], 8, 32)
				ts.Check(errors.Join(err, os.Chmod(ts.MkAbs(args[1]), os.FileMode(mode))))
			},
			"env-from": func(ts *testscript.TestScript, _ bool, args []string) { // env-from NAME FILE
				ts.Setenv(args[0], string(bytes.TrimSpace([]byte(ts.ReadFile(args[1])))))
			},
			"mode": func(ts *testscript.TestScript, _ bool, args []string) { // mode WANT FILE...
				for _, f := range args[1:] {
					st, err := os.Lstat(ts.MkAbs(f))
					ts.Check(err)
					if got := fmt.Sprintf("%04o", st.Mode().Perm()); got != args[0] {
						ts.Fatalf("%s has mode %s, want %s", f, got, args[0])
					}
				}
			},
			"policy": func(ts *testscript.TestScript, _ bool, args []string) { // policy FILE: it parses
				_, err := c2sp.ParsePolicy([]byte(ts.ReadFile(args[0])))
				ts.Check(err)
			},
		},
	})
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// A testLog has the leaves "0", "1", ...; an evil one has others from index 3.
// Its key follows from its origin.
type testLog struct {
	signer *c2sp.Signer
	tree   *testonly.Tree
}

func newTestLog(origin string, evil bool, size uint64) *testLog {
	seed := sha256.Sum256([]byte(origin))
	pub := ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey)
	id := sha256.Sum256(append([]byte(origin+"\n\x01"), pub...))
	s, err := c2sp.ParseSKey(fmt.Sprintf("PRIVATE+KEY+%s+%x+%s", origin, id[:4], base64.StdEncoding.EncodeToString(append([]byte{1}, seed[:]...))))
	if err != nil {
		panic(err)
	}
	l := &testLog{s, testonly.New(rfc6962.DefaultHasher)}
	for i := range size {
		leaf := strconv.FormatUint(i, 10)
		if evil && i >= 3 {
			leaf = "evil " + leaf
		}
		l.tree.AppendData([]byte(leaf))
	}
	return l
}

func (l *testLog) checkpoint(size uint64) c2sp.Checkpoint {
	return c2sp.Checkpoint{Origin: l.signer.Key().Name(), Size: size, Root: [32]byte(l.tree.HashAt(size))}
}

func (l *testLog) request(old, size uint64) []byte {
	cp := l.checkpoint(size)
	sig, err := l.signer.Sign(cp.Text())
	if err != nil {
		panic(err)
	}
	a := c2sp.AddCheckpoint{Old: old, Checkpoint: (&c2sp.Note{Text: cp.Text(), Sigs: []c2sp.Signature{sig}}).Bytes()}
	if old > 0 && old < size {
		proof, err := l.tree.ConsistencyProof(old, size)
		if err != nil {
			panic(err)
		}
		for _, h := range proof {
			a.Proof = append(a.Proof, [32]byte(h))
		}
	}
	return a.Bytes()
}

// starting is how long to wait for a server that is just starting.
const starting = 10 * time.Second

// exchange sends one request; patience is how long it waits for a server to be there.
func exchange(patience time.Duration, method, url string, body []byte) (status int, text string, err error) {
	hc := &http.Client{Timeout: 10 * time.Second}
	defer hc.CloseIdleConnections()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		req, err := http.NewRequest(method, url, bytes.NewReader(body))
		if err != nil {
			return 0, "", err
		}
		res, err := hc.Do(req)
		if errors.Is(err, syscall.ECONNREFUSED) && time.Now().Before(deadline) {
			continue
		}
		if err != nil {
			return 0, "", err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		return res.StatusCode, string(b), err
	}
}

// testlog is the program of that name:
//
//	testlog vkey ORIGIN
//	testlog add ADDR ORIGIN OLD SIZE [evil]    prints "STATUS body"
//	testlog read ADDR ORIGIN WITNESS-VKEY      prints "STATUS body", and verifies it
func testlog() {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "testlog:", err)
			os.Exit(1)
		}
	}
	args := os.Args[1:]
	switch args[0] {
	case "vkey":
		fmt.Println(newTestLog(args[1], false, 0).signer.Key())
	case "add":
		old, err := strconv.ParseUint(args[3], 10, 63)
		fail(err)
		size, err := strconv.ParseUint(args[4], 10, 63)
		fail(err)
		l := newTestLog(args[2], len(args) > 5, max(old, size))
		status, text, err := exchange(starting, "POST", "http://"+args[1]+"/add-checkpoint", l.request(old, size))
		fail(err)
		fmt.Printf("%d %s", status, text)
	case "read":
		status, text, err := exchange(starting, "GET", "http://"+args[1]+"/"+c2sp.OriginHash(args[2])+"/checkpoint", nil)
		fail(err)
		fmt.Printf("%d %s", status, text)
		if status == 200 {
			policy := fmt.Sprintf("log %s\nwitness w %s\nquorum w\n", newTestLog(args[2], false, 0).signer.Key(), args[3])
			p, err := c2sp.ParsePolicy([]byte(policy))
			fail(err)
			_, err = p.Verify([]byte(text))
			fail(err)
		}
	default:
		fail(fmt.Errorf("unknown command %q", args[0]))
	}
}
