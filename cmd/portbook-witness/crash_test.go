package main

// The real program under load, killed at random moments and started again; and
// with the power of its disks cut.

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/internal/powercut"
	"github.com/portbook/portbook/witness"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/merkle/testonly"
)

var (
	crashRounds = flag.Int("crash.rounds", 8, "how often the witness is killed under load")
	long        = flag.Bool("long", false, "run what takes minutes")
)

// A forkingLog extends its history by one leaf at a time, in two ways at once,
// and hopes that the witness cosigns both.
type forkingLog struct {
	signer *c2sp.Signer

	mu      sync.Mutex
	known   map[[32]byte][]byte // root: leaves, one byte each
	ledger  map[uint64][32]byte // what we hold a cosignature for; size: root
	highest uint64
}

func newForkingLog(origin string) *forkingLog {
	l := &forkingLog{signer: newTestLog(origin, false, 0).signer, known: map[[32]byte][]byte{}, ledger: map[uint64][32]byte{}}
	l.known[c2sp.EmptyRoot] = nil
	return l
}

func treeOf(leaves []byte) *testonly.Tree {
	t := testonly.New(rfc6962.DefaultHasher)
	for i := range leaves {
		t.AppendData(leaves[i : i+1])
	}
	return t
}

// head asks the witness where it stands, and checks that against all it said before.
func (l *forkingLog) head(patience time.Duration, addr string) ([]byte, error) {
	origin := l.signer.Key().Name()
	status, text, err := exchange(patience, "GET", "http://"+addr+"/"+c2sp.OriginHash(origin)+"/checkpoint", nil)
	if err != nil || status == 404 {
		return nil, err
	}
	n, err := c2sp.ParseNote([]byte(text))
	if err != nil {
		return nil, err
	}
	cp, err := c2sp.ParseCheckpoint(n.Text)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	leaves, ok := l.known[cp.Root]
	if !ok || uint64(len(leaves)) != cp.Size {
		return nil, broken("%s: the witness serves a tree of size %d that nobody made", origin, cp.Size)
	}
	return leaves, nil
}

// extend tries one more leaf after what the witness has.
func (l *forkingLog) extend(addr string, key *c2sp.Key, leaf byte) error {
	leaves, err := l.head(0, addr)
	if err != nil {
		return err
	}
	old := uint64(len(leaves))
	next := append(bytes.Clone(leaves), leaf)
	tree := treeOf(next)
	cp := c2sp.Checkpoint{Origin: l.signer.Key().Name(), Size: old + 1, Root: [32]byte(tree.HashAt(old + 1))}
	l.mu.Lock()
	l.known[cp.Root] = next
	l.mu.Unlock()
	status, text, err := exchange(0, "POST", "http://"+addr+"/add-checkpoint", (&testLog{l.signer, tree}).request(old, old+1))
	if err != nil {
		return err // killed before it answered: no cosignature, so no promise
	}
	switch status {
	case 200:
	case 409:
		return nil
	default:
		return broken("%s: status %d: %s", cp.Origin, status, text)
	}
	sigs, err := c2sp.ParseSignatureLines([]byte(text))
	if err != nil {
		return nil // cut off by the kill: no cosignature
	}
	if _, err := key.VerifyNote(cp.Text(), sigs[0]); err != nil {
		return broken("%s: %v", cp.Origin, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if root, ok := l.ledger[cp.Size]; ok && root != cp.Root {
		return broken("%s: TWO ROOTS cosigned for size %d", cp.Origin, cp.Size)
	}
	l.ledger[cp.Size], l.highest = cp.Root, max(l.highest, cp.Size)
	return nil
}

// verify checks that the witness still stands on everything it ever cosigned.
func (l *forkingLog) verify(addr string) error {
	leaves, err := l.head(starting, addr)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if uint64(len(leaves)) < l.highest {
		return broken("%s: the witness is back at size %d; it has cosigned size %d", l.signer.Key().Name(), len(leaves), l.highest)
	}
	tree := treeOf(leaves)
	for size, root := range l.ledger {
		if [32]byte(tree.HashAt(size)) != root {
			return broken("%s: size %d was cosigned with a root that is not in the history", l.signer.Key().Name(), size)
		}
	}
	return nil
}

// brokenError is a promise that the witness broke; other errors are the kill's doing.
type brokenError struct{ error }

func broken(format string, args ...any) error { return brokenError{fmt.Errorf(format, args...)} }

// program starts the real program.
func program(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("portbook-witness", args...) // TestMain put this very binary there
	var journal bytes.Buffer
	cmd.Stderr = &journal
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s\n%s", strings.Join(cmd.Args, " "), journal.String())
		}
	})
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func TestKillUnderLoad(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "w")
	crashes(t, dir, filepath.Join(dir, witness.MarkFile), *crashRounds, func(_ int, cmd *exec.Cmd) { cmd.Process.Kill() })
}

// Under load, the power goes of the witness and of its file system, of its
// mark's, or of both. FAULTS a3.
func TestPowerCut(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it is about another process, which the race detector does not see")
	}
	cuts := 3
	if *long {
		cuts = 50
	}
	for kind := range powercut.Kinds {
		t.Run(kind, func(t *testing.T) {
			disks := []*powercut.Disk{powercut.New(t, kind), powercut.New(t, kind)}
			crashes(t, filepath.Join(disks[0].Dir, "w"), filepath.Join(disks[1].Dir, "mark"), cuts+1, func(round int, cmd *exec.Cmd) {
				cut := disks
				if which := round % 3; which < 2 {
					cut = disks[which : which+1]
				}
				powercut.Crash(t, cmd, cut...)
				markKeepsUp(t, filepath.Join(disks[0].Dir, "w"), filepath.Join(disks[1].Dir, "mark"))
			})
		})
	}
}

// markKeepsUp checks that what was cut lost no more of the mark than the commit
// that was under way: else an old copy of the database would not be known.
func markKeepsUp(t *testing.T, dir, mark string) {
	t.Helper()
	d, err := witness.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	written, err := d.Store.Generation(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(mark)
	if err != nil {
		t.Fatal(err)
	}
	var said uint64
	for _, m := range regexp.MustCompile(`v1\n[0-9a-f]{64}\n([0-9]+)\n`).FindAllSubmatch(raw, -1) {
		n, err := strconv.ParseUint(string(m[1]), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		said = max(said, n)
	}
	if written < said || written > said+1 {
		t.Errorf("the database was written %d times, the mark says %d", written, said)
	}
}

// crashes serves a witness of three logs under load, again and again, until
// crash has ended it, the last time by SIGTERM, and checks what it signed.
func crashes(t *testing.T, dir, mark string, rounds int, crash func(round int, cmd *exec.Cmd)) {
	d, err := witness.CreateDir(context.Background(), dir, "witness.example/w1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Store.CreateMark(context.Background(), mark); err != nil {
		t.Fatal(err)
	}
	key := d.Signer.Key()
	var logs []*forkingLog
	for i := range 3 {
		l := newForkingLog(fmt.Sprintf("example.com/log%d", i))
		if _, err := d.Store.AddLog(context.Background(), l.signer.Key().Name(), []*c2sp.Key{l.signer.Key()}); err != nil {
			t.Fatal(err)
		}
		logs = append(logs, l)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 9))
	for round := range rounds {
		addr, err := freeAddress()
		if err != nil {
			t.Fatal(err)
		}
		cmd := program(t, "serve", "--dir", dir, "--mark", mark, "--mark-beside", "--listen", addr)
		for _, l := range logs {
			if err := l.verify(addr); err != nil {
				t.Fatalf("round %d: after the restart: %v", round, err)
			}
		}
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for _, l := range logs {
			for leaf := range byte(2) {
				wg.Go(func() {
					for {
						select {
						case <-stop:
							return
						default:
						}
						if err := l.extend(addr, key, leaf); err != nil {
							if _, ok := err.(brokenError); ok {
								t.Errorf("round %d: %v", round, err)
							}
							return
						}
					}
				})
			}
		}
		for deadline := time.Now().Add(starting); cosigned(logs) < 3*(round+1) && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond) // a busy machine takes its time to have a load
		}
		time.Sleep(time.Duration(20+rnd.IntN(180)) * time.Millisecond)
		last := round == rounds-1
		if !last {
			crash(round, cmd)
		} else if err := cmd.Process.Signal(syscall.SIGTERM); err != nil { // the last time, politely
			t.Error(err)
		}
		close(stop)
		wg.Wait()
		if err := cmd.Wait(); last && err != nil {
			t.Errorf("SIGTERM under load: %v", err)
		}
		if t.Failed() {
			return
		}
	}

	d, err = witness.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, l := range logs {
		known, err := d.Store.Log(context.Background(), l.signer.Key().Name())
		if err != nil || known.Head == nil || known.Head.Size < l.highest {
			t.Errorf("%s: %+v %v, cosigned %d", l.signer.Key().Name(), known, err, l.highest)
		}
	}
	total := cosigned(logs)
	if total < 3*rounds {
		t.Errorf("only %d cosignatures in %d rounds: that was no load", total, rounds)
	}
	t.Logf("%d crashes, %d cosignatures", rounds-1, total)
}

// cosigned is how many cosignatures logs have got.
func cosigned(logs []*forkingLog) (n int) {
	for _, l := range logs {
		l.mu.Lock()
		n += len(l.ledger)
		l.mu.Unlock()
	}
	return n
}

// A log's request that is in progress when SIGTERM comes is still answered.
func TestSIGTERMAnswersWhatItStarted(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "w")
	d, err := witness.CreateDir(context.Background(), dir, "witness.example/w1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Store.CreateMark(context.Background(), filepath.Join(dir, witness.MarkFile)); err != nil {
		t.Fatal(err)
	}
	l := newTestLog("example.com/log", false, 5)
	if _, err := d.Store.AddLog(context.Background(), "example.com/log", []*c2sp.Key{l.signer.Key()}); err != nil {
		t.Fatal(err)
	}
	d.Close()
	addr, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	cmd := program(t, "serve", "--dir", dir, "--mark-beside", "--listen", addr)
	if status, text, err := exchange(starting, "GET", "http://"+addr+"/healthz", nil); status != 200 || err != nil {
		t.Fatal(status, text, err)
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	body := l.request(0, 5)
	fmt.Fprintf(c, "POST /add-checkpoint HTTP/1.1\r\nHost: w\r\nContent-Length: %d\r\n\r\n%s", len(body), body[:20])
	time.Sleep(50 * time.Millisecond) // half of the request before the signal,
	cmd.Process.Signal(syscall.SIGTERM)
	time.Sleep(200 * time.Millisecond) // half of it after
	c.Write(body[20:])
	got, err := io.ReadAll(c)
	if err != nil || !strings.Contains(string(got), " 200 OK") || !strings.Contains(string(got), "— witness.example/w1 ") {
		t.Errorf("%s %v", got, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}
