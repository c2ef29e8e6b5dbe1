package audit

// Logs made by hand, as mirrors: any leaves, any order, signed.

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// fake is a log that says what a test wants it to.
type fake struct {
	t      testing.TB
	dir    string
	vkey   string
	signer note.Signer
	leaves [][]byte
	hashes []tlog.Hash // stored hashes, as tlog numbers them
}

const fakeOrigin = "log.example/fake"

func newFake(t testing.TB, leaves ...string) *fake {
	t.Helper()
	skey, vkey, err := note.GenerateKey(rand.Reader, fakeOrigin)
	if err != nil {
		t.Fatal(err)
	}
	s, err := note.NewSigner(skey)
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{t: t, dir: t.TempDir(), vkey: vkey, signer: s}
	f.add(leaves...)
	return f
}

func (f *fake) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = f.hashes[x]
	}
	return out, nil
}

func (f *fake) add(leaves ...string) {
	f.t.Helper()
	for _, l := range leaves {
		hs, err := tlog.StoredHashes(int64(len(f.leaves)), []byte(l), f)
		if err != nil {
			f.t.Fatal(err)
		}
		f.leaves, f.hashes = append(f.leaves, []byte(l)), append(f.hashes, hs...)
	}
}

func (f *fake) root(size int) tlog.Hash {
	f.t.Helper()
	if size == 0 {
		return tlog.Hash(emptyRoot)
	}
	h, err := tlog.TreeHash(int64(size), f)
	if err != nil {
		f.t.Fatal(err)
	}
	return h
}

// note is a signed checkpoint.
func (f *fake) note(size int, root tlog.Hash) []byte {
	f.t.Helper()
	text := fmt.Sprintf("%s\n%d\n%s\n", fakeOrigin, size, base64.StdEncoding.EncodeToString(root[:]))
	raw, err := note.Sign(&note.Note{Text: text}, f.signer)
	if err != nil {
		f.t.Fatal(err)
	}
	return raw
}

func (f *fake) write(path string, raw []byte) {
	f.t.Helper()
	path = filepath.Join(f.dir, filepath.FromSlash(path))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(path, raw, 0o644); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fake) read(path string) []byte {
	f.t.Helper()
	raw, err := os.ReadFile(filepath.Join(f.dir, filepath.FromSlash(path)))
	if err != nil {
		f.t.Fatal(err)
	}
	return raw
}

// publish writes tiles, bundles and checkpoint of the log as it is.
func (f *fake) publish() *fake {
	f.t.Helper()
	size := len(f.leaves)
	for _, t := range tlog.NewTiles(8, 0, int64(size)) {
		raw, err := tlog.ReadTileData(t, f)
		if err != nil {
			f.t.Fatal(err)
		}
		f.write(tile{t.L, t.N, t.W}.path(), raw)
	}
	for i := 0; i < size; i += perTile {
		n := min(perTile, size-i)
		f.write(tile{-1, int64(i / perTile), n}.path(), f.bundle(i, n))
	}
	f.write(checkpoint, f.note(size, f.root(size)))
	return f
}

func (f *fake) bundle(from, n int) (raw []byte) {
	for _, l := range f.leaves[from : from+n] {
		raw = append(binary.BigEndian.AppendUint16(raw, uint16(len(l))), l...)
	}
	return raw
}

func (f *fake) config() Config {
	return Config{Mirror: f.dir, Keys: []Key{{VKey: f.vkey}}, Workers: 2}
}

func (f *fake) audit(change ...func(*Config)) *Report {
	f.t.Helper()
	cfg := f.config()
	for _, c := range change {
		c(&cfg)
	}
	r, err := Run(f.t.Context(), cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

// kinds are the findings as "class kind where".
func kinds(r *Report) string {
	var all []string
	for _, f := range r.Findings {
		all = append(all, string(f.Class)+" "+f.Kind+" "+f.Where)
	}
	for _, u := range r.Unread {
		all = append(all, "unread "+u)
	}
	return strings.Join(all, "; ")
}

// line is a leaf: name=value pairs on top of an upload's, "-name" takes one away.
func line(change ...string) string {
	fields := map[string]string{"claim": `"index"`, "ecosystem": `"pypi"`, "file": `"x-1.tar.gz"`, "kind": `"upload"`, "project": `"x"`, "registry": `"index.example"`,
		"sha256": `"` + strings.Repeat("a", 64) + `"`, "size": "1", "time": `"2026-11-21T05:00:00Z"`, "v": "1", "version": `"1"`}
	for _, c := range change {
		name, value, _ := strings.Cut(c, "=")
		if strings.HasPrefix(name, "-") {
			delete(fields, name[1:])
			continue
		}
		if strings.IndexByte("0123456789[{", value[0]) < 0 || name == "version" || name == "sha256" || name == "id" || name == "time" {
			value = `"` + value + `"`
		}
		fields[name] = value
	}
	var members []string
	for _, name := range fieldNames {
		if v, has := fields[name]; has {
			members = append(members, `"`+name+`":`+v)
		}
	}
	return "{" + strings.Join(members, ",") + "}"
}

// file is the n-th of many uploads.
func file(n int) string {
	return line(fmt.Sprintf("file=x-%d.tar.gz", n), fmt.Sprintf("sha256=%064x", n), fmt.Sprintf("version=%d", n))
}

func files(from, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = file(from + i)
	}
	return out
}

// with an id, as all but uploads have.
func status(n int, change ...string) string {
	return line(append([]string{fmt.Sprintf("id=%032x", n), "-size", "-version"}, change...)...)
}
