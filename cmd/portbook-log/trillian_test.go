package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	gtrillian "github.com/google/trillian"
	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client/submit"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/logserver/trillian/trilliantest"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/mod/sumdb/tlog"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
)

// TestTrillianScripts moves a log to a real Trillian on a real PostgreSQL, with
// tiles in a directory and in a bucket, and back, and lets a shared log end, with
// the real program.
func TestTrillianScripts(t *testing.T) {
	if testing.Short() {
		t.Skip("short: it starts a database, Trillian and servers of this program")
	}
	db, err := trilliantest.StartPostgreSQL(t.Context(), nil)
	if trilliantest.Skippable(err) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	tr, err := trilliantest.Start(t.Context(), trilliantest.Options{Database: db})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.Close)
	s3, err := trilliantest.StartS3(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s3.Close)
	if err := s3.MakeBucket("tiles"); err != nil {
		t.Fatal(err)
	}
	p := scripts()
	p.Dir = filepath.Join("testdata", "trillian")
	setup := p.Setup
	var databases atomic.Int64
	p.Setup = func(e *testscript.Env) error {
		e.Setenv("TRILLIAN", tr.Address())
		e.Setenv("DATABASE", db.URI())
		for _, name := range []string{"SERVERS", "SERVERS2"} { // databases of the script's own
			database := fmt.Sprintf("servers%d", databases.Add(1))
			if err := db.CreateDatabase(context.Background(), database); err != nil {
				return err
			}
			e.Setenv(name, strings.Replace(db.FrontendURI(), "/frontend", "/"+database, 1))
		}
		e.Setenv("S3", "http://"+s3.Endpoint)
		e.Setenv("AWS_ACCESS_KEY_ID", s3.AccessKey)
		e.Setenv("AWS_SECRET_ACCESS_KEY", s3.Secret)
		return setup(e)
	}
	set := func(state gtrillian.TreeState) func(*testscript.TestScript, bool, []string) {
		return func(ts *testscript.TestScript, _ bool, args []string) { // freeze-tree ID
			id, err := strconv.ParseInt(args[0], 10, 64)
			ts.Check(err)
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			_, err = gtrillian.NewTrillianAdminClient(tr.Conn).UpdateTree(ctx, &gtrillian.UpdateTreeRequest{
				Tree: &gtrillian.Tree{TreeId: id, TreeState: state}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"tree_state"}}})
			ts.Check(err)
		}
	}
	p.Cmds["freeze-tree"] = set(gtrillian.TreeState_FROZEN)
	p.Cmds["tree"] = func(ts *testscript.TestScript, _ bool, args []string) { // tree FILE: of migrate or init, --json
		var m struct {
			Tree json.RawMessage // init's is a number, migrate's a string
			Root string
		}
		ts.Check(json.Unmarshal([]byte(ts.ReadFile(args[0])), &m))
		ts.Setenv("TREE", strings.Trim(string(m.Tree), `"`))
		ts.Setenv("ROOT", m.Root)
	}
	p.Cmds["submit-many"] = submitMany
	p.Cmds["log-file"] = func(ts *testscript.TestScript, _ bool, args []string) { // log-file TOKEN N: the Nth
		n, err := strconv.Atoi(args[1])
		ts.Check(err)
		submitMany(ts, false, []string{args[0], args[1], strconv.Itoa(n + 1)})
	}
	p.Cmds["signed-by"] = func(ts *testscript.TestScript, neg bool, args []string) { // signed-by KEYFILE: the checkpoint of now
		if signed, err := signedBy(ts, args[0]); err != nil || signed == neg {
			ts.Fatalf("the checkpoint is signed by %s: %v, %v", args[0], signed, err)
		}
	}
	p.Cmds["await-signature"] = func(ts *testscript.TestScript, neg bool, args []string) { // await-signature KEYFILE, or its end
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
			signed, err := signedBy(ts, args[0])
			if err == nil && signed != neg {
				return
			} else if time.Now().After(deadline) {
				ts.Fatalf("the checkpoint is signed by %s: %v, %v", args[0], signed, err)
			}
		}
	}
	p.Cmds["copy"] = func(ts *testscript.TestScript, _ bool, args []string) { // copy FILE TO, mode 0600
		raw, err := os.ReadFile(ts.MkAbs(args[0]))
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs(args[1]), raw, 0o600))
	}
	p.Cmds["snapshot"], p.Cmds["old-proofs"] = snapshot, oldProofs
	testscript.Run(t, p)
}

// signedBy reports whether the checkpoint that the server at $HTTP shows bears the
// signature of a key.
func signedBy(ts *testscript.TestScript, file string) (bool, error) {
	signer, err := c2sp.ParseSKey(strings.TrimSpace(ts.ReadFile(file)))
	ts.Check(err)
	note, err := c2sp.ParseNote(fetch("http://" + ts.Getenv("HTTP") + "/checkpoint"))
	if err != nil {
		return false, err
	}
	for _, s := range note.Sigs {
		if signer.Key().Matches(s) && signer.Key().VerifyLog(note.Text, s) == nil {
			return true, nil
		}
	}
	return false, nil
}

// TestSharedRunbook: the script of docs/keys.md, A shared log, has every command
// of the page, in the page's order.
func TestSharedRunbook(t *testing.T) {
	page, err := os.ReadFile("../../docs/keys.md")
	if err != nil {
		t.Fatal(err)
	}
	rest, err := os.ReadFile("testdata/trillian/rotate_key_shared.txt")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(page), "```sh rotation-shared\n")
	block, _, _ = strings.Cut(block, "```")
	asInScript := strings.NewReplacer("portbook-log ", "exec portbook-log ", "DATABASE", "$SERVERS", "/srv/tiles", "tiles")
	commands := 0
	for line := range strings.Lines(block) {
		want := asInScript.Replace(strings.TrimSpace(line))
		_, after, ok := strings.Cut("\n"+string(rest), "\n"+want+"\n")
		if !ok {
			t.Fatalf("docs/keys.md says\n  %sthe script has no\n  %s\nat its place", line, want)
		}
		rest = []byte(after)
		commands++
	}
	if commands != 5 {
		t.Fatalf("%d commands found in docs/keys.md", commands)
	}
}

// submitMany logs files FROM..TO-1 over gRPC and keeps their proofs in proofs/.
func submitMany(ts *testscript.TestScript, _ bool, args []string) { // submit-many TOKEN FROM TO
	from, err := strconv.Atoi(args[1])
	ts.Check(err)
	to, err := strconv.Atoi(args[2])
	ts.Check(err)
	c, err := submit.Dial("http://"+ts.Getenv("GRPC"), args[0])
	ts.Check(err)
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ts.Check(os.MkdirAll(ts.MkAbs("proofs"), 0o755))
	var g errgroup.Group
	g.SetLimit(32)
	for i := from; i < to; i++ {
		g.Go(func() error {
			sum := sha256.Sum256(fmt.Append(nil, i))
			ack, err := c.Submit(ctx, &entry.Entry{Kind: entry.KindUpload, Ecosystem: entry.PyPI, Project: "demo", Version: fmt.Sprint(i),
				File: fmt.Sprintf("demo-%d.tar.gz", i), Size: entry.Uint(3), SHA256: hex.EncodeToString(sum[:]), Time: "2026-11-21T05:00:00Z"})
			if err != nil {
				return err
			}
			name := ts.MkAbs(filepath.Join("proofs", strconv.Itoa(i)))
			have, err := os.ReadFile(name)
			if errors.Is(err, fs.ErrNotExist) {
				return os.WriteFile(name, ack.Proof, 0o644)
			}
			if err != nil {
				return err
			}
			was, err := c2sp.ParseProof(have)
			if err == nil && was.Index != uint64(ack.Index) {
				err = fmt.Errorf("file %d had index %d, now it has %d", i, was.Index, ack.Index)
			}
			return err
		})
	}
	ts.Check(g.Wait())
}

// oldProofs verifies every proof in proofs/: by itself, and that the tree it was
// made in is a prefix of the one whose checkpoint and tiles are in two places.
func oldProofs(ts *testscript.TestScript, _ bool, args []string) { // old-proofs CHECKPOINT TILES VKEY...
	policy, err := c2sp.ParsePolicy([]byte("log " + strings.Join(args[2:], "\nlog ") + "\nquorum none\n"))
	ts.Check(err)
	now, err := policy.Verify([]byte(ts.ReadFile(args[0])))
	ts.Check(err)
	names, err := filepath.Glob(ts.MkAbs("proofs/*"))
	ts.Check(err)
	for _, name := range names { // a proof may be newer than the checkpoint beside the tiles
		raw, err := os.ReadFile(name)
		ts.Check(err)
		proof, err := c2sp.ParseProof(raw)
		ts.Check(err)
		v, err := policy.Verify(proof.Checkpoint)
		ts.Check(err)
		if v.Size > now.Size {
			now = v
		}
	}
	tree := tlog.Tree{N: int64(now.Size), Hash: now.Root}
	hashes := tlog.TileHashReader(tree, dirTiles(ts.MkAbs(args[1])))
	if len(names) < 100 {
		ts.Fatalf("only %d proofs", len(names))
	}
	for _, name := range names {
		raw, err := os.ReadFile(name)
		ts.Check(err)
		proof, err := c2sp.ParseProof(raw)
		ts.Check(err)
		then, err := policy.Verify(proof.Checkpoint)
		ts.Check(err)
		ts.Check(c2sp.VerifyInclusion(proof.Index, then.Size, entry.LeafHash(proof.Extra), proof.Hashes, then.Root))
		if then.Size != now.Size {
			p, err := tlog.ProveTree(tree.N, int64(then.Size), hashes)
			ts.Check(err)
			ts.Check(tlog.CheckTree(p, tree.N, tree.Hash, int64(then.Size), then.Root))
		}
		p, err := tlog.ProveRecord(tree.N, int64(proof.Index), hashes)
		ts.Check(err)
		ts.Check(tlog.CheckRecord(p, tree.N, tree.Hash, int64(proof.Index), entry.LeafHash(proof.Extra)))
	}
}

// dirTiles reads tiles from a directory, exactly as wide as they are asked for.
type dirTiles string

func (d dirTiles) Height() int                     { return 8 }
func (d dirTiles) SaveTiles([]tlog.Tile, [][]byte) {}

func (d dirTiles) ReadTiles(tiles []tlog.Tile) (out [][]byte, err error) {
	for _, t := range tiles {
		raw, err := os.ReadFile(filepath.Join(string(d), filepath.FromSlash(c2sp.Tile{Level: t.L, Index: uint64(t.N), Width: t.W}.Path())))
		if err != nil {
			return nil, err
		}
		out = append(out, raw)
	}
	return out, nil
}

// snapshot lists every file below a directory, with times and hashes.
func snapshot(ts *testscript.TestScript, _ bool, args []string) { // snapshot DIRECTORY FILE
	var list []byte
	ts.Check(filepath.WalkDir(ts.MkAbs(args[0]), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		list = fmt.Appendf(list, "%s %v %v", path, info.Mode(), info.ModTime().UnixNano())
		if info.Mode().IsRegular() {
			raw, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			list = fmt.Appendf(list, " %x", sha256.Sum256(raw))
		}
		list = append(list, '\n')
		return nil
	}))
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), list, 0o644))
}
