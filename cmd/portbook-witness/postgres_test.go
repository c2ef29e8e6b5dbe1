package main

// Two real programs that are one witness, on a real PostgreSQL, each of the three
// killed under load.

import (
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/logserver/trillian/trilliantest"
	"github.com/portbook/portbook/witness"
)

// an instance is one of the programs: its directory, mark and address.
type instance struct {
	dir, mark, addr string
	cmd             *exec.Cmd
}

func (i *instance) start(t *testing.T) {
	t.Helper()
	cmd := program(t, "serve", "--dir", i.dir, "--mark", i.mark, "--listen", i.addr)
	t.Cleanup(func() { // of no effect on one that has been killed
		cmd.Process.Kill()
		cmd.Wait()
	})
	i.cmd = cmd
}

// output runs the program to its end and returns what it said.
func output(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("portbook-witness", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestInstancesUnderLoad(t *testing.T) {
	db, err := trilliantest.StartPostgreSQL(t.Context(), nil)
	if trilliantest.Skippable(err) {
		t.Skipf("PostgreSQL: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()

	// As docs/witness.md says: init on one machine, the directory copied to the
	// other, a mark there.
	home := t.TempDir()
	var two []*instance
	for _, name := range []string{"a", "b"} {
		addr, err := freeAddress()
		if err != nil {
			t.Fatal(err)
		}
		two = append(two, &instance{dir: filepath.Join(home, name), mark: filepath.Join(home, name+".mark"), addr: addr})
	}
	a, b := two[0], two[1]
	said := output(t, "init", "--name", "witness.example/w1", "--dir", a.dir, "--mark", a.mark, "--store", db.FrontendURI())
	if !strings.Contains(said, "For each further instance") {
		t.Errorf("init says nothing of further instances:\n%s", said)
	}
	if out, err := exec.Command("cp", "-a", a.dir, b.dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	output(t, "mark", "--dir", b.dir, "--mark", b.mark, "--yes")
	if list := output(t, "instances", "--dir", a.dir); strings.Count(list, "  confirmed\n") != 2 {
		t.Errorf("instances:\n%s", list)
	}
	var logs []*forkingLog
	d, err := witness.OpenDir(b.dir)
	if err != nil {
		t.Fatal(err)
	}
	key := d.Signer.Key()
	for _, origin := range []string{"example.com/log0", "example.com/log1"} {
		l := newForkingLog(origin)
		if _, err := d.Store.AddLog(t.Context(), origin, []*c2sp.Key{l.signer.Key()}); err != nil {
			t.Fatal(err)
		}
		logs = append(logs, l)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}

	a.start(t)
	b.start(t)
	healthy := func() {
		t.Helper()
		for _, i := range two {
			for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				status, text, err := exchange(starting, "GET", "http://"+i.addr+"/healthz", nil)
				if err == nil && status == 200 {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("waited 30 s for %s: %d %s %v", i.dir, status, text, err)
				}
			}
		}
	}
	rnd := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 18))
	for round, victim := range []string{"an instance", "the database", "the other instance", "the database"} {
		healthy()
		for _, l := range logs {
			for _, i := range two {
				if err := l.verify(i.addr); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
			}
		}
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for _, l := range logs {
			for leaf := range byte(4) { // two histories, each through both programs
				wg.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						err := l.extend(two[leaf/2].addr, key, leaf%2)
						if err == nil {
							continue
						}
						if !strings.Contains(err.Error(), "status 500") {
							if _, ok := err.(brokenError); ok {
								t.Errorf("round %d: %v", round, err)
							}
						}
						time.Sleep(5 * time.Millisecond) // whose program is killed tries again
					}
				})
			}
		}
		time.Sleep(time.Duration(100+rnd.IntN(200)) * time.Millisecond)
		switch victim {
		case "the database":
			db.Kill()
			if err := db.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
		default:
			i := a
			if victim == "the other instance" {
				i = b
			}
			i.cmd.Process.Kill()
			i.cmd.Wait()
			time.Sleep(100 * time.Millisecond) // the other one goes on alone
			i.start(t)
		}
		healthy()
		before := logs[0].cosigned()
		for deadline := time.Now().Add(30 * time.Second); logs[0].cosigned() == before; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("round %d: nothing is cosigned any more after %s was killed", round, victim)
			}
		}
		close(stop)
		wg.Wait()
		if t.Failed() {
			return
		}
	}
	healthy()
	total := 0
	for _, l := range logs {
		for _, i := range two {
			if err := l.verify(i.addr); err != nil {
				t.Error(err)
			}
		}
		total += l.cosigned()
	}
	t.Logf("%d cosignatures", total)
}

// cosigned is how many sizes the log has a cosignature for.
func (l *forkingLog) cosigned() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.ledger)
}
