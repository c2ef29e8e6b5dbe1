package logserver

// FAULTS suite f: a log restored from a backup, a lost anchor, lost and damaged
// tiles; and that backups can be used.

import (
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/logserver/audit"
)

// snapshot are the sums of the files of a log that follow from its tree: tiles,
// bundles, the engine's state.
func (r *rig) snapshot(size uint64) map[string][32]byte {
	r.t.Helper()
	sums := map[string][32]byte{}
	root := filepath.Join(r.dir, engineDir)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if tile, err := c2sp.ParseTilePath(filepath.ToSlash(rel)); err == nil && tile.Width < tileWidth {
			if have := size >> (max(tile.Level, 0) * tileHeight); tile.Index*tileWidth+uint64(tile.Width) != have {
				return nil // of a size before
			}
		}
		if !strings.HasPrefix(rel, "tile/") && rel != ".state/treeState" && rel != ".state/version" {
			return nil
		}
		sums[rel] = sha256.Sum256([]byte(readFile(r.t, path)))
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return sums
}

// same checks that everything in want is there again.
func (r *rig) same(want map[string][32]byte, size uint64) {
	r.t.Helper()
	have := r.snapshot(size)
	for path, sum := range want {
		if have[path] != sum {
			r.t.Errorf("%s is not what it was", path)
		}
	}
}

func (r *rig) mirror(l *Log) *httptest.Server {
	s := httptest.NewServer(r.handler(l))
	r.t.Cleanup(s.Close)
	return s
}

// TestRestoredLogIsRepaired: -1, -100, -10 %, everything: restored from a backup
// of then. It refuses to write, serves reads, signs nothing; repaired from a
// mirror it is what it was, byte for byte, and goes on.
func TestRestoredLogIsRepaired(t *testing.T) {
	for name, back := range map[string]int{"-1": 1, "-100": 100, "-10 %": 60, "everything": 600} {
		t.Run(name, func(t *testing.T) {
			const n = 600
			r := newRig(t, 3, 2)
			l := r.ready()
			if n > back {
				r.bulk(l, 0, n-back)
			} else {
				waitFor(t, "the first checkpoint", func() bool { return l.Published().Note != nil })
			}
			backup := filepath.Join(t.TempDir(), "backup")
			if o, err := Backup(t.Context(), r.dir, backup, nil); err != nil || o.Size != uint64(n-back) {
				t.Fatalf("%+v, %v", o, err)
			}
			r.bulk(l, n-back, back)
			l.Close()
			want := r.snapshot(n)
			// The mirror is a copy of what the log served.
			mirror := filepath.Join(t.TempDir(), "mirror")
			if _, err := Backup(t.Context(), r.dir, mirror, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := Restore(t.Context(), backup, r.dir, "", nil); err == nil || !strings.Contains(err.Error(), "holds a log") {
				t.Fatalf("restoring over a log: %v", err)
			}
			if err := os.RemoveAll(r.dir); err != nil {
				t.Fatal(err)
			}
			if _, err := Restore(t.Context(), backup, r.dir, "", nil); err != nil {
				t.Fatal(err)
			}
			id, err := ReadIdentity(r.dir)
			if err != nil {
				t.Fatal(err)
			}
			if m, err := BehindAnchor(id, uint64(n-back)); err != nil || m.Entries != uint64(back) {
				t.Errorf("behind the anchor by %+v, %v", m, err)
			}
			r.refusesToSign("has signed 600", uint64(n-back))
			if report := r.audit(); report.Outcome() != audit.Found || !strings.Contains(findings(report), "damage behind "+r.anchor) {
				t.Errorf("the audit says %s", findings(report))
			}
			// A mirror that is not there yet brings nothing, and breaks nothing.
			if _, err := Repair(t.Context(), r.dir, backup, nil); !errors.Is(err, ErrNotThere) || !strings.Contains(err.Error(), "wait until a mirror has them") {
				t.Errorf("repair from the old backup: %v", err)
			}
			r.refusesToSign("has signed 600", uint64(n-back))
			if _, err := Repair(t.Context(), r.dir, mirror, nil); err != nil {
				t.Fatal(err)
			}
			r.same(want, n)
			r.audited()
			l = r.ready()
			if ack := r.must(l, nth(n-1)); ack.Index != n-1 {
				t.Errorf("the last entry is at %d now", ack.Index)
			}
			if ack := r.must(l, nth(n)); ack.Index != n {
				t.Errorf("the next entry is at %d", ack.Index)
			}
			r.replayed(l)
		})
	}
}

// TestRepairDamage: any one file, and many at once, from a URL.
func TestRepairDamage(t *testing.T) {
	r := filled(t, 600)
	good := t.TempDir()
	copyDir(t, r.dir, filepath.Join(good, "log"))
	want := r.snapshot(600)
	reader := *r
	reader.dir = filepath.Join(good, "mirror")
	copyDir(t, r.dir, reader.dir)
	served := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/checkpoint" {
			http.ServeFile(w, req, filepath.Join(reader.dir, checkpointFile))
			return
		}
		http.ServeFile(w, req, filepath.Join(reader.dir, engineDir, filepath.FromSlash(req.URL.Path)))
	}))
	defer served.Close()

	var files []string
	for path := range want {
		files = append(files, path)
	}
	slices.Sort(files)
	in := func(path string) string { return filepath.Join(r.dir, engineDir, path) }
	for name, damage := range map[string]func(path string) error{
		"removed":  func(path string) error { return os.Remove(in(path)) },
		"flipped":  func(path string) error { flip(t, in(path), int64(rand.IntN(20))); return nil },
		"cut":      func(path string) error { return os.Truncate(in(path), 10) },
		"appended": func(path string) error { return os.WriteFile(in(path), []byte(readFile(t, in(path))+"x"), 0o644) },
	} {
		for i := range len(files) + 1 {
			which := files
			if i < len(files) {
				which = files[i : i+1]
			}
			for _, path := range which {
				if path == ".state/version" {
					continue
				}
				if err := damage(path); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := Repair(t.Context(), r.dir, served.URL, nil); err != nil {
				t.Fatalf("%s %v: %v", which, name, err)
			}
			r.same(want, 600)
			if report := r.audit(); report.Outcome() != audit.AllGood {
				t.Fatalf("%s %v:\n%s", which, name, findings(report))
			}
		}
	}
	t.Run("a lying mirror", func(t *testing.T) {
		r := *r
		r.t = t
		r.restore(filepath.Join(good, "log"))
		flip(t, filepath.Join(reader.dir, engineDir, "tile/entries/001"), 50)
		os.Remove(in("tile/entries/001"))
		if _, err := Repair(t.Context(), r.dir, served.URL, nil); !errors.Is(err, ErrNotThere) || !strings.Contains(err.Error(), "tile/entries/001: what ") {
			t.Errorf("got %v", err)
		}
		if _, err := os.Stat(in("tile/entries/001")); !errors.Is(err, fs.ErrNotExist) {
			t.Error("what the mirror lied about was written")
		}
		r.restore(filepath.Join(good, "log"))
	})
	t.Run("a mirror of a fork", func(t *testing.T) {
		r := *r
		r.t = t
		other := r
		other.dir, other.anchor = filepath.Join(t.TempDir(), "log"), filepath.Join(t.TempDir(), "anchor")
		if err := Init(t.Context(), other.dir, other.anchor, r.signer.Key()); err != nil {
			t.Fatal(err)
		}
		other.policy, other.witnesses = "quorum none\n", nil
		l := other.ready()
		other.bulk(l, 5000, 300)
		l.Close()
		before := r.snapshot(600)
		if _, err := Repair(t.Context(), r.dir, other.dir, nil); err == nil || !strings.Contains(err.Error(), "two histories") {
			t.Errorf("got %v", err)
		}
		r.same(before, 600)
	})
	t.Run("while it is served", func(t *testing.T) {
		r := *r
		r.t = t
		l := r.ready()
		r.must(l, nth(600))
		var locked *LockedError
		if _, err := Repair(t.Context(), r.dir, served.URL, nil); !errors.As(err, &locked) {
			t.Errorf("repair: %v", err)
		}
		if _, err := RebuildIndex(t.Context(), r.dir, nil); !errors.As(err, &locked) {
			t.Errorf("rebuild-index: %v", err)
		}
		l.Close()
	})
}

// TestLostAnchor: without it the log serves reads and signs nothing, and repair
// invents none.
func TestLostAnchor(t *testing.T) {
	r := filled(t, 300)
	mirror := filepath.Join(t.TempDir(), "mirror")
	if _, err := Backup(t.Context(), r.dir, mirror, nil); err != nil {
		t.Fatal(err)
	}
	os.Remove(r.anchor)
	os.Remove(filepath.Join(r.dir, engineDir, "tile/entries/000"))
	if _, err := Repair(t.Context(), r.dir, mirror, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(r.anchor); !errors.Is(err, fs.ErrNotExist) {
		t.Error("repair made an anchor")
	}
	r.refusesToSign("anchor is missing", 300)
}

// TestUnsignedTailSurvivesOrIsSetAside: what is beyond the anchor is kept if it
// is sound, and never counts if it is not.
func TestUnsignedTailSurvivesOrIsSetAside(t *testing.T) {
	for _, damaged := range []bool{false, true} {
		r := filled(t, 300)
		mirror := filepath.Join(t.TempDir(), "mirror")
		if _, err := Backup(t.Context(), r.dir, mirror, nil); err != nil {
			t.Fatal(err)
		}
		r.addBeneath(300, 400)
		flip(t, filepath.Join(r.dir, engineDir, "tile/entries/000"), 40)
		want := uint64(700)
		if damaged {
			flip(t, filepath.Join(r.dir, engineDir, "tile/entries/002.p/188"), 40)
			want = 300
		}
		if _, err := Repair(t.Context(), r.dir, mirror, nil); err != nil {
			t.Fatal(err)
		}
		if size, _, err := readEngineState(filepath.Join(r.dir, engineDir)); err != nil || size != want {
			t.Errorf("damaged %v: size %d, %v", damaged, size, err)
		}
		l := r.ready()
		r.must(l, nth(1000))
		r.replayed(l)
	}
}

// TestBackup: incremental, of a live log, healing, and refusing what would
// overwrite a good one.
func TestBackup(t *testing.T) {
	r := newRig(t, 1, 1)
	l := r.ready()
	to := filepath.Join(t.TempDir(), "backup")
	back := func() Outcome {
		t.Helper()
		o, err := Backup(t.Context(), r.dir, to, nil)
		if err != nil {
			t.Fatal(err)
		}
		report, err := audit.Run(t.Context(), audit.Config{Mirror: to, Keys: []audit.Key{{VKey: r.signer.Key().String()}}})
		if err != nil || report.Outcome() != audit.AllGood || uint64(report.Size) != o.Size {
			t.Fatalf("%v: %+v", err, report)
		}
		return o
	}
	r.bulk(l, 0, 300)
	waitFor(t, "size 300", func() bool { return l.Published().Size == 300 })
	first := back()
	if again := back(); again.Written != 0 || again.Size != first.Size {
		t.Errorf("again: %+v", again)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := range 10 {
			r.bulk(l, 300+100*n, 100)
		}
	}()
	for live := true; live; {
		select {
		case <-done:
			live = false
		default:
		}
		back()
	}
	flip(t, filepath.Join(to, "tile/entries/001"), 100)
	os.Remove(filepath.Join(to, "tile/0/002"))
	if healed := back(); healed.Written != 2 {
		t.Errorf("healing wrote %d files", healed.Written)
	}
	for _, name := range []string{"anchor", KeyFile, indexDir, streamsFile} {
		if _, err := os.Stat(filepath.Join(to, name)); err == nil {
			t.Errorf("the backup has %s", name)
		}
	}
	l.Close()

	t.Run("of a log that went back", func(t *testing.T) {
		old := filepath.Join(t.TempDir(), "old")
		r := *r
		r.t = t
		if _, err := Restore(t.Context(), to, filepath.Join(old, "log"), "", nil); err != nil {
			t.Fatal(err)
		}
		who, err := ReadAttribution(filepath.Join(old, "log")) // comes back with the log
		if err != nil {
			t.Fatal(err)
		}
		var n uint64
		for _, run := range who.By(r.token.ID) {
			n += run.Count
		}
		if n != 1300 {
			t.Errorf("the restored record says who logged %d entries, want 1300", n)
		}
		l := (&r).ready()
		r.must(&*l, nth(5000))
		l.Close()
		if _, err := Backup(t.Context(), r.dir, to, nil); err != nil {
			t.Fatal(err)
		}
		before := readFile(t, filepath.Join(to, checkpointFile))
		if _, err := Backup(t.Context(), filepath.Join(old, "log"), to, nil); err == nil || !strings.Contains(err.Error(), "kept as it is") {
			t.Errorf("got %v", err)
		}
		if readFile(t, filepath.Join(to, checkpointFile)) != before {
			t.Error("the backup was touched")
		}
	})
	t.Run("of a damaged log", func(t *testing.T) {
		other := filepath.Join(t.TempDir(), "other")
		flip(t, filepath.Join(r.dir, engineDir, "tile/entries/001"), 100)
		if _, err := Backup(t.Context(), r.dir, other, nil); !errors.Is(err, ErrNotThere) {
			t.Errorf("got %v", err)
		}
		if _, err := os.Stat(filepath.Join(other, checkpointFile)); err == nil {
			t.Error("a backup that is not whole has a checkpoint")
		}
		if _, err := Backup(t.Context(), r.dir, to, nil); err != nil { // it has the good bytes already
			t.Errorf("a backup that is whole: %v", err)
		}
	})
}

// TestKilledWhileFilling: backup, restore and rebuild-index are killed at random
// moments and run again.
func TestKilledWhileFilling(t *testing.T) {
	r := filled(t, 5000)
	dir := t.TempDir()
	backup, restored := filepath.Join(dir, "backup"), filepath.Join(dir, "restored")
	run := func(verb string, args ...string) bool {
		cmd := exec.Command(os.Args[0], append([]string{verb}, args...)...)
		cmd.Env = append(os.Environ(), fillEnv+"=1")
		start := time.Now()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Duration(rand.IntN(120))*time.Millisecond, func() { cmd.Process.Kill() })
		defer timer.Stop()
		err := cmd.Wait()
		t.Logf("%s: %v after %v", verb, err, time.Since(start))
		return err == nil
	}
	rounds := 8
	for range rounds {
		if run("backup", r.dir, backup) {
			break
		}
	}
	if _, err := Backup(t.Context(), r.dir, backup, nil); err != nil {
		t.Fatal(err)
	}
	for range rounds {
		if run("restore", backup, restored) {
			break
		}
	}
	if _, err := os.Stat(filepath.Join(restored, identityFile)); err != nil {
		if _, err := Restore(t.Context(), backup, restored, "", nil); err != nil {
			t.Fatal(err)
		}
	}
	before, err := DigestIndex(t.Context(), r.dir)
	if err != nil {
		t.Fatal(err)
	}
	for range rounds {
		run("rebuild", r.dir)
		if d, err := DigestIndex(t.Context(), r.dir); err != nil || d != before {
			t.Fatalf("after a kill: %+v, %v; was %+v", d, err, before)
		}
	}
	if d, err := RebuildIndex(t.Context(), r.dir, nil); err != nil || d != before {
		t.Fatalf("%+v, %v; was %+v", d, err, before)
	}
	left, _ := filepath.Glob(filepath.Join(r.dir, "*rebuilding*"))
	if len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	want := r.snapshot(5000)
	other := *r
	other.dir = restored
	other.same(want, 5000)
	other.auditedUnserved()
	r.audited()
}

// auditedUnserved is audited for a log that was never served, and so has no index.
func (r *rig) auditedUnserved() {
	r.t.Helper()
	if report := r.audit(); report.Outcome() != audit.AllGood {
		r.t.Errorf("audit:\n%s", findings(report))
	}
	if err := r.fsck(); err != nil {
		r.t.Errorf("fsck: %v", err)
	}
}

const fillEnv = "PORTBOOK_LOG_TEST_FILL"

// fillMain is this test binary as a verb.
func fillMain(args []string) (err error) {
	ctx := context.Background()
	switch args[0] {
	case "backup":
		_, err = Backup(ctx, args[1], args[2], nil)
	case "restore":
		_, err = Restore(ctx, args[1], args[2], "", nil)
	case "rebuild":
		_, err = RebuildIndex(ctx, args[1], nil)
	}
	return err
}

// TestRevokedStaysRefusedAfterRestore: a backup does not know what was revoked
// after it was made, so nothing of it is honoured before somebody says so.
func TestRevokedStaysRefusedAfterRestore(t *testing.T) {
	r := newRig(t, 0, 0)
	s := r.serve()
	s.bulk(s.log, 0, 3)
	make := func(c Credential) (Credential, string) {
		c, secret, err := s.log.Tokens.Create(c)
		if err != nil {
			t.Fatal(err)
		}
		return c, secret
	}
	writes := Credential{Registry: testRegistry, Claim: entry.ClaimIndex, Kinds: entry.Kinds()[:1]}
	before, beforeSecret := make(writes)
	stolen, stolenSecret := make(writes)
	good, goodSecret := make(writes)
	turned, turnedSecret := make(writes)
	if err := s.log.Tokens.Revoke(before.ID); err != nil {
		t.Fatal(err)
	}
	// A backup as this version makes it, and one as older versions did.
	backup := filepath.Join(t.TempDir(), "backup")
	if _, err := Backup(t.Context(), r.dir, backup, nil); err != nil {
		t.Fatal(err)
	}
	older := readFile(t, filepath.Join(r.dir, TokensFile))
	if err := s.log.Tokens.Revoke(stolen.ID); err != nil {
		t.Fatal(err)
	}
	newest, err := s.log.Tokens.Rotate(turned.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.log.Close()

	for name, content := range map[string]string{"of this version": readFile(t, filepath.Join(backup, TokensFile)), "of an older version": older} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(backup, TokensFile), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			to := filepath.Join(t.TempDir(), "log")
			if _, err := Restore(t.Context(), backup, to, "", nil); err != nil {
				t.Fatal(err)
			}
			back := (&rig{t: t, dir: to, anchor: r.anchor, signer: r.signer, policy: r.policy, token: r.token}).serve()
			submit := func(secret string) (int, string) {
				code, _, out := back.rest("POST", "/v1/entries", secret, restEntry(nth(1)))
				detail, _ := out["detail"].(string)
				return code, detail
			}
			for who, secret := range map[string]string{"stolen": stolenSecret, "revoked before": beforeSecret, "good": goodSecret, "rotated": turnedSecret, "its new secret": newest} {
				if code, _ := submit(secret); code != 401 {
					t.Errorf("%s: %d before anything was confirmed", who, code)
				}
			}
			if _, detail := submit(goodSecret); !strings.Contains(detail, "not confirmed") {
				t.Errorf("the caller is told %q", detail)
			}
			if n := back.log.Refusals()[reasonSuspended]; n < 4 {
				t.Errorf("counted %d refusals", n)
			}
			// As the command line does it, each for itself.
			tokens, err := OpenTokens(filepath.Join(to, TokensFile), time.Now)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tokens.Confirm(before.ID); err == nil || !strings.Contains(err.Error(), "revoked") {
				t.Errorf("confirming what was revoked before the backup: %v", err)
			}
			if _, err := tokens.Confirm(good.ID, "0000000000000000"); err == nil {
				t.Error("confirmed one that is not there")
			}
			if code, _ := submit(goodSecret); code != 401 {
				t.Errorf("half a confirmation counts: %d", code)
			}
			if _, err := tokens.Rotate(turned.ID, time.Hour); err == nil {
				t.Error("a suspended secret goes on beside a new one")
			}
			if err := tokens.Revoke(stolen.ID); err != nil {
				t.Fatal(err)
			}
			another, err := tokens.Rotate(turned.ID, 0)
			if err != nil {
				t.Fatal(err)
			}
			if ids, err := tokens.Confirm(); err != nil || slices.Contains(ids, stolen.ID) || slices.Contains(ids, before.ID) || !slices.Contains(ids, good.ID) || slices.Contains(ids, turned.ID) {
				t.Errorf("confirmed all: %v, %v", ids, err)
			}
			if err := back.log.Tokens.Reload(); err != nil {
				t.Fatal(err)
			}
			for _, row := range []struct {
				who, secret string
				want        int
			}{{"stolen", stolenSecret, 401}, {"revoked before", beforeSecret, 401}, {"good", goodSecret, 200}, {"rotated", turnedSecret, 401}, {"its newest secret", another, 200}} {
				if code, detail := submit(row.secret); code != row.want {
					t.Errorf("%s: %d %s, want %d", row.who, code, detail, row.want)
				}
			}
		})
	}
}

// TestBackupOfDamagedCredentials keeps the entries, and the credentials that it had.
func TestBackupOfDamagedCredentials(t *testing.T) {
	r := newRig(t, 0, 0)
	l := r.ready()
	r.must(l, nth(0))
	backup := filepath.Join(t.TempDir(), "backup")
	if _, err := Backup(t.Context(), r.dir, backup, nil); err != nil {
		t.Fatal(err)
	}
	kept := readFile(t, filepath.Join(backup, TokensFile))
	r.must(l, nth(1))
	l.Close()
	tokens := filepath.Join(r.dir, TokensFile)
	for name, content := range map[string]string{"empty": "", "cut off": readFile(t, tokens)[:50], "nonsense": "{}"} {
		if err := os.WriteFile(tokens, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if o, err := Backup(t.Context(), r.dir, backup, nil); err == nil || !strings.Contains(err.Error(), "all is backed up but the credentials") || o.Size != 2 {
			t.Errorf("%s: %+v, %v", name, o, err)
		}
		if readFile(t, filepath.Join(backup, TokensFile)) != kept {
			t.Errorf("%s: the backup's credentials were replaced", name)
		}
		// A backup that holds such a file is not restored with none, unasked.
		if err := os.WriteFile(filepath.Join(backup, TokensFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(t.TempDir(), "log")
		if _, err := Restore(t.Context(), backup, to, "", nil); err == nil || !strings.Contains(err.Error(), "take that file out") {
			t.Errorf("%s: restored: %v", name, err)
		}
		if err := os.WriteFile(filepath.Join(backup, TokensFile), []byte(kept), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
