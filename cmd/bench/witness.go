package main

// Rows of the witness: witness-1-log, witness-1000-logs, witness-rss-10000-logs.
// Ours is portbook-witness, a process of its own, with its mark on the same disk
// and without limits on logs and clients; the yardstick is litewitness, the same.
// Ours makes two signatures where litewitness makes one.

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/witness/witnesstest"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/merkle/testonly"
)

// benchLog is a log that grows by one entry at a time. All logs have the same
// entries.
type benchLog struct {
	signer *c2sp.Signer
	size   uint64   // at the witness
	bodies [][]byte // requests to come
}

func benchLogs(n int) ([]*benchLog, error) {
	logs := make([]*benchLog, n)
	for i := range logs {
		signer, err := c2sp.GenerateSigner(fmt.Sprintf("log%d.bench.example/", i), c2sp.AlgEd25519)
		if err != nil {
			return nil, err
		}
		logs[i] = &benchLog{signer: signer}
	}
	return logs, nil
}

// grow makes the next requests of each log, n of them.
func grow(tree *testonly.Tree, logs []*benchLog, n int) error {
	for _, l := range logs {
		l.bodies = l.bodies[:0]
		for range n {
			for tree.Size() <= l.size {
				tree.AppendData(fmt.Append(nil, tree.Size()))
			}
			cp := c2sp.Checkpoint{Origin: l.signer.Key().Name(), Size: l.size + 1, Root: [32]byte(tree.HashAt(l.size + 1))}
			sig, err := l.signer.Sign(cp.Text())
			if err != nil {
				return err
			}
			a := c2sp.AddCheckpoint{Old: l.size, Checkpoint: (&c2sp.Note{Text: cp.Text(), Sigs: []c2sp.Signature{sig}}).Bytes()}
			if l.size > 0 {
				proof, err := tree.ConsistencyProof(l.size, l.size+1)
				if err != nil {
					return err
				}
				for _, h := range proof {
					a.Proof = append(a.Proof, [32]byte(h))
				}
			}
			l.bodies, l.size = append(l.bodies, a.Bytes()), l.size+1
		}
	}
	return nil
}

// target is a witness under load, with logs of its own.
type target struct {
	url    string
	logs   []*benchLog
	tree   *testonly.Tree
	client *http.Client
	sigs   int // lines in an answer
}

func newTarget(url string, logs []*benchLog, sigs int) *target {
	return &target{url: url, logs: logs, tree: testonly.New(rfc6962.DefaultHasher), sigs: sigs,
		client: &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: len(logs)}}}
}

// ask sends a request and returns how long the answer took.
func (t *target) ask(ctx context.Context, body []byte) (time.Duration, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url+"/add-checkpoint", bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	res, err := t.client.Do(req)
	if err != nil {
		return 0, err
	}
	answer, err := io.ReadAll(res.Body)
	took := time.Since(begun)
	res.Body.Close()
	if err == nil && (res.StatusCode != http.StatusOK || bytes.Count(answer, []byte("\n")) != t.sigs) {
		err = fmt.Errorf("%s: %d %s", t.url, res.StatusCode, answer)
	}
	return took, err
}

// flood has every log send n checkpoints, each the next one when it has an answer,
// all logs at once.
func (t *target) flood(ctx context.Context, n int) (rate float64, took []time.Duration, err error) {
	if err := grow(t.tree, t.logs, n); err != nil {
		return 0, nil, err
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	begun := time.Now()
	for _, l := range t.logs {
		wg.Go(func() {
			for _, body := range l.bodies {
				d, e := t.ask(ctx, body)
				mu.Lock()
				took = append(took, d)
				if e != nil {
					err = e
				}
				mu.Unlock()
				if e != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return float64(len(took)) / time.Since(begun).Seconds(), took, err
}

// pace has every log send n checkpoints, one in each period, the logs spread over
// it.
func (t *target) pace(ctx context.Context, n int, period time.Duration) (took []time.Duration, err error) {
	if err := grow(t.tree, t.logs, n); err != nil {
		return nil, err
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	begun := time.Now()
	for i, l := range t.logs {
		wg.Go(func() {
			for k, body := range l.bodies {
				due := begun.Add(time.Duration(k)*period + period*time.Duration(i)/time.Duration(len(t.logs)))
				time.Sleep(time.Until(due))
				_, e := t.ask(ctx, body)
				mu.Lock()
				took = append(took, time.Since(due)) // who is late counts from when it was due
				if e != nil {
					err = e
				}
				mu.Unlock()
				if e != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return took, err
}

// portbookWitness is a portbook-witness process.
type portbookWitness struct {
	cmd *exec.Cmd
	url string
}

// startWitness builds portbook-witness, makes a witness in dir that knows the
// logs, and serves it.
func startWitness(ctx context.Context, dir string, logs []*benchLog) (_ *portbookWitness, err error) {
	bin, home, mark, list := filepath.Join(dir, "portbook-witness"), filepath.Join(dir, "w"), filepath.Join(dir, "mark"), filepath.Join(dir, "logs")
	var vkeys bytes.Buffer
	for _, l := range logs {
		fmt.Fprintln(&vkeys, l.signer.Key())
	}
	if err := os.WriteFile(list, vkeys.Bytes(), 0o600); err != nil {
		return nil, err
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", bin, "github.com/portbook/portbook/cmd/portbook-witness")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	for _, cmd := range []*exec.Cmd{build,
		exec.CommandContext(ctx, bin, "init", "--name", "witness.bench.example/w1", "--dir", home, "--mark", mark),
		exec.CommandContext(ctx, bin, "add-log", "--dir", home, "--file", list, "--yes"),
	} {
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
		}
	}
	w := &portbookWitness{cmd: exec.Command(bin, "serve", "--dir", home, "--mark", mark, "--mark-beside", "--listen", "127.0.0.1:0",
		"--per-log", "1e9", "--per-client", "1e9")}
	w.cmd.Stderr = os.Stderr
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := w.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n') // NAME on URL/, logs: N
	_, rest, ok := strings.Cut(line, " on ")
	at, _, _ := strings.Cut(rest, "/,")
	if err != nil || !ok {
		return nil, errors.Join(fmt.Errorf("portbook-witness said %q", line), err, w.stop())
	}
	w.url = at
	return w, nil
}

func (w *portbookWitness) stop() error {
	w.cmd.Process.Signal(os.Interrupt)
	return w.cmd.Wait()
}

// bothWitnesses runs do with a Portbook witness and a litewitness that know the
// same number of logs. Without a litewitness here, theirs is nil and why says so.
func bothWitnesses(ctx context.Context, n int, do func(ours, theirs *target, why error) error) error {
	return inTempDir(func(dir string) error {
		logs, err := benchLogs(n)
		if err != nil {
			return err
		}
		w, err := startWitness(ctx, dir, logs)
		if err != nil {
			return err
		}
		defer w.stop()
		ours := newTarget(w.url, logs, 2)
		defer ours.client.CloseIdleConnections()
		lite, why := witnesstest.StartLitewitness(ctx, "lite.bench.example/w1")
		if why != nil {
			return do(ours, nil, why)
		}
		defer lite.Close()
		if logs, err = benchLogs(n); err != nil {
			return err
		}
		var keys []*c2sp.Key
		for _, l := range logs {
			keys = append(keys, l.signer.Key())
		}
		if err := lite.AddLog(ctx, keys...); err != nil {
			return err
		}
		theirs := newTarget(lite.URL, logs, 1)
		defer theirs.client.CloseIdleConnections()
		return do(ours, theirs, nil)
	})
}

// inTurn floods both, A B A B, after one that warms up.
func inTurn(ctx context.Context, ours, theirs *target, n, rounds int) (a, b []float64, p99a, p99b []time.Duration, err error) {
	for round := range rounds + 1 {
		for _, t := range []*target{ours, theirs} {
			if t == nil {
				continue
			}
			rate, took, err := t.flood(ctx, n)
			if err != nil {
				return nil, nil, nil, nil, err
			}
			switch {
			case round == 0:
			case t == ours:
				a, p99a = append(a, rate), append(p99a, percentile(took, 0.99))
			default:
				b, p99b = append(b, rate), append(p99b, percentile(took, 0.99))
			}
		}
	}
	return a, b, p99a, p99b, nil
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }

func witnessOneLog(ctx context.Context, quick bool) (r Row, err error) {
	n, rounds := 2000, 5
	if quick {
		n, rounds = 400, 3
	}
	err = bothWitnesses(ctx, 1, func(ours, theirs *target, why error) error {
		a, b, p99a, p99b, err := inTurn(ctx, ours, theirs, n, rounds)
		if err != nil {
			return err
		}
		r = Row{Value: median(a), Unit: "cosigned/s", Aim: "ratio >= 1",
			Note: fmt.Sprintf("%d in a row, %d rounds, Ed25519 and ML-DSA-44; p99 %s", n, rounds, ms(percentile(p99a, 0.5)))}
		if theirs == nil {
			r.Note += "; NO YARDSTICK: " + why.Error()
			return nil
		}
		r = r.against("litewitness", median(b))
		r.Note += ", litewitness (Ed25519 alone) " + ms(percentile(p99b, 0.5))
		r.Met = *r.Ratio >= 1
		return nil
	})
	return r, err
}

// witnessManyLogs floods for the rate. While all of 1,000 logs wait at once, the
// time an answer takes is 1,000 over the rate, whatever the witness; so p99 is
// that of logs which send when they have something, evenly spread over time, at half of
// the rate just measured.
func witnessManyLogs(ctx context.Context, quick bool) (r Row, err error) {
	logs, n, rounds, seconds := 1000, 10, 3, 10
	if quick {
		n, rounds, seconds = 2, 2, 4
	}
	err = bothWitnesses(ctx, logs, func(ours, theirs *target, why error) error {
		a, b, p99a, p99b, err := inTurn(ctx, ours, theirs, n, rounds)
		if err != nil {
			return err
		}
		period := time.Duration(2 * float64(logs) / median(a) * float64(time.Second))
		took, err := ours.pace(ctx, int(math.Ceil(float64(seconds)/period.Seconds())), period)
		if err != nil {
			return err
		}
		p99 := percentile(took, 0.99)
		r = Row{Value: median(a), Unit: "cosigned/s", Aim: "ratio >= 5, p99 <= 20 ms",
			Note: fmt.Sprintf("%d logs at once, %d rounds; p99 %s at half of that rate, p50 %s; %s while all wait at once", logs, rounds, ms(p99), ms(percentile(took, 0.5)), ms(percentile(p99a, 0.5)))}
		if theirs == nil {
			r.Note += "; NO YARDSTICK: " + why.Error()
			return nil
		}
		r = r.against("litewitness", median(b))
		r.Note += ", litewitness " + ms(percentile(p99b, 0.5))
		r.Met = *r.Ratio >= 5 && p99 <= 20*time.Millisecond
		return nil
	})
	return r, err
}

// witnessRSS asks each of 10,000 logs once.
func witnessRSS(ctx context.Context, quick bool) (r Row, err error) {
	n := 10_000
	if quick {
		n = 1000
	}
	err = inTempDir(func(dir string) error {
		logs, err := benchLogs(n)
		if err != nil {
			return err
		}
		w, err := startWitness(ctx, dir, logs)
		if err != nil {
			return err
		}
		defer w.stop()
		t := newTarget(w.url, logs, 2)
		defer t.client.CloseIdleConnections()
		if err := grow(t.tree, logs, 1); err != nil {
			return err
		}
		fresh, _ := rss(w.cmd.Process.Pid)
		if err := each(len(logs), func(i int) error { _, err := t.ask(ctx, logs[i].bodies[0]); return err }); err != nil {
			return err
		}
		now, peak := rss(w.cmd.Process.Pid)
		r = Row{Value: peak, Unit: "MiB", Aim: "<= 64", Met: peak > 0 && peak <= 64 && !quick,
			Note: fmt.Sprintf("peak, of the start and of each of %d logs asking once, 64 at a time; at the start %.0f MiB, in the end %.0f MiB", n, fresh, now)}
		return nil
	})
	return r, err
}
