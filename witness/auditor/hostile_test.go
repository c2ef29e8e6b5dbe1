package auditor

// A log that lies: what is refused, what is kept as evidence, and that nothing of
// it is ever cosigned. After each step the rig rehashes what is served.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/client"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/evillog"
)

// change is an entry about a file or a registry, by the index.
func change(kind entry.Kind, id int, f func(*entry.Entry)) *entry.Entry {
	e := &entry.Entry{Kind: kind, Claim: entry.ClaimIndex, ID: fmt.Sprintf("%032x", id), Registry: "index.test/simple", Ecosystem: entry.PyPI, Project: "demo", Time: noon.Format(entry.TimeFormat)}
	f(e)
	return e
}

// findings is GET /findings.
func (r *rig) findings() []jsonFinding {
	r.t.Helper()
	var out []jsonFinding
	if err := json.Unmarshal([]byte(r.want(r.get("/findings"), 200).body), &out); err != nil {
		r.t.Fatal(err)
	}
	return out
}

// proven checks the evidence of a finding with the log's key alone, and returns
// the leaves that it shows.
func (r *rig) proven(f jsonFinding) (leaves [][]byte) {
	r.t.Helper()
	file := r.want(r.get(fmt.Sprintf("/findings/%d", f.ID)), 200).body
	if !strings.Contains(file, "\nclaim "+f.Kind+"\n") {
		r.t.Errorf("%s", file)
	}
	if f.Kind != KindSecondDigest {
		policy := must(c2sp.ParsePolicy([]byte("log " + r.key.Key().String() + "\nquorum none\n")))
		if err := client.VerifyEvidence([]byte(file), policy); err != nil {
			r.t.Errorf("%v:\n%s", err, file)
		}
	}
	var proof strings.Builder
	check := func() {
		if proof.Len() == 0 {
			return
		}
		p, err := c2sp.ParseProof([]byte(proof.String()))
		if err != nil {
			r.t.Fatalf("%v in\n%s", err, file)
		}
		note := must(c2sp.ParseNote(p.Checkpoint))
		cp := must(c2sp.ParseCheckpoint(note.Text))
		if err := r.key.Key().VerifyLog(note.Text, note.Sigs[0]); err != nil {
			r.t.Error(err)
		}
		if err := c2sp.VerifyInclusion(p.Index, cp.Size, entry.LeafHash(p.Extra), p.Hashes, cp.Root); err != nil {
			r.t.Error(err)
		}
		if want := f.Index; p.Index != want && (f.First == nil || p.Index != *f.First) {
			r.t.Errorf("it is about entry %d", p.Index)
		}
		leaves = append(leaves, p.Extra)
		proof.Reset()
	}
	for _, line := range strings.Split(file, "\n") {
		if body, ok := strings.CutPrefix(line, "| "); ok || line == "|" {
			proof.WriteString(body + "\n")
		} else if line == "first" || line == "second" {
			check()
		}
	}
	check()
	return leaves
}

// TestFindings: a log whose every byte is proven and that breaks a rule. It is
// cosigned up to that entry and never beyond, by pull and by push, and the
// evidence holds.
func TestFindings(t *testing.T) {
	t.Parallel()
	marshal := func(e *entry.Entry) []byte { return must(e.Marshal()) }
	file := "demo-7.tar.gz" // the file of entry 7
	second := marshal(uploadOf(file, "another content"))
	next := change(entry.KindSuccessor, 1, func(e *entry.Entry) {
		e.Claim, e.Registry, e.Ecosystem, e.Project = entry.ClaimLog, "", "", ""
		e.Origin, e.URL, e.VKeys = "log.test/next", "https://next.log.test/", []string{must(c2sp.GenerateSigner("log.test/next", c2sp.AlgEd25519)).Key().String()}
	})
	observed := uploadOf(file, "content 7")
	observed.Claim = entry.ClaimObserved
	observedOther := uploadOf(file, "something else was served")
	observedOther.Claim = entry.ClaimObserved
	policy := func(overwrite string) []byte {
		return marshal(change(entry.KindRegistryPolicy, 2, func(e *entry.Entry) { e.Project, e.Overwrite = "", overwrite }))
	}
	held := uploadOf(file, "content 7")
	reject := marshal(change(entry.KindReject, 3, func(e *entry.Entry) { e.File, e.SHA256 = file, held.SHA256 }))
	rejectOther := marshal(change(entry.KindReject, 4, func(e *entry.Entry) { e.File, e.SHA256 = file, uploadOf(file, "not logged").SHA256 }))
	remove := marshal(change(entry.KindRemove, 5, func(e *entry.Entry) { e.Version, e.File, e.SHA256 = "1.0", file, held.SHA256 }))
	removeOther := marshal(change(entry.KindRemove, 6, func(e *entry.Entry) {
		e.Version, e.File, e.SHA256 = "1.0", file, uploadOf(file, "not logged").SHA256
	}))
	npm := func(sha512, content string) []byte {
		e := uploadOf("x-1.0.0.tgz", content)
		e.Claim, e.Ecosystem, e.Project, e.Version, e.SHA512 = entry.ClaimObserved, "npm", "x", "1.0.0", sha512
		if content == "" {
			e.SHA256 = ""
		}
		return marshal(e)
	}
	five := strings.Repeat("5", 128)
	replacing := uploadOf(file, "another content")
	replacing.Replaces = entry.Uint(7)
	for _, row := range []struct {
		name   string
		leaves [][]byte
		kind   string // "": all is well
		at     int    // which of the leaves
	}{
		{"the same again", [][]byte{marshal(held)}, "", 0},
		{"a second digest", [][]byte{second}, KindSecondDigest, 0},
		{"a second digest, policy never", [][]byte{policy("never"), second}, KindSecondDigest, 1},
		{"a second digest that names the first, without a policy", [][]byte{marshal(replacing)}, KindSecondDigest, 0},
		{"a second digest that names the first, policy replace", [][]byte{policy("replace"), marshal(replacing)}, "", 0},
		{"a second digest that names nothing, policy replace", [][]byte{policy("replace"), second}, KindSecondDigest, 1},
		{"a second digest, policy replace logged too late", [][]byte{marshal(replacing), policy("replace")}, KindSecondDigest, 0},
		{"after a removal, policy after-remove", [][]byte{policy("after-remove"), remove, second}, "", 0},
		{"after a removal of something else, policy after-remove", [][]byte{policy("after-remove"), removeOther, second}, KindSecondDigest, 2},
		{"two digests of one content", [][]byte{npm(five, ""), npm(five, "a")}, "", 0},
		{"digests that say nothing of each other", [][]byte{npm(five, ""), npm("", "a")}, KindSecondDigest, 1},
		{"without a removal, policy after-remove", [][]byte{policy("after-remove"), second}, KindSecondDigest, 1},
		{"after a removal, policy never", [][]byte{remove, second}, KindSecondDigest, 1},
		{"after a reject", [][]byte{reject, second}, "", 0},
		{"after a reject of something else", [][]byte{rejectOther, second}, KindSecondDigest, 1},
		{"observed beside the index", [][]byte{marshal(observed)}, "", 0},
		{"observed twice, with two digests", [][]byte{marshal(observed), marshal(observedOther)}, KindSecondDigest, 1},
		{"no entry at all", [][]byte{[]byte("garbage")}, KindMalformed, 0},
		{"an empty leaf", [][]byte{{}}, KindMalformed, 0},
		{"a leaf that is too long", [][]byte{[]byte(strings.Repeat("x", entry.MaxSize+1))}, KindMalformed, 0},
		{"white space in an entry", [][]byte{[]byte(strings.Replace(string(marshal(uploaded(900))), ":", ": ", 1))}, KindMalformed, 0},
		{"an entry after the last", [][]byte{marshal(next), marshal(uploaded(901))}, KindAfterEnd, 1},
		{"the last entry", [][]byte{marshal(next)}, "", 0},
		{"a version that is not known", [][]byte{[]byte(`{"v":2,"what":"who knows"}`), []byte(`{"v":2}`)}, KindUnreadable, 0},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			for _, way := range []string{"pull", "push"} {
				r := newRig(t)
				r.grow(300)
				if err := r.round(); err != nil {
					t.Fatal(err)
				}
				first := r.log.Append(row.leaves...)
				size := r.log.Size()
				blocks := row.kind != "" && row.kind != KindUnreadable
				for range 2 { // the verdict stands, also in another process
					if way == "pull" {
						var found *FindingError
						if err := r.round(); errors.As(err, &found) != blocks || err != nil && !blocks {
							t.Fatalf("pull: %v", err)
						}
					} else {
						r.want(r.addCheckpoint(r.pending()), 200)
						status := http.StatusOK
						if blocks {
							status = http.StatusUnprocessableEntity
						}
						r.want(r.addEntries(r.push(300, size).body()), status)
					}
					r.restart()
				}
				list := r.findings()
				if row.kind == "" {
					if len(list) != 0 || r.size() != int64(size) {
						t.Errorf("%s: %+v, cosigned %d", way, list, r.size())
					}
					continue
				}
				if len(list) != 1 || list[0].Kind != row.kind || list[0].Index != first+uint64(row.at) || list[0].Blocks != blocks || list[0].Ready != blocks {
					t.Fatalf("%s: %+v", way, list)
				}
				if blocks {
					want := [][]byte{row.leaves[row.at]}
					switch row.kind {
					case KindSecondDigest:
						want = [][]byte{r.log.Leaf(*list[0].First), row.leaves[row.at]}
					case KindAfterEnd:
						want = [][]byte{row.leaves[0]}
					}
					if leaves := r.proven(list[0]); !slices.EqualFunc(leaves, want, bytes.Equal) {
						t.Errorf("%s: the evidence shows %q", way, leaves)
					}
				} else if list[0].Count != 2 {
					t.Errorf("%s: %d unreadable entries", way, list[0].Count)
				}
				if want := map[bool]int64{true: 300, false: int64(size)}[blocks]; r.size() != want {
					t.Errorf("%s: cosigned %d, want %d", way, r.size(), want)
				}
				if !blocks {
					continue
				}
				// The log goes on, and nobody forgets.
				r.grow(20)
				var found *FindingError
				if err := r.round(); !errors.As(err, &found) || r.size() != 300 {
					t.Errorf("%s, afterwards: %v, cosigned %d", way, err, r.size())
				}
				if page := r.want(r.get("/"), 200).body; !strings.Contains(page, "Stopped.") || !strings.Contains(page, row.kind) {
					t.Error("the page does not say that the log was stopped")
				}
			}
		})
	}
}

// pending is the size of the newest pending checkpoint.
func (r *rig) pending() uint64 {
	r.t.Helper()
	list, err := r.dir.Standings(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	return list[0].Pending
}

// TestHostileLog: what a log can do to who reads it. Nothing of it is cosigned or
// stored under its name, and the honest log is followed again afterwards.
func TestHostileLog(t *testing.T) {
	t.Parallel()
	leaf := must(uploadOf("evil.tar.gz", "evil").Marshal())
	for _, row := range []struct {
		name string
		lie  func(l *evillog.Log)
		fork bool // evidence of it is kept
		// accused says that the log is told to be inconsistent, rather than out of order.
		accused bool
	}{
		{"a wrong leaf", func(l *evillog.Log) { l.WrongLeaf(305, leaf) }, false, true},
		{"two leaves swapped", func(l *evillog.Log) { l.SwapLeaves(301, 302) }, false, true},
		{"a leftover entry", func(l *evillog.Log) { l.MoreEntries(1) }, false, false},
		{"a short bundle", func(l *evillog.Log) { l.Entries(3) }, false, false},
		{"a bundle that is cut off", func(l *evillog.Log) {
			l.BundleBytes(func(_ c2sp.Tile, e [][]byte) []byte { return []byte{0, 200, 1} })
		}, false, false},
		{"an endless bundle", func(l *evillog.Log) { l.Endless(evillog.Bundles) }, false, false},
		{"an endless checkpoint", func(l *evillog.Log) { l.Endless(evillog.Checkpoint) }, false, false},
		{"a gzip bomb", func(l *evillog.Log) { l.GzipBomb(evillog.Bundles) }, false, false},
		{"tiles of the wrong length", func(l *evillog.Log) { l.TileLength(31) }, false, false},
		{"garbage for tiles", func(l *evillog.Log) { l.GarbageTiles() }, false, true},
		{"one bit of each tile", func(l *evillog.Log) { l.OneBit() }, false, true},
		{"a redirect", func(l *evillog.Log) { l.Redirect(evillog.Everything) }, false, false},
		{"HTML", func(l *evillog.Log) { l.HTML(evillog.Everything) }, false, false},
		{"errors", func(l *evillog.Log) { l.Status(evillog.Everything, 500) }, false, false},
		{"hanging", func(l *evillog.Log) { l.Hang(evillog.Bundles) }, false, false},
		{"a bad signature", func(l *evillog.Log) { l.BadSignature(0) }, false, false},
		{"no signature", func(l *evillog.Log) { l.NoLogSignature() }, false, false},
		{"another origin", func(l *evillog.Log) { l.WriteOrigin("log.test/other") }, false, false},
		{"a size with a zero before it", func(l *evillog.Log) { l.WriteSize("0310") }, false, false},
		{"a size of 2^63", func(l *evillog.Log) { l.WriteSize("9223372036854775808") }, false, false},
		{"a short root", func(l *evillog.Log) { l.CutRoot(31) }, false, false},
		{"CRLF", func(l *evillog.Log) { l.CRLF() }, false, false},
		{"another history", func(l *evillog.Log) { l.Fork(200, many(200, 120)...) }, true, true},
		{"another history of the same size", func(l *evillog.Log) { l.Fork(200, many(200, 100)...) }, true, true},
		{"another history that is smaller", func(l *evillog.Log) { l.Fork(200, many(200, 50)...) }, true, true},
		{"a rollback", func(l *evillog.Log) { l.Rollback(100) }, false, false}, // of the same history: a cache may lag
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.grow(300)
			if err := r.round(); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(row.name, "history") && row.name != "a rollback" {
				r.grow(20)
			}
			row.lie(r.log)
			for range 2 {
				err := r.round()
				var inconsistent *InconsistentError
				if (err == nil) != (row.name == "a rollback") || errors.As(err, &inconsistent) != row.accused {
					t.Fatalf("%v", err)
				}
				if got := r.size(); got != 300 {
					t.Fatalf("cosigned %d", got)
				}
				r.restart()
			}
			if list := r.findings(); len(list) != 0 {
				t.Errorf("%+v", list)
			}
			if !row.fork {
				r.want(r.get("/evidence/1.txt"), 404)
				return
			}
			e, err := c2sp.ParseEvidence([]byte(r.want(r.get("/evidence/1.txt"), 200).body))
			if err == nil {
				err = e.VerifyFork(func(raw []byte) (c2sp.Checkpoint, error) { // with the log's key alone
					note := must(c2sp.ParseNote(raw))
					return must(c2sp.ParseCheckpoint(note.Text)), r.key.Key().VerifyLog(note.Text, note.Sigs[0])
				})
			}
			if err != nil {
				t.Error(err)
			}
			if list := r.want(r.get("/evidence/"), 200).body; !strings.Contains(list, `"file":"1.txt"`) || strings.Contains(list, "2.txt") {
				t.Errorf("%s", list)
			}
			if page := r.get("/").body; !strings.Contains(page, "Fork.") {
				t.Error("the page does not tell of the fork")
			}
		})
	}
}

// many are n uploads of another history, for the indices from first on.
func many(first, n int) (leaves [][]byte) {
	for i := range n {
		leaves = append(leaves, must(uploadOf(fmt.Sprintf("other-%d.tar.gz", first+i), "other").Marshal()))
	}
	return leaves
}
