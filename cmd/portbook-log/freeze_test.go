package main

// What the scripts about rotation need beside the program: witnesses, and a
// thief of the log's key. And the runbook's commands are those of the scripts.

import (
	"context"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/witness"
	"github.com/rogpeppe/go-internal/testscript"
)

var witnesses sync.Map // *witness.Store, by the address of the witness

// startWitness NAME: sets NAME_URL and NAME_KEY.
func startWitness(ts *testscript.TestScript, _ bool, args []string) {
	signer, err := c2sp.GenerateSigner("witness.example/"+args[0], c2sp.AlgEd25519Cosig)
	ts.Check(err)
	store, err := witness.CreateStore(context.Background(), ts.MkAbs(args[0]+".db"), []*c2sp.Key{signer.Key()}, time.Now())
	ts.Check(err)
	w, err := witness.New(witness.Config{Signer: signer, Store: store})
	ts.Check(err)
	srv := httptest.NewServer(w.Handler())
	ts.Defer(func() { srv.Close(); store.Close() })
	witnesses.Store(srv.URL, store)
	ts.Setenv(args[0]+"_URL", srv.URL)
	ts.Setenv(args[0]+"_KEY", signer.Key().String())
}

// bring VKEY NAME...: as portbook-witness add-log, at each of the witnesses.
func bring(ts *testscript.TestScript, _ bool, args []string) {
	key, err := c2sp.ParseVKey(args[0])
	ts.Check(err)
	for _, name := range args[1:] {
		store, _ := witnesses.Load(ts.Getenv(name + "_URL"))
		_, err := store.(*witness.Store).AddLog(context.Background(), key.Name(), []*c2sp.Key{key})
		ts.Check(err)
	}
}

// thief KEYFILE SIZE FILE signs a tree of its own with somebody's key.
func thief(ts *testscript.TestScript, _ bool, args []string) {
	signer, err := c2sp.ParseSKey(strings.TrimSpace(ts.ReadFile(args[0])))
	ts.Check(err)
	size, err := strconv.ParseUint(args[1], 10, 63)
	ts.Check(err)
	c := c2sp.Checkpoint{Origin: signer.Key().Name(), Size: size, Root: [32]byte{6, 6, 6}}
	sig, err := signer.Sign(c.Text())
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[2]), (&c2sp.Note{Text: c.Text(), Sigs: []c2sp.Signature{sig}}).Bytes(), 0o600))
}

// TestRunbookCommandsRun: each portbook-log command of docs/rotation.md is run,
// with the same flags, by the script of its section.
func TestRunbookCommandsRun(t *testing.T) {
	page, err := os.ReadFile("../../docs/rotation.md")
	if err != nil {
		t.Fatal(err)
	}
	flags := regexp.MustCompile(`--[a-z-]+`)
	form := func(line string) string {
		words := strings.Fields(line)
		i := slices.Index(words, "portbook-log")
		names := flags.FindAllString(line, -1)
		slices.Sort(names)
		names = slices.DeleteFunc(slices.Compact(names), func(f string) bool {
			return slices.Contains([]string{"--http", "--grpc", "--anchor-beside", "--json", "--wait"}, f)
		})
		return words[i+1] + " " + strings.Join(names, " ")
	}
	join := strings.NewReplacer("\\\n", " ")
	n := 0
	for _, section := range regexp.MustCompile("\n##+ ").Split(string(page), -1)[1:] {
		m := regexp.MustCompile("`cmd/portbook-log/testdata/([a-z_/]+\\.txt)`").FindStringSubmatch(section)
		if m == nil {
			continue
		}
		raw, err := os.ReadFile(filepath.Join("testdata", m[1]))
		if err != nil {
			t.Fatal(err)
		}
		run := map[string]bool{}
		for line := range strings.Lines(join.Replace(string(raw))) {
			if strings.HasPrefix(line, "exec portbook-log ") {
				run[form(line)] = true
			}
		}
		for i, block := range strings.Split(section, "```") {
			if i%2 == 0 {
				continue
			}
			for line := range strings.Lines(join.Replace(block)) {
				if strings.HasPrefix(line, "portbook-log ") {
					n++
					if !run[form(line)] {
						t.Errorf("%s does not run: %s", m[1], form(line))
					}
				}
			}
		}
	}
	if n < 10 {
		t.Errorf("only %d commands found", n)
	}
}
