package main

// The scaled-out log with real processes: frontends of this program, Trillian's
// log server and signer, PostgreSQL. Any one of them is killed under load; the
// clients keep their own ledger of what was acknowledged.

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/logserver/trillian/trilliantest"
	pb "github.com/portbook/portbook/proto/portbook/v1"
	"github.com/portbook/portbook/witness"
	"golang.org/x/mod/sumdb/tlog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

var faultRounds = flag.Int("shared-rounds", 1, "how often TestSharedFaults goes through its faults")

var faultLong = flag.Bool("shared-long", false, "go through all faults on MariaDB and a bucket too")

var faultLoad = flag.Int("shared-load", 60, "how many acknowledgements TestSharedFaults waits for between two faults")

// scaled is a log of real processes.
type scaled struct {
	t         *testing.T
	dir       string
	program   string
	db        *trilliantest.PostgreSQL // of the frontends; of Trillian too, unless that is on MariaDB
	engine    trilliantest.Database    // of Trillian
	trillian  *trilliantest.Trillian
	tiles     string                            // --tiles
	beside    func(name string) ([]byte, error) // an object beside the tiles
	vkey      string
	policy    *c2sp.Policy
	token     string
	frontends []*frontend
	witnesses []string
}

// frontend is one portbook-log serve.
type frontend struct {
	name       string
	args       []string
	grpc, http string
	conn       *grpc.ClientConn
	mu         sync.Mutex
	cmd        *exec.Cmd // guarded by mu; nil while it is not running
}

// onDirectory keeps the tiles in a directory, Trillian beside the frontends' tables
// on PostgreSQL.
func (s *scaled) onDirectory() error {
	s.engine, s.tiles = s.db, filepath.Join(s.dir, "tiles")
	s.beside = func(name string) ([]byte, error) { return os.ReadFile(filepath.Join(s.tiles, name)) }
	return os.Mkdir(s.tiles, 0o755)
}

// onBucket keeps the tiles in a bucket, and Trillian on a MariaDB of its own.
func (s *scaled) onBucket() error {
	s3, err := trilliantest.StartS3(s.t.Context())
	if err != nil {
		return err
	}
	s.t.Cleanup(s3.Close)
	if err := s3.MakeBucket("tiles"); err != nil {
		return err
	}
	s.t.Setenv("AWS_ACCESS_KEY_ID", s3.AccessKey)
	s.t.Setenv("AWS_SECRET_ACCESS_KEY", s3.Secret)
	s.tiles = "s3://tiles/log?region=us-east-1&endpoint=http://" + s3.Endpoint
	s.beside = func(name string) ([]byte, error) {
		return os.ReadFile(filepath.Join(s3.BucketDir("tiles"), "log", name))
	}
	db, err := trilliantest.StartMariaDB(s.t.Context(), nil)
	if err != nil {
		return err
	}
	s.engine = db
	s.t.Cleanup(db.Close)
	return nil
}

func newScaled(t *testing.T, on func(*scaled) error) *scaled {
	t.Helper()
	s := &scaled{t: t, dir: t.TempDir()}
	var err error
	if s.db, err = trilliantest.StartPostgreSQL(t.Context(), nil); err == nil {
		t.Cleanup(s.db.Close)
		if err = on(s); err == nil {
			if s.trillian, err = trilliantest.Start(t.Context(), trilliantest.Options{Database: s.engine}); err == nil {
				t.Cleanup(s.trillian.Close)
			}
		}
	}
	if trilliantest.Skippable(err) {
		t.Skipf("a neighbour is absent: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if s.program, err = exec.LookPath("portbook-log"); err != nil { // this test binary, as testscript.Main put it there
		s.program = filepath.Join(s.dir, "portbook-log")
		if out, err := exec.Command("go", "build", "-o", s.program, ".").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	shared := []string{"--storage", "trillian", "--postgres", s.db.FrontendURI(), "--trillian", s.trillian.Conn.Target(), "--tiles", s.tiles}
	keys := filepath.Join(s.dir, "keys")
	out := s.run(append([]string{"init", "--json", "--origin", "log.example/shared", "--dir", keys}, shared...)...)
	s.vkey = between(out, `"vkey":"`, `"`)
	shared = append(shared, "--tree", strings.TrimSuffix(between(out, `"tree":`, "}"), "\n"))
	log, err := c2sp.ParseVKey(s.vkey)
	if err != nil {
		t.Fatalf("%v in %s", err, out)
	}
	lines := ""
	for i := range 3 {
		lines += s.witness(fmt.Sprintf("w%d", i), log)
	}
	lines += "group g 2 w0 w1 w2\nquorum g\n"
	policy := filepath.Join(s.dir, "policy")
	if err := os.WriteFile(policy, []byte(lines), 0o644); err != nil {
		t.Fatal(err)
	}
	if s.policy, err = c2sp.ParsePolicy([]byte(lines)); err != nil {
		t.Fatal(err)
	}
	s.policy.Logs = []c2sp.PolicyLog{{Key: log}}
	s.token = strings.TrimSpace(s.run("token", "create", "--postgres", s.db.FrontendURI(), "--registry", "index.example"))
	for i, more := range [][]string{{"--key", filepath.Join(keys, "log.key")}, {"--key", filepath.Join(keys, "log.key")}, {"--frontend-only"}} {
		f := &frontend{name: fmt.Sprintf("frontend %d", i), grpc: freeAddress(t), http: freeAddress(t)}
		f.args = append(append([]string{"serve", "--dir", filepath.Join(s.dir, fmt.Sprint("frontend", i)), "--policy", policy,
			"--grpc", f.grpc, "--http", f.http, "--publish-interval", "20ms", "--max-wait", "10s"}, shared...), more...)
		if f.conn, err = grpc.NewClient(f.grpc, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
			t.Fatal(err)
		}
		s.frontends = append(s.frontends, f)
		s.start(f)
		t.Cleanup(func() { f.signal(syscall.SIGCONT); f.signal(syscall.SIGKILL); f.conn.Close() })
	}
	for _, f := range s.frontends {
		s.within(30*time.Second, f.name+" to be ready", func() bool { return s.get(f, "/readyz") != nil })
	}
	return s
}

func between(s, from, to string) string {
	_, s, _ = strings.Cut(s, from)
	s, _, _ = strings.Cut(s, to)
	return s
}

func freeAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (s *scaled) run(args ...string) string {
	s.t.Helper()
	cmd := exec.Command(s.program, args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("portbook-log %s: %v\n%s", args[0], err, stderr.String())
	}
	return string(out)
}

// witness starts a witness in this process and returns its policy line.
func (s *scaled) witness(name string, log *c2sp.Key) string {
	s.t.Helper()
	signer, err := c2sp.GenerateSigner("witness.example/"+name, c2sp.AlgEd25519Cosig)
	if err != nil {
		s.t.Fatal(err)
	}
	store, err := witness.CreateStore(s.t.Context(), filepath.Join(s.dir, name+".db"), []*c2sp.Key{signer.Key()}, time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := store.AddLog(s.t.Context(), log.Name(), []*c2sp.Key{log}); err != nil {
		s.t.Fatal(err)
	}
	w, err := witness.New(witness.Config{Signer: signer, Store: store})
	if err != nil {
		s.t.Fatal(err)
	}
	server := httptest.NewServer(w.Handler())
	s.t.Cleanup(func() { server.Close(); store.Close() })
	s.witnesses = append(s.witnesses, server.URL+"/"+c2sp.OriginHash(log.Name())+"/checkpoint")
	return fmt.Sprintf("witness %s %s %s\n", name, signer.Key(), server.URL)
}

func (s *scaled) start(f *frontend) {
	s.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	log, err := os.OpenFile(filepath.Join(s.dir, strings.ReplaceAll(f.name, " ", "")+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	f.cmd = exec.Command(s.program, f.args...)
	f.cmd.Stdout, f.cmd.Stderr = log, log
	if err := f.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
}

func (f *frontend) signal(sig syscall.Signal) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cmd == nil {
		return
	}
	f.cmd.Process.Signal(sig)
	if sig == syscall.SIGKILL {
		f.cmd.Wait()
		f.cmd = nil
	}
}

func (f *frontend) pid() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cmd == nil {
		return 0
	}
	return f.cmd.Process.Pid
}

func (s *scaled) within(d time.Duration, what string, ok func() bool) time.Duration {
	s.t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > d {
			for _, f := range s.frontends {
				raw, _ := os.ReadFile(filepath.Join(s.dir, strings.ReplaceAll(f.name, " ", "")+".log"))
				s.t.Logf("%s:\n%s", f.name, raw[max(0, len(raw)-3000):])
			}
			s.t.Fatalf("waited %v for %s", d, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(start)
}

// get reads from a frontend; nil if it does not answer with 200.
func (s *scaled) get(f *frontend, path string) []byte { return fetch("http://" + f.http + path) }

func fetch(url string) []byte {
	client := http.Client{Timeout: 2 * time.Second}
	res, err := client.Get(url)
	if err != nil {
		return nil
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		return nil
	}
	return raw
}

// publisher is the frontend that was elected last, as the database says.
func (s *scaled) publisher() *frontend {
	s.t.Helper()
	for {
		ctx, cancel := context.WithTimeout(s.t.Context(), 5*time.Second)
		var holder string
		c, err := pgx.Connect(ctx, s.db.FrontendURI())
		if err == nil {
			err = c.QueryRow(ctx, "SELECT holder FROM anchor").Scan(&holder)
			c.Close(ctx)
		}
		cancel()
		if err != nil {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		for _, f := range s.frontends {
			if strings.HasPrefix(holder, "process "+strconv.Itoa(f.pid())+" ") {
				return f
			}
		}
		s.t.Fatalf("nobody of ours is %q", holder)
	}
}

// TestSharedLeakedToken: what docs/running.md says to do when a credential leaks,
// on a shared log.
func TestSharedLeakedToken(t *testing.T) {
	if testing.Short() {
		t.Skip("short: it starts a database, Trillian and three servers")
	}
	s := newScaled(t, (*scaled).onDirectory)
	postgres := []string{"--postgres", s.db.FrontendURI()}
	place := append([]string{"--tiles", filepath.Join(s.dir, "tiles")}, postgres...)
	token := func(args ...string) (out, stderr string, code int) {
		cmd := exec.Command(s.program, append([]string{"token"}, args...)...)
		var o, e strings.Builder
		cmd.Stdout, cmd.Stderr = &o, &e
		if err := cmd.Run(); cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return o.String(), e.String(), cmd.ProcessState.ExitCode()
	}
	made := s.run(append([]string{"token", "create", "--registry", "index.example", "--json"}, postgres...)...)
	stolen, thief := between(made, `"id":"`, `"`), between(made, `"token":"`, `"`)
	submit := func(f *frontend, token, file string) codes.Code {
		sum := sha256.Sum256([]byte(file))
		e := &pb.Entry{Kind: "upload", Ecosystem: "pypi", Project: "demo", Version: "1.0", File: file, Size: entry.Uint(10), Sha256: hex.EncodeToString(sum[:]), Time: "2026-11-21T05:00:00Z"}
		call, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token), 12*time.Second)
		defer cancel()
		_, err := pb.NewLogClient(f.conn).Submit(call, &pb.SubmitRequest{Entry: e})
		return status.Code(err)
	}
	time.Sleep(time.Second) // a frontend knows a new token by then
	for i, step := range []struct{ token, file string }{{s.token, "demo-0.tar.gz"}, {thief, "demo-1.tar.gz"}, {thief, "demo-2.tar.gz"}, {s.token, "demo-2.tar.gz"}, {thief, "demo-0.tar.gz"}} {
		if got := submit(s.frontends[i%3], step.token, step.file); got != codes.OK {
			t.Fatalf("%s: %v", step.file, got)
		}
	}
	want := func(code int, out string, args ...string) {
		t.Helper()
		stdout, stderr, got := token(args...)
		if got != code || !strings.Contains(stdout+stderr, out) {
			t.Errorf("token %v: exit %d, want %d and %q:\n%s%s", args, got, code, out, stdout, stderr)
		}
	}
	dispute := append([]string{"dispute", stolen}, postgres...)
	want(1, "revoke it first", dispute...)
	want(0, "is revoked", append([]string{"revoke", stolen}, postgres...)...)
	out, stderr, code := token(append([]string{"entries", stolen}, place...)...)
	lines := strings.Split(out, "\n")
	if code != 0 || stderr != "" || len(lines) != 4 || !strings.HasPrefix(lines[0], "1 20") || !strings.HasSuffix(lines[0], "Z upload demo demo-1.tar.gz") ||
		!strings.HasSuffix(lines[1], "Z upload demo demo-2.tar.gz") || lines[2] != "2 entries" {
		t.Errorf("exit %d: %q %q", code, out, stderr)
	}
	want(0, `{"index":1,"time":"20`, append([]string{"entries", "--json", stolen}, place...)...)
	want(0, "0 entries", append([]string{"entries", "--unknown"}, place...)...)
	want(0, "0 entries", append([]string{"entries", "--since", "2999-01-01T00:00:00Z", stolen}, place...)...)
	want(1, "no token has the ID", append([]string{"entries", "0000000000000000"}, place...)...)
	want(2, "go together", append([]string{"entries", stolen}, postgres...)...)
	want(2, "go together", "entries", stolen, "--dir", s.dir, "--tiles", filepath.Join(s.dir, "tiles"))
	want(3, "", append([]string{"entries", stolen, "--tiles", s.dir}, postgres...)...) // no tiles there

	want(0, "2 entries of token "+stolen+" would be disputed", dispute...)
	operator := filepath.Join(s.dir, "operator")
	made = s.run(append([]string{"token", "create", "--registry", "index.example", "--kinds", "dispute", "--json"}, postgres...)...)
	if err := os.WriteFile(operator, []byte(between(made, `"token":"`, `"`)), 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	if got := submit(s.frontends[1], thief, "demo-3.tar.gz"); got != codes.Unauthenticated {
		t.Errorf("the thief is told %v", got)
	}
	for range 2 { // the second time nothing more is logged
		want(0, "2 entries are disputed.", append(dispute, "--yes", "--log", "http://"+s.frontends[2].grpc, "--token-file", operator)...)
	}
	mine := append([]string{"entries", between(made, `"id":"`, `"`)}, place...)
	for _, line := range []string{"dispute entry 1\n", "dispute entry 2\n", "\n2 entries\n"} {
		want(0, line, mine...)
	}
}

// TestSharedFaults kills each process in turn under load, and pauses the
// publisher across an election. Nothing acknowledged is lost, nothing forks, and
// publishing resumes.
func TestSharedFaults(t *testing.T) { sharedFaults(t, (*scaled).onDirectory) }

// TestSharedFaultsMariaDBBucket is TestSharedFaults with Trillian on MariaDB, the
// tiles in a bucket, and the frontends' database on PostgreSQL beside them; of the
// faults those that the storage is at stake in, and with -shared-long all.
func TestSharedFaultsMariaDBBucket(t *testing.T) {
	if *faultLong {
		sharedFaults(t, (*scaled).onBucket)
		return
	}
	sharedFaults(t, (*scaled).onBucket, "publisher killed", "Trillian's database killed", "PostgreSQL killed")
}

// sharedFaults goes through the faults with these names, or all.
func sharedFaults(t *testing.T, on func(*scaled) error, only ...string) {
	if testing.Short() {
		t.Skip("short: it starts databases, Trillian and three servers, and kills them")
	}
	s := newScaled(t, on)
	l := newLedger()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var stops []func()
	const clients = 4
	for i := range clients {
		stops = append(stops, s.startClient(l, &faultClient{Seed: uint64(i), Clients: clients, Writers: 6}))
	}
	stops = append(stops, s.startClient(l, &faultClient{Stream: s.balancer(ctx, l)}))
	var looking sync.WaitGroup
	looking.Go(func() {
		for ctx.Err() == nil {
			for _, f := range s.frontends {
				l.saw(f.name, s.get(f, "/checkpoint"))
			}
			for i, url := range s.witnesses {
				l.saw(fmt.Sprintf("witness %d", i), fetch(url))
			}
			raw, _ := s.beside("checkpoint")
			l.saw("directory", raw)
			time.Sleep(10 * time.Millisecond)
		}
	})
	var paused *frontend
	replaced := func() {
		if s.publisher() == paused {
			t.Error("nobody else was elected")
		}
	}
	type fault struct {
		name string
		do   func()
		undo func() // what brings it back; once publishing has resumed without it, unless now
		now  bool   // undo at once, as a supervisor does: there is only one of it
	}
	faults := []fault{
		{name: "publisher killed", do: func() { paused = s.publisher(); paused.signal(syscall.SIGKILL) }, undo: func() { replaced(); s.start(paused) }},
		{name: "frontend killed", do: func() { s.frontends[2].signal(syscall.SIGKILL) }, undo: func() { s.start(s.frontends[2]) }},
		{name: "Trillian signer killed", now: true, do: s.trillian.Signer.Kill, undo: func() { check(t, s.trillian.Signer.Start(t.Context())) }},
		{name: "Trillian log server killed", now: true, do: s.trillian.Servers[0].Kill, undo: func() { check(t, s.trillian.Servers[0].Start(t.Context())) }},
		{name: "PostgreSQL killed", now: true, do: s.db.Server().Kill, undo: func() { check(t, s.db.Server().Start(t.Context())) }},
		{name: "publisher stopped and continued", do: func() { paused = s.publisher(); paused.signal(syscall.SIGSTOP) }, undo: func() { replaced(); paused.signal(syscall.SIGCONT) }},
	}
	if s.engine.Server() != s.db.Server() {
		faults = append(faults, fault{name: "Trillian's database killed", now: true, do: s.engine.Server().Kill, undo: func() { check(t, s.engine.Server().Start(t.Context())) }})
	}
	if len(only) > 0 {
		faults = slices.DeleteFunc(faults, func(f fault) bool { return !slices.Contains(only, f.name) })
		if len(faults) != len(only) {
			t.Fatalf("%d of the faults %q are known", len(faults), only)
		}
	}
	const limit = 30 * time.Second // the aim is 10 s; this machine may be busy with other tests
	for round := range *faultRounds {
		for _, f := range faults {
			resumed := func(after time.Time) func() bool {
				return func() bool { l.read(s); return l.newest > after.UnixNano() }
			}
			count := func() int { l.read(s); return len(l.acks) }
			enough := count() + *faultLoad
			s.within(limit, "load before: "+f.name, func() bool { return count() >= enough })
			at := time.Now()
			f.do()
			done := time.Now() // what is submitted from now on
			if f.now {
				f.undo()
			}
			s.within(limit, "publishing to resume after: "+f.name, resumed(done))
			took := time.Since(at)
			if !f.now {
				f.undo()
			}
			t.Logf("round %d: %s: an entry submitted afterwards was acknowledged %v after the fault; %d acknowledged so far", round, f.name, took.Round(10*time.Millisecond), len(l.acks))
			if took > 10*time.Second {
				t.Logf("that is more than the aim of 10 s")
			}
		}
	}
	for _, f := range s.frontends {
		s.within(limit, f.name+" to be ready again", func() bool { return s.get(f, "/readyz") != nil })
	}
	for _, end := range stops {
		end()
	}
	stop()
	looking.Wait()
	l.end(s)
	s.settle(l)
	newest := slices.Max(slices.Collect(maps.Keys(l.roots)))
	s.within(limit, "the newest checkpoint beside the tiles", func() bool {
		raw, err := s.beside("checkpoint")
		v, verr := s.policy.Verify(raw)
		return err == nil && verr == nil && v.Size >= newest
	})
	s.endKilled(newest)
	for _, w := range l.wrong {
		t.Error(w)
	}
}

// endKilled ends the log, whose publisher is killed as soon as that is decided:
// another one finishes, and the killed one, when it is back, refuses as all do.
func (s *scaled) endKilled(size uint64) {
	s.t.Helper()
	successor, err := c2sp.GenerateSigner("next.example/log", c2sp.AlgEd25519)
	check(s.t, err)
	victim := s.publisher()
	end := exec.Command(s.program, "freeze", "--postgres", s.db.FrontendURI(), "--successor-origin", "next.example/log", "--successor-vkey", successor.Key().String(), "--successor-url", "https://next.example/log")
	var out strings.Builder
	end.Stdout, end.Stderr = &out, &out
	check(s.t, end.Start())
	s.within(30*time.Second, "the decision", func() bool {
		c, err := pgx.Connect(s.t.Context(), s.db.FrontendURI())
		if err != nil {
			return false
		}
		defer c.Close(s.t.Context())
		var decided bool
		return c.QueryRow(s.t.Context(), "SELECT identity::jsonb ? 'freeze' FROM log").Scan(&decided) == nil && decided
	})
	victim.signal(syscall.SIGKILL)
	if err := end.Wait(); err != nil || !strings.Contains(out.String(), "The log has ended with") {
		s.t.Fatalf("freeze: %v\n%s", err, out.String())
	}
	var v *c2sp.Verified
	s.within(5*time.Second, "the last checkpoint to be shown", func() bool {
		v, err = s.policy.Verify(s.get(s.frontends[2], "/checkpoint"))
		return err == nil && v.Size > size
	})
	s.start(victim)
	for _, f := range s.frontends {
		s.within(30*time.Second, f.name+" to refuse as frozen", func() bool {
			call, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(s.t.Context(), "authorization", "Bearer "+s.token), 12*time.Second)
			defer cancel()
			_, err := pb.NewLogClient(f.conn).Submit(call, &pb.SubmitRequest{Entry: &pb.Entry{Kind: "upload", Ecosystem: "pypi", Project: "late", Version: "1.0", File: "late-1.0.tar.gz",
				Size: entry.Uint(10), Sha256: strings.Repeat("ab", 32), Time: time.Now().UTC().Format(entry.TimeFormat)}})
			return status.Code(err) == codes.FailedPrecondition && strings.Contains(err.Error(), "next.example/log")
		})
	}
	if again, err := s.policy.Verify(s.get(s.frontends[2], "/checkpoint")); err != nil || again.Size != v.Size || again.Root != v.Root {
		s.t.Errorf("something came after the end: %v", err)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// settle checks the whole log as its readers find it, by means of its own: every
// leaf that was acknowledged is there, every checkpoint that was seen is a prefix.
func (s *scaled) settle(l *ledger) {
	s.t.Helper()
	newest := slices.Max(slices.Collect(maps.Keys(l.roots)))
	for index := range l.receipts { // answers hold checkpoints that nobody may have looked at
		newest = max(newest, index+1)
	}
	var v *c2sp.Verified
	took := s.within(5*time.Second, "the frontend without a key to show the newest checkpoint", func() (ok bool) {
		var err error
		if v, err = s.policy.Verify(s.get(s.frontends[2], "/checkpoint")); err != nil {
			s.t.Fatal(err)
		}
		return v.Size >= newest
	})
	s.t.Logf("it took %v", took.Round(time.Millisecond))
	var hashes hashStore
	var leaves [][]byte
	for size := int(v.Size); len(leaves) < size; {
		n := min(256, size-len(leaves))
		path := c2sp.Tile{Level: -1, Index: uint64(len(leaves) / 256), Width: n}.Path()
		bundle := s.get(s.frontends[2], "/"+path)
		list, err := c2sp.ParseBundle(bundle, n)
		if err != nil {
			s.t.Fatalf("%s: %v", path, err)
		}
		leaves = append(leaves, list...)
	}
	files, entries := map[string]int{}, map[string]int{} // index by file, and by file and digest
	for i, leaf := range leaves {
		h, err := tlog.StoredHashes(int64(i), leaf, hashes)
		if err != nil {
			s.t.Fatal(err)
		}
		hashes = append(hashes, h...)
		e, err := entry.Parse(leaf)
		if err != nil {
			s.t.Fatalf("entry %d: %v", i, err)
		}
		if e.Kind == entry.KindUpload {
			if first, twice := files[e.File]; twice {
				s.t.Errorf("%s stands at %d and at %d", e.File, first, i)
			}
			files[e.File] = i
			entries[e.File+" "+e.SHA256] = i
		}
	}
	for index, what := range l.receipts {
		if at, logged := entries[what]; !logged || uint64(at) != index {
			s.t.Errorf("%s has a receipt for %d, the log has it at %d (%v)", what, index, at, logged)
		}
	}
	// Every upload has a name, whatever was killed; conflicts are the log's own.
	record := []string{"--postgres", s.db.FrontendURI(), "--tiles", s.tiles}
	id := between(s.run("token", "list", "--json", "--postgres", s.db.FrontendURI()), `"id":"`, `"`) // the only one
	named := map[string]bool{}
	for line := range strings.Lines(s.run(append([]string{"token", "entries", id}, record...)...)) {
		index, _, _ := strings.Cut(line, " ")
		named[index] = true
	}
	for file, index := range files {
		if !named[strconv.Itoa(index)] {
			s.t.Errorf("%s, entry %d, is not recorded as %s's", file, index, id)
		}
	}
	if out := s.run(append([]string{"token", "entries", "--unknown"}, record...)...); out != "0 entries\n" {
		s.t.Errorf("nobody is named for:\n%s", out)
	}
	for size, roots := range l.roots {
		if size > v.Size {
			s.t.Errorf("a checkpoint of %d was seen, the log ends with %d", size, v.Size)
			continue
		}
		root := c2sp.EmptyRoot
		if size > 0 {
			h, err := tlog.TreeHash(int64(size), hashes)
			if err != nil {
				s.t.Fatal(err)
			}
			root = h
		}
		if _, ok := roots[root]; !ok || len(roots) != 1 {
			s.t.Errorf("size %d was shown with other roots than the log's: %v", size, roots)
		}
	}
	lost := 0
	for index, leaf := range l.leaves {
		if index >= uint64(len(leaves)) || string(leaves[index]) != string(leaf) {
			lost++
		}
	}
	if lost > 0 {
		s.t.Errorf("%d acknowledged entries are not where they were acknowledged", lost)
	}
	sizes := make([]uint64, 0, len(l.roots))
	for size := range l.roots {
		sizes = append(sizes, size)
	}
	slices.Sort(sizes)
	s.t.Logf("%d acknowledgements, %d receipts, %d refusals, %d entries, %d checkpoints seen, of %d to %d", len(l.acks), len(l.receipts), len(l.refused), len(leaves), len(sizes), sizes[0], sizes[len(sizes)-1])
}

// hashStore is tlog's stored hashes, in memory.
type hashStore []tlog.Hash

func (h hashStore) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = h[x]
	}
	return out, nil
}
