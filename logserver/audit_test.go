package logserver

// The audit of real logs: it must find nothing in what the server wrote, and
// what others' tools overlook. FAULTS I4 and suite b4.

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/logserver/audit"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/tessera/api"
	"github.com/transparency-dev/tessera/client"
	"github.com/transparency-dev/tessera/fsck"
	"golang.org/x/mod/sumdb/note"
)

// audit audits the log's directory.
func (r *rig) audit(change ...func(*audit.Config)) *audit.Report {
	r.t.Helper()
	cfg := audit.Config{Dir: r.dir, Workers: 2}
	d, err := DigestIndex(r.t.Context(), r.dir)
	if err == nil {
		cfg.Index = &audit.IndexDigest{Size: d.Size, Rows: d.Rows, Sum: d.Sum}
	} else if !errors.Is(err, ErrNoIndex) {
		cfg.IndexTrouble = err
	}
	for _, c := range change {
		c(&cfg)
	}
	report, err := audit.Run(r.t.Context(), cfg)
	if err != nil {
		r.t.Fatalf("audit: %v", err)
	}
	return report
}

func findings(r *audit.Report) string {
	var all []string
	for _, f := range r.Findings {
		if f.Class != audit.Leftover {
			all = append(all, fmt.Sprintf("%s %s %s: %s", f.Class, f.Kind, f.Where, f.Detail))
		}
	}
	return strings.Join(append(all, r.Unread...), "\n")
}

// audited checks that a closed log is all good, to our audit, to Tessera's fsck,
// and to x/mod, whose root the server signs.
func (r *rig) audited() *audit.Report {
	r.t.Helper()
	report := r.audit()
	if report.Outcome() != audit.AllGood || !report.IndexChecked {
		r.t.Errorf("audit: index checked %v\n%s", report.IndexChecked, findings(report))
	}
	if err := r.fsck(); err != nil {
		r.t.Errorf("Tessera's fsck: %v", err)
	}
	t := tree{r.t.Context(), directory(filepath.Join(r.dir, engineDir)), report.Size, nil}
	if root, err := t.root(); err != nil || root != report.Root {
		r.t.Errorf("x/mod says root %x, %v; the audit says %x", root, err, report.Root)
	}
	return report
}

// publicFiles reads the log's tiles with its public checkpoint.
type publicFiles struct {
	client.FileFetcher
	dir string
}

func (p publicFiles) ReadCheckpoint(context.Context) ([]byte, error) {
	return os.ReadFile(filepath.Join(p.dir, checkpointFile))
}

// fsck runs Tessera's own check. It is known to hang and to panic on what is
// damaged, so it gets a time limit.
func (r *rig) fsck() (err error) {
	v, err := note.NewVerifier(r.signer.Key().String())
	if err != nil {
		return err
	}
	hasher := func(bundle []byte) (hashes [][]byte, err error) {
		var b api.EntryBundle
		if err := b.UnmarshalText(bundle); err != nil {
			return nil, err
		}
		for _, e := range b.Entries {
			hashes = append(hashes, rfc6962.DefaultHasher.HashLeaf(e))
		}
		return hashes, nil
	}
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(r.t.Context(), 30*time.Second)
	defer cancel()
	go func() {
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("panic: %v", p)
			}
		}()
		f := publicFiles{client.FileFetcher{Root: filepath.Join(r.dir, engineDir)}, r.dir}
		done <- fsck.New(r.signer.Key().Name(), v, f, hasher, fsck.Opts{N: 4}).Check(ctx)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return errors.New("it hangs")
	}
}

// TestAuditOfEveryKind: a log with entries of every kind that the server takes.
func TestAuditOfEveryKind(t *testing.T) {
	r := newRig(t, 1, 1)
	l := r.ready()
	index, observed := r.all(entry.ClaimIndex), r.all(entry.ClaimObserved)
	a, b := upload("demo", "demo-1.0.tar.gz", "a"), upload("demo", "demo-1.0.tar.gz", "b")
	r.step(l, index, a, 0)
	r.step(l, observed, b, 1)
	r.step(l, index, b, conflictWith(0))
	waitFor(t, "the conflict entry", func() bool { return l.Published().Size == 3 })
	r.step(l, index, reject(a, 1), 3)
	r.step(l, index, b, 4)
	r.step(l, index, policy("replace", 2), 5)
	r.step(l, index, replacing(a, 4), 6)
	r.step(l, index, policy("after-remove", 3), 7)
	r.step(l, index, remove(a, 4), 8)
	r.step(l, index, b, 9)
	tagged := upload("demo", "demo-1.0.0.tgz", "c")
	tagged.Ecosystem = entry.NPM
	r.step(l, index, tagged, 10)
	next := 11
	for n, kind := range entry.Kinds() {
		e := plainEntry(kind, 100+n)
		switch kind {
		case entry.KindUpload, entry.KindReject, entry.KindRemove, entry.KindRegistryPolicy, entry.KindConflict, entry.KindCanary, entry.KindSuccessor, entry.KindPredecessor:
			continue
		case entry.KindDispute:
			e.Ecosystem, e.Index = "", entry.Uint(4)
		case entry.KindBaseline:
			e.Count, e.SHA256 = entry.Uint(1), b.SHA256
		default:
			e.Project = "demo"
			switch kind {
			case entry.KindYank, entry.KindUnyank:
				e.Version, e.File, e.SHA256 = b.Version, b.File, b.SHA256
			case entry.KindDistTag:
				e.Ecosystem, e.Tag = entry.NPM, "latest"
			case entry.KindPublisherAdd, entry.KindPublisherRemove:
				e.Publisher = &entry.Publisher{Kind: "github", Repository: "a/b", Workflow: "w.yml"}
			case entry.KindOwnerAdd, entry.KindOwnerRemove:
				e.Subject = strings.Repeat("ab", 32)
			}
		}
		r.step(l, index, e, next)
		next++
	}
	if live := r.audit(); live.Outcome() != audit.AllGood {
		t.Errorf("while it is served:\n%s", findings(live))
	}
	l.Close()
	report := r.audited()
	if report.Size != int64(next) || report.Slots != 3 || report.IndexRows < 15 {
		t.Errorf("%+v", report)
	}
}

// TestAuditWhileServed: a log that grows under the audit is all good.
func TestAuditWhileServed(t *testing.T) {
	r := newRig(t, 3, 2)
	l := r.ready()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := range 20 {
			r.bulk(l, 100*n, 100)
		}
	}()
	audits := 0
	for running := true; running || audits < 3; {
		select {
		case <-done:
			running = false
		default:
		}
		if l.Published().Note == nil {
			time.Sleep(time.Millisecond)
			continue
		}
		audits++
		if report := r.audit(); report.Outcome() != audit.AllGood {
			t.Fatalf("audit %d:\n%s", audits, findings(report))
		}
	}
	t.Logf("%d audits", audits)
	l.Close()
	r.audited()
}

// TestStalePartialTileIsNotServed: a killed server leaves partial tiles of batches
// that were never integrated; others took their place in the log. TestKill makes
// real ones.
func TestStalePartialTileIsNotServed(t *testing.T) {
	r := filled(t, 600)
	stale := []c2sp.Tile{{Level: 0, Index: 0, Width: 100}, {Level: 0, Index: 2, Width: 20}, {Level: 1, Index: 0, Width: 1}, {Level: -1, Index: 1, Width: 3}, {Level: -1, Index: 2, Width: 87}}
	whole := map[string]string{}
	src := directory(filepath.Join(r.dir, engineDir))
	for _, tile := range stale {
		now := tile
		now.Width = tileWidth
		if tile.Index == 2 {
			now.Width = 88
		} else if tile.Level == 1 {
			now.Width = 2
		}
		raw, err := src.read(now)
		if err != nil {
			t.Fatal(err)
		}
		if raw, err = cutTile(raw, tile); err != nil {
			t.Fatal(err)
		}
		whole[tile.Path()] = string(raw)
		path := filepath.Join(r.dir, engineDir, tile.Path())
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(strings.Repeat("x", len(raw))), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	report := r.audit()
	if report.Outcome() != audit.AllGood || report.Counts[audit.Leftover] != len(stale) {
		t.Errorf("the audit says %v %s", report.Counts, findings(report))
	}
	l := r.ready()
	for path, want := range whole {
		if res := get(r.handler(l), "/"+path); res.Code != 200 || res.Body.String() != want {
			t.Errorf("%s: %d, the bytes of another batch", path, res.Code)
		}
	}
}

// TestFsckOverlooks: what Tessera's fsck calls a good log and our audit does not.
func TestFsckOverlooks(t *testing.T) {
	t.Run("an entry more in a partial bundle", func(t *testing.T) {
		r := filled(t, 300)
		path := filepath.Join(r.dir, engineDir, c2sp.Tile{Level: -1, Index: 1, Width: 44}.Path())
		raw := readFile(t, path)
		if err := os.WriteFile(path, []byte(raw+"\x00\x05extra"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := r.fsck(); err != nil {
			t.Errorf("fsck sees it now: %v (FAULTS says it does not: this row may go)", err)
		}
		if report := r.audit(); report.Outcome() != audit.Found || !strings.Contains(findings(report), "damage bundle "+c2sp.Tile{Level: -1, Index: 1, Width: 44}.Path()) {
			t.Errorf("the audit says %q", findings(report))
		}
	})
	t.Run("a fork", func(t *testing.T) {
		// The same key served two histories, whole and consistent in themselves.
		r := filled(t, 300)
		seen := []byte(readFile(t, filepath.Join(r.dir, checkpointFile)))
		other := *r
		other.dir, other.anchor = filepath.Join(t.TempDir(), "log"), filepath.Join(t.TempDir(), "anchor")
		if err := Init(t.Context(), other.dir, other.anchor, r.signer.Key()); err != nil {
			t.Fatal(err)
		}
		other.policy, other.witnesses = "quorum none\n", nil
		l := other.ready()
		other.bulk(l, 1000, 400)
		l.Close()
		if err := other.fsck(); err != nil {
			t.Errorf("fsck: %v", err)
		}
		report := other.audit(func(c *audit.Config) {
			c.Seen = []audit.Seen{{From: "a client", Raw: seen, Published: true}}
		})
		if report.Outcome() != audit.Found || !strings.Contains(findings(report), "tampering fork a client") {
			t.Errorf("the audit says %q", findings(report))
		}
	})
}

// TestAuditFindsIndexDamage: rows that the log does not imply.
func TestAuditFindsIndexDamage(t *testing.T) {
	e := *nth(17)
	e.Registry, e.Claim = testRegistry, entry.ClaimIndex
	slot, _, err := slotKey(&e)
	if err != nil {
		t.Fatal(err)
	}
	type posting struct{ key, rel uint64 }
	for name, damage := range map[string]func(ps []posting) ([]posting, uint64){
		"row lost": func(ps []posting) ([]posting, uint64) {
			return slices.DeleteFunc(ps, func(p posting) bool { return p.key == rowKey(slot) }), 300
		},
		"row moved": func(ps []posting) ([]posting, uint64) {
			for i := range ps {
				if ps[i].key == rowKey(slot) {
					ps[i].rel = 18
				}
			}
			return ps, 300
		},
		"beyond the log": func(ps []posting) ([]posting, uint64) { return ps, 301 },
		"damaged":        nil,
	} {
		t.Run(name, func(t *testing.T) {
			r := filled(t, 300)
			dir := filepath.Join(r.dir, indexDir)
			x, err := readIndex(dir)
			if err != nil || len(x.runs) != 1 {
				t.Fatal(err, len(x.runs))
			}
			var ps []posting
			if err := mergePostings(x.runs, 0, func(key, rel uint64) bool { ps = append(ps, posting{key, rel}); return true }); err != nil {
				t.Fatal(err)
			}
			number := x.runs[0].number
			x.closeRuns()
			if damage == nil {
				flip(t, filepath.Join(dir, runName(number)), 3000)
			} else {
				ps, to := damage(ps)
				run, err := newRun(dir, number, 0, to, uint64(len(ps)), func(yield func(key, rel uint64) bool) {
					for _, p := range ps {
						yield(p.key, p.rel)
					}
				})
				if err != nil {
					t.Fatal(err)
				}
				run.file.Close()
			}
			if report := r.audit(); report.Outcome() != audit.Found || !strings.Contains(findings(report), "damage index uniqueness index") {
				t.Errorf("the audit says %q", findings(report))
			}
			// rebuild-index brings back what was.
			if _, err := RebuildIndex(t.Context(), r.dir, nil); err != nil {
				t.Fatal(err)
			}
			r.audited()
		})
	}
}

// TestAuditReadsTheJournal: what waits in it is noted, and damage to it, or an
// entry that it has otherwise than the tiles, is found.
func TestAuditReadsTheJournal(t *testing.T) {
	t.Parallel()
	origin := newRig(t, 1, 1)
	dir, anchor := origin.receipts(2)
	change := func(do func(raw []byte) []byte) func(*testing.T, *rig, string) {
		return func(t *testing.T, _ *rig, segment string) {
			if err := os.WriteFile(segment, do([]byte(readFile(t, segment))), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	// at is where frame n of a segment begins.
	at := func(raw []byte, n int) (at int) {
		for range n {
			at += frameHead + int(binary.LittleEndian.Uint32(raw[at:]))
		}
		return at
	}
	flip := func(n int) func(*testing.T, *rig, string) {
		return change(func(raw []byte) []byte { raw[at(raw, n)+frameHead+40] ^= 1; return raw })
	}
	other := func(origin string, first uint64) func(*testing.T, *rig, string) {
		return func(t *testing.T, r *rig, segment string) {
			if err := os.Remove(segment); err != nil {
				t.Fatal(err)
			}
			j, err := openJournal(filepath.Dir(segment), origin, nil, first)
			if err != nil {
				t.Fatal(err)
			}
			j.f.Close() // as a crash leaves it
		}
	}
	name := origin.signer.Key().Name()
	for _, row := range []struct {
		name       string
		do         func(t *testing.T, r *rig, segment string)
		find, note string
	}{
		{"as a crash left it", nil, "", "2 entries wait in the journal, from 1 on"},
		{"its last frame torn", flip(3), "", "1 entries wait in the journal, from 1 on"},
		{"a frame before the last damaged", flip(2), "damage journal journal/000000000001: what comes after its entry 0 is unreadable", ""},
		{"its head damaged", change(func(raw []byte) []byte { raw[frameHead+1] ^= 1; return raw }), "damage journal journal/000000000001: its head is unreadable", ""},
		{"a kind of frame that is none", change(func(raw []byte) []byte {
			n := at(raw, 2)
			size := int(binary.LittleEndian.Uint32(raw[n:]))
			raw[n+frameHead] = 'X'
			binary.LittleEndian.PutUint32(raw[n+4:], crc32.Checksum(raw[n+frameHead:n+frameHead+size], castagnoli))
			return raw
		}), "damage journal journal/000000000001: a frame is of no known kind", ""},
		{"no entry in it", change(func(raw []byte) []byte {
			return frame(raw[:at(raw, 2)], append(binary.AppendUvarint([]byte{entriesMark}, 1), 0, 2, '{', '}'))
		}), "damage journal journal/000000000001: entry 1: ", ""},
		{"another file", func(t *testing.T, _ *rig, segment string) {
			if err := os.WriteFile(segment+"~", nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "damage journal journal/000000000001~: is no file of a journal", ""},
		{"of another log", other("log.example/other", 1), "damage journal journal/000000000001: it is of the log \"log.example/other\"", ""},
		{"tiles of before it", other(name, 3), "damage journal journal: it begins at entry 3, and the tiles have 1", ""},
		{"another entry in the tiles", func(_ *testing.T, r *rig, _ string) { r.addBeneath(7, 1) }, "damage journal entry 1: it is another in the journal than in the tiles", ""},
		{"the same entry in the tiles", func(t *testing.T, r *rig, _ string) {
			if err := os.RemoveAll(filepath.Join(r.dir, journalDir)); err != nil {
				t.Fatal(err)
			}
			r.addBeneath(7, 1)
			tree := tree{ctx: t.Context(), src: directory(filepath.Join(r.dir, engineDir)), size: 2}
			leaves, err := tree.leaves(1, 1)
			if err != nil {
				t.Fatal(err)
			}
			j, err := openJournal(filepath.Join(r.dir, journalDir), name, nil, 1)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := j.append([]*submission{{by: "k", leaf: leaves[0]}}); err != nil {
				t.Fatal(err)
			}
			j.f.Close()
		}, "", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			mine := filepath.Join(t.TempDir(), "log")
			copyDir(t, dir, mine)
			r := origin.crashed(mine, anchor)
			if row.do != nil {
				row.do(t, r, filepath.Join(r.dir, journalDir, "000000000001"))
			}
			report := r.audit()
			got := findings(report)
			if row.find == "" && got != "" || !strings.HasPrefix(got, row.find) || strings.Contains(got, "\n") {
				t.Errorf("found %q, want %q", got, row.find)
			}
			if notes := strings.Join(report.Notes, "\n"); !strings.Contains(notes, row.note) || row.note == "" && strings.Contains(notes, "wait in the journal") {
				t.Errorf("notes %q, want %q", notes, row.note)
			}
		})
	}
}
