package logserver

// FAULTS rule 4: one writer, in this process and in others; and suite a1:
// SIGKILL at random moments under 32 writers.

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
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
	"github.com/portbook/portbook/internal/powercut"
	pb "github.com/portbook/portbook/proto/portbook/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

var kills = flag.Int("kills", 15, "rounds of TestKill")

// childMain is what this test binary is when it is run again as a server: args
// are the directory, the key and the policy. It prints its addresses.
func childMain(args []string) error {
	signer, err := c2sp.ParseSKey(args[1])
	if err != nil {
		return err
	}
	policy, err := c2sp.ParsePolicy([]byte(args[2]))
	if err != nil {
		return err
	}
	var rate, inFlight int // 0: as usual
	if limits := os.Getenv(limitsEnv); limits != "" {
		if _, err := fmt.Sscan(limits, &rate, &inFlight); err != nil {
			return err
		}
	}
	l, err := Open(context.Background(), Config{Dir: args[0], MaxRate: rate, MaxInFlight: inFlight, Signer: signer, Policy: policy, AnchorBeside: true,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)), Interval: 10 * time.Millisecond,
		testEnding: func(step string) {
			if step == os.Getenv(dieEnv) {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}})
	if err != nil {
		return err
	}
	g, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	h, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("%s %s\n", g.Addr(), h.Addr())
	return l.Serve(context.Background(), g, h, nil)
}

const (
	childEnv  = "PORTBOOK_LOG_TEST_SERVER"
	limitsEnv = "PORTBOOK_LOG_TEST_LIMITS" // MaxRate and MaxInFlight
	dieEnv    = "PORTBOOK_LOG_TEST_DIE"    // the step of Log.end at which it kills itself
)

type child struct {
	cmd        *exec.Cmd
	grpc, http string
	stderr     *strings.Builder
}

// spawn runs the log in another process; err is what it said if it ended at once.
func (r *rig) spawn() (*child, error) {
	r.t.Helper()
	c := &child{cmd: exec.Command(os.Args[0], r.dir, r.signer.SKey(), r.policy), stderr: &strings.Builder{}}
	c.cmd.Env = append(os.Environ(), childEnv+"=1")
	c.cmd.Stderr = c.stderr
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		c.cmd.Wait()
		return nil, errors.New(c.stderr.String())
	}
	c.grpc, c.http, _ = strings.Cut(strings.TrimSpace(line), " ")
	return c, nil
}

func (c *child) kill() {
	c.cmd.Process.Kill()
	c.cmd.Wait()
}

func TestOneWriter(t *testing.T) {
	r := newRig(t, 1, 1)
	refused := func(what string, start time.Time, err error, holder int) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), fmt.Sprint(holder)) || !strings.Contains(err.Error(), "two writers would fork the log") {
			t.Errorf("%s: %v; want process %d named", what, err, holder)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("%s: refused after %v", what, d)
		}
	}
	l := r.ready()
	start := time.Now()
	_, err := Open(t.Context(), r.config())
	refused("same process", start, err, os.Getpid())
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(r.dir, link); err != nil {
		t.Fatal(err)
	}
	cfg := r.config()
	cfg.Dir = link
	_, err = Open(t.Context(), cfg)
	refused("same process, by a link", start, err, os.Getpid())
	start = time.Now()
	_, err = r.spawn()
	refused("another process", start, err, os.Getpid())

	// A copy of the directory shares the anchor.
	cfg.Dir = filepath.Join(t.TempDir(), "copy")
	copyDir(t, r.dir, cfg.Dir)
	start = time.Now()
	_, err = Open(t.Context(), cfg)
	refused("a copy of the directory", start, err, os.Getpid())
	r.must(l, nth(0))
	l.Close()

	c, err := r.spawn()
	if err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	_, err = Open(t.Context(), r.config())
	refused("held by another process", start, err, c.cmd.Process.Pid)
	c.kill()
	second := r.ready() // the kernel freed the lock
	l.Close()           // closing the first once more takes nothing from the second
	if _, err := Open(t.Context(), r.config()); err == nil {
		t.Error("two logs in one process")
	}
	r.must(second, nth(1))
}

// ledger is what was acknowledged, kept outside of what is killed.
type ledger struct {
	mu      sync.Mutex
	byFile  map[string]uint64 // guarded by mu
	byIndex map[uint64]string // guarded by mu
	leaves  map[uint64]string // guarded by mu
	proofs  [][]byte          // guarded by mu
	seen    map[uint64]string // guarded by mu; roots of checkpoints, by size
}

// TestKill: SIGKILL at random moments. I1-I3 of FAULTS.
func TestKill(t *testing.T) {
	newRig(t, 3, 2).crashes(*kills, func(_ int, c *child) { c.kill() })
}

// TestPowerCut: under load, the power goes of the server and of the log's file
// system, of the anchor's, or of both. FAULTS a3.
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
			r := newRigIn(t, filepath.Join(disks[0].Dir, "log"), filepath.Join(disks[1].Dir, "anchor"), 3, 2)
			r.crashes(cuts, func(round int, c *child) {
				cut := disks
				if which := round % 3; which < 2 {
					cut = disks[which : which+1]
				}
				powercut.Crash(t, c.cmd, cut...)
			})
		})
	}
}

// crashes serves the log under load, again and again, until crash has ended the
// server, and then checks all that was ever seen of it.
func (r *rig) crashes(rounds int, crash func(round int, c *child)) {
	t := r.t
	l := r.ready()
	_, secret, err := l.Tokens.Create(Token{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	verify := r.config().Policy
	verify.Logs = []c2sp.PolicyLog{{Key: r.signer.Key()}}
	book := &ledger{byFile: map[string]uint64{}, byIndex: map[uint64]string{}, leaves: map[uint64]string{}, seen: map[uint64]string{}}
	saw := func(note []byte) {
		v, err := verify.Verify(note)
		if err != nil {
			t.Errorf("a checkpoint that no reader accepts: %v", err)
			return
		}
		book.mu.Lock()
		defer book.mu.Unlock()
		if root, again := book.seen[v.Size]; again && root != string(v.Root[:]) {
			t.Errorf("two roots of size %d: a fork", v.Size)
		}
		book.seen[v.Size] = string(v.Root[:])
	}
	serial := 0
	for round := range rounds {
		c, err := r.spawn()
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		conn, err := grpc.NewClient("passthrough:///"+c.grpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		client := pb.NewLogClient(conn)
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), "authorization", "Bearer "+secret), 20*time.Second)
		var wg sync.WaitGroup
		acked := make(chan struct{}, 1<<16)
		for w := range 32 {
			base, wait := serial+w*1000, pb.Wait_COSIGNED
			if w%4 == 0 {
				wait = pb.Wait_SEQUENCED
			}
			wg.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					e := nth(base + n)
					if n%4 == 3 {
						e = nth(rand.IntN(base + n + 1)) // one that may be there, from this round or before
					}
					res, err := client.Submit(ctx, &pb.SubmitRequest{Entry: pbEntry(e), Wait: wait})
					if err != nil {
						if strings.Contains(err.Error(), "READ_ONLY") || strings.Contains(err.Error(), "starting") || strings.Contains(err.Error(), "waiting") {
							n--
							time.Sleep(5 * time.Millisecond)
						}
						continue
					}
					var p *c2sp.Proof
					if wait == pb.Wait_COSIGNED {
						if p, err = c2sp.ParseProof(res.Proof); err != nil {
							t.Error(err)
							continue
						}
					}
					book.mu.Lock()
					if at, again := book.byFile[e.File]; again && at != res.Index {
						t.Errorf("%s acknowledged at %d and %d", e.File, at, res.Index)
					}
					if was := book.byIndex[res.Index]; was != "" && was != e.File {
						t.Errorf("index %d acknowledged for %s and %s", res.Index, was, e.File)
					}
					book.byFile[e.File], book.byIndex[res.Index] = res.Index, e.File
					if p != nil {
						book.leaves[res.Index] = string(p.Extra)
						book.proofs = append(book.proofs, res.Proof)
					}
					book.mu.Unlock()
					select {
					case acked <- struct{}{}:
					default:
					}
				}
			})
		}
		wg.Go(func() { // the poller
			for ctx.Err() == nil {
				if res := fetch("http://" + c.http + "/checkpoint"); res != nil {
					saw(res)
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
		select {
		case <-acked:
		case <-time.After(10 * time.Second):
			t.Errorf("round %d: not serving after 10 s: %s", round, c.stderr)
		}
		time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond)
		crash(round, c)
		cancel()
		wg.Wait()
		conn.Close()
		serial += 32 * 1000
	}

	l = r.ready()
	r.attributed(book.byIndex, strings.Split(secret, "_")[1])
	t.Logf("%d files acknowledged in %d rounds, %d checkpoints seen", len(book.byFile), rounds, len(book.seen))
	if len(book.byFile) < rounds {
		t.Fatalf("only %d files were acknowledged", len(book.byFile))
	}
	r.must(l, nth(serial+1)) // publishes whatever is integrated
	for _, raw := range book.proofs {
		p, err := c2sp.ParseProof(raw)
		if err != nil {
			t.Fatal(err)
		}
		r.check(&Ack{Index: p.Index, Proof: p})
		saw(p.Checkpoint)
	}
	size := l.Published().Size
	whole := l.freshTree(int64(size))
	err = whole.each(0, func(index int64, leaf []byte) error {
		if want, acked := book.leaves[uint64(index)]; acked && want != string(leaf) {
			t.Errorf("index %d now has another leaf", index)
		}
		if e, err := entry.Parse(leaf); err != nil || book.byIndex[uint64(index)] != "" && e.File != book.byIndex[uint64(index)] {
			t.Errorf("index %d, given to %s, has %+v, %v", index, book.byIndex[uint64(index)], e, err)
		}
		delete(book.byIndex, uint64(index))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for at, root := range book.seen {
		if at > size {
			t.Errorf("size %d was seen, the log has %d", at, size)
			continue
		}
		part := whole
		part.size = int64(at)
		if now, err := part.root(); err != nil || string(now[:]) != root {
			t.Errorf("the checkpoint of size %d is no longer so: %v", at, err)
		}
	}
	n := 0
	for file, index := range book.byFile {
		var k int
		fmt.Sscanf(file[strings.Index(file, "-")+1:], "%d", &k)
		if again, err := r.submit(l, nth(k)); err != nil || again.Index != index {
			t.Errorf("%s moved from %d: %v, %v", file, index, again, err)
		}
		if n++; n == 200 {
			break
		}
	}
	r.replayed(l)
}

// fetch reads url; nil if it is not there.
func fetch(url string) []byte {
	res, err := httpClient.Get(url)
	if err != nil {
		return nil
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != 200 {
		return nil
	}
	return raw
}
