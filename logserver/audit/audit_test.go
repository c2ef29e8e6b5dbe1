package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/tlog"
)

// TestHealthy: every size at which something begins or ends, and its root as
// x/mod computes it, at every width of the last tile.
func TestHealthy(t *testing.T) {
	sizes := []int{0, 1, 2, 3, 255, 256, 257, 511, 512, 513, 1000, 65535, 65536, 65537, 66000}
	if testing.Short() {
		sizes = sizes[:11]
	}
	f := newFake(t)
	for _, size := range sizes {
		f.add(files(len(f.leaves), size-len(f.leaves))...)
		f.publish()
		r := f.audit()
		if r.Outcome() != AllGood || len(r.Findings) > 0 || r.Size != int64(size) || tlog.Hash(r.Root) != f.root(size) || r.Slots != int64(size) {
			t.Errorf("size %d: %d entries, %d slots: %s", size, r.Size, r.Slots, kinds(r))
		}
	}
	// All checkpoints there ever were, at once, and through a web server, with
	// partial tiles removed.
	cfg := f.config()
	for range 200 {
		n := rand.IntN(len(f.leaves) + 1)
		cfg.Seen = append(cfg.Seen, Seen{From: fmt.Sprint(n), Raw: f.note(n, f.root(n)), Published: true})
	}
	s := httptest.NewServer(http.FileServer(http.Dir(f.dir)))
	defer s.Close()
	cfg.Mirror, cfg.URL = "", s.URL+"/"
	r, err := Run(t.Context(), cfg)
	if err != nil || r.Outcome() != AllGood || r.Seen != 200 {
		t.Errorf("%v: %d seen, %s", err, r.Seen, kinds(r))
	}
}

// TestDamage: one row for each thing that can be wrong with the bytes, and what
// the report says of it: the file that is bad and no other.
func TestDamage(t *testing.T) {
	flip := func(path string, at int) func(f *fake) {
		return func(f *fake) {
			raw := f.read(path)
			if at < 0 {
				at += len(raw)
			}
			raw[at] ^= 4
			f.write(path, raw)
		}
	}
	set := func(path string, change func([]byte) []byte) func(f *fake) {
		return func(f *fake) { f.write(path, change(f.read(path))) }
	}
	remove := func(path string) func(f *fake) {
		return func(f *fake) {
			if err := os.Remove(filepath.Join(f.dir, path)); err != nil {
				f.t.Fatal(err)
			}
		}
	}
	const root = "; damage root checkpoint"
	for _, row := range []struct {
		name string
		do   func(f *fake)
		want string
	}{
		{"a byte of a leaf", flip("tile/entries/000", 100), "damage bundle tile/entries/000"},
		{"a leaf's length", flip("tile/entries/001", 0), "damage bundle tile/entries/001"},
		{"a byte of a leaf at the edge", flip("tile/entries/002.p/88", 100), "damage bundle tile/entries/002.p/88"},
		{"a leaf hash", flip("tile/0/001", 70), "damage tile tile/0/001"},
		{"a leaf hash at the edge", flip("tile/0/002.p/88", 70), "damage tile tile/0/002.p/88"},
		{"a node", flip("tile/1/000.p/2", 33), "damage tile tile/1/000.p/2"},
		{"a node, and the leaf below it", func(f *fake) { flip("tile/1/000.p/2", 33)(f); flip("tile/entries/001", 100)(f) },
			"damage bundle-or-tile tile/entries/001"},
		{"bundle and tile changed together", func(f *fake) { // by somebody who knows how
			raw := f.read("tile/entries/000")
			raw[100] ^= 4
			f.write("tile/entries/000", raw)
			ends, err := splitBundle(raw, perTile, nil)
			if err != nil {
				f.t.Fatal(err)
			}
			h := tlog.RecordHash(raw[2:ends[0]])
			tiles := f.read("tile/0/000")
			copy(tiles, h[:])
			f.write("tile/0/000", tiles)
		}, "tampering|damage tile tile/1/000.p/2; damage root"},
		{"an entry more in a partial bundle", set("tile/entries/002.p/88", func(b []byte) []byte { return append(append(b, 0, 1), 'x') }), "damage bundle tile/entries/002.p/88"},
		{"an entry more in a full bundle", set("tile/entries/001", func(b []byte) []byte { return append(append(b, 0, 1), 'x') }), "damage bundle tile/entries/001"},
		{"one byte more in a bundle", set("tile/entries/001", func(b []byte) []byte { return append(b, 0) }), "damage bundle tile/entries/001"},
		{"one byte less in a bundle", set("tile/entries/001", func(b []byte) []byte { return b[:len(b)-1] }), "damage bundle tile/entries/001"},
		{"an empty bundle", set("tile/entries/001", func([]byte) []byte { return nil }), "damage bundle tile/entries/001"},
		{"a byte more in a tile", set("tile/0/001", func(b []byte) []byte { return append(b, 0) }), "damage missing tile/0/001"},
		{"a hash less in a tile", set("tile/0/001", func(b []byte) []byte { return b[32:] }), "damage tile tile/0/001"},
		{"a hash more in a partial tile", set("tile/0/002.p/88", func(b []byte) []byte { return append(b, b[:32]...) }), "damage tile tile/0/002.p/88"},
		{"bundle missing", remove("tile/entries/001"), "damage missing tile/entries/001"},
		{"tile missing", remove("tile/0/001"), "damage missing tile/0/001"},
		{"upper tile missing", remove("tile/1/000.p/2"), "damage missing tile/1/000.p/2"},
		{"edge bundle missing", remove("tile/entries/002.p/88"), "damage missing tile/entries/002.p/88"},
		{"bundle and its tile missing", func(f *fake) { remove("tile/entries/001")(f); remove("tile/0/001")(f) }, "damage missing tile/0/001; damage missing tile/entries/001"},
		{"a bundle of zeros", set("tile/entries/000", func(b []byte) []byte { return make([]byte, len(b)) }), "damage bundle tile/entries/000"},
		{"checkpoint changed", flip(checkpoint, len(fakeOrigin)+1), "damage checkpoint checkpoint"},
		{"checkpoint's signature", flip(checkpoint, -10), "damage checkpoint checkpoint"},
		{"checkpoint empty", set(checkpoint, func([]byte) []byte { return nil }), "damage checkpoint checkpoint"},
	} {
		t.Run(row.name, func(t *testing.T) {
			f := newFake(t, files(0, 600)...).publish()
			row.do(f)
			r := f.audit()
			got := kinds(r)
			switch {
			case strings.HasPrefix(row.want, "tampering|"):
				for _, want := range strings.Split(strings.TrimPrefix(row.want, "tampering|"), "; ") {
					if !strings.Contains(got, want) {
						t.Errorf("got %s", got)
					}
				}
			case got != row.want && got != row.want+root:
				t.Errorf("got  %s\nwant %s", got, row.want)
			}
			if r.Outcome() != Found {
				t.Errorf("outcome %d", r.Outcome())
			}
		})
	}
}

// TestAnotherTree: bytes that agree with each other and not with what was signed.
func TestAnotherTree(t *testing.T) {
	f := newFake(t, files(0, 700)...).publish()
	real := f.read(checkpoint)
	g := *f
	g.leaves, g.hashes = nil, nil
	g.add(append(files(0, 300), append([]string{file(100000)}, files(301, 399)...)...)...)
	g.publish()
	g.write(checkpoint, real)
	if got := kinds(g.audit()); got != "tampering root checkpoint" {
		t.Errorf("got %s", got)
	}
}

// TestHistory: what only kept checkpoints show. Each log here is consistent with
// itself.
func TestHistory(t *testing.T) {
	f := newFake(t, files(0, 700)...).publish()
	archive := filepath.Join(t.TempDir(), "archive")
	keep := func(c *Config) { c.History = archive }
	for _, n := range []int{0, 1, 300, 699} {
		if r := f.audit(keep, func(c *Config) {
			c.Seen = []Seen{{From: "x", Raw: f.note(n, f.root(n)), Published: true}}
		}); r.Outcome() != AllGood {
			t.Fatalf("size %d: %s", n, kinds(r))
		}
	}
	if names, _ := os.ReadDir(archive); len(names) != 5 {
		t.Fatalf("%d checkpoints kept, want 5", len(names))
	}
	r := f.audit(keep)
	if r.Outcome() != AllGood || r.Seen != 5 {
		t.Fatalf("%d seen: %s", r.Seen, kinds(r))
	}

	t.Run("fork", func(t *testing.T) { // the same key signs another history, whole and consistent
		g := *f
		g.t, g.dir = t, t.TempDir()
		g.leaves, g.hashes = nil, nil
		g.add(append(files(0, 299), append([]string{file(100000)}, files(300, 450)...)...)...)
		g.publish()
		r := g.audit(keep, func(c *Config) { c.History = copyOf(t, archive) })
		if got := kinds(r); strings.Count(got, "tampering fork history/") != 3 || r.Outcome() != Found { // 300, 699, 700
			t.Errorf("got %s", got)
		}
		if r := g.audit(); r.Outcome() != AllGood {
			t.Errorf("without history it cannot be seen: %s", kinds(r))
		}
	})
	t.Run("rollback", func(t *testing.T) {
		g := *f
		g.t, g.dir = t, t.TempDir()
		g.leaves, g.hashes = nil, nil
		g.add(files(0, 600)...)
		g.publish()
		if got := kinds(g.audit(func(c *Config) { c.History = copyOf(t, archive) })); strings.Count(got, "tampering rollback history/") != 2 {
			t.Errorf("got %s", got)
		}
		// A witness may know of what is not published yet: no accusation, no all-clear.
		r := g.audit(func(c *Config) { c.Seen = []Seen{{From: "w", Raw: f.note(700, f.root(700))}} })
		if got := kinds(r); !strings.HasPrefix(got, "unread w: the log signed 700") || r.Outcome() != CannotCheck {
			t.Errorf("got %s", got)
		}
	})
	t.Run("two roots", func(t *testing.T) {
		got := kinds(f.audit(func(c *Config) {
			c.Seen = []Seen{{From: "a", Raw: f.note(900, f.root(5))}, {From: "b", Raw: f.note(900, f.root(6))}}
		}))
		if !strings.HasPrefix(got, "tampering fork ") {
			t.Errorf("got %s", got)
		}
	})
	t.Run("what is not this log's accuses nobody", func(t *testing.T) {
		g := newFake(t, "x")
		r := f.audit(func(c *Config) { c.Seen = []Seen{{From: "a", Raw: g.note(900, f.root(5)), Published: true}} })
		if r.Outcome() != CannotCheck || len(r.Findings) > 0 {
			t.Errorf("got %s", kinds(r))
		}
	})
	t.Run("a damaged archive", func(t *testing.T) {
		dir := copyOf(t, archive)
		names, _ := os.ReadDir(dir)
		if err := os.WriteFile(filepath.Join(dir, names[2].Name()), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := kinds(f.audit(func(c *Config) { c.History = dir })); !strings.HasPrefix(got, "damage history history/") {
			t.Errorf("got %s", got)
		}
	})
	t.Run("witness", func(t *testing.T) {
		body := f.note(650, f.root(649))
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/w/"+WitnessPath(fakeOrigin) {
				http.NotFound(w, r)
				return
			}
			w.Write(body)
		}))
		defer s.Close()
		ask := func(c *Config) { c.Witnesses = []string{s.URL + "/w/"} }
		if got := kinds(f.audit(ask)); got != "tampering fork witness "+s.URL+"/w/" {
			t.Errorf("got %s", got)
		}
		body = f.note(650, f.root(650))
		if r := f.audit(ask); r.Outcome() != AllGood || r.Seen != 1 {
			t.Errorf("got %s", kinds(r))
		}
		if r := f.audit(func(c *Config) { c.Witnesses = []string{s.URL} }); r.Outcome() != AllGood { // it never heard of the log
			t.Errorf("got %s", kinds(r))
		}
		s.Close()
		if testing.Short() {
			return
		}
		if r := f.audit(ask); r.Outcome() != CannotCheck {
			t.Errorf("a witness that is out: %s", kinds(r))
		}
	})
}

func copyOf(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestRules: logs whose every byte is in order and that break the log's rules.
func TestRules(t *testing.T) {
	other := "sha256=" + strings.Repeat("b", 64)
	upload := func(change ...string) string { return line(change...) }
	policy := func(n int, overwrite string) string {
		return line("kind=registry-policy", fmt.Sprintf("id=%032x", n), "overwrite="+overwrite, "-file", "-project", "-sha256", "-size", "-version")
	}
	reject := func(n int, change ...string) string { return status(n, append([]string{"kind=reject"}, change...)...) }
	remove := func(n int, change ...string) string {
		return status(n, append([]string{"kind=remove", "version=1"}, change...)...)
	}
	conflict := func(n, first int, change ...string) string {
		return status(n, append([]string{"kind=conflict", "claim=log", "slot_claim=index", fmt.Sprintf("first_index=%d", first), other}, change...)...)
	}
	dispute := func(n, of int, change ...string) string {
		return line(append([]string{"kind=dispute", fmt.Sprintf("id=%032x", n), fmt.Sprintf("index=%d", of), "-ecosystem", "-file", "-project", "-sha256", "-size", "-version"}, change...)...)
	}
	canary := func(n int) string {
		return line("kind=canary", "claim=log", fmt.Sprintf("id=%032x", n), "-registry", "-ecosystem", "-file", "-project", "-sha256", "-size", "-version")
	}
	end := strings.Replace(canary(9), `"kind":"canary"`, `"kind":"successor","origin":"x.example"`, 1)
	end = strings.Replace(end, `"v":1}`, `"url":"https://x.example","v":1,"vkeys":["x.example+01234567+AQID"]}`, 1)
	const npm = "ecosystem=npm"
	for _, row := range []struct {
		name   string
		leaves []string
		want   string
	}{
		{"nothing wrong", []string{upload(), conflict(1, 0), upload("claim=observed", other), remove(2), dispute(3, 0), canary(4), end}, ""},
		{"other bytes", []string{upload(), upload(other)}, "tampering slot-twice entry 1"},
		{"other bytes, third time", []string{upload(), upload(other), upload()}, "tampering slot-twice entry 1; tampering slot-twice entry 2"},
		{"the same twice", []string{upload(), upload("time=2027-01-01T00:00:00Z")}, "leftover logged-twice entry 1"},
		{"other bytes for another's file", []string{upload(), upload(other, "registry=other.example"), upload(other, "project=y"), upload(other, "ecosystem=conda", "file=noarch/x-1.conda")}, ""},
		{"freed by reject", []string{upload(), reject(1), upload(other)}, ""},
		{"freed by a reject of other bytes", []string{upload(), reject(1, other), upload(other)}, "tampering refers-to-nothing entry 1; tampering slot-twice entry 2"},
		{"rejected twice", []string{upload(), reject(1), reject(2)}, "tampering refers-to-nothing entry 2"},
		{"reject of nothing", []string{reject(1)}, "tampering refers-to-nothing entry 0"},
		{"policy replace", []string{policy(1, "replace"), upload(), upload(other, "replaces=1")}, ""},
		{"policy replace, not named", []string{policy(1, "replace"), upload(), upload(other)}, "tampering slot-twice entry 2"},
		{"policy replace, another named", []string{policy(1, "replace"), upload(), upload(other, "replaces=0")}, "tampering slot-twice entry 2"},
		{"policy too late", []string{upload(), upload(other, "replaces=0"), policy(1, "replace")}, "tampering slot-twice entry 1"},
		{"policy taken back", []string{policy(1, "replace"), policy(2, "never"), upload(), upload(other, "replaces=2")}, "tampering slot-twice entry 3"},
		{"policy of another registry", []string{strings.Replace(policy(1, "replace"), "index.example", "other.example", 1), upload(), upload(other, "replaces=1")}, "tampering slot-twice entry 2"},
		{"policy for the index only", []string{policy(1, "replace"), upload("claim=observed"), upload("claim=observed", other)}, "tampering slot-twice entry 2"},
		{"after remove", []string{policy(1, "after-remove"), upload(), remove(2), upload(other)}, ""},
		{"after remove, naming it", []string{policy(1, "after-remove"), upload(), remove(2), upload(other, "replaces=1")}, ""},
		{"after remove of other bytes", []string{policy(1, "after-remove"), upload(), remove(2, other), upload(other)}, "tampering slot-twice entry 3"},
		{"without remove", []string{policy(1, "after-remove"), upload(), upload(other)}, "tampering slot-twice entry 2"},
		{"removed once is not for ever", []string{policy(1, "after-remove"), upload(), remove(2), upload(other), upload("sha256=" + strings.Repeat("c", 64))}, "tampering slot-twice entry 4"},
		{"replaces nothing", []string{policy(1, "replace"), upload("replaces=0")}, "tampering refers-to-nothing entry 1"},
		{"digests that cannot be compared", []string{upload(npm, "claim=observed", "file=x-1.tgz"),
			upload(npm, "claim=observed", "file=x-1.tgz", "-sha256", "sha512="+strings.Repeat("c", 128))}, "tampering slot-twice entry 1"},
		{"conflict twice", []string{upload(), conflict(1, 0), conflict(2, 0)}, "tampering id-twice entry 2"},
		{"conflict with what is not there", []string{upload(), conflict(1, 5)}, "tampering refers-to-nothing entry 1"},
		{"conflict with another file", []string{upload("project=y"), conflict(1, 0)}, "tampering refers-to-nothing entry 1"},
		{"conflict with itself", []string{upload(other), conflict(1, 0)}, "tampering refers-to-nothing entry 1"},
		{"conflict of the other claim", []string{upload(), conflict(1, 0, "slot_claim=observed")}, "tampering refers-to-nothing entry 1"},
		{"id twice", []string{canary(1), canary(1)}, "tampering id-twice entry 1"},
		{"id of another registry", []string{upload(), dispute(1, 0), strings.Replace(policy(1, "never"), "index.example", "other.example", 1)}, ""},
		{"dispute of what is to come", []string{dispute(1, 1), upload()}, "tampering refers-to-nothing entry 0"},
		{"dispute of itself", []string{dispute(1, 0)}, "tampering refers-to-nothing entry 0"},
		{"dispute of another's", []string{upload("registry=other.example"), dispute(1, 0)}, "tampering refers-to-nothing entry 1"},
		{"dispute of a canary", []string{canary(4), dispute(1, 0)}, "tampering refers-to-nothing entry 1"},
		{"after the successor", []string{end, canary(1)}, "tampering after-the-end entry 0"},
		{"not an entry", []string{upload(), "x"}, "tampering entry entry 1"},
		{"not canonical", []string{strings.Replace(upload(), ":", ": ", 1)}, "tampering entry entry 0"},
		{"a rule broken", []string{upload("-size")}, "tampering entry entry 0"},
		{"an empty leaf", []string{""}, "tampering entry entry 0"},
		{"too long", []string{line("version=" + strings.Repeat("1", 5000))}, "tampering entry entry 0"},
		{"another version", []string{strings.Replace(upload(), `"v":1`, `"v":2`, 1)},
			"unread entry 0 is of another version of the format: what it says was not checked, only its hash"},
	} {
		t.Run(row.name, func(t *testing.T) {
			f := newFake(t, row.leaves...).publish()
			if got := kinds(f.audit()); got != row.want {
				t.Errorf("got  %s\nwant %s", got, row.want)
			}
			// The same across bundles and through temporary files.
			if strings.Contains(row.name, "named") || strings.Contains(row.want, "unread") {
				return
			}
			g := newFake(t, row.leaves...)
			if !strings.Contains(row.name, "successor") && !strings.Contains(row.name, "nothing wrong") && !strings.Contains(row.name, "dispute of what is to come") {
				g.add(files(10, 300)...)
			}
			g.publish()
			if got := kinds(g.audit(func(c *Config) { c.MaxMemory = 1; c.TempDir = t.TempDir() })); got != row.want {
				t.Errorf("through files: got  %s\nwant %s", got, row.want)
			}
		})
	}
}

// TestNothingIsSaidAboutWhatCannotBeRead: trouble with reading is no accusation.
func TestNothingIsSaidAboutWhatCannotBeRead(t *testing.T) {
	f := newFake(t, files(0, 600)...).publish()
	out := 0
	h := http.FileServer(http.Dir(f.dir))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/tile/entries/001") {
			out++
			http.Error(w, "no", http.StatusBadGateway)
			return
		}
		h.ServeHTTP(w, r)
	}))
	defer s.Close()
	r := f.audit(func(c *Config) { c.Mirror, c.URL = "", s.URL })
	if got := kinds(r); r.Outcome() != CannotCheck || !strings.HasPrefix(got, "unread tile/entries/001: the server answered 502") || out != siteTries {
		t.Errorf("%d requests: %s", out, got)
	}
	s.Close()
	if _, err := Run(t.Context(), Config{URL: s.URL, Keys: []Key{{VKey: f.vkey}}}); err == nil || errors.Is(err, ErrConfig) {
		t.Errorf("a server that is out: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, f.config()); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

func TestConfigIsRefused(t *testing.T) {
	f, g := newFake(t), newFake(t)
	dir := t.TempDir()
	other := strings.Replace(g.vkey, "fake", "else", 1)
	for name, cfg := range map[string]Config{
		"nothing":         {Keys: []Key{{VKey: f.vkey}}},
		"two":             {Mirror: dir, URL: "http://x", Keys: []Key{{VKey: f.vkey}}},
		"no key":          {Mirror: dir},
		"not a key":       {Mirror: dir, Keys: []Key{{VKey: "x"}}},
		"key of another":  {Mirror: dir, Keys: []Key{{VKey: f.vkey}, {VKey: other}}},
		"not a log's dir": {Dir: dir},
		"not a URL":       {URL: "ftp://x", Keys: []Key{{VKey: f.vkey}}},
		"URL with a user": {URL: "http://u:p@x", Keys: []Key{{VKey: f.vkey}}},
	} {
		if _, err := Run(t.Context(), cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestKeys: signatures that count and that do not.
func TestKeys(t *testing.T) {
	f := newFake(t, files(0, 10)...).publish()
	g := newFake(t)
	good := f.read(checkpoint)
	foreign := bytes.Replace(g.note(10, f.root(10)), []byte("\n\n"), []byte("\n\n"), 1)
	lines := func(n []byte) []byte { return n[bytes.Index(n, []byte("\n\n"))+2:] }
	other := Key{VKey: g.vkey}
	for _, row := range []struct {
		name string
		note []byte
		keys []Key
		good bool
	}{
		{"own", good, []Key{{VKey: f.vkey}}, true},
		{"one of two", good, []Key{other, {VKey: f.vkey}}, true},
		{"beside an unknown one", append(bytes.Clone(good), lines(foreign)...), []Key{{VKey: f.vkey}}, true},
		{"only an unknown one", foreign, []Key{{VKey: f.vkey}}, false},
		{"another key", good, []Key{other}, false},
		{"retired, then", good, []Key{{VKey: f.vkey, Retired: true, UpTo: 10}, other}, true},
		{"retired, too late", good, []Key{{VKey: f.vkey, Retired: true, UpTo: 9}, other}, false},
		{"wrong beside right", append(bytes.Clone(good), bytes.Replace(lines(f.note(9, f.root(9))), nil, nil, 0)...), []Key{{VKey: f.vkey}}, false},
	} {
		f.write(checkpoint, row.note)
		r := f.audit(func(c *Config) { c.Keys = row.keys })
		if (r.Outcome() == AllGood) != row.good {
			t.Errorf("%s: %s", row.name, kinds(r))
		}
	}
}
