package main

// FAULTS c2: a log and three real witnesses, each in a network namespace of its
// own: cut off, flapping, losing packets.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/logserver"
	"github.com/portbook/portbook/logserver/audit"
	"github.com/portbook/portbook/witness"
)

// farWitness is a witness in a network namespace.
type farWitness struct {
	t         *testing.T
	namespace string
	address   string // HOST:PORT
	key       *c2sp.Key
}

// in runs a command in a network namespace.
func (w *farWitness) in(args ...string) {
	w.t.Helper()
	if out, err := exec.Command("ip", append([]string{"netns", "exec", w.namespace}, args...)...).CombinedOutput(); err != nil {
		w.t.Fatalf("%v: %v: %s", args, err, out)
	}
}

// drop loses the packets from the log that match; "" is all. heal ends it.
func (w *farWitness) drop(match string) {
	w.t.Helper()
	w.in("nft", "flush ruleset; add table ip t; add chain ip t in { type filter hook input priority 0 ; }; add rule ip t in "+match+" drop")
}

func (w *farWitness) heal() { w.t.Helper(); w.in("nft", "flush ruleset") }

// newFarWitness makes namespace number i and a witness in it, which knows the log.
func newFarWitness(t *testing.T, i int, log *c2sp.Key) *farWitness {
	t.Helper()
	tag := fmt.Sprintf("pb%d-%d", os.Getpid()%100000, i)
	w := &farWitness{t: t, namespace: tag, address: fmt.Sprintf("10.213.%d.2:7380", i)}
	ip := func(line string) error {
		out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip %s: %w: %s", line, err, out)
		}
		return nil
	}
	err := ip("netns add " + tag)
	if err == nil {
		t.Cleanup(func() { ip("netns del " + tag) }) // and its end of the cable, which takes the other along
		err = ip(fmt.Sprintf("link add %sa type veth peer name %sb netns %s", tag, tag, tag))
	}
	if err != nil {
		t.Skipf("a partition needs network namespaces and veth: %v", err)
	}
	for _, line := range []string{
		fmt.Sprintf("addr add 10.213.%d.1/30 dev %sa", i, tag), fmt.Sprintf("link set %sa up", tag),
		fmt.Sprintf("-n %s addr add 10.213.%d.2/30 dev %sb", tag, i, tag), fmt.Sprintf("-n %s link set %sb up", tag, tag),
	} {
		if err := ip(line); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("ip", "netns", "exec", tag, "nft", "list ruleset").CombinedOutput(); err != nil {
		t.Skipf("a partition needs nftables in the kernel: %v: %s", err, out)
	}
	dir := filepath.Join(t.TempDir(), "w")
	d, err := witness.CreateDir(t.Context(), dir, fmt.Sprintf("witness.example/w%d", i), time.Now())
	if err == nil {
		w.key = d.Signer.Key()
		err = d.Store.CreateMark(t.Context(), filepath.Join(dir, witness.MarkFile))
	}
	if err == nil {
		_, err = d.Store.AddLog(t.Context(), log.Name(), []*c2sp.Key{log})
	}
	if err = errors.Join(err, d.Close()); err != nil {
		t.Fatal(err)
	}
	self, err := exec.LookPath("portbook-witness") // TestMain put this very binary there
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("ip", "netns", "exec", tag, self, "serve", "--dir", dir, "--mark-beside", "--listen", w.address)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Signal(syscall.SIGKILL); cmd.Wait() })
	if status, text, err := exchange(starting, "GET", "http://"+w.address+"/healthz", nil); status != 200 || err != nil {
		t.Fatal(status, text, err)
	}
	return w
}

func TestPartition(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it is about other processes, which the race detector does not see")
	}
	if os.Geteuid() != 0 {
		t.Skip("a partition needs root, for network namespaces")
	}
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip("a partition needs " + tool + " (Debian: iproute2, nftables)")
		}
	}
	signer, err := c2sp.GenerateSigner("log.example/test", c2sp.AlgEd25519)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	logDir := filepath.Join(dir, "log")
	if err := logserver.Init(t.Context(), logDir, filepath.Join(dir, "anchor"), signer.Key()); err != nil {
		t.Fatal(err)
	}
	var far []*farWitness
	text := ""
	for i := range 3 {
		w := newFarWitness(t, i, signer.Key())
		text += fmt.Sprintf("witness w%d %s http://%s\n", i, w.key, w.address)
		far = append(far, w)
	}
	policy, err := c2sp.ParsePolicy([]byte("log " + signer.Key().String() + "\n" + text + "group g 2 w0 w1 w2\nquorum g\n"))
	if err != nil {
		t.Fatal(err)
	}
	log, err := logserver.Open(t.Context(), logserver.Config{Dir: logDir, Signer: signer, Policy: policy, AnchorBeside: true,
		Interval: 10 * time.Millisecond, RoundLimit: time.Second, MaxWait: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()

	// Every acknowledgement is verified, so each has its quorum; all checkpoints
	// that anybody saw are held against the log in the end.
	var mu sync.Mutex
	var seen []audit.Seen
	saw := func(from string, raw []byte, published bool) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, audit.Seen{From: from, Raw: raw, Published: published})
	}
	by := logserver.Credential{ID: "test", Registry: "index.example", Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}}
	ctx, stop := context.WithCancel(t.Context())
	var working sync.WaitGroup
	defer working.Wait()
	defer stop()
	acked := make(chan uint64)
	for caller := range 4 {
		working.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				e := &entry.Entry{Kind: entry.KindUpload, Ecosystem: entry.PyPI, Project: "demo", Version: "1.0", File: fmt.Sprintf("demo-%d.%d.tar.gz", caller, n),
					Size: entry.Uint(3), SHA256: strings.Repeat("ab", 32), Time: "2026-11-21T05:00:00Z"}
				ack, err := log.Submit(ctx, by, e, logserver.Cosigned)
				if err != nil {
					n-- // the same again
					time.Sleep(5 * time.Millisecond)
					continue
				}
				v, err := policy.Verify(ack.Proof.Checkpoint)
				if err == nil {
					err = c2sp.VerifyInclusion(ack.Index, v.Size, entry.LeafHash(ack.Proof.Extra), ack.Proof.Hashes, v.Root)
				}
				if err != nil {
					t.Errorf("an acknowledgement of %s that does not verify: %v", e.File, err)
				}
				saw("an acknowledgement", ack.Proof.Checkpoint, true)
				select {
				case acked <- ack.Index:
				case <-ctx.Done():
				}
			}
		})
	}
	held := func(w *farWitness) uint64 { // what a witness has cosigned
		status, text, err := exchange(0, "GET", "http://"+w.address+"/"+c2sp.OriginHash(signer.Key().Name())+"/checkpoint", nil)
		if err != nil || status != 200 {
			return 0
		}
		saw(w.namespace, []byte(text), false)
		note, err := c2sp.ParseNote([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		cp, err := c2sp.ParseCheckpoint(note.Text)
		if err != nil {
			t.Fatal(err)
		}
		return cp.Size
	}
	const limit = 30 * time.Second // the aim is 10 s; this machine may be busy with other tests
	// goesOn waits for acknowledgements of entries that were submitted from now on,
	// and for the witnesses to have them.
	goesOn := func(after string, with ...*farWitness) {
		t.Helper()
		start := time.Now()
		timeout := time.After(limit)
		var last uint64
		for range 12 { // of 4 callers: at most 4 were on their way
			select {
			case index := <-acked:
				last = max(last, index)
			case <-timeout:
				t.Fatalf("%s: no acknowledgement for %v: %v", after, limit, log.Ready())
			}
		}
		for _, w := range with {
			for held(w) <= last {
				select {
				case <-acked:
				case <-timeout:
					t.Fatalf("%s: %s has not caught up with %d in %v", after, w.namespace, last, limit)
				}
			}
		}
		t.Logf("%s: caught up with %d entries after %v", after, last+1, time.Since(start).Round(time.Millisecond))
	}
	goesOn("at first", far...)

	far[0].drop("")
	goesOn("one witness is cut off", far[1:]...)

	far[1].drop("")
	for deadline := time.After(limit); ; { // what was cosigned before the cut may be published yet
		select {
		case <-acked:
			continue
		case <-time.After(1500 * time.Millisecond): // longer than a round
		case <-deadline:
			t.Fatal("acknowledgements go on without a quorum")
		}
		break
	}
	size := log.Published().Size
	if err := log.Ready(); err == nil {
		t.Error("two of three witnesses are cut off, and the log says it is ready")
	}
	select {
	case index := <-acked:
		t.Errorf("entry %d is acknowledged without a quorum", index)
	case <-time.After(500 * time.Millisecond):
	}
	if now := log.Published().Size; now != size {
		t.Errorf("it published %d after %d, without a quorum", now, size)
	}
	far[0].heal()
	far[1].heal()
	goesOn("healed", far...)

	for range 10 {
		far[0].drop("")
		far[2].drop("")
		drain(acked, 50*time.Millisecond)
		far[0].heal()
		far[2].heal()
		drain(acked, 30*time.Millisecond)
	}
	goesOn("flapping", far...)

	for _, w := range far {
		w.drop("numgen random mod 10 < 3")
	}
	drain(acked, time.Second)
	for _, w := range far {
		w.heal()
	}
	goesOn("a third of the packets lost", far...)

	stop()
	working.Wait()
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	report, err := audit.Run(t.Context(), audit.Config{Dir: logDir, Seen: seen})
	if err != nil || report.Outcome() != audit.AllGood {
		t.Errorf("%v: %+v", err, report)
	}
	t.Logf("%d entries, %d checkpoints seen", report.Size, len(seen))
}

// drain lets callers go on for a time.
func drain(acked <-chan uint64, d time.Duration) {
	for timeout := time.After(d); ; {
		select {
		case <-acked:
		case <-timeout:
			return
		}
	}
}
