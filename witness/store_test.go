package witness

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
)

func createStore(t *testing.T) (*Store, *c2sp.Signer) {
	t.Helper()
	signer := mustSigner(t, "witness.example/w1", c2sp.AlgEd25519Cosig)
	s, err := CreateStore(context.Background(), filepath.Join(t.TempDir(), DatabaseFile), []*c2sp.Key{signer.Key()}, noon)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, signer
}

// Rule: the state of a witness is never silently made anew.
func TestStateIsNeverMadeAnew(t *testing.T) {
	refused := func(t *testing.T, path, want string) {
		t.Helper()
		before, _ := os.ReadFile(path)
		s, err := OpenStore(path)
		if err == nil {
			s.Close()
			t.Fatal("opened")
		}
		if !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("the error does not say %q and name the file: %v", want, err)
		}
		if after, _ := os.ReadFile(path); string(after) != string(before) {
			t.Error("the file was changed")
		}
	}
	t.Run("missing", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), DatabaseFile)
		refused(t, path, "begin a new one")
		if _, err := OpenStore(path); !errors.Is(err, ErrNoState) {
			t.Error(err)
		}
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Error("looking for it made it")
		}
		// Nor would SQLite make it, if it went away after we looked.
		s, err := connect(path)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.write.Exec("CREATE TABLE x (y INTEGER)"); err == nil {
			t.Error("SQLite made a database")
		}
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Error("SQLite made the file")
		}
	})
	t.Run("missing directory", func(t *testing.T) {
		refused(t, filepath.Join(t.TempDir(), "unmounted", DatabaseFile), "not mounted")
	})
	t.Run("empty file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), DatabaseFile)
		os.WriteFile(path, nil, 0o600)
		if _, err := OpenStore(path); !errors.Is(err, ErrNoState) {
			t.Error(err)
		}
	})
	t.Run("not a database", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), DatabaseFile)
		os.WriteFile(path, []byte(strings.Repeat("not a database\n", 500)), 0o600)
		if _, err := OpenStore(path); err == nil {
			t.Error("opened")
		}
	})
	t.Run("another program's database", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), DatabaseFile)
		db, _ := sql.Open("sqlite", path)
		if _, err := db.Exec("CREATE TABLE witness_key (vkey TEXT); INSERT INTO witness_key VALUES ('x')"); err != nil {
			t.Fatal(err)
		}
		db.Close()
		os.Chmod(path, 0o600)
		if _, err := OpenStore(path); !errors.Is(err, ErrNoState) {
			t.Error(err)
		}
	})
	t.Run("init was interrupted", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), DatabaseFile)
		os.WriteFile(path, nil, 0o600)
		s, err := connect(path)
		if err != nil {
			t.Fatal(err)
		}
		s.write.Exec("PRAGMA application_id = 1346533225") // ours, and nothing after it
		s.Close()
		refused(t, path, "run init again")
	})
	t.Run("a symbolic link", func(t *testing.T) {
		s, _ := createStore(t)
		path := filepath.Join(t.TempDir(), "link.db")
		os.Symlink(s.path, path)
		refused(t, path, "not a plain file")
	})
	t.Run("readable by others", func(t *testing.T) {
		s, _ := createStore(t)
		os.Chmod(s.path, 0o640)
		refused(t, s.path, "chmod 600")
	})
	t.Run("written by a newer version", func(t *testing.T) {
		s, _ := createStore(t)
		if _, err := s.write.Exec("INSERT INTO goose_db_version (version_id, is_applied) VALUES (999, 1)"); err != nil {
			t.Fatal(err)
		}
		s.Close()
		refused(t, s.path, "upgrade")
	})
	t.Run("made over an existing one", func(t *testing.T) {
		s, signer := createStore(t)
		if _, err := CreateStore(context.Background(), s.path, []*c2sp.Key{signer.Key()}, noon); err == nil {
			t.Error("made again")
		}
		if _, err := os.Stat(s.path); err != nil {
			t.Error("the refusal took the old one away")
		}
	})
}

func TestStoreOfAnotherKeyIsRefused(t *testing.T) {
	s, signer := createStore(t)
	if _, err := New(Config{Signer: signer, Store: s}); err != nil {
		t.Fatal(err)
	}
	for name, other := range map[string]*c2sp.Signer{
		"another key of the same name": mustSigner(t, signer.Key().Name(), c2sp.AlgEd25519Cosig),
		"another name and key":         mustSigner(t, "witness.example/w2", c2sp.AlgEd25519Cosig),
	} {
		if _, err := New(Config{Signer: other, Store: s}); !errors.Is(err, ErrOtherKey) || !strings.Contains(err.Error(), "put the key file back") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The binding cannot be changed either.
	for _, stmt := range []string{"UPDATE witness_key SET name = 'x'", "DELETE FROM witness_key"} {
		if _, err := s.write.Exec(stmt); err == nil {
			t.Errorf("%s: done", stmt)
		}
	}
}

// What the program checks, the database refuses once more.
func TestDatabaseRefusesToGoBack(t *testing.T) { eachStore(t, databaseRefusesToGoBack) }

func databaseRefusesToGoBack(t *testing.T, r *rig) {
	zeros := func(n int) string {
		if r.dir.Store.postgres {
			return fmt.Sprintf("decode(repeat('00', %d), 'hex')", n)
		}
		return fmt.Sprintf("zeroblob(%d)", n)
	}
	r.must(r.post(r.log.request(0, 5)), 200)
	for _, stmt := range []string{
		"UPDATE head SET size = 4",
		"UPDATE head SET root = " + zeros(32),
		"UPDATE head SET time = time - 1, size = 6",
		"UPDATE head SET root = " + zeros(31) + ", size = 6",
		"UPDATE head SET size = -1",
		"DELETE FROM head",
		"DELETE FROM log",
		"UPDATE generation SET n = n - 1",
		"DELETE FROM generation",
		"UPDATE witness_key SET name = 'x'",
		"DELETE FROM witness_key",
	} {
		if _, err := r.dir.Store.write.Exec(stmt); err == nil {
			t.Errorf("%s: done", stmt)
		}
	}
	r.must(r.post(r.log.request(5, 6)), 200)
}

func TestStoreIsDurableByItsSettings(t *testing.T) {
	s, _ := createStore(t)
	for _, db := range []*sql.DB{s.read, s.write} {
		for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1"} {
			var got string
			if err := db.QueryRow("PRAGMA " + pragma).Scan(&got); err != nil || got != want {
				t.Errorf("%s = %s, want %s (%v)", pragma, got, want, err)
			}
		}
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if st, err := os.Stat(s.path + suffix); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s%s: %v %v", s.path, suffix, st, err)
		}
	}
}

func TestAddLog(t *testing.T) {
	t.Run("SQLite", func(t *testing.T) {
		s, signer := createStore(t)
		addLog(t, s, signer)
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		signer := mustSigner(t, "witness.example/w1", c2sp.AlgEd25519Cosig)
		s, err := CreatePostgres(t.Context(), newDatabase(t), []*c2sp.Key{signer.Key()}, noon)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		addLog(t, s, signer)
	})
}

func addLog(t *testing.T, s *Store, signer *c2sp.Signer) {
	ctx := context.Background()
	a, b := newLog(t, "example.com/a"), newLog(t, "example.com/b")
	add := func(origin string, keys ...*c2sp.Key) (int, error) { return s.AddLog(ctx, origin, keys) }
	if n, err := add(a.origin, a.signer.Key()); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := add(a.origin, a.signer.Key()); n != 0 || err != nil {
		t.Error("the same again:", n, err)
	}
	second := mustSigner(t, a.origin, c2sp.AlgEd25519).Key()
	if n, err := add(a.origin, a.signer.Key(), second); n != 1 || err != nil {
		t.Error("one more key:", n, err)
	}
	for name, try := range map[string]struct {
		origin string
		key    *c2sp.Key
		want   string
	}{
		"a key of another log":               {b.origin, a.signer.Key(), "one key, one log"},
		"the same raw key, relabelled":       {b.origin, relabel(t, a.signer, b.origin, c2sp.AlgEd25519), "one key, one log"},
		"the same, for its own log":          {a.origin, relabel(t, a.signer, "example.com/a2", c2sp.AlgEd25519), "one key, one log"},
		"a witness's key":                    {b.origin, mustSigner(t, b.origin, c2sp.AlgEd25519Cosig).Key(), "no log signs with"},
		"this witness's raw key, relabelled": {b.origin, relabel(t, signer, b.origin, c2sp.AlgEd25519), "own key"},
		"an empty origin":                    {"", b.signer.Key(), "origin"},
		"an origin of two lines":             {"a\nb", b.signer.Key(), "origin"},
		"an origin that is not UTF-8":        {"a\xff", b.signer.Key(), "origin"},
	} {
		if _, err := add(try.origin, try.key); err == nil || !strings.Contains(err.Error(), try.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := add(b.origin); err == nil {
		t.Error("a log without keys")
	}
	logs, err := s.Logs(ctx)
	if err != nil || len(logs) != 1 || logs[0].Origin != a.origin || len(logs[0].Keys) != 2 || logs[0].Head != nil {
		t.Errorf("%+v %v: a refused log must leave nothing behind", logs, err)
	}
}

// relabel gives the raw key of s another name or type.
func relabel(t *testing.T, s *c2sp.Signer, name string, alg c2sp.Alg) *c2sp.Key {
	t.Helper()
	material := append([]byte{byte(alg)}, s.Key().Raw()...)
	id := sha256.Sum256(append([]byte(name+"\n"), material...))
	k, err := c2sp.ParseVKey(fmt.Sprintf("%s+%x+%s", name, id[:4], base64.StdEncoding.EncodeToString(material)))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestOneDirectoryOneWitness(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "w")
	d, err := CreateDir(ctx, path, "witness.example/w1", noon)
	if err != nil {
		t.Fatal(err)
	}
	vkey := d.Signer.Key().String()
	d.Close()
	if _, err := CreateDir(ctx, path, "witness.example/w1", noon); err == nil {
		t.Error("made twice")
	}
	reopen := func() error {
		d, err := OpenDir(path)
		if err == nil {
			if d.Signer.Key().String() != vkey {
				t.Error("another key")
			}
			d.Close()
		}
		return err
	}
	if err := reopen(); err != nil {
		t.Fatal(err)
	}
	key, db := filepath.Join(path, KeyFile), filepath.Join(path, DatabaseFile)
	refused := func(name, want string) {
		t.Helper()
		if err := reopen(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, mode := range []os.FileMode{0o640, 0o604, 0o620, 0o601} {
		os.Chmod(key, mode)
		refused("mode "+mode.String(), "chmod 600")
	}
	os.Chmod(key, 0o400)
	if err := reopen(); err != nil {
		t.Error(err)
	}
	os.Rename(key, key+".real")
	refused("no key", "a lost key ends the witness")
	os.Symlink(key+".real", key)
	refused("a link", "symbolic link")
	os.Remove(key)
	os.Mkdir(key, 0o700)
	refused("a directory", "not a plain file")
	os.Remove(key)
	os.WriteFile(key, []byte("PRIVATE+KEY+garbage\n"), 0o600)
	refused("garbage", "key")
	os.WriteFile(key, []byte(mustSigner(t, "witness.example/w1", c2sp.AlgEd25519Cosig).SKey()+"\n"), 0o600)
	refused("another key", "made for another key")
	os.Remove(key)
	os.Rename(key+".real", key)
	os.Rename(db, db+".real")
	refused("no database", "begin a new one")
	if _, err := CreateDir(ctx, path, "witness.example/w1", noon); err == nil {
		t.Error("init made new state for an old key")
	}
	os.Rename(db+".real", db)
	if err := reopen(); err != nil {
		t.Error(err)
	}
	if _, err := CreateDir(ctx, filepath.Join(t.TempDir(), "x"), "a name with spaces", noon); err == nil {
		t.Error("a name with spaces is taken")
	}
}

// A clock that went back is refused, log by log, and the error says so.
func TestClockGoesBack(t *testing.T) { eachStore(t, clockGoesBack) }

func clockGoesBack(t *testing.T, r *rig) {
	other := newLog(t, "example.com/other")
	r.trust(other)
	r.must(r.post(r.log.request(0, 5)), 200)
	for _, back := range []time.Duration{time.Second, time.Hour - time.Second} {
		r.clock.set(noon.Add(-back))
		if a := r.must(r.post(r.log.request(5, 6)), 503); !strings.Contains(a.body, "the clock of this witness") {
			t.Errorf("%s", a.body)
		}
		r.must(r.post(r.log.request(5, 5)), 503)
	}
	r.must(r.post(other.request(0, 3)), 200) // that log was never cosigned later
	r.clock.set(noon.Add(-time.Hour - time.Second))
	if a := r.must(r.post(other.request(3, 4)), 503); !strings.Contains(a.body, "clock") {
		t.Errorf("%s", a.body)
	}
	// The protocol's answers do not depend on the clock.
	r.must(r.post(r.log.request(0, 6)), 409)
	r.must(r.post(r.log.evil(2).request(5, 6)), 422)
	r.clock.set(noon) // the same second is not before
	r.must(r.post(r.log.request(5, 6)), 200)
	r.restart()
	r.clock.set(noon.Add(-time.Second))
	r.must(r.post(r.log.request(6, 7)), 503)
}
