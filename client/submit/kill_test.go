package submit_test

// A named stream while the log's process is ended by SIGKILL, again and again.

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/logserver"
	"github.com/portbook/portbook/witness"
)

const childEnv = "PORTBOOK_SUBMIT_TEST_SERVER"

// TestMain runs, when asked to by TestStreamKilled, a log until it is killed:
// args are the directory, the key and the policy. It prints its gRPC address.
func TestMain(m *testing.M) {
	if os.Getenv(childEnv) == "" {
		os.Exit(m.Run())
	}
	fmt.Fprintln(os.Stderr, childMain(os.Args[1:]))
	os.Exit(1)
}

func childMain(args []string) error {
	signer, err := c2sp.ParseSKey(args[1])
	if err != nil {
		return err
	}
	policy, err := c2sp.ParsePolicy([]byte(args[2]))
	if err != nil {
		return err
	}
	l, err := logserver.Open(context.Background(), logserver.Config{Dir: args[0], Signer: signer, Policy: policy, AnchorBeside: true, Interval: 5 * time.Millisecond})
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
	fmt.Println(g.Addr())
	return l.Serve(context.Background(), g, h, nil)
}

// killable is a log in another process, at one address whatever becomes of it.
type killable struct {
	t           *testing.T
	dir, policy string
	signer      *c2sp.Signer
	token       string
	front       net.Listener // forwards to the process that lives

	mu  sync.Mutex
	to  string    // guarded by mu
	cmd *exec.Cmd // guarded by mu; nil: killed
}

func startKillable(t *testing.T) *killable {
	t.Helper()
	dir := t.TempDir()
	k := &killable{t: t, dir: filepath.Join(dir, "log")}
	var err error
	k.signer, err = c2sp.GenerateSigner("log.example/test", c2sp.AlgEd25519)
	check(t, err)
	check(t, logserver.Init(t.Context(), k.dir, filepath.Join(dir, "anchor"), k.signer.Key()))
	w, err := c2sp.GenerateSigner("witness.example/w", c2sp.AlgEd25519Cosig)
	check(t, err)
	store, err := witness.CreateStore(t.Context(), filepath.Join(dir, "w.db"), []*c2sp.Key{w.Key()}, time.Now())
	check(t, err)
	_, err = store.AddLog(t.Context(), k.signer.Key().Name(), []*c2sp.Key{k.signer.Key()})
	check(t, err)
	wit, err := witness.New(witness.Config{Signer: w, Store: store})
	check(t, err)
	server := httptest.NewServer(wit.Handler())
	k.policy = fmt.Sprintf("log %s\nwitness w %s %s\nquorum w\n", k.signer.Key(), w.Key(), server.URL)
	l := k.open()
	_, k.token, err = l.Tokens.Create(logserver.Token{Registry: registry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}})
	check(t, errors.Join(err, l.Close()))
	k.front, err = net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	go k.forward()
	t.Cleanup(func() { k.kill(); k.front.Close(); server.Close(); store.Close() })
	return k
}

// open opens the log in this process.
func (k *killable) open() *logserver.Log {
	k.t.Helper()
	policy, err := c2sp.ParsePolicy([]byte(k.policy))
	check(k.t, err)
	l, err := logserver.Open(k.t.Context(), logserver.Config{Dir: k.dir, Signer: k.signer, Policy: policy, AnchorBeside: true, Interval: 5 * time.Millisecond})
	check(k.t, err)
	for deadline := time.Now().Add(20 * time.Second); !l.Status().Writable; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			k.t.Fatal(l.Status().Reason)
		}
	}
	return l
}

func (k *killable) forward() {
	for {
		in, err := k.front.Accept()
		if err != nil {
			return
		}
		go func() {
			defer in.Close()
			to := ""
			for range 1000 { // until there is a process
				k.mu.Lock()
				if k.cmd != nil {
					to = k.to
				}
				k.mu.Unlock()
				if to != "" {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				return
			}
			defer out.Close()
			go func() { io.Copy(out, in); out.Close() }()
			io.Copy(in, out)
		}()
	}
}

func (k *killable) spawn() error {
	cmd := exec.Command(os.Args[0], k.dir, k.signer.SKey(), k.policy)
	cmd.Env = append(os.Environ(), childEnv+"=1")
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		cmd.Wait()
		return errors.New(said.String())
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.to, k.cmd = strings.TrimSpace(line), cmd
	return nil
}

func (k *killable) kill() {
	k.mu.Lock()
	cmd := k.cmd
	k.cmd = nil
	k.mu.Unlock()
	if cmd != nil {
		cmd.Process.Kill()
		cmd.Wait()
	}
}

// TestStreamKilled: SIGKILL of the server in the middle of a named stream. A
// caller that goes on, and one that is gone too and begins with nothing but the
// name, both end with all entries logged, each once, at the index that it was
// answered with. Where the stream stands is never less than was answered, and
// never more than is in the log.
func TestStreamKilled(t *testing.T) {
	for _, row := range []struct {
		name   string
		wait   submit.Wait
		begins bool // the caller is gone too
		kills  int
	}{
		{"caller goes on, proofs", submit.Cosigned, false, 2},
		{"caller begins anew, receipts", submit.Sequenced, true, 3},
		{"caller begins anew, proofs", submit.Cosigned, true, 3},
	} {
		t.Run(row.name, func(t *testing.T) {
			k := startKillable(t)
			check(t, k.spawn())
			client, err := submit.Dial("http://"+k.front.Addr().String(), k.token)
			check(t, err)
			defer client.Close()
			const n = 1200
			indexes := map[uint64]uint64{} // of positions that were answered
			accepted := uint64(0)          // where the stream stood last
			var lives []uint64             // how many entries were begun when it was killed
			var respawn sync.WaitGroup
			run := func() error {
				var next uint64
				o := submit.StreamOptions{Name: "backfill", Wait: row.wait, Window: 300, Patience: 20 * time.Second}
				if row.begins {
					o.Patience = -1
				}
				o.From = func(at uint64) error {
					for p := range indexes {
						if p >= at {
							return fmt.Errorf("it stands at %d, and entry %d was answered", at, p)
						}
					}
					if at > n {
						return fmt.Errorf("it stands at %d of %d", at, n)
					}
					next, accepted = at, at
					return nil
				}
				return client.Stream(t.Context(), o, func() (*entry.Entry, error) {
					if next == n {
						return nil, io.EOF
					}
					if len(lives) < row.kills && next >= uint64(len(lives)+1)*n/uint64(row.kills+1) {
						lives = append(lives, next)
						respawn.Go(func() {
							k.kill() // while what was just sent is on its way
							if err := k.spawn(); err != nil {
								t.Errorf("it does not start again: %v", err)
							}
						})
					}
					next++
					return upload(int(next-1), fmt.Sprint(next-1)), nil
				}, func(position uint64, r submit.Result) error {
					if r.Err != nil {
						return fmt.Errorf("answer %d: %w", position, r.Err)
					}
					if (r.Ack.Proof == nil) != (row.wait == submit.Sequenced) {
						t.Errorf("answer %d: a proof of %d bytes", position, len(r.Ack.Proof))
					}
					if was, again := indexes[position]; again && was != r.Ack.Index {
						t.Errorf("entry %d was answered with %d, now with %d", position, was, r.Ack.Index)
					}
					indexes[position] = r.Ack.Index
					return nil
				})
			}
			for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				err := run()
				respawn.Wait()
				if err == nil {
					break
				}
				var out *submit.Unavailable
				if !row.begins || !errors.As(err, &out) || time.Now().After(deadline) {
					t.Fatalf("after %d answers, killed at %d: %v", len(indexes), lives, err)
				}
			}
			if len(lives) != row.kills {
				t.Fatalf("killed at %d", lives)
			}
			k.kill()

			// The log as it is on disk: each entry once, where it was said to be.
			l := k.open()
			defer l.Close()
			if row.begins && accepted == 0 {
				t.Error("the stream was begun anew from 0: nothing was resumed")
			}
			if !row.begins && len(indexes) != n {
				t.Errorf("%d of %d were answered", len(indexes), n)
			}
			by, seen := logserver.Token{ID: "check", Registry: registry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}}, map[uint64]bool{}
			var wg sync.WaitGroup
			got := make([]uint64, n)
			for w := range 50 {
				wg.Go(func() {
					for p := w; p < n; p += 50 {
						again := upload(p, fmt.Sprint(p))
						again.Time = "2026-11-21T06:00:00Z" // the leaf says whether it was there
						ack, err := l.Submit(t.Context(), by, again, logserver.Cosigned)
						if err != nil {
							t.Errorf("entry %d: %v", p, err)
							return
						}
						if strings.Contains(string(ack.Proof.Extra), again.Time) {
							t.Errorf("entry %d was not in the log", p)
						}
						got[p] = ack.Index
					}
				})
			}
			wg.Wait()
			for p, index := range got {
				if was, answered := indexes[uint64(p)]; answered && was != index {
					t.Errorf("entry %d was answered with %d and is at %d", p, was, index)
				}
				if seen[index] {
					t.Errorf("two entries are at %d", index)
				}
				seen[index] = true
			}
			if size := l.Published().Size; size != n {
				t.Errorf("the log has %d entries for %d", size, n)
			}
			t.Logf("killed after %d entries; %d answers were heard", lives, len(indexes))
		})
	}
}
