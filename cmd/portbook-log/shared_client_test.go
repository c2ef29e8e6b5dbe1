package main

// The clients of TestSharedFaults are processes of their own, beside the log and
// the test: what they were told is in ledgers that only they write.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/entry"
	pb "github.com/portbook/portbook/proto/portbook/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// faultClient is a client as its process gets it, in JSON as the only argument.
// It works until its standard input ends, and fails with what it could not accept.
type faultClient struct {
	Ledger    string   // what it writes
	Seed      uint64   // from 0 to Clients-1; of the new files those are its own that it is the remainder of
	Clients   int      // how many there are
	Writers   int      // entries that it has on the way
	Frontends []string // gRPC addresses
	Token     string
	Stream    string // if it is set, a gRPC address that leads to any of them: the client logs one named stream there

	ledger *os.File
	n      atomic.Int64 // new files
}

// ledgerLine says what a client is about to submit, or what it was told of it.
type ledgerLine struct {
	At           int64 // unix nanoseconds, when the client began to submit it
	File, Digest string
	Stream       uint64 `json:",omitempty"` // its number in the named stream, from 1

	// Of an answer.
	Code    codes.Code `json:",omitempty"`
	Told    bool       `json:",omitempty"`
	Index   uint64     `json:",omitempty"` // of a refusal, of the entry that it names; else 0
	Proof   []byte     `json:",omitempty"` // nil in a receipt
	Message string     `json:",omitempty"` // of a refusal
}

// startClient starts a client beside the test. The function ends it, and returns
// when it has settled; its complaint fails the test.
func (s *scaled) startClient(l *ledger, c *faultClient) (stop func()) {
	s.t.Helper()
	program, err := exec.LookPath("fault-client") // this test binary: see TestMain
	check(s.t, err)
	c.Ledger, c.Token = filepath.Join(s.dir, fmt.Sprintf("client%d.ledger", c.Seed)), s.token
	if c.Stream != "" {
		c.Ledger = filepath.Join(s.dir, "stream.ledger")
	}
	for _, f := range s.frontends {
		c.Frontends = append(c.Frontends, f.grpc)
	}
	check(s.t, os.WriteFile(c.Ledger, nil, 0o600))
	l.follow(s.t, c.Ledger)
	config, err := json.Marshal(c)
	check(s.t, err)
	cmd := exec.CommandContext(s.t.Context(), program, string(config))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	stdin, err := cmd.StdinPipe()
	check(s.t, err)
	check(s.t, cmd.Start())
	return func() {
		stdin.Close()
		timer := time.AfterFunc(2*time.Minute, func() { cmd.Process.Kill() })
		defer timer.Stop()
		if err := cmd.Wait(); err != nil {
			s.t.Errorf("client with %s: %v\n%s", filepath.Base(c.Ledger), err, out.String())
		}
	}
}

// faultClientMain is the client's process.
func faultClientMain() {
	var c faultClient
	err := json.Unmarshal([]byte(os.Args[1]), &c)
	if err == nil {
		c.ledger, err = os.OpenFile(c.Ledger, os.O_APPEND|os.O_WRONLY, 0)
	}
	if err == nil {
		err = c.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func (c *faultClient) run() error {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() { io.Copy(io.Discard, os.Stdin); stop() }()
	if c.Stream != "" {
		return c.stream(ctx)
	}
	logs := make([]pb.LogClient, len(c.Frontends))
	for i, address := range c.Frontends {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		defer conn.Close()
		logs[i] = pb.NewLogClient(conn)
	}
	errs := make([]error, c.Writers)
	var writers sync.WaitGroup
	for i := range errs {
		writers.Go(func() { errs[i] = c.write(ctx, logs, rand.New(rand.NewPCG(c.Seed, uint64(i)))) })
	}
	writers.Wait()
	return errors.Join(errs...)
}

// note appends a line to the ledger, in one write.
func (c *faultClient) note(line ledgerLine) error {
	raw, err := json.Marshal(&line)
	if err == nil {
		_, err = c.ledger.Write(append(raw, '\n'))
	}
	return err
}

// write submits until ctx ends: new files, files that are logged, here or by
// another client, and other bytes for such; most for an acknowledgement, some for
// a receipt. It asks any frontend, and the next one when that fails.
func (c *faultClient) write(ctx context.Context, logs []pb.LogClient, rnd *rand.Rand) error {
	var err error
	for err == nil && ctx.Err() == nil {
		n, content, wait := c.n.Load(), "right", pb.Wait_COSIGNED
		switch k := rnd.IntN(20); {
		case k < 14 || n == 0:
			n = c.n.Add(1)*int64(c.Clients) + int64(c.Seed)
			if k == 0 {
				wait = pb.Wait_SEQUENCED
			}
		case k < 18:
			n = int64(c.Clients) + rnd.Int64N(n*int64(c.Clients))
		default:
			n, content = int64(c.Clients)+rnd.Int64N(n*int64(c.Clients)), "wrong"
		}
		project := fmt.Sprintf("p%d", n%20)
		err = c.submit(ctx, logs, rnd, wait, content, &pb.Entry{Kind: "upload", Ecosystem: "pypi", Project: project, Version: "1.0",
			File: fmt.Sprintf("%s-%d.tar.gz", project, n), Size: entry.Uint(10), Time: time.Now().UTC().Format(entry.TimeFormat)})
	}
	return err
}

func (c *faultClient) submit(ctx context.Context, logs []pb.LogClient, rnd *rand.Rand, wait pb.Wait, content string, e *pb.Entry) error {
	sum := sha256.Sum256([]byte(content + e.File))
	e.Sha256 = hex.EncodeToString(sum[:])
	line := ledgerLine{At: time.Now().UnixNano(), File: e.File, Digest: e.Sha256}
	if err := c.note(line); err != nil {
		return err
	}
	line.Told = true
	for ctx.Err() == nil {
		i := rnd.IntN(len(logs))
		call, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+c.Token), 12*time.Second)
		res, err := logs[i].Submit(call, &pb.SubmitRequest{Entry: e, Wait: wait})
		cancel()
		switch line.Code = status.Code(err); line.Code {
		case codes.OK:
			line.Index, line.Proof = res.Index, res.Proof
			if (wait == pb.Wait_SEQUENCED) != (len(res.Proof) == 0) {
				return fmt.Errorf("%s at %s: asked to wait %v, and got a proof of %d bytes", e.File, c.Frontends[i], wait, len(res.Proof))
			}
			return c.note(line)
		case codes.AlreadyExists:
			line.Message = err.Error()
			for _, d := range status.Convert(err).Details() {
				if info, ok := d.(*errdetails.ErrorInfo); ok {
					if line.Index, err = strconv.ParseUint(info.Metadata["first_index"], 10, 64); err != nil {
						return fmt.Errorf("%s at %s: a refusal that names no entry: %w", e.File, c.Frontends[i], err)
					}
				}
			}
			return c.note(line)
		case codes.Unavailable, codes.ResourceExhausted, codes.Canceled, codes.DeadlineExceeded:
			time.Sleep(20 * time.Millisecond)
		default:
			return fmt.Errorf("%s at %s: %w", e.File, c.Frontends[i], err)
		}
	}
	return nil
}

// stream logs entries in one named stream until ctx ends, at whichever frontend
// takes its connection, and then finds where it stands at each of them.
func (c *faultClient) stream(ctx context.Context) error {
	var sent, answered uint64
	item := func(n uint64) (*entry.Entry, ledgerLine) {
		sum := sha256.Sum256(fmt.Append(nil, "streamed", n))
		e := &entry.Entry{Kind: entry.KindUpload, Ecosystem: entry.PyPI, Project: "streamed", Version: "1.0", File: fmt.Sprintf("streamed-%d.tar.gz", n),
			Size: entry.Uint(1), SHA256: hex.EncodeToString(sum[:]), Time: "2026-11-21T05:00:00Z"}
		return e, ledgerLine{At: time.Now().UnixNano(), File: e.File, Digest: e.SHA256, Stream: n}
	}
	run := func(address string, o submit.StreamOptions, next func() (*entry.Entry, error)) error {
		log, err := submit.Dial("http://"+address, c.Token)
		if err != nil {
			return err
		}
		defer log.Close()
		return log.Stream(context.Background(), o, next, func(position uint64, r submit.Result) error {
			if r.Err != nil || position != answered {
				return fmt.Errorf("answer %d where %d was due: %w", position, answered, r.Err)
			}
			answered++
			_, line := item(answered)
			line.Told, line.Index = true, r.Ack.Index
			return c.note(line)
		})
	}
	o := submit.StreamOptions{Name: "backfill", Wait: submit.Sequenced, Window: 64, Patience: time.Minute}
	err := run(c.Stream, o, func() (*entry.Entry, error) {
		if ctx.Err() != nil {
			return nil, io.EOF
		}
		time.Sleep(2 * time.Millisecond)
		sent++
		e, line := item(sent)
		return e, c.note(line)
	})
	if err != nil || answered != sent {
		return fmt.Errorf("stream: %d of %d answered: %w", answered, sent, err)
	}
	for _, address := range c.Frontends {
		o.From = func(accepted uint64) error {
			if accepted != sent {
				return fmt.Errorf("it says that it stands at %d, it was answered %d", accepted, sent)
			}
			return nil
		}
		if err := run(address, o, func() (*entry.Entry, error) { return nil, io.EOF }); err != nil {
			return fmt.Errorf("stream at %s: %w", address, err)
		}
	}
	return nil
}

// balancer leads each connection to another frontend, and takes it elsewhere after
// two seconds. It counts what it led, by frontend.
func (s *scaled) balancer(ctx context.Context, l *ledger) string {
	s.t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	check(s.t, err)
	context.AfterFunc(ctx, func() { lis.Close() })
	go func() {
		for n := 0; ; n++ {
			in, err := lis.Accept()
			if err != nil {
				return
			}
			f := s.frontends[n%len(s.frontends)]
			out, err := net.Dial("tcp", f.grpc)
			if err != nil {
				in.Close()
				continue
			}
			l.mu.Lock()
			l.calls[f.name]++
			l.mu.Unlock()
			time.AfterFunc(2*time.Second, func() { in.Close(); out.Close() })
			go func() { io.Copy(in, out); in.Close() }()
			go func() { io.Copy(out, in); out.Close() }()
		}
	}()
	return lis.Addr().String()
}

// ledger is what clients were told, as their files have it, and what anybody has seen.
type ledger struct {
	files    []*ledgerFile
	begun    map[string]int64  // unix nanoseconds at which it was first submitted, by file and digest
	acks     map[string]uint64 // index by file and digest
	leaves   map[uint64][]byte // acknowledged, by index
	receipts map[uint64]string // file and digest by index
	pinned   map[string]string // digest by file, of what was acknowledged or has a receipt
	refused  []ledgerLine
	streamed uint64 // answers of the stream
	newest   int64  // unix nanoseconds at which the newest of what was acknowledged was first submitted

	mu    sync.Mutex
	last  map[string]uint64              // guarded by mu; size, by who showed it
	roots map[uint64]map[[32]byte]string // guarded by mu; by size
	calls map[string]int                 // guarded by mu; of the stream, by frontend
	wrong []string                       // guarded by mu
}

func newLedger() *ledger {
	return &ledger{begun: map[string]int64{}, acks: map[string]uint64{}, leaves: map[uint64][]byte{}, receipts: map[uint64]string{}, pinned: map[string]string{},
		last: map[string]uint64{}, roots: map[uint64]map[[32]byte]string{}, calls: map[string]int{}}
}

func (l *ledger) fault(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faultHeld(format, args...)
}

// faultHeld is fault where l.mu is held.
func (l *ledger) faultHeld(format string, args ...any) {
	if len(l.wrong) < 20 {
		l.wrong = append(l.wrong, fmt.Sprintf(format, args...))
	}
}

// saw is a checkpoint that somebody showed.
func (l *ledger) saw(who string, raw []byte) {
	note, err := c2sp.ParseNote(raw)
	if err != nil {
		return
	}
	cp, err := c2sp.ParseCheckpoint(note.Text)
	if err != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if cp.Size < l.last[who] && who != "directory" && who != "acknowledgements" { // a paused publisher may set it back for a moment; these come in any order
		l.faultHeld("%s went from size %d back to %d", who, l.last[who], cp.Size)
	}
	l.last[who] = cp.Size
	if l.roots[cp.Size] == nil {
		l.roots[cp.Size] = map[[32]byte]string{}
	}
	if l.roots[cp.Size][cp.Root] = who; len(l.roots[cp.Size]) > 1 {
		l.faultHeld("size %d has several roots: %v", cp.Size, l.roots[cp.Size])
	}
}

// follow makes l read what a client writes to path, up to the last whole line.
func (l *ledger) follow(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	check(t, err)
	t.Cleanup(func() { f.Close() })
	l.files = append(l.files, &ledgerFile{File: f})
}

// ledgerFile is a client's ledger, as far as it was read.
type ledgerFile struct {
	*os.File
	rest []byte // an unfinished line
}

// read takes in what the clients have written since.
func (l *ledger) read(s *scaled) {
	s.t.Helper()
	var told []ledgerLine
	for _, f := range l.files {
		more, err := io.ReadAll(f)
		check(s.t, err)
		f.rest = append(f.rest, more...)
		for {
			raw, rest, whole := bytes.Cut(f.rest, []byte("\n"))
			if !whole {
				break
			}
			f.rest = rest
			var line ledgerLine
			if err := json.Unmarshal(raw, &line); err != nil {
				s.t.Fatalf("%s: %q: %v", f.Name(), raw, err)
			}
			if line.Told {
				told = append(told, line)
			} else if was, ok := l.begun[line.key()]; !ok || line.At < was {
				l.begun[line.key()] = line.At
			}
		}
	}
	for _, line := range told { // after all that was begun: several clients submit one file
		switch begun, ok := l.begun[line.key()]; {
		case !ok:
			l.fault("%s was answered and not submitted", line.key())
		case line.Code == codes.AlreadyExists:
			l.refused = append(l.refused, line)
		case line.Proof != nil:
			l.acknowledged(s.policy, line)
			l.newest = max(l.newest, begun)
		default:
			l.receipt(line)
		}
	}
}

func (line *ledgerLine) key() string { return line.File + " " + line.Digest }

// acknowledged checks an acknowledgement as a reader would.
func (l *ledger) acknowledged(policy *c2sp.Policy, line ledgerLine) {
	p, err := c2sp.ParseProof(line.Proof)
	var v *c2sp.Verified
	if err == nil {
		v, err = policy.Verify(p.Checkpoint)
	}
	if err == nil {
		err = c2sp.VerifyInclusion(p.Index, v.Size, entry.LeafHash(p.Extra), p.Hashes, v.Root)
	}
	if err == nil && (p.Index != line.Index || !strings.Contains(string(p.Extra), line.Digest) || !strings.Contains(string(p.Extra), `"`+line.File+`"`)) {
		err = errors.New("the proof is of something else")
	}
	if err != nil {
		l.fault("%s: %v", line.File, err)
		return
	}
	l.saw("acknowledgements", p.Checkpoint)
	if was, ok := l.acks[line.key()]; ok && was != line.Index {
		l.fault("%s has the indexes %d and %d", line.key(), was, line.Index)
	}
	if was, ok := l.leaves[line.Index]; ok && string(was) != string(p.Extra) {
		l.fault("index %d was acknowledged for two entries", line.Index)
	}
	l.acks[line.key()], l.leaves[line.Index] = line.Index, p.Extra
	l.pin(line)
}

// receipt notes one; settle looks whether the log keeps it.
func (l *ledger) receipt(line ledgerLine) {
	if was, twice := l.receipts[line.Index]; twice && was != line.key() {
		l.fault("index %d has receipts for %s and for %s", line.Index, was, line.key())
	}
	l.receipts[line.Index] = line.key()
	l.pin(line)
	if line.Stream > 0 {
		if l.streamed++; line.Stream != l.streamed {
			l.fault("answer %d of the stream is of entry %d", l.streamed, line.Stream)
		}
	}
}

func (l *ledger) pin(line ledgerLine) {
	if was, ok := l.pinned[line.File]; ok && was != line.Digest {
		l.fault("%s was let in with two digests", line.File)
	}
	l.pinned[line.File] = line.Digest
}

// end checks what can be said of the clients' files once all have stopped.
func (l *ledger) end(s *scaled) {
	s.t.Helper()
	l.read(s)
	for _, f := range l.files {
		if len(f.rest) > 0 {
			l.fault("%s ends with %q", f.Name(), f.rest)
		}
	}
	for _, line := range l.refused {
		if l.pinned[line.File] == line.Digest {
			l.fault("%s was let in, and is refused: %s", line.key(), line.Message)
		}
		if leaf, ok := l.leaves[line.Index]; ok && !strings.Contains(string(leaf), `"`+line.File+`"`) {
			l.fault("the refusal of %s names entry %d, which is of another file", line.File, line.Index)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s.t.Logf("a named stream was answered %d times, over calls of %v", l.streamed, l.calls)
	if len(l.calls) < len(s.frontends) || l.streamed < 100 {
		l.faultHeld("stream: %d entries over %v: that shows nothing", l.streamed, l.calls)
	}
	if len(l.refused) == 0 || uint64(len(l.receipts)) <= l.streamed {
		l.faultHeld("%d refusals, %d receipts, %d of them of the stream: that shows nothing", len(l.refused), len(l.receipts), l.streamed)
	}
}

// TestFaultLedger: what clients write down and does not agree is a fault.
func TestFaultLedger(t *testing.T) {
	const begun, told = `{"At":1,"File":"a","Digest":"1"}` + "\n", `{"At":1,"File":"a","Digest":"1","Told":true,"Index":7}` + "\n"
	other := func(line, old, new string) string { return strings.ReplaceAll(line, old, new) }
	for want, text := range map[string]string{
		"answered and not submitted":           told,
		"ends with":                            begun + told[:20],
		"index 7 has receipts for a 1 and for": begun + told + other(begun+told, `"a"`, `"b"`),
		"a was let in with two digests":        begun + told + other(begun+told, `"1"`, `"2"`),
		"a 1 was let in, and is refused":       begun + other(told, `"Index"`, `"Code":6,"Index"`) + told,
		"a: malformed proof":                   begun + other(told, `7}`, `7,"Proof":"AAAA"}`),
		"answer 1 of the stream is of entry 2": begun + other(told, `7}`, `7,"Stream":2}`),
		"that shows nothing":                   begun + told,
	} {
		path := filepath.Join(t.TempDir(), "ledger")
		check(t, os.WriteFile(path, []byte(text), 0o600))
		s, l := &scaled{t: t}, newLedger()
		l.follow(t, path)
		l.end(s)
		if got := strings.Join(l.wrong, "\n"); !strings.Contains(got, want) {
			t.Errorf("want %q, got:\n%s", want, got)
		}
	}
}
