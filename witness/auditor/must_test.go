package auditor

// One row for every MUST of c2sp.org/tlog-mirror that binds a mirror, and for
// those of c2sp.org/tlog-tiles that bind who serves one. A row is named by the
// sentence. Three have no row: that a witness service beside the mirror is a
// distinct cosigner with a distinct monitoring prefix (an auditor offers none),
// what sign-subtree must not exchange (it is optional, and not offered), and
// lowering a minimum index (it is zero).

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/portbook/portbook/c2sp"
	"github.com/portbook/portbook/witness"
)

func TestEveryMust(t *testing.T) {
	t.Parallel()
	// at is a rig whose auditor has cosigned `cosigned` entries (0: nothing) and
	// has a pending checkpoint of size `pending`.
	at := func(t *testing.T, cosigned, pending int) *rig {
		t.Helper()
		r := newRig(t)
		if cosigned > 0 {
			r.grow(cosigned)
			r.want(r.addCheckpoint(0), 200)
			r.want(r.addEntries(r.push(0, uint64(cosigned)).body()), 200)
		}
		if pending > cosigned {
			r.grow(pending - cosigned)
			r.want(r.addCheckpoint(uint64(cosigned)), 200)
		}
		return r
	}
	row := func(sentence string, f func(t *testing.T)) {
		t.Run(sentence, func(t *testing.T) { t.Parallel(); f(t) })
	}

	row("The checkpoint served from this prefix MUST include a cosignature from the mirror.", func(t *testing.T) {
		r := at(t, 0, 300)
		path := "/" + c2sp.OriginHash(origin) + "/checkpoint"
		r.want(r.get(path), 404) // a pending checkpoint is not the mirror's
		r.want(r.addEntries(r.push(0, 300).body()), 200)
		a := r.want(r.get(path), 200) // addEntries has verified its lines
		if kind := a.header.Get("Content-Type"); kind != "text/plain; charset=utf-8" {
			t.Errorf("Content-Type %q", kind)
		}
		for _, bad := range []string{"/" + strings.ToUpper(c2sp.OriginHash(origin)) + "/checkpoint", "/" + c2sp.OriginHash("x") + "/checkpoint", path + "/"} {
			r.want(r.get(bad), 404)
		}
	})
	row("The request is handled identically to that of a witness, updating the pending checkpoint", func(t *testing.T) {
		r := at(t, 0, 5)
		note := r.log.Note()
		body := func(old uint64, proof []hash, note []byte) []byte {
			return (&c2sp.AddCheckpoint{Old: old, Proof: proof, Checkpoint: note}).Bytes()
		}
		stranger := newRig(t)
		r.grow(3)
		for _, try := range []struct {
			name   string
			body   []byte
			status int
		}{
			{"nothing", nil, 400},
			{"old above the size", body(9, nil, r.log.Note()), 400},
			{"a key that nobody trusts", body(5, nil, stranger.log.Note()), 403},
			{"another old size", r.log.AddCheckpoint(4), 409},
			{"a proof that fails", body(5, make([]hash, 3), r.log.Note()), 422},
			{"the same again", body(5, nil, note), 200},
			{"the honest one", r.log.AddCheckpoint(5), 200},
			{"an older one", body(5, nil, note), 409},
		} {
			a := r.do("POST", "/add-checkpoint", "", try.body)
			if a.status != try.status {
				t.Errorf("%s: status %d, want %d: %s", try.name, a.status, try.status, a.body)
			}
			if a.status == 409 && (a.header.Get("Content-Type") != "text/x.tlog.size" || a.body != "5\n" && a.body != "8\n") {
				t.Errorf("%s: %q of %q", try.name, a.body, a.header.Get("Content-Type"))
			}
			if a.status == 200 && a.body != "" {
				t.Errorf("%s: body %q", try.name, a.body)
			}
		}
		unknown := &c2sp.Note{Text: c2sp.Checkpoint{Origin: "unknown.test", Root: c2sp.EmptyRoot}.Text(), Sigs: []c2sp.Signature{{Name: "x", KeyID: 1, Sig: make([]byte, 64)}}}
		r.want(r.do("POST", "/add-checkpoint", "", body(0, nil, unknown.Bytes())), 404)
		for _, m := range []string{"GET", "PUT", "HEAD"} {
			r.want(r.do(m, "/add-checkpoint", "", nil), 405)
			r.want(r.do(m, "/add-entries", "", nil), 405)
		}
	})
	row("The mirror MUST retain the log's signature in the pending checkpoint.", func(t *testing.T) {
		r := at(t, 0, 300)
		r.restart()
		list, err := r.dir.index.pendings(context.Background(), 1)
		if err != nil || len(list) != 1 {
			t.Fatalf("%d pending: %v", len(list), err)
		}
		note := must(c2sp.ParseNote(list[0].note))
		if len(note.Sigs) != 1 || r.key.Key().VerifyLog(note.Text, note.Sigs[0]) != nil {
			t.Errorf("%s", list[0].note)
		}
		r.want(r.addEntries(r.push(0, 300).body()), 200) // served with it: verify looks
	})
	row("The mirror cosigner MUST NOT sign the checkpoint in this process.", func(t *testing.T) {
		r := at(t, 300, 300)
		r.grow(1)
		if a := r.want(r.addCheckpoint(300), 200); a.body != "" {
			t.Errorf("add-checkpoint answers %q", a.body)
		}
		if got := r.size(); got != 300 {
			t.Errorf("the mirror checkpoint is of size %d", got)
		}
		// And the same key is no witness's.
		if _, err := witness.OpenDir(r.dir.Path); err == nil {
			t.Error("a witness runs with the auditor's directory")
		}
	})
	row("If providing both mirror and witness services, checkpoints signed only with the witness key(s), if any, MUST NOT be exchanged for subtrees signed by the mirror key(s).", func(t *testing.T) {
		r := at(t, 300, 300)
		r.want(r.do("POST", "/sign-subtree", "", nil), 404)
	})

	row("The request body MUST have Content-Type of application/octet-stream and contain the following values, concatenated.", func(t *testing.T) {
		r := at(t, 0, 300)
		body := r.push(0, 300).body()
		for _, kind := range []string{"", "text/plain", "application/octet-stream; charset=utf-8"} {
			r.want(r.do("POST", "/add-entries", kind, body), 400)
		}
		head := len(r.push(0, 300).header())
		for n := range head { // each way in which the header can end early
			r.want(r.addEntries(body[:n]), 400)
		}
		high := r.push(0, 300)
		high.start, high.end = 1<<63, 1<<63
		r.want(r.addEntries(high.body()), 400)
		r.want(r.addEntries(body), 200)
	})
	row("upload_end MUST be equal to the pending checkpoint's tree size, or that of a previously valid pending checkpoint.", func(t *testing.T) {
		r := at(t, 0, 300)
		early := r.push(0, 300)
		r.grow(100)
		r.want(r.addCheckpoint(300), 200)
		for _, end := range []uint64{0, 299, 301, 399, 401, 1 << 40} {
			p := *early
			p.start, p.end = 0, end
			r.info(r.want(r.addEntries(p.body()), 409), 400, 0)
		}
		r.want(r.addEntries(early.body()), 200) // an earlier one is good
		if r.size() != 300 {
			t.Errorf("size %d", r.size())
		}
		r.want(r.addEntries(r.push(300, 400).body()), 200)
	})
	row("upload_start MUST be less or equal to upload_end.", func(t *testing.T) {
		r := at(t, 0, 300)
		p := r.push(0, 300)
		p.start, p.packs = 301, nil
		r.want(r.addEntries(p.body()), 400)
	})
	row("The request MUST contain a prefix of the canonical sequence: zero or more packages, each exactly as specified below, in order.", func(t *testing.T) {
		r := at(t, 0, 700)
		p := r.push(0, 700)
		swapped := *p
		swapped.packs = [][]byte{p.packs[1], p.packs[0], p.packs[2]}
		r.want(r.addEntries(swapped.body()), 422)
		one := *p
		one.packs = p.packs[:1]
		r.info(r.want(r.addEntries(one.body()), 202), 700, 256)
		r.want(r.addEntries(r.push(256, 700).body()), 200)
		// A start that is not aligned: the rest of a package.
		r.grow(20)
		r.want(r.addCheckpoint(700), 200)
		r.want(r.addEntries(r.push(690, 720).body()), 200)
	})
	row("1 byte, encoding an 8-bit unsigned integer, num_hashes, which MUST be at most 63", func(t *testing.T) {
		r := at(t, 0, 3)
		p := r.push(0, 3)
		long := bytes.Clone(p.packs[0])
		if long[len(long)-1] != 0 {
			t.Fatal("the proof of the whole tree is empty")
		}
		long[len(long)-1] = 64
		p.packs[0] = append(long, make([]byte, 64*32)...)
		r.want(r.addEntries(p.body()), 400)
		long[len(long)-1] = 63
		p.packs[0] = append(bytes.Clone(long), make([]byte, 63*32)...)
		r.want(r.addEntries(p.body()), 422)
		r.want(r.addEntries(r.push(0, 3).body()), 200)
	})
	row("Mirrors MUST support receiving Content-Encoding: gzip in add-entries requests.", func(t *testing.T) {
		r := at(t, 0, 700)
		send := func(encoding string, body []byte) answer {
			req := httptest.NewRequest("POST", "/add-entries", bytes.NewReader(body))
			req.Header.Set("Content-Type", "application/octet-stream")
			req.Header.Set("Content-Encoding", encoding)
			return r.send(req)
		}
		var z bytes.Buffer
		zw := gzip.NewWriter(&z)
		zw.Write(r.push(0, 700).body())
		zw.Close()
		r.want(send("br", z.Bytes()), 415)
		r.want(send("gzip", []byte("not gzip")), 400)
		a := send("gzip", z.Bytes()[:z.Len()/2]) // it ends within
		if a.status != 202 && a.status != 400 {
			t.Errorf("half of a gzip: %d %s", a.status, a.body)
		}
		a = r.want(send("gzip", z.Bytes()), 200)
		if a.header.Get("Accept-Encoding") != "gzip" {
			t.Error("mirrors SHOULD send an Accept-Encoding header that includes gzip")
		}
		r.verify()
	})

	row(`If log_origin is not a known log, the mirror MUST respond with a "404 Not Found" HTTP status code.`, func(t *testing.T) {
		r := at(t, 0, 300)
		p := r.push(0, 300)
		p.origin = "other.test/log"
		r.want(r.addEntries(p.body()), 404)
	})
	row(`If the mirror has never received a pending checkpoint signed by the log, the mirror MUST respond with a "422 Unprocessable Entity" HTTP status code.`, func(t *testing.T) {
		r := newRig(t)
		r.grow(300)
		r.want(r.addEntries(r.push(0, 300).body()), 422)
		if r.size() != -1 {
			t.Error("it is cosigned")
		}
	})
	row(`If upload_end is less than the mirror checkpoint's tree size, the mirror MUST respond with a "409 Conflict" HTTP status code.`, func(t *testing.T) {
		r := at(t, 0, 300)
		early := r.push(0, 300)
		r.grow(100)
		r.want(r.addCheckpoint(300), 200)
		r.want(r.addEntries(r.push(0, 400).body()), 200)
		r.info(r.want(r.addEntries(early.body()), 409), 400, 400)
	})
	row(`If upload_start is greater than the mirror's next entry, the mirror MUST respond with a "409 Conflict" HTTP status code.`, func(t *testing.T) {
		r := at(t, 0, 700)
		r.info(r.want(r.addEntries(r.push(1, 700).body()), 409), 700, 0)
		r.info(r.want(r.addEntries(r.push(512, 700).body()), 409), 700, 0)
		r.info(r.want(r.addEntries(r.push(700, 700).body()), 409), 700, 0)
		r.want(r.addEntries(r.push(0, 700).body()), 200)
	})
	row(`If excess_entries is too large, the mirror MUST respond with a "409 Conflict" HTTP status code.`, func(t *testing.T) {
		r := at(t, maxExcess+1, maxExcess+1)
		p := r.push(0, maxExcess+1)
		r.info(r.want(r.addEntries(p.body()), 409), maxExcess+1, maxExcess+1)
		r.want(r.addEntries(r.push(1, maxExcess+1).body()), 200)
	})

	row("For each entry package, it MUST authenticate the entries by verifying the subtree consistency proof", func(t *testing.T) {
		r := at(t, 0, 700)
		p := r.push(0, 700)
		change := func(pack int, f func([]byte) []byte) []byte {
			q := *p
			q.packs = append([][]byte(nil), p.packs...)
			q.packs[pack] = f(bytes.Clone(q.packs[pack]))
			return q.body()
		}
		r.want(r.addEntries(change(0, func(b []byte) []byte { b[10] ^= 1; return b })), 422)         // a leaf
		r.want(r.addEntries(change(0, func(b []byte) []byte { b[len(b)-1] ^= 1; return b })), 422)   // the proof
		r.want(r.addEntries(change(0, func([]byte) []byte { return bytes.Clone(p.packs[1]) })), 422) // another's leaves
		list := must(os.ReadDir(filepath.Join(r.dir.Path, mirrorDir, c2sp.OriginHash(origin))))
		for _, e := range list {
			if e.Name() == "tile" {
				t.Error("something of it was stored")
			}
		}
		r.want(r.addEntries(p.body()), 200)
	})
	row(`If this verification process fails, it MUST respond with a "422 Unprocessable Entity" HTTP status code and end processing.`, func(t *testing.T) {
		r := at(t, 0, 700)
		p := r.push(0, 700)
		good := p.packs[1]
		p.packs[1] = bytes.Clone(good)
		p.packs[1][10] ^= 1
		r.want(r.addEntries(p.body()), 422)
		// What came before it is kept; what came after it is not.
		p.packs[1] = good
		p.start, p.packs = 512, p.packs[2:]
		r.info(r.want(r.addEntries(p.body()), 409), 700, 256)
	})
	row("If some entry has already been written to the log or the pending entry list, the mirror MUST skip saving that entry.", func(t *testing.T) {
		r := at(t, 300, 700)
		bundle := filepath.Join(r.dir.Path, mirrorDir, c2sp.OriginHash(origin), "tile/entries/000")
		before := must(os.Stat(bundle))
		r.want(r.addEntries(r.push(100, 700).body()), 200)
		if after := must(os.Stat(bundle)); !os.SameFile(before, after) {
			t.Error("a bundle that was there is written again")
		}
	})
	row(`If at least one entry package was authenticated and saved, but the mirror has not yet received all packages covering [upload_start, upload_end), the mirror MUST respond with a "202 Accepted" response carrying the advanced next entry.`, func(t *testing.T) {
		r := at(t, 0, 700)
		body := r.push(0, 700).body()
		p := r.push(0, 700)
		first := len(p.header()) + len(p.packs[0])
		for _, n := range []int{first, first + 1, first + len(p.packs[1]) - 1} { // the partial bytes are discarded
			r.info(r.want(r.addEntries(body[:n]), 202), 700, 256)
			if r.size() != -1 {
				t.Fatal("it is cosigned")
			}
		}
		r.info(r.want(r.addEntries(body[:len(body)-1]), 202), 700, 512)
		r.want(r.addEntries(r.push(512, 700).body()), 200)
	})
	row(`If the canonical sequence is not empty, and no entry package was authenticated and saved before the body ended, the mirror MUST respond with a "400 Bad Request" HTTP status code.`, func(t *testing.T) {
		r := at(t, 0, 700)
		p := r.push(0, 700)
		r.want(r.addEntries(p.header()), 400)
		r.want(r.addEntries(p.body()[:len(p.header())+len(p.packs[0])-1]), 400)
		r.want(r.addEntries(p.body()), 200)
		// And if it is empty, the request is whole without any.
		r.want(r.addEntries(r.push(700, 700).body()), 200)
	})
	row(`the response body MUST have a Content-Type of text/x.tlog.mirror-info and consist of three lines`, func(t *testing.T) {
		r := at(t, 0, 700)
		p := r.push(0, 700)
		p.packs = p.packs[:2]
		a := r.want(r.addEntries(p.body()), 202)
		r.info(a, 700, 512) // its third line is a ticket of length zero
		if strings.Count(a.body, "\n") != 3 {
			t.Errorf("%q", a.body)
		}
	})
	row("The mirror MUST authenticate any information it derives from a ticket.", func(t *testing.T) {
		r := at(t, 0, 300)
		p := r.push(0, 300)
		p.ticket = string(r.log.Note()) // nothing is derived from it, whatever it is
		q := *p
		q.end = 299
		r.want(r.addEntries(q.body()), 409)
		r.want(r.addEntries(p.body()), 200)
	})
	row(`If upload_end was too small, the mirror MUST respond with a "409 Conflict" HTTP status code, as described above.`, func(t *testing.T) {
		// The mirror checkpoint moves after the header was judged.
		r := at(t, 0, 300)
		early := r.push(0, 300)
		r.grow(100)
		r.want(r.addCheckpoint(300), 200)
		late := r.push(0, 400).body()
		head := len(early.header())
		body := early.body()
		in := &interrupted{first: body[:head], then: func() { r.want(r.addEntries(late), 200) }, rest: body[head:]}
		req := httptest.NewRequest("POST", "/add-entries", in)
		req.Header.Set("Content-Type", "application/octet-stream")
		r.info(r.want(r.send(req), 409), 400, 400)
		if r.size() != 400 {
			t.Errorf("size %d", r.size())
		}
	})
	row(`The signatures MUST be cosignatures from the mirror key(s) on the checkpoint.`, func(t *testing.T) {
		r := at(t, 0, 300)
		a := r.want(r.addEntries(r.push(0, 300).body()), 200)
		sigs, err := c2sp.ParseSignatureLines([]byte(a.body))
		if err != nil || len(sigs) != 2 {
			t.Fatalf("%q: %v", a.body, err)
		}
		text := must(c2sp.ParseNote(r.log.Note())).Text
		for i, k := range r.a.Keys() {
			if when, err := k.VerifyNote(text, sigs[i]); err != nil || !when.Equal(r.clock.now()) {
				t.Errorf("%v %v", when, err)
			}
		}
	})
	row("The mirror MUST persist the new checkpoint before responding.", func(t *testing.T) {
		r := at(t, 0, 300)
		last := ""
		r.dir.testBeforeStep = func(step string) error { last = step; return nil }
		r.use(r.dir)
		r.want(r.addEntries(r.push(0, 300).body()), 200)
		if last != "answer" {
			t.Errorf("the last step before the answer is %q", last)
		}
		r.restart()
		if r.size() != 300 {
			t.Error("another process does not see it")
		}
	})
	row("clients and mirrors MUST continue operating correctly if an add-entries stream is interrupted.", func(t *testing.T) {
		r := at(t, 0, 700)
		p := r.push(0, 700)
		body := p.body()
		for n := len(body) / 7; n < len(body); n += len(body) / 7 {
			req := httptest.NewRequest("POST", "/add-entries", &interrupted{first: body[:n], err: errors.New("the connection broke")})
			req.Header.Set("Content-Type", "application/octet-stream")
			if a := r.send(req); a.status != 202 && a.status != 400 {
				t.Errorf("cut at %d: %d %s", n, a.status, a.body)
			}
		}
		r.want(r.addEntries(body), 200)
	})
	row("the mirror MUST act on some valid copy of its pending checkpoint and next index state.", func(t *testing.T) {
		// A pending checkpoint that comes while entries of the one before are read.
		r := at(t, 0, 300)
		p := r.push(0, 300)
		head := len(p.header())
		body := p.body()
		req := httptest.NewRequest("POST", "/add-entries", &interrupted{first: body[:head], then: func() {
			r.grow(50)
			r.want(r.addCheckpoint(300), 200)
		}, rest: body[head:]})
		req.Header.Set("Content-Type", "application/octet-stream")
		r.want(r.send(req), 200)
		if r.size() != 300 {
			t.Errorf("size %d", r.size())
		}
	})
	row("it is possible that, due to a concurrent instance of add-entries, some entries have already been added: Mirrors MUST correctly handle this case and continue operating correctly.", func(t *testing.T) {
		r := at(t, 0, 700)
		body := r.push(0, 700).body()
		var all sync.WaitGroup
		status := make([]int, 4)
		for i := range status {
			all.Go(func() { status[i] = r.do("POST", "/add-entries", "application/octet-stream", body).status })
		}
		all.Wait()
		for _, s := range status {
			if s != 200 {
				t.Errorf("%v", status)
			}
		}
		r.verify()
	})
	row("In this case, the mirror MUST NOT rewind the checkpoint and MUST instead skip the update.", func(t *testing.T) {
		r := at(t, 300, 700)
		r.want(r.addEntries(r.push(300, 700).body()), 200)
		b := must(r.a.book(context.Background(), origin))
		list := must(r.dir.index.pendings(context.Background(), b.row.id))
		for _, p := range list {
			if p.cp.Size == 300 {
				var behind *ConflictError
				if _, err := r.a.finish(context.Background(), b, p); !errors.As(err, &behind) {
					t.Errorf("%v", err)
				}
			}
		}
		if r.size() != 700 {
			t.Errorf("size %d", r.size())
		}
	})
	row("the mirror MUST NOT sign or update its mirror checkpoint until all entries are durably committed.", func(t *testing.T) {
		r := at(t, 0, 300)
		var steps []string
		r.dir.testBeforeStep = func(step string) error { steps = append(steps, step); return nil }
		r.use(r.dir)
		r.want(r.addEntries(r.push(0, 300).body()), 200)
		advanced := false
		synced := map[string]bool{}
		for _, s := range steps {
			advanced = advanced || s == "advance the head"
			if name, ok := strings.CutPrefix(s, "sync the directory of "); ok {
				synced[name] = true
				if advanced {
					t.Errorf("%s after the head was advanced", s)
				}
			}
		}
		for _, file := range []string{"tile/entries/000", "tile/entries/001.p/44", "tile/0/000", "tile/0/001.p/44", "tile/1/000.p/1"} {
			if !synced[file] {
				t.Errorf("%s was not made durable before", file)
			}
		}
		if !advanced {
			t.Error("the head was never advanced")
		}
	})
	row("That is, the minimum index value MUST be set to zero.", func(t *testing.T) {
		r := at(t, 700, 700)
		r.restart()
		r.verify() // every bundle and tile from the first on
	})

	row("(tlog-tiles) Tiles are served with Content-Type: application/octet-stream.", func(t *testing.T) {
		r := at(t, 300, 300)
		for _, path := range []string{"tile/0/000", "tile/0/001.p/44", "tile/1/000.p/1", "tile/entries/000", "tile/entries/001.p/44"} {
			a := r.want(r.get("/"+c2sp.OriginHash(origin)+"/"+path), 200)
			if kind := a.header.Get("Content-Type"); kind != "application/octet-stream" || !strings.Contains(a.header.Get("Cache-Control"), "immutable") {
				t.Errorf("%s: %q, %q", path, kind, a.header.Get("Cache-Control"))
			}
		}
	})
	row("(tlog-tiles) Empty tiles MUST NOT be served.", func(t *testing.T) {
		r := at(t, 256, 300)
		for _, path := range []string{"tile/0/001", "tile/0/001.p/1", "tile/0/000.p/0", "tile/0/000.p/256", "tile/1/000", "tile/2/000.p/1", "tile/entries/001.p/1",
			"tile/00/000", "tile/64/000", "tile/0/0000", "tile/0/x000/000", "tile/-1/000", "tile/0/../../auditor.key", "tile/entries/..%2f..%2fauditor.key"} {
			if a := r.get("/" + c2sp.OriginHash(origin) + "/" + path); a.status == 200 {
				t.Errorf("%s is served", path)
			}
		}
	})
	row("(tlog-tiles) Clients fetch what a checkpoint requires: nothing beyond the mirror checkpoint is served.", func(t *testing.T) {
		r := at(t, 300, 900)
		p := r.push(300, 900)
		p.packs = p.packs[:2]
		r.want(r.addEntries(p.body()), 202) // stored, pending, and not checked to the end
		for _, path := range []string{"tile/entries/001", "tile/0/001", "tile/entries/002", "tile/entries/001.p/45", "tile/0/001.p/45", "tile/1/000.p/2"} {
			r.want(r.get("/"+c2sp.OriginHash(origin)+"/"+path), 404)
		}
		r.want(r.addEntries(r.push(768, 900).body()), 200)
		r.want(r.get("/"+c2sp.OriginHash(origin)+"/tile/entries/002"), 200)
	})
	row("(cosignature) timestamp is the time at which the cosignature was generated: none is dated before the last one, or before the auditor was made.", func(t *testing.T) {
		r := at(t, 300, 400)
		right := r.clock.now()
		for _, wrong := range []time.Duration{-time.Minute, -2 * time.Hour, -50 * 365 * 24 * time.Hour} {
			r.clock.add(wrong)
			if a := r.want(r.addEntries(r.push(300, 400).body()), 503); !strings.Contains(a.body, "clock") {
				t.Errorf("%s", a.body)
			}
			r.clock.add(right.Sub(r.clock.now()))
		}
		if r.size() != 300 {
			t.Errorf("cosigned %d", r.size())
		}
		r.want(r.addEntries(r.push(300, 400).body()), 200)
		young := newRig(t) // whose clock stands before its own making
		young.clock.add(-2 * time.Hour)
		young.grow(3)
		young.want(young.addCheckpoint(0), 200)
		young.want(young.addEntries(young.push(0, 3).body()), 503)
	})
	row("(tlog-tiles) Logs MUST serve partial tiles corresponding to tree sizes for which a checkpoint was produced", func(t *testing.T) {
		r := at(t, 300, 700)
		r.want(r.addEntries(r.push(300, 700).body()), 200)
		for _, path := range []string{"tile/0/001.p/44", "tile/entries/001.p/44", "tile/1/000.p/1", "tile/1/000.p/2"} {
			r.want(r.get("/"+c2sp.OriginHash(origin)+"/"+path), 200) // cut from what took its place
		}
	})
	row("(tlog-tiles) Entry bundles SHOULD be compressed at the HTTP layer.", func(t *testing.T) {
		r := at(t, 300, 300)
		req := httptest.NewRequest("GET", "/"+c2sp.OriginHash(origin)+"/tile/entries/000", nil)
		req.Header.Set("Accept-Encoding", "gzip, br")
		a := r.want(r.send(req), http.StatusOK)
		zr, err := gzip.NewReader(strings.NewReader(a.body))
		if err != nil || a.header.Get("Content-Encoding") != "gzip" {
			t.Fatalf("%v %q", err, a.header.Get("Content-Encoding"))
		}
		var raw bytes.Buffer
		if _, err := raw.ReadFrom(zr); err != nil || raw.String() != r.get(req.URL.Path).body {
			t.Errorf("it is another bundle: %v", err)
		}
	})
}

// TestLimits: one client cannot take all the places, and one that stands still
// takes its own alone.
func TestLimits(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.grow(300)
	r.want(r.addCheckpoint(0), 200)
	p := r.push(0, 300)
	from := func(client string, body io.Reader) *http.Request {
		req := httptest.NewRequest("POST", "/add-entries", body)
		req.Header.Set("Content-Type", "application/octet-stream")
		req.RemoteAddr = client
		return req
	}
	var standing sync.WaitGroup
	release := make(chan struct{})
	hold := func(client string) {
		arrived := make(chan struct{})
		standing.Go(func() {
			r.send(from(client, &interrupted{first: p.header(), then: func() { close(arrived); <-release }, err: io.ErrUnexpectedEOF}))
		})
		<-arrived
	}
	for n := range 4 {
		hold(fmt.Sprintf("192.0.2.1:%d", n))
	}
	if a := r.want(r.send(from("192.0.2.1:99", nil)), 429); a.header.Get("Retry-After") != "1" {
		t.Error("429 without Retry-After")
	}
	for n := range maxStrangers - 4 {
		hold(fmt.Sprintf("192.0.2.%d:1", 10+n))
	}
	r.want(r.send(from("192.0.2.99:1", nil)), 503)
	close(release)
	standing.Wait()
	r.want(r.send(from("192.0.2.1:99", bytes.NewReader(p.body()))), 200)
	r.verify()
}

// An interrupted body does something, or breaks off, in its middle.
type interrupted struct {
	first []byte
	then  func()
	rest  []byte
	err   error
}

func (b *interrupted) Read(p []byte) (int, error) {
	if len(b.first) > 0 {
		n := copy(p, b.first)
		b.first = b.first[n:]
		return n, nil
	}
	if b.then != nil {
		b.then()
		b.then = nil
	}
	if b.err != nil {
		return 0, b.err
	}
	if len(b.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, b.rest)
	b.rest = b.rest[n:]
	return n, nil
}
