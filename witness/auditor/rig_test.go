package auditor

// What the tests stand on: a log that can lie (internal/evillog), and a rig that
// rehashes after each step all that the auditor serves.

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/entry"
	"github.com/portbook/portbook/internal/evillog"
	"github.com/transparency-dev/merkle/rfc6962"
	"github.com/transparency-dev/merkle/testonly"
)

const origin = "log.test/audited"

var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// A clock stands still until it is set.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.t }
func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

type rig struct {
	t     testing.TB
	clock *clock
	log   *evillog.Log
	key   *c2sp.Signer
	url   string
	dir   *Dir
	a     *Auditor
	h     http.Handler

	policy *c2sp.Policy

	signed map[uint64][32]byte // size: root, of all that was ever cosigned
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, clock: &clock{t: noon}, signed: map[uint64][32]byte{}}
	r.key = must(c2sp.GenerateSigner(origin, c2sp.AlgEd25519))
	r.log = evillog.New(evillog.Config{Signer: r.key, Now: r.clock.now})
	srv := httptest.NewServer(r.log)
	t.Cleanup(srv.Close)
	r.url = srv.URL
	ctx := context.Background()
	d, err := CreateDir(ctx, filepath.Join(t.TempDir(), "a"), "auditor.example/a1", noon.Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Store.AddLog(ctx, origin, []*c2sp.Key{r.key.Key()}); err != nil {
		t.Fatal(err)
	}
	if err := d.SetURL(ctx, origin, r.url); err != nil {
		t.Fatal(err)
	}
	r.use(d)
	t.Cleanup(func() { r.dir.Close() })
	return r
}

func (r *rig) use(d *Dir) {
	r.t.Helper()
	a, err := New(context.Background(), Config{Dir: d, Now: r.clock.now, Poll: 10 * time.Millisecond, Policy: r.policy})
	if err != nil {
		r.t.Fatal(err)
	}
	r.dir, r.a, r.h = d, a, a.Handler()
}

// restart is a process that ends and another that begins.
func (r *rig) restart() {
	r.t.Helper()
	if err := r.dir.Close(); err != nil {
		r.t.Fatal(err)
	}
	r.use(must(OpenDir(context.Background(), r.dir.Path)))
}

// uploaded is an entry of its own file, number i.
func uploaded(i int) *entry.Entry {
	return uploadOf(fmt.Sprintf("demo-%d.tar.gz", i), fmt.Sprint("content ", i))
}

func uploadOf(file, content string) *entry.Entry {
	sum := sha256.Sum256([]byte(content))
	return &entry.Entry{Kind: entry.KindUpload, Claim: entry.ClaimIndex, Registry: "index.test/simple", Ecosystem: entry.PyPI, Project: "demo",
		Version: "1.0", File: file, Size: entry.Uint(uint64(len(content))), SHA256: hex.EncodeToString(sum[:]), Time: noon.Format(entry.TimeFormat)}
}

// grow appends n honest uploads.
func (r *rig) grow(n int) {
	first := int(r.log.Size())
	var list []*entry.Entry
	for i := range n {
		list = append(list, uploaded(first+i))
	}
	r.log.Upload(list...)
}

// round follows the log once.
func (r *rig) round() error {
	r.t.Helper()
	err := r.follow()
	r.verify()
	return err
}

// follow is round without a look at what is served.
func (r *rig) follow() error {
	r.t.Helper()
	r.clock.add(time.Second)
	b, err := r.a.book(context.Background(), origin)
	if err != nil {
		r.t.Fatal(err)
	}
	src := newSource(r.url)
	src.http.Timeout = 2 * time.Second
	defer src.http.CloseIdleConnections()
	_, err = r.a.round(context.Background(), b, src)
	return err
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (r *rig) do(method, path, kind string, body []byte) answer {
	req := httptest.NewRequest(method, path, bytes.NewReader(body))
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	return r.send(req)
}

func (r *rig) send(req *http.Request) answer {
	rec := httptest.NewRecorder()
	r.h.ServeHTTP(rec, req)
	res := rec.Result()
	return answer{res.StatusCode, res.Header, string(must(io.ReadAll(res.Body)))}
}

func (r *rig) get(path string) answer { return r.do("GET", path, "", nil) }

// size is that of the mirror checkpoint; -1: there is none.
func (r *rig) size() int64 {
	a := r.get("/" + c2sp.OriginHash(origin) + "/checkpoint")
	if a.status == http.StatusNotFound {
		return -1
	}
	note := must(c2sp.ParseNote([]byte(a.body)))
	return int64(must(c2sp.ParseCheckpoint(note.Text)).Size)
}

// verify rehashes what the auditor serves, and holds it against all that it ever
// cosigned: one root for each size, no size less than before.
func (r *rig) verify() {
	r.t.Helper()
	prefix := "/" + c2sp.OriginHash(origin)
	a := r.get(prefix + "/checkpoint")
	if a.status == http.StatusNotFound {
		if len(r.signed) > 0 {
			r.t.Fatal("the mirror checkpoint is gone")
		}
		return
	}
	note := must(c2sp.ParseNote([]byte(a.body)))
	cp := must(c2sp.ParseCheckpoint(note.Text))
	by := map[*c2sp.Key]bool{}
	for _, s := range note.Sigs {
		for _, k := range append(r.a.Keys(), r.key.Key()) {
			if k.Matches(s) {
				if err := k.VerifyLog(note.Text, s); err != nil {
					r.t.Error(err)
				}
				by[k] = true
			}
		}
	}
	if len(by) != 3 || len(note.Sigs) != 3 {
		r.t.Errorf("the mirror checkpoint has %d lines, by %d of the log's key and ours", len(note.Sigs), len(by))
	}
	for size, root := range r.signed {
		if size > cp.Size || size == cp.Size && root != cp.Root {
			r.t.Errorf("size %d was cosigned before size %d, or with another root", size, cp.Size)
		}
	}
	r.signed[cp.Size] = cp.Root

	tree := testonly.New(rfc6962.DefaultHasher)
	for at := uint64(0); at < cp.Size; {
		t := c2sp.Tile{Level: -1, Index: at / 256, Width: int(min(256, cp.Size-at))}
		leaves, err := c2sp.ParseBundle([]byte(r.tile(t)), t.Width)
		if err != nil {
			r.t.Fatal(err)
		}
		tree.AppendData(leaves...)
		at += uint64(t.Width)
	}
	if got := [32]byte(tree.HashAt(cp.Size)); got != cp.Root {
		r.t.Fatalf("the served entries hash to %x, the cosigned root is %x", got, cp.Root)
	}
	for level := 0; cp.Size>>(8*level) > 0; level++ {
		for have, index := cp.Size>>(8*level), uint64(0); index*256 < have; index++ {
			t := c2sp.Tile{Level: level, Index: index, Width: int(min(256, have-index*256))}
			raw := r.tile(t)
			for i := range t.Width {
				n := (index*256 + uint64(i)) << (8 * level)
				sub := testonly.New(rfc6962.DefaultHasher)
				for k := uint64(0); k < 1<<(8*level); k++ {
					sub.Append(tree.LeafHash(n + k))
				}
				if string(sub.Hash()) != raw[32*i:32*i+32] {
					r.t.Fatalf("%s: hash %d is not that of its leaves", t.Path(), i)
				}
			}
		}
	}
}

func (r *rig) tile(t c2sp.Tile) string {
	r.t.Helper()
	a := r.get("/" + c2sp.OriginHash(origin) + "/" + t.Path())
	if a.status != http.StatusOK {
		r.t.Fatalf("%s: %d %s", t.Path(), a.status, a.body)
	}
	return a.body
}

// checkpointBody is add-checkpoint of the log's newest checkpoint.
func (r *rig) addCheckpoint(old uint64) answer {
	return r.do("POST", "/add-checkpoint", "text/plain", r.log.AddCheckpoint(old))
}

// A push is an add-entries request being made.
type push struct {
	origin     string
	start, end uint64
	ticket     string
	packs      [][]byte
}

// push is the honest upload of [start, end): end is the log's newest checkpoint.
func (r *rig) push(start, end uint64) *push {
	r.t.Helper()
	p := &push{origin: origin, start: start, end: end}
	srv := httptest.NewServer(r.log)
	defer srv.Close()
	src := newSource(srv.URL)
	defer src.http.CloseIdleConnections()
	t := newTree(context.Background(), src, end)
	err := canonical(start, end, func(s, e uint64) error {
		var b []byte
		for i := s; i < e; i++ {
			leaf := r.log.Leaf(i)
			b = append(binary.BigEndian.AppendUint16(b, uint16(len(leaf))), leaf...)
		}
		path, err := t.path(s/256*256, e)
		b = append(b, byte(len(path)))
		for _, h := range path {
			b = append(b, h[:]...)
		}
		p.packs = append(p.packs, b)
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

func (p *push) header() []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(len(p.origin)))
	b = append(b, p.origin...)
	b = binary.BigEndian.AppendUint64(b, p.start)
	b = binary.BigEndian.AppendUint64(b, p.end)
	b = binary.BigEndian.AppendUint16(b, uint16(len(p.ticket)))
	return append(b, p.ticket...)
}

func (p *push) body() []byte { return append(p.header(), bytes.Join(p.packs, nil)...) }

func (r *rig) addEntries(body []byte) answer {
	r.t.Helper()
	r.clock.add(time.Second)
	a := r.do("POST", "/add-entries", "application/octet-stream", body)
	if a.status != http.StatusOK && strings.Contains(a.body, "\u2014 ") {
		r.t.Errorf("an answer of status %d carries a signature", a.status)
	}
	r.verify()
	return a
}

// want fails the test unless the answer has this status.
func (r *rig) want(a answer, status int) answer {
	r.t.Helper()
	if a.status != status {
		r.t.Fatalf("status %d, want %d: %s", a.status, status, a.body)
	}
	return a
}

// info is a body of text/x.tlog.mirror-info.
func (r *rig) info(a answer, size, next uint64) {
	r.t.Helper()
	if kind := a.header.Get("Content-Type"); kind != "text/x.tlog.mirror-info" {
		r.t.Errorf("Content-Type %q", kind)
	}
	if want := strconv.FormatUint(size, 10) + "\n" + strconv.FormatUint(next, 10) + "\n\n"; a.body != want {
		r.t.Errorf("mirror-info %q, want %q", a.body, want)
	}
}
