package logserver

// FAULTS suite b4: a random bit of a closed log is flipped, anywhere: state,
// tiles, bundles, checkpoint, anchor, index, identity, credentials, the record of
// who logged what. Then the log is audited, and opened and served without any
// witness to help it.

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/logserver/audit"
	"golang.org/x/mod/sumdb/tlog"
)

var flips = flag.Int("flips", 22, "rounds of TestBitFlips; 1000 in the suite")

// flipClass says what a file of a log is to this suite, and whether every bit
// of it matters: then the audit must find each flip.
//
// What matters is what a reader is given or the log signs or decides by: tiles,
// bundles, the checkpoint's text and the log's own signature, the anchor, the
// engine's tree state. Not: what the engine keeps for itself (its own checkpoint
// under a key that nobody knows, the state of its garbage collection), empty lock
// files, and partial tiles that wider ones have replaced. The index decides on
// uniqueness: a flip there must not lead to a wrong acknowledgement, whether
// the audit sees it or the server makes the index anew. Credentials must not
// reach further than before, and nobody may be blamed for another's entries.
func flipClass(path string, n uint64) (class string, matters bool) {
	switch {
	case path == "anchor":
		return "anchor", true
	case path == checkpointFile:
		return "checkpoint", true
	case superseded(path, n):
		return "superseded", false
	case strings.HasPrefix(path, "log/tile/entries/"):
		return "bundles", true
	case strings.HasPrefix(path, "log/tile/"):
		return "tiles", true
	case path == "log/.state/treeState":
		return "state", true
	case strings.HasPrefix(path, "log/"):
		return "engine's own", false
	case path == identityFile:
		return "identity", false
	case path == TokensFile:
		return "credentials", false
	case path == AttributionFile:
		return "who logged what", false
	case strings.HasPrefix(path, indexDir+"/"):
		return "index", false
	}
	return "", false // locks
}

func TestBitFlips(t *testing.T) {
	if testing.Short() {
		*flips = min(*flips, 14)
	}
	const n = 300
	base := newRig(t, 0, 0)
	l := base.ready()
	base.bulk(l, 0, n-1)
	if _, err := base.submit(l, upload("p1", "p1-1.tar.gz", "other bytes")); err == nil {
		t.Fatal("a second digest was acknowledged")
	}
	waitFor(t, "the conflict entry", func() bool { return l.Published().Size == n })
	l.Close()
	base.audited()
	trust := base.credentials()
	id, err := ReadIdentity(base.dir)
	if err != nil {
		t.Fatal(err)
	}
	own := &keyring{origin: id.Origin, keys: id.Keys}
	good := t.TempDir()
	copyDir(t, base.dir, filepath.Join(good, "log"))
	copyDir(t, base.anchor, filepath.Join(good, "anchor"))
	var leaves []tlog.Hash // of the undamaged log
	byFile := map[string]uint64{}
	if err := (tree{t.Context(), directory(filepath.Join(base.dir, engineDir)), n, nil}).each(0, func(index int64, leaf []byte) error {
		leaves = append(leaves, entry.LeafHash(leaf))
		e, err := entry.Parse(leaf)
		if err == nil && e.Kind == entry.KindUpload {
			byFile[e.File] = uint64(index)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}

	// One class is drawn, then a file of it, then a bit.
	files := map[string][]string{}
	err = filepath.WalkDir(base.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(base.dir, path)
		info, err := d.Info()
		if class, _ := flipClass(filepath.ToSlash(rel), n); err == nil && class != "" && info.Size() > 0 {
			files[class] = append(files[class], filepath.ToSlash(rel))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	files["anchor"] = []string{"anchor"}
	var classes []string
	for c := range files {
		classes = append(classes, c)
	}
	slices.Sort(classes)

	type row struct{ flips, found, leftover, silent, refused, served int }
	table := map[string]*row{}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 4))
	for round := range *flips {
		r := *base
		r.restore(filepath.Join(good, "log"))
		os.Remove(r.anchor)
		copyDir(t, filepath.Join(good, "anchor"), r.anchor)
		class := classes[round%len(classes)]
		file := files[class][rnd.IntN(len(files[class]))]
		path := filepath.Join(r.dir, filepath.FromSlash(file))
		if class == "anchor" {
			path = r.anchor
		}
		raw := []byte(readFile(t, path))
		at, bit := rnd.IntN(len(raw)), rnd.IntN(8)
		good := slices.Clone(raw)
		raw[at] ^= 1 << bit
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		what := fmt.Sprintf("round %d: %s, byte %d bit %d", round, file, at, bit)
		if table[class] == nil {
			table[class] = new(row)
		}
		count := table[class]
		count.flips++

		_, matters := flipClass(file, n)
		if class != "identity" { // that one it may not even begin with
			report := r.audit()
			switch {
			case report.Outcome() == audit.Found:
				count.found++
			case len(report.Findings) > 0:
				count.leftover++
			default:
				count.silent++
			}
			if matters && report.Outcome() != audit.Found && !(class == "state" && sameState(good, raw)) {
				t.Errorf("%s: the audit does not find it: %s", what, findings(report))
			}
		}
		if trusted, err := r.readCredentials(); err == nil && !maps.Equal(trusted, trust) {
			t.Errorf("%s: the credentials say\n%v\nnot\n%v", what, trusted, trust)
		}
		r.blamed(what, n-1)
		if r.serveFlipped(what, own, n, leaves, byFile) {
			count.served++
		} else {
			count.refused++
		}
	}
	t.Logf("%-15s %6s %8s %9s %7s %8s %7s", "flips in", "flips", "found", "leftover", "silent", "refused", "served")
	for _, c := range classes {
		if x := table[c]; x != nil {
			t.Logf("%-15s %6d %8d %9d %7d %8d %7d", c, x.flips, x.found, x.leftover, x.silent, x.refused, x.served)
		}
	}
}

// credentials makes credentials of which each says something else, and returns
// what matters of them all.
func (r *rig) credentials() map[string]string {
	r.t.Helper()
	c, err := OpenTokens(filepath.Join(r.dir, TokensFile), fixedTime)
	if err != nil {
		r.t.Fatal(err)
	}
	uploads := Credential{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: []entry.Kind{entry.KindUpload}}
	revoked, _, err := c.Create(uploads)
	if err == nil {
		err = c.Revoke(revoked.ID)
	}
	limited := uploads
	limited.Rate, limited.Quota, limited.Ends = 10, 100, "2026-12-31T23:59:59Z"
	rotated, _, err2 := c.Create(limited)
	if err2 == nil {
		_, err2 = c.Rotate(rotated.ID, time.Hour)
	}
	certified := uploads
	certified.Cert = &CertRule{CA: strings.Repeat("ab", 32), Name: "dns:uploads.index.example"}
	_, _, err3 := c.Create(certified)
	said, err4 := r.readCredentials()
	if err := errors.Join(err, err2, err3, err4); err != nil {
		r.t.Fatal(err)
	}
	return said
}

// readCredentials returns what matters of the log's credentials: all but notes
// and when they were made.
func (r *rig) readCredentials() (map[string]string, error) {
	c, err := OpenTokens(filepath.Join(r.dir, TokensFile), fixedTime)
	if err != nil {
		return nil, err
	}
	said := map[string]string{}
	for _, t := range c.List() {
		t.Created, t.Note = "", ""
		raw, err := json.Marshal(t)
		if err != nil {
			return nil, err
		}
		said[t.ID] = string(raw)
	}
	return said, nil
}

// blamed checks that the record of who logged what, if it can be read, names the
// one credential that did, for the first n entries or some of them.
func (r *rig) blamed(what string, n uint64) {
	a, err := ReadAttribution(r.dir)
	if err != nil {
		return // it says so
	}
	for _, run := range a.runs {
		if run.By != r.token.ID && run.By != "" || run.By == "" && run.First < n {
			r.t.Errorf("%s: entry %d and %d more are said to be of %q", what, run.First, run.Count-1, run.By)
		}
	}
}

// superseded reports whether path is a partial tile that a log of size n does
// not need.
func superseded(path string, n uint64) bool {
	t, err := c2sp.ParseTilePath(strings.TrimPrefix(path, "log/"))
	if err != nil || t.Width == tileWidth {
		return false
	}
	have := n >> (max(t.Level, 0) * tileHeight)
	return t.Index != have/tileWidth || uint64(t.Width) != have%tileWidth
}

// serveFlipped opens a damaged log of n entries, whose keys are own and whose leaf hashes are leaves,
// submits to it, and checks that whatever it acknowledged and signed is so. It
// reports whether the log took submissions.
func (r *rig) serveFlipped(what string, own *keyring, n int, leaves []tlog.Hash, byFile map[string]uint64) bool {
	t := r.t
	cfg := r.config()
	cfg.MaxWait = 2 * time.Second
	cfg.Logger = slog.New(slog.DiscardHandler)
	l, err := Open(t.Context(), cfg)
	if err != nil {
		return false
	}
	defer l.Close()
	for deadline := time.Now().Add(5 * time.Second); !l.Status().Writable && !l.Status().Latched && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if !l.Status().Writable {
		return false
	}
	// New bytes for every name that is taken, then what is there, then something
	// new. An acknowledgement proves what was submitted, at the index it has.
	ask := func(from, to int, say func(k int) *entry.Entry, judge func(k int, a *Ack)) {
		var asking sync.WaitGroup
		next := atomic.Int64{}
		next.Store(int64(from))
		for range 64 {
			asking.Go(func() {
				for k := int(next.Add(1) - 1); k < to; k = int(next.Add(1) - 1) {
					e := say(k)
					a, err := r.submit(l, e)
					if err != nil {
						continue // refused: nobody was promised anything
					}
					p, err := c2sp.ParseProof(a.Proof.Bytes())
					if err != nil {
						t.Errorf("%s: %v", what, err)
						continue
					}
					cp, err := signedCheckpoint(p.Checkpoint, own)
					if err != nil || c2sp.VerifyInclusion(a.Index, cp.Size, entry.LeafHash(p.Extra), p.Hashes, cp.Root) != nil {
						t.Errorf("%s: %s: acknowledged with a proof that does not verify: %v", what, e.File, err)
					}
					if got, err := entry.Parse(p.Extra); err != nil || got.File != e.File || got.SHA256 != e.SHA256 {
						t.Errorf("%s: %s: acknowledged with the proof of something else: %s", what, e.File, p.Extra)
					}
					judge(k, a)
				}
			})
		}
		asking.Wait()
	}
	ask(0, n-1, func(k int) *entry.Entry { e := nth(k); e.SHA256 = strings.Repeat("e", 64); return e }, func(k int, a *Ack) {
		t.Errorf("%s: file %d: other bytes were acknowledged, at %d", what, k, a.Index)
	})
	ask(0, n-1, nth, func(k int, a *Ack) {
		if at := byFile[nth(k).File]; a.Index != at {
			t.Errorf("%s: file %d was acknowledged at %d, now at %d", what, k, at, a.Index)
		}
	})
	ask(n, n+3, nth, func(k int, a *Ack) {
		if a.Index < uint64(n) {
			t.Errorf("%s: a new file was acknowledged at %d", what, a.Index)
		}
	})
	r.blamed(what, uint64(n)-1)
	if p := l.Published(); p.Size >= uint64(n) {
		all := slices.Clone(leaves)
		if err := l.freshTree(int64(p.Size)).each(int64(n), func(_ int64, leaf []byte) error {
			all = append(all, entry.LeafHash(leaf))
			return nil
		}); err != nil {
			t.Errorf("%s: what was published cannot be read: %v", what, err)
		}
		if got := merkleRoot(all); p.Root != got {
			t.Errorf("%s: signed root %x for size %d; the tree of what was logged has %x", what, p.Root, p.Size, got)
		}
	}
	return true
}

// merkleRoot is RFC 6962's MTH, as it stands there.
func merkleRoot(leaves []tlog.Hash) [32]byte {
	if len(leaves) == 1 {
		return leaves[0]
	}
	k := 1
	for 2*k < len(leaves) {
		k *= 2
	}
	return tlog.NodeHash(merkleRoot(leaves[:k]), merkleRoot(leaves[k:]))
}

// sameState reports whether Tessera reads the same from two of its state files:
// the names of JSON's fields are the same in either case.
func sameState(a, b []byte) bool {
	var x, y struct {
		Size uint64 `json:"size"`
		Root []byte `json:"root"`
	}
	return json.Unmarshal(a, &x) == nil && json.Unmarshal(b, &y) == nil && x.Size == y.Size && bytes.Equal(x.Root, y.Root)
}
